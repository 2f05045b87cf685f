"""Device convolutions by fma: strides, padding, dilation, groups and their gradients, to the bit."""

from __future__ import annotations

import pytest
from graphc.codegen.cuda.choice import Choice
from graphc.codegen.cuda.target import AMPERE, HOPPER
from graphc.ir.types import F16

from tests.codegen.contractions import biased, conv_group
from tests.codegen.device import Case, check_compiles, check_groups, cuda_text, prepare
from tests.codegen.products import case, cast_to, fma_choices, gelu, same_result

P = ((1, 1), (1, 1))


def test_windows() -> None:
    groups = [
        conv_group("f32[2, 3, 8, 9]", "f32[5, 3, 3, 3]", padding=P),
        conv_group("f32[1, 4, 12, 12]", "f32[6, 4, 3, 3]", strides=(2, 2), padding=P),
        conv_group("f32[2, 5, 9, 7]", "f32[4, 5, 1, 1]"),
        conv_group("f32[2, 3, 10, 10]", "f32[4, 3, 3, 2]", rhs_dilation=(2, 3)),
        conv_group("f32[2, 3, 6, 5]", "f32[4, 3, 3, 3]", lhs_dilation=(2, 2), padding=((2, 1), (0, 2))),
        conv_group("f32[1, 2, 9, 9]", "f32[3, 2, 3, 3]", padding=((-1, 2), (3, -2))),
        conv_group("f32[3, 4, 20]", "f32[6, 4, 5]", padding=((2, 2),)),
        conv_group("f32[1, 2, 4, 5, 6]", "f32[3, 2, 2, 3, 2]"),
        conv_group("f32[4, 3]", "f32[5, 3]"),
        conv_group("f32[1, 40, 5, 5]", "f32[4, 40, 3, 3]", padding=P),
        conv_group("f32[1, 1, 1, 1]", "f32[1, 1, 1, 1]"),
    ]
    check_groups([case(g) for g in groups])


def test_groups_of_channels_and_of_examples() -> None:
    groups = [
        conv_group("f32[2, 6, 7, 8]", "f32[9, 2, 3, 3]", groups=3, padding=P),
        conv_group("f32[2, 8, 9, 6]", "f32[8, 1, 3, 3]", groups=8, padding=P),
        conv_group("f32[2, 8, 9, 6]", "f32[16, 1, 3, 3]", groups=8, strides=(2, 2), padding=P),
        conv_group("f32[6, 4, 9, 9]", "f32[6, 4, 7, 7]", batch_groups=3, padding=P),
        conv_group("f32[8, 5, 20, 20]", "f32[8, 5, 18, 18]", batch_groups=8, padding=P),
    ]
    check_groups([case(g) for g in groups])


def test_epilogues_and_types() -> None:
    groups = [
        conv_group("f32[2, 3, 8, 8]", "f32[5, 3, 3, 3]", padding=P, epilogue=biased(1)),
        conv_group("f32[2, 3, 8, 9]", "f32[5, 3, 3, 3]", padding=P, epilogue=gelu),
        conv_group("f32[2, 3, 8, 9]", "f32[5, 3, 3, 3]", padding=P, epilogue=cast_to(F16)),
        conv_group("f64[2, 3, 8, 9]", "f64[5, 3, 3, 3]", padding=P),
        conv_group("i32[2, 3, 8, 9]", "i32[5, 3, 3, 3]", padding=P),
        conv_group("f16[2, 3, 8, 9]", "f16[5, 3, 3, 3]", padding=P, precision="exact"),
    ]
    check_groups([case(g) for g in groups])


@pytest.mark.parametrize("example", [0, 1])
def test_some_tiles_give_the_same_bits(example: int) -> None:
    every_tile(example, 13)


@pytest.mark.slow
@pytest.mark.parametrize("example", [0, 1])
def test_every_tile_gives_the_same_bits(example: int) -> None:
    every_tile(example, 1)


def every_tile(example: int, step: int) -> None:
    group = conv_group("f32[2, 31, 9, 11]", "f32[34, 31, 3, 3]", padding=P, epilogue=biased(1))
    choices = fma_choices(group, split=True, examples=(example,), padded=(False, True))[example::step]
    direct = [Choice("contract direct", (("split", s), ("example", example)), choices[0].divides, True) for s in (0, 1)]
    check_groups(same_result(group, [*choices, *direct]), seeds=(1,))


def test_positions_beyond_32_bits_are_computed_in_64() -> None:
    group = conv_group("f32[2, 5, 9, 7]", "f32[20, 5, 3, 3]", padding=P, epilogue=biased(1))
    choices = fma_choices(group, split=False, padded=(False, True))
    wide = [Choice(c.form, c.numbers, (), False) for c in choices[3:6]]
    check_groups(same_result(group, wide), seeds=(0,))


def test_hot_kernels_keep_their_registers() -> None:
    texts = []
    for number, target in enumerate((HOPPER, AMPERE)):
        group = conv_group("f32[32, 128, 56, 56]", "f32[128, 128, 3, 3]", padding=P, epilogue=biased(1))
        texts.append(cuda_text(prepare(Case(group, [], None, target), number).kernels, target))
    check_compiles(texts, hot=("contract",))
