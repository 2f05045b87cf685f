"""Values computed again rather than stored: the same bits, and less memory moved."""

from __future__ import annotations

import numpy as np
import pytest
from graphc.codegen.fuse import fuse
from graphc.codegen.merge import merge
from graphc.codegen.prepare import prepare
from graphc.codegen.recompute import recompute
from graphc.ir.autodiff import vjp
from graphc.ir.function import Builder, Function
from graphc.ir.interpret import interpret, specialize
from graphc.ir.passes import DEFAULT, run_pipeline
from graphc.ir.types import F32, TensorType, size_of
from graphc.ir.verify import verify
from graphc.runtime.nn import functional

from tests.codegen.compiled import difference
from tests.codegen.row_groups import traced
from tests.codegen.values import mixed, plain
from tests.ir.random_functions import random_function

ROWS, WIDE = 1024, 256


def prepared(f: Function) -> Function:
    return prepare(run_pipeline(f, DEFAULT))[0]


def moved(f: Function) -> float:
    """What the kernels of a function read and write, in arrays of f32[ROWS, WIDE]."""
    total = 0
    for op in fuse(f).entry.ops:
        for v in (*op.operands, *op.results):
            size = size_of(v.type.shape)
            assert isinstance(size, int)
            total += size * v.type.dtype.itemsize
    return total / (ROWS * WIDE * 4)


def layer_norm() -> Function:
    x, w = f"f32[{ROWS}, {WIDE}]", f"f32[{WIDE}]"
    return traced(lambda x, w, b: functional.layer_norm(x, (WIDE,), w, b), x, w, w)


def cross_entropy() -> Function:
    return traced(lambda x, t: functional.cross_entropy(x, t), f"f32[{ROWS}, {WIDE}]", f"i64[{ROWS}]")


def feed_forward() -> Function:
    def layers(x, w, b, v):  # type: ignore[no-untyped-def]
        return functional.layer_norm(x + functional.gelu(x @ w + b) @ v, (WIDE,))

    w = f"f32[{WIDE}, {WIDE}]"
    return traced(layers, f"f32[{ROWS}, {WIDE}]", w, f"f32[{WIDE}]", w)


def test_less_is_moved() -> None:
    """Layer norm and its gradient: x and y; then x and dy three times, dx. Cross-entropy: x twice, dx."""
    for make, before, after in ((layer_norm, 11, 8.1), (cross_entropy, 4.5, 3.1)):
        f = prepared(vjp(make()))
        assert moved(f) >= before - 0.1
        assert moved(recompute(f, device=True)) <= after
    f = prepared(vjp(feed_forward()))
    assert moved(recompute(f)) < moved(f)
    # Forwards alone nothing is stored that could be spared.
    for make in (layer_norm, cross_entropy, feed_forward):
        f = prepared(make())
        assert moved(recompute(f)) <= moved(f) + 0.01


def test_reductions_of_one_array_share_a_kernel() -> None:
    """The sums of layer norm's gain and bias; what waits for a group's result stays behind it."""
    f = recompute(prepared(vjp(layer_norm())))
    assert len(fuse(f).entry.ops) == 4 and len(merge(fuse(f)).entry.ops) == 3
    b = Builder("chain")
    x = b.param(TensorType(F32, (64, 32)))
    total = b.sum(x, axes=(0,))
    turned = b.flip(total, axes=(0,))
    top = b.max(b.mul(x, b.broadcast(turned, shape=(64, 32), axes=(1,))), axes=(0,))
    g = b.build([b.sum(x, axes=(1,)), total, top, b.min(x, axes=(1,)), b.min(x, axes=(0,))])
    module = merge(fuse(g))
    assert len(fuse(g).entry.ops) == 5 and len(module.entry.ops) == 3
    x_value = plain(F32, (64, 32), 1)
    for want, got in zip(interpret(g, [x_value]), interpret(module.entry, [x_value]), strict=True):
        assert not difference(np.asarray(want), np.asarray(got))


def batch_norm(shape: str, channels: int) -> Function:
    """In training, under an activation."""
    c = f"f32[{channels}]"
    return traced(lambda x, w, b: functional.relu(functional.batch_norm(x, None, None, w, b, training=True)), shape, c, c)


