"""Lowering of a group whose root is a `conv`, with lanes over output pixels (see kernels.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Union

from graphc.codegen.loops import Buffer
from graphc.codegen.lower.conv import conv_contraction
from graphc.codegen.lower.lowered import Lowered
from graphc.codegen.lower.pull import Pull
from graphc.codegen.lower.windows.geometry import Geometry, geometry_of, gradient_geometry
from graphc.codegen.lower.windows.gradient import GradientKernels
from graphc.codegen.lower.windows.gradient_schedule import GradientSchedule
from graphc.codegen.lower.windows.gradient_schedule import choose as choose_gradient
from graphc.codegen.lower.windows.groups import GroupKernels, GroupSchedule
from graphc.codegen.lower.windows.groups import choose as choose_groups
from graphc.codegen.lower.windows.kernels import WindowKernels
from graphc.codegen.lower.windows.planes import PlaneKernels, PlaneSchedule
from graphc.codegen.lower.windows.planes import choose as choose_planes
from graphc.codegen.lower.windows.schedule import WindowSchedule, choose
from graphc.codegen.lower.windows.spread import SpreadKernels, SpreadSchedule
from graphc.codegen.lower.windows.spread import choose as choose_spread
from graphc.ir.function import Function, Operation, Value
from graphc.ir.interpret import specialize
from graphc.ir.types import DimExpr, DType, Shape, size_of, substitute

Hint = Mapping[str, int]
# Cycles for a vector of terms up to which a schedule is taken.
GOOD = 1.5
# What a product needs that has LANES output channels, and in all for its tiles' beginnings and ends.
PRODUCT, ENDS, LANES = 1.13, 20, 32
# Sums so short, or so few output channels, have it always: they leave most of a product's tiles empty. With less than
# MANY output channels, products need twice the cycles that they need else.
SHORT, FEW, MANY = 64, 4, 16
SHORT_VOLUME = 32
FEW_INPUTS = 8  # so few terms are over before a product's loops have paid
GOOD_GRADIENT = 1.8
# Output channels of a group that is one channel, each of which reads it again.
MOST_OUTPUTS = 2
WindowSchedules = Union[WindowSchedule, GradientSchedule, GroupSchedule, PlaneSchedule, SpreadSchedule]


def _root(group: Function) -> Operation:
    return next(op for op in group.ops if op.name == "conv")


def candidate(group: Function, hint: Hint, vector_bits: int) -> tuple[float, WindowSchedule] | None:
    """The best schedule of this kind for these extents, and its cycles; None where there is none.

    Sizes become literals, but for the number of examples.
    """
    known = _window_of(group, hint)
    return None if known is None else choose(*known[:-1], vector_bits, known[-1])


def gradient_candidate(
    group: Function, hint: Hint, vector_bits: int
) -> tuple[float, GradientSchedule] | None:
    """As `candidate`, for lanes over output channels; literal are all sizes but for the number of channels of x."""
    known = _gradient_of(group, hint)
    return None if known is None else choose_gradient(*known[:-1], vector_bits, known[-1])


def group_candidate(group: Function, hint: Hint, vector_bits: int) -> tuple[float, GroupSchedule] | None:
    """As `gradient_candidate`, for lanes over groups."""
    known = _gradient_of(group, hint)
    return None if known is None else choose_groups(*known[:-1], vector_bits, known[-1])


def input_candidate(group: Function, hint: Hint, vector_bits: int) -> tuple[float, GroupSchedule] | None:
    """As `gradient_candidate`, for lanes over input channels."""
    known = _gradient_of(group, hint)
    return None if known is None else choose_groups(*known[:-1], vector_bits, known[-1], shared=True)


def plane_candidate(group: Function, hint: Hint, vector_bits: int) -> PlaneSchedule | None:
    """The schedule for channels that are alone, where they are."""
    known = _window_of(group, hint)
    if known is None:
        return None
    g, _, dtype, literal = known
    return choose_planes(g, dtype, vector_bits, literal)


def spread_candidate(group: Function, hint: Hint, vector_bits: int) -> tuple[float, SpreadSchedule] | None:
    """As `candidate`, for a dilated x, whose zeros are left out."""
    if all(d == 1 for d in _root(group).attrs["lhs_dilation"]):
        return None
    known = _window_of(group, hint)
    return None if known is None else choose_spread(*known[:-1], vector_bits, known[-1])


# The geometry, about how many examples, the dtype of sums, and the literals.
Known = tuple[Geometry, int, DType, tuple[tuple[str, int], ...]]


def _window_of(group: Function, hint: Hint) -> Known | None:
    """Of a convolution whose number of examples is not literal; None where a size or the geometry is not known."""
    root = _root(group)
    x, w = root.operands
    return _known(group, hint, (w.type.shape, x.type.shape[1:], root.result.type.shape[1:]), geometry_of)


def _gradient_of(group: Function, hint: Hint) -> Known | None:
    """The same of a gradient, whose number of channels of x is not literal."""
    root = _root(group)
    x, w = root.operands
    shapes = (w.type.shape[:1], w.type.shape[2:], x.type.shape[:1], x.type.shape[2:], root.result.type.shape)
    return _known(group, hint, shapes, gradient_geometry)


def _known(
    group: Function, hint: Hint, shapes: Iterable[Shape], geometry: Callable[[Operation], Geometry | None]
) -> Known | None:
    literal = _literal(shapes, hint)
    if literal is None:
        return None
    made = specialize(group, dict(literal))
    root = _root(made)
    g = geometry(root)
    if g is None:
        return None
    examples = substitute(g.examples, hint)
    c = conv_contraction(made, root, Pull(made, _params(made)), per_example=True)
    return g, examples if isinstance(examples, int) else 32, c.accumulator, literal


def _literal(shapes: Iterable[Shape], hint: Hint) -> tuple[tuple[str, int], ...] | None:
    """The values of all symbols in shapes, None if one is unknown."""
    symbols = set[str]().union(*(d.symbols() for shape in shapes for d in shape if isinstance(d, DimExpr)))
    return tuple(sorted((s, hint[s]) for s in symbols)) if symbols <= hint.keys() else None


def windows_schedule(group: Function, hint: Hint, vector_bits: int) -> WindowSchedules | None:
    """The schedule, where it is likely to be faster than a product of matrices."""
    root = _root(group)
    if _pointwise(root, hint):
        return None
    window, out = (_product(v.type.shape[2:], hint) for v in (root.operands[1], root.result))
    if window > out:
        return _gradient_schedule(group, root, hint, vector_bits)
    planes = plane_candidate(group, hint, vector_bits)
    if planes is not None and _product(root.operands[1].type.shape[:1], hint) <= MOST_OUTPUTS * _groups(root):
        return planes
    spread = spread_candidate(group, hint, vector_bits)
    if spread is not None:
        return spread[1]
    found = candidate(group, hint, vector_bits)
    if found is None:
        return None
    cycles, schedule = found
    return schedule if _worth(root, hint, cycles * schedule.width / max(1, _terms(root, hint))) else None


def _pointwise(root: Operation, hint: Hint) -> bool:
    """Whether a convolution is a product, and one that is worth its loops: windows of one element, or, in the gradient
    by those, results of one."""
    w = root.operands[1]
    a = root.attrs
    plain = all(d == 1 for d in (*a["strides"], *a["lhs_dilation"], *a["rhs_dilation"]))
    if not plain or any(p != (0, 0) for p in a["padding"]):
        return False
    if _product(w.type.shape[2:], hint) == 1:
        return _product(w.type.shape[1:], hint) > SHORT
    gradient = _product(root.result.type.shape[2:], hint) == 1 and a["batch_groups"] == 1
    return gradient and _product(root.result.type.shape[:1], hint) > FEW_INPUTS


def _worth(root: Operation, hint: Hint, cycles: float) -> bool:
    """Whether windows are likely to be faster than a product that takes patches; `cycles` for a vector of terms."""
    w = root.operands[1].type.shape
    outputs, depth = _product(w[:1], hint) // _groups(root), _product(w[1:], hint)
    if _product(w[2:], hint) == 1:  # else a product without patches
        return cycles <= GOOD or (depth <= FEW_INPUTS and outputs >= 2 * MANY)
    if outputs < FEW:
        return True
    if len(w) > 4:
        return depth <= SHORT_VOLUME  # many lines are copied many times
    if outputs >= LANES:
        good = min(GOOD, (PRODUCT + ENDS / depth) * -(-outputs // LANES) * LANES / outputs)
    else:
        good = GOOD if outputs >= MANY else 2 * GOOD
    return depth <= SHORT or cycles <= good


def _gradient_schedule(
    group: Function, root: Operation, hint: Hint, vector_bits: int
) -> GradientSchedule | GroupSchedule | None:
    many = group_candidate(group, hint, vector_bits)
    if many is not None:
        return many[1]
    found: tuple[float, GradientSchedule | GroupSchedule] | None = gradient_candidate(
        group, hint, vector_bits
    )
    turned = input_candidate(group, hint, vector_bits)
    if turned is not None and (found is None or turned[0] < found[0]):
        found = turned
    if found is None:
        return None
    cycles, schedule = found
    lone = _product(root.result.type.shape[:1], hint) == 1
    worst = 2 * GOOD_GRADIENT if isinstance(schedule, GroupSchedule) else GOOD_GRADIENT
    good = cycles * max(1, vector_bits // 32) <= worst * _terms(root, hint)
    few = _product(root.operands[1].type.shape[:1], hint) // _groups(root) < FEW
    return schedule if lone or good or few else None


def _groups(root: Operation) -> int:
    return int(root.attrs["groups"] * root.attrs["batch_groups"])


def _product(shape: Shape, hint: Hint) -> int:
    size = substitute(size_of(shape), hint)
    return size if isinstance(size, int) else 32


def _terms(root: Operation, hint: Hint) -> int:
    return _product(root.result.type.shape, hint) * _product(root.operands[1].type.shape[1:], hint)


def lower_windows(group: Function, schedule: WindowSchedules) -> Lowered:
    """Kernels for a group of one `conv` with an epilogue; `schedule` as one of the candidates gives it."""
    made = specialize(group, dict(schedule.literal))
    root = _root(made)
    buffers = _params(made)
    pull = Pull(made, buffers)
    results = tuple(Buffer(f"r{i}", v.type.dtype, "out") for i, v in enumerate(made.results))
    c = conv_contraction(made, root, pull, per_example=True)
    if isinstance(schedule, WindowSchedule):
        g = geometry_of(root)
        assert g is not None, "a schedule for windows is for known sizes"
        kernels, scratch = WindowKernels(c, g, schedule, results).build()
    elif isinstance(schedule, SpreadSchedule):
        g = geometry_of(root)
        assert g is not None, "a schedule for windows is for known sizes"
        kernels, scratch = SpreadKernels(c, g, schedule, results).build()
    elif isinstance(schedule, PlaneSchedule):
        g = geometry_of(root)
        assert g is not None, "a schedule for windows is for known sizes"
        kernels, scratch = PlaneKernels(c, g, schedule, results).build()
    else:
        g = gradient_geometry(root)
        assert g is not None, "a schedule for windows is for known sizes"
        if isinstance(schedule, GroupSchedule):
            kernels, scratch = GroupKernels(c, g, schedule, results).build()
        else:
            kernels, scratch = GradientKernels(c, g, schedule, results).build()
    return Lowered(kernels, tuple(buffers[p] for p in made.params), results, scratch, tuple(pull.sites))


def _params(group: Function) -> dict[Value, Buffer]:
    return {p: Buffer(f"p{i}", p.type.dtype, "in") for i, p in enumerate(group.params)}
