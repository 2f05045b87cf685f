"""Programs: what a function may look like, its errors at run time, and which kernels programs share."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from graphc.codegen import kernels
from graphc.codegen.literal import SHORT_ROW
from graphc.codegen.program import compile_function
from graphc.ir.function import Builder, Function, Loc, Value
from graphc.ir.registry import lookup
from graphc.ir.types import ALL_DTYPES, F32, I8, I32, I64, U8, U64, TensorType

from tests.codegen.compiled import Array, assert_compiled, execute, run
from tests.codegen.values import mixed, plain

F = TensorType.parse


def both_ways(f: Function, args: list[Array]) -> None:
    for options in ({}, {"optimise": False}, {"fused": False}):
        assert_compiled(f, args, **options)


# --------------------------------------------------------------- functions of unusual form


def test_results_that_are_parameters() -> None:
    b = Builder("same")
    x, y = b.param(F("f32[3, 5]")), b.param(F("i8[]"))
    both_ways(b.build([x, y, x]), [mixed(F32, (3, 5), 1), np.array(-7, np.int8)])


def test_results_returned_twice() -> None:
    b = Builder("twice")
    x = b.param(F("f32[40]"))
    y, z = b.exp(x), b.sum(x, axes=(0,))
    both_ways(b.build([y, z, y, x, z, y]), [mixed(F32, (40,), 1)])


def test_unused_parameters_and_results() -> None:
    b = Builder("unused")
    x, _, y = b.param(F("f32[4, 6]")), b.param(F("f64[1000000]")), b.param(F("f32[4, 6]"))
    b.exp(y)
    values, index = b.max_pool(x, window=(2, 2), strides=(2, 2), padding=((0, 0), (0, 0)), dilation=(1, 1))
    args = [mixed(F32, (4, 6), 1), np.zeros(1000000), mixed(F32, (4, 6), 2)]
    both_ways(b.build([index]), args)
    both_ways(b.build([b.neg(values)]), args)


def test_functions_without_operations_or_parameters_or_results() -> None:
    b = Builder("nothing")
    assert run(b.build([])) == []
    b = Builder("no_results")
    b.exp(b.param(F("f32[3]")))
    assert run(b.build([]), np.zeros(3, np.float32)) == []
    b = Builder("no_parameters")
    both_ways(b.build([b.iota(shape=(3, 7), axis=1, dtype=I64), b.constant(value=np.arange(5))]), [])


@pytest.mark.parametrize("d", ALL_DTYPES, ids=str)
def test_large_constants(d: Any) -> None:
    """Read from memory of the program's own; equal ones once."""
    values = mixed(d, (7, 300), 1)
    b = Builder("constants")
    x = b.param(TensorType(d, (7, 300)))
    held, again = b.constant(value=values), b.constant(value=values.copy())
    other = b.constant(value=values[:, ::-1].copy())
    f = b.build([b.eq(x, held), b.permute(again, axes=(1, 0)), b.eq(x, other), held])
    args = [mixed(d, (7, 300), 2)]
    both_ways(f, args)
    module = compile_function(f).module
    assert len(module.entry.params) == 3


def test_empty_values_between_operations() -> None:
    b = Builder("empty")
    x = b.param(F("f32[4, 0]"))
    total = b.sum(x, axes=(1,))
    y = b.concat(b.exp(x), b.reshape(total, shape=(4, 1)), axis=1)
    both_ways(b.build([y, x, b.max(x, axes=(1,)), b.flip(x, axes=(0,))]), [np.zeros((4, 0), np.float32)])


