"""`arange` up to a symbolic size is traced once for all sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import graphc as gc
import numpy as np
import pytest
from graphc.ir.interpret import specialize
from graphc.runtime.backend import compile_function
from graphc.runtime.core import empty, view_of
from graphc.runtime.spec import of_type

from tests.graphc.ahead import assert_same_bits

CASES: dict[str, tuple[Callable[[Any], Any], Callable[[int, int], Any]]] = {
    "stop": (lambda x: gc.arange(x.shape[1]), lambda b, n: np.arange(n)),
    "start and stop": (lambda x: gc.arange(2, x.shape[1] + 2), lambda b, n: np.arange(2, n + 2)),
    "from a size": (lambda x: gc.arange(x.shape[0], x.shape[0] + x.shape[1]), lambda b, n: np.arange(b, b + n)),
    "float32": (
        lambda x: gc.arange(x.shape[1], dtype=gc.float32) * 0.5,
        lambda b, n: np.arange(n, dtype=np.float32) * np.float32(0.5),
    ),
    "a mask": (
        lambda x: gc.arange(x.shape[1])[None, :] <= gc.arange(x.shape[0])[:, None],
        lambda b, n: np.arange(n)[None, :] <= np.arange(b)[:, None],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_up_to_a_symbolic_size(name: str) -> None:
    f, expected = CASES[name]
    traced = gc.trace_function(f, ["f32[B, N]"]).function
    for b, n in ((1, 1), (2, 5), (3, 0), (4, 70)):
        concrete = specialize(traced, {"B": b, "N": n})
        x, result = empty(of_type(concrete.params[0].type)), empty(of_type(concrete.result_types[0]))
        compile_function(concrete).run([x._address], [result._address])
        reference = expected(b, n)
        assert view_of(result).dtype == reference.dtype
        np.testing.assert_array_equal(view_of(result), reference)


@pytest.mark.parametrize("name", CASES)
def test_compiled_ahead_of_time(name: str) -> None:
    traced = gc.trace_function(CASES[name][0], ["f32[B, N]"]).function
    assert_same_bits(traced, [{"B": 1, "N": 1}, {"B": 3, "N": 0}, {"B": 4, "N": 70}])


def test_a_step_has_a_cure() -> None:
    with pytest.raises(TypeError, match="the step is 1, not 0 and 2; compute start \\+ step \\* arange"):
        gc.trace_function(lambda x: gc.arange(0, x.shape[0], 2), ["f32[B]"])
