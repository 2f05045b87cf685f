"""Fusion: which operations share a kernel, which must not, and that groups always make a program."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from graphc.codegen.fuse import CONTRACT, REDUCE, fuse
from graphc.codegen.lower.lower import family
from graphc.codegen.prepare import prepare
from graphc.codegen.program import compile_function
from graphc.ir.autodiff import vjp
from graphc.ir.function import Builder, Function, Loc, Module, Value
from graphc.ir.interpret import specialize
from graphc.ir.passes import DEFAULT, run_pipeline
from graphc.ir.types import F16, F32, TensorType
from graphc.ir.verify import verify

from tests.codegen.compiled import assert_compiled, difference, execute
from tests.codegen.values import mixed, plain
from tests.equality.oracle import exact_interpret
from tests.ir.random_functions import random_function

F = TensorType.parse


def fused(f: Function) -> Module:
    return fuse(prepare(run_pipeline(f, DEFAULT))[0])


def groups(f: Function) -> list[Function]:
    """The groups of a function after optimisation. They are well-formed, and give the right bits."""
    module = fused(f)
    for g in module:
        verify(g)
    args = [plain(p.type.dtype, tuple(map(int, p.type.shape)), i) for i, p in enumerate(f.params)]
    assert_compiled(f, args)
    called = [op.attrs["function"] for op in module.entry.ops]
    assert {op.name for op in module.entry.ops} <= {"call"} and list(module)[1:] == called
    return called


def scalar(b: Builder, x: float, like: Value) -> Value:
    out: Value = b.full(b.constant(value=np.array(x).astype(like.type.dtype.numpy)), shape=like.type.shape)
    return out


def along_rows(b: Builder, v: Value, like: Value) -> Value:
    """One value a row, repeated over the last axis."""
    out: Value = b.broadcast(v, shape=like.type.shape, axes=tuple(range(like.type.rank - 1)))
    return out


def along_columns(b: Builder, v: Value, like: Value) -> Value:
    """One value a column, repeated over all rows."""
    out: Value = b.broadcast(v, shape=like.type.shape, axes=(like.type.rank - 1,))
    return out


def softmax(b: Builder, x: Value) -> Value:
    axis = x.type.rank - 1
    e = b.exp(b.sub(x, along_rows(b, b.max(x, axes=(axis,)), x)))
    out: Value = b.div(e, along_rows(b, b.sum(e, axes=(axis,)), x))
    return out


def layer_norm(b: Builder, x: Value, gain: Value, bias: Value) -> Value:
    axis, n = x.type.rank - 1, int(x.type.shape[-1])
    total = b.sum(x, axes=(axis,))
    mean = b.mul(total, scalar(b, 1 / n, total))
    centred = b.sub(x, along_rows(b, mean, x))
    square = b.sum(b.mul(centred, centred), axes=(axis,))
    scale = b.reciprocal(b.sqrt(b.add(b.mul(square, scalar(b, 1 / n, square)), scalar(b, 1e-5, square))))
    normal = b.mul(centred, along_rows(b, scale, x))
    out: Value = b.add(b.mul(normal, along_columns(b, gain, x)), along_columns(b, bias, x))
    return out


def gelu(b: Builder, x: Value) -> Value:
    half = b.mul(x, scalar(b, 0.5, x))
    out: Value = b.mul(half, b.add(b.erf(b.mul(x, scalar(b, 0.5**0.5, x))), scalar(b, 1.0, x)))
    return out


def relu(b: Builder, x: Value) -> Value:
    out: Value = b.maximum(x, scalar(b, 0.0, x))
    return out


def function(*types: str, make: Callable[..., Value | list[Value]]) -> Function:
    b = Builder("f")
    out = make(b, *[b.param(F(t)) for t in types])
    return b.build(out if isinstance(out, list) else [out])


# --------------------------------------------------------------- what shares a kernel


@pytest.mark.parametrize("shape", ["f32[9, 50]", "f32[2, 3, 4, 17]", "f16[9, 50]", "f64[1, 7]", "f32[12]"])
def test_softmax_is_one_kernel(shape: str) -> None:
    (g,) = groups(function(shape, make=softmax))
    assert family(g) == "row"


def test_log_softmax_and_cross_entropy_are_few_kernels() -> None:
    def loss(b: Builder, x: Value, target: Value) -> Value:
        p = softmax(b, x)
        picked = b.take_along(b.log(p), b.reshape(target, shape=(16, 1)), axis=1)
        return b.neg(b.sum(picked, axes=(0, 1)))

    f = function("f32[16, 10]", "i64[16]", make=loss)
    assert len(fused(f).entry.ops) <= 3
    assert_compiled(f, [plain(F32, (16, 10), 1), np.arange(16) % 10])


@pytest.mark.parametrize("shape", [(9, 50), (4, 5, 33)])
def test_layer_norm_is_one_kernel(shape: tuple[int, ...]) -> None:
    text = f"f32[{', '.join(map(str, shape))}]"
    f = function(text, f"f32[{shape[-1]}]", f"f32[{shape[-1]}]", make=layer_norm)
    (g,) = groups(f)
    assert family(g) == "row"


def test_layer_norm_gradient_is_at_most_three_kernels() -> None:
    """The input's cotangent by rows; those of gain and bias by columns. Nothing of the forward is kept."""
    f = vjp(function("f32[40, 50]", "f32[50]", "f32[50]", make=layer_norm))
    only = Function(f.name, f.params, f.ops, f.results[1:], f.param_names)
    assert len(groups(only)) <= 3
    assert len(groups(f)) <= 4


