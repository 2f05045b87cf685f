"""Device kernels as CUDA C: texts, wide accesses, narrow positions, shared memory; the bits of the oracle in simulation."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
from graphc.codegen.c.alignment import divisor
from graphc.codegen.c.cuda import emit_kernel, emit_kernels, shared_bytes
from graphc.codegen.cuda.target import AMPERE
from graphc.codegen.evaluate import evaluate
from graphc.codegen.expr import (
    Expr,
    binary,
    cast,
    children_first,
    const,
    fma,
    index,
    load,
    make,
    replace,
    select,
    shuffle,
    unary,
    var,
)
from graphc.codegen.loops import (
    Alloc,
    Assign,
    Barrier,
    Buffer,
    Call,
    Declare,
    For,
    Grid,
    If,
    Kernel,
    Let,
    Place,
    Report,
    Stmt,
    Store,
    Vector,
)
from graphc.ir.types import ALL_DTYPES, BF16, BOOL, F16, F32, F64, I8, I32, I64, U8, DType

from tests.codegen import device
from tests.codegen.c_kernels import Batch, check_simulated, on_device
from tests.codegen.kernel_words import ONE, ZERO, lane, n, special
from tests.codegen.test_c_emit import every, operations, random_kernels, statements

BLOCK, THREAD, BLOCKS = var("block"), var("thread"), var("blocks")
X, W, Y = Buffer("x", F32, "in"), Buffer("w", F32, "inout"), Buffer("y", F32, "out")
P = Buffer("p", I64, "in")


def kernel(*body: Stmt, buffers=(X, Y), extents=("n",), threads=32, divides=(), narrow=True, name="k", blocks=ONE) -> Kernel:
    return Kernel(name, tuple(buffers), tuple(extents), ONE, ONE, tuple(body), grid=Grid(blocks, threads, divides, narrow))


def text_of(k: Kernel) -> str:
    """The lines between the braces."""
    return emit_kernel(k).partition("{\n")[2].rpartition("}")[0]


# Texts


def test_text_of_an_elementwise_kernel():
    start = (BLOCK * 128 + THREAD) * 4
    at = start + lane
    region = Vector(lane, 4, (Store(Y, at, fma(load(X, at), const(F32, 3), load(W, at))),))
    k = Kernel("axpy", (X, W, Y), ("n",), ONE, ONE, (If(start < n, (region,)),), grid=Grid(n, 128, (("n", 4),), True, 2))
    assert emit_kernel(k, "y = 3 x + w") == (
        "// y = 3 x + w\n"
        'extern "C" __global__ void __launch_bounds__(128, 2) axpy(const float *__restrict__ x, float *w, '
        "float *__restrict__ y, int n, long long *error, int launch) {\n"
        "    const int block = blockIdx.x;\n"
        "    const int thread = threadIdx.x;\n"
        "    const int t0 = (block * 128 + thread) * 4;\n"
        "    if (t0 < n) {\n"
        "        const wide<float, 4> x_4 = load_wide<4>(x + t0);\n"
        "        const wide<float, 4> w_4 = load_wide<4>(w + t0);\n"
        "        wide<float, 4> y_4;\n"
        "        #pragma unroll\n"
        "        for (int lane = 0; lane < 4; ++lane) {\n"
        "            y_4.lane[lane] = fmaf(x_4.lane[lane], 3.0f, w_4.lane[lane]);\n"
        "        }\n"
        "        store_wide(y + t0, y_4);\n"
        "    }\n"
        "}\n"
    )


def test_text_of_a_sum_by_warps():
    total, other, held = var("total", F32), var("other", F32), Buffer("held", F32, "shared")
    steps: list[Stmt] = []
    k = var("k")
    for distance in (16, 8, 4, 2, 1):
        steps += [Let(var(f"other{distance}", F32), shuffle(total, "xor", distance)), Assign(total, total + var(f"other{distance}", F32))]
    run = kernel(
        Alloc(held, 2),
        Declare(total, const(F32, 0)),
        For(k, THREAD, n, (Assign(total, total + load(X, k)),), index(64)),
        *steps[:4],
        If(make("eq", BOOL, (THREAD % 32, ZERO)), (Store(held, THREAD // 32, total),)),
        Barrier(),
        Let(other, load(held, ZERO) + load(held, ONE)),
        If(make("eq", BOOL, (THREAD, ZERO)), (Store(Y, BLOCK, other), Report(other < const(F32, 0), 2, n))),
        threads=64,
        narrow=False,
    )
    assert emit_kernel(run) == (
        'extern "C" __global__ void __launch_bounds__(64) k(const float *__restrict__ x, float *__restrict__ y, long long n, '
        "long long *error, int launch) {\n"
        "    const int block = blockIdx.x;\n"
        "    const int thread = threadIdx.x;\n"
        "    __shared__ __align__(16) float held[2];\n"
        "    float total = 0.0f;\n"
        "    for (long long k = thread; k < n; k += 64) {\n"
        "        total = total + x[k];\n"
        "    }\n"
        "    const float other16 = shuffle_xor(total, 16, 32);\n"
        "    total = total + other16;\n"
        "    const float other8 = shuffle_xor(total, 8, 32);\n"
        "    total = total + other8;\n"
        "    if (thread % 32 == 0) {\n"
        "        held[thread / 32] = total;\n"
        "    }\n"
        "    __syncthreads();\n"
        "    const float other = held[0] + held[1];\n"
        "    if (thread == 0) {\n"
        "        y[block] = other;\n"
        "        if (other < 0.0f) report_error(error, launch, 2, n);\n"
        "    }\n"
        "}\n"
    )


def test_text_of_calls_and_unrolled_loops():
    tile, part, i = Buffer("tile", F32, "shared"), Buffer("part", F32, "local"), var("i")
    run = kernel(
        Alloc(tile, 64),
        Alloc(part, 4),
        Call("copy_async_16", (Place(tile, THREAD * 4), Place(X, BLOCK * 64 + THREAD * 4), index(16)), (tile,)),
        Call("copy_async_commit", ()),
        Call("copy_async_wait_0", ()),
        Barrier("warp"),
        For(i, ZERO, index(4), (Store(part, i, load(tile, THREAD + i)),), ONE, True),
        For(i, ZERO, index(4), (Store(Y, THREAD * 4 + i, load(part, i)),), ONE, True),
        threads=32,
    )
    assert text_of(run) == (
        "    const int block = blockIdx.x;\n"
        "    const int thread = threadIdx.x;\n"
        "    __shared__ __align__(128) float tile[64];\n"
        "    __align__(16) float part[4];\n"
        "    const int t0 = thread * 4;\n"
        "    copy_async_16(tile + t0, x + (block * 64 + t0), 16);\n"
        "    copy_async_commit();\n"
        "    copy_async_wait_0();\n"
        "    __syncwarp();\n"
        "    #pragma unroll\n"
        "    for (int i = 0; i < 4; ++i) {\n"
        "        part[i] = tile[thread + i];\n"
        "    }\n"
        "    #pragma unroll\n"
        "    for (int i = 0; i < 4; ++i) {\n"
        "        y[t0 + i] = part[i];\n"
        "    }\n"
    )


def test_one_translation_unit_of_several_kernels():
    both = [kernel(Store(Y, THREAD, load(X, THREAD)), name=f"k{i}") for i in range(2)]
    text = emit_kernels(both, AMPERE, ["first\n\nline", "second"])
    assert text.count('extern "C" __global__') == 2
    assert "// first\n//\n// line\nextern" in text
    assert "SIMULATED" not in text  # nothing of the prelude is used


def test_shuffles_are_not_evaluated_under_a_choice():
    # All threads of a warp take part, so the shuffle stands before what chooses.
    value = select(load(X, THREAD) < const(F32, 0), shuffle(load(X, THREAD), "down", 1), const(F32, 1))
    assert "const float t1 = shuffle_down(t0, 1, 32);\n    y[thread] = t0 < 0.0f ? t1 : 1.0f;" in text_of(kernel(Store(Y, THREAD, value)))


def test_shuffles_of_every_type():
    kernels, arrays = [], {}
    for dtype in ALL_DTYPES:
        a, b = Buffer(f"a_{dtype}", dtype, "in"), Buffer(f"b_{dtype}", dtype, "out")
        arrays[a], arrays[b] = special(dtype, 32), np.zeros(96, dtype.numpy)
        kernels.append(
            kernel(
                Store(b, THREAD, shuffle(load(a, THREAD), "xor", 5)),
                Store(b, THREAD + 32, shuffle(load(a, THREAD), "down", THREAD % 3, 8)),
                Store(b, THREAD + 64, shuffle(load(a, THREAD), "from", 7, 16)),
                buffers=(a, b), extents=(), name=f"shuffle_{dtype}",
            )
        )  # fmt: skip
    got, _ = device.run(kernels, arrays, {})
    t = np.arange(32)
    further = t + t % 3
    down = np.where(further // 8 == t // 8, further, t)
    for k in kernels:
        a, b = k.buffers
        x = arrays[a]
        assert got[b].tobytes() == np.concatenate([x[t ^ 5], x[down], x[t // 16 * 16 + 7]]).tobytes(), a


# Wide accesses


def copies(dtype: DType, width: int, divides: int, shift: int = 0) -> str:
    """The kernel that copies n elements, each thread `width` of them from a position that is a multiple of `divides`."""
    a, b = Buffer("a", dtype, "in"), Buffer("b", dtype, "out")
    at = n * THREAD + lane + shift
    return emit_kernel(kernel(Vector(lane, width, (Store(b, at, load(a, at)),)), buffers=(a, b), divides=(("n", divides),)))


@pytest.mark.parametrize(
    "dtype, width, divides, shift, accesses",
    [
        (F32, 4, 4, 0, [4]), (F32, 4, 16, 4, [4]), (F32, 4, 2, 0, [2, 2]), (F32, 4, 4, 2, [2, 2]), (F32, 4, 1, 0, []),
        (F32, 4, 4, 1, []), (F32, 8, 8, 0, [4, 4]), (F64, 4, 4, 0, [2, 2]), (I64, 2, 2, 0, [2]), (F16, 8, 8, 0, [8]),
        (BF16, 8, 4, 0, [4, 4]), (I8, 16, 16, 0, [16]), (U8, 4, 16, 0, [4]), (BOOL, 16, 8, 0, [8, 8]), (F32, 1, 4, 0, []),
    ],
)  # fmt: skip
def test_accesses_are_as_wide_as_is_proven(dtype, width, divides, shift, accesses):
    text = copies(dtype, width, divides, shift)
    assert re.findall(r"load_wide<(\d+)>", text) == [str(k) for k in accesses]
    assert text.count("store_wide(") == len(accesses)


def test_lanes_that_are_not_in_order_or_have_conditions_are_read_one_by_one():
    backwards = Store(Y, lane, load(X, index(3) - lane))
    strided = Store(Y, lane, load(X, lane * 2))
    masked = If(load(X, lane) < const(F32, 0), (Store(Y, lane, load(W, lane)),))
    for s in (backwards, strided, masked):
        text = emit_kernel(kernel(Vector(lane, 4, (s,)), buffers=(X, W, Y)))
        assert "load_wide<4>(w" not in text and "load_wide<4>(x + " not in text
    uniform = Store(Y, lane, load(X, lane + BLOCK * 4, n > BLOCK))
    text = emit_kernel(kernel(Vector(lane, 4, (uniform,))))
    assert re.search(r"(block < n|n > block) \? load_wide<4>\(x \+ block \* 4\) : wide<float, 4>{};", text)


def test_a_wide_store_is_not_read_before_it_is_made():
    body = Vector(lane, 4, (Store(W, lane, load(X, lane)), Store(Y, lane, load(W, lane) * const(F32, 2))))
    k = kernel(If(make("eq", BOOL, (THREAD, ZERO)), (body,)), buffers=(X, W, Y), extents=())
    x = np.arange(4, dtype=np.float32)
    got, _ = device.run([k], {X: x, W: np.zeros(4, np.float32), Y: np.zeros(4, np.float32)}, {})
    assert got[Y].tolist() == (2 * x).tolist()


_FACTS = {"a": 4, "b": 1, "c": 16, "d": 6}


def _position(rng: random.Random, depth: int) -> Expr:
    if depth == 0 or rng.random() < 0.2:
        return rng.choice([index(rng.choice([0, 1, 2, 3, 4, 8, 12, 64, -4, -6])), *(var(v) for v in _FACTS)])
    a, b = _position(rng, depth - 1), _position(rng, depth - 1)
    divide = index(rng.choice([1, 2, 3, 4, 8]))
    return rng.choice(
        [
            lambda: a + b, lambda: a - b, lambda: a * b, lambda: a * divide, lambda: a // divide, lambda: a % (divide * 4),
            lambda: make("neg", I64, (a,)), lambda: make("shl", I64, (a, index(rng.randint(0, 4)))),
            lambda: select(a < b, a, b), lambda: a & b, lambda: a | b, lambda: a ^ b, lambda: make("irem", I64, (a, index(12))),
            lambda: cast(cast(a, I32), I64),
        ]
    )()  # fmt: skip


def test_divisors_divide():
    """Whatever values names take that the facts allow, the position is a multiple of what is said."""
    rng, numbers = random.Random(3), np.random.default_rng(3)
    proven = 0
    for _ in range(1500):
        e = _position(rng, rng.randint(1, 4))
        d = divisor(e, {var(v): k for v, k in _FACTS.items()})
        values = evaluate(e, {v: numbers.integers(-30, 30, 40) * k for v, k in _FACTS.items()})
        assert np.all(values == 0) if d == 0 else np.all(values % d == 0), f"{e} is said to be a multiple of {d}"
        proven += d != 1
    assert proven > 400


# Narrow positions


def test_an_iota_that_is_squared_does_not_overflow():
    i, out = var("i"), Buffer("out", I64, "out")
    at = BLOCK * 32 + THREAD
    p = Buffer("p", I64, "inout")
    k = kernel(Let(i, at + n), Store(out, at, i * i), Store(p, i - n, i * 3), buffers=(out, p))
    text = text_of(k)
    assert "    const int i = t0 + n;\n" in text and "p[i - n] = " in text and "out[t0] = (long long)i * i;" in text
    got, _ = device.run([k], {out: np.zeros(32, np.int64), p: np.zeros(32, np.int64)}, {"n": 2_000_000_000})
    wide = np.arange(32, dtype=np.int64) + 2_000_000_000
    assert got[out].tolist() == (wide * wide).tolist() and got[p].tolist() == (wide * 3).tolist()


def _data(rng: random.Random, depth: int) -> Expr:
    """64-bit data made of positions and of what is read: wraps at 64 bits, whatever the grid."""
    if depth == 0 or rng.random() < 0.15:
        return rng.choice([var("i"), var("i"), var("n"), load(P, var("i")), index(rng.choice([-7, 3, 1 << 20, 5_000_000_000]))])
    a, b = _data(rng, depth - 1), _data(rng, depth - 1)
    return rng.choice(
        [
            lambda: a + b, lambda: a - b, lambda: a * b, lambda: a * a, lambda: unary("neg", a), lambda: a & b, lambda: a ^ b,
            lambda: unary("not", a), lambda: make("shl", I64, (a, index(rng.randint(0, 40)))), lambda: a >> index(rng.randint(0, 40)),
            lambda: binary("idiv", a, index(rng.choice([3, 1000]))), lambda: binary("irem", a, index(rng.choice([7, 1 << 33]))),
            lambda: select(binary("lt", a * a, b), a, b), lambda: cast(cast(a, F64), I64), lambda: cast(cast(a, I32), I64),
        ]
    )()  # fmt: skip


def test_data_has_64_bits_whatever_the_grid():
    rng = random.Random(11)
    count, shift = 32, 2_000_000_000
    out = Buffer("out", I64, "out")
    held = np.random.default_rng(1).integers(-(2**62), 2**62, count)
    i = np.arange(count, dtype=np.int64)
    kernels, expected = [], []
    for number in range(70):
        e = _data(rng, 4)
        body: list[Stmt] = [Let(var("i"), BLOCK * 32 + THREAD)]
        if rng.random() < 0.5:
            body += [Let(var("value"), e), Store(out, var("i"), var("value"))]
        else:
            body.append(Store(out, var("i"), e))
        kernels.append(kernel(*body, buffers=(P, out), name=f"k{number}", narrow=number % 3 != 0))
        expected.append(_meaning(e, {"i": i, "n": np.full(count, shift)}, held))
    built = device.library(device.cuda_text(kernels))
    for k, wanted in zip(kernels, expected):
        with device._allocation() as allocated:
            memory = {P: device.Memory(held.shape, held.dtype, held, False), out: device.Memory((count,), np.int64)}
            allocated.extend(memory.values())
            device.launch(built, k, memory, {"n": shift}, 0)
            assert memory[out].array.tolist() == wanted.tolist(), emit_kernel(k)


def _meaning(e: Expr, env, held):
    loads = {node: var("held") for node in children_first((e,)) if node.op == "load"}
    found = evaluate(replace(e, loads), {**env, "held": held})
    return np.broadcast_to(found, held.shape)


def test_an_index_from_memory_is_compared_before_it_is_cut_off():
    q, out = var("q"), Buffer("out", F32, "out")
    inside = (q >= ZERO) & (q < n)
    k = kernel(
        Let(q, load(P, THREAD)), Report(~inside, 1, q), Store(out, THREAD, load(X, q, inside)), buffers=(P, X, out), extents=("n",)
    )
    where = np.array([2**32, -1, 3, 2**40 + 1, 8, 7, *range(8), *[0] * 18], np.int64)
    got, error = device.run([k], {P: where, X: np.arange(8, dtype=np.float32) + 1, out: np.zeros(32, np.float32)}, {"n": 8})
    wanted = np.where((where >= 0) & (where < 8), where + 1, 0).astype(np.float32)
    assert got[out].tolist() == wanted.tolist() and error == (1, 2**32)


# Shared memory


def test_shared_memory_is_static_as_long_as_it_fits():
    a, b, c = (Buffer(name, F32, "shared") for name in "abc")

    def using(*sizes: tuple[Buffer, int], call: Buffer | None = None) -> Kernel:
        body: list[Stmt] = [Alloc(buffer, size) for buffer, size in sizes]
        body += [Store(buffer, THREAD, const(F32, 1)) for buffer, _ in sizes]
        if call is not None:
            body.append(Call("copy_async_16", (Place(call, ZERO), Place(X, ZERO), index(16)), (call,)))
        return kernel(*body)

    assert shared_bytes(using((a, 12288))) == (49152, 0)
    assert shared_bytes(using((a, 3), (b, 1))) == (20, 0)  # each at a multiple of 16
    assert shared_bytes(using((a, 3), (b, 33), call=b)) == (156, 0)  # b first, then a at 144
    big = using((a, 12288), (b, 1), (c, 32), call=c)
    assert shared_bytes(big) == (0, 128 + 49152 + 4)
    text = emit_kernel(big)
    assert "    DYNAMIC_SHARED(shared);\n    float *c = (float *)(shared + 0);\n    float *a = (float *)(shared + 128);\n" in text
    assert "__shared__" not in text


# Kernels of all kinds


def test_operations_in_simulation():
    check_simulated(operations(), True, every(24))


def test_statements_in_simulation():
    check_simulated(statements(), True, every(15))


def test_random_kernels_in_simulation():
    check_simulated(random_kernels(0, 8), True)


@pytest.mark.slow
@pytest.mark.parametrize("narrow", [True, False])
def test_everything_in_simulation(narrow):
    for batch in (operations(), statements(), random_kernels(300, 200)):
        check_simulated(batch, narrow)


def nvcc_takes(batches: list[Batch], keep=lambda number: True) -> None:
    kernels = [on_device(k, i % 2 == 0) for batch in batches for i, k in enumerate(batch.names.values()) if keep(i)]
    kernels = [Kernel(f"k{i}", *[getattr(k, f) for f in ("buffers", "extents", "parallel", "work", "body", "sites", "grid")]) for i, k in enumerate(kernels)]
    device.check_compiles([emit_kernels(kernels, AMPERE)], ("sm_80",))


def test_the_cuda_compiler_takes_operations():
    nvcc_takes([operations()], every(60))


@pytest.mark.slow
def test_the_cuda_compiler_takes_everything():
    nvcc_takes([operations(), statements()])


def test_kernels_without_a_grid_are_refused():
    with pytest.raises(TypeError, match="kernel k has no grid: it is scheduled for the CPU"):
        emit_kernel(Kernel("k", (Y,), (), ONE, ONE, (Store(Y, ZERO, const(F32, 1)),)))
