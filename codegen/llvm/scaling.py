"""value * 2**n in one instruction, where the processor has it.

Exponentials end in a multiplication by two powers of two, made by integer arithmetic from the bits of a number to which n was added
(math/exponential.py). AVX-512 scales by a float n, rounding once: the same bits, for n that two factors can reach.
"""

from __future__ import annotations

from graphc.codegen.expr import Expr, const, make
from graphc.codegen.llvm.scope import Value, Writer, place, result
from graphc.ir.types import F32, F64

# dtype -> suffix of the intrinsic, lanes of a register, explicit digits, exponent bias, 1.5 * 2**digits
_FORMATS = {F32: ("ps", 16, 23, 127, 1.5 * 2.0**23), F64: ("pd", 8, 52, 1023, 1.5 * 2.0**52)}
CURRENT_DIRECTION = 4
# Narrower regions keep to the general form.
LEAST_LANES = 16


def scaling(e: Expr) -> tuple[Expr, Expr] | None:
    """(value, n) if `e` is value * 2**n, n a float that is an integer and was clamped; else None."""
    if e.op != "mul" or e.dtype not in _FORMATS or e.args[1].op != "bitcast" or e.args[0].op != "mul":
        return None
    inner, second = e.args[0], e.args[1].args[0]
    _, _, digits, bias, magic = _FORMATS[e.dtype]
    if second.op != "add" or second.args[0].op != "sub" or inner.args[1].op != "bitcast":
        return None
    whole, half = second.args[0].args
    if whole.op != "shl" or whole.args[0].op != "bitcast":
        return None
    pattern = whole.args[0]
    integer, shifted = pattern.dtype, pattern.args[0]
    one, by = const(integer, bias << digits), const(integer, digits)
    halved = make("shl", integer, (make("shr", integer, (pattern, const(integer, 1))), by))
    exact = whole.args[1] is by and half is halved and second.args[1] is one
    if not exact or inner.args[1].args[0] is not make("add", integer, (half, one)) or not _bounded(shifted, magic):
        return None
    return inner.args[0], make("sub", e.dtype, (shifted, const(e.dtype, magic)))


def _bounded(shifted: Expr, magic: float) -> bool:
    """Whether it is a clamped value, or that by log2(e), with `magic` added. Values that have no bound above are known not to be
    positive (lower/rows.py, math/power.py)."""
    if shifted.op not in ("fma", "add") or shifted.args[-1] is not const(shifted.dtype, magic):
        return False
    value = shifted.args[0]
    if value.op != "select":
        return False
    cond, low, x = value.args
    return cond.op == "lt" and cond.args[0] is x and cond.args[1] is low and low.op == "const"


def scale(w: Writer, e: Expr, args: list[Value]) -> Value:
    """`e` from (value, n)."""
    suffix, most, _, _, _ = _FORMATS[e.dtype]
    depth, deps, _ = place(w, args, w.scopes[-1].pure_floor)
    x, n = (w.vector(a) for a in args)
    scalar = "float" if e.dtype is F32 else "double"
    full, t = f"<{w.width} x {scalar}>", f"<{most} x {scalar}>"
    parts = []
    for start in range(0, w.width, most):
        x1, n1 = (_part(w, depth, full, v, start, most) if w.width > most else v for v in (x, n))
        name = f"llvm.x86.avx512.mask.scalef.{suffix}.512"
        parts.append(w.put(depth, f"call {t} @{name}({t} {x1}, {t} {n1}, {t} zeroinitializer, i{most} -1, i32 {CURRENT_DIRECTION})"))
    size = most
    while len(parts) > 1:
        both = f"<{size} x {scalar}>"
        size *= 2
        order = ", ".join(f"i32 {i}" for i in range(size))
        parts = [
            w.put(depth, f"shufflevector {both} {a}, {both} {b}, <{size} x i32> <{order}>")
            for a, b in zip(parts[::2], parts[1::2], strict=True)
        ]
    return result(w, e.dtype, depth, deps, True, parts[0])


def _part(w: Writer, depth: int, full: str, v: str, start: int, count: int) -> str:
    order = ", ".join(f"i32 {start + i}" for i in range(count))
    return w.put(depth, f"shufflevector {full} {v}, {full} poison, <{count} x i32> <{order}>")