def test_softmax_gradient_is_one_kernel() -> None:
    f = vjp(function("f32[9, 50]", make=softmax))
    assert len(groups(Function(f.name, f.params, f.ops, f.results[1:], f.param_names))) == 1
    assert len(groups(f)) == 1


def test_dot_bias_gelu_is_one_kernel() -> None:
    def layer(b: Builder, x: Value, w: Value, bias: Value) -> Value:
        y = b.dot(x, w, lhs_contract=(1,), rhs_contract=(0,))
        return gelu(b, b.add(y, along_columns(b, bias, y)))

    (g,) = groups(function("f32[9, 20]", "f32[20, 33]", "f32[33]", make=layer))
    assert family(g) == "contract" and len([op for op in g.ops if op.name == "erf"]) == 1


def test_dot_with_what_is_read_again_keeps_both() -> None:
    """The product itself is a result too (a gradient reads it): still one kernel."""

    def layer(b: Builder, x: Value, w: Value) -> list[Value]:
        y = b.dot(x, w, lhs_contract=(1,), rhs_contract=(0,))
        return [y, relu(b, y)]

    assert len(groups(function("f32[9, 20]", "f32[20, 33]", make=layer))) == 1


def test_dot_residual_softmax_are_two_kernels() -> None:
    def attention(b: Builder, q: Value, k: Value, mask: Value) -> Value:
        y = b.dot(q, k, lhs_contract=(1,), rhs_contract=(1,))
        return softmax(b, b.add(b.mul(y, scalar(b, 0.125, y)), mask))

    a, c = groups(function("f32[9, 20]", "f32[17, 20]", "f32[9, 17]", make=attention))
    assert (family(a), family(c)) == ("contract", "row")


def test_conv_bias_relu_is_one_kernel() -> None:
    def layer(b: Builder, x: Value, w: Value, bias: Value) -> Value:
        y = b.conv(x, w, strides=(1, 1), padding=((1, 1), (1, 1)), lhs_dilation=(1, 1), rhs_dilation=(1, 1))
        return relu(b, b.add(y, b.broadcast(bias, shape=y.type.shape, axes=(1,))))

    (g,) = groups(function("f32[2, 3, 8, 8]", "f32[5, 3, 3, 3]", "f32[5]", make=layer))
    assert family(g) == "contract"


def test_adam_is_one_kernel() -> None:
    def adam(b: Builder, p: Value, g: Value, m: Value, v: Value, rate: Value) -> list[Value]:
        m2 = b.add(b.mul(m, scalar(b, 0.9, m)), b.mul(g, scalar(b, 0.1, g)))
        v2 = b.add(b.mul(v, scalar(b, 0.999, v)), b.mul(b.mul(g, g), scalar(b, 0.001, g)))
        step = b.div(m2, b.add(b.sqrt(v2), scalar(b, 1e-8, v2)))
        return [b.sub(p, b.mul(step, b.full(rate, shape=p.type.shape))), m2, v2]

    shape = "f32[30, 40]"
    (g,) = groups(function(shape, shape, shape, shape, "f32[]", make=adam))
    assert family(g) == "map" and len(g.results) == 3


