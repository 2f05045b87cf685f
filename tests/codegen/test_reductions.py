"""Reductions in every form: all subsets of axes, rows, columns, chunks over threads, shared sweeps."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from graphc.codegen import kernels
from graphc.codegen.lower import reduce
from graphc.codegen.lower.columns import Blocking
from graphc.codegen.program import compile_function
from graphc.ir.function import Builder, DenseArray, Value
from graphc.ir.interpret import interpret
from graphc.ir.types import ALL_DTYPES, BF16, BOOL, F16, F32, F64, I32, I64, U8, DType, TensorType

from tests.codegen.compiled import Array, assert_compiled, difference
from tests.codegen.device import Memory
from tests.codegen.values import Shape, mixed, plain

SHAPES: tuple[Shape, ...] = ((37,), (5, 33), (33, 5), (4, 3, 17), (3, 17, 4), (17, 4, 3), (2, 3, 5, 7), (7, 1, 3, 33), (3, 33, 1, 2))


def subsets(rank: int) -> list[tuple[int, ...]]:
    return [axes for n in range(rank + 1) for axes in itertools.combinations(range(rank), n)]


class Sums:
    """A function of many reductions of many parameters."""

    def __init__(self) -> None:
        self.b = Builder("reductions")
        self.args: list[Array] = []
        self.results: list[Value] = []
        self.labels: list[str] = []

    def param(self, array: Array, dtype: DType) -> Value:
        self.args.append(array)
        return self.b.param(TensorType(dtype, array.shape))

    def add(self, name: str, x: Value, **attrs: Any) -> None:
        self.results.append(self.b.emit(name, x, **attrs))
        self.labels.append(f"{name} of {x.type} {attrs}")

    def check(self, **options: Any) -> None:
        assert_compiled(self.b.build(self.results), self.args, self.labels, **options)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_subset_of_axes(shape: Shape) -> None:
    s = Sums()
    for i, axes in enumerate(subsets(len(shape))):
        names = ("sum", "max", "prod", "min") if len(shape) < 4 else ("sum", ("max", "prod", "min")[i % 3])
        for k, name in enumerate(names):
            s.add(name, s.param(mixed(F32, shape, i + 100 * k), F32), axes=axes)
        s.add("any" if i % 2 else "all", s.param(plain(BOOL, shape, i), BOOL), axes=axes)
    s.check()


LONG: tuple[tuple[Shape, tuple[int, ...]], ...] = (
    ((16384,), (0,)),
    ((16383,), (0,)),
    ((16385,), (0,)),
    ((1, 20000), (1,)),
    ((15, 16400), (1,)),
    ((16400, 1), (0,)),
    ((16400, 3), (0,)),
    ((16400, 40), (0,)),
    ((2, 16400, 3), (1,)),
    ((2, 100, 170, 3), (1, 2)),
    ((128, 130), (0, 1)),
)


@pytest.mark.parametrize("shape, axes", LONG, ids=str)
def test_long_rows_on_several_threads(shape: Shape, axes: tuple[int, ...]) -> None:
    """Two kernels, chunks and their combination, where rows are few and long; else one."""
    s = Sums()
    for i, d in enumerate((F32, F16, I32)):
        s.add("sum", s.param(plain(d, shape, i), d), axes=axes)
    s.add("max", s.param(mixed(F32, shape, 7), F32), axes=axes)
    x = s.param(plain(F32, shape, 9), F32)
    total, square = s.b.sum(x, axes=axes), s.b.sum(s.b.mul(x, x), axes=axes)
    s.results += [total, square, s.b.sub(square, s.b.mul(total, total))]
    s.labels += ["sum", "sum of squares", "their difference"]
    s.check()


def test_dimensions_that_are_split_and_joined_on_the_way() -> None:
    """Positions with quotients and remainders of the lane, of segments longer and shorter than a vector; literal and not."""
    for split, joined in (((3, 8, 50), (3, 4, 100)), ((2, 12, 7), (2, 4, 21)), ((2, 6, 64), (2, 2, 192)), ((5, 4, 33), (5, 1, 132))):
        s = Sums()
        x, gain = s.param(mixed(F32, split, 1), F32), s.param(plain(F32, split[1:2], 2), F32)
        scaled = s.b.reshape(s.b.mul(x, s.b.broadcast(gain, shape=split, axes=(1,))), shape=joined)
        total = s.b.sum(scaled, axes=(2,))
        less = s.b.sub(scaled, s.b.broadcast(total, shape=joined, axes=(0, 1)))
        s.results += [total, less, s.b.max(less, axes=(2,))]
        s.labels += ["sum", "x - sum", "max"]
        s.check()
    for heads, width in ((4, 32), (3, 8), (5, 7), (2, 48)):
        s = Sums()
        x = s.param(mixed(F32, (3, 2, heads, 11, width), 3), F32)
        moved = s.b.reshape(s.b.permute(x, axes=(1, 3, 0, 2, 4)), shape=(2, 11, 3 * heads * width))
        s.add("sum", moved, axes=(0, 1))
        s.check()


BLOCKINGS = (Blocking(4, 4, 1), Blocking(8, 64, 0), Blocking(16, 32, 4), Blocking(32, 256, 8), Blocking(64, 1024, 2))


@pytest.mark.parametrize("blocking", BLOCKINGS, ids=str)
def test_blocks_of_columns_of_any_size(blocking: Blocking, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer columns than lanes, blocks that overlap, columns shorter than the lanes of the contract and longer than a chunk."""
    monkeypatch.setattr(reduce, "blocking", lambda *_: blocking)
    monkeypatch.setattr(kernels, "_choices", {})
    for shape in ((1, 1), (70, 3), (31, 8), (33, 17), (5, 65), (2, 130, 33), (3, 4100, 9), (2, 16400, 5)):
        s = Sums()
        axes = (len(shape) - 2,)
        x, y = s.param(mixed(F32, shape, 1), F32), s.param(plain(BF16, shape, 2), BF16)
        s.add("sum", x, axes=axes)
        s.add("max", x, axes=axes)
        s.add("sum", y, axes=axes)
        s.add("argmin", x, axis=axes[0])
        s.add("any", s.b.gt(x, s.b.full(s.b.constant(value=DenseArray(np.asarray(2.5, np.float32))), shape=shape)), axes=axes)
        kept = tuple(i for i in range(len(shape)) if i not in axes)
        low = s.b.min(x, axes=axes)
        above = s.b.sub(x, s.b.broadcast(low, shape=shape, axes=kept))
        s.results += [low, above, s.b.sum(above, axes=axes)]
        s.labels += ["min", "x - min", "sum of x - min"]
        s.check()


