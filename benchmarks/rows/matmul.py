"""Matrix products in float32."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.case import ALL, Case, Figure, Size, row
from benchmarks.rows import peers

FAMILY = "matrix products"
# (rows, depth, columns), threads
SIZES = (
    ((64, 64, 64), ALL),
    ((128, 128, 128), ALL),
    ((256, 256, 256), ALL),
    ((512, 512, 512), ALL),
    ((256, 256, 256), 1),
    ((512, 512, 512), 1),
    ((1024, 1024, 1024), 1),
    ((1024, 1024, 1024), ALL),
    ((2048, 2048, 2048), ALL),
    ((64, 4096, 64), ALL),
    ((1, 2048, 2048), ALL),
    ((1, 1024, 1024), ALL),
)
# What is asked for, as a multiple of the limit.
OF_LIMIT = {64: 1.9, 128: 1.22, 256: 1.13, 512: 1.08, 1024: 1.08}
# 200 of 255 GFLOP/s: the share of the limit that the figure asks for, on whatever machine this is.
SHARE = 255 / 200


def _case(size: Size, shape: tuple[int, int, int]) -> Case:
    m, k, n = (size(d, min(d, 8)) for d in shape)
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((m, k), np.float32), rng.standard_normal((k, n), np.float32)

    def text(xp: Any) -> Any:
        return lambda a, b: a @ b

    functions = {**peers.namespaces(text), "onnxruntime": lambda: lambda graph: graph("MatMul", "x0", "x1")}
    # One row reads the matrix once and does little with it.
    limit = "read" if m == 1 else "fma"
    return Case(peers.of(functions, a, b), flops=2.0 * m * k * n, bytes=float(b.nbytes), limit=limit, tolerance=1e-4)


for _shape, _threads in SIZES:
    _name = " x ".join(map(str, _shape)) + (", one thread" if _threads == 1 else "")
    _figure = None
    if _shape == (1024, 1024, 1024) and _threads == 1:
        _figure = Figure("200 of 255 GFLOP/s: 78 % of the limit", of_limit=SHARE)
    elif _threads == ALL and _shape[0] == _shape[1] and _shape[0] in OF_LIMIT:
        _figure = Figure(f"{OF_LIMIT[_shape[0]]} of the limit", of_limit=OF_LIMIT[_shape[0]])
    elif _shape == (1, 1024, 1024):
        _figure = Figure("1.3 of the limit", of_limit=1.3)
    row(_name, FAMILY, threads=_threads, figure=_figure)(lambda size, shape=_shape: _case(size, shape))


@row("batch of 64, 128 x 64 x 128", FAMILY)
def batched(size: Size) -> Case:
    count, m, k, n = size((64, 128, 64, 128), (2, 4, 3, 5))
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((count, m, k), np.float32), rng.standard_normal((count, k, n), np.float32)
    functions = peers.namespaces(lambda xp: lambda a, b: a @ b, ("graphc", "numpy", "torch", "jax"))
    functions["onnxruntime"] = lambda: lambda graph: graph("MatMul", "x0", "x1")
    return Case(peers.of(functions, a, b), flops=2.0 * count * m * k * n, limit="fma")
