"""Python numbers in compiled functions are what they are outside."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import graphc as gc
import pytest

F = gc.nn.functional
X = gc.asarray([1.0, 2.0, 3.0])
TABLE = {1: 2.0, 2: 3.0, 3: 5.0}

PROGRAMS: dict[str, Callable[[gc.Tensor, int], Any]] = {
    "key of a dict": lambda x, n: x * TABLE[n],
    "element of a set": lambda x, n: x if n in {1, 2} else -x,
    "key of a new dict": lambda x, n: {n: x}[n],
    "str": lambda x, n: x * len(str(n)) + len(f"{n}") + len(repr(n)),
    "round": lambda x, n: x * round(n) * round(n / 3, 1),
    "divmod": lambda x, n: x * divmod(n, 2)[0] + divmod(7, n)[1],
    "trunc": lambda x, n: x * math.trunc(n / 2),
    "bit_length": lambda x, n: x * n.bit_length(),
    "real": lambda x, n: x * n.real,
    "division of integers": lambda x, n: gc.asarray([1.0], dtype=gc.float64) * (1 / (1 - 1 / (n + 1))),
    "negative power": lambda x, n: gc.asarray([1.0], dtype=gc.float64) * 3**-n,
    "negative base": lambda x, n: x * (-n) ** 3,
    "arange": lambda x, n: gc.arange(n),
    "arange of three": lambda x, n: gc.arange(n, 3 * n, n),
    "tensor": lambda x, n: gc.tensor(n),
    "asarray": lambda x, n: gc.asarray(n / 2),
    "axis of a composite": lambda x, n: F.softmax(x.reshape((1, 3)), n % 2),
    "one_hot": lambda x, n: gc.one_hot(gc.asarray([0, 1]), n + 2),
    "roll": lambda x, n: gc.roll(x, n),
    "dropout": lambda x, n: F.dropout(x, 1 / (n + 1)),
}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def _bits(value: Any) -> Any:
    return (value.dtype, value.shape, value.numpy().tobytes()) if isinstance(value, gc.Tensor) else (type(value), value)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_number_argument_is_a_number(name: str) -> None:
    f = PROGRAMS[name]
    compiled = gc.compile(f)
    for n in (1, 1, 2, 2, 3, 1):
        gc.manual_seed(0)
        want = f(X, n)
        gc.manual_seed(0)
        assert _bits(compiled(X, n)) == _bits(want)


def test_a_tensor_is_no_number() -> None:
    with pytest.raises(AttributeError, match="'Tensor' object has no attribute 'bit_length'"):
        X.bit_length()
    assert len({X, X, gc.asarray(1.0)}) == 2
