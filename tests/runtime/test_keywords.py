"""Functions and methods take the keywords of the array API and PyTorch's."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import graphc as gc
import numpy as np
import pytest
from graphc.runtime import ops
from graphc.runtime.keywords import SYNONYMS

X = gc.tensor([[[1.0, 4.0, 2.0]], [[3.0, 0.0, 5.0]]])
A = np.array(X.tolist(), np.float32)

# What PyTorch's keywords give, and the same in NumPy.
CASES: dict[str, tuple[Callable[[], Any], Any]] = {
    "squeeze": (lambda: gc.squeeze(X, dim=1), A.squeeze(1)),
    "squeeze method": (lambda: X.squeeze(dim=1), A.squeeze(1)),
    "unsqueeze": (lambda: X.unsqueeze(dim=-1), A[..., None]),
    "flip": (lambda: gc.flip(X, dims=(0, 2)), A[::-1, :, ::-1]),
    "flip method": (lambda: X.flip(dims=(0, 2)), A[::-1, :, ::-1]),
    "flip one": (lambda: X.flip(0), A[::-1]),
    "triu": (lambda: gc.triu(X[:, 0], diagonal=1), np.triu(A[:, 0], 1)),
    "tril": (lambda: X[:, 0].tril(diagonal=-1), np.tril(A[:, 0], -1)),
    "roll": (lambda: gc.roll(X, shifts=(1, 2), dims=(0, 2)), np.roll(A, (1, 2), (0, 2))),
    "var": (lambda: X.var(dim=2, unbiased=True, keepdim=True), A.var(2, ddof=1, keepdims=True)),
    "var, biased": (lambda: gc.var(X, dim=2, unbiased=False), A.var(2)),
    "std": (lambda: gc.std(X, dim=2, correction=1), A.std(2, ddof=1)),
    "std, unbiased": (lambda: gc.std(X, unbiased=True), A.std(ddof=1)),
    "stack": (lambda: gc.stack([X, X], dim=1), np.stack([A, A], 1)),
    "permute": (lambda: gc.permute(X, dims=(2, 0, 1)), A.transpose(2, 0, 1)),
    "permute method": (lambda: X.permute(dims=(2, 0, 1)), A.transpose(2, 0, 1)),
    "transpose": (lambda: gc.transpose(X, 0, 2), A.swapaxes(0, 2)),
    "transpose named": (lambda: gc.transpose(X, dim0=0, dim1=2), A.swapaxes(0, 2)),
    "transpose method": (lambda: X.transpose(dim0=0, dim1=2), A.swapaxes(0, 2)),
    "swapaxes": (lambda: gc.swapaxes(X, axis0=1, axis1=2), A.swapaxes(1, 2)),
    "swapaxes, array API": (lambda: gc.swapaxes(X, axis1=1, axis2=2), A.swapaxes(1, 2)),
    "argmax": (lambda: gc.argmax(X, dim=2, keepdim=True), A.argmax(2, keepdims=True)),
    "cumsum": (lambda: gc.cumsum(X, 2), A.cumsum(2)),
    "cumsum named": (lambda: gc.cumsum(X, dim=2), A.cumsum(2)),
    "softmax": (lambda: gc.nn.functional.softmax(X, dim=2), np.exp(A) / np.exp(A).sum(2, keepdims=True)),
    "softmax, array API's word": (lambda: gc.nn.functional.softmax(X, axis=2), np.exp(A) / np.exp(A).sum(2, keepdims=True)),
}


@pytest.mark.parametrize("name", CASES)
def test_keywords_of_pytorch(name: str) -> None:
    run, expected = CASES[name]
    # float32 sums of three elements, whose order NumPy does not promise.
    np.testing.assert_allclose(run().numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("name", SYNONYMS)
def test_an_unknown_keyword_is_answered_with_those_there_are(name: str) -> None:
    f = ops.NAMES[name]
    with pytest.raises(TypeError, match=f"^{name}: there is no keyword 'colour'; it takes ") as error:
        f(X, colour=1)
    own = inspect.signature(f).parameters
    for synonym, target in SYNONYMS[name].items():
        assert target in own
        assert synonym in str(error.value)


def test_one_thing_under_two_names() -> None:
    with pytest.raises(TypeError, match="squeeze: 'axis' is given twice, by axis and dim"):
        gc.squeeze(X, axis=1, dim=1)
