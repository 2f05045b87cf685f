"""Compiled functions: what a call costs, and what the first call costs."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable

import numpy as np

from benchmarks.case import Case, Clocked, Size, row
from benchmarks.rows import peers
from benchmarks.rows.start import ROOT, caches

FAMILY = "compiled functions"


@row("call of a compiled x + y, 4 elements", FAMILY, threads=1)
def call(size: Size) -> Case:
    x = np.arange(4, dtype=np.float32)
    functions = peers.namespaces(lambda xp: lambda a, b: a + b, ("graphc", "torch.compile", "jax"))
    return Case(peers.of(functions, x, x))


def first_call(peer: str) -> Callable[[], Clocked]:
    """Seconds of the first call of the compiled digits step, with no cache on disk, imports apart."""
    command = [sys.executable, "-m", "benchmarks.first_call", peer]

    def seconds() -> float:
        import os

        with tempfile.TemporaryDirectory(prefix="graphc-benchmark-") as directory:
            told = {**os.environ, **caches(directory)}
            done = subprocess.run(command, cwd=ROOT, env=told, check=True, stdout=subprocess.PIPE, text=True)
            return float(done.stdout.split()[-1])

    def make() -> Clocked:
        __import__(peer.split(".")[0])
        return Clocked(seconds)

    return make


@row("first call of the digits step, nothing cached", FAMILY, rounds=3)
def compile_time(size: Size) -> Case:
    return Case({p: first_call(p) for p in ("graphc", "torch.compile", "jax")}, tolerance=None)
