"""The sizes of a convolution whose lanes run over output pixels, and where its terms lie in a padded copy of x.

The copy of one example holds, for each input channel, for each position of the window but for its first
dimension, and for each phase of the rows (rows that lie a stride apart), a *segment*: rows of as many elements
as the result has in a row, shifted, strided and padded already. So the output pixels of an image, counted
through, are neighbours in every segment, and the term k of pixel p is at offset[k] + p.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

from graphc.ir.function import Operation
from graphc.ir.types import Dim, size_of

Ints = tuple[int, ...]


@dataclass(frozen=True)
class Geometry:
    """A convolution with literal sizes, but for the number of examples.

    count: groups of channels or parts of the batch, one of which has `channels` inputs and `outputs` results.
    low, spread, strides, reach: padding before, dilation of x, strides, dilation of the window.
    """

    examples: Dim
    count: int
    channels: int
    outputs: int
    image: Ints
    window: Ints
    out: Ints
    strides: Ints
    low: Ints
    spread: Ints
    reach: Ints

    @property
    def positions(self) -> int:
        return math.prod(self.window)

    @property
    def depth(self) -> int:
        return self.channels * self.positions

    @property
    def pixels(self) -> int:
        return math.prod(self.out)

    @property
    def line(self) -> int:
        """Pixels of the result in a row, a row being one step of the first dimension."""
        return math.prod(self.out[1:])

    @property
    def inner(self) -> int:
        """Positions of the window but for its first dimension."""
        return math.prod(self.window[1:])

    @property
    def phase_step(self) -> int:
        return math.gcd(self.strides[0], self.reach[0])

    @property
    def phases(self) -> int:
        """Residues of rows by the stride that the window meets, in steps of `phase_step`."""
        met = range(min(self.window[0], self.strides[0]))  # after so many they repeat
        return max(k * self.reach[0] % self.strides[0] for k in met) // self.phase_step + 1

    @property
    def further(self) -> int:
        """Rows of a segment that the last row of the window lies below the first one."""
        return (self.window[0] - 1) * self.reach[0] // self.strides[0]

    def rows(self, pixels: int) -> int:
        """Rows of a segment that `pixels` pixels need, from anywhere."""
        if pixels >= self.pixels:
            return self.out[0] + self.further
        if self.line == 1:
            return pixels + self.further
        return min(self.out[0], (pixels - 2) // self.line + 2) + self.further

    def segments(self) -> int:
        """Segments of the copy of an example."""
        return self.channels * self.inner * self.phases


def geometry_of(root: Operation) -> Geometry | None:
    """The geometry of a `conv`, None where a size other than the number of examples is unknown, or there is nothing to do."""
    x, w = root.operands
    a = root.attrs
    count = a["groups"] * a["batch_groups"]
    out = root.result.type.shape[2:]
    low = tuple(p[0] for p in a["padding"])
    sizes = (*w.type.shape, *x.type.shape[2:], *out, *low)
    if not out or not all(isinstance(d, int) for d in sizes):
        return None
    known = cast("tuple[int, ...]", w.type.shape)
    g = Geometry(
        root.result.type.shape[0], count, known[1], known[0] // count, _ints(x.type.shape[2:]), known[2:], _ints(out),
        a["strides"], low, a["lhs_dilation"], a["rhs_dilation"],
    )  # fmt: skip
    empty = g.depth == 0 or g.pixels == 0 or g.outputs == 0 or size_of(x.type.shape[2:]) == 0
    return None if empty else g


def _ints(shape: tuple[Dim, ...]) -> Ints:
    return cast("Ints", tuple(shape))


def gradient_geometry(root: Operation) -> Geometry | None:
    """The geometry of a `conv` with window and result exchanged (gradient.py); `examples` are its channels.

    None where a size other than those is unknown, or there is nothing to do.
    """
    x, w = root.operands
    a = root.attrs
    result = root.result.type.shape
    low = tuple(p[0] for p in a["padding"])
    sizes = (w.type.shape[0], *w.type.shape[2:], *x.type.shape[2:], result[0], *result[2:], *low)
    if not result[2:] or a["groups"] > 1 or not all(isinstance(d, int) for d in sizes):
        return None
    outputs, channels = cast("tuple[int, int]", (w.type.shape[0], result[0]))
    count = a["batch_groups"]
    g = Geometry(
        w.type.shape[1], count, channels, outputs // count, _ints(x.type.shape[2:]), _ints(result[2:]),
        _ints(w.type.shape[2:]), a["rhs_dilation"], low, a["lhs_dilation"], a["strides"],
    )  # fmt: skip
    empty = (
        g.channels == 0
        or g.positions == 0
        or g.pixels == 0
        or g.outputs == 0
        or size_of(x.type.shape[2:]) == 0
    )
    return None if empty else g
