"""Short words for kernels in the tests of the emitter: variables, statements, targets and corner values."""

from __future__ import annotations

import numpy as np
from graphc.codegen.expr import index, load, var
from graphc.codegen.llvm.target import host_target, make_target
from graphc.codegen.loops import For, Kernel, Store, Vector
from graphc.ir.types import ALL_DTYPES, BOOL

HOST = host_target()
# The same kernels in code for an older CPU, which runs on this one too.
TARGETS = (HOST, make_target("x86-64-v3")) if HOST.architecture == "x86_64" else (HOST,)
BEGIN, END = var("begin"), var("end")
i, j, k, lane = var("i"), var("j"), var("k"), var("lane")
n = var("n")
ONE, ZERO = index(1), index(0)


def loop(v, stop, *body, start=ZERO, step=ONE, unroll=False):
    return For(v, start, stop, tuple(body), step, unroll)


def vector(width, *body):
    return Vector(lane, width, tuple(body))


def kernel(buffers, extents, *body):
    return Kernel("k", tuple(buffers), tuple(extents), n if "n" in extents else ONE, ONE, tuple(body))


def special(dtype, count, seed=0):
    """Values of a dtype with all its corners among them."""
    rng = np.random.default_rng([seed, ALL_DTYPES.index(dtype)])
    if dtype is BOOL:
        return rng.integers(0, 2, count).astype(bool)
    if dtype.kind in "iu":
        info = np.iinfo(dtype.numpy)
        x = rng.integers(info.min, info.max, count, dtype.numpy, endpoint=True)
        x >>= rng.integers(0, dtype.bits, count).astype(dtype.numpy)
        corners = [info.min, info.max, 0, 1, info.max - 1, info.min + 1, info.max // 2]
    else:
        bits = rng.integers(0, 2**dtype.bits - 1, count, np.uint64, endpoint=True)
        x = bits.astype(f"u{dtype.itemsize}").view(dtype.numpy)
        ordinary = rng.random(count) < 0.6
        with np.errstate(all="ignore"):
            tame = (rng.standard_normal(count) * 2.0 ** rng.integers(-12, 34, count)).astype(dtype.numpy)
            x = np.where(ordinary, tame, x)
            x = np.where(rng.random(count) < 0.1, np.round(tame.astype(np.float64)).astype(dtype.numpy), x)
        corners = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 0.5, 1.5, 2.5, -2.5]
        least, most = np.finfo(np.float32).tiny, 3.3895e38
        corners += [least / 4, -least / 2, most, 65504.0, 65519.996, 65520.0, 2.0**31, -(2.0**63), 2.0**63, 2.0**64]
    with np.errstate(all="ignore"):
        corners = np.array(corners).astype(dtype.numpy) if dtype.kind == "f" else np.array(corners, dtype.numpy)
    x[: len(corners)] = corners[: len(x)]
    return rng.permutation(x)


def map_kernel(e, sources, out, width):
    """out[..] = e(loads), by vectors of `width`, or one at a time for width 0."""
    if width == 0:
        at = i
        body = (Store(out, at, e(*[load(b, at) for b in sources])),)
    else:
        at = i * width + lane
        body = (vector(width, Store(out, at, e(*[load(b, at) for b in sources]))),)
    return kernel([*sources, out], ["n"], loop(i, END, *body, start=BEGIN))
