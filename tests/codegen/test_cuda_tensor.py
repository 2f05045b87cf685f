"""Products on tensor cores: exact where any order is, near elsewhere, and the same bits for every tile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from graphc.codegen.cuda.products.contract import contraction_of, engine
from graphc.codegen.cuda.products.rounding import operand_type
from graphc.codegen.cuda.target import AMPERE, Target
from graphc.ir.function import Function
from graphc.ir.interpret import interpret
from graphc.ir.types import BF16, F16, F32, F64

from tests.codegen.contractions import biased, conv_group
from tests.codegen.device import Case, check_compiles, check_groups, cuda_text, prepare, run_group
from tests.codegen.products import case, gelu, product_of, same_result, tensor_choices

Array = np.ndarray[Any, Any]
KINDS = [
    ("bf16", ""),
    ("f32", "tf32"),
    pytest.param("f16", "", marks=pytest.mark.slow),
    pytest.param("f32", "bf16", marks=pytest.mark.slow),
]
P = ((1, 1), (1, 1))


@pytest.mark.parametrize(("dtype", "precision"), KINDS)
def test_small_integers_are_exact(dtype: str, precision: str) -> None:
    """Sums of products of integers up to 4 over k <= 300 are integers below 2^13, exact in float32 in any order."""
    t = dtype
    groups = [
        product_of(f"{t}[{m}, {k}]", f"{t}[{k}, {n}]", precision=precision)
        for m, k, n in ((1, 1, 1), (16, 32, 16), (17, 40, 33), (64, 96, 128), (130, 33, 70), (3, 300, 5))
    ]
    groups += [
        product_of(f"{t}[24, 40]", f"{t}[32, 40]", lhs_contract=(1,), rhs_contract=(1,), precision=precision),
        product_of(f"{t}[40, 24]", f"{t}[40, 32]", lhs_contract=(0,), rhs_contract=(0,), precision=precision),
        product_of(f"{t}[40, 23]", f"{t}[31, 40]", lhs_contract=(0,), rhs_contract=(1,), precision=precision),
        product_of(f"{t}[3, 20, 24]", f"{t}[3, 24, 16]", lhs_contract=(2,), rhs_contract=(1,), batch=1, precision=precision),
        product_of(f"{t}[6, 5, 9]", f"{t}[9, 5, 8]", lhs_contract=(1, 2), rhs_contract=(1, 0), precision=precision),
        product_of(f"{t}[0, 5]", f"{t}[5, 8]", precision=precision),
        product_of(f"{t}[5, 0]", f"{t}[0, 8]", precision=precision),
        product_of(f"{t}[20, 24]", f"{t}[24, 16]", precision=precision, epilogue=biased(1)),
    ]
    check_groups([case(g, integers=True, target=AMPERE) for g in groups], seeds=(1,))


@pytest.mark.parametrize(("dtype", "precision"), [("bf16", ""), ("f32", "tf32")])
def test_convolutions_of_small_integers(dtype: str, precision: str) -> None:
    t = dtype
    groups = [
        conv_group(f"{t}[2, 3, 8, 9]", f"{t}[5, 3, 3, 3]", padding=P, precision=precision),
        conv_group(f"{t}[2, 16, 8, 8]", f"{t}[24, 16, 3, 3]", padding=P, strides=(2, 2), precision=precision),
        conv_group(f"{t}[2, 8, 6, 6]", f"{t}[16, 8, 1, 1]", precision=precision),
        conv_group(f"{t}[1, 32, 5, 5]", f"{t}[32, 16, 3, 3]", padding=P, groups=2, precision=precision),
        conv_group(f"{t}[2, 4, 7, 7]", f"{t}[4, 1, 3, 3]", padding=P, groups=4, precision=precision),
        conv_group(f"{t}[2, 3, 6, 5]", f"{t}[4, 3, 3, 3]", lhs_dilation=(2, 2), padding=P, precision=precision),
    ]
    check_groups([case(g, integers=True, target=AMPERE) for g in groups], seeds=(0,))


def near(bound: float) -> Any:
    """|got - expected| <= bound, which each test derives."""

    def compare(expected: Array, got: Array) -> str:
        worst = np.max(np.abs(expected.astype(np.float64) - got.astype(np.float64)), initial=0.0)
        return "" if worst <= bound else f"off by {worst}, more than {bound}"

    return compare


@pytest.mark.parametrize(("dtype", "precision"), KINDS)
def test_random_operands(dtype: str, precision: str) -> None:
    """Operands round by 2^-u each, so a product of normal numbers is off by up to 2 * 2^-u * |a b|; over k = 200 of them
    that is far below k * 2^(1-u) * 4. Accumulation in float32 and the result's own rounding (up to |60| * 2^-v) come on top."""
    k = 200
    group = product_of(f"{dtype}[33, {k}]", f"{dtype}[{k}, 48]", precision=precision, epilogue=gelu)
    operand = {"bf16": 2.0**-9, "tf32": 2.0**-12}.get(precision, 0.0)
    result = {"bf16": 2.0**-9, "f16": 2.0**-12}.get(dtype, 2.0**-25)
    bound = 8 * k * operand + 60 * 8 * result + k * 60 * 2.0**-24
    check_groups([case(group, target=AMPERE, compare=near(bound))], seeds=(0,))


