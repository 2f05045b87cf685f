"""The scalar meaning of every elementwise and compare operation, and of the reductions, as `Expr`.

Invariants: one IR operation is one fixed expression, whatever the schedule, so fusion cannot change
a bit; nothing traps (integer division by zero gives 0, shifts by the width or more are defined).
float16 and bfloat16 operands are widened to float32, computed, and rounded once per operation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from graphc.codegen import math
from graphc.codegen.expr import (
    Expr,
    absolute,
    binary,
    bitcast,
    bits_const,
    cast,
    const,
    equal,
    floor,
    fma,
    not_equal,
    rint,
    select,
    sqrt,
    to_bits,
    trunc,
    unary,
)
from graphc.ir.types import BF16, BOOL, F16, F32, F64, U8, U16, U32, U64, DType

Rule = Callable[..., Expr]
_NARROW = (F16, BF16)
_UNSIGNED = {8: U8, 16: U16, 32: U32, 64: U64}


def scalar(op_name: str, args: Sequence[Expr], attrs: Mapping[str, Any], result: DType) -> Expr:
    """The value of operation `op_name` on scalar operands.

    `attrs` are the operation's attributes, `result` the element type that its type rule gave.
    Raises `TypeError` where the operation has no meaning for the operand types.
    """
    if op_name in _EXACT:
        return _EXACT[op_name](list(args), result)
    kind = _family(args)
    rule = _RULES.get(op_name, {}).get(kind)
    if rule is None:
        types = ", ".join(str(a.dtype) for a in args)
        known = _RULES.get(op_name)
        if known is None:
            raise TypeError(f"{op_name} is not an elementwise operation")
        raise TypeError(f"{op_name}({types}) is not defined; {op_name} takes {_kinds_text(known)}")
    wide = [cast(a, F32) if a.dtype in _NARROW else a for a in args]
    value = rule(*wide)
    return cast(value, result) if result in _NARROW else value


def reduction(name: str, dtype: DType) -> tuple[Expr, Callable[[Expr, Expr], Expr]]:
    """The identity of a reduction over elements of `dtype` and its `combine(accumulator, x)`.

    The dtype of the identity is that of the accumulator: float32 for float16 and bfloat16 (cast
    each element to it first and the final value back), else `dtype`.
    """
    kind = "i" if dtype.is_integer else dtype.kind
    entry = _REDUCTIONS.get((name, kind))
    if entry is None:
        raise TypeError(f"the reduction {name} is not defined for {dtype}; widen or cast the operand first")
    dtype = F32 if dtype in _NARROW else dtype
    identity, op = entry
    value = identity(dtype) if callable(identity) else const(dtype, identity)
    return value, _RULES[op][dtype.kind]


def least(dtype: DType) -> int:
    """The least value of an integer dtype."""
    return -(1 << (dtype.bits - 1)) if dtype.kind == "i" else 0


def greatest(dtype: DType) -> int:
    """The greatest value of an integer dtype."""
    return (1 << (dtype.bits - (dtype.kind == "i"))) - 1


def _family(args: Sequence[Expr]) -> str:
    return args[0].dtype.kind


def _kinds_text(rules: Mapping[str, Rule]) -> str:
    names = {"b": "bool", "i": "signed integers", "u": "unsigned integers", "f": "floats"}
    return " or ".join(names[k] for k in "biuf" if k in rules)


def _or(a: Expr, b: Expr) -> Expr:
    return binary("or", a, b)


def _and(a: Expr, b: Expr) -> Expr:
    return binary("and", a, b)


def _not(a: Expr) -> Expr:
    return unary("not", a)


# --- exceptions: operations that do not follow the widening rule ------------------------------


def convert(x: Expr, dtype: DType) -> Expr:
    """`x` cast to any dtype with one rounding, using only casts that every machine has.

    Conversions to and from float16 and bfloat16 go through float32; where a float32 cannot hold
    the value it is first rounded to odd, so that the second rounding gives the nearest value.
    """
    if x.dtype is dtype:
        return x
    if x.dtype in _NARROW:
        return convert(cast(x, F32), dtype)
    if dtype not in _NARROW:
        return cast(x, dtype)
    if x.dtype is F64:
        return cast(_round_to_odd(x), dtype)
    # A float16 overflows long before an integer needs more digits than a float32 has.
    if dtype is F16 or x.dtype.bits <= 16:
        return cast(cast(x, F32), dtype)
    if x.dtype.is_integer and x.dtype.bits == 64:
        sticky = select(equal(_and(x, const(x.dtype, 0x7FF)), 0), const(x.dtype, 0), const(x.dtype, 1 << 11))
        odd = _or(_and(x, const(x.dtype, ~0x7FF)), sticky)
        small = x < (1 << 53)
        if x.dtype.kind == "i":
            small = _and(small, x > -(1 << 53))
        x = select(small, x, odd)
    return convert(cast(x, F64), dtype) if x.dtype.is_integer else cast(x, dtype)


def _round_to_odd(x: Expr) -> Expr:
    """A float64 as a float32: exact, or of the two neighbours the one with an odd last bit."""
    near = cast(x, F32)
    back = cast(near, F64)
    bits = to_bits(near)
    step = select(absolute(back) > absolute(x), bits - 1, bits + 1)
    keep = _or(equal(back, x), not_equal(_and(bits, const(U32, 1)), 0))
    return bitcast(select(keep, bits, step), F32)


def _nextafter(args: list[Expr], result: DType) -> Expr:
    """IEEE 754-2008 nextUp/nextDown towards the second operand; C23 7.12.11.3 for the specials."""
    x, y = args
    unsigned = _UNSIGNED[result.bits]
    wide_x, wide_y = (cast(a, F32) if a.dtype in _NARROW else a for a in args)
    bits, bits_y = bitcast(x, unsigned), bitcast(y, unsigned)
    sign = const(unsigned, 1 << (result.bits - 1))
    outward = equal(wide_y > wide_x, wide_x > 0.0)
    stepped = select(outward, bits + 1, bits - 1)
    stepped = select(equal(wide_x, 0.0), _or(_and(bits_y, sign), const(unsigned, 1)), stepped)
    stepped = select(equal(wide_x, wide_y), bits_y, stepped)
    nan = const(result, float("nan"))
    unordered = _or(not_equal(wide_x, wide_x), not_equal(wide_y, wide_y))
    return select(unordered, nan, bitcast(stepped, result))


def _select(args: list[Expr], result: DType) -> Expr:
    cond, a, b = args
    return select(cond, a, b)


_EXACT: dict[str, Callable[[list[Expr], DType], Expr]] = {
    "select": _select,
    "cast": lambda args, result: convert(args[0], result),
    "bitcast": lambda args, result: bitcast(args[0], result),
    "nextafter": _nextafter,
}

# --- integers ---------------------------------------------------------------------------------


def _literal(x: Expr) -> int | None:
    return int(x.data) if x.op == "const" else None


def _quotient_remainder(a: Expr, b: Expr) -> tuple[Expr, Expr]:
    """Floor division and its remainder; 0 for a zero divisor; the least integer // -1 wraps."""
    divisor = _literal(b)
    if divisor is not None and divisor not in (0, -1):
        safe = b
    else:
        # -1 is guarded as well as 0: the machine's division would trap on the least integer.
        unsafe = equal(b, 0)
        if a.dtype.kind == "i":
            unsafe = _or(unsafe, equal(b, -1))
        safe = select(unsafe, const(a.dtype, 1), b)
    q = binary("idiv", a, safe)
    r = a - q * safe
    if a.dtype.kind == "i":
        lower = _and(not_equal(r, 0), not_equal(r < 0, b < 0))
        q, r = select(lower, q - 1, q), select(lower, r + safe, r)
        if safe is not b:
            q = select(equal(b, -1), const(a.dtype, 0) - a, q)
            r = select(equal(b, -1), const(a.dtype, 0), r)
    if safe is not b:
        q, r = select(equal(b, 0), const(a.dtype, 0), q), select(equal(b, 0), const(a.dtype, 0), r)
    return q, r


