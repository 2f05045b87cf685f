"""Lowering of a group with one `dot` or `conv`: packing, register tiles, and what follows as an epilogue.

The kernels, in order (a schedule, see tiles.py, says which):
1. pack: rows into strips [depth][tile rows], lanes into panels [depth][tile lanes], so that the micro
   kernel reads both in order. Layout operations in front of the root are folded into these reads.
2. main: a task is a strip of rows against a block of lanes (or a block of lanes against all rows,
   where lanes are packed by the task itself). A finished tile goes through the epilogue.
3. finish: only for split sums: the sums of the blocks of k are added in order, then the epilogue.

Many small products have one kernel without tiles in memory (small.py), and most convolutions have lanes over output pixels (windows/).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Union

from graphc.codegen.loops import Buffer
from graphc.codegen.lower.contraction import Access, Contraction, access
from graphc.codegen.lower.conv import conv_contraction
from graphc.codegen.lower.dot import dot_contraction
from graphc.codegen.lower.kernels import ContractionKernels
from graphc.codegen.lower.lowered import Lowered
from graphc.codegen.lower.pull import Pull
from graphc.codegen.lower.small import SmallSchedule, lower_small, small_schedule
from graphc.codegen.lower.tiles import Schedule, Sizes, choose
from graphc.codegen.lower.windows.lower import WindowSchedules, lower_windows, windows_schedule
from graphc.ir.function import Function, Operation, Value
from graphc.ir.types import Dim, Shape, size_of, substitute

ROOTS = ("dot", "conv")
Hint = Mapping[str, int]
Schedules = Union[Schedule, SmallSchedule, WindowSchedules]


def root_of(group: Function) -> Operation:
    """The one contraction of a group; raises `ValueError` if there is not exactly one."""
    roots = [op for op in group.ops if op.name in ROOTS]
    if len(roots) != 1:
        raise ValueError(f"a contraction group has one dot or conv, @{group.name} has {len(roots)}")
    return roots[0]


def variant(group: Function, hint: Hint, vector_bits: int = 512, literal: bool = True) -> Schedules:
    """The schedule for extents of about these values; a kernel's key holds it.

    literal: the schedule may be for one geometry of windows, or one size of small products, only.
    """
    root = root_of(group)
    if literal:
        found = (windows_schedule if root.name == "conv" else small_schedule)(group, hint, vector_bits)
        if found is not None:
            return found
    buffers = _params(group)
    if root.name == "dot":
        return _schedule(dot_contraction(group, root, Pull(group, buffers)), hint, vector_bits, False)
    positions = _value(size_of(root.result.type.shape[2:]), hint)
    per_example = positions >= 16 or _value(root.result.type.shape[0], hint) == 1
    c = conv_contraction(group, root, Pull(group, buffers), per_example)
    return _schedule(c, hint, vector_bits, per_example)


def lower_contraction(
    group: Function, target: Any, hint: Hint | None = None, schedule: Schedules | None = None
) -> Lowered:
    """Kernels for a group of one dot or conv, layout operations before it and an epilogue after it.

    hint: typical values of the extents; the kernels are right for all values.
    """
    root = root_of(group)
    if schedule is None:
        schedule = variant(group, hint or {}, target.vector_bits)
    if isinstance(schedule, SmallSchedule):
        return lower_small(group, schedule)
    if not isinstance(schedule, Schedule):
        return lower_windows(group, schedule)
    buffers = _params(group)
    pull = Pull(group, buffers)
    if root.name == "dot":
        c = dot_contraction(group, root, pull)
    else:
        c = conv_contraction(group, root, pull, schedule.per_example)
    results = tuple(Buffer(f"r{i}", v.type.dtype, "out") for i, v in enumerate(group.results))
    kernels, scratch = ContractionKernels(c, schedule, results, target.vector_bits).build()
    return Lowered(kernels, tuple(buffers[p] for p in group.params), results, scratch, tuple(pull.sites))


def _params(group: Function) -> dict[Value, Buffer]:
    return {p: Buffer(f"p{i}", p.type.dtype, "in") for i, p in enumerate(group.params)}


def _value(d: Dim, hint: Hint) -> int:
    found = substitute(d, hint)
    return found if isinstance(found, int) else 128


def _schedule(c: Contraction, hint: Hint, vector_bits: int, per_example: bool) -> Schedule:
    batch = [_value(d, hint) for d in c.batch]
    left, right = access(c, c.left), access(c, c.right)

    def used(a: Access) -> int:
        total = 1
        for i in a.batch:
            total *= batch[i]
        return total

    def run(shape: Shape) -> int:
        # Neighbouring dimensions that lie together in memory count as one.
        big = [_value(d, hint) for d in shape if d != 1]
        return big[-1] if big else 1

    total = 1
    for b in batch:
        total *= b
    image = 1
    if c.root.name == "conv":
        image = _value(size_of(c.root.operands[0].type.shape[1:]), hint)
    sizes = Sizes(
        total,
        _value(c.left.size, hint),
        _value(c.right.size, hint),
        _value(size_of(c.depth), hint),
        used(left),
        used(right),
        _value(c.left.size, hint) if left.unit_free else run(c.left.free),
        _value(c.right.size, hint) if right.unit_free else run(c.right.free),
        image,
        _value(size_of(c.patches.shape), hint) if c.patches else 0,
    )
    literal = isinstance(size_of(c.depth), int)
    return choose(sizes, left, right, c.accumulator, vector_bits, per_example, literal)
