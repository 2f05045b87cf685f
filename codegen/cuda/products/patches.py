"""A convolution's image in a padded copy, whose places are those of an output position plus those of a k, from a table.

What would be several divisions and comparisons for every element that a tile reads is then one addition. Producers that are fused
in front of the image are computed once, in the copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphc.codegen.cuda.products.product import Body, Product
from graphc.codegen.expr import Expr, cast, load, var
from graphc.codegen.loops import Buffer, If, Kernel, Let, Store
from graphc.codegen.lower.affine import Levels, ceil_div, logical_and, normal, tidy
from graphc.codegen.lower.contraction import Patches, widened
from graphc.codegen.lower.index import delinearise, dim_expr
from graphc.ir.types import I32, I64, size_of

THREADS = 256


@dataclass(frozen=True)
class PatchTable:
    """copied: the padded image, in the accumulator's type. offsets: of each k."""

    patches: Patches
    copied: Buffer
    offsets: Buffer

    def corner(self, batch: Sequence[Expr], free: Sequence[Expr]) -> Expr:
        """The place of k = 0 for an output position."""
        return normal(self.patches.corner(batch, free), Levels([*batch, *free]))

    def at(self, corner: Expr, k: Expr) -> Expr:
        return load(self.copied, corner + cast(load(self.offsets, k), I64))


def copy_patches(p: Product) -> tuple[Kernel, PatchTable]:
    """The kernel that makes the copy and its table, and how they are read."""
    c = p.c
    assert c.patches is not None
    size = size_of(c.patches.shape)
    copied = p.new_scratch("copied", p.dtype, size)
    offsets = p.new_scratch("offsets", I32 if p.choice.narrow else I64, size_of(c.depth))
    total, blocks = dim_expr(size), ceil_div(dim_expr(size), THREADS)
    item, k = p.name("item"), p.name("k")
    body: Body = [Let(item, var("block") * THREADS + var("thread"))]
    inner: Body = []
    coords = p.coords(inner, "at", item, c.patches.shape)
    value = tidy(widened(c, c.patches.element(coords)), coords)
    inner += [*p.checks(), Store(copied, item, value)]
    body.append(If(item < total, tuple(inner)))
    body.append(Let(k, item - blocks * THREADS))
    reach = normal(c.patches.reach(delinearise(k, c.depth)), Levels([k]))
    body.append(If(logical_and(k >= 0, k < p.depth), (Store(offsets, k, cast(reach, offsets.dtype)),)))
    kernel = p.kernel("pad", body, blocks + ceil_div(p.depth, THREADS), THREADS)
    return kernel, PatchTable(c.patches, copied, offsets)
