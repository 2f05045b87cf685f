"""Rows on a device: every reduction and length, fused rows, and what the kernels cost; to the bit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from graphc.codegen.cuda.choice import Choice
from graphc.codegen.cuda.target import Target
from graphc.codegen.kernels import rename
from graphc.codegen.loops import print_kernel
from graphc.ir.function import Builder, Function
from graphc.ir.types import ALL_DTYPES, BF16, BOOL, F16, F32, F64, I8, I32, I64, U16, U64, DType, TensorType
from graphc.runtime.nn import functional

from tests.codegen.device import Case, Reported, check_compiles, check_groups, cuda_text, prepare, run_group
from tests.codegen.row_groups import (
    chosen,
    gradient,
    groups_of,
    kinds,
    reduction_case,
    reductions,
    row_cases,
    traced,
)
from tests.codegen.values import plain

LENGTHS = (1, 2, 3, 5, 16, 31, 32, 33, 64, 127, 1000, 2048, 4095, 4096, 4097, 9000)


def rows_of(length: int) -> int:
    return 2 if length > 2048 else 9


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_reductions_of_every_length(dtype: DType) -> None:
    check_groups([reduction_case(dtype, (rows_of(n), n), (1,)) for n in LENGTHS])


def test_reductions_of_every_type() -> None:
    check_groups([reduction_case(d, (5, n), (1,)) for d in (F16, F64, I8, I32, I64, U16, U64, BOOL) for n in (33, 64, 4100)])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_every_reduction_of_every_type_and_length(dtype: DType) -> None:
    check_groups([reduction_case(dtype, (rows_of(n), n), (1,)) for n in LENGTHS])


def test_empty_rows_give_the_identity() -> None:
    check_groups([reduction_case(d, (3, 0), (1,), names=("sum", "prod")) for d in (F32, BF16, I32)])


def test_a_single_row_and_several_kept_dimensions() -> None:
    cases = [reduction_case(F32, (70,), (0,)), reduction_case(F32, (2, 3, 5, 40), (3,)), reduction_case(F32, (7, 3, 5), (1, 2))]
    check_groups([*cases, reduction_case(F32, (3, 1, 33, 1), (2,)), reduction_case(F32, (6, 5), ())])


@pytest.mark.parametrize("name", ["argmax", "argmin"])
def test_ties_and_nan(name: str) -> None:
    """The first of equals (+0 and -0 are), the first NaN; rows of the least value, of infinities and of NaN only."""
    cases = []
    for n in (7, 100, 5000):
        rng = np.random.default_rng(n)
        x = rng.integers(0, 3, (8, n)).astype(np.float32)
        x[1] = 0.0
        x[2] = np.where(rng.random(n) < 0.5, 0.0, -0.0)
        x[3], x[4], x[5] = np.nan, -np.inf, np.inf
        x[6, n // 2 :] = np.nan
        x[7, n - 1] = np.nan
        cases.append(Case(reductions(F32, (8, n), (1,), (name,)), [x]))
        info = np.iinfo(np.int32)
        y = np.stack([np.full(n, info.min), np.full(n, info.max), rng.integers(0, 2, n)]).astype(np.int32)
        cases.append(Case(reductions(I32, (3, n), (1,), (name,)), [y]))
    check_groups(cases)


def test_signs_of_zero() -> None:
    cases = []
    for n in (8, 40, 300, 5000):
        for d in (F32, F16):
            x = np.where(np.random.default_rng(n).random((6, n)) < 0.5, 0.0, -0.0).astype(d.numpy)
            x[0], x[1] = 0.0, -0.0
            cases.append(Case(reductions(d, (6, n), (1,), ("sum", "max", "min")), [x]))
        # Every thread of a row must know the same one.
        b = Builder("signs")
        v = b.param(TensorType(F32, (6, n)))
        top = b.broadcast(b.max(v, axes=(1,)), shape=(6, n), axes=(0,))
        cases.append(Case(b.build([b.copysign(b.exp(v), top)]), [x.astype(np.float32)]))
    check_groups(cases)


# ------------------------------------------------------------------------------ fused


def softmax(n: int, rows: int = 5, dtype: str = "f32") -> Function:
    return traced(lambda x: functional.softmax(x), f"{dtype}[{rows}, {n}]")


def log_softmax(n: int, rows: int = 5, dtype: str = "f32") -> Function:
    return traced(lambda x: functional.log_softmax(x), f"{dtype}[{rows}, {n}]")


def layer_norm(n: int, rows: int = 5, dtype: str = "f32") -> Function:
    types = (f"{dtype}[{rows}, {n}]", f"{dtype}[{n}]", f"{dtype}[{n}]")
    return traced(lambda x, w, b: functional.layer_norm(x, (n,), w, b), *types)


def rms_norm(n: int, rows: int = 5, dtype: str = "f32") -> Function:
    return traced(lambda x, w: functional.rms_norm(x, (n,), w), f"{dtype}[{rows}, {n}]", f"{dtype}[{n}]")


def cross_entropy(n: int, rows: int = 5, dtype: str = "f32") -> Function:
    return traced(lambda x, t: functional.cross_entropy(x, t), f"{dtype}[{rows}, {n}]", f"i64[{rows}]")


FUSED = {"softmax": softmax, "log_softmax": log_softmax, "layer_norm": layer_norm, "rms_norm": rms_norm, "cross_entropy": cross_entropy}


def arguments(f: Function) -> list[Any]:
    """Plain values; class numbers for integers."""
    out: list[Any] = []
    for i, p in enumerate(f.params):
        shape = tuple(map(int, p.type.shape))
        x = plain(p.type.dtype, shape, i)
        if p.type.dtype is I64:
            x = np.random.default_rng(i).integers(0, int(f.params[0].type.shape[1]), shape)
            x[0] = -100  # ignored
        out.append(x)
    return out


def test_softmax_layer_norm_and_cross_entropy_are_one_group_each() -> None:
    assert kinds(softmax(50)) == kinds(log_softmax(50)) == kinds(layer_norm(50)) == kinds(rms_norm(50)) == ["row"]
    assert kinds(gradient(softmax(50))) == kinds(gradient(log_softmax(50))) == ["row"]
    # The rows, and the mean of their losses; the number of targets, and the rows.
    assert kinds(cross_entropy(50)) == kinds(gradient(cross_entropy(50))) == ["row", "row"]


@pytest.mark.parametrize("name", FUSED)
def test_fused_rows(name: str) -> None:
    """Odd lengths, short ones, those of wide accesses, and longer ones than registers hold."""
    cases = []
    for n, dtype in ((7, "f32"), (50, "f32"), (256, "bf16"), (256, "f32"), (1000, "f32"), (3100, "f32"), (4360, "bf16")):
        f = FUSED[name](n, 5, dtype)
        cases += row_cases(f, arguments(f))
        g = gradient(f)
        cases += row_cases(g, arguments(g))
    check_groups(cases)


def divided_rows(shape: tuple[int, int], dtype: DType = F32) -> Function:
    """Every element of a row divided by the row's first maximum: divisors of any size."""
    b = Builder("divided")
    x = b.param(TensorType(dtype, shape))
    y = b.param(TensorType(dtype, shape))
    top = b.broadcast(b.max(x, axes=(1,)), shape=shape, axes=(0,))
    q = b.div(y, top)
    return b.build([q, b.sum(q, axes=(1,))])


