"""Masks: which lanes take part. A mask is a literal, or something that LLVM knows nothing about.

LLVM 22's AVX2 back end reads lanes that are masked off where it finds out late, behind a shuffle, that a part of
a mask is false. So literal masks are combined here, and hidden from LLVM where they meet others.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphc.codegen.llvm.scope import Value, Writer, place, result
from graphc.ir.types import BOOL


def inverse(w: Writer, mask: Value) -> Value:
    """The lanes that `mask` leaves out."""
    literal = mask_literal(mask)
    if literal is not None:
        return literal_mask(w, mask.depth, mask.deps, [not x for x in literal])
    t = w.vector_types["bool"]
    depth = max(mask.depth, w.scopes[-1].pure_floor)
    text = w.put(depth, f"xor {t} {w.vector(mask)}, splat (i1 true)")
    return result(w, BOOL, depth, mask.deps, True, text)


def both(w: Writer, a: Value, b: Value) -> Value:
    """The lanes of two masks, or of a mask and a uniform condition."""
    depth, deps, _ = place(w, [a, b], w.scopes[-1].pure_floor)
    x, y = mask_literal(a), mask_literal(b)
    if x is not None and y is not None:
        return literal_mask(w, depth, deps, [p and q for p, q in zip(x, y, strict=True)])
    first, second = (hidden(w, v) if known is not None else w.vector(v) for v, known in ((a, x), (b, y)))
    text = w.put(depth, f"and {w.vector_types['bool']} {first}, {second}")
    return result(w, BOOL, depth, deps, True, text)


def mask_literal(mask: Value) -> list[bool] | None:
    """The lanes of a mask that is a literal, else None."""
    text = mask.vector
    if mask.coef is not None or text is None or text[0] != "<":
        return None
    return [x == "i1 true" for x in text[1:-1].split(", ")]


def literal_mask(w: Writer, depth: int, deps: int, lanes: Sequence[bool]) -> Value:
    text = "<" + ", ".join(["i1 true" if x else "i1 false" for x in lanes]) + ">"
    return Value(BOOL, depth, deps, None, text, w.width, None)


def hidden(w: Writer, mask: Value) -> str:
    """A literal mask that LLVM takes for an unknown one."""
    depth, width = mask.depth, w.width
    zero = w.put(depth, 'call i32 asm "", "=r,0"(i32 0)')
    zeros = w.splat(w.put(depth, f"trunc i32 {zero} to i8"), "u8", depth)
    lanes = ", ".join([f"i8 {int(x)}" for x in mask_literal(mask) or ()])
    return w.put(depth, f"icmp ne <{width} x i8> <{lanes}>, {zeros}")


def reversed_lanes(w: Writer, depth: int, t: str, x: str) -> str:
    """A mask, or any vector of type `t`, from the last lane to the first."""
    if x[0] == "<":
        return "<" + ", ".join(reversed(x[1:-1].split(", "))) + ">"
    order = ", ".join([f"i32 {i}" for i in reversed(range(w.width))])
    return w.put(depth, f"shufflevector {t} {x}, {t} poison, <{w.width} x i32> <{order}>")


def spread(w: Writer, depth: int, mask: str, lanes: list[int]) -> str:
    """A mask made of the given lanes of `mask`; the width stands for false. Of a literal it is a literal."""
    width, flags = w.width, w.vector_types["bool"]
    if mask[0] == "<":
        known = [*mask[1:-1].split(", "), "i1 false"]
        return "<" + ", ".join([known[lane] for lane in lanes]) + ">"
    order = ", ".join([f"i32 {lane}" for lane in lanes])
    return w.put(depth, f"shufflevector {flags} {mask}, {flags} zeroinitializer, <{width} x i32> <{order}>")


def any_lane(w: Writer, mask: Value, depth: int) -> str:
    """An i1: does any lane take part."""
    bits = w.put(depth, f"bitcast <{w.width} x i1> {w.vector(mask)} to i{w.width}")
    return w.put(depth, f"icmp ne i{w.width} {bits}, 0")
