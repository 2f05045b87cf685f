"""What all device kernels of attention share: names, the pairs in hand, reading operands, scores, results.

Kernels come in two orientations. `by queries`: a block of threads owns queries and goes over the keys; `by keys`: it owns keys and
goes over the query heads that read them and their queries. Rows are what a block owns, columns what passes by.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from graphc.codegen.cuda.choice import Choice
from graphc.codegen.elementwise import convert
from graphc.codegen.expr import Expr, cast, const, fma, index, logical_and, select, var
from graphc.codegen.loops import Buffer, For, Grid, If, Kernel, Let, Stmt, Store, Vector
from graphc.codegen.lower.affine import least_of, tidy
from graphc.codegen.lower.attention_blocks import KEYS, work_of
from graphc.codegen.lower.index import Position, dim_expr
from graphc.codegen.lower.kernels import buffers_used
from graphc.codegen.lower.nest import ceil_div, group_buffers, group_extents
from graphc.codegen.lower.pull import Pull
from graphc.ir.function import Function, Operation, Value
from graphc.ir.ops.attention import accumulator
from graphc.ir.types import BF16, BOOL, F32, I64, DType

Body = list[Stmt]
EMPTY = -0.0  # where a tile has no row: a product with +0.0 that changes no sum


class Parts:
    """One group with attention or attention_grad under a choice."""

    def __init__(self, group: Function, op: Operation, choice: Choice) -> None:
        self.group, self.op, self.choice = group, op, choice
        params, self.results = group_buffers(group)
        self.params = params
        self.pull = Pull(group, dict(zip(group.params, params, strict=True)))
        self.targets: Mapping[Value, Buffer] = dict(zip(group.results, self.results, strict=True))
        q, k, v = op.operands[:3]
        self.q, self.k, self.v = q, k, v
        gradient = op.name == "attention_grad"
        self.scale = op.operands[3]
        self.masks = op.operands[7 if gradient else 4 :]
        self.wide = accumulator(q.type.dtype)
        # What tensor cores are given.
        self.narrow = BF16 if q.type.dtype is F32 else q.type.dtype
        depth, width = q.type.shape[3], v.type.shape[3]
        assert isinstance(depth, int) and isinstance(width, int)
        self.depth, self.width = depth, width
        self.causal = bool(op.attrs["causal"])
        self.heads, self.key_heads = dim_expr(q.type.shape[1]), dim_expr(k.type.shape[1])
        self.queries, self.keys = dim_expr(q.type.shape[2]), dim_expr(k.type.shape[2])
        self.grouped = q.type.shape[1] != k.type.shape[1]
        self._names = itertools.count()

    # Names

    def name(self, stem: str, dtype: DType = I64) -> Expr:
        return var(f"{stem}_{next(self._names)}", dtype)

    def let(self, body: Body, stem: str, value: Expr) -> Expr:
        """`value` under a name; literals and names stay themselves."""
        if value.op in ("const", "var"):
            return value
        name = self.name(stem, value.dtype)
        body.append(Let(name, value))
        return name

    def zero(self) -> Expr:
        return const(self.wide, 0.0)

    def lowest(self) -> Expr:
        return const(self.wide, float("-inf"))

    # The grid

    def place(self, body: Body, tile: int, by_keys: bool) -> tuple[Expr, Expr, Expr]:
        """(batch, head, first row) of this block of threads; the head is one of the keys' where rows are keys."""
        rows, heads = (self.keys, self.key_heads) if by_keys else (self.queries, self.heads)
        tiles = self.let(body, "tiles", ceil_div(rows, tile))
        at, outer = var("block") % tiles, self.let(body, "outer", var("block") // tiles)
        if self.causal and not by_keys:
            at = tiles - 1 - at  # the longest first
        first = self.let(body, "first", at * tile)
        head, batch = self.let(body, "head", outer % heads), self.let(body, "batch", outer // heads)
        return batch, head, first

    def blocks(self, tile: int, by_keys: bool) -> Expr:
        rows, heads = (self.keys, self.key_heads) if by_keys else (self.queries, self.heads)
        return dim_expr(self.q.type.shape[0]) * heads * ceil_div(rows, tile)

    def key_head(self, head: Expr) -> Expr:
        return head // (self.heads // self.key_heads) if self.grouped else head

    def last_key(self, first: Expr, tile: int) -> Expr:
        """Behind the last key that queries first .. first + tile - 1 may see."""
        return least_of(self.keys, first + tile) if self.causal else self.keys

    def first_query(self, first: Expr) -> Expr:
        """The first query that meets a tile of keys from `first`: that of the block of 64 in which it lies."""
        return first // KEYS * KEYS if self.causal else index(0)

    # Elements

    def element(
        self, x: Value, outer: tuple[Expr, Expr], row: Expr, limit: Expr, at: Expr, beyond: float, whole: bool
    ) -> Expr:
        """x[outer, row, at] in its own dtype; EMPTY behind the last row (`limit`), `beyond` behind the last element of a head.

        whole: `at` surely is an element of a head.
        """
        size, dtype = x.type.shape[3], x.type.dtype
        place = Position(x.type.shape, (*outer, least_of(row, limit - 1), at))
        if whole:
            value = tidy(self.pull.at(x, place), [*outer, row])
        else:
            inside = at < dim_expr(size)
            value = select(inside, tidy(self.pull.at_if(x, place, inside), [*outer, row]), const(dtype, beyond))
        return select(row < limit, value, const(dtype, EMPTY))

    def score(self, total: Expr, factor: Expr, at: tuple[Expr, Expr, Expr, Expr], inside: Expr) -> Expr:
        """A score from its product; -inf where the pair must not be seen. at: batch, query head, query, key."""
        if self.masks:
            (mask,) = self.masks
            place = Position(mask.type.shape, [index(0) if d == 1 else c for d, c in zip(mask.type.shape, at, strict=True)])
            value = self.pull.at_if(mask, place, inside)
            if mask.type.dtype is BOOL:
                score = select(value, total * factor, self.lowest())
            else:
                score = fma(total, factor, cast(value, self.wide))
        else:
            score = total * factor
        return select(self.seen(inside, at), score, self.lowest())

    def seen(self, inside: Expr, at: tuple[Expr, Expr, Expr, Expr]) -> Expr:
        return logical_and(inside, at[3] <= at[2]) if self.causal else inside

    def store(self, result: Value, outer: tuple[Expr, Expr], row: Expr, at: Expr, lane: Expr, lanes: int, value: Expr) -> Stmt:
        """result[outer, row, at + lane] = value for the lanes of a vector region, where that element exists."""
        size, rows = result.type.shape[3], dim_expr(result.type.shape[2])
        assert isinstance(size, int)
        target = self.targets[result]
        place = Position(result.type.shape, (*outer, row, at + lane)).flat
        body: Stmt = Store(target, place, convert(value, target.dtype))
        if size % lanes:
            body = If(at + lane < size, (body,))
        vector = Vector(lane, lanes, (body,)) if lanes > 1 else body
        return If(logical_and(row < rows, at < size), (vector,))

    def kernel(self, name: str, body: Sequence[Stmt], blocks: Expr, threads: int, sizes: int, resident: int = 0) -> Kernel:
        """A kernel that does `sizes` multiplications for every pair of query and key."""
        used = buffers_used(body)
        arguments = dict.fromkeys((*self.params, *self.results))
        grid = Grid(blocks, threads, self.choice.divides, self.choice.narrow, resident)
        return Kernel(
            name, tuple(b for b in arguments if b in used), group_extents(self.group), blocks,
            dim_expr(work_of(self.op, sizes)), tuple(body), grid=grid,
        )  # fmt: skip


def unrolled(i: Expr, count: int, body: Sequence[Stmt]) -> For:
    """A loop that is written out."""
    return For(i, index(0), index(count), tuple(body), index(1), unroll=True)


__all__ = ["EMPTY", "KEYS", "Body", "Parts", "unrolled"]