def _integer_pow(base: Expr, exponent: Expr) -> Expr:
    """Wrapping power by squaring; a negative exponent gives 0, but for bases 1 and -1."""
    dtype = base.dtype
    power, square = const(dtype, 1), base
    bits = dtype.bits - (dtype.kind == "i")
    n = _literal(exponent)
    if n is not None and n >= 0:
        while n:
            power = power * square if n & 1 else power
            square, n = square * square, n >> 1
        return power
    rest = exponent
    for i in range(bits):
        power = select(not_equal(_and(rest, const(dtype, 1)), 0), power * square, power)
        if i + 1 < bits:
            square, rest = square * square, binary("shr", rest, const(dtype, 1))
    if dtype.kind == "u":
        return power
    odd = not_equal(_and(exponent, const(dtype, 1)), 0)
    unit = select(equal(base, -1), select(odd, const(dtype, -1), const(dtype, 1)), const(dtype, 0))
    return select(exponent < 0, select(equal(base, 1), const(dtype, 1), unit), power)


def _shift(op: str, x: Expr, count: Expr) -> Expr:
    """A shift by any count: a negative count counts as a large one."""
    bits = x.dtype.bits
    n = _literal(count)
    if n is not None and 0 <= n < bits:
        return binary(op, x, count)
    fits = cast(count, _UNSIGNED[bits]) < bits
    if op == "shr" and x.dtype.kind == "i":
        return binary("shr", x, select(fits, count, const(x.dtype, bits - 1)))
    zero = const(x.dtype, 0)
    return select(fits, binary(op, x, select(fits, count, zero)), zero)


