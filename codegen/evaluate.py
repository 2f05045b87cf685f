"""The value of a scalar expression on NumPy arrays, exact to the bit, without any compiler.

This is the oracle for the emitters and how `codegen/math/` is tested: the arrays hold one value of
each variable per sample. `load` and `lanes` have no meaning outside a kernel and are refused.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
from graphc.codegen.expr import Expr, children_first
from graphc.ir.types import BOOL, F32, DType

Array = np.ndarray[Any, Any]
_CONST_VIEW = {16: np.uint16, 32: np.uint32, 64: np.uint64}


def evaluate(root: Expr, env: Mapping[str, Array]) -> Array:
    """The value of `root` for each sample.

    `env` maps the name of every variable to an array of the variable's dtype; the arrays broadcast
    against each other. Raises `KeyError` for an unbound variable, `TypeError` for a wrong dtype.
    """
    order = children_first((root,))
    last: dict[int, int] = {}
    for position, node in enumerate(order):
        for a in node.args:
            last[id(a)] = position
    values: dict[int, Array] = {}
    with np.errstate(all="ignore"):
        for position, node in enumerate(order):
            values[id(node)] = _node(node, [values[id(a)] for a in node.args], env)
            for a in node.args:
                if last[id(a)] == position:
                    values.pop(id(a), None)
    return values[id(root)]


def _node(e: Expr, args: list[Array], env: Mapping[str, Array]) -> Array:
    dtype = e.dtype.numpy
    if e.op == "const":
        if e.dtype.kind == "f":
            return np.array(e.data, _CONST_VIEW[e.dtype.bits]).view(dtype)
        return np.array(e.data, dtype)
    if e.op == "var":
        value = np.asarray(env[e.data])
        if value.dtype != dtype:
            raise TypeError(f"variable {e.data} is {e.dtype}, but the array given for it is {value.dtype}")
        return value
    if e.op == "select":
        return np.where(*args)
    if e.op == "cast":
        return convert(args[0], e.args[0].dtype, e.dtype)
    if e.op == "bitcast":
        return np.ascontiguousarray(args[0]).view(dtype).reshape(args[0].shape)
    if e.op == "fma":
        return fused32(*args) if e.dtype is F32 else fused64(*args)
    if e.op not in _TABLE:
        raise TypeError(f"{e.op} has no value outside a kernel")
    return np.asarray(_TABLE[e.op](*args))


def _truncated_quotient(a: Array, b: Array) -> Array:
    q: Array = a // b
    if a.dtype.kind == "i":
        q = q + ((q * b != a) & ((a < 0) != (b < 0))).astype(a.dtype)
    return q


def _high_product(a: Array, b: Array) -> Array:
    if a.dtype.itemsize < 8:
        wide: Array = a.astype(np.uint64) * b.astype(np.uint64)
        return np.asarray(wide >> np.uint64(8 * a.dtype.itemsize), a.dtype)
    mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    a0, a1, b0, b1 = a & mask, a >> half, b & mask, b >> half
    middle = a1 * b0 + ((a0 * b0) >> half)
    high: Array = a1 * b1 + (middle >> half) + ((a0 * b1 + (middle & mask)) >> half)
    return high


_TABLE: dict[str, Callable[..., Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "idiv": _truncated_quotient,
    "irem": lambda a, b: a - _truncated_quotient(a, b) * b,
    "neg": np.negative,
    "abs": np.absolute,
    "sqrt": np.sqrt,
    "floor": np.floor,
    "ceil": np.ceil,
    "trunc": np.trunc,
    "rint": np.rint,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
    "shl": np.left_shift,
    "shr": np.right_shift,
    "mulhi": _high_product,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}


def convert(x: Array, source: DType, target: DType) -> Array:
    """The `cast` of the expression language."""
    if target is BOOL:
        return np.not_equal(x, 0)
    if not (source.is_float and target.is_integer):
        return x.astype(target.numpy)
    info = np.iinfo(target.numpy)
    wide = np.trunc(x.astype(np.float64))
    # The bounds as floats: 2^63 and 2^64 are exact, and no float lies between them and the limit.
    low, high = float(info.min), float(info.max) if target.bits < 64 else float(2 ** (target.bits - (target.kind == "i")))
    inside = (wide > low) & (wide < high)
    value = np.where(inside, wide, 0.0).astype(target.numpy)
    value = np.where(wide >= high, np.array(info.max, target.numpy), value)
    return np.where(wide <= low, np.array(info.min, target.numpy), value)


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def _odd_sum(a: Array, b: Array) -> Array:
    """a + b in float64 rounded to odd (S. Boldo, G. Melquiond, Emulation of FMA and correctly
    rounded sums, IEEE Trans. Computers 57(4), 2008)."""
    s, error = _two_sum(a, b)
    s = np.ascontiguousarray(s)
    bits = s.view(np.int64).reshape(s.shape)
    step = np.where((error > 0) == (s > 0), 1, -1)
    change = (error != 0) & np.isfinite(error) & ((bits & 1) == 0)
    return np.where(change, bits + step, bits).view(np.float64).reshape(s.shape)


def fused32(a: Array, b: Array, c: Array) -> Array:
    """fma of float32 arrays: the product is exact in float64, the sum is rounded to odd first."""
    product = a.astype(np.float64) * b.astype(np.float64)
    return _odd_sum(*np.broadcast_arrays(product, c.astype(np.float64))).astype(np.float32)


@cache
def _libm_fma() -> Callable[[float, float, float], float]:
    function = ctypes.CDLL(ctypes.util.find_library("m")).fma
    function.restype, function.argtypes = ctypes.c_double, [ctypes.c_double] * 3
    return function


def _split(a: Array) -> tuple[Array, Array]:
    """Veltkamp's splitting into two halves of 26 bits."""
    t = a * 134217729.0
    high = t - (t - a)
    return high, a - high


def fused64(a: Array, b: Array, c: Array) -> Array:
    """fma of float64 arrays: error-free transforms where nothing can over- or underflow, else libm."""
    a, b, c = (np.ascontiguousarray(v) for v in np.broadcast_arrays(a, b, c))
    product = a * b
    a1, a0 = _split(a)
    b1, b0 = _split(b)
    low = ((a1 * b1 - product) + a1 * b0 + a0 * b1) + a0 * b0
    t, t_low = _two_sum(c, low)
    v, v_low = _two_sum(product, t)
    result = v + _odd_sum(t_low, v_low)
    safe = np.ones(result.shape, bool)
    for term, least in ((a, 2.0**-450), (b, 2.0**-450), (product, 2.0**-900), (c, 2.0**-900)):
        size = np.abs(term)
        safe &= (size < 2.0**450) & (size > least)
    safe &= np.abs(result) > 2.0**-900
    if not safe.all():
        fma = _libm_fma()
        risky = ~safe
        result[risky] = [fma(*t) for t in zip(a[risky].tolist(), b[risky].tolist(), c[risky].tolist())]
    return result

