"""The first training step of a network in a fresh process: `python -m benchmarks.first_step digits graphc`.

Prints "first step" and the loss as soon as it is known, then the seconds that the call took, imports apart. Networks and peers
as in MAKERS. "gpt-layers" trains 20 steps, each with a random subset of the layers, and prints the seconds of them all.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable
from typing import Any

MODULES = {"graphc": ("graphc", "graphc.runtime.tensor"), "jax": ("jax", "jax.numpy")}


def _digits(peer: str) -> Callable[[], Any]:
    from benchmarks import digits

    return digits.STEPS[peer](digits.weights(), *digits.batch())


def _mlp(peer: str) -> Callable[[], Any]:
    from benchmarks import mlp

    return mlp.STEPS[peer]((784, 512, 512, 10), 128)


def _gpt(peer: str) -> Callable[[], Any]:
    from benchmarks import gpt

    return gpt.STEPS[peer](gpt.SMALL)


def _gpt_layers(peer: str) -> Callable[[], Any]:
    from benchmarks import gpt

    step = gpt.STEPS[peer](gpt.SMALL)

    def run() -> Any:
        for keep in gpt.subsets(gpt.SMALL.layers):
            loss = step(keep)
            loss.item()
        return loss

    return run


MAKERS = {"digits": _digits, "mlp": _mlp, "gpt": _gpt, "gpt-layers": _gpt_layers}


def main() -> None:
    network, peer = sys.argv[1:]
    start = time.perf_counter()
    make = MAKERS[network]
    step = make(peer)
    for module in MODULES.get(peer, ("torch",)):
        importlib.import_module(module)
    ready = time.perf_counter()
    loss = float(step().item())
    end = time.perf_counter()
    print(f"first step {loss:.6f} {end - ready:.4f} {ready - start:.4f}", flush=True)


if __name__ == "__main__":
    main()
