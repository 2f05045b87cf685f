"""Simulation shows where a barrier or a wait is missing: kernels are run with one of them left out.

Some order of threads must then give other bits, or be stopped; but for the few, named below, that these sizes do not need.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from graphc.codegen.c import prelude
from graphc.codegen.c.cuda import emit_kernel
from graphc.codegen.cuda.simulate import SimulationError
from graphc.codegen.cuda.target import AMPERE
from graphc.ir.function import Builder, Function
from graphc.ir.types import BF16, F32, DType, TensorType

from tests.codegen.compiled import difference
from tests.codegen.device import Case, Prepared, library, prepare, run_prepared
from tests.codegen.products import case as product_case
from tests.codegen.row_groups import reductions, row_cases, traced
from tests.equality.oracle import exact_interpret

SEEDS = (0, 1, 2, 3, 4)
MARKS = ("__syncthreads();", "__syncwarp();", "copy_async_wait_", "mbarrier_wait(", "wgmma_wait_", "wgmma_fence(", "named_barrier(")


def places(text: str) -> list[int]:
    """The lines of barriers and waits."""
    return [i for i, line in enumerate(text.splitlines()) if line.strip().startswith(MARKS)]


def mutants(p: Prepared) -> list[tuple[Prepared, str, str]]:
    """(case, text of the kernel, what is missing) for each barrier and wait of each of its kernels."""
    made = []
    for n, kernel in enumerate(p.kernels):
        for i, line in enumerate(places(emit_kernel(kernel))):
            named = replace(kernel, name=f"{kernel.name}_without_{i}")
            lines = emit_kernel(named).splitlines()
            around = "\n".join(f"  {x}" for x in lines[max(0, line - 3) : line + 4])
            del lines[line]
            changed = replace(p, kernels=(*p.kernels[:n], named, *p.kernels[n + 1 :]))
            made.append((changed, "\n".join(lines) + "\n", f"{p.choice}: {kernel.name} line {line}:\n{around}"))
    return made


def unshown(cases: Sequence[Case], least: int) -> list[str]:
    """The barriers and waits without which every order of threads still gives the right bits."""
    prepared = [prepare(c, i) for i, c in enumerate(cases)]
    made = [m for p in prepared for m in mutants(p)]
    assert len(made) >= least, "the kernels have fewer barriers than this test is about"
    body = "\n".join([*(emit_kernel(k) for p in prepared for k in p.kernels), *(text for _, text, _ in made)])
    built = library(prelude.functions(prelude.used(body, "cuda"), "cuda") + body)
    expected: dict[int, list[np.ndarray]] = {}
    for p in prepared:
        expected[id(p.case)] = list(p.case.expected or exact_interpret(p.case.group, list(p.case.inputs)))
        assert not wrong(p, built, expected[id(p.case)], 0), "the kernels are wrong as they are"
    return [what for p, _, what in made if not any(wrong(p, built, expected[id(p.case)], seed) for seed in SEEDS)]


def wrong(p: Prepared, built: object, expected: Sequence[np.ndarray], seed: int) -> bool:
    try:
        got = run_prepared(p, built, seed)
    except SimulationError:
        return True
    return any(difference(np.asarray(a), b) for a, b in zip(expected, got, strict=True))


def transpose() -> Function:
    b = Builder("transposed")
    x = b.param(TensorType(F32, (67, 70)))
    return b.build([b.emit("exp", b.emit("permute", x, axes=(1, 0)))])


def dot(m: int, n: int, k: int, dtype: DType, precision: str = "") -> Function:
    b = Builder("product")
    x, y = b.param(TensorType(dtype, (m, k))), b.param(TensorType(dtype, (k, n)))
    return b.build([b.emit("dot", x, y, lhs_contract=(1,), rhs_contract=(0,), precision=precision)])


def norm(x, g):
    import graphc as gc

    return gc.nn.functional.layer_norm(x, (3000,), g)


def reduced(shape: tuple[int, int], axis: int) -> Case:
    """No NaN, which would hide everything."""
    return Case(reductions(F32, shape, (axis,)), [noise(*shape)])


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape).astype("f4")


# name -> the cases, how many barriers and waits there are at least, and how many may be left out unnoticed.
CASES: dict[str, tuple[Callable[[], list[Case]], int, int]] = {
    # The last one is for blocks that take several squares.
    "transpose": (lambda: [Case(transpose(), [noise(67, 70)])], 2, 1),
    "sum of rows": (lambda: [reduced((3, n), 1) for n in (300, 5000)], 3, 0),
    # Who reads the last step of a tree has written it.
    "sum of columns": (lambda: [reduced((700, 45), 0)], 5, 3),
    "norm": (lambda: row_cases(traced(norm, "f32[5, 3000]", "f32[3000]"), [noise(5, 3000), noise(3000)]), 1, 0),
    "product by fma": (lambda: [product_case(dot(70, 68, 40, F32), integers=True)], 2, 0),
    # The wait after the loop, for copies that it has left; the barrier of the warp after its last tile.
    "product by mma": (lambda: [product_case(dot(130, 72, 136, BF16), integers=True, target=AMPERE)], 5, 2),
    "product by wgmma": (lambda: [product_case(dot(130, 72, 520, BF16), integers=True)], 8, 0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_missing_barrier_shows(name: str) -> None:
    make, least, most = CASES[name]
    left = unshown(make(), least)
    assert len(left) <= most, "without these nothing is wrong:\n" + "\n".join(left)
