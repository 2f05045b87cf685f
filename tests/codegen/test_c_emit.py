"""Kernels as C99: every operation and element type, every form of statement, random kernels; the bits of the oracle."""

from __future__ import annotations

import functools
import re

import numpy as np
import pytest
from graphc.codegen.c.c99 import emit_kernel, emit_kernels
from graphc.codegen.c.dialect import C99, CUDA, OPERATIONS
from graphc.codegen.evaluate import evaluate
from graphc.codegen.expr import MACHINE_OPS, bitcast, cast, const, fma, index, load, make, select, var
from graphc.codegen.llvm.emit import emit_kernel as emit_llvm
from graphc.codegen.llvm.target import host_target
from graphc.codegen.loops import (
    Alloc,
    Assign,
    Buffer,
    Declare,
    Grid,
    If,
    Kernel,
    Let,
    Report,
    Store,
)
from graphc.ir.types import ALL_DTYPES, BF16, BOOL, F16, F32, F64, I64

from tests.codegen import test_emit, test_emit_blocked, test_emit_operations, test_emit_random, test_transpose
from tests.codegen.c_kernels import Batch, check_simulated, collect
from tests.codegen.kernel_words import (
    BEGIN,
    END,
    ONE,
    ZERO,
    i,
    j,
    kernel,
    lane,
    loop,
    map_kernel,
    n,
    special,
    vector,
)

COUNT, WIDTH = 512, 16


def add_map(batch, make_value, dtypes, result, prepare=lambda *x: x, expected=None):
    """out[..] = make_value(loads) over special values; what it must give is computed on whole arrays."""
    sources = [Buffer(f"x{at}", d, "in") for at, d in enumerate(dtypes)]
    out = Buffer("out", result, "out")
    inputs = prepare(*[special(d, COUNT, at) for at, d in enumerate(dtypes)])
    arrays = dict(zip(sources, inputs))
    names = [var(f"x{at}", d) for at, d in enumerate(dtypes)]
    meaning = evaluate((expected or make_value)(*names), {v.data: a for v, a in zip(names, inputs)})
    wanted = {**arrays, out: np.broadcast_to(meaning, (COUNT,)).astype(result.numpy, copy=True)}
    arrays[out] = np.zeros(COUNT, result.numpy)
    turns = COUNT // WIDTH
    batch.add(map_kernel(make_value, sources, out, WIDTH), arrays, {"n": turns}, 0, turns, (wanted, [0, 0]))


@functools.cache
def operations() -> Batch:
    """Every machine operation of every element type, every cast and bitcast, constants and selections."""
    batch = Batch()
    for op, dtype in test_emit_operations.CASES:
        arity, kind, _ = MACHINE_OPS[op]
        result = BOOL if kind == "bool" else dtype
        prepare = test_emit_operations.guarded(op, dtype)

        def plain(*x, op=op, result=result):
            return make(op, result, x)

        def widened(*x, op=op, kind=kind, dtype=dtype):
            y = make(op, BOOL if kind == "bool" else F32, tuple(cast(v, F32) for v in x))
            return y if kind == "bool" else cast(y, dtype)

        narrow = dtype in (F16, BF16)
        add_map(batch, plain, [dtype] * arity, result, prepare, widened if narrow else None)
    for a in ALL_DTYPES:
        for b in ALL_DTYPES:
            add_map(batch, lambda x, b=b: make("cast", b, (x,)), [a], b)
            if b is not a and b.bits == a.bits:
                add_map(batch, lambda x, b=b: bitcast(x, b), [a], b)
        for value in special(a, 24)[:6]:
            literal = make("const", a, (), int(value.view(f"u{a.itemsize}"))) if a.is_float else const(a, value)
            add_map(batch, lambda c, x, e=literal: select(c, x, e), [BOOL, a], a)
    add_map(batch, lambda a, b, c: fma(a, b, c) + fma(c, b, a) * a, [F64] * 3, F64)
    return batch


@functools.cache
def statements() -> Batch:
    """The kernels of the tests of the LLVM emitter: masks, registers, strides, reports, reductions, transposes."""
    batch = Batch()
    tests = [getattr(test_emit, name) for name in dir(test_emit) if name.startswith("test_")]
    collect(batch, test_emit, [t for t in tests if "assert_same" in t.__code__.co_names])
    collect(batch, test_emit_blocked, [test_emit_blocked.test_blocked_product_is_right])
    collect(batch, test_transpose, [test_transpose.test_blocks])
    return batch