def test_reductions_of_one_operand_share_a_sweep() -> None:
    def moments(b: Builder, x: Value) -> list[Value]:
        return [b.sum(x, axes=(1,)), b.sum(b.mul(x, x), axes=(1,)), b.max(x, axes=(1,)), b.exp(x)]

    assert len(groups(function("f32[40, 30]", make=moments))) <= 4
    f = function("f32[40, 30]", make=lambda b, x: b.sub(b.sum(b.mul(x, x), axes=(1,)), b.max(x, axes=(1,))))
    assert len(groups(f)) == 1


def test_columns_are_one_kernel_too() -> None:
    """Batch normalisation: statistics of columns and the normalised value."""

    def batch_norm(b: Builder, x: Value) -> Value:
        total = b.sum(x, axes=(0,))
        mean = b.mul(total, scalar(b, 1 / 40, total))
        centred = b.sub(x, along_columns(b, mean, x))
        square = b.sum(b.mul(centred, centred), axes=(0,))
        return b.div(centred, along_columns(b, b.sqrt(b.add(square, scalar(b, 1e-5, square))), x))

    assert len(groups(function("f32[40, 30]", make=batch_norm))) == 1


# --------------------------------------------------------------- what must not


def test_a_row_sum_at_a_transposed_position_has_a_kernel_of_its_own() -> None:
    """x[i, j] - s[j], where s[i] is the sum of row i: row i would need the sums of all rows."""
    f = function("f32[17, 17]", make=lambda b, x: b.sub(x, along_columns(b, b.sum(x, axes=(1,)), x)))
    assert len(groups(f)) == 2
    g = function("f32[17, 17]", make=lambda b, x: b.sub(x, along_rows(b, b.sum(x, axes=(1,)), x)))
    assert len(groups(g)) == 1


def test_a_row_sum_between_moved_rows_has_a_kernel_of_its_own() -> None:
    def flipped(b: Builder, x: Value) -> Value:
        return b.sub(x, along_rows(b, b.flip(b.sum(x, axes=(1,)), axes=(0,)), x))

    def transposed(b: Builder, x: Value) -> Value:
        y = b.sub(x, along_rows(b, b.sum(x, axes=(1,)), x))
        return b.add(y, b.permute(y, axes=(1, 0)))

    def shifted(b: Builder, x: Value) -> Value:
        s = b.sum(x, axes=(1,))
        s = b.concat(b.slice(s, start=(1,), limit=(17,), stride=(1,)), b.slice(s, start=(0,), limit=(1,), stride=(1,)), axis=0)
        return b.sub(x, along_rows(b, s, x))

    for make in (flipped, transposed, shifted):
        assert len(groups(function("f32[17, 17]", make=make))) >= 2, make.__name__


def test_two_products_do_not_share_a_kernel() -> None:
    def twice(b: Builder, x: Value, w: Value) -> Value:
        return b.dot(b.exp(b.dot(x, w, lhs_contract=(1,), rhs_contract=(0,))), w, lhs_contract=(1,), rhs_contract=(0,))

    for g in groups(function("f32[9, 9]", "f32[9, 9]", make=twice)):
        assert sum(op.name in CONTRACT for op in g.ops) <= 1


def test_what_costs_much_is_computed_once() -> None:
    """An exponential that is repeated 50 times, read twice, or gathered is stored; an addition need not be."""

    def repeated(b: Builder, x: Value, y: Value) -> Value:
        return b.add(y, along_columns(b, b.exp(x), y))

    def both_ways(b: Builder, x: Value) -> Value:
        e = b.exp(x)
        return b.add(e, b.permute(e, axes=(1, 0)))

    def gathered(b: Builder, x: Value, i: Value) -> Value:
        return b.gather(b.exp(x), i, axis=0)

    assert len(groups(function("f32[30]", "f32[50, 30]", make=repeated))) == 2
    assert len(groups(function("f32[17, 17]", make=both_ways))) == 2
    f = function("f32[7, 3]", "i32[40]", make=gathered)
    assert len(fused(f).entry.ops) == 2
    cheap = function("f32[30]", "f32[50, 30]", make=lambda b, x, y: b.add(y, along_columns(b, b.neg(x), y)))
    assert len(groups(cheap)) == 1


def test_work_does_not_grow_with_the_depth_of_shifted_sums() -> None:
    """x + roll(x), many times over: fused without bound it would be computed 3**n times."""

    def stencil(b: Builder, x: Value) -> Value:
        for k in range(1, 13):
            front = b.slice(x, start=(k,), limit=(40,), stride=(1,))
            x = b.add(x, b.concat(front, b.slice(x, start=(0,), limit=(k,), stride=(1,)), axis=0))
        return x

    def mirrored(b: Builder, x: Value) -> Value:
        for k in range(24):
            x = b.add(x, b.flip(x, axes=(0,)) if k % 2 else b.permute(x, axes=(1, 0)))
        return x

    assert len(groups(function("f32[40]", make=stencil))) >= 6
    assert len(groups(function("f32[9, 9]", make=mirrored))) >= 6


