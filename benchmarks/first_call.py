"""Prints the seconds that the first call of the compiled digits step takes, imports apart: `... -m benchmarks.first_call jax`."""

from __future__ import annotations

import importlib
import sys
import time


def main() -> None:
    from benchmarks.digits import STEPS, batch, weights

    peer = sys.argv[1]
    start, (images, labels) = weights(), batch()
    for module in {"graphc": ("graphc", "graphc.runtime.tensor"), "jax": ("jax", "jax.numpy")}.get(peer, ("torch",)):
        importlib.import_module(module)
    before = time.perf_counter()
    STEPS[peer](start, images, labels)()
    print(time.perf_counter() - before)


if __name__ == "__main__":
    main()
