"""Maps whose main loop takes two vectors at once: every length, and the ends one vector at a time."""

from __future__ import annotations

import pytest
from graphc.codegen.canonical import canonicalise
from graphc.codegen.lower.map import WIDTH, interleaved, lower_map, width_for
from graphc.codegen.stages import fused
from graphc.ir.function import Builder, Function
from graphc.ir.types import TensorType

from tests.codegen.compiled import difference
from tests.codegen.kernel_words import TARGETS
from tests.codegen.run_kernels import Native
from tests.codegen.values import mixed
from tests.equality.oracle import exact_interpret

LENGTHS = [1, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 2047, 2048, 2049, 2080, 2081]


def function_of(name: str, type: str) -> Function:
    b = Builder("f")
    return b.build([b.emit(name, b.param(TensorType.parse(type)))])


def group_of(name: str, type: str) -> Function:
    (op,) = fused(function_of(name, type)).entry.ops
    return canonicalise(op.attrs["function"]).function


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.cpu)
def test_every_length(target) -> None:
    group = group_of("tanh", "f32[1000]")
    assert interleaved(group, width_for(group)) == 2 * WIDTH
    native = Native(lower_map(group), target)
    for n in LENGTHS:
        x = mixed(group.params[0].type.dtype, (n,), n)
        (want,) = exact_interpret(function_of("tanh", f"f32[{n}]"), [x])
        (got,) = native.run([x], [r.type for r in group.results], {"e0": n}, 2)
        assert not difference(want, got)


def test_which_maps() -> None:
    for name, type in (("abs", "f32[1000]"), ("sin", "f32[1000]"), ("tanh", "f64[1000]"), ("tanh", "f16[1000]")):
        group = group_of(name, type)
        assert interleaved(group, width_for(group)) == width_for(group)
