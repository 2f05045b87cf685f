"""Launches that share a kernel, as one launch: the updates of many parameters, fills, casts of all weights.

A kernel that a launch runs for several members finds its member by its block, in a table that is the launch's only argument
(`loops.Grid.members`). Launches come together if they have the same kernel and none touches what another, or a launch between,
writes.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

from graphc.codegen.loops import Kernel
from graphc.codegen.lower.lowered import Lowered

MOST_BETWEEN = 200  # launches that one may be moved across
TABLE_BYTES = 4000  # of the 4 KB of arguments that every device takes
_FORMS = ("map", "map_wrapped", "map_rows", "map_single", "map_join")  # of one thread each: without shared memory
# Memory: (space, first byte, end). Two places meet only in one space.
Place = tuple[Hashable, int, int]


def can_join(lowered: Lowered) -> bool:
    """Whether several launches of a lowered group can be one: a single map kernel, nothing but buffers and extents."""
    if len(lowered.kernels) != 1 or lowered.scratch or lowered.sites:
        return False
    grid = lowered.kernels[0].grid
    return grid is not None and not grid.maps and lowered.kernels[0].name in _FORMS


def most_members(kernel: Kernel) -> int:
    """How many members fit the table."""
    return (TABLE_BYTES // 8 - 2) // (len(kernel.buffers) + len(kernel.extents) + 1)


def join(kernel: Kernel, members: int) -> Kernel:
    """The kernel for so many members, under a name of its own."""
    assert kernel.grid is not None
    if not 0 < members <= most_members(kernel):
        raise ValueError(f"{kernel.name} takes from 1 to {most_members(kernel)} members at once, not {members}")
    return replace(kernel, name=f"{kernel.name}_x{members}", grid=replace(kernel.grid, members=members))


def block_ends(blocks: Sequence[int]) -> list[int]:
    """The ends of the members' blocks in a launch, from how many each has; the last is the launch's."""
    ends, total = [], 0
    for b in blocks:
        total += b
        ends.append(total)
    return ends


@dataclass(frozen=True)
class Launched:
    """One launch as `runs` sees it. key: of its kernel, None if it cannot join others; limit: members of one launch."""

    key: Hashable
    limit: int
    reads: tuple[Place, ...]
    writes: tuple[Place, ...]


def runs(launches: Sequence[Launched]) -> list[list[int]]:
    """The launches in an order that means the same, those that can be one launch side by side.

    First each goes to the latest launch of its kernel before it, then what is left to the next one after it (the update
    of a parameter, which waits for its gradient), unless something from there on touches what it writes, or writes
    what it touches.
    """
    earlier = _gathered(launches, [[i] for i in range(len(launches))])
    later = _gathered(launches, earlier[::-1])
    return [sorted(run) for run in later[::-1]]


def _gathered(launches: Sequence[Launched], order: Sequence[list[int]]) -> list[list[int]]:
    """Each run moved to the last one of its kernel that came in this order, where that is allowed."""
    out: list[list[int]] = []
    last: dict[Hashable, int] = {}
    for run in order:
        first = launches[run[0]]
        at = last.get(first.key) if first.key is not None else None
        if at is not None and len(out[at]) + len(run) <= first.limit and len(out) - at <= MOST_BETWEEN:
            between = [launches[j] for other in out[at:] for j in other]
            if not any(_meet(launches[i], other) for i in run for other in between):
                out[at] += run
                continue
        out.append(list(run))
        if first.key is not None:
            last[first.key] = len(out) - 1
    return out


def _meet(a: Launched, b: Launched) -> bool:
    return _overlap(a.writes, (*b.reads, *b.writes)) or _overlap(a.reads, b.writes)


def _overlap(some: Sequence[Place], others: Sequence[Place]) -> bool:
    return any(p[0] == q[0] and p[1] < q[2] and q[1] < p[2] for p in some for q in others)
