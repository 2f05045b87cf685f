"""C99 and CUDA C as tables: names of types, literals, and one template for every machine operation and element type.

A template's fields are operands; `{0:12}` asks for parentheses where operand 0 binds less tightly than level 12.
Signed 32- and 64-bit arithmetic wraps, which C leaves undefined, so it goes through functions of numbers.h; narrower
integers are computed in `int` and cut off. 16-bit floats are `unsigned short`: arithmetic on them is done in float.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from graphc.codegen.expr import bits_float
from graphc.ir.types import BF16, BOOL, F16, F32, F64, I64, U64, DType

# How tightly operators bind, as in C.
ATOM, UNARY, MUL, ADD, SHIFT, LESS, EQUAL, AND, XOR, OR, BOTH, EITHER, CHOICE = 16, 15, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3
FUNCTION = 0  # operands of a call or an index need no parentheses


class Text(NamedTuple):
    """The text of an expression.

    level: of its outermost operator. loads: whether it reads memory. Of 64-bit integers also: bound, the largest magnitude,
    if known; small: whether the type of the text in C is `int`.
    """

    text: str
    level: int = ATOM
    loads: bool = False
    bound: int | None = None
    small: bool = False

    def __format__(self, level: str) -> str:
        return f"({self.text})" if level and self.level < int(level) else self.text


Template = tuple[str, int]


def _infix(symbol: str, level: int, right: int = 0, left: int = 0) -> Template:
    return f"{{0:{left or level}}} {symbol} {{1:{right or level + 1}}}", level


def _call(name: str, count: int) -> Template:
    return f"{name}({', '.join(f'{{{i}}}' for i in range(count))})", ATOM


def _cut(inner: str) -> Template:
    return f"({{t}})({inner})", UNARY


def _bits(symbol: str, level: int) -> Template:
    # Compilers ask for parentheses around + and comparisons here, and readers are glad of them.
    return _infix(symbol, level, MUL, MUL)


def _compare(symbol: str, level: int) -> dict[str, Template]:
    return dict.fromkeys("biuf", _infix(symbol, level, SHIFT, SHIFT))


_NARROW = ("i8", "i16", "u8", "u16")


def _integers(symbol: str, level: int, name: str) -> dict[str, Template]:
    table = {"u": _infix(symbol, level), "i32": _call(f"{name}_i32", 2), "i64": _call(f"{name}_i64", 2)}
    table.update(dict.fromkeys(_NARROW, _cut(_infix(symbol, level)[0])))
    return table


def _floats(name: str, count: int) -> dict[str, Template]:
    return {"f32": _call(name + "f", count), "f64": _call(name, count)}


# operation -> short name or kind of the operands' type -> template
OPERATIONS: dict[str, dict[str, Template]] = {
    "add": {"f": _infix("+", ADD), **_integers("+", ADD, "add")},
    "sub": {"f": _infix("-", ADD), **_integers("-", ADD, "sub")},
    # unsigned short times itself would overflow int.
    "mul": {"f": _infix("*", MUL), **_integers("*", MUL, "mul"), "u16": _cut("(unsigned){0:15} * {1:14}")},
    "div": {"f": _infix("/", MUL)},
    "idiv": {**dict.fromkeys("iu", _infix("/", MUL)), **dict.fromkeys(_NARROW, _cut(_infix("/", MUL)[0]))},
    "irem": {**dict.fromkeys("iu", _infix("%", MUL)), **dict.fromkeys(_NARROW, _cut(_infix("%", MUL)[0]))},
    "fma": _floats("fma", 3),
    "neg": {
        "f": ("-{0:15}", UNARY), "i32": _call("neg_i32", 1), "i64": _call("neg_i64", 1),
        **dict.fromkeys(("i8", "i16"), _cut("-{0:15}")),
    },
    "abs": _floats("fabs", 1),
    "sqrt": _floats("sqrt", 1),
    "floor": _floats("floor", 1),
    "ceil": _floats("ceil", 1),
    "trunc": _floats("trunc", 1),
    "rint": _floats("rint", 1),
    "and": {"b": _infix("&&", BOTH, BOTH), **dict.fromkeys("iu", _bits("&", AND))},
    "or": {"b": _infix("||", EITHER, OR, OR), **dict.fromkeys("iu", _bits("|", OR))},
    "xor": {"b": _infix("!=", EQUAL, SHIFT, SHIFT), **dict.fromkeys("iu", _bits("^", XOR))},
    "not": {"b": ("!{0:15}", UNARY), **dict.fromkeys("iu", ("~{0:15}", UNARY)), **dict.fromkeys(_NARROW, _cut("~{0:15}"))},
    "shl": {
        "u": _infix("<<", SHIFT, MUL, MUL), "i32": _call("shl_i32", 2), "i64": _call("shl_i64", 2),
        **dict.fromkeys(_NARROW, _cut("(unsigned){0:15} << {1:13}")),
    },
    "shr": {**dict.fromkeys("iu", _infix(">>", SHIFT, MUL, MUL)), **dict.fromkeys(_NARROW, _cut("{0:13} >> {1:13}"))},
    "mulhi": {
        "u8": _cut("{0:13} * {1:14} >> 8"), "u16": _cut("(unsigned){0:15} * {1:14} >> 16"),
        "u32": _call("mulhi_u32", 2), "u64": _call("mulhi_u64", 2),
    },
    "eq": _compare("==", EQUAL),
    "ne": _compare("!=", EQUAL),
    "lt": _compare("<", LESS),
    "le": _compare("<=", LESS),
    "gt": _compare(">", LESS),
    "ge": _compare(">=", LESS),
}
COMPARISONS = frozenset(("eq", "ne", "lt", "le", "gt", "ge"))


@dataclass(frozen=True)
class Dialect:
    """name: as in prelude.py. types: of values, by the short names of element types; `memory` where it differs in memory."""

    name: str
    types: dict[str, str]
    memory: dict[str, str]
    index: str  # the type of positions
    unroll: str  # the line before a loop that is written out, "" if there is none
    wide: bool  # whether one access may take several lanes
    long: str  # the suffix of a 64-bit literal
    array: str  # how an array of a kernel's own is declared

    def type(self, dtype: DType) -> str:
        return self.types[dtype.short]

    def element(self, dtype: DType) -> str:
        """The type of an element in memory."""
        return self.memory.get(dtype.short, self.types[dtype.short])


C99 = Dialect(
    "c99",
    {
        "bool": "_Bool", "i8": "int8_t", "i16": "int16_t", "i32": "int32_t", "i64": "int64_t",
        "u8": "uint8_t", "u16": "uint16_t", "u32": "uint32_t", "u64": "uint64_t",
        "f16": "uint16_t", "bf16": "uint16_t", "f32": "float", "f64": "double",
    },
    {"bool": "uint8_t"},
    # Compilers cannot see that what is read was written before, and warn.
    "int64_t", "", False, "", "{} = {{0}};",
)
CUDA = Dialect(
    "cuda",
    {
        "bool": "bool", "i8": "signed char", "i16": "short", "i32": "int", "i64": "long long",
        "u8": "unsigned char", "u16": "unsigned short", "u32": "unsigned", "u64": "unsigned long long",
        "f16": "unsigned short", "bf16": "unsigned short", "f32": "float", "f64": "double",
    },
    {"bool": "unsigned char"},
    "long long", "#pragma unroll", True, "ll", "__align__(16) {};",
)


def literal(dialect: Dialect, dtype: DType, data: int | bool) -> Text:
    """The text of a constant; floats are given by their bits."""
    if dtype is BOOL:
        return Text("1" if data else "0")
    if dtype.kind == "f":
        return float_literal(dtype, int(data))
    value = int(data)
    if value == -(1 << (dtype.bits - 1)) and dtype.bits >= 32:
        inner = literal(dialect, dtype, value + 1).text
        return Text(f"{inner} - 1", ADD, bound=-value, small=dtype.bits == 32)
    suffix = "u" if dtype.kind == "u" and dtype.bits >= 32 else ""
    if dtype is U64:
        suffix = "ull"
    small = abs(value) < 1 << 31
    if dtype is I64 and not small:
        suffix = dialect.long
    level = UNARY if value < 0 else ATOM
    return Text(f"{value}{suffix}", level, False, abs(value), small)


def float_literal(dtype: DType, bits: int) -> Text:
    """Decimal where that is short and exact, else hexadecimal; infinities and NaN by their bits."""
    if dtype.bits == 16:
        return Text(f"0x{bits:04x}")
    value, suffix = bits_float(dtype, bits), "f" if dtype is F32 else ""
    if value != value or value in (float("inf"), -float("inf")):
        name, kind = ("bits_float", "u") if dtype is F32 else ("bits_double", "ull")
        return Text(f"{name}(0x{bits:x}{kind})")
    text = repr(value)
    if "e" in text or len(text) > 9:
        text = value.hex()
        head, _, exponent = text.partition("p")
        text = f"{head.rstrip('0').rstrip('.')}p{exponent}" if "." in head else text
    return Text(text + suffix, UNARY if text.startswith("-") else ATOM)


def zero(dtype: DType) -> str:
    return "0.0f" if dtype is F32 else "0.0" if dtype is F64 else "0"


def widen(dtype: DType, x: Text) -> Text:
    """float16 or bfloat16 as float."""
    return Text(f"{'half' if dtype is F16 else 'bfloat'}_to_float({x})", ATOM, x.loads)


def narrow(dtype: DType, x: Text) -> Text:
    return Text(f"float_to_{'half' if dtype is F16 else 'bfloat'}({x})", ATOM, x.loads)


def operation(dialect: Dialect, op: str, dtype: DType, args: list[Text]) -> Text:
    """A machine operation on operands of `dtype`."""
    if dtype.kind == "f" and dtype.bits == 16:
        found = operation(dialect, op, F32, [widen(dtype, a) for a in args])
        return found if op in COMPARISONS else narrow(dtype, found)
    table = OPERATIONS[op]
    template, level = table.get(dtype.short) or table[dtype.kind]
    if template.startswith("-") and args[0].text.startswith("-"):
        args = [Text(f"({args[0].text})", ATOM, args[0].loads)]
    return Text(template.format(*args, t=dialect.type(dtype)), level, any(a.loads for a in args))


def convert(dialect: Dialect, x: Text, source: DType, target: DType) -> Text:
    """The `cast` of the expression language."""
    if source is target:
        return x
    loads = x.loads
    if target is BOOL:
        if source.kind == "f" and source.bits == 16:
            x, source = widen(source, x), F32
        return Text(f"{x:11} != {zero(source)}", EQUAL, loads)
    if source.kind in "biu":
        if target is F16:
            return narrow(F16, Text(f"(float){x:15}", UNARY, loads))
        if target is BF16:
            if source.bits == 64:
                return Text(f"{source.short}_to_bfloat({x})", ATOM, loads)
            if source.bits < 32:
                return narrow(BF16, Text(f"(float){x:15}", UNARY, loads))
            return narrow(BF16, Text(f"double_to_float_odd((double){x:15})", ATOM, loads))
        if target is I64 and (source.bits < 32 or source.short == "i32"):
            return Text(x.text, x.level, loads, 1 << source.bits, True)
        if target is I64 and source.short == "u32":
            return Text(f"({dialect.type(I64)}){x:15}", UNARY, loads, 1 << 32)
        return Text(f"({dialect.type(target)}){x:15}", UNARY, loads)
    if source.bits == 16:
        return convert(dialect, widen(source, x), F32, target)
    if target.kind == "f":
        if target.bits == 16:
            return narrow(target, x if source is F32 else Text(f"double_to_float_odd({x})", ATOM, loads))
        return Text(f"({dialect.type(target)}){x:15}", UNARY, loads)
    return Text(f"{source.short}_to_{target.short}({x})", ATOM, loads)


_FROM_BITS = {F32: "bits_float", F64: "bits_double"}
_TO_BITS = {F32: "float_bits", F64: "double_bits"}


def reinterpret(dialect: Dialect, x: Text, source: DType, target: DType) -> Text:
    """The `bitcast` of the expression language."""
    if target in _FROM_BITS:
        return Text(f"{_FROM_BITS[target]}({x})", ATOM, x.loads)
    if source in _TO_BITS:
        x = Text(f"{_TO_BITS[source]}({x})", ATOM, x.loads)
        if target.kind == "u":
            return x
    return Text(f"({dialect.type(target)}){x:15}", UNARY, x.loads)


def combine(dialect: Dialect, op: str, dtype: DType, a: Text, b: Text) -> Text:
    """One step of a reduction over lanes; for max and min of floats: a if a >= b (<= b) or a is NaN, else b."""
    if dtype is BOOL:
        return operation(dialect, "or" if op in ("or", "max", "add") else "and", BOOL, [a, b])
    if op not in ("max", "min"):
        return operation(dialect, op, dtype, [a, b])
    first = operation(dialect, "ge" if op == "max" else "le", dtype, [a, b])
    if dtype.kind == "f":
        nan = operation(dialect, "ne", dtype, [a, a])
        first = operation(dialect, "or", BOOL, [first, nan])
    return Text(f"{first:4} ? {a:3} : {b:3}", CHOICE, a.loads or b.loads)
