"""Every example in a docstring of the runtime runs and shows what it says."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from collections.abc import Iterator

import graphc as gc
import pytest
from graphc import runtime
from graphc.runtime.composite import Composite

MODULES = sorted(m.name for m in pkgutil.walk_packages(runtime.__path__, "graphc.runtime."))


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = gc.get_num_threads()
    yield
    gc.set_num_threads(before)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner()
    finder = doctest.DocTestFinder()
    found = finder.find(module, name)
    # The finder knows functions and classes, and a composite is neither.
    for key, value in vars(module).items():
        if isinstance(value, Composite) and value.__module__ == name:
            found += finder.find(value.__wrapped__, f"{name}.{key}", module)
    for example in found:
        runner.run(example)
    assert runner.failures == 0