def random_kernels(first: int, count: int) -> Batch:
    """Kernels of test_emit_random.py."""
    batch = Batch()

    def add(kernel, arrays, extents, begin, end, targets):
        batch.add(kernel, arrays, extents, begin, end)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_emit_random, "assert_same", add)
        for seed in range(first, first + count):
            test_emit_random.check(seed)
    return batch


def test_divisions_that_no_lane_asks_for_are_not_made():
    z = Buffer("z", I64, "inout")
    quotient = Let(var("q"), make("idiv", I64, (index(100), n)))
    varying = Let(var("r"), make("irem", I64, (index(100), lane * n)))
    masked = If((lane < n) & (n > ZERO), (quotient, varying, loop(j, index(2), Store(z, lane + j, var("q") + var("r")))))
    batch, run = Batch(), kernel([z], ["n"], vector(4, If(lane > ZERO, (masked,))))
    for count in (0, 3):
        batch.add(run, {z: np.zeros(8, np.int64)}, {"n": count}, 0, 1, None if count else ({z: np.zeros(8, np.int64)}, [0, 0]))
    batch.check("-O0")
    batch.check("-O3")


def test_the_table_has_every_operation():
    for op, (_, _, kinds) in MACHINE_OPS.items():
        for dtype in ALL_DTYPES:
            if dtype.kind in kinds:
                short = "f32" if dtype in (F16, BF16) else dtype.short
                assert short in OPERATIONS[op] or dtype.kind in OPERATIONS[op], f"{op} of {dtype} is missing"
    assert OPERATIONS.keys() == MACHINE_OPS.keys()
    for dialect in (C99, CUDA):
        assert dialect.types.keys() == {d.short for d in ALL_DTYPES}


def every(k):
    return lambda number: number % k == 0


def test_operations():
    operations().check("-O0")
    operations().check("-O3", every(16))


def test_statements():
    statements().check("-O0", every(2))
    statements().check("-O3", every(20))


def test_random_kernels():
    batch = random_kernels(0, 24)
    batch.check("-O0")
    batch.check("-O3", every(6))


@pytest.mark.slow
def test_everything_optimised():
    operations().check("-O3")
    statements().check("-O3")
    statements().check("-O1")


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 5000, 250))
def test_many_random_kernels(first):
    batch = random_kernels(first, 250)
    batch.check("-O0")
    batch.check("-O2", every(5))
    check_simulated(batch, True, every(2))


# Text


def body(text):
    """The lines between a function's braces, without its arguments."""
    lines = text[text.index("{\n") + 2 : text.rindex("}")].splitlines()
    return "\n".join(x for x in lines if "args[" not in x)


X, Y, P = Buffer("x", F32, "in"), Buffer("y", F32, "out"), Buffer("p", I64, "in")


def test_text_of_a_map():
    run = kernel([X, Y], ["n"], loop(i, END, vector(8, Store(Y, i * 8 + lane, load(X, i * 8 + lane) * const(F32, 2))), start=BEGIN))
    assert emit_kernel(run, "twice") == (
        "// twice\n"
        "void k(const int64_t *args, int64_t begin, int64_t end, int64_t *error) {\n"
        "    const float *restrict x = (const float *)(intptr_t)args[0];\n"
        "    float *restrict y = (float *)(intptr_t)args[1];\n"
        "    for (int64_t i = begin; i < end; ++i) {\n"
        "        const int64_t t0 = i * 8;\n"
        "        for (int lane = 0; lane < 8; ++lane) {\n"
        "            y[t0 + lane] = x[t0 + lane] * 2.0f;\n"
        "        }\n"
        "    }\n"
        "}\n"
    )


def test_text_of_runs_that_a_reduction_cuts():
    mean = test_emit.lanes("add", load(X, lane))
    region = vector(4, Store(Y, lane, load(X, lane) - mean))
    assert body(emit_kernel(kernel([X, Y], [], region))) == (
        "    float t0[4];\n"
        "    for (int lane = 0; lane < 4; ++lane) {\n"
        "        t0[lane] = x[lane];\n"
        "    }\n"
        "    for (int half = 2; half > 0; half /= 2) {\n"
        "        for (int lane = 0; lane < half; ++lane) {\n"
        "            t0[lane] = t0[lane] + t0[lane + half];\n"
        "        }\n"
        "    }\n"
        "    for (int lane = 0; lane < 4; ++lane) {\n"
        "        y[lane] = x[lane] - t0[0];\n"
        "    }\n"
    ).rstrip("\n")


