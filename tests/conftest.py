"""`--device cuda`: the suites that make their tensors without naming a device run on that one.

Tensors are then made on the device by default, and what a test looks at through NumPy is copied from there, as
`x.cpu().numpy()` would.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help='where tensors are made: "cpu" (default) or "cuda"')


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--device") == "cpu":
        return
    from tests.cpu_only import CPU_ONLY

    for item in items:
        name = item.nodeid.partition("[")[0]
        for known in (item.nodeid, name):
            if known in CPU_ONLY:
                item.add_marker(pytest.mark.skip(reason=f"of the CPU: {CPU_ONLY[known]}"))


@pytest.fixture(autouse=True)
def errors_of_the_device(request: pytest.FixtureRequest) -> Iterator[None]:
    """What kernels reported belongs to the test that ran them."""
    yield
    if request.config.getoption("--device") != "cpu":
        import graphc as gc

        with contextlib.suppress(IndexError):
            gc.cuda.synchronize()


@pytest.fixture(scope="session", autouse=True)
def default_device(request: pytest.FixtureRequest) -> Iterator[None]:
    name = request.config.getoption("--device")
    if name == "cpu":
        yield
        return
    with on_device(name):
        yield


class on_device:
    """Within, tensors are made on this device, and NumPy reads them by copies."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        import graphc as gc
        from graphc.runtime import interop

        self.before = {name: getattr(gc.Tensor, name) for name in ("numpy", "__array__")}
        self.default = gc.get_default_device()
        gc.set_default_device(self.name)
        gc.Tensor.numpy = interop.looked_at
        gc.Tensor.__array__ = _as_array

    def __exit__(self, *exc: object) -> None:
        import graphc as gc

        gc.set_default_device(self.default)
        for name, method in self.before.items():
            setattr(gc.Tensor, name, method)


def _as_array(x: Any, dtype: Any = None, copy: bool | None = None) -> Any:
    from graphc.runtime import interop

    array = interop.looked_at(x)
    return array if dtype is None else array.astype(dtype)
