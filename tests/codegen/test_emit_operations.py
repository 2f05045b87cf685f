"""Every machine operation and conversion of every element type, to the bit, for AVX2 and for the host."""

from __future__ import annotations

import numpy as np
import pytest
from graphc.codegen.expr import MACHINE_OPS, bitcast, cast, const, fma, load, make, select
from graphc.codegen.llvm import jit
from graphc.codegen.llvm.emit import emit_kernel
from graphc.codegen.llvm.target import make_target
from graphc.codegen.loops import Buffer, If, Store
from graphc.ir.types import ALL_DTYPES, BF16, BOOL, F16, F32, F64, I64, U32

from tests.codegen.kernel_oracle import assert_same, execute, interpret, lanes, same_bits
from tests.codegen.kernel_words import (
    BEGIN,
    END,
    TARGETS,
    i,
    kernel,
    lane,
    loop,
    map_kernel,
    n,
    special,
    vector,
)


def check_map(e, dtypes, result, width, prepare=lambda *x: x):
    sources = [Buffer(f"x{at}", d, "in") for at, d in enumerate(dtypes)]
    out = Buffer("out", result, "out")
    count = 1024
    inputs = prepare(*[special(d, count, at) for at, d in enumerate(dtypes)])
    arrays = dict(zip(sources, inputs))
    arrays[out] = np.zeros(count, result.numpy)
    turns = count if width == 0 else count // width
    assert_same(map_kernel(e, sources, out, width), arrays, {"n": turns}, 0, turns, TARGETS)


CASES = [
    (op, d) for op, (_, _, kinds) in MACHINE_OPS.items() for d in ALL_DTYPES if d.kind in kinds
]


def guarded(op, dtype):
    """Divisors and shift counts inside what the operation is defined for."""

    def prepare(*x):
        if op in ("idiv", "irem"):
            bad = x[1] == 0
            if dtype.kind == "i":
                bad |= x[1] == -1
            return x[0], np.where(bad, np.array(3, x[1].dtype), x[1])
        if op in ("shl", "shr"):
            return x[0], (x[1] & np.array(dtype.bits - 1, x[1].dtype)).astype(x[1].dtype)
        return x

    return prepare


@pytest.mark.parametrize("width", [0, 32])
@pytest.mark.parametrize("op, dtype", CASES, ids=lambda v: str(v))
def test_machine_operation(op, dtype, width):
    if dtype in (F16, BF16):
        # The oracle follows the contract: widened, computed, rounded once.
        check_narrow(op, dtype, width)
        return
    arity, kind, _ = MACHINE_OPS[op]
    result = BOOL if kind == "bool" else dtype
    check_map(lambda *x: make(op, result, x), [dtype] * arity, result, width, guarded(op, dtype))


def check_narrow(op, dtype, width):
    arity, kind, _ = MACHINE_OPS[op]
    result = BOOL if kind == "bool" else dtype
    sources = [Buffer(f"x{at}", dtype, "in") for at in range(arity)]
    out = Buffer("out", result, "out")
    arrays = {b: special(dtype, 1024, at) for at, b in enumerate(sources)}
    arrays[out] = np.zeros(1024, result.numpy)
    turns = 1024 // max(width, 1)

    def wide(*x):
        y = make(op, BOOL if kind == "bool" else F32, tuple(cast(v, F32) for v in x))
        return y if kind == "bool" else cast(y, dtype)

    plain = map_kernel(lambda *x: make(op, result, x), sources, out, width)
    spelled = map_kernel(wide, sources, out, width)
    expected, _ = interpret(spelled, arrays, {"n": turns}, 0, turns)
    for target in TARGETS:
        got, _ = execute(plain, arrays, {"n": turns}, 0, turns, target)
        assert same_bits(got[out], expected[out])


@pytest.mark.parametrize("width", [0, 16])
@pytest.mark.parametrize("target", ALL_DTYPES, ids=str)
@pytest.mark.parametrize("source", ALL_DTYPES, ids=str)
def test_cast(source, target, width):
    check_map(lambda x: make("cast", target, (x,)), [source], target, width)


