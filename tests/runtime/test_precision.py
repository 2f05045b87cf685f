"""`set_matmul_precision`: what products ask for, and that no cache mixes them up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import graphc as gc
import numpy as np
import pytest
from graphc.ir.autodiff import jvp, vjp
from graphc.ir.function import Builder, Function
from graphc.ir.interpret import interpret
from graphc.ir.passes import run_pipeline
from graphc.ir.registry import IRTypeError
from graphc.ir.text import parse_function, print_function
from graphc.ir.types import TensorType


@pytest.fixture(autouse=True)
def as_at_first() -> Iterator[None]:
    yield
    gc.set_matmul_precision("highest")


def asked(f: Callable[..., Any], *types: str) -> list[str]:
    """The precision of each product of a traced function."""
    function = gc.trace_function(f, types).function
    return [op.attrs["precision"] for op in run_pipeline(function, ("inline",)).ops if op.name in ("dot", "conv")]


@gc.composite
def product(x: gc.Tensor, y: gc.Tensor) -> gc.Tensor:
    return x @ y


@pytest.mark.parametrize(
    ("level", "float32", "others"),
    [("highest", "", ""), ("high", "tf32", ""), ("medium", "bf16", ""), ("exact", "exact", "exact")],
)
def test_products_ask_for_what_is_set(level: str, float32: str, others: str) -> None:
    gc.set_matmul_precision(level)
    assert gc.get_matmul_precision() == level
    for f in (gc.matmul, product, lambda a, b: gc.tensordot(a, b, axes=1), lambda a, b: gc.einsum("ij,jk->ik", a, b)):
        assert asked(f, "f32[2, 3]", "f32[3, 4]") == [float32]
        assert asked(f, "f16[2, 3]", "f16[3, 4]") == [others]
        assert asked(f, "i32[2, 3]", "i32[3, 4]") == [""]
    assert asked(gc.nn.functional.conv2d, "f32[1, 2, 5, 5]", "f32[3, 2, 3, 3]") == [float32]
    assert asked(gc.vecdot, "f64[5]", "f64[5]") == [others]


def test_a_cpu_gives_the_same_bits_and_recordings_are_told_apart() -> None:
    x = gc.rand(5, 7)
    compiled = gc.compile(lambda x: x @ x.T)
    first = compiled(x)
    for level in ("high", "medium", "exact", "highest"):
        gc.set_matmul_precision(level)
        assert bool((compiled(x) == first).all()) and bool((x @ x.T == first).all())
    assert len({key[3] for key in compiled._families}) == 4


def test_a_wrong_name_and_a_traced_function_are_told() -> None:
    with pytest.raises(ValueError, match='one of "highest", "high", "medium", "exact", not \'fast\''):
        gc.set_matmul_precision("fast")

    def inside(x: gc.Tensor) -> gc.Tensor:
        gc.set_matmul_precision("high")
        return x @ x

    with pytest.raises(RuntimeError, match="call it before the function"):
        gc.compile(inside)(gc.rand(3, 3))


def with_precision(precision: str, dtype: str = "f32") -> Function:
    b = Builder("f")
    x, y = b.param(TensorType.parse(f"{dtype}[2, 3]")), b.param(TensorType.parse(f"{dtype}[3, 4]"))
    return b.build([b.emit("dot", x, y, lhs_contract=(1,), rhs_contract=(0,), precision=precision)])


@pytest.mark.parametrize("precision", ["", "exact", "tf32", "bf16"])
def test_text_and_gradients_keep_it(precision: str) -> None:
    f = with_precision(precision)
    text = print_function(f)
    assert ("precision" in text) == bool(precision)
    assert parse_function(text) == f
    for g in (vjp(f), jvp(f)):
        assert {op.attrs["precision"] for op in g.ops if op.name == "dot"} == {precision}
    a, b = np.ones((2, 3), np.float32), np.ones((3, 4), np.float32)
    assert (interpret(f, [a, b])[0] == 3).all()


def test_gradients_of_conv_keep_it() -> None:
    gc.set_matmul_precision("high")
    f = gc.trace_function(gc.nn.functional.conv2d, ("f32[2, 4, 6, 6]", "f32[4, 4, 3, 3]")).function
    kept = [op.attrs["precision"] for op in run_pipeline(vjp(f), ("inline",)).ops if op.name == "conv"]
    assert len(kept) >= 3 and set(kept) == {"tf32"}


def test_rules() -> None:
    with pytest.raises(IRTypeError, match='precision must be one of "", "exact", "tf32", "bf16", not \'fp8\''):
        with_precision("fp8")
    with pytest.raises(IRTypeError, match="says how float32 operands are rounded, and these are f16"):
        with_precision("tf32", "f16")
