"""However a program is cut into items and parts, and whoever runs them, the bits are the same."""

from __future__ import annotations

import numpy as np
import pytest
from graphc.codegen.program import compile_function
from graphc.ir.autodiff import vjp
from graphc.ir.function import Builder
from graphc.ir.passes import run_pipeline
from graphc.ir.types import F32, TensorType

from tests.codegen.test_runner import threads_of
from tests.equality.oracle import exact_interpret
from tests.equality.programs import Generator, inputs_for
from tests.equality.test_equality import Array, check, execute


@pytest.mark.parametrize("seed", range(1000, 1016))
def test_items_and_threads(seed: int) -> None:
    """Small launches together in items or each cut as finely as can be, on 1, 2, 3 and 8 threads."""
    f = Generator(seed).function(24)
    if seed % 2:
        f = run_pipeline(vjp(f), ("inline", "dce"))
    args = inputs_for(f, seed)
    expected = exact_interpret(f, args)
    for grain in (None, 1, 1000):
        program = compile_function(f, grain=grain)
        for threads in (1, 2, 3, 8):
            with threads_of(threads):
                for _ in range(3):
                    check(f, seed, f"grain {grain}, {threads} threads", expected, execute(program, args))


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_a_network_of_branches(threads: int) -> None:
    """Products and reductions that overlap, with memory that is used again and again."""
    rng = np.random.default_rng(threads)
    b = Builder("branches")
    x = b.param(TensorType(F32, (65, 48)))
    weights = [b.param(TensorType(F32, (48, 48))) for _ in range(5)]
    values = [x]
    for k in range(30):
        source = values[int(rng.integers(len(values)))]
        y = b.dot(source, weights[k % 5], lhs_contract=(1,), rhs_contract=(0,))
        if k % 3 == 0:
            y = b.add(y, values[int(rng.integers(len(values)))])
        if k % 4 == 0:
            y = b.sub(y, b.broadcast(b.max(y, axes=(1,)), shape=(65, 48), axes=(0,)))
        values.append(b.tanh(y))
    f = b.build([values[-1], values[-7], b.sum(values[-2], axes=(0, 1))])
    args: list[Array] = [rng.standard_normal(t.shape).astype(np.float32) for t in f.param_types]
    program = compile_function(f, grain=1)
    with threads_of(1):
        expected = execute(program, args)
    with threads_of(threads):
        for _ in range(40):
            check(f, 0, f"{threads} threads", expected, execute(program, args))