@pytest.mark.parametrize("blocking", BLOCKINGS, ids=str)
def test_columns_read_nothing_beside_their_memory(blocking: Blocking, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last element of the operand lies in front of a page that cannot be read."""
    monkeypatch.setattr(reduce, "blocking", lambda *_: blocking)
    monkeypatch.setattr(kernels, "_choices", {})
    for shape in ((36, 3), (40, 65), (3, 33, 20)):
        b = Builder("f")
        x = b.param(TensorType(F32, shape))
        f = b.build([b.sum(x, axes=(len(shape) - 2,)), b.argmax(x, axis=len(shape) - 2)])
        data = plain(F32, shape, 3)
        assert data.nbytes % 16 == 0
        memory = [Memory(shape, np.float32, data, writable=False), *(Memory(t.shape, t.dtype.numpy) for t in f.result_types)]
        compile_function(f).run([memory[0].address], [m.address for m in memory[1:]])
        for m, expected in zip(memory[1:], interpret(f, [data]), strict=True):
            assert difference(expected, m.array) == ""
        for m in memory:
            m.free()


ALL_NUMBERS = tuple(d for d in ALL_DTYPES if d is not BOOL)


@pytest.mark.parametrize("name", ["argmax", "argmin"])
def test_positions_of_ties_and_nan(name: str) -> None:
    """The first of equals, the first NaN; +0 and -0 are equal; infinities and the least integer count."""
    s = Sums()
    for i, d in enumerate(ALL_NUMBERS):
        for k, (shape, axis) in enumerate((((9, 40), 1), ((40, 9), 0), ((1, 33), 1), ((3, 4, 5), 1))):
            x = np.asarray(np.random.default_rng([i, k]).integers(0, 3, shape)).astype(d.numpy)
            s.add(name, s.param(x, d), axis=axis)
            s.add(name, s.param(np.zeros(shape, d.numpy), d), axis=axis)
            if d.is_float:
                x = np.where(np.random.default_rng([i, k, 1]).random(shape) < 0.1, np.nan, x).astype(d.numpy)
                s.add(name, s.param(x, d), axis=axis)
                zeros = np.where(np.random.default_rng([i, k, 2]).random(shape) < 0.5, 0.0, -0.0).astype(d.numpy)
                s.add(name, s.param(zeros, d), axis=axis)
                s.add(name, s.param(np.full(shape, np.nan, d.numpy), d), axis=axis)
                s.add(name, s.param(np.full(shape, -np.inf, d.numpy), d), axis=axis)
                s.add(name, s.param(np.full(shape, np.inf, d.numpy), d), axis=axis)
            else:
                info = np.iinfo(d.numpy)
                s.add(name, s.param(np.full(shape, info.min, d.numpy), d), axis=axis)
                s.add(name, s.param(np.full(shape, info.max, d.numpy), d), axis=axis)
    s.check()


@pytest.mark.parametrize("name", ["sum", "max", "min"])
def test_extrema_and_sums_keep_signs_and_nan(name: str) -> None:
    s = Sums()
    for i, d in enumerate((F16, BF16, F32, F64)):
        for shape, axes in (((6, 35), (1,)), ((35, 6), (0,)), ((3, 5, 7), (1,))):
            zeros = np.where(np.random.default_rng([i, *shape]).random(shape) < 0.5, 0.0, -0.0).astype(d.numpy)
            s.add(name, s.param(zeros, d), axes=axes)
            s.add(name, s.param(np.full(shape, -0.0, d.numpy), d), axes=axes)
            s.add(name, s.param(mixed(d, shape, 5), d), axes=axes)
            s.add(name, s.param(np.where(plain(BOOL, shape, 1), np.inf, -np.inf).astype(d.numpy), d), axes=axes)
    s.check()


def test_several_reductions_share_their_sweeps() -> None:
    """Reductions of reductions, full-shape results between them, results of the kept shape, casts."""
    for shape, axes in (((7, 50), (1,)), ((50, 7), (0,)), ((3, 50, 7), (1,)), ((3, 5, 10), (1, 2)), ((5, 10, 3), (0, 1))):
        b = Builder("levels")
        x, y = b.param(TensorType(F32, shape)), b.param(TensorType(F32, shape))
        kept = tuple(i for i in range(len(shape)) if i not in axes)

        def wide(v: Value, b: Builder = b, shape: Shape = shape, kept: tuple[int, ...] = kept) -> Value:
            out: Value = b.broadcast(v, shape=shape, axes=kept)
            return out

        top = b.max(x, axes=axes)
        e = b.exp(b.sub(x, wide(top)))
        total = b.sum(e, axes=axes)
        p = b.div(e, wide(total))
        dot = b.sum(b.mul(p, y), axes=axes)
        g = b.mul(p, b.sub(y, wide(dot)))
        narrow = b.cast(g, dtype=F16)
        results = [p, g, top, b.log(total), narrow, b.sum(narrow, axes=axes), b.argmax(g, axis=axes[0]) if len(axes) == 1 else dot]
        args = [mixed(F32, shape, 1), plain(F32, shape, 2)]
        assert_compiled(b.build(results), args)


def test_reduced_results_of_other_dtypes() -> None:
    """Compared, cast and counted inside one kernel."""
    b = Builder("counts")
    x = b.param(TensorType(F32, (6, 70)))
    top = b.broadcast(b.max(x, axes=(1,)), shape=(6, 70), axes=(0,))
    same = b.eq(x, top)
    counts = [b.sum(b.cast(same, dtype=d), axes=(1,)) for d in (U8, I64, F64, BF16)]
    f = b.build([b.any(same, axes=(1,)), b.all(same, axes=(1,)), same, *counts])
    assert_compiled(f, [np.round(plain(F32, (6, 70), 3))])
