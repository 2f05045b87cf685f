"""`conv` as a contraction: output channels against output positions, summed over patches.

left: the kernel w[O, C, window..], its free dimension the output channels of one group.
right: the patches of x; its free dimensions are the output positions, of one example (which is then
    a batch dimension) or of all. Padding and what dilation leaves between are exact zeros.
"""

from __future__ import annotations

from graphc.codegen.expr import Expr, const
from graphc.codegen.lower.affine import decided, equal, logical_and
from graphc.codegen.lower.contraction import Contraction, Coords, Operand
from graphc.codegen.lower.index import Position, dim_expr
from graphc.codegen.lower.pull import Pull
from graphc.ir.function import Function, Operation
from graphc.ir.ops.conv import dilated
from graphc.ir.types import BOOL, Dim


def conv_contraction(group: Function, root: Operation, pull: Pull, per_example: bool) -> Contraction:
    """Batch dimensions: the groups (of channels or of examples), and the examples if `per_example`."""
    x, w = root.operands
    a = root.attrs
    groups, parts = a["groups"], a["batch_groups"]
    count = groups * parts
    outputs: Dim = w.type.shape[0] // count
    channels = w.type.shape[1]
    examples: Dim = root.result.type.shape[0]
    window = w.type.shape[2:]
    positions = root.result.type.shape[2:]
    batch = (count, examples) if per_example else (count,)
    free = positions if per_example else (examples, *positions)

    def split(batch: Coords, free: Coords) -> tuple[Expr, Expr, Coords]:
        return (batch[0], batch[1], free) if per_example else (batch[0], free[0], free[1:])

    def weight(batch: Coords, free: Coords, depth: Coords) -> Expr:
        o = batch[0] * dim_expr(outputs) + free[0]
        return pull.at(w, Position(w.type.shape, (o, *depth)))

    def patch(batch: Coords, free: Coords, depth: Coords) -> Expr:
        g, n, out = split(batch, free)
        c = depth[0]
        if groups > 1:
            c = g * dim_expr(channels) + c
        if parts > 1:
            n = g * dim_expr(examples) + n
        inside: Expr = const(BOOL, True)
        coords = [n, c]
        for i, (o, k) in enumerate(zip(out, depth[1:], strict=True)):
            stride, reach = a["strides"][i], a["rhs_dilation"][i]
            spread, (low, high) = a["lhs_dilation"][i], a["padding"][i]
            size = x.type.shape[2 + i]
            at = o * stride + k * reach - dim_expr(low)
            if not isinstance(low, int) or low > 0:
                inside = logical_and(inside, decided(at >= 0))
            if _overhangs(size, window[i], positions[i], stride, reach, spread, low, high):
                inside = logical_and(inside, decided(at < dim_expr(dilated(size, spread))))
            if spread > 1:
                inside = logical_and(inside, equal(at % spread, 0))
                at = at // spread
            coords.append(at)
        return pull.at_if(x, Position(x.type.shape, coords), inside)

    def place(batch: Coords, left: Coords, right: Coords) -> tuple[Expr, ...]:
        _, n, out = split(batch, right)
        return (n, batch[0] * dim_expr(outputs) + left[0], *out)

    return Contraction(
        group, root, pull, batch, (channels, *window), Operand((outputs,), weight), Operand(free, patch), place
    )


def _overhangs(
    size: Dim, window: Dim, out: Dim, stride: int, reach: int, spread: int, low: Dim, high: Dim
) -> bool:
    """Whether the last window may reach beyond the last element: never further than the padding."""
    if isinstance(high, int) and high <= 0:
        return False
    last = (out - 1) * stride + (window - 1) * reach - low
    beyond = last - (dilated(size, spread) - 1)
    return not isinstance(beyond, int) or beyond > 0