def test_reductions_of_what_another_one_writes_share_its_kernel() -> None:
    """Batch norm under an activation reads x and dy once for all sums of its gradient, and once more for dx."""
    f = recompute(prepared(vjp(batch_norm("f32[8, 4, 16, 16]", 4))))
    large = [[v for v in (*op.operands, *op.results) if v.type.shape == (8, 4, 16, 16)] for op in merge(fuse(f)).entry.ops]
    # The sum of x; sums of deviations; x to y; x and dy to the cotangent under the activation and three sums; x and that to dx.
    assert [len(values) for values in large if values] == [1, 1, 2, 3, 3]
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(tuple(map(int, p.type.shape)), dtype=np.float32) for p in f.params]
    for want, got in zip(interpret(f, inputs), interpret(merge(fuse(f)).entry, inputs), strict=True):
        assert not difference(np.asarray(want), np.asarray(got))


def test_what_another_one_writes_stays_apart() -> None:
    """Few rows are shared by threads as long as they write nothing; columns keep to themselves; what waits for a sum is not ready."""
    for shape, axes, same in (((64, 128), (1,), True), ((8, 65536), (1,), False), ((64, 128), (0,), False)):
        b = Builder("pair")
        x, y = (b.param(TensorType(F32, shape)) for _ in range(2))
        first = b.mul(x, x)
        total = b.sum(first, axes=axes)
        g = b.build([first, total, b.sum(b.mul(first, y), axes=axes)])
        apart = fuse(g)
        assert len(merge(apart).entry.ops) == len(apart.entry.ops) - (same and len(apart.entry.ops) > 1), shape
    b = Builder("waits")
    x, y = (b.param(TensorType(F32, (64, 128))) for _ in range(2))
    first = b.sub(x, b.broadcast(b.max(x, axes=(1,)), shape=(64, 128), axes=(0,)))
    turned = b.flip(b.sum(first, axes=(1,)), axes=(0,))
    last = b.sum(b.mul(first, b.mul(y, b.broadcast(turned, shape=(64, 128), axes=(0,)))), axes=(1,))
    g = b.build([first, last])
    for want, got in zip(interpret(g, v := [plain(F32, (64, 128), i) for i in (1, 2)]), interpret(merge(fuse(g)).entry, v), strict=True):
        assert not difference(np.asarray(want), np.asarray(got))


def test_masks_and_costly_values_are_kept() -> None:
    """Comparing again would store the compared value; sines cost more than memory."""
    f = prepared(traced(lambda x, y: ((x * y > 0).sum(0), (x * y > 0).sum(1)), "f32[64, 32]", "f32[64, 32]"))
    assert sum(op.name == "gt" for op in recompute(f).ops) == 1
    g = prepared(traced(lambda x: ((x.sin() + 1).sum(0), (x.sin() + 1).sum(1)), "f32[64, 32]"))
    assert sum(op.name == "sin" for op in recompute(g).ops) == 1
    assert sum(op.name == "add" for op in recompute(g).ops) == 2


def test_symbols_are_left_alone() -> None:
    f = traced(lambda x: x * 2 + (x * 2).sum(), "f32[N]")
    assert recompute(f) is f


@pytest.mark.parametrize("seed", range(60))
def test_random_functions_keep_their_bits(seed: int) -> None:
    f = prepared(specialize(random_function(seed, 40), {"B": 3}))
    again = recompute(f)
    verify(again)
    module = merge(fuse(again))
    for g in module:
        verify(g)
    assert again.result_types == f.result_types
    args = [
        np.asarray((mixed if p.type.dtype.is_float else plain)(p.type.dtype, tuple(map(int, p.type.shape)), seed + i))
        for i, p in enumerate(f.params)
    ]
    try:
        expected = interpret(f, args)
    except IndexError:
        with pytest.raises(IndexError):
            interpret(again, args)
        return
    for got in (interpret(again, args), interpret(module.entry, args)):
        for a, b in zip(expected, got, strict=True):
            assert not difference(np.asarray(a), np.asarray(b))
