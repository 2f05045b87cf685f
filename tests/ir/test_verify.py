"""The verifier accepts what a builder makes, and draws what is wrong with anything else."""

from __future__ import annotations

import textwrap

import pytest
from graphc.ir.function import Function, Loc, Operation, Value
from graphc.ir.text import parse_function
from graphc.ir.types import TensorType
from graphc.ir.verify import VerifyError, verify
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ir.random_functions import random_function

F4, F5 = TensorType.parse("f32[4]"), TensorType.parse("f32[5]")


def drawn(function: Function) -> str:
    with pytest.raises(VerifyError) as caught:
        verify(function)
    assert isinstance(caught.value, ValueError)
    return str(caught.value)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_random_functions_pass(seed: int) -> None:
    verify(random_function(seed))


def test_the_drawing() -> None:
    x, y, z = Value(F4), Value(F4), Value(F5)
    ops = [
        Operation("exp", [x], {}, [y], Loc("train.py", 3)),
        Operation("add", [x, y], {}, [z], Loc("train.py", 4)),
    ]
    assert drawn(Function("main", [x], ops, [z], ["x"])) == textwrap.dedent(
        """\
        @main is not well formed: result 0 of add is f32[4], f32[5] is stated
        func @main(%x: f32[4]) -> (f32[5]) {
          %0: f32[4] = exp %x loc("train.py":3)
          %1: f32[5] = add %x, %0 loc("train.py":4)
                       ^^^ here: result 0 of add is f32[4], f32[5] is stated
          return %1
        }"""
    )


def test_error_holds_function_and_operation() -> None:
    x = Value(F4)
    op = Operation("exp", [x], {}, [Value(F5)])
    f = Function("main", [x], [op], [x])
    with pytest.raises(VerifyError) as caught:
        verify(f)
    assert caught.value.function is f and caught.value.operation is op
    assert caught.value.rule == "result 0 of exp is f32[4], f32[5] is stated"


def broken(*ops: Operation, params: list[Value], results: list[Value]) -> Function:
    return Function("f", params, ops, results)


def test_operand_without_definition() -> None:
    x, y = Value(F4), Value(F4)
    message = drawn(broken(Operation("exp", [Value(F4)], {}, [y]), params=[x], results=[y]))
    assert "operand 0 of exp is used but defined nowhere in the function" in message
    assert "%0: f32[4] = exp %undefined\n               ^^^ here: " in message


def test_operand_before_its_definition() -> None:
    x, y, z = Value(F4), Value(F4), Value(F4)
    ops = [Operation("add", [x, z], {}, [y]), Operation("exp", [x], {}, [z])]
    assert "operand 1 of add is used before its definition" in drawn(broken(*ops, params=[x], results=[y]))


def test_second_definition() -> None:
    x, y = Value(F4), Value(F4)
    ops = [Operation("exp", [x], {}, [y]), Operation("neg", [x], {}, [y])]
    assert "a result of neg is defined a second time" in drawn(broken(*ops, params=[x], results=[y]))
    assert "a result of neg is defined a second time" in drawn(
        broken(Operation("neg", [x], {}, [x]), params=[x], results=[x])
    )


def test_result_without_definition() -> None:
    message = drawn(broken(params=[], results=[Value(F4)]))
    assert "  return %undefined\n  ^^^ here: result 0 is not defined in the function" in message


def test_parameters() -> None:
    x = Value(F4)
    assert "one value stands twice among the parameters" in drawn(Function("f", [x, x], [], [x]))
    message = drawn(Function("f", [x], [], [x], ["a", "b"]))
    assert "1 parameters have 2 names" in message and "\n     ^^^ here: " in message


def test_unknown_operation() -> None:
    x, y = Value(F4), Value(F4)
    message = drawn(broken(Operation("nog", [x], {}, [y]), params=[x], results=[y]))
    assert "there is no operation 'nog'; did you mean" in message


def test_attributes_must_be_complete() -> None:
    x, y, z = (
        Value(TensorType.parse("f32[2, 3]")),
        Value(TensorType.parse("f32[3, 4]")),
        Value(TensorType.parse("f32[2, 4]")),
    )
    contract = {"lhs_contract": (1,), "rhs_contract": (0,)}
    unfinished = broken(Operation("dot", [x, y], contract, [z]), params=[x, y], results=[z])
    assert "dot lacks the attribute lhs_batch (default ())" in drawn(unfinished)
    missing = broken(Operation("dot", [x, y], {}, [z]), params=[x, y], results=[z])
    assert "dot needs the attribute 'lhs_contract'" in drawn(missing)
    unknown = broken(Operation("exp", [x], {"base": 2}, [Value(x.type)]), params=[x], results=[x])
    assert "exp has no attribute 'base'" in drawn(unknown)


def test_type_rules() -> None:
    x, y, z = Value(F4), Value(F5), Value(F4)
    message = drawn(broken(Operation("add", [x, y], {}, [z]), params=[x, y], results=[z]))
    assert "add(f32[4], f32[5]): operands must have the same shape" in message
    # A rule that trips over an attribute it does not expect is reported, not passed on.
    odd = Operation("slice", [x], {"start": None, "limit": 3, "stride": "a"}, [z])
    assert "slice" in drawn(broken(odd, params=[x], results=[z]))
    two = Operation("exp", [x], {}, [z, Value(F4)])
    assert "exp has 1 results, 2 are stated" in drawn(broken(two, params=[x], results=[z]))
    none = Operation("exp", [x], {}, [])
    assert "  exp %p0\n  ^^^ here: exp has 1 results, 0 are stated" in drawn(
        broken(none, params=[x], results=[x])
    )


def test_functions_inside_are_verified() -> None:
    x, y = Value(F4), Value(F4)
    inner = Function("inner", [x], [Operation("exp", [x], {}, [Value(F5)])], [x], ["x"])
    outer = Function("outer", [y], [Operation("call", [y], {"function": inner, "noinline": False}, [Value(F4)])], [y], ["y"])
    message = drawn(outer)
    assert message.startswith("@inner is not well formed: result 0 of exp")
    assert "func @inner(" in message and "@outer" not in message


def test_long_functions_are_cut_around_the_place() -> None:
    x = v = Value(F4)
    ops = []
    for i in range(1000):
        y = Value(F5 if i == 500 else F4)
        ops.append(Operation("exp" if i != 501 else "neg", [v], {}, [y], Loc("a.py", i)))
        v = y if i != 500 else x
    lines = drawn(Function("f", [x], ops, [v], ["x"])).splitlines()
    assert len(lines) < 25
    assert lines[1] == "func @f(%x: f32[4]) -> (f32[4]) {"
    assert any("... (" in line for line in lines)
    mark = next(i for i, line in enumerate(lines) if "^^^ here" in line)
    assert lines[mark - 1].startswith("  %500: f32[5] = exp")


def test_parsed_functions_pass() -> None:
    verify(parse_function("func @f(%x: f32[B, 4]) -> (f32[B]) { %0 = sum %x {axes=[1]} return %0 }"))
