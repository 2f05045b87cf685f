"""What goes wrong on a device, and how it is told: indices, drivers that are missing, GPUs that are too old."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import graphc as gc
import pytest
from graphc.codegen.cuda import kernels
from graphc.runtime.cuda import driver as drivers
from graphc.runtime.cuda import library, pycuda_driver


def test_an_index_out_of_range_is_told_when_somebody_waits() -> None:
    x = gc.ones(5, device="cuda")
    y = gc.take(x, gc.tensor([1, 7], device="cuda"))
    z = x + 1  # goes on
    with pytest.raises(IndexError) as caught:
        y.tolist()
    text = str(caught.value)
    assert "take(f32[5] on cuda:0, i64[2] on cuda:0)" in text and "index 7 is out of range for axis 0 of size 5" in text
    assert "test_failures.py" in text and "y = gc.take(x" in text
    # The device goes on, and the error is told once.
    assert z.tolist() == [2.0] * 5
    gc.cuda.synchronize()
    assert gc.take(x, gc.tensor([1, 4], device="cuda")).tolist() == [1.0, 1.0]


WAITS: dict[str, Any] = {
    "item": lambda y: y[0].item(),
    "cpu": lambda y: y.cpu(),
    "print": lambda y: repr(y),
    "bool": lambda y: bool(y[0] > 0),
    "synchronize": lambda y: gc.cuda.synchronize(),
    "stream": lambda y: gc.cuda.current_stream().synchronize(),
    "event": lambda y: gc.cuda.current_stream().record_event().synchronize(),
}


@pytest.mark.parametrize("wait", WAITS)
def test_whoever_waits_is_told(wait: str) -> None:
    y = gc.take(gc.ones(3, device="cuda"), gc.tensor([-4], device="cuda"))
    with pytest.raises(IndexError, match="index -4 is out of range"):
        WAITS[wait](y)
    gc.cuda.synchronize()


def test_the_first_of_several_is_told_and_all_are_forgotten() -> None:
    x = gc.ones(3, device="cuda")
    for i in (5, 6, 7):
        gc.take(x, gc.tensor([i], device="cuda"))
    with pytest.raises(IndexError, match="index 5 is out of range"):
        gc.cuda.synchronize()
    gc.cuda.synchronize()


def test_a_compiled_function_names_the_line_inside() -> None:
    @gc.compile
    def f(x: gc.Tensor, i: gc.Tensor) -> gc.Tensor:
        y = x * 2
        return gc.take(y, i) + 1

    x = gc.ones(4, device="cuda")
    for _ in range(2):
        assert f(x, gc.tensor([3], device="cuda")).tolist() == [3.0]
    y = f(x, gc.tensor([4], device="cuda"))
    with pytest.raises(IndexError, match=r"(?s)index 4 is out of range.*test_failures\.py"):
        y.tolist()


def test_blocking_launches_are_told_where_they_happen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc.device("cuda").context, "blocking", True)
    with pytest.raises(IndexError, match="index 9 is out of range"):
        gc.take(gc.ones(3, device="cuda"), gc.tensor([9], device="cuda"))


def test_a_number_that_is_no_device() -> None:
    count = gc.cuda.device_count()
    with pytest.raises(RuntimeError, match=f"cuda:{count} was asked for, and this machine has"):
        gc.ones(2, device=f"cuda:{count}")
    for name in ("tpu", "cuda:x", "cpu:1x"):
        with pytest.raises(ValueError, match="is not a device"):
            gc.device(name)
    with pytest.raises(ValueError, match="needs a CUDA device"):
        gc.cuda.set_device("cpu")


class _Library:
    """A driver library that says what a test wants."""

    def __init__(self, version: int = 13000, start: int = 0) -> None:
        self._version, self._start = version, start

    def version(self) -> int:
        return self._version

    def function(self, name: str) -> Any:
        return lambda *arguments: self._start

    def describe(self, status: int) -> str:
        return "CUDA_ERROR_UNKNOWN: unknown error"


def _no_library() -> Any:
    raise OSError


MISSING: dict[str, tuple[Any, str]] = {
    "driver": (_no_library, r"there is no NVIDIA driver on this machine \(libcuda.so.1 was not found\); install the driver"),
    "old driver": (lambda: _Library(11040), "too old: it knows CUDA 11.4, and graphc needs 12.0 or later; update the driver"),
    "gpu": (lambda: _Library(start=100), "finds no GPU; look at nvidia-smi and CUDA_VISIBLE_DEVICES"),
    "start": (lambda: _Library(start=999), r"does not start \(CUDA_ERROR_UNKNOWN: unknown error\); look at nvidia-smi"),
}


@pytest.mark.parametrize("what", MISSING)
def test_what_is_missing_is_told_with_how_to_get_it(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, text = MISSING[what]
    monkeypatch.setenv("GRAPHC_CUDA", "")
    monkeypatch.setattr(drivers, "_drivers", {})
    monkeypatch.setattr(library, "library", made)
    with pytest.raises(RuntimeError, match=f'the device "cuda" is not available: .*{text}.*, or use device "cpu"'):
        gc.ones(2, device="cuda")
    assert not gc.cuda.is_available() and gc.cuda.device_count() == 0
    assert gc.cuda.why_unavailable().startswith('the device "cuda" is not available')
    assert gc.ones(2).tolist() == [1.0, 1.0]


def test_pycuda_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setenv("GRAPHC_CUDA", "")
    monkeypatch.setattr(drivers, "_drivers", {})
    monkeypatch.setattr(library, "library", _Library)
    monkeypatch.setitem(sys.modules, "pycuda", None)
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(RuntimeError, match=r'pycuda is not installed; pip install "graphc\[cuda\]", or use device "cpu"'):
        gc.device("cuda")


def test_cuda_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHC_CUDA", "off")
    with pytest.raises(RuntimeError, match="GRAPHC_CUDA turns it off"):
        gc.device("cuda")
    monkeypatch.setenv("GRAPHC_CUDA", "emulate")
    with pytest.raises(RuntimeError, match='GRAPHC_CUDA=emulate is not known; it can be "simulate"'):
        gc.device("cuda")


@pytest.mark.parametrize("asked", ["simulate:x", "simulate:0", "simulate:-1", "simulated", "1"])
def test_what_graphc_cuda_cannot_be(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHC_CUDA", asked)
    assert not gc.cuda.is_available() and gc.cuda.device_count() == 0
    with pytest.raises(RuntimeError, match=f'GRAPHC_CUDA={asked} is not known; it can be .*"simulate:2"'):
        gc.device("cuda")


def test_a_gpu_that_is_too_old(monkeypatch: pytest.MonkeyPatch, simulated: None) -> None:
    from graphc.runtime.cuda.simulated import SimulatedDriver

    old = SimulatedDriver()
    opened = old.open(0)
    opened.properties = opened.properties._replace(name="Old Card", major=6, minor=1)
    monkeypatch.setenv("GRAPHC_CUDA", "simulate:old")
    monkeypatch.setattr(drivers, "_drivers", {"simulate:old": old})
    with pytest.raises(RuntimeError, match=r"cuda:0, a Old Card, has compute capability 6\.1, and graphc needs 7\.0 or later"):
        gc.device("cuda")


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, simulated: None) -> None:
    from graphc.codegen.cuda import compiler
    from graphc.runtime.cuda import build

    class NoBuilder:
        kind = "none"

        def build(self, *arguments: Any) -> bytes:
            raise compiler.CompilerMissing(f"there is no CUDA compiler: neither libnvrtc.so nor nvcc was found; {compiler.INSTALL}")

    monkeypatch.setenv("GRAPHC_BACKEND", "compiled")
    monkeypatch.setitem(build._builders, "simulation", NoBuilder())
    x = gc.ones(3, 17, device="cuda")
    with pytest.raises(RuntimeError, match=r"(?s)no CUDA compiler.*pip install 'graphc\[cuda\]'.*or use device \"cpu\""):
        gc.sinh(x).cpu()


def test_what_the_driver_cannot_load_is_not_kept(
    compiled: None, simulated: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """After the cure, which is another compiler, the next process builds it anew."""
    from graphc.codegen import cache

    monkeypatch.setenv("GRAPHC_CACHE_DIR", str(tmp_path))
    driver = gc.device("cuda").context.driver
    x, f = gc.ones(3, 19, device="cuda"), gc.compile(lambda x: gc.tan(x) * 0.715)
    with monkeypatch.context() as m:

        def load(binary: bytes) -> Any:
            raise drivers.unavailable("its driver cannot load what the compiler made", "update the driver")

        m.setattr(driver, "load", load)
        with pytest.raises(RuntimeError, match="cannot load what the compiler made; update the driver"):
            f(x)
    assert list(tmp_path.glob("*.kernel")) and not list(tmp_path.glob("unit-*"))
    cache.forget()
    kernels.forget()
    assert f(x).shape == (3, 19) and len(list(tmp_path.glob("unit-*"))) == 1


def test_devices_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    p = gc.cuda.get_device_properties()
    assert gc.cuda.get_device_name() == p.name and gc.cuda.get_device_capability() == (p.major, p.minor)
    assert p.total_memory > 0 and p.warp_size == 32


def test_names_of_pytorch() -> None:
    assert pycuda_driver.INSTALL == 'pip install "graphc[cuda]"'
    assert {"Stream", "Event", "stream", "synchronize", "memory_allocated", "empty_cache", "mem_get_info"} <= set(dir(gc.cuda))


def test_an_error_of_before_is_told_by_a_program_that_decides() -> None:
    @gc.compile
    def step(w: gc.Tensor, x: gc.Tensor) -> gc.Tensor:
        loss = (w * x).sum()
        return loss if loss < 1 else loss * 2

    x = gc.ones(3, device="cuda")
    for _ in range(2):
        assert step(x, x).item() == 6.0
    gc.take(x, gc.tensor([9], device="cuda"))
    with pytest.raises(IndexError, match=r"take\(f32\[3\] on cuda:0, i64\[1\] on cuda:0\): .*index 9 is out of range"):
        step(x, x)
    assert step(x, x).item() == 6.0


def test_an_error_of_its_own_sends_a_program_that_decides_another_way() -> None:
    @gc.compile
    def step(x: gc.Tensor, i: gc.Tensor) -> gc.Tensor:
        if x.sum() < 5:
            return x
        return gc.take(x, i)

    x, bad = gc.ones(6, device="cuda"), gc.tensor([7], device="cuda")
    assert step(x, gc.tensor([2], device="cuda")).tolist() == [1.0]
    # The recorded way would fail; this call goes another, and does not.
    assert step(x / 2, bad).tolist() == [0.5] * 6
    gc.cuda.synchronize()
