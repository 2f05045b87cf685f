"""One training step of the digits network in a fresh process: `python -m benchmarks.first_step graphc`.

Prints "first step" as soon as the loss of the first step is known. Peers as in `benchmarks.digits`.
"""

from __future__ import annotations

import sys


def main() -> None:
    from benchmarks.digits import STEPS, batch, weights

    step = STEPS[sys.argv[1]](weights(), *batch())
    print(f"first step {step().item():.6f}", flush=True)


if __name__ == "__main__":
    main()
