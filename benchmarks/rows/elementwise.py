"""Chains of elementwise operations over more memory than the caches hold."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from benchmarks.case import Case, Figure, Size, row
from benchmarks.rows import peers

FAMILY = "elementwise, 16 M elements"
ELEMENTS = 1 << 24


def _input(size: Size) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(size(ELEMENTS, 64), np.float32)


@row("chain of 10 operations", FAMILY, figure=Figure("within 1.3 of the memory limit", of_limit=1.3))
def chain(size: Size) -> Case:
    x = _input(size)

    def text(xp: Any) -> Any:
        def f(x: Any) -> Any:
            a = x * 1.5 + 0.25
            b = abs(a - x) * a
            c = b * b - 2.0 * a
            return (c + x) * 0.125

        return f

    return Case(peers.of(peers.namespaces(text), x), bytes=2.0 * x.nbytes, flops=10.0 * x.size, limit="memory")


@row("chain of 10 operations, one thread", FAMILY, threads=1, figure=Figure("within 1.3 of the memory limit", of_limit=1.3))
def chain_one_thread(size: Size) -> Case:
    return chain(size)


@row("chain of 10 operations with exp and tanh", FAMILY, figure=Figure("2.1 of the limit", of_limit=2.1))
def transcendental_chain(size: Size) -> Case:
    x = _input(size)

    def text(xp: Any) -> Any:
        def f(x: Any) -> Any:
            a = xp.exp(x * -0.5 + 0.25)
            b = xp.tanh(a - x) * a
            c = b * b - 2.0 * a
            return (c + x) * 0.125

        return f

    functions = peers.namespaces(text)
    one = {v: np.array(v, np.float32) for v in (-0.5, 0.25, 2.0, 0.125)}

    def onnxruntime() -> Any:
        def make(graph: Any) -> None:
            a = graph("Exp", graph("Add", graph("Mul", "x0", one[-0.5]), one[0.25]))
            b = graph("Mul", graph("Tanh", graph("Sub", a, "x0")), a)
            c = graph("Sub", graph("Mul", b, b), graph("Mul", a, one[2.0]))
            graph("Mul", graph("Add", c, "x0"), one[0.125])

        return make

    return Case(peers.of({**functions, "onnxruntime": onnxruntime}, x), bytes=2.0 * x.nbytes, limit="memory")


@row("a + b * c", FAMILY)
def triad(size: Size) -> Case:
    x = _input(size)
    y, z = x[::-1].copy(), x + 1

    def text(xp: Any) -> Any:
        return lambda a, b, c: a + b * c

    return Case(peers.of(peers.namespaces(text), x, y, z), bytes=4.0 * x.nbytes, limit="memory")


@row("exp", FAMILY)
def exponential(size: Size) -> Case:
    x = _input(size)
    return Case(peers.of(peers.namespaces(lambda xp: xp.exp), x), bytes=2.0 * x.nbytes, limit="memory")


@row("gelu (erf)", FAMILY, figure=Figure("2.2 of the limit", of_limit=2.2))
def gelu(size: Size) -> Case:
    x = _input(size)

    def graphc() -> Any:
        import graphc as gc

        return gc.nn.functional.gelu

    def torch() -> Any:
        from torch.nn import functional

        return functional.gelu

    def jax() -> Any:
        import jax

        return lambda v: jax.nn.gelu(v, approximate=False)

    def onnxruntime() -> Any:
        def make(graph: Any) -> None:
            graph("Gelu", "x0", approximate="none")

        return make

    functions = {"graphc": graphc, "torch": torch, "torch.compile": torch, "jax": jax, "onnxruntime": onnxruntime}
    return Case(peers.of(functions, x), bytes=2.0 * x.nbytes, limit="memory")


@row("tanh gelu, by hand", FAMILY)
def gelu_by_hand(size: Size) -> Case:
    x = _input(size)
    scale = math.sqrt(2 / math.pi)

    def text(xp: Any) -> Any:
        return lambda v: 0.5 * v * (1.0 + xp.tanh(scale * (v + 0.044715 * v * v * v)))

    return Case(peers.of(peers.namespaces(text), x), bytes=2.0 * x.nbytes, limit="memory")
