"""Items: what the threads of a program take, made from the launches of a plan.

An item is one launch, which may have several parts, or a run of small ones for one thread. Which items an item waits for follows
from the memory that they touch. The memory of the table is described in llvm/runner.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from graphc.codegen.costs import Costs
from graphc.codegen.dependences import dependences, reduced

if TYPE_CHECKING:
    from graphc.codegen.plan import Plan, PlannedLaunch

MOST_PARTS = 512
_ERROR = 4  # words of a launch's error: {site, value} and, for `Runner.run`, the launch
SMALL = 2.0  # microseconds of a launch that may share an item with its neighbours
TOGETHER = 6.0  # microseconds of such an item
COMPANION = 6.0  # microseconds of an item that another thread may as well run at the same time
AHEAD = 12  # items among which companions are looked for


@dataclass(frozen=True)
class Item:
    """launches: positions in the plan. extent: of the one launch. worth: parts that are worth having, whatever the number of
    threads. needs: items that must be complete. useful: threads that may be at work from here on. microseconds: on one thread.
    """

    launches: tuple[int, ...]
    extent: int
    worth: int
    needs: tuple[int, ...]
    useful: int
    microseconds: float


@dataclass(frozen=True)
class Items:
    """The items of a plan in order; `ends`: those that nothing else waits for."""

    items: tuple[Item, ...]
    ends: tuple[int, ...]

    @property
    def width(self) -> int:
        """The most threads that are of use."""
        return max((i.useful for i in self.items), default=1)


def make_items(plan: Plan, costs: Costs, grain: int | None = None) -> Items:
    """The items of a plan.

    grain: elementary operations of a part at least, instead of the time that `costs` asks for (for tests: 1 cuts all that can be
    cut, and keeps every launch an item of its own).
    """
    launches = plan.launches
    times = [_time(p, costs) for p in launches]
    needs = dependences([p.reads for p in launches], [p.writes for p in launches])
    _errors_first(launches, needs)
    groups = [[i] for i in range(len(launches))] if grain is not None else _small_together(times)
    home = {i: n for n, group in enumerate(groups) for i in group}
    between = [{home[d] for i in group for d in needs[i]} - {n} for n, group in enumerate(groups)]
    kept, above = reduced(between)
    spent = [sum(times[i] for i in group) for group in groups]
    parts = [worth(launches[group[0]], costs, grain) if len(group) == 1 else 1 for group in groups]
    left = float(sum(spent))
    items = []
    for n, group in enumerate(groups):
        companions = _companions(n, above, spent, 0.0 if grain is not None else COMPANION)
        useful = parts[n] + companions if grain is not None or left >= costs.wake else 1
        extent = launches[group[0]].parallel if len(group) == 1 else 1
        items.append(Item(tuple(group), extent, parts[n], tuple(kept[n]), useful, spent[n]))
        left -= spent[n]
    waited = {d for own in kept for d in own}
    return Items(tuple(items), tuple(n for n in reversed(range(len(groups))) if n not in waited))


def _errors_first(launches: Sequence[PlannedLaunch], needs: list[set[int]]) -> None:
    """What writes over an input waits for all that may still report an error, and then leave the inputs as they are."""
    reporting = [i for i, p in enumerate(launches) if p.sites]
    for i, p in enumerate(launches):
        if p.in_place:
            needs[i].update(r for r in reporting if r < i)


def worth(p: PlannedLaunch, costs: Costs, grain: int | None = None) -> int:
    """How many parts a launch is worth at most; grain as in `make_items`."""
    parts = p.work // grain if grain is not None else int(_time(p, costs) / costs.part)
    return max(1, min(p.parallel, parts, MOST_PARTS))


def _time(p: PlannedLaunch, costs: Costs) -> float:
    return costs.microseconds(p.launch.symbol, p.work, p.moved)


def _small_together(times: Sequence[float]) -> list[list[int]]:
    """Neighbours that are too short to be handed around one by one."""
    groups: list[list[int]] = []
    total, open_ = 0.0, False
    for i, t in enumerate(times):
        small = t < SMALL
        if small and open_ and total + t <= TOGETHER:
            groups[-1].append(i)
            total += t
        else:
            groups.append([i])
            total = t
        open_ = small
    return groups


def _companions(n: int, above: Sequence[int], spent: Sequence[float], least: float) -> int:
    """How many of the next items may run beside item n, and are long enough to matter."""
    found = 0
    for m in range(n + 1, min(n + 1 + AHEAD, len(spent))):
        if spent[m] >= least and not above[m] & (1 << (m - n)) - 1:
            found += 1
    return found


class Words:
    """int64 words on cache lines of their own: what one thread writes lies beside nothing that another reads."""

    def __init__(self, count: int) -> None:
        block = np.zeros(max(1, count) + 15, np.int64)
        at = int(block.ctypes.data)
        skip = -(at // 8) % 16
        self.array = block[skip : skip + max(1, count)]
        self.address = at + 8 * skip

    def at(self, word: int) -> int:
        return self.address + 8 * word


def _filled(words: Sequence[int]) -> Words:
    made = Words(len(words))
    made.array[: len(words)] = words
    return made


# Of a buffer's place in the plan: (pointer, offset) or, where the address is fixed, (None, address).
PointerOf = Callable[[tuple[str, int]], tuple[int | None, int]]


class Table:
    """The memory of a program for the runner. `address` is what `run_program` takes.

    pointers: the addresses of inputs, outputs and arena, to be set before each run. forget: is told before the memory goes.
    """

    _forget: Callable[[int], object] | None = None

    def __init__(
        self, plan: Plan, items: Items, pointer_of: PointerOf, pointers: int, forget: Callable[[int], object] | None = None
    ) -> None:
        launches = plan.launches
        args: list[int] = []
        starts: list[int] = []
        patches: list[tuple[int, int, int]] = []  # (pointer, word of args, offset)
        for p in launches:
            starts.append(len(args))
            for place in p.places:
                pointer, value = pointer_of(place)
                if pointer is not None:
                    patches.append((pointer, len(args), value))
                args.append(value)
            args += p.extents
        patches.sort()
        self._args = _filled(args)
        self._errors = Words(_ERROR * len(launches))
        records: list[int] = []
        for item in items.items:
            for i in item.launches:
                p = launches[i]
                records += (p.launch.address, p.parallel, self._args.at(starts[i]), self._errors.at(_ERROR * i))
        self._records = _filled(records)
        # A word for 32 parts, each on a line of its own; the first shares it with what says that the item is complete.
        states = [0, *itertools.accumulate(8 * max(1, -(-item.worth // 32)) for item in items.items)]
        self._states = Words(states[-1])
        waits = [*(item.needs for item in items.items), items.ends]
        self._needs = _filled([self._states.at(states[d]) for group in waits for d in group])
        rows: list[int] = []
        launch = need = 0
        for item, state in zip(items.items, states, strict=False):
            rows += (self._records.at(4 * launch), len(item.launches), item.extent, item.worth, 1)
            rows += (self._needs.at(need), len(item.needs), self._states.at(state), item.useful, *[0] * 7)
            launch, need = launch + len(item.launches), need + len(item.needs)
        rows += (0, 0, 0, 0, 0, self._needs.at(need), len(items.ends), *[0] * 9)
        self._items = _filled(rows)
        self._given = Words(pointers)
        self.pointers = self._given.array
        self._known = _filled([-1] * pointers)  # so that the first run patches all
        counts = [0] * (pointers + 1)
        for pointer, _, _ in patches:
            counts[pointer + 1] += 1
        self._starts = _filled(list(itertools.accumulate(counts)))
        self._patches = _filled([w for _, word, offset in patches for w in (self._args.at(word), offset)])
        program = [0] * 32
        program[0], program[1], program[4] = self._items.address, len(items.items), items.width
        program[9], program[10] = self._states.address, states[-1]
        program[11:16] = [w.address for w in (self._given, self._known)] + [pointers, self._starts.address, self._patches.address]
        self._program = _filled(program)
        self.address = self._program.address
        self._forget = forget

    def failed(self) -> tuple[int, int, int] | None:
        """(launch, site, value) of the first launch that reported an error, which is forgotten; None if none did."""
        errors = self._errors.array
        found = np.flatnonzero(errors[::_ERROR])
        if not len(found):
            return None
        i = int(found[0])
        site, value = int(errors[_ERROR * i]), int(errors[_ERROR * i + 1])
        errors[:] = 0
        return i, site, value

    def renew(self) -> None:
        """As if the program had never run. Nobody may be running it."""
        self._states.array[:] = 0
        self._errors.array[:] = 0
        self._program.array[16] = 0  # the epoch

    def __del__(self) -> None:
        # A worker may still look around in a program that has ended.
        if self._forget is not None:
            self._forget(self.address)