def test_quotients_by_one_divisor() -> None:
    """Plain ones, and all that the reciprocal would get wrong: zeros of both signs, subnormal numbers, infinities, NaN, overflow
    and underflow in the dividend, the divisor and the quotient; divisors with all bits set."""
    rng = np.random.default_rng(5)
    hard = np.array([0.0, -0.0, 1e-45, -1e-38, 2.0**-61, 2.0**-60, 3e38, -3e38, np.inf, -np.inf, np.nan, 1.0, -7.0, 1e-30], np.float32)
    tops = [1.0, 3.0, 1.9999999, 2.0**-20, 2.0**-21, 2.0**60, 2.0**61, 1e-40, 3e38, -5.0, 0.0, -0.0, np.inf, np.nan]
    cases = []
    for n in (14, 100, 300, 2500):
        x = np.full((len(tops) + 30, n), -np.inf, np.float32)
        x[: len(tops), n // 2] = tops
        # Divisors and dividends of every size, each row of one, so that quotients are small, large, and in between.
        scale = np.concatenate([np.zeros(len(tops)), rng.integers(-140, 127, 30)])
        x[len(tops) :, 0] = np.abs(rng.standard_normal(30)) * np.exp2(scale[len(tops) :])
        near = scale + rng.choice([-149, -130, -100, -70, -50, -20, 0, 20, 60, 100], len(scale))
        near[tops.index(3e38)] = 123
        with np.errstate(over="ignore"):
            y = (rng.standard_normal(x.shape) * np.exp2(near[:, None] + rng.integers(-3, 3, x.shape))).astype(np.float32)
        y[: len(tops) : 2, : len(hard)] = hard
        y[-1] = hard[rng.integers(0, len(hard), n)]
        cases.append(Case(divided_rows(x.shape), [x, y]))
        with np.errstate(over="ignore"):
            cases.append(Case(divided_rows(x.shape, BF16), [x.astype(BF16.numpy), y.astype(BF16.numpy)]))
    found = check_groups(cases)
    assert all("inverse" in print_kernel(p.kernels[0]) for p in found if p.choice.form == "rows registers")


def test_masked_softmax() -> None:
    """Where most elements are exactly zero, quotients are divided out."""
    cases = []
    for n in (60, 1024, 3000):
        x = plain(F32, (6, n), n)
        x[:, n // 3 :] = -np.inf
        x[2] = -1e4
        x[2, 5] = 0
        cases += row_cases(softmax(n, 6), [x])
    check_groups(cases)


def rolled(n: int, parts: int) -> Choice:
    """The schedule of long rows that nothing holds."""
    numbers = (("lanes", 32), ("wide", 1), ("parts", parts), ("warps", max(parts, 2)), ("once", int(parts * 4096 >= n)))
    return Choice("rows loop", numbers, (), True)


def staged(n: int, warps: int, wide: int, even: int, plan: int = 0, kept: int = 0) -> Choice:
    """The schedule of rows in shared memory, or their first `kept` chunks."""
    chunks = -(-n // 4096)
    numbers = (("wide", wide), ("warps", warps), ("chunks", chunks), ("room", -(-n // 256) * 256), ("even", even), ("plan", plan))
    numbers = (*numbers, ("kept", kept or chunks))
    return Choice("rows shared", numbers, (), True)


def test_every_form_gives_the_same_bits() -> None:
    """Short rows in the forms of long ones, several chunks and one, fewer warps than chains and more."""
    cases = []
    short = [rolled(33, 1), rolled(33, 2), staged(33, 1, 1, 0), staged(33, 2, 1, 1, 1)]
    long = [rolled(4100, 1), rolled(4100, 3), staged(4100, 2, 1, 1, 1), staged(4100, 4, 4, 4), staged(4100, 3, 2, 2, 2)]
    for n, forms in ((33, short), (4100, long)):
        for form in forms:
            for f in (softmax(n, 2), layer_norm(n, 2)):
                cases += row_cases(f, arguments(f), lambda *_, form=form: form)
            cases.append(reduction_case(F32, (2, n), (1,), form))
        cases.append(reduction_case(I32, (2, n), (1,), staged(n, 2, 1, 0)))
        cases.append(reduction_case(BF16, (2, n), (1,), staged(n, 2, 1, 0)))
    f = cross_entropy(9000, 2)
    for form in (staged(9000, 2, 1, 4, 1, 1), staged(9000, 4, 1, 1, 1, 2)):
        cases += row_cases(f, arguments(f), lambda g, _, form=form: form if "check_index" in {op.name for op in g.ops} else None)
    f = gradient(softmax(4100, 2))
    cases += row_cases(f, arguments(f), lambda *_: staged(4100, 4, 4, 4))
    check_groups(cases)


def test_positions_of_64_bits_and_older_devices() -> None:
    """Grids that are not narrow; a device without asynchronous copies, and one with less shared memory."""
    cases = []
    for f in (softmax(256, 3), layer_norm(4100, 2), gradient(softmax(2500, 2)), cross_entropy(50, 4)):
        for case in row_cases(f, arguments(f)):
            cases.append(replace(case, choice=replace(prepare(case).choice, narrow=False)))
            cases.append(replace(case, target=Target(75, 40, 64 << 10, 4 << 20)))
    cases.append(reduction_case(F32, (3, 4100), (1,), replace(rolled(4100, 2), narrow=False)))
    cases.append(reduction_case(F32, (3, 4100), (1,), replace(staged(4100, 2, 1, 0), narrow=False)))
    check_groups(cases)


def test_an_error_in_a_row_is_reported() -> None:
    f = cross_entropy(50, 4)
    (group,) = [g for g in groups_of(f) if any(op.name == "check_index" for op in g.ops)]
    x, t = plain(F32, (4, 50), 1), np.array([1, 2, 50, 3])
    inputs = [t if p.type.dtype is I64 else x for p in group.params]
    with pytest.raises(Reported, match="check_index"):
        run_group(group, inputs)


# ------------------------------------------------------------------------------ what is chosen, and what it costs


def test_which_form_is_chosen() -> None:
    def form(f: Function) -> str:
        return str(chosen(groups_of(f)[0]))

    assert form(softmax(256)).startswith("rows registers lanes=32 wide=4 lines=8")
    assert form(softmax(1024)).startswith("rows registers lanes=32 wide=1 lines=32")
    assert form(softmax(8000)).startswith("rows shared")
    assert form(softmax(200000, 140)).startswith("rows loop")


def spills(names: Iterable[str], shapes: Iterable[tuple[int, str]], archs: tuple[str, ...]) -> None:
    texts = []
    for name in names:
        for n, dtype in shapes:
            for f in (FUSED[name](n, 64, dtype), gradient(FUSED[name](n, 64, dtype))):
                for g in groups_of(f):
                    if any(p.type.rank == 2 for p in g.params):
                        kernels = prepare(Case(g, [])).lowered.kernels
                        texts.append(cuda_text(rename(kernels, f"k{len(texts)}")))
    usage = check_compiles(texts, archs, hot=("rows", "columns"))
    assert len(usage) == len(texts) * len(archs)


def test_kernels_do_not_spill() -> None:
    spills(("softmax", "layer_norm"), ((1000, "f32"), (4096, "bf16")), ("sm_90a",))


@pytest.mark.slow
def test_no_kernel_of_rows_spills() -> None:
    spills(FUSED, ((1024, "f32"), (1000, "f32"), (256, "f32"), (1024, "bf16"), (1536, "f32"), (5000, "f32"), (50304, "bf16")), ("sm_80", "sm_90a"))
