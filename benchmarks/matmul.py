"""Matrix products of many shapes and layouts beside NumPy, PyTorch (where installed) and the fma limit.

    python -m benchmarks.matmul [--quick] [--only TEXT]

Operands are named as BLAS does: N is row-major as it stands, T is read transposed. Times are medians of
interleaved rounds; "of limit" is the rate on one thread over that of fused multiply-adds between registers,
measured in the same rounds. The last column is the schedule that the cost model chose.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from benchmarks import limits
from benchmarks.measure import QUICK, Effort, measure

SHAPES = (
    (8, 8, 8), (32, 32, 32), (64, 64, 64), (128, 128, 128), (256, 256, 256), (512, 512, 512), (1024, 1024, 1024),
    (1, 1024, 1024), (4, 1024, 1024), (1024, 1024, 1), (64, 784, 128), (64, 128, 10), (4096, 9, 16),
    (64, 4096, 64), (1000, 1000, 1000), (513, 257, 129),
)  # fmt: skip
LAYOUTS = ("NN", "NT", "TN")


@dataclass(frozen=True)
class Product:
    m: int
    k: int
    n: int
    layout: str

    @property
    def name(self) -> str:
        return f"{self.m} x {self.k} x {self.n} {self.layout}"

    def operands(self) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(0)
        a = (self.k, self.m) if self.layout[0] == "T" else (self.m, self.k)
        b = (self.n, self.k) if self.layout[1] == "T" else (self.k, self.n)
        return rng.standard_normal(a, np.float32), rng.standard_normal(b, np.float32)


def schedule(p: Product) -> str:
    """What the cost model chose for the host."""
    from graphc.codegen.canonical import canonicalise
    from graphc.codegen.llvm.target import host_target
    from graphc.codegen.lower.contract import variant

    canonical = canonicalise(_function(p))
    s = variant(canonical.function, {n: int(d) for n, d in canonical.extents}, host_target().vector_bits)
    sides = "columns x rows" if s.swap else "rows x columns"
    return f"{s.rows} x {s.lanes} {sides}, {s.row_mode}, {s.lane_mode}" + (", split" if s.split else "")


def _function(p: Product) -> Any:
    from graphc.ir.function import Builder
    from graphc.ir.types import F32, TensorType

    b = Builder("product")
    x, y = (b.param(TensorType(F32, a.shape)) for a in p.operands())
    left, right = int(p.layout[0] == "N"), int(p.layout[1] == "T")
    return b.build([b.emit("dot", x, y, lhs_contract=(left,), rhs_contract=(right,))])


def graphc(p: Product, threads: int) -> Callable[[], object]:
    from graphc.codegen.llvm.runner import runner
    from graphc.codegen.program import compile_function

    program, pool = compile_function(_function(p)), runner()
    a, b = p.operands()
    out = np.empty((p.m, p.n), np.float32)
    inputs, outputs = [a.ctypes.data, b.ctypes.data], [out.ctypes.data]
    keep = (a, b, out)

    def run() -> object:
        pool.set_threads(threads)
        program.run(inputs, outputs)
        return keep

    return run


def numpy(p: Product) -> Callable[[], object]:
    a, b = p.operands()
    left, right = a.T if p.layout[0] == "T" else a, b.T if p.layout[1] == "T" else b
    return lambda: left @ right


def torch(p: Product) -> Callable[[], object]:
    import torch

    torch.set_num_threads(1)
    a, b = map(torch.from_numpy, p.operands())
    left, right = a.T if p.layout[0] == "T" else a, b.T if p.layout[1] == "T" else b
    return lambda: left @ right


def alone(run: Callable[[], object]) -> Callable[[], object]:
    """`run` on one thread."""
    from graphc.codegen.llvm.runner import runner

    def on_one() -> object:
        runner().set_threads(1)
        return run()

    return on_one


def peers(p: Product) -> dict[str, Callable[[], object]]:
    found = {"1 thread": graphc(p, 1), "2 threads": graphc(p, 2), "numpy": numpy(p)}
    if find_spec("torch"):
        found["torch"] = torch(p)
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.matmul", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--only", default="", metavar="TEXT", help="products with this in their name")
    options = parser.parse_args(argv)
    from graphc.codegen.llvm.runner import runner

    effort = QUICK if options.quick else Effort()
    products = [Product(*shape, layout) for shape in SHAPES for layout in LAYOUTS]
    print(f"{'GFLOP/s':24} {'1 thread':>9} {'2 threads':>10} {'numpy':>7} {'torch':>7} {'of limit':>9}  schedule")
    for p in products:
        if options.only not in p.name:
            continue
        runner().set_threads(1)
        limit, limit_flops = limits.fma_work()
        flops = 2.0 * p.m * p.k * p.n
        times = measure({**peers(p), "limit": alone(limit)}, effort)
        rate = {k: flops / statistics.median(v) / 1e9 for k, v in times.items() if k != "limit"}
        of_limit = statistics.median(
            (flops / a) / (limit_flops / b) for a, b in zip(times["1 thread"], times["limit"], strict=True)
        )
        cells = [f"{rate[k]:.1f}" if k in rate else "-" for k in ("1 thread", "2 threads", "numpy", "torch")]
        print(f"{p.name:24} {cells[0]:>9} {cells[1]:>10} {cells[2]:>7} {cells[3]:>7} {of_limit:>8.0%}  {schedule(p)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
