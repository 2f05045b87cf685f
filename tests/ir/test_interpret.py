"""The interpreter: binding of symbols, checks of arguments, and errors that name the operation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphc.ir.function import Builder, Function, Loc
from graphc.ir.interpret import bind_symbols, interpret, specialize
from graphc.ir.types import Dim, TensorType, symbol
from graphc.ir.verify import verify

B, T = symbol("B"), symbol("T")


def identity(*shapes: tuple[Dim, ...]) -> Function:
    b = Builder("f")
    params = [b.param(TensorType.parse("f32[]").with_shape(s), f"x{i}") for i, s in enumerate(shapes)]
    return b.build(params)


def zeros(*shape: int) -> np.ndarray[Any, Any]:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("types", "shapes", "want"),
    [
        ([(B, T)], [(2, 3)], {"B": 2, "T": 3}),
        ([(2 * B + 1,)], [(7,)], {"B": 3}),
        ([(B * T,), (B,)], [(6,), (2,)], {"B": 2, "T": 3}),
        ([(B + T,), (T,)], [(5,), (5,)], {"B": 0, "T": 5}),
        ([(B,), (B // 2,)], [(5,), (2,)], {"B": 5}),
        ([(3,)], [(3,)], {}),
    ],
)
def test_shapes_determine_symbols(types: list[Any], shapes: list[Any], want: dict[str, int]) -> None:
    assert bind_symbols(identity(*types), shapes) == want


@pytest.mark.parametrize(
    ("types", "shapes", "message"),
    [
        ([(B, B)], [(2, 3)], "the argument for x0 has a dimension 3 where its type has B with B = 2"),
        ([(3,)], [(2,)], "the argument for x0 has a dimension 2 where its type has 3"),
        ([(2 * B,)], [(3,)], "no argument's shape determines the symbol B; pass it in symbols="),
        ([(B * T,)], [(6,)], "determines the symbol B, T"),
        ([(B,)], [(2, 3)], r"has shape \[2, 3\] of rank 2, but its type is f32\[B\] of rank 1"),
    ],
)
def test_contradictions_are_errors(types: list[Any], shapes: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        interpret(identity(*types), [zeros(*s) for s in shapes])


def test_symbols_may_be_given() -> None:
    f = identity((B * T,))
    assert interpret(f, [zeros(6)], {"B": 2})[0].shape == (6,)
    with pytest.raises(ValueError, match="has a dimension 6 where its type has B"):
        interpret(identity((B,)), [zeros(6)], {"B": 2})


def test_arguments_are_checked() -> None:
    f = identity((2,))
    with pytest.raises(TypeError, match=r"@f takes 1 arguments \(x0: f32\[2\]\), not 2"):
        interpret(f, [zeros(2), zeros(2)])
    with pytest.raises(TypeError, match=r"x0 has dtype float64, but its type is f32\[2\]; convert it with .astype\('float32'\)"):
        interpret(f, [np.zeros(2)])


def test_results_are_new_contiguous_arrays() -> None:
    b = Builder("f")
    x = b.param(TensorType.parse("f32[2, 3]"))
    f = b.build([x, b.permute(x, axes=(1, 0)), b.broadcast(x, shape=(4, 2, 3), axes=(1, 2)), x])
    arg = np.arange(6, dtype=np.float32).reshape(2, 3)
    results = interpret(f, [arg])
    for r in results:
        assert r.flags.c_contiguous and r.flags.writeable and r.flags.owndata
        r[...] = -1
    assert arg.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_function_may_return_its_parameters_and_nothing() -> None:
    assert interpret(Builder("f").build([]), []) == []
    assert interpret(identity(()), [np.float32(3)]) == [3]


def test_errors_name_the_operation_and_its_line() -> None:
    b = Builder("f")
    x = b.param(TensorType.parse("i64[2]"))
    b.loc = Loc("train.py", 41)
    f = b.build([b.check_index(x, size=3)])
    with pytest.raises(IndexError) as caught:
        interpret(f, [np.array([0, 7])])
    assert str(caught.value) == (
        "index 7 is out of range for a dimension of size 3; it must be in [-3, 3)\n"
        '  in check_index(i64[2]) at "train.py":41'
    )


def test_errors_in_a_called_function_name_both_lines() -> None:
    inner = Builder("inner")
    x = inner.param(TensorType.parse("i64[2]"))
    inner.loc = Loc("layer.py", 5)
    callee = inner.build([inner.check_index(x, size=3)])
    b = Builder("f")
    b.loc = Loc("train.py", 41)
    f = b.build([b.call(b.param(TensorType.parse("i64[2]")), function=callee)])
    with pytest.raises(IndexError, match=r'(?s)in check_index.*"layer.py":5.*in call.*"train.py":41'):
        interpret(f, [np.array([0, 7])])


def test_specialize_makes_every_size_an_integer() -> None:
    inner = Builder("inner")
    x = inner.param(TensorType.parse("f32[B, T]"))
    callee = inner.build([inner.reshape(x, shape=(B * T,))])
    b = Builder("f")
    b.loc = Loc("train.py", 3)
    x = b.param(TensorType.parse("f32[B, T]"), "x")
    f = b.build([b.call(x, function=callee), b.slice(x, start=(0, 0), limit=(B, T - 1), stride=(1, 1))])
    g = specialize(f, {"B": 2, "T": 3})
    verify(g)
    assert [str(t) for t in (*g.param_types, *g.result_types)] == ["f32[2, 3]", "f32[6]", "f32[2, 2]"]
    assert g.param_names == ("x",) and g.ops[0].loc == Loc("train.py", 3)
    assert [str(t) for t in g.ops[0].attrs["function"].param_types] == ["f32[2, 3]"]
    assert specialize(g, {}) is g


def test_sizes_of_zero_and_one() -> None:
    b = Builder("f")
    x = b.param(TensorType.parse("f32[B, T]"))
    f = b.build([b.sum(b.exp(x), axes=(1,))])
    assert interpret(f, [zeros(0, 3)])[0].shape == (0,)
    assert interpret(f, [zeros(2, 0)])[0].tolist() == [0.0, 0.0]
    assert interpret(f, [zeros(1, 1)])[0].tolist() == [1.0]
