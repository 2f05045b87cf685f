"""Columns and partial sums on a device: reductions over outer and middle dimensions, fused ones, long ones; to the bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from graphc.codegen.cuda.choice import Choice
from graphc.ir.function import Builder, Function, Value
from graphc.ir.types import ALL_DTYPES, BF16, BOOL, F16, F32, F64, I8, I32, I64, U16, DType, TensorType
from graphc.runtime.nn import functional

from tests.codegen.device import Case, check_groups, prepare
from tests.codegen.row_groups import chosen, gradient, reduction_case, reductions, row_cases, traced
from tests.codegen.values import Shape, mixed, plain

LENGTHS = (1, 2, 3, 7, 16, 31, 32, 33, 64, 127, 1000, 4095, 4096, 4097, 9000)


def columns(numbers: str, registers: bool = False) -> Choice:
    pairs = tuple((n, int(v)) for n, v in (p.split("=") for p in numbers.split()))
    return Choice("columns registers" if registers else "columns loop", pairs, (), True)


def columns_of(length: int) -> int:
    return 3 if length > 1000 else 70


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_reductions_of_every_length(dtype: DType) -> None:
    check_groups([reduction_case(dtype, (n, columns_of(n)), (0,)) for n in LENGTHS])


def test_reductions_of_every_type() -> None:
    check_groups([reduction_case(d, (n, 5), (0,)) for d in (F16, F64, I8, I32, I64, U16, BOOL) for n in (33, 4100)])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_every_reduction_of_every_type_and_length(dtype: DType) -> None:
    check_groups([reduction_case(dtype, (n, columns_of(n)), (0,)) for n in LENGTHS])


SHAPES: tuple[tuple[Shape, tuple[int, ...]], ...] = (
    ((33, 1), (0,)),
    ((40, 2), (0,)),
    ((17, 300), (0,)),
    ((5, 33, 6), (1,)),
    ((7, 3, 5, 4), (1,)),
    ((7, 3, 5, 4), (0,)),
    ((7, 3, 5, 4), (1, 2)),
    ((300, 2, 3), (1,)),
    ((3, 20, 1, 64), (1,)),
    ((0, 6), (0,)),
)


@pytest.mark.parametrize("dtype", [F32, F16], ids=str)
def test_outer_and_middle_dimensions(dtype: DType) -> None:
    names = ("sum", "max", "prod")
    check_groups([reduction_case(dtype, shape, axes, names=names if 0 not in shape else ("sum",)) for shape, axes in SHAPES])


@pytest.mark.parametrize("name", ["argmax", "argmin"])
def test_ties_and_nan(name: str) -> None:
    cases = []
    for n in (7, 100, 5000):
        rng = np.random.default_rng(n)
        x = rng.integers(0, 3, (n, 7)).astype(np.float32)
        x[:, 1] = np.where(rng.random(n) < 0.5, 0.0, -0.0)
        x[:, 2], x[:, 3] = np.nan, -np.inf
        x[n // 2 :, 4] = np.nan
        cases.append(Case(reductions(F32, (n, 7), (0,), (name,)), [x]))
    check_groups(cases)


def test_signs_of_zero() -> None:
    cases = []
    for n in (8, 300, 5000):
        x = np.where(np.random.default_rng(n).random((n, 6)) < 0.5, 0.0, -0.0).astype(np.float32)
        x[:, 0], x[:, 1] = 0.0, -0.0
        cases.append(Case(reductions(F32, (n, 6), (0,), ("sum", "max", "min")), [x]))
    check_groups(cases)


def softmax(shape: str, axis: int) -> Function:
    return traced(lambda x: functional.softmax(x, axis), shape)


def arguments(f: Function) -> list[np.ndarray]:
    return [plain(p.type.dtype, tuple(map(int, p.type.shape)), i) for i, p in enumerate(f.params)]


def test_fused_columns() -> None:
    """Softmax along outer dimensions and its gradient, several levels in one kernel."""
    cases = []
    for shape, axis in (("f32[37, 20]", 0), ("f32[3, 50, 9]", 1), ("bf16[2, 40, 64]", 1), ("f32[1500, 4]", 0), ("f32[5, 3, 5000]", 1)):
        f = softmax(shape, axis)
        cases += row_cases(f, arguments(f))
        g = gradient(f)
        cases += row_cases(g, arguments(g))
    assert len(cases) == 10
    check_groups(cases)


def test_batch_norm_and_its_gradient() -> None:
    """Statistics over the batch and the pixels, which are not adjacent."""
    f = traced(lambda x, w, b: functional.batch_norm(x, None, None, w, b, training=True), "f32[6, 5, 7, 3]", "f32[5]", "f32[5]")
    g = gradient(f)
    cases = row_cases(f, arguments(f)) + row_cases(g, arguments(g))
    assert len(cases) > 8
    check_groups(cases)


def test_every_form_gives_the_same_bits() -> None:
    """Teams within a warp, of several warps, several items a block, wide accesses, registers and loops."""
    loops = [
        "lanes=32 wide=1 across=32 down=32 items=1 even=0",
        "lanes=32 wide=1 across=8 down=32 items=1 even=0",
        "lanes=32 wide=2 across=16 down=8 items=1 even=0",
        "lanes=32 wide=4 across=4 down=4 items=4 even=0",
        "lanes=32 wide=1 across=2 down=16 items=4 even=0",
        "lanes=32 wide=1 across=32 down=1 items=2 even=0",
        "lanes=32 wide=2 across=32 down=2 items=2 even=0",
    ]
    cases = []
    f = softmax("f32[3, 70, 12]", 1)
    for text in loops:
        form = columns(text)
        cases += row_cases(f, arguments(f), lambda *_, form=form: form)
        cases.append(reduction_case(F32, (3, 70, 12), (1,), columns_form(form)))
    for text in loops[1::2]:
        form = columns(text)
        cases += row_cases(f, arguments(f), lambda *_, form=form: columns_form(form))
        cases.append(reduction_case(F32, (2, 4100, 12), (1,), form, ("sum", "max", "argmin")))
    check_groups(cases)


def test_positions_of_64_bits() -> None:
    cases = []
    for shape, axes in (((40, 9), (0,)), ((4100, 9), (0,)), ((20000,), (0,)), ((9000, 3), (0,))):
        case = reduction_case(F32, shape, axes)
        cases.append(replace(case, choice=replace(prepare(case).choice, narrow=False)))
    check_groups(cases)


def columns_form(loop: Choice) -> Choice:
    """The same team with registers, for 70 lines."""
    return Choice("columns registers", (*loop.numbers, ("lines", 3), ("full", 0)), (), True)


# ------------------------------------------------------------------------------ partial sums

LONG: tuple[tuple[Shape, tuple[int, ...]], ...] = (
    ((16384,), (0,)),
    ((16385,), (0,)),
    ((1, 20001), (1,)),
    ((5, 16400), (1,)),
    ((16400, 3), (0,)),
    ((16400, 40), (0,)),
    ((2, 16400, 3), (1,)),
    ((2, 100, 170, 3), (1, 2)),
    ((9000, 7), (0,)),
)


def test_long_rows_and_columns_over_the_device() -> None:
    names = ("sum", "max", "min", "prod")
    cases = [reduction_case(d, shape, axes, names=names) for shape, axes in LONG for d in (F32, F16)]
    cases += [reduction_case(I32, (20000,), (0,), names=names), reduction_case(BOOL, (20000, 2), (0,))]
    prepared = check_groups(cases)
    assert all(p.choice.form.startswith("partials") for p in prepared), [str(p.choice) for p in prepared]


def test_levels_over_the_device() -> None:
    """Softmax, its gradient and normalisation of few and long rows and columns, a pair of kernels for each level."""
    rows = Choice("partials rows", (("lanes", 32), ("wide", 1), ("parts", 1), ("warps", 2), ("together", 2)), (), True)
    numbers = (("lanes", 32), ("wide", 1), ("across", 4), ("down", 16), ("items", 2), ("even", 0), ("together", 8))
    over_columns = Choice("partials columns", numbers, (), True)
    cases = []
    for shape, axis, form in (("f32[2, 9000]", 1, rows), ("f32[9000, 3]", 0, over_columns), ("bf16[2, 4500, 3]", 1, over_columns)):
        f = softmax(shape, axis)
        cases += row_cases(f, arguments(f), lambda *_, form=form: form)
        g = gradient(f)
        cases += row_cases(g, arguments(g), lambda *_, form=form: form)
    assert len(cases) == 6
    for dtype in (F32, F16, I32):
        cases.append(reduction_case(dtype, (2, 9000), (1,), rows))
        cases.append(reduction_case(dtype, (9000, 3), (0,), over_columns))
    b = Builder("both")
    x = b.param(TensorType(F32, (2, 9000)))
    y = b.exp(x)
    total = b.sum(y, axes=(1,))
    f = b.build([y, total, b.sub(y, b.broadcast(total, shape=(2, 9000), axes=(0,))), b.argmax(x, axis=1)])
    cases.append(Case(f, [plain(F32, (2, 9000), 3)], rows))
    check_groups(cases)


def test_wide_partial_sums() -> None:
    cases = []
    for wide, n in ((4, 20004), (2, 20002), (1, 20003)):
        numbers = (("lanes", 32), ("wide", wide), ("parts", 1), ("warps", 2), ("together", 2))
        cases.append(reduction_case(F32, (2, n), (1,), Choice("partials rows", numbers, (), True), names=("sum", "max")))
        numbers = (("lanes", 32), ("wide", wide), ("across", 2), ("down", 16), ("items", 1), ("even", 0), ("together", 16))
        cases.append(reduction_case(F32, (9000, 3 * wide), (0,), Choice("partials columns", numbers, (), True), names=("sum", "max")))
    check_groups(cases)


def test_many_chunks_are_combined_tile_by_tile() -> None:
    """More chunks than a tile holds: 64 for each of 32 columns."""
    check_groups([reduction_case(F32, (4096 * 70 + 5, 20), (0,), names=("sum",))], seeds=(0,))


def test_moments_share_a_pass() -> None:
    def moments(b: Builder, x: Value) -> list[Value]:
        total, square = b.sum(x, axes=(0,)), b.sum(b.mul(x, x), axes=(0,))
        return [total, square, b.sub(square, b.mul(total, total))]

    cases = []
    for shape in ((20000,), (20000, 3)):
        b = Builder("moments")
        f = b.build(moments(b, b.param(TensorType(F32, shape))))
        cases.append(Case(f, [mixed(F32, shape, 1)]))
    check_groups(cases)


def test_which_form_is_chosen() -> None:
    def form(shape: Shape, axes: tuple[int, ...]) -> str:
        return chosen(reductions(F32, shape, axes, ("sum",))).form

    assert form((100, 4000), (0,)) == "columns registers"
    assert form((3000, 40000), (0,)) == "columns loop"
    assert form((100000, 40), (0,)) == "partials columns"
    assert form((1000000,), (0,)) == "partials rows"