def _integer_sign(x: Expr) -> Expr:
    one, zero = const(x.dtype, 1), const(x.dtype, 0)
    positive = select(x > 0, one, zero)
    return select(x < 0, const(x.dtype, -1), positive) if x.dtype.kind == "i" else positive


# --- floats -----------------------------------------------------------------------------------


def _sign(x: Expr) -> Expr:
    """-1, 0 or 1; +0.0 for either zero; NaN for NaN (array API standard, `sign`)."""
    value = select(x > 0.0, const(x.dtype, 1.0), select(x < 0.0, const(x.dtype, -1.0), const(x.dtype, 0.0)))
    return select(not_equal(x, x), x, value)


def _maximum(a: Expr, b: Expr) -> Expr:
    return select(_or(a >= b, not_equal(a, a)), a, b)


def _minimum(a: Expr, b: Expr) -> Expr:
    return select(_or(a <= b, not_equal(a, a)), a, b)


def _copysign(magnitude: Expr, sign: Expr) -> Expr:
    unsigned = _UNSIGNED[magnitude.dtype.bits]
    mask = const(unsigned, 1 << (unsigned.bits - 1))
    bits = _or(to_bits(absolute(magnitude)), _and(to_bits(sign), mask))
    return bitcast(bits, magnitude.dtype)


def _infinity(dtype: DType) -> Expr:
    return const(dtype, float("inf"))


def _signbit(x: Expr) -> Expr:
    unsigned = _UNSIGNED[x.dtype.bits]
    return not_equal(_and(to_bits(x), const(unsigned, 1 << (unsigned.bits - 1))), 0)


# --- the table --------------------------------------------------------------------------------