@pytest.mark.parametrize(("dtype", "precision"), KINDS)
@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_tiles_give_the_same_bits(dtype: str, precision: str, step: int) -> None:
    group = product_of(f"{dtype}[70, 72]", f"{dtype}[72, 136]", precision=precision, epilogue=biased(1))
    first = case(group, target=AMPERE)
    results = run_group(group, first.inputs, tensor_choices(group)[0], AMPERE, seeds=(0,))
    check_groups([replace(first, choice=c, expected=results) for c in tensor_choices(group)[::step]], seeds=(1,))
    plain = product_of(f"{dtype}[70, 72]", f"{dtype}[72, 136]", precision=precision)
    assert np.array_equal(
        run_group(plain, first.inputs[:2], None, AMPERE, seeds=(0,))[0].view(np.uint8), results[1].view(np.uint8)
    ), "fusion changes bits"


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_tiles_of_a_convolution(step: int) -> None:
    group = conv_group("bf16[2, 16, 9, 11]", "bf16[40, 16, 3, 3]", padding=P, epilogue=biased(1))
    for example in (0, 1):
        choices = [*tensor_choices(group, example)[example::step], *tensor_choices(group, example, True)[2 * example :: step]]
        check_groups(same_result(group, choices, integers=True, target=AMPERE), seeds=(0,))


def test_producers() -> None:
    def widened(b: Any, x: Any, y: Any) -> Any:
        return b.emit("neg", b.emit("cast", x, dtype=BF16)), b.emit("add", y, y)

    groups = [
        product_of("f32[20, 24]", "bf16[24, 40]", widened),
        product_of("f32[24, 20]", "bf16[40, 24]", widened, lhs_contract=(0,), rhs_contract=(1,)),
    ]
    check_groups([case(g, integers=True, target=AMPERE) for g in groups], seeds=(0, 1))


def test_rounding_to_tf32_is_to_nearest_even() -> None:
    """Products with 1: the operand comes back as it was rounded."""
    bits = np.array([0x3F800FFF, 0x3F801000, 0x3F801001, 0x3F803000, 0x7F7FFFFF, 0x80001000, 0x7F800000, 0x00000001], np.uint32)
    want = np.array([0x3F800000, 0x3F800000, 0x3F802000, 0x3F804000, 0x7F800000, 0x80000000, 0x7F800000, 0x00000000], np.uint32)
    x = bits.view(np.float32).reshape(8, 1)
    group = product_of("f32[8, 1]", "f32[1, 1]", precision="tf32")
    (got,) = run_group(group, [x, np.ones((1, 1), np.float32)], None, AMPERE)
    want[5] = 0  # -0 added to +0
    assert np.array_equal(got.reshape(-1).view(np.uint32), want)
    nan = np.full((8, 1), np.float32(np.nan))
    nan.view(np.uint32)[:] = 0x7FFFFFFF
    assert np.isnan(run_group(group, [nan, np.ones((1, 1), np.float32)], None, AMPERE)[0]).all()


def test_the_engine_follows_from_type_precision_and_target_alone() -> None:
    assert operand_type(F64, "") is None and operand_type(F32, "exact") is None and operand_type(F16, "exact") is None
    assert operand_type(F32, "tf32") is F32 and operand_type(F32, "bf16") is BF16 and operand_type(BF16, "") is BF16

    def of(group: Function, target: Target = AMPERE) -> str:
        return engine(contraction_of(group, True), target)

    for m, k, n in ((1, 1, 1), (4096, 4096, 4096), (3, 100000, 2)):
        assert of(product_of(f"bf16[{m}, {k}]", f"bf16[{k}, {n}]")) == "tensor"
        assert of(product_of(f"f32[{m}, {k}]", f"f32[{k}, {n}]")) == "fma"
    assert of(product_of("bf16[64, 64]", "bf16[64, 64]"), Target(75)) == "fma"
    assert of(conv_group("bf16[1, 8, 9, 9]", "bf16[8, 1, 3, 3]", groups=8)) == "fma"
    assert of(conv_group("bf16[1, 64, 9, 9]", "bf16[64, 32, 3, 3]", groups=2)) == "tensor"


def test_without_tensor_cores_products_of_small_floats_are_exact() -> None:
    group = product_of("bf16[33, 40]", "bf16[40, 20]")
    check_groups([case(group, target=Target(75))], seeds=(0,))


def test_hot_kernels_keep_their_registers() -> None:
    texts = []
    shapes: Sequence[Function] = [
        product_of("bf16[4096, 4096]", "bf16[4096, 1024]", epilogue=gelu),
        product_of("bf16[4096, 4096]", "bf16[1024, 4096]", lhs_contract=(1,), rhs_contract=(1,)),
        product_of("f16[4096, 4096]", "f16[1024, 4096]", lhs_contract=(0,), rhs_contract=(1,)),
        product_of("f32[4096, 4096]", "f32[4096, 1024]", precision="tf32"),
        product_of("f32[4096, 4096]", "f32[4096, 1024]", precision="bf16"),
        conv_group("bf16[32, 128, 56, 56]", "bf16[128, 128, 3, 3]", padding=P, epilogue=biased(1)),
    ]
    for number, group in enumerate(shapes):
        texts.append(cuda_text(prepare(Case(group, [], None, AMPERE), number).kernels, AMPERE))
    check_compiles(texts, hot=("contract",))


def test_the_interpreter_reads_precision_as_exact() -> None:
    f = product_of("f32[9, 300]", "f32[300, 7]", precision="tf32")
    g = product_of("f32[9, 300]", "f32[300, 7]")
    args = case(f).inputs
    assert np.array_equal(interpret(f, args)[0], interpret(g, args)[0])
