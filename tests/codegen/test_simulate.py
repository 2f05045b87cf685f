"""CUDA C on the CPU: right kernels give right bits in every order of threads, and each mistake is found and named."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from graphc.codegen.c.prelude import functions, used
from graphc.codegen.cuda import simulate
from graphc.codegen.cuda.compiler import CompileError, CompilerMissing
from graphc.codegen.cuda.simulate import SimulationError, kernel_names

from tests.codegen.device import Memory, cache_folder, check_compiles

TEXT = Path(__file__).with_name("simulated_kernels.cu").read_text()
# The shuffles' kernels are made by a macro, which a launcher must not be.
TEXT = re.sub(
    r"#define (SHUFFLES|PRODUCT)\((\w+), (\w+)\)((?:.*\\\n)*.*)\n((?:\1\(.*\)\n)+)",
    lambda m: "\n".join(
        m[4].replace("\\\n", "\n").replace(f" {m[2]}(", f" {name}(").replace(m[3], kind).strip()
        for name, kind in re.findall(r"\((\w+), ([\w ]+)\)", m[5])
    )
    + "\n",
    TEXT,
)
SEEDS = (0, 1, 2, 3)
RNG = np.random.default_rng(3)


@pytest.fixture(scope="module")
def library():
    return simulate.library(TEXT, cache_folder())


def call(library, name, *arguments, blocks=1, threads=32, shared=0, seed=0):
    """The arrays among the arguments after the launch; integers are `int`, wrapped ones what they are."""
    words, held = [], []
    for a in arguments:
        if isinstance(a, np.ndarray):
            held.append(Memory(a.shape, a.dtype, a))
            words.append(ctypes.c_void_p(held[-1].address))
        else:
            words.append(ctypes.c_int(a) if isinstance(a, int) else a)
    try:
        library.launch(name, words, blocks, threads, shared, seed)
        assert all(m.check() for m in held), f"{name} wrote beside an array"
        return [m.array.copy() for m in held]
    finally:
        for m in held:
            m.free()


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("n", [1, 255, 256, 1000, 4099])
def test_loop(library, n, seed):
    a, b = floats(n), floats(n)
    c = call(library, "add", a, b, np.zeros(n, "f4"), ctypes.c_longlong(n), blocks=3, threads=256, seed=seed)[2]
    assert np.array_equal(c, a + b)


def test_reduction(library):
    """Shuffles, static shared memory and a barrier: the fixed order, whatever the order of threads."""
    a = floats(1000)
    rows = np.concatenate([a, np.zeros(24, "f4")]).reshape(8, 128)
    lanes = np.zeros(128, "f4")
    for row in rows:
        lanes = lanes + row
    x = lanes.reshape(4, 32)
    for k in (16, 8, 4, 2, 1):
        x = x[:, :k] + x[:, k : 2 * k]
    expected = ((x[0] + x[1]) + x[2]) + x[3]
    for seed in SEEDS:
        assert call(library, "sum", a, np.zeros(1, "f4"), 1000, threads=128, seed=seed)[1] == expected


def product(library, barriers, seed, n=48):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-8, 8, (n, n)).astype("f4") for _ in range(2))
    got = call(library, "tiles", a, b, np.zeros((n, n), "f4"), n, barriers, blocks=(n // 16) ** 2, threads=256, seed=seed)[2]
    return got, a @ b


@pytest.mark.parametrize("seed", SEEDS)
def test_tiles(library, seed):
    got, expected = product(library, 3, seed)
    assert np.array_equal(got, expected)


@pytest.mark.parametrize("barriers", [0, 1, 2])
def test_a_missing_barrier_shows(library, barriers):
    """Without the barrier before or after the use of a tile: wrong, and not the same for both orders."""
    runs = [product(library, barriers, seed) for seed in (0, 1)]
    assert not all(np.array_equal(got, expected) for got, expected in runs)
    assert runs[0][0].tobytes() != runs[1][0].tobytes()


def test_a_missing_barrier_of_the_warp_shows(library):
    a = np.arange(64, dtype="i4")
    expected = a.reshape(2, 32)[:, ::-1].ravel()
    for seed in SEEDS:
        assert np.array_equal(call(library, "warps", a, np.zeros(64, "i4"), 1, threads=64, seed=seed)[1], expected)
    runs = [call(library, "warps", a, np.zeros(64, "i4"), 0, threads=64, seed=seed)[1] for seed in (0, 1)]
    assert not np.array_equal(runs[0], runs[1])


FAILURES = {
    "divergent_barrier": ((np.zeros(64, "f4"),), 64, "thread 32: at the barrier in line .*while other threads.*barrier in line"),
    "left_behind": ((np.zeros(64, "f4"),), 64, r"waits in line \d+ \(__syncthreads\), but thread 40 has left the kernel"),
    "half_a_warp": ((np.zeros(64, "f4"),), 32, r"waits in line \d+ \(shuffle_down\), but thread 16 has left the kernel"),
    "two_shuffles": ((np.zeros(64, "f4"),), 32, r"in line \d+ \(shuffle_xor\), while other threads of the warp are in line \d+"),
    "endless": ((np.zeros(1, "i4"),), 32, r"waits for ever in line \d+ \(a flag\)"),
    "overflowing": ((np.zeros(32, "i4"), 2**31 - 1), 32, r"overflow of a signed integer.*c\[threadIdx.x\] = n \+ 1;"),
    "dividing": ((np.zeros(32, "i4"), 0), 32, r"check of the compiler failed|integer division by zero"),
    "store_at": ((np.zeros(64, "f4"), 64), 32, r"thread 3: an access outside of memory, 256 bytes from the start of pointer argument 0.*c\[offset\] = 1"),
    "load_at": ((np.zeros(1024, "f4"), np.zeros(32, "f4"), -1), 32, "an access outside of memory, -4 bytes from the start of pointer argument 0"),
    "shared_at": ((np.zeros(64, "f4"), 1), 64, "an index outside of its array"),
    "local_at": ((np.zeros(64, "f4"), 4), 32, "an index outside of its array"),
    "wide_at": ((np.zeros(64, "f4"), np.zeros(4, "f4"), 2), 32, r"a misaligned wide load in line \d+"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILURES)
def test_mistakes_are_named(library, name):
    arguments, threads, message = FAILURES[name]
    with pytest.raises(SimulationError, match=message) as caught:
        call(library, name, *arguments, threads=threads)
    assert str(caught.value).startswith(f"kernel {name}, block 0, thread ")
    # The library goes on as if nothing had been.
    assert call(library, "sum", np.ones(5, "f4"), np.zeros(1, "f4"), 5, threads=128)[1] == 5


def test_inside_is_allowed(library):
    """What the mistakes above are one step away from."""
    assert call(library, "store_at", np.zeros(64, "f4"), 63)[0][63] == 1
    assert call(library, "load_at", np.ones(1024, "f4"), np.zeros(32, "f4"), 1023)[1].all()
    assert call(library, "shared_at", np.zeros(64, "f4"), 0, threads=64)[0].all()
    assert call(library, "local_at", np.zeros(32, "f4"), 3)[0][0] == 4
    assert call(library, "wide_at", np.arange(8, dtype="f4"), np.zeros(4, "f4"), 4)[1].tolist() == [4, 5, 6, 7]
    assert call(library, "handshake", np.zeros(2, "i4"), threads=64)[0].tolist() == [1, 2]


def test_dynamic_shared_memory(library):
    """Ends where the launch says, but for a rest of 1024 bytes; starts as 0xFF bytes."""
    for seed in SEEDS:
        c = call(library, "dynamic_at", np.zeros(32, "f4"), 0, shared=1024, seed=seed)[0]
        assert c.tolist() == list(range(31, -1, -1))
    with pytest.raises(SimulationError, match="an access outside of memory"):
        call(library, "dynamic_at", np.zeros(32, "f4"), 240, shared=1024)
    assert (call(library, "uninitialised", np.zeros(32, "u4"), blocks=3, shared=128)[0] == 0xFFFFFFFF).all()


def test_parameters_can_be_read_only(library):
    m = Memory((64,), "f4", np.ones(64, "f4"), False)
    with pytest.raises(SimulationError, match="0 bytes from the start of pointer argument 0"):
        library.launch("store_at", [ctypes.c_void_p(m.address), ctypes.c_int(0)], 1, 32)
    m.free()


def test_orders(library):
    """Ascending, descending, and any: every block and thread once."""
    def order(seed):
        return call(library, "numbered", np.zeros(1, "i4"), np.zeros(7 * 64, "i4"), blocks=7, threads=64, seed=seed)[1]

    assert np.array_equal(order(0), np.arange(448)) and np.array_equal(order(1), np.arange(448)[::-1])
    seen = {order(seed).tobytes() for seed in range(2, 8)}
    assert len(seen) == 6 and all(sorted(np.frombuffer(s, "i4")) == list(range(448)) for s in seen)
    assert np.array_equal(order(5), order(5)), "a seed is an order"


@pytest.mark.parametrize("kind, numpy", [("bool", "?"), ("i8", "i1"), ("u16", "u2"), ("i32", "i4"), ("u64", "u8"), ("f32", "f4"), ("f64", "f8")])
def test_shuffles(library, kind, numpy):
    a = RNG.integers(0, 2 if kind == "bool" else 100, 64).astype(numpy)
    lane = np.arange(64)
    for width in (1, 2, 8, 32):
        for k in {0, 1, 3, width - 1, width // 2}:
            if k >= width:
                continue
            down = np.where(lane % width + k < width, lane + k, lane)
            xor = lane // 32 * 32 + (lane % 32 ^ k)
            xor = np.where(xor // width > lane // width, lane, xor)
            expected = a[np.concatenate([down, xor, lane // width * width + k % width])]
            for seed in (0, 3):
                got = call(library, f"shuffle_{kind}", a, np.zeros(192, numpy), k, width, threads=64, seed=seed)[1]
                assert np.array_equal(got, expected), (k, width)


def test_atomics_and_reports(library):
    zero = np.zeros
    for seed in (0, 1):
        c, flag, ballots, error = call(
            library, "atomics", zero(4, "i4"), zero(1, "u8"), zero(64, "u4"), zero(3, "i8"), threads=64, blocks=2, seed=seed
        )
        first = int(flag[0]) - 1
        assert c.tolist() == [256, 63, -63, first] and first == (0 if seed == 0 else 63)
        expected = [sum(1 << i for i in range(32) if (w * 32 + i) % 3 == 0) for w in (0, 1)]
        assert ballots.tolist() == [expected[0]] * 32 + [expected[1]] * 32
        assert error[0] == 3 and error[2] == 9 and 100 <= error[1] < 164, "one thread's report, whole"


@pytest.mark.parametrize("seed", SEEDS)
def test_asynchronous_copies(library, seed):
    a = floats(5, 32)
    got = call(library, "pipeline", a, np.zeros((5, 32), "f4"), 5, 0, seed=seed)[1]
    assert np.array_equal(got, a[:, ::-1])


@pytest.mark.parametrize("what", [1, 2, 3])
def test_a_missing_wait_shows(library, what):
    """No wait, a wait for too little, a copy into what is still read: never the right numbers."""
    a = floats(5, 32)
    for seed in SEEDS:
        got = call(library, "pipeline", a, np.zeros((5, 32), "f4"), 5, what, seed=seed)[1]
        assert not np.array_equal(got, a[:, ::-1])


def test_copies_that_cannot_be(library):
    a, c = floats(5, 32), np.zeros((5, 32), "f4")
    with pytest.raises(SimulationError, match="thread 1: copy_async_16 in line .* not both multiples of 16"):
        call(library, "pipeline", a, c, 5, 4)
    with pytest.raises(SimulationError, match="thread 1: copy_async_16 in line .* not shared memory"):
        call(library, "pipeline", a, c, 5, 5)
    with pytest.raises(SimulationError, match="of 17 bytes"):
        call(library, "zero_fill", a, c, 17)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4])
def test_copies_fill_with_zeros(library, count):
    a = floats(128)
    got = call(library, "zero_fill", a, np.ones(128, "f4"), 4 * count)[1].reshape(32, 4)
    assert np.array_equal(got[:, :count], a.reshape(32, 4)[:, :count]) and not got[:, count:].any()


def in_order(a, b, c):
    """c + a @ b, products exact, float32 additions one by one in ascending k."""
    d = c.astype(np.float32)
    for k in range(a.shape[1]):
        # Exact in float64: products of up to 11-bit numbers, added to a 24-bit one of like size.
        d = (d.astype(np.float64) + np.outer(a[:, k].astype(np.float64), b[k].astype(np.float64))).astype(np.float32)
    return d


@pytest.mark.parametrize("kind", ["bf16", "f16"])
@pytest.mark.parametrize("seed", SEEDS)
def test_tensor_cores(library, kind, seed):
    narrow = {"bf16": ml_dtypes.bfloat16, "f16": np.float16}[kind]
    a, b, c = floats(16, 16).astype(narrow), floats(8, 16).astype(narrow), floats(16, 8)
    got = call(library, f"product_{kind}", a.view("u2"), b.view("u2"), c, seed=seed)[2]
    assert np.array_equal(got, in_order(a, b.T, c))
    assert not np.array_equal(got, in_order(a[:, ::-1], b.T[::-1], c)), "the order shows"


def test_tensor_cores_transposed(library):
    a, b = floats(16, 16).astype(ml_dtypes.bfloat16), floats(16, 8).astype(ml_dtypes.bfloat16)
    got = call(library, "product_transposed", a.view("u2"), b.view("u2"), np.zeros((16, 8), "f4"))[2]
    assert np.array_equal(got, in_order(a.T, b, np.zeros((16, 8), "f4")))


def test_tensor_cores_tf32(library):
    """The low 13 bits of operands do not count."""
    a, b, c = floats(16, 8), floats(8, 8), floats(16, 8)
    got = call(library, "product_tf32", a.view("u4"), b.view("u4"), c)[2]

    def cut(x):
        return (x.view("u4") & 0xFFFFE000).view("f4")

    assert np.array_equal(got, in_order(cut(a), cut(b), c)) and not np.array_equal(got, in_order(a, b, c))


def test_launches_that_cannot_be(library):
    c = np.zeros(64, "f4")
    for blocks, threads, shared, message in (
        (1, 33, 0, "33 threads in a block"), (1, 2048, 0, "2048 threads"), (1, 0, 0, "0 threads"),
        (2**31, 32, 0, "2147483648 blocks"), (1, 32, 300 << 10, "bytes of shared memory"),
    ):  # fmt: skip
        with pytest.raises(SimulationError, match=message):
            call(library, "store_at", c, 0, blocks=blocks, threads=threads, shared=shared)
    assert call(library, "store_at", c, 0, blocks=0)[0].sum() == 0


def test_launches_from_several_threads(library):
    """One at a time: shared arrays are static."""
    a = floats(1000)
    expected = call(library, "sum", a, np.zeros(1, "f4"), 1000, threads=128)[1]
    wrong = []

    def work():
        for seed in range(20):
            if call(library, "sum", a, np.zeros(1, "f4"), 1000, threads=128, seed=seed)[1] != expected:
                wrong.append(seed)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert not wrong


def test_libraries_share_stacks(library, tmp_path):
    """A process may load any number of libraries: the system bounds how many pieces of memory it has."""
    a = floats(256)

    def sums(lib):
        return call(lib, "sum", a, np.zeros(1, "f4"), 256, threads=128)[1]

    expected = sums(library)
    pieces = []
    for i in range(4):
        copy = tmp_path / f"{i}.so"
        copy.write_bytes(library.path.read_bytes())
        assert np.array_equal(sums(simulate.Library(copy)), expected)
        pieces.append(len(Path("/proc/self/maps").read_text().splitlines()))
    assert pieces[-1] - pieces[0] < 60


def test_the_kernels_are_cuda_c():
    """What is simulated here is what the CUDA compiler takes."""
    usage = check_compiles([functions(used(TEXT, "cuda"), "cuda") + TEXT])
    assert {name for name, _ in usage} == set(kernel_names(TEXT))


def test_names():
    text = 'extern "C" __global__ void __launch_bounds__(256, 2) first(int a) {\n}\nextern "C" __global__ void second() {}\n'
    assert kernel_names(text) == ["first", "second"]
    assert '#line 3 "kernels.cu"\nextern "C" __global__ void second' in simulate.source(text)


def test_errors_of_the_compiler(monkeypatch):
    with pytest.raises(CompileError, match=r"(?s)undeclared_name.*2 \|     undeclared_name = 1;") as caught:
        simulate.build('extern "C" __global__ void k() {\n    undeclared_name = 1;\n}\n')
    assert "bug in graphc" in str(caught.value)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(CompilerMissing, match="'no-such-compiler'.*not on PATH.*install g"):
        simulate.build("")


# The child prints what happened; the sanitizer ends the process.
CHILD = """
import sys, ctypes
from pathlib import Path
from graphc.codegen.c.prelude import functions, used
from graphc.codegen.cuda import simulate
built = simulate.Library(Path(sys.argv[1]))
c = (ctypes.c_float * 64)()
built.launch("shared_through_pointer", [ctypes.c_void_p(ctypes.addressof(c)), ctypes.c_int(int(sys.argv[2]))], 1, 64)
print("done", sum(c))
"""


def test_address_sanitizer(tmp_path):
    """What neither guard pages nor bounds checks see: an address just past a shared array, through a pointer."""
    found = subprocess.run([simulate.compiler(), "-print-file-name=libasan.so"], capture_output=True, text=True, check=True).stdout.strip()
    if not os.path.isabs(found):
        pytest.skip("the compiler has no address sanitizer")
    start = TEXT.index('extern "C" __global__ void shared_through_pointer')
    text = TEXT[start : TEXT.index('extern "C"', start + 10)]
    path = tmp_path / "unit.so"
    path.write_bytes(simulate.build(text, checked=False, options=["-fsanitize=address", "-g1"]))
    env = {**os.environ, "LD_PRELOAD": found, "ASAN_OPTIONS": "detect_leaks=0,handle_segv=0,allow_user_segv_handler=1"}
    runs = [
        subprocess.run([sys.executable, "-c", CHILD, str(path), offset], env=env, capture_output=True, text=True, check=False)
        for offset in ("0", "4")
    ]
    assert runs[0].returncode == 0 and "done 64.0" in runs[0].stdout, runs[0].stderr[-1000:]
    assert runs[1].returncode != 0 and "AddressSanitizer: global-buffer-overflow" in runs[1].stderr