@pytest.mark.parametrize("target", [d for d in ALL_DTYPES if d.is_integer], ids=str)
@pytest.mark.parametrize("source", [F32, F64], ids=str)
def test_the_ends_of_integer_ranges(source, target):
    """The floats next to every power of two, whole and with fractions, from either side."""
    powers = np.ldexp(1.0, np.arange(-1, 66)).astype(source.numpy)
    near = np.concatenate([powers, *(np.nextafter(powers, np.array(e, source.numpy)) for e in (-np.inf, np.inf)), powers - 0.5, powers + 0.5])
    x = np.resize(np.concatenate([near, -near, [np.nan, np.inf, -np.inf, 0.0, -0.0]]).astype(source.numpy), 1024)

    def prepare(_):
        return (x,)

    check_map(lambda e: cast(e, target), [source], target, 32, prepare)


def test_wide_integers_round_once_to_bfloat16():
    # Half way between two bfloat16 values, and just above: through float32 both would round to even.
    x = np.array([(0x8080 << 44), (0x8080 << 44) + 1, (0x8080 << 44) - 1, -(0x8080 << 44) - 1] * 8, np.int64)
    source, out = Buffer("x", I64, "in"), Buffer("out", BF16, "out")
    plain = map_kernel(lambda v: cast(v, BF16), [source], out, 16)
    got, _ = execute(plain, {source: x, out: np.zeros(32, BF16.numpy)}, {"n": 2}, 0, 2)
    step = 2.0**52
    assert got[out].astype(np.float64)[:4].tolist() == [
        0x80 * step,
        0x81 * step,
        0x80 * step,
        -0x81 * step,
    ]


@pytest.mark.parametrize("a", ALL_DTYPES[1:], ids=str)
def test_bitcast(a):
    for b in ALL_DTYPES[1:]:
        if b.bits == a.bits and b is not a:
            check_map(lambda x, b=b: bitcast(x, b), [a], b, 32)


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_select_and_constants(dtype):
    one = const(dtype, 1)
    check_map(lambda c, x: select(c, x, one), [BOOL, dtype], dtype, 32)
    check_map(lambda c, x: select(c, one, x), [BOOL, dtype], dtype, 0)


def test_fma_is_one_instruction_everywhere():
    for width in (0, 16):
        check_map(lambda a, b, c: fma(a, b, c), [F32] * 3, F32, width)
        check_map(lambda a, b, c: fma(a, b, c), [F64] * 3, F64, width)
    check_map(lambda a: cast(a, U32), [F32], U32, 32)


MACHINES = [
    ("x86-64-v3", "x86_64-unknown-linux-gnu"),
    ("x86-64-v4", "x86_64-unknown-linux-gnu"),
    ("generic", "aarch64-unknown-linux-gnu"),
    ("apple-m1", "arm64-apple-darwin"),
]


@pytest.mark.parametrize("cpu, triple", MACHINES, ids=lambda v: str(v))
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_nothing_becomes_a_call_of_a_library(dtype, cpu, triple):
    """Every operation and every cast is instructions, so that an object needs no library and no bit is another's."""
    target = make_target(cpu, triple)
    x, at = Buffer("x", dtype, "in"), Buffer("at", I64, "in")
    outs = {d: Buffer(f"out_{d}", d, "inout") for d in ALL_DTYPES}
    for width in (0, 16):
        here = i * width + lane if width else i
        a, b, c = (load(x, here + shift) for shift in range(3))
        body = []
        for op, d in CASES:
            if d is dtype:
                arity, kind, _ = MACHINE_OPS[op]
                result = BOOL if kind == "bool" else dtype
                body.append(Store(outs[result], here, make(op, result, (a, b, c)[:arity])))
        body += [Store(outs[d], here, make("cast", d, (a,))) for d in ALL_DTYPES]
        body.append(Store(outs[dtype], load(at, here), load(x, load(at, here))))
        if width:
            body.append(If(here < n, (Store(outs[dtype], here, load(x, here)),)))
            body.append(Store(outs[dtype], i, lanes("or" if dtype is BOOL else "max", a)))
        run = kernel([x, at, *outs.values()], ["n"], loop(i, END, *([vector(width, *body)] if width else body), start=BEGIN))
        for line in jit.assembly(emit_kernel(run, target), target).splitlines():
            words = line.split()
            assert not words or words[0] not in ("call", "callq", "bl", "blr"), line