def test_few_long_rows_keep_to_themselves() -> None:
    """Their reduction runs on several threads, which one kernel for a whole row could not."""
    f = function("f32[2, 40000]", make=softmax)
    assert len(fused(f).entry.ops) >= 2
    assert_compiled(f, [mixed(F32, (2, 40000), 1)])


# --------------------------------------------------------------- form


def test_calls_have_the_lines_of_what_they_compute() -> None:
    b = Builder("f")
    x = b.param(F("f32[9]"))
    b.loc = Loc("train.py", 3)
    y = b.exp(x)
    b.loc = Loc("train.py", 4)
    module = fused(b.build([b.neg(y)]))
    assert module.entry.ops[0].loc == Loc("train.py", 4)
    assert [op.loc for op in module.entry.ops[0].attrs["function"].ops] == [Loc("train.py", 3), Loc("train.py", 4)]


def test_long_functions_fuse_without_recursion() -> None:
    b = Builder("long")
    x = b.param(F("f32[5, 6]"))
    for i in range(1500):
        x = (b.neg, b.exp, lambda v: b.flip(v, axes=(0,)), lambda v: b.sub(v, along_rows(b, b.max(v, axes=(1,)), v)))[i % 4](x)
    assert len(fuse(b.build([x])).entry.ops) > 1


@pytest.mark.parametrize("start", range(0, 120, 20))
def test_groups_of_random_functions(start: int) -> None:
    """No cycle of groups, every operation in its place, one domain for the reductions of a group."""
    for seed in range(start, start + 20):
        f = specialize(random_function(seed, 40), {"B": 2 + seed % 2})
        prepared, constants = prepare(run_pipeline(f, DEFAULT))
        module = fuse(prepared)
        for g in module:
            verify(g)
        assert module.entry.result_types == f.result_types
        assert len(module.entry.params) == len(f.params) + len(constants)
        for g in list(module)[1:]:
            reductions = [op for op in g.ops if op.name in REDUCE]
            assert len({op.operands[0].type.shape for op in reductions}) <= 1
            assert sum(op.name in CONTRACT for op in g.ops) <= 1
            assert not (reductions and any(op.name in CONTRACT for op in g.ops))


# Which NaN a NaN is, is not part of the bit contract, and these operations tell.
TELL_NAN = ("signbit", "copysign", "bitcast")


def check_random(seed: int, size: int) -> None:
    f = specialize(random_function(seed, size), {"B": 2 + seed % 3})
    if any(op.name in TELL_NAN for op in run_pipeline(f, ("inline",)).ops):
        return
    args = [mixed(p.type.dtype, tuple(map(int, p.type.shape)), seed + i) for i, p in enumerate(f.params)]
    try:
        expected = exact_interpret(f, args)
    except IndexError:
        with pytest.raises(IndexError):
            execute(compile_function(f, optimise=False, fused=False), args)
        return
    for options in ({}, {"optimise": False}, {"fused": False}):
        got = execute(compile_function(f, **options), args)
        wrong = [d for e, g in zip(expected, got, strict=True) if (d := difference(e, g))]
        assert not wrong, f"seed {seed}, size {size}, {options}: {wrong[0]}"


@pytest.mark.parametrize("seed", range(40))
def test_random_functions_over_the_whole_table_of_operations(seed: int) -> None:
    """Fused, unfused, unoptimised and interpreted: the same bits, or an IndexError."""
    check_random(seed, 12)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 400))
def test_more_random_functions(seed: int) -> None:
    check_random(seed, 15 + seed % 3 * 15)


def test_narrow_values_are_rounded_inside_kernels_too() -> None:
    """Fused float16 operations give the bits that separate ones give."""

    def chain(b: Builder, x: Value) -> list[Value]:
        y = b.mul(b.add(x, x), x)
        return [b.exp(y), b.sum(b.exp(y), axes=(0,))]

    f = function("f16[300]", make=chain)
    assert_compiled(f, [mixed(F16, (300,), 1)])
    assert_compiled(f, [mixed(F16, (300,), 1)], fused=False)
