"""Lowering of a group whose root is a `conv`, with lanes over output pixels (see kernels.py)."""

from __future__ import annotations

from collections.abc import Mapping

from graphc.codegen.loops import Buffer
from graphc.codegen.lower.conv import conv_contraction
from graphc.codegen.lower.lowered import Lowered
from graphc.codegen.lower.pull import Pull
from graphc.codegen.lower.windows.geometry import geometry_of
from graphc.codegen.lower.windows.kernels import WindowKernels
from graphc.codegen.lower.windows.schedule import WindowSchedule, choose
from graphc.ir.function import Function, Operation, Value
from graphc.ir.interpret import specialize
from graphc.ir.types import DimExpr, substitute

Hint = Mapping[str, int]
# Cycles for a vector of terms up to which a schedule is taken; of short sums, always.
GOOD, SHORT = 1.6, 64


def _root(group: Function) -> Operation:
    return next(op for op in group.ops if op.name == "conv")


def candidate(group: Function, hint: Hint, vector_bits: int) -> tuple[float, WindowSchedule] | None:
    """The best schedule of this kind for these extents, and its cycles; None where there is none.

    Sizes become literals, but for the number of examples.
    """
    root = _root(group)
    x, w = root.operands
    shapes = (w.type.shape, x.type.shape[1:], root.result.type.shape[1:])
    symbols = set[str]().union(*(d.symbols() for shape in shapes for d in shape if isinstance(d, DimExpr)))
    if not symbols <= hint.keys():
        return None
    literal = tuple(sorted((s, hint[s]) for s in symbols))
    made = specialize(group, dict(literal))
    root = _root(made)
    g = geometry_of(root)
    if g is None:
        return None
    examples = substitute(g.examples, hint)
    c = conv_contraction(made, root, Pull(made, _params(made)), per_example=True)
    return choose(g, examples if isinstance(examples, int) else 32, c.accumulator, vector_bits, literal)


def windows_schedule(group: Function, hint: Hint, vector_bits: int) -> WindowSchedule | None:
    """The schedule, where it is likely to be faster than a product of matrices."""
    found = candidate(group, hint, vector_bits)
    if found is None:
        return None
    cycles, schedule = found
    g = geometry_of(_root(specialize(group, dict(schedule.literal))))
    assert g is not None
    examples = substitute(g.examples, hint)
    terms = g.count * g.outputs * g.pixels * g.depth * (examples if isinstance(examples, int) else 32)
    short = g.depth <= SHORT and g.positions < g.pixels
    return schedule if short or cycles * schedule.width <= GOOD * terms else None


def lower_windows(group: Function, schedule: WindowSchedule) -> Lowered:
    """Kernels for a group of one `conv` with an epilogue; `schedule` as `candidate` gives it."""
    made = specialize(group, dict(schedule.literal))
    root = _root(made)
    buffers = _params(made)
    pull = Pull(made, buffers)
    g = geometry_of(root)
    assert g is not None, "a schedule for windows is for known sizes"
    results = tuple(Buffer(f"r{i}", v.type.dtype, "out") for i, v in enumerate(made.results))
    c = conv_contraction(made, root, pull, per_example=True)
    kernels, scratch = WindowKernels(c, g, schedule, results).build()
    return Lowered(kernels, tuple(buffers[p] for p in made.params), results, scratch, tuple(pull.sites))


def _params(group: Function) -> dict[Value, Buffer]:
    return {p: Buffer(f"p{i}", p.type.dtype, "in") for i, p in enumerate(group.params)}
