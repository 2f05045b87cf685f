"""Attention on a device: by fma the interpreter's bits, on tensor cores near them; what the kernels cost."""

from __future__ import annotations

import numpy as np
import pytest

from tests.codegen.attention_cases import Case as Sizes
from tests.codegen.device import Case, check_groups

EXACT = [
    # B, H, Hk, T, S, D, E
    Sizes((1, 1, 1, 1, 1, 1, 1)),
    Sizes((2, 4, 2, 65, 67, 5, 8)),
    Sizes((1, 2, 1, 70, 130, 17, 3), causal=True),
    Sizes((1, 2, 2, 130, 70, 16, 24), causal=True, kind="bfloat16", precision="exact"),
    Sizes((1, 1, 1, 7, 65, 33, 9), kind="float64", mask=("bool", (1, 1, 7, 65))),
    Sizes((1, 2, 1, 20, 40, 8, 72), kind="float16", precision="exact", mask=("added", (1, 2, 1, 40))),
    Sizes((1, 1, 1, 3, 66, 200, 100)),
    Sizes((1, 2, 2, 3, 0, 4, 4)),
]


def case(sizes: Sizes, gradient: bool, **options: object) -> Case:
    return Case(sizes.function(gradient), sizes.args(gradient), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "gradient"])
def test_by_fma_it_gives_the_interpreters_bits(gradient: bool) -> None:
    check_groups([case(s, gradient) for s in EXACT], seeds=(0, 1))


@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "gradient"])
def test_infinities_and_nan(gradient: bool) -> None:
    sizes = Sizes((1, 2, 2, 66, 70, 4, 4), causal=True)
    args = sizes.args(gradient)
    args[0][0, 0, 3, 1], args[1][0, 0, 9, 2], args[2][0, 1, 60, 0], args[2][0, 0, 69, 1] = np.inf, np.nan, -np.inf, np.inf
    if gradient:
        args[6][0, 1, 65, 2], args[4][0, 1, 2], args[5][0, 1, 50] = np.inf, -np.inf, np.nan
    check_groups([Case(sizes.function(gradient), args)], seeds=(0,))
