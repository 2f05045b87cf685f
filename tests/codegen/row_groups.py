"""Row groups for tests of device schedules: many reductions in one kernel, and functions of graphc itself, fused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from graphc.codegen.canonical import canonicalise
from graphc.codegen.cuda.choice import Choice
from graphc.codegen.cuda.lower import choose, kind
from graphc.codegen.cuda.target import HOPPER, Target
from graphc.codegen.fuse import fuse
from graphc.codegen.prepare import prepare
from graphc.ir.autodiff import vjp
from graphc.ir.function import Builder, Function
from graphc.ir.interpret import interpret
from graphc.ir.passes import DEFAULT, run_pipeline
from graphc.ir.types import BOOL, DType, TensorType
from graphc.runtime.trace import trace_function

from tests.codegen.device import Case
from tests.codegen.values import Shape, mixed, plain

Array = np.ndarray[Any, Any]


def reductions(dtype: DType, shape: Shape, axes: tuple[int, ...], names: Sequence[str] = ()) -> Function:
    """All reductions of `dtype` over the same dimensions of one operand: one group."""
    b = Builder("reductions")
    x = b.param(TensorType(dtype, shape))
    if not names:
        names = ("any", "all") if dtype is BOOL else ("sum", "prod", "max", "min")
        names = (*names, *(("argmax", "argmin") if len(axes) == 1 and dtype is not BOOL else ()))
    out = [b.emit(n, x, axis=axes[0]) if n.startswith("arg") else b.emit(n, x, axes=axes) for n in names]
    return b.build(out)


def reduction_case(dtype: DType, shape: Shape, axes: tuple[int, ...], choice: Choice | None = None, names: Sequence[str] = ()) -> Case:
    x = (plain if dtype is BOOL or dtype.is_integer else mixed)(dtype, shape, len(shape))
    return Case(reductions(dtype, shape, axes, names), [x], choice)


def groups_of(f: Function) -> list[Function]:
    return list(fuse(prepare(run_pipeline(f, DEFAULT))[0]))[1:]


def traced(f: Callable[..., Any], *types: str) -> Function:
    return trace_function(f, types).function


def gradient(f: Function) -> Function:
    """The gradients of a function alone."""
    g = vjp(f)
    return Function(g.name, g.params, g.ops, g.results[len(f.results) :], g.param_names)


def kinds(f: Function) -> list[str]:
    return [kind(g) for g in groups_of(f)]


def row_cases(f: Function, args: Sequence[Array], choice: Callable[[Function, dict[str, int]], Choice | None] | None = None) -> list[Case]:
    """A case for each row group of a function, with the values that reach it when the function is given `args`."""
    module = fuse(prepare(run_pipeline(f, DEFAULT))[0])
    entry = module.entry
    known = dict(zip(entry.params, args, strict=False))
    assert len(known) == len(entry.params), "constants of several elements are not expected here"
    cases = []
    for op in entry.ops:
        group = op.attrs["function"]
        inputs = [known[v] for v in op.operands]
        known.update(zip(op.results, interpret(group, inputs), strict=True))
        if kind(group) == "row":
            canonical = canonicalise(group)
            chosen = choice(canonical.function, {n: int(d) for n, d in canonical.extents}) if choice else None
            cases.append(Case(group, inputs, chosen))
    return cases


def chosen(group: Function, target: Target = HOPPER) -> Choice:
    canonical = canonicalise(group)
    return choose(canonical.function, {n: int(d) for n, d in canonical.extents}, target)
