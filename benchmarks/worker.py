"""Measures rows in a process of its own, in which every library has the same number of threads.

Started by `benchmarks.harness` with the environment of `environment`; prints one line of JSON for each row.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import traceback
from typing import Any


def environment(threads: int) -> dict[str, str]:
    """Variables that make libraries use so many threads; affinity is set by the process itself.

    Bytecode may be written: without it a library in a source tree would be compiled by Python in every process, and
    one that pip installed would not.
    """
    count = str(threads)
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC")
    told = {**os.environ, **dict.fromkeys(names, count), "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    told.pop("PYTHONDONTWRITEBYTECODE", None)
    return told


def confine(threads: int) -> None:
    """Let this process run on so many CPUs, before any library has counted them."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])


def set_threads(threads: int) -> None:
    """Tell the libraries that are loaded, where the system has no affinity."""
    from graphc.codegen.llvm.runner import runner

    runner().set_threads(threads)
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)


def measure_row(name: str, effort: Any, toy_size: bool, peers: set[str] | None) -> dict[str, Any]:
    """The times of one row, and of the limit that bounds it, in the same rounds."""
    from dataclasses import replace

    from benchmarks import limits
    from benchmarks.case import all_rows, full, toy
    from benchmarks.measure import check, make_peers, measure

    row = all_rows().rows[name]
    case = row.make(toy if toy_size else full)
    made = make_peers(case, lambda p: peers is None or p in peers)
    if case.tolerance is not None:
        check(made, case.tolerance)
    work = dict(made)
    limit_work = 0.0
    if case.limit:
        work["limit"], limit_work = limits.work(case.limit, case.bytes)
    times = measure(work, replace(effort, rounds=min(effort.rounds, row.rounds)))
    if case.limit:
        # The time that the limit allows for the row's own work.
        amount = case.flops if case.limit == "fma" else case.bytes
        times["limit"] = [t * amount / limit_work for t in times["limit"]]
    return {"row": name, "times": times, "flops": case.flops, "bytes": case.bytes, "limit": case.limit}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--rows", required=True, help="names, separated by |")
    parser.add_argument("--effort", required=True, help="rounds,batch,batches")
    parser.add_argument("--peers", help="names, separated by ,")
    parser.add_argument("--toy", action="store_true")
    options = parser.parse_args()
    confine(options.threads)
    from benchmarks.measure import Effort

    rounds, batch, batches = options.effort.split(",")
    effort = Effort(int(rounds), float(batch), int(batches))
    set_threads(options.threads)
    peers = set(options.peers.split(",")) if options.peers else None
    for name in options.rows.split("|"):
        try:
            # What libraries print must not come between the lines of JSON.
            with contextlib.redirect_stdout(sys.stderr):
                result = measure_row(name, effort, options.toy, peers)
        except Exception as error:
            traceback.print_exc()
            result = {"row": name, "error": f"{type(error).__name__}: {error}"}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
