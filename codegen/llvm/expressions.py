"""Machine operations as LLVM instructions: a table of instructions, a table of intrinsics, and the exceptions.

16-bit floats are held as bits; arithmetic on them is done in float32 and rounded once.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from graphc.codegen.expr import Expr, const, make
from graphc.codegen.llvm import pattern
from graphc.codegen.llvm.convert import convert
from graphc.codegen.llvm.masks import both, literal_mask
from graphc.codegen.llvm.memory import load, load_where
from graphc.codegen.llvm.scaling import LEAST_LANES, scale, scaling
from graphc.codegen.llvm.scope import REGISTER, Value, Writer, place, result, wrap64
from graphc.ir.types import BOOL, F32, I64, DType

# operation -> kind of the operands -> instruction, written `instruction type operands`.
INSTRUCTIONS: dict[str, dict[str, str]] = {
    "add": {"i": "add", "u": "add", "f": "fadd"},
    "sub": {"i": "sub", "u": "sub", "f": "fsub"},
    "mul": {"i": "mul", "u": "mul", "f": "fmul"},
    "div": {"f": "fdiv"},
    "idiv": {"i": "sdiv", "u": "udiv"},
    "irem": {"i": "srem", "u": "urem"},
    "and": {"b": "and", "i": "and", "u": "and"},
    "or": {"b": "or", "i": "or", "u": "or"},
    "xor": {"b": "xor", "i": "xor", "u": "xor"},
    "shl": {"i": "shl", "u": "shl"},
    "shr": {"i": "ashr", "u": "lshr"},
    "eq": {"b": "icmp eq", "i": "icmp eq", "u": "icmp eq", "f": "fcmp oeq"},
    "ne": {"b": "icmp ne", "i": "icmp ne", "u": "icmp ne", "f": "fcmp une"},
    "lt": {"i": "icmp slt", "u": "icmp ult", "f": "fcmp olt"},
    "le": {"i": "icmp sle", "u": "icmp ule", "f": "fcmp ole"},
    "gt": {"i": "icmp sgt", "u": "icmp ugt", "f": "fcmp ogt"},
    "ge": {"i": "icmp sge", "u": "icmp uge", "f": "fcmp oge"},
    "neg": {"i": "sub {t} zeroinitializer,", "f": "fneg {t}"},
    "not": {"b": "xor {t} {ones},", "i": "xor {t} {ones},", "u": "xor {t} {ones},"},
}
# Intrinsics on floats; none of them becomes a call of libm on a target that graphc accepts.
INTRINSICS = {
    "fma": "llvm.fma",
    "sqrt": "llvm.sqrt",
    "abs": "llvm.fabs",
    "floor": "llvm.floor",
    "ceil": "llvm.ceil",
    "trunc": "llvm.trunc",
    "rint": "llvm.roundeven",
}
COMPARISONS = frozenset(("eq", "ne", "lt", "le", "gt", "ge"))
_FOLDED_COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}


def value(w: Writer, e: Expr) -> Value:
    """The value of an expression here, written where it is needed and not known yet."""
    memo = w.memo
    v = memo.get(e)
    if v is not None:
        return v
    stack = [e]
    while stack:
        node = stack[-1]
        if node in memo:
            stack.pop()
            continue
        scaled = scaling(node) if node.op == "mul" and w.scales and w.width >= LEAST_LANES else None
        # The condition of a load is found by `condition`.
        operands = node.args[:1] if node.op == "load" else scaled or node.args
        missing = [a for a in operands if a not in memo]
        if missing:
            stack += missing
            continue
        if scaled is not None:
            if any(memo[a].coef != 0 for a in scaled):
                stack.pop()
                w.remember(node, scale(w, node, [memo[a] for a in scaled]))
                continue
            operands = node.args
            missing = [a for a in operands if a not in memo]
            if missing:
                stack += missing
                continue
        stack.pop()
        handler = HANDLERS.get(node.op, arithmetic)
        w.remember(node, handler(w, node, [memo[a] for a in operands]))
    return memo[e]


def arithmetic(w: Writer, e: Expr, args: list[Value]) -> Value:
    op = e.op
    operand_type = args[0].dtype
    if operand_type is I64:
        folded = _index_arithmetic(w, op, args)
        if folded is not None:
            return folded
    scope = w.scopes[-1]
    # A division may trap, so it stays where it is reached, unless the divisor is a literal.
    traps = op in ("idiv", "irem") and (args[1].coef != 0 or w.scalar(args[1])[0] == "%")
    floor = scope.load_floor if traps else scope.pure_floor
    depth, deps, varying = place(w, args, floor)
    texts = [w.vector(a) for a in args] if varying else [w.scalar(a) for a in args]
    short = operand_type.short
    narrow = operand_type.bits == 16 and operand_type.kind == "f"
    if narrow:
        texts = [convert(w, depth, varying, t, operand_type, F32) for t in texts]
        short = "f32"
    kind = operand_type.kind
    t = w.vector_types[short] if varying else REGISTER[short]
    intrinsic = INTRINSICS.get(op)
    if intrinsic is not None:
        text = w.put(depth, f"call {t} @{intrinsic}({', '.join([f'{t} {x}' for x in texts])})")
    else:
        instruction = INSTRUCTIONS[op][kind]
        if "{" in instruction:
            ones = f"splat ({REGISTER[short]} -1)" if varying else "-1"
            text = w.put(depth, f"{instruction.format(t=t, ones=ones)} {texts[0]}")
        else:
            text = w.put(depth, f"{instruction} {t} {', '.join(texts)}")
    if narrow and op not in COMPARISONS:
        text = convert(w, depth, varying, text, F32, operand_type)
    return result(w, e.dtype, depth, deps, varying, text)


def _index_arithmetic(w: Writer, op: str, args: list[Value]) -> Value | None:
    """add, sub, mul and the rest on indices that stay affine in the lane, or are known; None: do it in full."""
    a = args[0]
    if a.coef is None or len(args) != 2:
        return None
    b = args[1]
    if b.coef is None:
        return None
    known = not (a.base or b.base or a.coef or b.coef)
    deps = a.deps | b.deps
    if not known and not (a.base or b.base or b.coef) and op not in ("add", "sub", "mul"):
        return _pattern_arithmetic(w, op, a, b)
    if op in ("add", "sub"):
        sign = 1 if op == "add" else -1
        depth = max(a.depth, b.depth, w.scopes[-1].pure_floor)
        base = a.base
        if b.base:
            base = w.put(depth, f"{op} i64 {base or 0}, {b.base}") if base or sign < 0 else b.base
        moved, coef = pattern.add(a.coef, b.coef, sign, w.width)
        offset = wrap64(a.offset + sign * b.offset + moved)
        return Value(I64, depth, deps, None, base=base, offset=offset, coef=coef)
    if op == "mul":
        if a.base or a.coef:
            a, b = b, a
        if a.base or a.coef or b.coef is None:
            return None
        c = a.offset
        depth = max(b.depth, w.scopes[-1].pure_floor)
        base = w.put(depth, f"mul i64 {b.base}, {c}") if b.base and c not in (0, 1) else b.base if c else ""
        return Value(I64, depth, deps, None, base=base, offset=wrap64(b.offset * c), coef=pattern.scale(b.coef, c))
    if not known:
        return None
    x, y = a.offset, b.offset
    if op in _FOLDED_COMPARISONS:
        return Value(BOOL, 0, deps, "true" if _FOLDED_COMPARISONS[op](x, y) else "false")
    if op in ("idiv", "irem") and y > 0:
        q = abs(x) // y * (1 if x >= 0 else -1)
        return Value(I64, 0, deps, None, offset=q if op == "idiv" else x - q * y)
    return None


def _pattern_arithmetic(w: Writer, op: str, a: Value, b: Value) -> Value | None:
    """Division and comparison of lanes that are all known by a literal."""
    assert a.coef is not None
    y, deps = b.offset, a.deps | b.deps
    # Not further out than the region: in another one there are other lanes.
    depth = max(a.depth, w.scopes[-1].pure_floor)
    if op in ("idiv", "irem") and y > 0:
        f = pattern.truncated_quotient if op == "idiv" else pattern.remainder
        offset, coef = pattern.normal(pattern.each(f, a.coef, a.offset, y, w.width))
        return Value(I64, depth, deps, None, offset=offset, coef=coef)
    if op in _FOLDED_COMPARISONS:
        test = _FOLDED_COMPARISONS[op]
        lanes = pattern.each(lambda p, q: int(test(p, q)), a.coef, a.offset, y, w.width)
        if all(lanes) or not any(lanes):
            return Value(BOOL, depth, deps, "true" if lanes[0] else "false")
        return literal_mask(w, depth, deps, [bool(x) for x in lanes])
    return None


def _const(w: Writer, e: Expr, args: list[Value]) -> Value:
    dtype, data = e.dtype, e.data
    if dtype is I64:
        return Value(I64, 0, 0, str(data), offset=data)
    if dtype is BOOL:
        return Value(dtype, 0, 0, "true" if data else "false")
    return Value(dtype, 0, 0, float_literal(dtype, data) if dtype.kind == "f" else str(data))


def float_literal(dtype: DType, bits: int) -> str:
    """LLVM writes a float as the double of the same value, in hexadecimal; 16-bit floats are held as bits."""
    if dtype.bits == 16:
        return str(bits)
    if dtype.bits == 32:
        bits = struct.unpack("<Q", struct.pack("<d", struct.unpack("<f", struct.pack("<I", bits))[0]))[0]
    return f"0x{bits:016X}"


def _var(w: Writer, e: Expr, args: list[Value]) -> Value:
    raise KeyError(f"the variable {e.data} of a kernel is used where it is not in scope")


def _load(w: Writer, e: Expr, args: list[Value]) -> Value:
    if len(e.args) == 1:
        return load(w, e.data, args[0])
    cond = condition(w, e.args[1])
    if cond.scalar == "true":
        return load(w, e.data, args[0])
    if cond.scalar == "false":
        return _const(w, const(e.dtype, 0), []).with_deps(cond.deps)
    return load_where(w, e.data, args[0], cond)


def _select(w: Writer, e: Expr, args: list[Value]) -> Value:
    cond, a, b = args
    if cond.scalar in ("true", "false"):
        chosen = a if cond.scalar == "true" else b
        return chosen.with_deps(chosen.deps | cond.deps) if cond.deps else chosen
    depth, deps, varying = place(w, args, w.scopes[-1].pure_floor)
    t = w.typed(e.dtype.short, varying)
    text = f"select {w.typed('bool', cond.coef != 0)} {w.operand(cond, cond.coef != 0)}, {t} {w.operand(a, varying)}, {t} {w.operand(b, varying)}"
    return result(w, e.dtype, depth, deps, varying, w.put(depth, text))


def _cast(w: Writer, e: Expr, args: list[Value]) -> Value:
    v = args[0]
    depth, deps, varying = place(w, args, w.scopes[-1].pure_floor)
    if v.dtype is I64 and v.coef == 0 and not v.base and abs(v.offset) < 1 << 24:
        # A literal stays one.
        literal = const(e.dtype, v.offset)
        return Value(e.dtype, depth, deps, _const(w, literal, []).scalar, offset=v.offset)
    if varying and v.coef is not None and e.dtype.kind in "iu" and e.dtype.bits < 64:
        # A lane index in a narrow type is computed in that type.
        short = e.dtype.short
        t, scalar = w.vector_types[short], REGISTER[short]
        lanes = w.lanes_of(v.coef, scalar)
        start = w.put(depth, f"trunc i64 {w.scalar(w.uniform_part(v))} to {scalar}")
        text = w.put(depth, f"add {t} {w.splat(start, short, depth)}, {lanes}")
    else:
        text = convert(w, depth, varying, w.operand(v, varying), v.dtype, e.dtype)
    return result(w, e.dtype, depth, deps, varying, text)


def _bitcast(w: Writer, e: Expr, args: list[Value]) -> Value:
    v = args[0]
    depth, deps, varying = place(w, args, w.scopes[-1].pure_floor)
    source, target = w.typed(v.dtype.short, varying), w.typed(e.dtype.short, varying)
    text = w.operand(v, varying)
    if source != target:
        text = w.put(depth, f"bitcast {source} {text} to {target}")
    return result(w, e.dtype, depth, deps, varying, text)


def _mulhi(w: Writer, e: Expr, args: list[Value]) -> Value:
    depth, deps, varying = place(w, args, w.scopes[-1].pure_floor)
    bits = e.dtype.bits
    narrow = w.typed(e.dtype.short, varying)
    wide = f"<{w.width} x i{2 * bits}>" if varying else f"i{2 * bits}"
    a, b = (w.put(depth, f"zext {narrow} {w.operand(x, varying)} to {wide}") for x in args)
    product = w.put(depth, f"mul {wide} {a}, {b}")
    shift = f"splat (i{2 * bits} {bits})" if varying else str(bits)
    upper = w.put(depth, f"lshr {wide} {product}, {shift}")
    return result(w, e.dtype, depth, deps, varying, w.put(depth, f"trunc {wide} {upper} to {narrow}"))


def _lanes(w: Writer, e: Expr, args: list[Value]) -> Value:
    """Halve until one lane is left; each step combines lane i with lane i + half."""
    v, dtype = args[0], e.dtype
    if not w.width:
        raise TypeError("lanes() stands outside a vector region")
    depth, deps, _ = place(w, args, w.scopes[-1].pure_floor)
    text, width, short = w.vector(v), w.width, dtype.short
    if dtype is BOOL:
        # For bits the tree is a question about the whole mask.
        bits = w.put(depth, f"bitcast <{width} x i1> {text} to i{width}")
        question = f"icmp ne i{width} {bits}, 0" if e.data in ("or", "max", "add") else f"icmp eq i{width} {bits}, -1"
        return result(w, dtype, depth, deps, False, w.put(depth, question))
    narrow = dtype.kind == "f" and dtype.bits == 16
    scalar = REGISTER[short]
    # The greatest of floats is one instruction a step; whether one of them is NaN is asked once.
    extreme = e.data in ("max", "min") and dtype.kind == "f" and not narrow
    nans = w.put(depth, f"fcmp uno {w.vector_types[short]} {text}, {text}") if extreme else ""
    while width > 1:
        full, width = f"<{width} x {scalar}>", width // 2
        low, high = (
            w.put(depth, f"shufflevector {full} {text}, {full} poison, {_run(start, width)}") for start in (0, width)
        )
        half = f"<{width} x {scalar}>"
        if extreme:
            further = w.put(depth, f"fcmp {'ogt' if e.data == 'max' else 'olt'} {half} {high}, {low}")
            text = w.put(depth, f"select <{width} x i1> {further}, {half} {high}, {half} {low}")
        elif narrow:
            low, high = (convert(w, depth, True, x, dtype, F32, width) for x in (low, high))
            text = combine(w, depth, e.data, "f", f"<{width} x float>", width, low, high)
            text = convert(w, depth, True, text, F32, dtype, width)
        else:
            text = combine(w, depth, e.data, dtype.kind, half, width, low, high)
    text = w.put(depth, f"extractelement <1 x {scalar}> {text}, i64 0")
    if extreme:
        lanes = w.put(depth, f"bitcast <{w.width} x i1> {nans} to i{w.width}")
        some = w.put(depth, f"icmp ne i{w.width} {lanes}, 0")
        text = w.put(depth, f"select i1 {some}, {scalar} 0x7FF8000000000000, {scalar} {text}")
    return result(w, dtype, depth, deps, False, text)


def _run(start: int, count: int) -> str:
    return f"<{count} x i32> <" + ", ".join([f"i32 {start + i}" for i in range(count)]) + ">"


def combine(w: Writer, depth: int, op: str, kind: str, t: str, width: int, a: str, b: str) -> str:
    """One step of a reduction; for max and min of floats: a if a >= b (<= b) or a is NaN, else b."""
    if op in ("max", "min"):
        if kind != "f":
            name = {"i": "s", "u": "u"}[kind] + op
            return w.put(depth, f"call {t} @llvm.{name}({t} {a}, {t} {b})")
        mask = f"<{width} x i1>"
        ordered = w.put(depth, f"fcmp {'oge' if op == 'max' else 'ole'} {t} {a}, {b}")
        nan = w.put(depth, f"fcmp uno {t} {a}, {a}")
        first = w.put(depth, f"or {mask} {ordered}, {nan}")
        return w.put(depth, f"select {mask} {first}, {t} {a}, {t} {b}")
    return w.put(depth, f"{INSTRUCTIONS[op][kind]} {t} {a}, {b}")


# comparison with a uniform bound -> (added to the bound, the mask is inverted)
_TAILS = {"lt": (0, False), "le": (1, False), "ge": (0, True), "gt": (1, True)}
_MIRRORED = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le"}


def condition(w: Writer, e: Expr) -> Value:
    """The condition of an `If` or a load, which is about positions: base + lane < n is lane < n - base, in 32 bits.

    Instead of the lane any multiple or pattern of it. Exact unless base + lane passes the limit of 64 bits, as no
    position in memory does.
    """
    if not w.width or e.dtype is not BOOL or (e.op not in _TAILS and e.op != "and"):
        return value(w, e)
    key = make("condition", BOOL, (e,))
    known = w.memo.get(key)
    if known is None:
        known = _conjunction(w, e) if e.op == "and" else _counted(w, e)
        w.remember(key, known)
    return known


def _conjunction(w: Writer, e: Expr) -> Value:
    a, b = condition(w, e.args[0]), condition(w, e.args[1])
    for x, y in ((a, b), (b, a)):
        if x.scalar in ("true", "false"):
            chosen = y if x.scalar == "true" else x
            return chosen.with_deps(a.deps | b.deps)
    return both(w, a, b) if a.coef != 0 or b.coef != 0 else value(w, e)


def _counted(w: Writer, e: Expr) -> Value:
    if e.args[0].dtype is not I64:
        return value(w, e)
    op, x, y = e.op, value(w, e.args[0]), value(w, e.args[1])
    if x.coef == 0 and y.coef:
        op, x, y = _MIRRORED[op], y, x
    if not x.coef or y.coef != 0:
        return value(w, e)
    lanes = pattern.expand(x.coef, w.width)
    least, most = min(lanes), max(lanes) + 1
    if most - least >= 1 << 31:
        return value(w, e)
    if not (x.base or y.base):
        # See `hidden` in masks.py.
        known = _pattern_arithmetic(w, op, x, y)
        assert known is not None
        return known
    past, inverted = _TAILS[op]
    depth, deps, _ = place(w, [x, y], w.scopes[-1].pure_floor)
    start = w.scalar(w.uniform_part(x))
    bound = w.put(depth, f"call i64 @llvm.ssub.sat(i64 {w.scalar(y)}, i64 {start})")
    if past:
        bound = w.put(depth, f"call i64 @llvm.sadd.sat(i64 {bound}, i64 1)")
    bound = w.put(depth, f"call i64 @llvm.smax(i64 {bound}, i64 {least})")
    bound = w.put(depth, f"call i64 @llvm.smin(i64 {bound}, i64 {most})")
    bound = w.put(depth, f"trunc i64 {bound} to i32")
    t = w.vector_types["i32"]
    counted = w.splat(bound, "i32", depth)
    text = w.put(depth, f"icmp {'sge' if inverted else 'slt'} {t} {w.lanes_of(x.coef, 'i32')}, {counted}")
    return result(w, BOOL, depth, deps, True, text)


HANDLERS: dict[str, Callable[[Writer, Expr, list[Value]], Value]] = {
    "const": _const,
    "var": _var,
    "load": _load,
    "select": _select,
    "cast": _cast,
    "bitcast": _bitcast,
    "mulhi": _mulhi,
    "lanes": _lanes,
}
