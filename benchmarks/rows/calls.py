"""Compiled functions: what a call costs, and what the first call costs."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import mlp
from benchmarks.case import Case, Clocked, Figure, Size, Work, row
from benchmarks.rows import peers
from benchmarks.rows.start import ROOT, caches

FAMILY = "compiled functions"


@row(
    "call of a compiled x + y, 4 elements", FAMILY, threads=1,
    figure=Figure("0.56 of JAX's time", faster_than=("jax",), share=4.5 / 2.5),
)  # fmt: skip
def call(size: Size) -> Case:
    x = np.arange(4, dtype=np.float32)
    functions = peers.namespaces(lambda xp: lambda a, b: a + b, ("graphc", "torch.compile", "jax"))
    functions["onnxruntime"] = lambda: lambda graph: graph("Add", "x0", "x1")
    return Case(peers.of(functions, x, x))


def _chain(tanh: Any, w: Any, y: Any) -> Any:
    """20 operations."""
    h = w
    for _ in range(5):
        h = tanh(h * y + w) - y
    return h


@row(
    "call of 20 compiled operations and their gradient, 64 elements", FAMILY, threads=1,
    figure=Figure("0.55 of JAX's time", faster_than=("jax",), share=7.3 / 4),
)  # fmt: skip
def call_of_chain(size: Size) -> Case:
    x = np.linspace(0.1, 1, 64, dtype=np.float32)

    def graphc() -> Work:
        import graphc as gc

        w, y = gc.asarray(x).requires_grad_(), gc.asarray(x)

        @gc.compile
        def step(w: Any, y: Any) -> Any:
            h = _chain(gc.tanh, w, y)
            return gc.grad(lambda w: (_chain(gc.tanh, w, y) * h.detach()).sum())(w)

        return lambda: step(w, y)

    def jax() -> Work:
        import jax
        import jax.numpy as jnp

        w, y = jnp.asarray(x), jnp.asarray(x)

        @jax.jit
        def step(w: Any, y: Any) -> Any:
            h = jax.lax.stop_gradient(_chain(jnp.tanh, w, y))
            return jax.grad(lambda w: (_chain(jnp.tanh, w, y) * h).sum())(w)

        return lambda: step(w, y).block_until_ready()

    def torch_compile() -> Work:
        import torch

        w, y = torch.from_numpy(x.copy()).requires_grad_(), torch.from_numpy(x)

        @torch.compile
        def loss_of(w: Any, y: Any) -> Any:
            h = _chain(torch.tanh, w, y)
            return (h * h.detach()).sum()

        return lambda: torch.autograd.grad(loss_of(w, y), (w,))[0]

    return Case({"graphc": graphc, "torch.compile": torch_compile, "jax": jax})


@row(
    "MLP 784-512-512-10, batch 1, without gradients", FAMILY,
    figure=Figure("0.7 of ONNX Runtime's time", faster_than=("onnxruntime",), share=17 / 12),
)  # fmt: skip
def inference(size: Size) -> Case:
    widths = size((784, 512, 512, 10), (8, 4, 4, 3))
    layers, images, _ = mlp.data(widths, 1)
    # Every weight is read once.
    return Case(peers.of(mlp.inference(layers), images), bytes=4.0 * sum(w.size for w, _ in layers), limit="read")


def first_call(network: str, peer: str) -> Callable[[], Clocked]:
    """Seconds of the first call of a compiled step, with no cache on disk, imports apart."""
    command = [sys.executable, "-m", "benchmarks.first_step", network, peer]

    def seconds() -> float:
        with tempfile.TemporaryDirectory(prefix="graphc-benchmark-") as directory:
            told = {**os.environ, **caches(directory)}
            done = subprocess.run(command, cwd=ROOT, env=told, check=True, stdout=subprocess.PIPE, text=True)
            return float(done.stdout.split()[-2])

    def make() -> Clocked:
        __import__(peer.split(".")[0])
        return Clocked(seconds)

    return make


def _first_calls(network: str, eager: bool = False) -> Case:
    names = ("graphc", *(("torch",) if eager else ()), "torch.compile", "jax")
    return Case({p: first_call(network, p) for p in names}, tolerance=None)


@row("first call of the digits step, nothing cached", FAMILY, rounds=3)
def compile_digits(size: Size) -> Case:
    return _first_calls("digits")


@row("first call of the GPT step, nothing cached", FAMILY, figure=Figure("0.25 of JAX's time", faster_than=("jax",), share=4.0), rounds=3)
def compile_gpt(size: Size) -> Case:
    return _first_calls("gpt", eager=True)


@row(
    "first 20 GPT steps with random layers (13 graphs), nothing cached", FAMILY,
    figure=Figure("0.068 of JAX's time", faster_than=("jax",), share=22 / 1.5), rounds=2,
)  # fmt: skip
def compile_random_layers(size: Size) -> Case:
    return _first_calls("gpt-layers", eager=True)
