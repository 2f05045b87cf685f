"""Matrix products in float32."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.case import ALL, Case, Figure, Size, row
from benchmarks.rows import peers

FAMILY = "matrix products"
# (rows, depth, columns), threads
SIZES = (
    ((256, 256, 256), 1),
    ((512, 512, 512), 1),
    ((1024, 1024, 1024), 1),
    ((1024, 1024, 1024), ALL),
    ((2048, 2048, 2048), ALL),
    ((64, 4096, 64), ALL),
    ((1, 2048, 2048), ALL),
)
# 200 of 255 GFLOP/s: the share of the limit that the figure asks for, on whatever machine this is.
SHARE = 255 / 200


def _case(size: Size, shape: tuple[int, int, int]) -> Case:
    m, k, n = (size(d, min(d, 8)) for d in shape)
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((m, k), np.float32), rng.standard_normal((k, n), np.float32)

    def text(xp: Any) -> Any:
        return lambda a, b: a @ b

    names = ("graphc", "numpy", "torch", "jax")
    return Case(peers.of(peers.namespaces(text, names), a, b), flops=2.0 * m * k * n, limit="fma", tolerance=1e-4)


for _shape, _threads in SIZES:
    _name = " x ".join(map(str, _shape)) + (", one thread" if _threads == 1 else "")
    _figure = None
    if _shape == (1024, 1024, 1024) and _threads == 1:
        _figure = Figure("200 of 255 GFLOP/s: 78 % of the limit", of_limit=SHARE)
    row(_name, FAMILY, threads=_threads, figure=_figure)(lambda size, shape=_shape: _case(size, shape))


@row("batch of 64, 128 x 64 x 128", FAMILY)
def batched(size: Size) -> Case:
    count, m, k, n = size((64, 128, 64, 128), (2, 4, 3, 5))
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((count, m, k), np.float32), rng.standard_normal((count, k, n), np.float32)
    functions = peers.namespaces(lambda xp: lambda a, b: a @ b, ("graphc", "numpy", "torch", "jax"))
    return Case(peers.of(functions, a, b), flops=2.0 * count * m * k * n, limit="fma")
