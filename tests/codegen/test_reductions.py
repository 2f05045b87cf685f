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
from graphc.ir.function import Builder, DenseArray, Function, Value
from graphc.ir.interpret import interpret
from graphc.ir.types import ALL_DTYPES, BF16, BOOL, F16, F32, F64, I32, I64, U8, DType, TensorType

from tests.codegen.compiled import Array, assert_compiled, difference, run
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


SHORT_LENGTHS = (1, 2, 3, 7, 10, 16, 31, 32, 33, 64)


def short_rows(rows: int, n: int, dtype: DType) -> Function:
    """Several levels over rows of n elements: maxima, sums, positions, looked-up elements, results of both shapes and other types."""
    b = Builder("short")
    x, at = b.param(TensorType(dtype, (rows, n))), b.param(TensorType(I64, (rows,)))
    gain = b.param(TensorType(dtype, (n,)))

    def wide(v: Value) -> Value:
        out: Value = b.broadcast(v, shape=(rows, n), axes=(0,))
        return out

    top = b.max(x, axes=(1,))
    below = b.sub(x, wide(top))
    e = b.exp(below) if dtype.is_float else b.mul(below, below)
    total = b.sum(e, axes=(1,))
    scaled = b.mul(b.sub(e, wide(total)), b.broadcast(gain, shape=(rows, n), axes=(1,)))
    taken = b.take_along(x, b.reshape(at, shape=(rows, 1)), axis=1)
    backward = b.sum(b.flip(scaled, axes=(1,)), axes=(1,))
    above = b.gt(x, wide(b.min(x, axes=(1,))))
    results = [top, e, scaled, total, taken, backward, above, b.any(above, axes=(1,)), b.argmax(x, axis=1)]
    results += [b.argmin(scaled, axis=1), b.prod(x, axes=(1,)), b.cast(below, dtype=F64 if dtype is F32 else F32), b.max(scaled, axes=(1,))]
    return b.build(results)


@pytest.mark.parametrize("n", SHORT_LENGTHS)
def test_lanes_across_short_rows(n: int) -> None:
    """Fewer rows than lanes, as many, and vectors that overlap; every length has another last square."""
    dtypes = (F32, BF16, I64) if n in (10, 33) else (F32,)
    for dtype in dtypes:
        for rows in (1, 7, 8, 16, 17, 37):
            at = np.random.default_rng(rows).integers(-n, n, rows)
            assert_compiled(short_rows(rows, n, dtype), [mixed(dtype, (rows, n), rows), at, plain(dtype, (n,), 2)])


@pytest.mark.parametrize("width", [2, 4, 8, 32])
def test_any_number_of_lanes_across_rows(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """More lanes than rows, rows of several lines that overlap, rows that are longer than the vector and shorter."""
    monkeypatch.setattr(reduce, "across", lambda *_: width)
    monkeypatch.setattr(kernels, "_choices", {})
    for rows, n in ((2, 2), (3, 5), (31, 6), (40, 19)):
        assert_compiled(short_rows(rows, n, F32), [mixed(F32, (rows, n), 1), np.zeros(rows, np.int64), plain(F32, (n,), 2)])
    for shape in ((3, 2, 7, 9), (2, 3, 40, 5)):
        b = Builder("lines")
        x, mask = b.param(TensorType(F32, shape)), b.param(TensorType(F32, (shape[0], *shape[2:])))
        seen = b.add(x, b.broadcast(mask, shape=shape, axes=(0, 2, 3)))
        total = b.broadcast(b.sum(seen, axes=(3,)), shape=shape, axes=(0, 1, 2))
        assert_compiled(b.build([b.div(seen, total)]), [plain(F32, shape, 1), plain(F32, (shape[0], *shape[2:]), 2)])


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_short_rows_of_every_dtype(dtype: DType) -> None:
    s = Sums()
    for n in (2, 3, 5, 9, 20):
        x = s.param(mixed(dtype, (35, n), n), dtype)
        for name in ("any", "all") if dtype is BOOL else ("sum", "prod", "max", "min"):
            s.add(name, x, axes=(1,))
        if dtype is not BOOL:
            s.add("argmax", x, axis=1)
            s.results.append(s.b.mul(x, s.b.broadcast(s.results[-2], shape=(35, n), axes=(0,))))
            s.labels.append(f"scaled rows of {n}")
            s.add("sum", s.b.add(x, s.b.broadcast(s.results[-3], shape=(35, n), axes=(0,))), axes=(1,))
    s.check()


def test_short_rows_touch_nothing_beside_their_memory() -> None:
    """The last element of every operand and result lies in front of a page that is not there."""
    for rows, n in ((3, 12), (16, 10), (20, 7), (36, 3), (16, 3), (16, 2), (49, 2), (33, 20), (64, 17)):
        b = Builder("f")
        x = b.param(TensorType(F32, (rows, n)))
        top = b.broadcast(b.max(x, axes=(1,)), shape=(rows, n), axes=(0,))
        f = b.build([b.sub(x, top), b.argmax(x, axis=1)])
        data = plain(F32, (rows, n), 3)
        memory = [Memory((rows, n), np.float32, data, writable=False), *(Memory(t.shape, t.dtype.numpy) for t in f.result_types)]
        compile_function(f).run([memory[0].address], [m.address for m in memory[1:]])
        for m, expected in zip(memory[1:], interpret(f, [data]), strict=True):
            assert difference(expected, m.array) == ""
        for m in memory:
            m.free()


def test_short_rows_report_an_index_out_of_range() -> None:
    f = short_rows(21, 10, F32)
    at = np.zeros(21, np.int64)
    at[20] = 10
    with pytest.raises(IndexError, match="take_along"):
        run(f, plain(F32, (21, 10), 1), at, plain(F32, (10,), 2))


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
