"""The driver of all gradient tests: `vjp` and `jvp` against central differences in float64, any order.

    check_gradients(lambda b, x, y: b.mul(x, y), [x, y])

builds the function with one parameter for each array and checks first and second order. Integer and
bool arrays are parameters that are not differentiated by.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from graphc.ir.autodiff import jvp, vjp
from graphc.ir.function import Builder, Function, Operation, Value
from graphc.ir.interpret import interpret
from graphc.ir.registry import lookup
from graphc.ir.types import TensorType, dtype
from graphc.ir.verify import verify

# Central differences with this step have a truncation error of about STEP**2 and a rounding error of
# about 2**-53 / STEP, relative to derivatives of order 1.
STEP = 4e-6
TOLERANCE = 2e-7


def build(body: Callable[..., Value | Sequence[Value]], arrays: Sequence[np.ndarray[Any, Any]]) -> Function:
    """The function `body(builder, *parameters)` with a parameter of each array's type."""
    b = Builder("f")
    params = [b.param(TensorType(dtype(a.dtype), a.shape)) for a in map(np.asarray, arrays)]
    results = body(b, *params)
    return b.build([results] if isinstance(results, Value) else results)


def check_gradients(
    body: Callable[..., Value | Sequence[Value]] | Function,
    arrays: Sequence[np.ndarray[Any, Any]],
    order: int = 2,
    wrt: Sequence[int] | None = None,
    tolerance: float = TOLERANCE,
) -> None:
    """Asserts that gradients up to `order` agree with central differences.

    body: a Function, or what `build` takes. arrays: the point, away from kinks by more than STEP.
    The check of order n + 1 is the check of order 1 of the gradient function of order n.
    """
    arrays = [np.asarray(a) for a in arrays]
    f = body if isinstance(body, Function) else build(body, arrays)
    for op in f.ops:
        check_reads(op)
    _check(f, arrays, order, wrt, tolerance, np.random.default_rng(7), 1)


def check_reads(op: Operation) -> None:
    """Asserts that the gradient rule of `op` reads no forward value that its `reads` does not name."""
    definition = lookup(op.name)
    cotangents = tuple(Value(r.type) if r.type.dtype.is_float else None for r in op.results)
    if definition.vjp is None or not any(cotangents):
        return
    named = {"operands": op.operands, "results": op.results}
    named |= {f"operand{i}": (v,) for i, v in enumerate(op.operands)}
    kept = {v for name in definition.reads for v in named[name]}
    b = Builder("reads")
    out = definition.vjp(b, op, cotangents)
    emitted = b.build(()).ops
    read = {v for e in emitted for v in e.operands} | {v for v in out if v is not None}
    lost = [v for v in (*op.operands, *op.results) if v in read and v not in kept]
    assert not lost, f"the gradient rule of {op} reads {lost}, but the operation declares {definition.reads}"


def _check(
    f: Function,
    arrays: list[np.ndarray[Any, Any]],
    order: int,
    wrt: Sequence[int] | None,
    tolerance: float,
    rng: np.random.Generator,
    level: int,
) -> None:
    chosen = [i for i, a in enumerate(arrays) if a.dtype == np.float64] if wrt is None else list(wrt)
    floating = [i for i, r in enumerate(f.results) if r.type.dtype.is_float]
    values = interpret(f, arrays)
    weights = [np.asarray(rng.standard_normal(values[i].shape)) for i in floating]
    pullback, pushforward = vjp(f, chosen), jvp(f, chosen)
    verify(pullback)
    verify(pushforward)
    out = interpret(pullback, [*arrays, *weights])
    for value, again in zip(values, out):
        np.testing.assert_array_equal(value, again)
    gradients = out[len(values) :]
    directions = [np.asarray(rng.standard_normal(arrays[i].shape)) for i in chosen]
    tangents = [np.zeros(w.shape) for w in weights]
    for i, gradient, direction in zip(chosen, gradients, directions):
        for at in np.ndindex(arrays[i].shape):
            slope = _slope(f, arrays, i, at, floating)
            want = sum((float(np.sum(s * w)) for s, w in zip(slope, weights)), 0.0)
            _compare(float(gradient[at]), want, tolerance, f"order {level}: gradient by parameter {i} at {at}")
            tangents = [t + s * direction[at] for t, s in zip(tangents, slope)]
    forward = interpret(pushforward, [*arrays, *directions])[len(values) :]
    for i, got, want_tangent in zip(floating, forward, tangents):
        for at in np.ndindex(got.shape):
            _compare(float(got[at]), float(want_tangent[at]), tolerance, f"order {level}: tangent of result {i} at {at}")
    if level < order:
        gradient_only = Function(
            "g", pullback.params, pullback.ops, pullback.results[len(values) :], pullback.param_names
        )
        inner = list(chosen) + list(range(len(arrays), len(arrays) + len(weights)))
        _check(gradient_only, [*arrays, *weights], order, inner, tolerance, rng, level + 1)


def _slope(
    f: Function, arrays: list[np.ndarray[Any, Any]], i: int, at: tuple[int, ...], floating: Sequence[int]
) -> list[np.ndarray[Any, Any]]:
    """The derivative of each floating result by one element of one argument."""
    sides = []
    for step in (STEP, -STEP):
        moved = arrays[i].copy()
        moved[at] += step
        out = interpret(f, [*arrays[:i], moved, *arrays[i + 1 :]])
        sides.append([out[k] for k in floating])
    return [(high - low) / (2 * STEP) for high, low in zip(*sides)]


def _compare(got: float, want: float, tolerance: float, what: str) -> None:
    assert abs(got - want) <= tolerance * max(1.0, abs(want)), f"{what}: {got}, central difference {want}"
