"""The interpreter made exact: functions that NumPy takes from libm are evaluated as the compiler defines them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from graphc.codegen.elementwise import scalar
from graphc.codegen.evaluate import evaluate
from graphc.codegen.expr import var
from graphc.ir import registry
from graphc.ir.function import Attrs, Function
from graphc.ir.interpret import interpret
from graphc.ir.registry import Eval, operations
from graphc.ir.types import TensorType, dtype

Array = np.ndarray[Any, Any]

# Everything elementwise that is not one exactly rounded operation.
LIBM = (
    """exp exp2 expm1 log log2 log10 log1p sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh erf pow
    atan2 hypot logaddexp"""
).split()


def _as_compiled(name: str) -> Eval:
    def evaluate_op(args: Sequence[Array], attrs: Attrs, types: tuple[TensorType, ...]) -> Sequence[Array]:
        operands = [var(f"x{i}", dtype(a.dtype)) for i, a in enumerate(args)]
        expr = scalar(name, operands, attrs, types[0].dtype)
        out = evaluate(expr, {f"x{i}": np.ravel(a) for i, a in enumerate(args)})
        return [np.asarray(out, types[0].dtype.numpy).reshape(args[0].shape)]

    return evaluate_op


@contextmanager
def as_compiled() -> Iterator[None]:
    """Within, interpretation has the compiler's transcendental functions."""
    operations()
    before = dict(registry._TABLE)
    for name in LIBM:
        registry._TABLE[name] = replace(before[name], eval=_as_compiled(name))
    try:
        yield
    finally:
        registry._TABLE.update(before)


def exact_interpret(f: Function, args: Sequence[Array]) -> list[Array]:
    """`interpret`, with every bit as compiled code must give it."""
    with as_compiled(), np.errstate(all="ignore"):
        return [np.asarray(x) for x in interpret(f, list(args))]
