"""Maps that read across lines: transposed squares give the bits of the interpreter, at every size."""

from __future__ import annotations

import numpy as np
import pytest
from graphc.codegen.canonical import canonicalise
from graphc.codegen.lower.map import lower_map, map_variant
from graphc.codegen.stages import fused
from graphc.ir.function import Builder, Function, Value
from graphc.ir.types import TensorType

from tests.codegen.compiled import assert_compiled, difference
from tests.codegen.kernel_words import TARGETS
from tests.codegen.run_kernels import Native
from tests.codegen.values import mixed

SIDES = [16, 17, 31, 63, 64, 65, 80, 127, 129]


def turned(type: str, axes: tuple[int, ...]) -> Function:
    b = Builder("turned")
    x = b.param(TensorType.parse(type))
    return b.build([b.permute(x, axes=axes)])


def variant_of(f: Function) -> str:
    """The form of the last kernel."""
    group = canonicalise(fused(f).entry.ops[-1].attrs["function"])
    return map_variant(group.function, dict(group.extents))


@pytest.mark.parametrize("m", SIDES)
@pytest.mark.parametrize("n", SIDES)
def test_every_edge(m: int, n: int) -> None:
    f = turned(f"i16[{m}, {n}]", (1, 0))
    assert variant_of(f) == "map squares 0"
    assert_compiled(f, [np.arange(m * n, dtype=np.int16).reshape(m, n)])


def test_sides_below_a_square_are_gathered() -> None:
    assert variant_of(turned("f32[15, 400]", (1, 0))) == "map" == variant_of(turned("f32[400, 15]", (1, 0)))


@pytest.mark.parametrize("dtype", ["bool", "i8", "u16", "f16", "bf16", "f32", "i64", "f64"])
@pytest.mark.parametrize("axes", [(0, 2, 1), (2, 1, 0), (1, 2, 0)], ids=str)
def test_element_types(dtype: str, axes: tuple[int, ...]) -> None:
    t = TensorType.parse(f"{dtype}[33, 47, 35]")
    f = turned(str(t), axes)
    assert variant_of(f).startswith("map squares")
    assert_compiled(f, [mixed(t.dtype, (33, 47, 35), 0)])


def symmetric(b: Builder, x: Value) -> list[Value]:
    y = b.permute(x, axes=(1, 0))
    return [b.fma(x, y, y)]


def chosen(b: Builder, x: Value) -> list[Value]:
    rows = b.param(TensorType.parse("i32[70]"))
    picked = b.gather(x, rows, axis=0)
    part = b.slice(x, start=(1, 5), limit=(70, 70), stride=(1, 1))
    turned = b.permute(part, axes=(1, 0))
    return [b.mul(b.slice(b.permute(picked, axes=(1, 0)), start=(0, 0), limit=(65, 69), stride=(1, 1)), turned)]


@pytest.mark.parametrize("make", [symmetric, chosen])
def test_with_other_reads(make) -> None:
    b = Builder("f")
    x = b.param(TensorType.parse("f32[70, 70]"))
    f = b.build(make(b, x))
    args = [np.random.default_rng(0).standard_normal((70, 70)).astype(np.float32), np.arange(70, dtype=np.int32)[::-1].copy()]
    assert variant_of(f).startswith("map squares")
    assert_compiled(f, args[: len(f.params)])


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.cpu)
def test_a_kernel_serves_all_sizes(target) -> None:
    """Its form was chosen for others: sides below that of a square, and one element."""
    (op,) = fused(turned("f32[100, 200]", (1, 0))).entry.ops
    group = canonicalise(op.attrs["function"]).function
    native = Native(lower_map(group, "map squares 0"), target)
    for m, n in [(1, 1), (3, 70), (70, 15), (15, 15), (16, 200), (130, 16)]:
        x = np.arange(m * n, dtype=np.float32).reshape(m, n)
        names = dict(zip(("e0", "e1"), (m, n), strict=True))
        for parts in (1, 3):
            (got,) = native.run([x], [r.type for r in group.results], names, parts)
            assert not difference(np.ascontiguousarray(x.T), got)
