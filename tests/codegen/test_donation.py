"""Results written in place of inputs: where that is allowed, and that no bit changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from graphc.codegen.program import Program, compile_function
from graphc.ir.function import Builder, Function, Value
from graphc.ir.types import TensorType

Array = np.ndarray[Any, Any]
Body = Callable[..., Value | list[Value]]


def function(types: list[str], body: Body) -> Function:
    b = Builder("f")
    out = body(b, *(b.param(TensorType.parse(t)) for t in types))
    return b.build(out if isinstance(out, list) else [out])


def run(program: Program, args: list[Array]) -> list[Array]:
    """Run with donated outputs in the memory of their inputs; the inputs given stay as they are."""
    held = [np.array(a, order="C") for a in args]
    targets = {j: held[i] for i, j in program.donated}
    out = [targets.get(j, np.empty(t.shape, t.dtype.numpy)) for j, t in enumerate(program.output_types)]
    program.run([a.ctypes.data for a in held], [o.ctypes.data for o in out])
    return out


def scaled(b: Builder, x: Value, by: float) -> Value:
    out: Value = b.mul(x, b.full(b.constant(value=np.array(by, np.float32)), shape=x.type.shape))
    return out


def momentum(b: Builder, p: Value, v: Value, g: Value) -> list[Value]:
    moved = b.add(scaled(b, v, 0.9), g)
    return [b.sub(p, scaled(b, moved, 0.1)), moved]


@pytest.mark.parametrize("shape", ["[]", "[3]", "[16]", "[37, 41]", "[5000]", "[3, 7, 4, 4]", "[9437184]"])
def test_an_update_is_made_in_place(shape: str) -> None:
    f = function([f"f32{shape}"] * 3, momentum)
    program = compile_function(f, donate=[(0, 0), (1, 1)])
    assert program.donated == {(0, 0), (1, 1)}
    rng = np.random.default_rng(0)
    args = [rng.standard_normal(t.shape).astype(np.float32) for t in f.param_types]
    for a, b in zip(run(program, args), run(compile_function(f), args), strict=True):
        assert np.array_equal(a.view(np.uint32), b.view(np.uint32))


def test_results_of_one_kernel_that_read_both_inputs() -> None:
    def body(b: Builder, x: Value, y: Value) -> list[Value]:
        total = b.add(x, y)
        return [total, b.sub(b.mul(total, x), y)]

    f = function(["f32[100]"] * 2, body)
    program = compile_function(f, donate=[(0, 0), (1, 1)])
    assert program.donated == {(0, 0), (1, 1)} and len(program.module.entry.ops) == 1
    x, y = np.arange(100, dtype=np.float32), np.full(100, 3, np.float32)
    total, rest = run(program, [x, y])
    assert np.array_equal(total, x + y) and np.array_equal(rest, (x + y) * x - y)


REFUSED: dict[str, tuple[list[str], Body]] = {
    "read at another element": (["f32[8]"], lambda b, x: b.add(x, b.flip(x, axes=(0,)))),
    "read transposed": (["f32[8, 8]"], lambda b, x: b.add(x, b.permute(x, axes=(1, 0)))),
    "read by a reduction": (
        ["f32[8, 8]"],
        lambda b, x: b.sub(x, b.broadcast(b.sum(x, axes=(1,)), shape=(8, 8), axes=(0,))),
    ),
    "read by a product": (
        ["f32[8, 8]"],
        lambda b, x: b.dot(x, x, lhs_batch=(), rhs_batch=(), lhs_contract=(1,), rhs_contract=(0,)),
    ),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_is_read_otherwise_is_not_written_in_place(why: str) -> None:
    types, body = REFUSED[why]
    f = function(types, body)
    program = compile_function(f, donate=[(0, 0)])
    assert program.donated == frozenset(), why


def test_an_input_that_is_read_later_keeps_its_memory() -> None:
    def body(b: Builder, x: Value, y: Value) -> list[Value]:
        product = b.dot(x, y, lhs_batch=(), rhs_batch=(), lhs_contract=(1,), rhs_contract=(0,))
        return [b.add(x, y), product]

    f = function(["f32[8, 8]"] * 2, body)
    program = compile_function(f, donate=[(0, 0)])
    order = [[o.name for o in op.attrs["function"].ops] for op in program.module.entry.ops]
    assert program.donated == (frozenset({(0, 0)}) if order[-1] == ["add"] else frozenset())
    x, y = np.eye(8, dtype=np.float32), np.full((8, 8), 2.0, np.float32)
    total, product = run(program, [x, y])
    assert np.array_equal(total, x + y) and np.array_equal(product, x @ y)


def test_an_index_that_an_earlier_kernel_has_read_is_in_range() -> None:
    """An embedding table: its gradient adds up at the indices that the forward pass has read, so updates before it are in place."""

    def body(b: Builder, table: Value, bias: Value, i: Value, other: Value) -> list[Value]:
        rows = b.gather(table, i, axis=0)
        total = b.sum(rows, axes=(0, 1))
        zeros = b.full(b.constant(value=np.zeros((), np.float32)), shape=table.type.shape)
        moved = b.sub(bias, b.broadcast(total, shape=(3, 4), axes=()))
        product = b.dot(moved, table, lhs_batch=(), rhs_batch=(), lhs_contract=(1,), rhs_contract=(1,))
        grad = b.scatter_add(zeros, other, b.slice(product, start=(0, 0), limit=(3, 4), stride=(1, 1)), axis=0)
        return [moved, b.add(table, grad)]

    def pairs(same: bool) -> frozenset[tuple[int, int]]:
        types = ["f32[8, 4]", "f32[3, 4]", "i64[3]", "i64[3]"]
        f = function(types, lambda b, t, c, i, j: body(b, t, c, i, i if same else j))
        return compile_function(f, donate=[(0, 1), (1, 0)], fused=False).donated

    assert (1, 0) in pairs(same=True)
    assert (1, 0) not in pairs(same=False)


def test_nothing_is_written_in_place_before_the_last_possible_error() -> None:
    def body(b: Builder, x: Value, i: Value) -> list[Value]:
        return [scaled(b, x, 2.0), b.gather(scaled(b, x, 3.0), i, axis=0)]

    f = function(["f32[8]", "i64[2]"], body)
    program = compile_function(f, donate=[(0, 0)])
    x = np.arange(8, dtype=np.float32)
    held = x.copy()
    out = [held if program.donated else np.empty_like(x), np.empty(2, np.float32)]
    with pytest.raises(IndexError):
        i = np.array([0, 99])
        program.run([held.ctypes.data, i.ctypes.data], [o.ctypes.data for o in out])
    assert np.array_equal(held, x)
