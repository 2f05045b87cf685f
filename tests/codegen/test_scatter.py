"""Scatters against the interpreter: every form, lines side by side or alone, several threads, every dtype, index orders, errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from graphc.codegen import kernels
from graphc.codegen.canonical import canonicalise
from graphc.codegen.lower import scatter, scattering
from graphc.codegen.program import compile_function
from graphc.ir.function import Builder
from graphc.ir.types import BF16, F16, F32, F64, I32, I64, U8, DType, TensorType

from tests.codegen.compiled import assert_compiled, execute, on_threads
from tests.codegen.values import Shape, mixed, plain

# Shapes of x and of the index, the axis: one element a line, lanes that fill vectors or not, several lines.
CASES: tuple[tuple[Shape, Shape, int], ...] = (
    ((7,), (40,), 0),
    ((5, 1), (9,), 0),
    ((5, 3), (9,), 0),
    ((4, 16), (3, 5), 0),
    ((9, 33), (50,), 0),
    ((3, 6, 17), (11,), 1),
    ((2, 5, 3, 50), (8,), 1),
    ((4, 6, 9), (5,), 2),
    ((3, 0), (4,), 0),
    ((3, 40), (0,), 0),
)


def check(name: str, shape: Shape, indices: Shape, axis: int, dtype: DType, seed: int) -> None:
    """One operation on random operands, against the interpreter. Indices count from both ends."""
    b = Builder(name)
    along = name.startswith("put")
    updates = indices if along else (*shape[:axis], *indices, *shape[axis + 1 :])
    x, where, u = b.param(TensorType(dtype, shape)), b.param(TensorType(I64, indices)), b.param(TensorType(dtype, updates))
    f = b.build([b.emit(name, x, where, u, axis=axis)])
    at = np.random.default_rng(seed).integers(-shape[axis], shape[axis], indices)
    fill = mixed if dtype.is_float and name == "scatter" else plain
    assert_compiled(f, [fill(dtype, shape, seed), at, fill(dtype, updates, seed + 1)])


@pytest.mark.parametrize("name", ["scatter_add", "scatter"])
@pytest.mark.parametrize("shape, indices, axis", CASES, ids=str)
def test_scatters(name: str, shape: Shape, indices: Shape, axis: int) -> None:
    for k, d in enumerate((F32, BF16, F16, F64, I32, U8)):
        check(name, shape, indices, axis, d, k)


@pytest.mark.parametrize("name", ["put_along_add", "put_along"])
@pytest.mark.parametrize("shape, count, axis", (((6, 5), 9, 0), ((7, 40), 12, 0), ((3, 8, 17), 5, 1), ((4, 9), 6, 1)), ids=str)
def test_positions_of_each_line(name: str, shape: Shape, count: int, axis: int) -> None:
    for k, d in enumerate((F32, F16, I32)):
        check(name, shape, (*shape[:axis], count, *shape[axis + 1 :]), axis, d, k)


# Schedules that the sizes of these tests would not choose: vectors of an item; lanes; rows of a bucket, updates of a chunk, columns of an item, lanes.
FORMS = ("columns 2", "rows 16", "rows 4", "segments 0 4 0 16", "segments 1 8 0 4", "segments 2 64 8 8")


@contextmanager
def forced(choice: str) -> Iterator[None]:
    """Within, scatters are done in this form, but those along lines of their own never by looking at all updates."""

    def choose(s: scattering.Scattering, *sizes: int) -> str:
        return "columns 1" if s.along and choice.startswith("rows") else choice

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scatter, "choose", choose)
        kernels._choices.clear()
        try:
            yield
        finally:
            kernels._choices.clear()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["scatter_add", "scatter"])
def test_every_form_gives_the_same_bits(name: str, form: str) -> None:
    with forced(form):
        for k, (shape, indices, axis) in enumerate(CASES):
            check(name, shape, indices, axis, (F32, BF16, F64, U8)[k % 4], k)
        check(f"put_along{name[7:]}", (9,), (40,), 0, F16, 3)
        check(f"put_along{name[7:]}", (3, 8, 17), (3, 5, 17), 1, F32, 3)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_an_index_out_of_range_is_named(dtype: DType, form: str) -> None:
    b = Builder("f")
    x, where, u = b.param(TensorType(dtype, (5, 70))), b.param(TensorType(I64, (4,))), b.param(TensorType(dtype, (4, 70)))
    with forced(form):
        program = compile_function(b.build([b.emit("scatter_add", x, where, u, axis=0)]))
    args = [plain(dtype, (5, 70), 1), np.array([0, 4, 5, -6]), plain(dtype, (4, 70), 2)]
    for threads in (1, 3):
        with on_threads(threads), pytest.raises(IndexError, match=r"scatter_add: index (5|-6) is out of range for axis 0 of size 5"):
            execute(program, args)


@pytest.mark.parametrize("name", ["gather", "take_along"])
def test_an_empty_dimension_has_no_row_to_read(name: str) -> None:
    """Every index is out of range; the memory of row 0 is not there."""
    b = Builder("f")
    indices = (3,) if name == "gather" else (3, 40)
    x, where = b.param(TensorType(F32, (0, 40))), b.param(TensorType(I64, indices))
    program = compile_function(b.build([b.emit(name, x, where, axis=0)]))
    at, out = np.zeros(indices, np.int64), np.zeros((3, 40), np.float32)
    # A program that read from the first page of memory would end the process.
    with pytest.raises(IndexError, match=f"{name}: index 0 is out of range for axis 0 of size 0"):
        program.run([0, at.ctypes.data], [out.ctypes.data])


def test_sizes_choose_the_form() -> None:
    def chosen(shape: Shape, indices: Shape, threads: int, name: str = "scatter_add") -> str:
        b = Builder("f")
        along = name.startswith("put")
        updates = indices if along else (*indices, *shape[1:])
        x, where, u = b.param(TensorType(F32, shape)), b.param(TensorType(I64, indices)), b.param(TensorType(F32, updates))
        s = scattering.Scattering(b.build([b.emit(name, x, where, u, axis=0)]))
        numbers = [int(d) for d in (s.total, s.lines, s.rows, s.inner)]
        return scatter.choose(s, *numbers, threads)

    tokens = (32768,)
    assert chosen((50257, 768), tokens, 2) == "segments 6 2048 256 16"
    assert chosen((50257, 768), tokens, 1) == "columns 8"
    assert chosen((1000, 768), tokens, 2) == "columns 8"
    assert chosen((1000, 768), tokens, 16) == "segments 5 2048 256 16"
    assert chosen((50257, 64), (64,), 2) == "rows 16"
    assert chosen((1000, 64), tokens, 2) == "segments 5 2048 0 16"
    assert chosen((1000, 64), tokens, 1) == "columns 1"
    assert chosen((50257, 8), tokens, 1) == "segments 11 2048 0 8"
    assert chosen((1000,), tokens, 2) == "columns 1"
    assert chosen((1000,), tokens, 8) == "segments 5 2048 0 4"
    assert chosen((1000,), tokens, 8, "put_along_add") == "segments 5 2048 0 4"
    assert chosen((1000, 3), (32768, 3), 8, "put_along_add") == "columns 1"


@pytest.mark.parametrize("count, rows, columns", [(9000, 700, 5), (5000, 3, 16), (4500, 9000, 17)])
def test_many_updates(count: int, rows: int, columns: int) -> None:
    check("scatter_add", (rows, columns), (count,), 0, F32, 5)
    with forced("segments 3 1024 0 8"):
        check("scatter_add", (rows, columns), (count,), 0, F32, 6)


def test_segments_hold_the_number_of_rows() -> None:
    """Else few rows' buckets of one row would be borrowed for many rows. Where rows change, columns serve any number."""
    b = Builder("f")
    x, where, u = b.param(TensorType(F32, (4096, 8))), b.param(TensorType(I64, (1 << 16,))), b.param(TensorType(F32, (1 << 16, 8)))
    group = canonicalise(b.build([b.emit("scatter_add", x, where, u, axis=0)]))
    hint = dict(group.extents)
    (rows,) = [name for name, n in hint.items() if n == 4096]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.cpu_count", lambda: 8)
        assert scatter.variant(group.function, hint) == f"segments 7 2048 0 8 literal=(('{rows}', 4096),)"
        assert scatter.variant(group.function, hint, frozenset((rows,))) == "columns 1"
