"""What only a GPU can show: `pytest -m gpu tests/gpu`. Elsewhere these are skipped, with one count."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import graphc as gc
import numpy as np
import pytest

from tests.gpu.test_tensors import same

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parents[2]


def test_a_program_of_100_kernels_is_one_launch_of_20_us() -> None:
    @gc.compile
    def f(x: gc.Tensor, w: gc.Tensor) -> gc.Tensor:
        for _ in range(50):
            x = gc.nn.functional.softmax(x @ w, axis=-1)
        return x

    x, w = gc.rand(64, 64, device="cuda"), gc.rand(64, 64, device="cuda")
    for _ in range(4):
        f(x, w)
    gc.cuda.synchronize()
    (family,) = f._families.values()
    program = family.recordings[0]._program
    assert len(program.program.launches) >= 100
    graph = next(iter(program._graphs.values()))
    driver, stream = x.device.context.driver, x.device.context.stream()
    times = []
    for _ in range(50):
        begin = time.perf_counter()
        driver.launch_graph(graph.raw, stream)
        times.append(time.perf_counter() - begin)
        gc.cuda.synchronize()
    assert sorted(times)[25] < 20e-6


def test_python_goes_on_while_the_device_works() -> None:
    x = gc.rand(4096, 4096, device="cuda")
    (x @ x).sum().item()
    begin = time.perf_counter()
    for _ in range(20):
        y = x @ x
    queued = time.perf_counter() - begin
    y.sum().item()
    assert queued < 0.5 * (time.perf_counter() - begin)


def test_soak_of_real_memory() -> None:
    """A minute's worth of tensors up to 256 MiB on several streams, with the cache emptied now and then."""
    rng = random.Random(3)
    allocator = gc.device("cuda").context.allocator
    allocator.settle()
    start = allocator.live
    held: list[tuple[gc.Tensor, float]] = []
    streams = [gc.cuda.Stream() for _ in range(3)]
    for step in range(4000):
        with gc.cuda.stream(rng.choice([None, *streams])):
            n = int(2 ** rng.uniform(0, 26))
            held.append((gc.full((n,), float(step), device="cuda"), float(step)))
        while len(held) > 12:
            x, value = held.pop(rng.randrange(len(held)))
            if step % 20 == 0:
                gc.cuda.synchronize()
                assert x[0].item() == x[-1].item() == value
        if step % 500 == 499:
            gc.cuda.empty_cache()
    gc.cuda.synchronize()
    assert all(x[-1].item() == value for x, value in held)
    x = None
    held.clear()
    gc.cuda.empty_cache()
    allocator.settle()
    assert allocator.live == start


def test_memory_is_shared_with_pytorch() -> None:
    torch = pytest.importorskip("torch", reason="sharing memory with PyTorch needs torch with CUDA")
    if not torch.cuda.is_available():
        pytest.skip("torch has no CUDA")
    x = gc.arange(12.0, device="cuda").reshape(3, 4) * 2
    y = torch.from_dlpack(x)
    assert y.is_cuda and y.data_ptr() == x.data_ptr() and y.cpu().tolist() == x.tolist()
    z = gc.from_dlpack(torch.ones(5, 2, device="cuda").T)
    assert z.device == "cuda:0" and (z + 1).tolist() == [[2.0] * 5] * 2
    same(gc.asarray(torch.full((3,), 2.5, device="cuda")), np.full(3, 2.5, np.float32))


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck", "synccheck"])
def test_the_sanitizer_finds_nothing(tool: str) -> None:
    sanitizer = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed")
    command = [sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "tests/gpu/test_compiled.py", "tests/gpu/test_layers.py"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-5000:]