def _each(kinds: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(kinds, rule)


def _machine(op: str, kinds: str) -> dict[str, Rule]:
    arity = {"neg": 1, "abs": 1, "sqrt": 1, "floor": 1, "ceil": 1, "trunc": 1, "rint": 1, "not": 1}.get(op, 2)
    if arity == 1:
        return _each(kinds, lambda x: unary(op, x))
    return _each(kinds, lambda a, b: binary(op, a, b))


def _same(x: Expr) -> Expr:
    return x


def _no(x: Expr) -> Expr:
    return const(BOOL, False)


def _yes(x: Expr) -> Expr:
    return const(BOOL, True)


_RULES: dict[str, dict[str, Rule]] = {
    "neg": {**_each("iu", lambda x: const(x.dtype, 0) - x), "f": lambda x: unary("neg", x)},
    "abs": {
        "i": lambda x: select(x < 0, const(x.dtype, 0) - x, x),
        "f": absolute,
        **_each("bu", _same),
    },
    "sign": {**_each("iu", _integer_sign), "f": _sign},
    "sqrt": {"f": sqrt},
    "reciprocal": {"f": lambda x: const(x.dtype, 1.0) / x},
    "square": {**_each("iuf", lambda x: x * x), "b": _same},
    "floor": {"f": floor, **_each("biu", _same)},
    "ceil": {"f": lambda x: unary("ceil", x), **_each("biu", _same)},
    "trunc": {"f": trunc, **_each("biu", _same)},
    "round": {"f": rint, **_each("biu", _same)},
    "not": _machine("not", "biu"),
    "add": {**_machine("add", "iuf"), "b": _or},
    "sub": _machine("sub", "iuf"),
    "mul": {**_machine("mul", "iuf"), "b": _and},
    "div": _machine("div", "f"),
    "floor_divide": {**_each("iu", lambda a, b: _quotient_remainder(a, b)[0]), "f": math.BINARY["floor_divide"]},
    "remainder": {**_each("iu", lambda a, b: _quotient_remainder(a, b)[1]), "f": math.BINARY["remainder"]},
    "pow": {**_each("iu", _integer_pow), "f": math.BINARY["pow"]},
    "maximum": {**_each("iu", lambda a, b: select(a >= b, a, b)), "f": _maximum, "b": _or},
    "minimum": {**_each("iu", lambda a, b: select(a <= b, a, b)), "f": _minimum, "b": _and},
    "copysign": {"f": _copysign},
    "and": _machine("and", "biu"),
    "or": _machine("or", "biu"),
    "xor": _machine("xor", "biu"),
    "shift_left": _each("iu", lambda a, b: _shift("shl", a, b)),
    "shift_right": _each("iu", lambda a, b: _shift("shr", a, b)),
    "fma": {"f": fma, **_each("iu", lambda a, b, c: a * b + c)},
    "eq": _machine("eq", "biuf"),
    "ne": _machine("ne", "biuf"),
    "lt": {**_machine("lt", "iuf"), "b": lambda a, b: _and(_not(a), b)},
    "le": {**_machine("le", "iuf"), "b": lambda a, b: _or(_not(a), b)},
    "gt": {**_machine("gt", "iuf"), "b": lambda a, b: _and(a, _not(b))},
    "ge": {**_machine("ge", "iuf"), "b": lambda a, b: _or(a, _not(b))},
    "isnan": {"f": lambda x: not_equal(x, x), **_each("biu", _no)},
    "isinf": {"f": lambda x: equal(absolute(x), _infinity(x.dtype)), **_each("biu", _no)},
    "isfinite": {"f": lambda x: absolute(x) < _infinity(x.dtype), **_each("biu", _yes)},
    "signbit": {"f": _signbit, "i": lambda x: x < 0, **_each("bu", _no)},
    **{name: {"f": function} for name, function in math.UNARY.items()},
    **{name: {"f": math.FUNCTIONS[name]} for name in ("atan2", "hypot", "logaddexp")},
}

OPERATIONS = frozenset(_RULES) | frozenset(_EXACT)

# (reduction, kind) -> identity (a value, or a function of the dtype), the operation that combines.
_REDUCTIONS: dict[tuple[str, str], tuple[Any, str]] = {
    # The bit pattern is written out: -0.0 is the identity of float addition, +0.0 is not.
    ("sum", "f"): (lambda d: bits_const(d, 1 << (d.bits - 1)), "add"),
    ("sum", "i"): (0, "add"),
    ("sum", "b"): (False, "or"),
    ("prod", "f"): (1.0, "mul"),
    ("prod", "i"): (1, "mul"),
    ("prod", "b"): (True, "and"),
    ("max", "f"): (float("-inf"), "maximum"),
    ("max", "i"): (lambda d: const(d, least(d)), "maximum"),
    ("max", "b"): (False, "or"),
    ("min", "f"): (float("inf"), "minimum"),
    ("min", "i"): (lambda d: const(d, greatest(d)), "minimum"),
    ("min", "b"): (True, "and"),
    ("any", "b"): (False, "or"),
    ("all", "b"): (True, "and"),
}
