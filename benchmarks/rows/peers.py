"""The same function of arrays, run by each library: compiled by graphc, torch.compile and JAX, eager by NumPy and PyTorch.

Every library gets the inputs in memory of its own, aligned as it likes it. NumPy's is aligned to 16 bytes only, so vectors of 64
bytes that others load from it straddle cache lines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.case import Work

Function = Callable[..., Any]
Makers = dict[str, Callable[[], Work]]


def graphc(f: Function, *inputs: np.ndarray) -> Work:
    """`gc.compile(f)` on tensors."""
    import graphc as gc

    run, args = gc.compile(f), [gc.asarray(a, copy=True) for a in inputs]
    return lambda: run(*args)


def torch(f: Function, *inputs: np.ndarray) -> Work:
    """`f` as PyTorch runs it, without recording gradients."""
    import torch

    args = [torch.tensor(a) for a in inputs]

    def run() -> Any:
        with torch.no_grad():
            return f(*args)

    return run


def torch_compile(f: Function, *inputs: np.ndarray) -> Work:
    """`torch.compile(f)`."""
    import torch

    return globals()["torch"](torch.compile(f, dynamic=False), *inputs)  # type: ignore[no-any-return]


def jax(f: Function, *inputs: np.ndarray) -> Work:
    """`jax.jit(f)`, waiting for the result."""
    import jax
    import jax.numpy as jnp

    run, args = jax.jit(f), [jnp.asarray(a) for a in inputs]
    return lambda: jax.block_until_ready(run(*args))


def numpy(f: Function, *inputs: np.ndarray) -> Work:
    """`f` of NumPy arrays."""
    return lambda: f(*inputs)


RUNNERS: dict[str, Callable[..., Work]] = {
    "graphc": graphc,
    "numpy": numpy,
    "torch": torch,
    "torch.compile": torch_compile,
    "jax": jax,
}


def of(functions: Mapping[str, Callable[[], Function]], *inputs: np.ndarray) -> Makers:
    """A maker for each peer. functions: peer -> what gives its function (and imports its library)."""

    def maker(peer: str) -> Callable[[], Work]:
        return lambda: RUNNERS[peer](functions[peer](), *inputs)

    return {p: maker(p) for p in functions}


def namespaces(f: Callable[[Any], Function], names: tuple[str, ...] = tuple(RUNNERS)) -> dict[str, Callable[[], Function]]:
    """One text for all: `f(xp)` gives the function in terms of the array functions of `xp`."""

    def graphc_xp() -> Function:
        import graphc as gc

        return f(gc)

    def torch_xp() -> Function:
        import torch

        return f(torch)

    def jax_xp() -> Function:
        import jax.numpy as jnp

        return f(jnp)

    table = {"graphc": graphc_xp, "numpy": lambda: f(np), "torch": torch_xp, "torch.compile": torch_xp, "jax": jax_xp}
    return {p: table[p] for p in names}
