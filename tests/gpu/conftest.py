"""Tests of CUDA devices: on a GPU where there is one, else on the simulated device with interpreted programs.

`pytest -m gpu tests/gpu` runs what only a GPU can show; without one these tests are skipped, and counted. Of the others, those
with the fixture `compiled` run the CUDA C text itself, by g++ where there is no GPU.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator

import graphc as gc
import pytest

from tests.interpreted import forget_devices, forget_programs


def _has_gpu() -> bool:
    return os.environ.get("GRAPHC_CUDA", "") == "" and gc.cuda.is_available()


GPU = _has_gpu()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if GPU:
        return
    for item in items:
        if item.get_closest_marker("gpu") is not None and "gpu" in item.path.parts:
            item.add_marker(pytest.mark.skip(reason=f"needs a GPU: {gc.cuda.why_unavailable()}"))


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[gc.device]:
    """The device that the tests run on; its errors are gone after each test."""
    if not GPU:
        monkeypatch.setenv("GRAPHC_CUDA", os.environ.get("GRAPHC_CUDA") or "simulate:2")
        monkeypatch.setenv("GRAPHC_BACKEND", os.environ.get("GRAPHC_BACKEND") or "interpret")
    found = gc.device("cuda:0")
    yield found
    found.context.driver.synchronize()
    found.context.failures.clear()
    with contextlib.suppress(IndexError):
        found.context.check()


@pytest.fixture(scope="module", autouse=True)
def _leave_nothing() -> Iterator[None]:
    """Tests of the CPU, which may come next in this process, find no interpreted programs and no generators of devices."""
    yield
    if not GPU:
        forget_devices()


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, device: gc.device) -> Iterator[None]:
    """Programs of the test run as CUDA C."""
    if not GPU and shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("the simulated device runs CUDA C by g++, which is not there")
    monkeypatch.setenv("GRAPHC_BACKEND", "compiled")
    forget_programs()
    yield
    if not GPU:
        forget_programs()


@pytest.fixture
def simulated() -> None:
    """The test needs the simulated device: what it does a GPU cannot be asked for."""
    if GPU:
        pytest.skip("of the simulated device only")
