"""Which launches of a plan wait for which: those that touch the same memory, one of them writing.

Memory is what decides, not values: a range of the arena that is given to another value makes the launch that writes it
wait for all that still read the old one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

# Memory that a launch touches: (space, first byte, end). Ranges meet only in one space.
Range = tuple[Hashable, int, int]


@dataclass(slots=True)
class _Segment:
    """Bytes from `low` to `high` with one history: who wrote them last, who has read them since."""

    low: int
    high: int
    writer: int | None = None
    readers: list[int] = field(default_factory=list)


def _low(s: _Segment) -> int:
    return s.low


class _Space:
    """The segments of one space, ascending and disjoint."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._segments: list[_Segment] = []

    def at(self, low: int, high: int) -> list[_Segment]:
        """The segments that make up exactly low .. high, cut and added where there are none."""
        first = bisect_right(self._starts, low) - 1
        if first >= 0:
            s = self._segments[first]
            if s.low == low and s.high == high:
                return [s]  # as nearly always
            if s.high <= low:
                first += 1
        else:
            first = 0
        stop = first
        found: list[_Segment] = []
        beside: list[_Segment] = []  # what sticks out on either side
        at = low
        while stop < len(self._segments) and self._segments[stop].low < high:
            s = self._segments[stop]
            stop += 1
            if s.low < low:
                beside.append(_Segment(s.low, low, s.writer, list(s.readers)))
            elif s.low > at:
                found.append(_Segment(at, s.low))
            if s.high > high:
                beside.append(_Segment(high, s.high, s.writer, list(s.readers)))
            found.append(_Segment(max(s.low, low), min(s.high, high), s.writer, list(s.readers)))
            at = found[-1].high
        if at < high:
            found.append(_Segment(at, high))
        self._put(first, stop, sorted([*found, *beside], key=_low))
        return found

    def replace(self, found: list[_Segment], writer: int) -> None:
        """`writer` wrote all of these neighbours."""
        one = found[0]
        if len(found) > 1:
            first = bisect_right(self._starts, one.low) - 1
            one.high = found[-1].high
            self._put(first, first + len(found), [one])
        one.writer = writer
        one.readers.clear()

    def _put(self, first: int, stop: int, segments: list[_Segment]) -> None:
        self._segments[first:stop] = segments
        self._starts[first:stop] = [s.low for s in segments]


def dependences(reads: Sequence[Iterable[Range]], writes: Sequence[Iterable[Range]]) -> list[set[int]]:
    """For each launch those before it that it must wait for, direct ones at least.

    reads, writes: what each launch touches, in an order in which they may run.
    """
    spaces: dict[Hashable, _Space] = defaultdict(_Space)
    found: list[set[int]] = []
    for i, (ins, outs) in enumerate(zip(reads, writes, strict=True)):
        needs: set[int] = set()
        for space, low, high in ins:
            if low < high:
                for s in spaces[space].at(low, high):
                    if s.writer is not None:
                        needs.add(s.writer)
                    s.readers.append(i)
        for space, low, high in outs:
            if low < high:
                segments = spaces[space].at(low, high)
                for s in segments:
                    needs.update(s.readers)
                    if s.writer is not None:
                        needs.add(s.writer)
                spaces[space].replace(segments, i)
        needs.discard(i)
        found.append(needs)
    return found


WINDOW = 512


def reduced(needs: Sequence[Iterable[int]]) -> tuple[list[list[int]], list[int]]:
    """(the dependences that no other one implies, latest first; for each all that it waits for among those just before it).

    The latter is a number: bit k stands for the one k + 1 places before, up to `WINDOW`. Between two places lie all that could order
    them, so this is exact; dependences from further away are all kept, and time is in proportion to their number.
    """
    mask = (1 << WINDOW) - 1
    kept: list[list[int]] = []
    above: list[int] = []
    for i, direct in enumerate(needs):
        covered, own = 0, []
        for d in sorted(direct, reverse=True):
            back = i - d - 1
            if back >= WINDOW:
                own.append(d)
            elif not covered >> back & 1:
                own.append(d)
                covered |= ((above[d] << 1 | 1) << back) & mask
        kept.append(own)
        above.append(covered)
    return kept, above
