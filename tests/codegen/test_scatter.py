"""Scatters against the interpreter: lines side by side or alone, several threads, every dtype, index orders, errors."""

from __future__ import annotations

import numpy as np
import pytest
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


@pytest.mark.parametrize("name", ["scatter_add", "scatter"])
@pytest.mark.parametrize("shape, indices, axis", CASES, ids=str)
def test_scatters(name: str, shape: Shape, indices: Shape, axis: int) -> None:
    for k, d in enumerate((F32, BF16, F16, F64, I32, U8)):
        b = Builder("scatters")
        x = b.param(TensorType(d, shape))
        where = b.param(TensorType(I64, indices))
        updates = (*shape[:axis], *indices, *shape[axis + 1 :])
        u = b.param(TensorType(d, updates))
        f = b.build([b.emit(name, x, where, u, axis=axis)])
        size = shape[axis]
        at = np.random.default_rng(k).integers(-size, size, indices)
        fill = mixed if d.is_float and name == "scatter" else plain
        assert_compiled(f, [fill(d, shape, k), at, fill(d, updates, k + 1)])


@pytest.mark.parametrize("name", ["put_along_add", "put_along"])
@pytest.mark.parametrize("shape, count, axis", (((6, 5), 9, 0), ((7, 40), 12, 0), ((3, 8, 17), 5, 1), ((4, 9), 6, 1)), ids=str)
def test_positions_of_each_line(name: str, shape: Shape, count: int, axis: int) -> None:
    for k, d in enumerate((F32, F16, I32)):
        b = Builder("puts")
        along = (*shape[:axis], count, *shape[axis + 1 :])
        x, where, u = b.param(TensorType(d, shape)), b.param(TensorType(I64, along)), b.param(TensorType(d, along))
        f = b.build([b.emit(name, x, where, u, axis=axis)])
        at = np.random.default_rng(k).integers(-shape[axis], shape[axis], along)
        assert_compiled(f, [plain(d, shape, k), at, plain(d, along, k + 1)])


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_an_index_out_of_range_is_named(dtype: DType) -> None:
    b = Builder("f")
    x, where, u = b.param(TensorType(dtype, (5, 70))), b.param(TensorType(I64, (4,))), b.param(TensorType(dtype, (4, 70)))
    program = compile_function(b.build([b.emit("scatter_add", x, where, u, axis=0)]))
    args = [plain(dtype, (5, 70), 1), np.array([0, 4, 5, -6]), plain(dtype, (4, 70), 2)]
    for threads in (1, 3):
        with on_threads(threads), pytest.raises(IndexError, match=r"scatter_add: index (5|-6) is out of range for axis 0 of size 5"):
            execute(program, args)
