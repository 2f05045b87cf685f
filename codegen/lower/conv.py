"""`conv` as a contraction: output channels against output positions, summed over patches.

left: the kernel w[O, C, window..], its free dimension the output channels of one group.
right: the patches of x; its free dimensions are the output positions, of one example (which is then
    a batch dimension) or of all. Padding and what dilation leaves between are exact zeros.
"""

from __future__ import annotations

from collections.abc import Callable

from graphc.codegen.expr import Expr, const, index, select
from graphc.codegen.lower.affine import decided, equal, logical_and
from graphc.codegen.lower.contraction import Contraction, Coords, Operand, Patches
from graphc.codegen.lower.index import Position, dim_expr, linearise
from graphc.codegen.lower.pull import Pull
from graphc.ir.function import Function, Operation
from graphc.ir.ops.conv import dilated
from graphc.ir.types import BOOL, Dim


def conv_contraction(
    group: Function, root: Operation, pull: Pull, per_example: bool, channels_last: bool = False
) -> Contraction:
    """Batch dimensions: the groups (of channels or of examples), and the examples if `per_example`.

    channels_last: the depth is (window, channel), not (channel, window) as in the bit contract.
    """
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

    def in_order(depth: Coords) -> Coords:
        """Channel first."""
        return (depth[-1], *depth[:-1]) if channels_last else depth

    def weight(batch: Coords, free: Coords, depth: Coords) -> Expr:
        depth = in_order(depth)
        o = batch[0] * dim_expr(outputs) + free[0]
        return pull.at(w, Position(w.type.shape, (o, *depth)))

    def where(batch: Coords, free: Coords, channel: Expr) -> tuple[Expr, Expr, Coords]:
        """The example and the channel of x, and the output position."""
        g, n, out = split(batch, free)
        if groups > 1:
            channel = g * dim_expr(channels) + channel
        if parts > 1:
            n = g * dim_expr(examples) + n
        return n, channel, out

    def read(n: Expr, c: Expr, padded: Coords, may_overhang: Callable[[int], bool]) -> Expr:
        """x at coordinates counted from the start of the padding; zero outside of it."""
        inside: Expr = const(BOOL, True)
        coords = [n, c]
        for i, at in enumerate(padded):
            size, spread, low = x.type.shape[2 + i], a["lhs_dilation"][i], a["padding"][i][0]
            at = at - dim_expr(low)
            if not isinstance(low, int) or low > 0:
                inside = logical_and(inside, decided(at >= 0))
            if may_overhang(i):
                inside = logical_and(inside, decided(at < dim_expr(dilated(size, spread))))
            if spread > 1:
                inside = logical_and(inside, equal(at % spread, 0))
                at = at // spread
            coords.append(at)
        value = pull.at_if(x, Position(x.type.shape, coords), inside)
        # A load that is not done gives 0; constants and positions are not loaded.
        return value if value.op == "load" else select(inside, value, const(value.dtype, 0))

    def overhangs(i: int) -> bool:
        """Whether the last window may reach beyond the last element: never further than the padding."""
        low, high = a["padding"][i]
        if isinstance(high, int) and high <= 0:
            return False
        beyond = covered[i] - low - dilated(x.type.shape[2 + i], a["lhs_dilation"][i])
        return not isinstance(beyond, int) or beyond > 0

    covered: tuple[Dim, ...] = tuple(
        (out - 1) * stride + (k - 1) * reach + 1
        for out, k, stride, reach in zip(positions, window, a["strides"], a["rhs_dilation"], strict=True)
    )

    def patch(batch: Coords, free: Coords, depth: Coords) -> Expr:
        depth = in_order(depth)
        n, c, out = where(batch, free, depth[0])
        padded = [
            o * stride + k * reach
            for o, k, stride, reach in zip(out, depth[1:], a["strides"], a["rhs_dilation"], strict=True)
        ]
        return read(n, c, padded, overhangs)

    copy_shape = (*x.type.shape[:2], *covered)

    def corner(batch: Coords, free: Coords) -> Expr:
        n, c, out = where(batch, free, index(0))
        return linearise((n, c, *(o * s for o, s in zip(out, a["strides"], strict=True))), copy_shape)

    def reach(depth: Coords) -> Expr:
        depth = in_order(depth)
        steps = (k * r for k, r in zip(depth[1:], a["rhs_dilation"], strict=True))
        return linearise((index(0), depth[0], *steps), copy_shape)

    patches = Patches(copy_shape, lambda at: read(at[0], at[1], at[2:], overhangs), corner, reach)

    def place(batch: Coords, left: Coords, right: Coords) -> tuple[Expr, ...]:
        _, n, out = split(batch, right)
        return (n, batch[0] * dim_expr(outputs) + left[0], *out)

    sides = Operand((outputs,), weight), Operand(free, patch)
    depth_shape = (*window, channels) if channels_last else (channels, *window)
    return Contraction(group, root, pull, batch, depth_shape, *sides, place, patches)
