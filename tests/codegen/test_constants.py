"""Constants that are only read permuted are kept in that order."""

from __future__ import annotations

import numpy as np
import pytest
from graphc.codegen.aot import plan_function
from graphc.codegen.constants import laid_out, last_laid_out
from graphc.codegen.prepare import prepare
from graphc.codegen.program import compile_function
from graphc.ir.function import Builder, DenseArray, Function
from graphc.ir.interpret import interpret
from graphc.ir.types import TensorType

from tests.codegen.kernel_oracle import same_bits

WEIGHT = np.random.default_rng(0).standard_normal((5, 37)).astype(np.float32)


def layer(constant: bool, twice: str = "") -> Function:
    """x @ w.T, and something else done with w."""
    b = Builder("layer")
    x = b.param(TensorType.parse("f32[3, 37]"))
    w = b.emit("constant", value=DenseArray(WEIGHT)) if constant else b.param(TensorType.parse("f32[5, 37]"))
    results = [b.dot(x, b.permute(w, axes=(1, 0)), lhs_contract=(1,), rhs_contract=(0,))]
    if twice == "read":
        results.append(b.neg(w))
    elif twice == "permuted":
        results.append(b.neg(b.permute(w, axes=(1, 0))))
    elif twice == "result":
        results.append(w)
    return b.build(results)


def test_a_weight_is_turned_when_the_program_is_built() -> None:
    prepared, (held,) = prepare(layer(True))
    assert held.shape == (37, 5) and held.flags.c_contiguous and np.array_equal(held, WEIGHT.T)
    assert [op.name for op in prepared.ops] == ["dot"]
    assert prepared.params[-1].type == TensorType.parse("f32[37, 5]")


@pytest.mark.parametrize("twice", ["", "read", "permuted", "result"])
def test_the_program_gives_the_same_bits(twice: str) -> None:
    f = layer(True, twice)
    program = compile_function(f)
    x = np.random.default_rng(1).standard_normal((3, 37)).astype(np.float32)
    out = [np.full(t.shape, 7, np.float32) for t in program.output_types]
    program.run([x.ctypes.data], [a.ctypes.data for a in out])
    for got, want in zip(out, interpret(f, [x]), strict=True):
        assert same_bits(got, want)


def test_what_is_read_as_it_is_stays() -> None:
    f = layer(False, "read")
    assert laid_out(f, {1: WEIGHT})[0] is f
    f = layer(False, "result")
    assert last_laid_out(f, [WEIGHT])[0] is f
    f = layer(False)
    assert laid_out(f, {})[0] is f


def test_ahead_of_time_constants_and_state() -> None:
    plan = plan_function(layer(False), constants={1: WEIGHT})
    assert [a.shape for a in plan.constants.values()] == [(37, 5)]
    state = plan_function(layer(False), constants={1: WEIGHT}, state={1: None})
    assert [s.initial.shape for s in state.state] == [(5, 37)]
