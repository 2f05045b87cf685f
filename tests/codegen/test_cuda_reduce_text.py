"""The text of one short kernel for each form of device reductions, kept in filetests/cuda_reduce.txt.

`GRAPHC_BLESS=1 pytest tests/codegen/test_cuda_reduce_text.py` writes what comes out in the place of what is expected.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from graphc.codegen.cuda.choice import Choice
from graphc.codegen.loops import print_kernel
from graphc.ir.types import F32

from tests.codegen.device import Case, prepare
from tests.codegen.row_groups import reduction_case

FILE = Path(__file__).parent / "filetests" / "cuda_reduce.txt"


def form(name: str, **numbers: int) -> Choice:
    return Choice(name, tuple(numbers.items()), (), True)


CASES: dict[str, Case] = {
    "rows registers": reduction_case(F32, (40, 7), (1,), names=("sum",)),
    "rows registers, wide": reduction_case(F32, (40, 64), (1,), names=("sum",)),
    "rows loop": reduction_case(F32, (300, 5000), (1,), names=("sum",)),
    "rows shared": reduction_case(
        F32, (4, 512), (1,), form("rows shared", wide=1, warps=2, chunks=1, room=512, even=4, plan=0, kept=1), ("sum",)
    ),
    "columns registers": reduction_case(F32, (3, 5, 9), (1,), names=("sum",)),
    "columns loop": reduction_case(
        F32, (300, 9), (0,), form("columns loop", lanes=32, wide=1, across=4, down=8, items=1, even=0), ("sum",)
    ),
    "partials rows": reduction_case(F32, (100000,), (0,), names=("sum",)),
}


def text_of(case: Case) -> str:
    p = prepare(case)
    return "\n".join([f"# {p.choice}", *map(print_kernel, p.lowered.kernels)])


def kept() -> dict[str, str]:
    parts = ("\n" + FILE.read_text(encoding="utf-8")).split("\n== ")[1:]
    return {title: text.strip("\n") for title, _, text in (p.partition(" ==\n") for p in parts)}


@pytest.mark.skipif(bool(os.environ.get("GRAPHC_BLESS")), reason="writes the file")
@pytest.mark.parametrize("title", CASES)
def test_text(title: str) -> None:
    assert text_of(CASES[title]) == kept()[title]


def test_every_kept_text_is_of_a_case() -> None:
    if os.environ.get("GRAPHC_BLESS"):
        FILE.parent.mkdir(exist_ok=True)
        FILE.write_text("\n".join(f"== {t} ==\n{text_of(c)}\n" for t, c in CASES.items()), encoding="utf-8")
    assert list(kept()) == list(CASES)
