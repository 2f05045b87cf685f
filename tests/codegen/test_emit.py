"""The emitter against the interpreter of the loop language, to the bit, for AVX2 and for the host."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from graphc.codegen.expr import (
    binary,
    cast,
    const,
    equal,
    fma,
    index,
    load,
    var,
)
from graphc.codegen.llvm.emit import emit_kernel
from graphc.codegen.loops import (
    Alloc,
    Assign,
    Buffer,
    Declare,
    For,
    If,
    Let,
    Report,
    Store,
)
from graphc.ir.types import (
    ALL_DTYPES,
    BOOL,
    F16,
    F32,
    F64,
    I8,
    I32,
    I64,
    U8,
    U64,
)

from tests.codegen.kernel_oracle import assert_same, execute, lanes
from tests.codegen.kernel_words import (
    BEGIN,
    END,
    HOST,
    ONE,
    TARGETS,
    ZERO,
    i,
    j,
    k,
    kernel,
    lane,
    loop,
    n,
    special,
    vector,
)


@pytest.mark.parametrize("width", [8, 16, 32, 64])
@pytest.mark.parametrize("op", ["add", "mul", "max", "min", "or", "and"])
def test_lanes_are_combined_by_the_tree(op, width):
    for dtype in (BOOL, I8, I32, U64, F32, F64):
        if (op in ("or", "and")) == (dtype.kind == "f") or (dtype is BOOL and op not in ("or", "and")):
            continue
        x, out = Buffer("x", dtype, "in"), Buffer("out", dtype, "out")
        body = loop(i, END, vector(width, Store(out, i, lanes(op, load(x, i * width + lane)))), start=BEGIN)
        arrays = {x: special(dtype, 16 * width), out: np.zeros(16, dtype.numpy)}
        assert_same(kernel([x, out], ["n"], body), arrays, {"n": 16}, 0, 16, TARGETS)


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_masked_tail_touches_nothing_outside(dtype):
    """Loads and stores of the last vector stop at n: the bytes after it keep their value."""
    x, out = Buffer("x", dtype, "in"), Buffer("out", dtype, "out")
    body = loop(j, n, vector(32, If(j + lane < n, (Store(out, j + lane, load(x, j + lane)),))), step=index(32))
    for count in (1, 31, 33, 64, 70):
        arrays = {x: special(dtype, count), out: special(dtype, count + 40, 1)}
        assert_same(kernel([x, out], ["n"], body), arrays, {"n": count}, 0, 1, TARGETS)


@pytest.mark.parametrize("test", ["lt", "le", "gt", "ge"])
@pytest.mark.parametrize("swapped", [False, True])
def test_every_form_of_bound(test, swapped):
    out = Buffer("out", I32, "inout")
    for bound in (-5, 0, 7, 31, 32, 100):
        at, b = j + lane, n
        cond = binary(test, b, at) if swapped else binary(test, at, b)
        body = loop(j, index(64), vector(32, If(cond, (Store(out, j + lane, const(I32, 1)),), (
            Store(out, j + lane, const(I32, 2)),))), step=index(32))
        assert_same(kernel([out], ["n"], body), {out: np.zeros(64, np.int32)}, {"n": bound}, 0, 1, TARGETS)


@pytest.mark.parametrize("dtype", [BOOL, U8, F16, I32, F32, F64], ids=str)
@pytest.mark.parametrize("stride", [-3, -1, 0, 1, 2, 3, 5])
def test_strided_access(dtype, stride):
    """Contiguous, reversed, broadcast and gathered; alone and under a mask."""
    x, out, out2 = Buffer("x", dtype, "in"), Buffer("out", dtype, "out"), Buffer("out2", dtype, "inout")
    at = lane * stride + (max(0, -stride) * 31 + i)
    body = vector(
        32,
        Store(out, lane, load(x, at)),
        Store(out2, at, load(x, at)),
        If(lane < n, (Store(out, lane + 32, load(x, at + 1)), Store(out2, at + 1, load(x, at + 2)))),
    )
    size = 32 * abs(stride) + 8
    arrays = {x: special(dtype, size), out: np.zeros(64, dtype.numpy), out2: np.zeros(size, dtype.numpy)}
    run = kernel([x, out, out2], ["n"], loop(i, index(2), body))
    assert_same(run, arrays, {"n": 19}, 0, 1, TARGETS)


def test_gather_scatter_by_loaded_index():
    """The index is data; where lanes scatter to one place, the last wins."""
    x, at, out = Buffer("x", F32, "in"), Buffer("at", I64, "in"), Buffer("out", F32, "inout")
    body = vector(
        32,
        Let(var("p"), load(at, lane)),
        If(load(x, var("p")) > 0.0, (Store(out, var("p"), load(x, lane)),)),
        Store(out, var("p") + 64, load(x, var("p"))),
    )
    rng = np.random.default_rng(1)
    arrays = {x: special(F32, 32), at: rng.integers(0, 20, 32), out: np.zeros(128, np.float32)}
    assert_same(kernel([x, at, out], [], body), arrays, {}, 0, 1, TARGETS)


def test_masks_nest_and_invert():
    x, out = Buffer("x", F32, "in"), Buffer("out", F32, "inout")
    a = var("a", F32)
    v = load(x, lane)
    body = vector(
        32,
        Declare(a, v),
        If(
            v > 0.0,
            (
                Assign(a, a * 2.0),
                If(v > 1.0, (Assign(a, a + 1.0), Store(out, lane, a)), (Assign(a, -a), Store(out, lane + 32, a))),
            ),
            (If(equal(v, v), (Assign(a, a * a),)), Store(out, lane + 64, a)),
        ),
        Store(out, lane + 96, a),
    )
    arrays = {x: special(F32, 32), out: np.zeros(128, np.float32)}
    assert_same(kernel([x, out], [], body), arrays, {}, 0, 1, TARGETS)


def test_registers_through_loops_and_branches():
    x, out = Buffer("x", F32, "in"), Buffer("out", F32, "out")
    total, count = var("total", F32), var("count")
    body = loop(
        i,
        END,
        Declare(total, const(F32, 0.0)),
        Declare(count, index(0)),
        loop(
            j,
            n,
            If(load(x, i * n + j) > 0.0, (Assign(total, total + load(x, i * n + j)),), (Assign(count, count + 1),)),
        ),
        Store(out, i, total + cast(count, F32)),
        start=BEGIN,
    )
    for size in (0, 1, 17):
        arrays = {x: special(F32, 5 * size), out: np.zeros(5, np.float32)}
        assert_same(kernel([x, out], ["n"], body), arrays, {"n": size}, 1, 4, TARGETS)


def test_values_are_recomputed_after_a_write():
    """What was read from a buffer or register before it changed is not used afterwards."""
    out = Buffer("out", I64, "inout")
    r = var("r")
    body = (
        Declare(r, load(out, ZERO) + 1),
        Store(out, ONE, r * 3),
        Let(var("kept"), load(out, ZERO) + r),
        Store(out, ZERO, load(out, ZERO) + load(out, ONE)),
        Assign(r, r * 3),
        Store(out, index(2), load(out, ZERO) * 10 + r * 3 + var("kept")),
        loop(
            j, index(4), Store(out, index(3), load(out, index(3)) + load(out, index(2))), Assign(r, r + load(out, index(3)))
        ),
        Store(out, index(4), r),
    )
    assert_same(kernel([out], [], *body), {out: np.arange(2, 8)}, {}, 0, 1, TARGETS)


def test_names_are_new_in_each_turn():
    """An unrolled loop and two sibling blocks give the same name to different values."""
    out = Buffer("out", I64, "out")
    a = var("a")
    body = loop(
        i,
        END,
        loop(k, index(4), Let(a, k * 7 + n), Store(out, i * 8 + k, a * 2 + i), unroll=True),
        If(i < 2, (Let(a, n * 5), Store(out, i * 8 + 4, a * 2 + i)), (Let(a, n * 9), Store(out, i * 8 + 4, a * 2 + i))),
        loop(j, index(2), Let(a, n * 11), Store(out, i * 8 + 5 + j, a * 2 + j)),
        start=BEGIN,
    )
    assert_same(kernel([out], ["n"], body), {out: np.zeros(40, np.int64)}, {"n": 3}, 0, 5, TARGETS)


def test_local_arrays():
    x, out, tile = Buffer("x", F32, "in"), Buffer("out", F32, "out"), Buffer("tile", F32, "local")
    body = loop(
        i,
        END,
        Alloc(tile, 64),
        vector(32, Store(tile, lane * 2, load(x, i * 64 + lane)), Store(tile, lane * 2 + 1, load(x, i * 64 + 32 + lane))),
        vector(64, Store(out, i * 64 + lane, load(tile, lane))),
        start=BEGIN,
    )
    arrays = {x: special(F32, 256), out: np.zeros(256, np.float32)}
    assert_same(kernel([x, out], ["n"], body), arrays, {"n": 4}, 0, 4, TARGETS)


def test_report_keeps_the_first():
    at, out = Buffer("at", I64, "in"), Buffer("out", I64, "out")
    v = load(at, i * 32 + lane)
    body = loop(
        i,
        END,
        vector(
            32,
            If(lane < n, (Report(v > 100, 7, v), Store(out, i * 32 + lane, v))),
            Report(v < -100, 8, v),
        ),
        Report(load(at, i * 32) > 90, 9, load(at, i * 32)),
        start=BEGIN,
    )
    for place, what in ((0, 0), (5, 101), (33, 102), (31, 103), (40, -200), (32, 95)):
        x = np.zeros(96, np.int64)
        x[place] = what
        x[place + 10] = what
        for size in (20, 32):
            assert_same(kernel([at, out], ["n"], body), {at: x, out: np.zeros(96, np.int64)}, {"n": size}, 0, 3, TARGETS)


def test_integer_indices_in_narrow_types():
    """The lane number as data of any type."""
    for dtype in ALL_DTYPES[1:]:
        out = Buffer("out", dtype, "out")
        body = loop(i, END, vector(32, Store(out, i * 32 + lane, cast(i * 1000 + lane * 3, dtype))), start=BEGIN)
        assert_same(kernel([out], ["n"], body), {out: np.zeros(128, dtype.numpy)}, {"n": 4}, 0, 4, TARGETS)


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
@pytest.mark.parametrize("stride", [1, 2, -1])
def test_loads_with_a_condition_give_zero_elsewhere(dtype, stride):
    """Zero padding: positions before and after the buffer, for vectors, gathers and single elements, masked or not."""
    x, out = Buffer("x", dtype, "in"), Buffer("out", dtype, "out")
    at = lane * stride + (i * 16 - 40)
    inside = binary("and", at >= 0, at < n)
    spot = i * 3 - 5
    single = load(x, spot, binary("and", spot >= 0, spot < n))
    body = loop(
        i,
        END,
        vector(
            32,
            Store(out, i * 128 + lane, load(x, at, inside)),
            If(lane < i * 5, (Store(out, i * 128 + 32 + lane, load(x, at, inside)),)),
            Store(out, i * 128 + 64 + lane, load(x, spot, binary("and", binary("and", spot >= 0, spot < n), lane < i * 4))),
        ),
        Store(out, i * 128 + 96, single),
        start=BEGIN,
    )
    arrays = {x: special(dtype, 20), out: np.zeros(8 * 128, dtype.numpy)}
    assert_same(kernel([x, out], ["n"], body), arrays, {"n": 20}, 0, 8, TARGETS)


def test_uniform_loads_under_a_mask_are_not_made_when_no_lane_takes_part():
    x, out = Buffer("x", F32, "in"), Buffer("out", F32, "inout")
    body = vector(32, If(lane < n, (Store(out, lane, load(x, index(1 << 40)) + load(x, index(1 << 40) + lane)),)))
    got, _ = execute(kernel([x, out], ["n"], body), {x: np.zeros(1, "f4"), out: np.ones(32, "f4")}, {"n": 0})
    assert (got[out] == 1).all()


def test_loads_of_a_loop_that_does_not_run_are_not_made():
    x, out = Buffer("x", F32, "in"), Buffer("out", F32, "inout")
    far = load(x, index(1 << 40))
    body = loop(i, END, loop(j, n, Store(out, j, far)), If(n > 0, (Store(out, ZERO, far),)), start=BEGIN)
    got, _ = execute(kernel([x, out], ["n"], body), {x: np.zeros(1, "f4"), out: np.ones(4, "f4")}, {"n": 0}, 0, 3)
    assert (got[out] == 1).all()


@pytest.mark.parametrize(
    "body, message",
    [
        ((vector(32, vector(32)),), "do not nest"),
        ((vector(24),), "power of two"),
        ((Declare(var("a"), ZERO), vector(32, Assign(var("a"), lane))), "holds one value"),
        ((Declare(var("a"), ZERO), vector(32, If(lane < 3, (Assign(var("a"), ONE),)))), "varies over the lanes"),
        ((For(i, ZERO, n, (), ONE, True),), "not literals"),
        ((Alloc(Buffer("big", F64, "local"), 1 << 20),), "at most"),
        ((Let(i, ZERO), Let(i, ONE)), "twice"),
        ((Report(n > 0, 1, const(F32, 1.0)),), "cast it to an integer"),
    ],
)
def test_rules_of_the_loop_language(body, message):
    with pytest.raises(TypeError, match=message):
        emit_kernel(kernel([], ["n"], *body), HOST)


def test_unknown_names_are_refused():
    out = Buffer("out", I64, "out")
    with pytest.raises(KeyError, match="not in scope"):
        emit_kernel(kernel([out], [], Store(out, ZERO, var("nowhere"))), HOST)
    with pytest.raises(KeyError, match="not declared"):
        emit_kernel(kernel([out], [], Assign(var("nowhere"), ONE)), HOST)


def test_emission_is_linear_in_the_length_of_a_kernel():
    """Counted in calls of Python functions, not in time."""
    x, out = Buffer("x", F32, "in"), Buffer("out", F32, "out")

    def calls(length):
        at, names = i * 16 + lane, [var(f"t{s}", F32) for s in range(length)]
        body = [Let(names[0], load(x, at))]
        for s in range(1, length):
            body.append(Let(names[s], fma(names[s - 1], names[s // 2], names[s - 1]) + 1.0))
        run = kernel([x, out], [], loop(i, END, vector(16, *body, Store(out, at, names[-1])), start=BEGIN))
        count = 0

        def note(frame, event, argument):
            nonlocal count
            count += 1

        sys.setprofile(note)
        try:
            emit_kernel(run, HOST)
        finally:
            sys.setprofile(None)
        return count

    assert calls(1600) < 8.1 * calls(200)
    assert calls(200) < 200 * 150


def test_deep_expressions_do_not_recurse():
    x, out = Buffer("x", F32, "in"), Buffer("out", F32, "out")
    e = load(x, i)
    for _ in range(3000):
        e = e * 0.5 + e
    emit_kernel(kernel([x, out], [], loop(i, END, Store(out, i, e), start=BEGIN)), HOST)


@pytest.mark.parametrize("stride", [-2, -1, 1, 2])
def test_masks_that_are_partly_known(stride):
    """A literal condition inside one that is not: lanes that are masked off are not read, on any vector unit."""
    x, out = Buffer("x", F32, "in"), Buffer("out", F32, "inout")
    for width in (8, 16, 32):
        at = (lane - (width - 1) if stride < 0 else lane) * stride
        for limit in range(0, width + 1, 3):
            value = load(x, at, binary("gt", index(limit), lane))
            body = vector(width, If(load(x, lane) > 0.0, (Store(out, lane, value),)))
            arrays = {x: np.arange(1, 2 * width + 1).astype(np.float32), out: np.full(width, -1, np.float32)}
            assert_same(kernel([x, out], [], body), arrays, {}, 0, 1, TARGETS)