def test_stores_that_other_lanes_read_end_a_run():
    z = Buffer("z", F32, "inout")
    region = vector(4, Store(z, lane + 1, load(z, lane)), Store(Y, lane, load(z, lane)))
    text = body(emit_kernel(kernel([z, Y], [], region)))
    assert re.findall(r"for \(int lane", text) == ["for (int lane"] * 3
    assert text.index("value[lane] = z[lane]") < text.index("z[lane + 1] = value[lane]") < text.index("y[lane] = z[lane]")


def test_parentheses_only_where_needed():
    a, b, c = (load(X, ONE * at) for at in (1, 2, 3))
    flags = make("or", BOOL, (make("and", BOOL, (a < b, b < c)), ~(c < a)))
    text = emit_kernel(kernel([X, Y], [], Store(Y, ZERO, select(flags, a * (b + c) - (a - b), -(a / b)))))
    assert "y[0] = (t0 < t1 && t1 < t2) || !(t2 < t0) ?" in text
    assert "t0 * (t1 + t2) - (t0 - t1) : -(t0 / t1);" in text


def test_unused_names_and_buffers_are_left_out():
    run = kernel([X, P, Y], ["n", "m"], Let(var("a"), load(P, n)), Alloc(Buffer("held", F32, "local"), 4), Store(Y, ZERO, load(X, n)))
    text = emit_kernel(run)
    assert body(text).strip() == "y[0] = x[n];" and "args[1]" not in text


def test_only_what_is_called_stands_in_the_prelude():
    h = Buffer("h", F16, "in")
    text = emit_kernels([kernel([h, Y], [], Store(Y, ZERO, cast(load(h, ZERO), F32)))])
    assert "half_to_float(unsigned short x)" in text and "float_to_half" not in text
    assert text.startswith("#include <math.h>\n#include <stdint.h>\n")


# Refusals


def test_kernels_with_a_grid_are_refused():
    run = Kernel("dev", (Y,), (), ONE, ONE, (Store(Y, ZERO, const(F32, 1)),), grid=Grid(ONE, 32))
    with pytest.raises(TypeError, match="kernel dev has a grid: it is scheduled for a device"):
        emit_kernel(run)
    with pytest.raises(TypeError, match="kernel dev has a grid: it is scheduled for a device"):
        emit_llvm(run, host_target())


@pytest.mark.parametrize(
    "statement, message",
    [
        (vector(4, vector(4, Store(Y, lane, const(F32, 0)))), "nest|stand in a vector region"),
        (vector(3, Store(Y, lane, const(F32, 0))), "power of two"),
        (Store(Y, ZERO, test_emit.lanes("add", load(X, ZERO))), "outside a vector region"),
        (loop(j, n, Store(Y, j, const(F32, 0)), unroll=True), "not literals"),
        (Report(load(X, ZERO) < const(F32, 1), 3, load(X, ZERO)), "site 3 gives a f32"),
    ],
)
def test_rules_of_the_loop_language(statement, message):
    with pytest.raises(TypeError, match=message):
        emit_kernel(kernel([X, Y], ["n"], statement))


def test_uniform_registers_are_not_assigned_lane_by_lane():
    r = var("r", F32)
    declared = Declare(r, const(F32, 0))
    with pytest.raises(TypeError, match="holds one value"):
        emit_kernel(kernel([X, Y], [], declared, vector(4, Assign(r, load(X, lane))), Store(Y, ZERO, r)))
    masked = vector(4, If(load(X, lane) < const(F32, 0), (Assign(r, const(F32, 1)),)))
    with pytest.raises(TypeError, match="under a condition that varies"):
        emit_kernel(kernel([X, Y], [], declared, masked, Store(Y, ZERO, r)))


def test_unknown_names_are_refused():
    with pytest.raises(KeyError, match="the variable q of a kernel is used where it is not in scope"):
        emit_kernel(kernel([Y], [], Store(Y, var("q"), const(F32, 0))))


def test_deep_expressions_do_not_recurse():
    e = load(X, ZERO)
    for _ in range(3000):
        e = e + const(F32, 1)
    at = n
    for _ in range(3000):
        at = at * n + ONE
    text = emit_kernel(kernel([X, Y], ["n"], If(at < n, (Store(Y, at, e),))))
    assert text.count("1.0f") == 3000 and text.count("* n") == 3000