def test_long_chains_and_wide_functions() -> None:
    b = Builder("chain")
    x = b.param(F("f32[33]"))
    one = b.full(b.constant(value=np.array(1.25, np.float32)), shape=(33,))
    values = [x]
    for i in range(400):
        values.append(b.emit(("add", "mul", "sub", "maximum")[i % 4], values[-1], values[i // 2] if i % 3 else one))
    both_ways(b.build([values[-1], *values[1::40]]), [plain(F32, (33,), 1)])
    b = Builder("wide")
    params = [b.param(F("f32[9]")) for _ in range(60)]
    total = params[0]
    for p in params[1:]:
        total = b.add(total, p)
    both_ways(b.build([total, *(b.neg(p) for p in params)]), [plain(F32, (9,), i) for i in range(60)])


def test_inputs_may_be_anywhere_in_memory() -> None:
    """Only the alignment of an element is asked for."""
    f = one_op("exp", "f32[1000]")
    program = compile_function(f)
    block = np.zeros(2003, np.float32)
    block[1:1001] = plain(F32, (1000,), 1)
    program.run([block[1:].ctypes.data], [block[1002:].ctypes.data])
    assert (block[1002:2002] == run(f, block[1:1001])[0]).all() and block[2002] == 0 == block[1001]


def one_op(name: str, *types: str, **attrs: Any) -> Function:
    b = Builder(name)
    return b.build(b.emit_op(name, *[b.param(F(t)) for t in types], **attrs).results)


# --------------------------------------------------------------- indices out of range

LOC = Loc("train.py", 41)


def failing(name: str, index: Array, fuse: bool = False) -> tuple[Function, list[Array]]:
    """`name` over an axis of 7 with the given indices; `fuse`: into an elementwise consumer."""
    b = Builder(name)
    i = b.param(TensorType(I32 if index.dtype == np.int32 else I64 if index.dtype == np.int64 else U64, index.shape))
    b.loc = LOC
    if name == "check_index":
        out = b.check_index(i, size=7)
        args: list[Array] = [index]
    else:
        x = b.param(F("f32[7]"))
        args = [index, plain(F32, (7,), 1)]
        operands = [x, i]
        if name not in ("gather", "take_along"):
            operands.append(b.param(TensorType(F32, index.shape)))
            args.append(plain(F32, index.shape, 2))
        out = b.emit(name, *operands, axis=0)
    b.loc = Loc("train.py", 99)
    return b.build([b.neg(out) if fuse else out]), args


INDEXING = ("gather", "take_along", "scatter", "scatter_add", "put_along", "put_along_add", "check_index")


@pytest.mark.parametrize("name", INDEXING)
@pytest.mark.parametrize("bad", [7, -8, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("place", [0, 16, 39])
def test_an_index_out_of_range_names_operation_line_and_value(name: str, bad: int, place: int) -> None:
    index = np.arange(40, dtype=np.int32) % 14 - 7
    index[place] = bad
    for fuse in (False, True):
        f, args = failing(name, index, fuse)
        program = compile_function(f)
        with pytest.raises(IndexError) as error:
            execute(program, args)
        what = "a dimension" if name == "check_index" else "axis 0"
        assert str(error.value) == (
            f"{name} at train.py:41: index {bad} is out of range for {what} of size 7; it must be in [-7, 7)"
        )
        # The program works on: the error is gone with the next run.
        args[0] = np.arange(40, dtype=np.int32) % 7
        assert_compiled(f, args)
        execute(program, args)


@pytest.mark.parametrize("name", INDEXING)
def test_an_unsigned_index_never_counts_from_the_end(name: str) -> None:
    index = np.arange(5, dtype=np.uint64)
    index[3] = 2**64 - 1
    f, args = failing(name, index)
    with pytest.raises(IndexError, match=rf"{name} at train\.py:41: index \d+ is out of range"):
        execute(compile_function(f), args)


def test_the_first_of_several_indexing_operations_is_named() -> None:
    b = Builder("lookups")
    x, i, j = b.param(F("f32[7]")), b.param(F("i32[3]")), b.param(F("i32[3]"))
    b.loc = Loc("a.py", 1)
    first = b.gather(x, i, axis=0)
    b.loc = Loc("b.py", 2)
    second = b.gather(x, j, axis=0)
    f = b.build([b.add(first, second)])
    good, bad = np.array([0, 1, -7], np.int32), np.array([0, 100, 0], np.int32)
    for arrays, where in (([good, bad], "b.py:2"), ([bad, good], "a.py:1")):
        with pytest.raises(IndexError, match=re.escape(f"gather at {where}: index 100 ")):
            run(f, plain(F32, (7,), 1), *arrays)


def test_an_operation_without_a_line_is_named_all_the_same() -> None:
    f = one_op("gather", "f32[3]", "i64[2]", axis=0)
    with pytest.raises(IndexError, match=r"^gather: index 5 is out of range for axis 0 of size 3; it must be in \[-3, 3\)$"):
        run(f, np.zeros(3, np.float32), np.array([1, 5]))


def test_the_same_kernel_names_each_callers_line() -> None:
    for line in (3, 4):
        b = Builder("g")
        x, i = b.param(F("f32[3]")), b.param(F("i64[2]"))
        b.loc = Loc("model.py", line)
        with pytest.raises(IndexError, match=f"model.py:{line}: index -4"):
            run(b.build([b.gather(x, i, axis=0)]), np.zeros(3, np.float32), np.array([1, -4]))


# --------------------------------------------------------------- kernels serve all shapes


def compiled_for(functions: list[Function], inputs: Callable[[Function], list[Array]]) -> int:
    """How many groups the functions compile that no earlier one has; they give the right bits."""
    before = set(kernels._memory)
    for f in functions:
        assert_compiled(f, inputs(f))
    return len(set(kernels._memory) - before)


def _inputs(f: Function) -> list[Array]:
    return [plain(p.type.dtype, tuple(int(d) for d in p.type.shape), i) for i, p in enumerate(f.params)]


RANKS = [(n,) for n in (2, 5, 16, 33, 1000)] + [(2, 3), (5, 5), (33, 17), (100, 3), (16, 16), (4, 4, 4)]
MORE = [*RANKS, (2, 3, 5), (8, 1, 7), (2, 3, 4, 5), (1, 6, 1, 9), (2, 2, 2, 2), (3, 100), (64, 31), (9, 9), (7, 5, 3, 2)]


@pytest.fixture(autouse=True)
def nothing_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_memory", {})


def _longer(make: Callable[[tuple[int, ...]], Function]) -> Callable[[tuple[int, ...]], Function]:
    """Rows beyond the length up to which it is literal."""
    return lambda shape: make((*shape[:-1], shape[-1] + SHORT_ROW))


def _row_reduction(shape: tuple[int, ...]) -> Function:
    b = Builder("row_sum")
    return b.build([b.sum(b.param(TensorType(F32, shape)), axes=(len(shape) - 1,))])


def _softmax(shape: tuple[int, ...]) -> Function:
    b = Builder("softmax")
    x = b.param(TensorType(F32, shape))
    axis, kept = len(shape) - 1, tuple(range(len(shape) - 1))

    def wide(v: Value) -> Value:
        out: Value = b.broadcast(v, shape=shape, axes=kept)
        return out

    e = b.exp(b.sub(x, wide(b.max(x, axes=(axis,)))))
    return b.build([b.div(e, wide(b.sum(e, axes=(axis,))))])


def _same_shape(name: str) -> Callable[[tuple[int, ...]], Function]:
    def make(shape: tuple[int, ...]) -> Function:
        text = f"f32[{', '.join(map(str, shape))}]"
        return one_op(name, text, text)

    return make


def _bias(shape: tuple[int, ...]) -> Function:
    b = Builder("bias")
    x, y = b.param(TensorType(F32, shape)), b.param(TensorType(F32, shape[-1:]))
    return b.build([b.add(x, b.broadcast(y, shape=shape, axes=(len(shape) - 1,)))])


def _dot(shape: tuple[int, ...]) -> Function:
    b = Builder("dot")
    x, w = b.param(TensorType(F32, shape)), b.param(TensorType(F32, (shape[-1], 8 + shape[0])))
    return b.build([b.dot(x, w, lhs_contract=(len(shape) - 1,), rhs_contract=(0,))])


def _transposed(shape: tuple[int, ...]) -> Function:
    b = Builder("transposed")
    x = b.param(TensorType(F32, shape))
    return b.build([b.exp(b.permute(x, axes=(*range(1, len(shape)), 0)))])


@pytest.mark.parametrize(
    "make, most",
    [(_same_shape("add"), 1), (_longer(_row_reduction), 3), (_longer(_softmax), 3), (_bias, 3), (_transposed, 5)],
    ids=["add", "sum", "softmax", "bias", "transposed"],
)
def test_a_kernel_serves_many_shapes(make: Callable[[tuple[int, ...]], Function], most: int) -> None:
    assert len(MORE) == 20
    assert compiled_for([make(s) for s in MORE], _inputs) <= most


def test_a_kernel_of_short_rows_serves_any_number_of_them() -> None:
    shapes = [(rows, length) for rows in (17, 33, 100, 1000, 1001) for length in (7, 10)]
    assert compiled_for([_softmax(s) for s in shapes], _inputs) == 2


def test_a_known_kernel_is_not_compiled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    f = _softmax((3, 117))
    run(f, *_inputs(f))
    monkeypatch.setattr(kernels, "_from_disk_or_compile", lambda *args: pytest.fail("compiled again"))
    b = Builder("other_name")
    g = _softmax((40, 109))
    x = b.param(g.param_types[0], "other")
    b.loc = Loc("elsewhere.py", 1)
    run(b.build(b.inline(g, x)), *_inputs(g))


def test_every_layer_of_a_stack_is_the_same_kernel() -> None:
    """The 64th identical layer compiles nothing."""

    def stack(depth: int) -> Function:
        b = Builder("stack")
        x = b.param(F("f32[16, 24]"))
        for _ in range(depth):
            w, bias = b.param(F("f32[24, 24]")), b.param(F("f32[24]"))
            x = b.dot(x, w, lhs_contract=(1,), rhs_contract=(0,))
            x = b.tanh(b.add(x, b.broadcast(bias, shape=(16, 24), axes=(1,))))
        return b.build([x])

    for depth in (1, 64):
        compile_function(stack(depth))
    assert len(kernels._memory) == 1


def test_python_numbers_are_not_part_of_kernels() -> None:
    """A step with another learning rate, given as an input, is the same kernel."""
    b = Builder("sgd")
    p, g, rate = b.param(F("f32[100]")), b.param(F("f32[100]")), b.param(F("f32[]"))
    f = b.build([b.sub(p, b.mul(g, b.full(rate, shape=(100,))))])
    args = [plain(F32, (100,), 1), plain(F32, (100,), 2)]
    for value in (0.1, 0.2):
        assert_compiled(f, [*args, np.array(value, np.float32)])
    assert len(kernels._memory) == 1


def test_all_dtypes_have_their_own_kernels() -> None:
    assert lookup("add").family == "elementwise"
    for d in (I8, U8):
        x = plain(d, (9,), 1)
        assert_compiled(one_op("add", f"{d}[9]", f"{d}[9]"), [x, x])
    assert len(kernels._memory) == 2
