"""Plans: memory is reused, and never while somebody still needs what it holds."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from graphc.codegen import plan as plans
from graphc.codegen import program as programs
from graphc.codegen.arena import Arenas
from graphc.codegen.fuse import fuse
from graphc.codegen.groups import separate
from graphc.codegen.kernels import BoundGroup, CompiledGroup, Launch, Wanted
from graphc.codegen.plan import ALIGN, Arena, Plan, lay_out, make_plan
from graphc.codegen.prepare import prepare
from graphc.codegen.program import compile_function
from graphc.ir.function import Builder, Function, Loc, Module, Value
from graphc.ir.types import F32, TensorType
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.codegen.compiled import difference, execute
from tests.codegen.values import plain
from tests.equality.oracle import exact_interpret
from tests.equality.programs import Generator, inputs_for

F = TensorType.parse


def planned(f: Function, fused: bool = True) -> tuple[Module, Plan]:
    prepared, _ = prepare(f)
    module = fuse(prepared) if fused else separate(prepared)
    return module, make_plan(module)


def chain(depth: int, size: int = 24) -> Function:
    """Products one after the other: a kernel each, and only the last result is wanted later."""
    b = Builder("chain")
    x, w = b.param(TensorType(F32, (16, size))), b.param(TensorType(F32, (size, size)))
    for _ in range(depth):
        x = b.dot(x, w, lhs_contract=(1,), rhs_contract=(0,))
    return b.build([x])


# --------------------------------------------------------------- the arena


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 1000)), max_size=60))
def test_ranges_of_the_arena_never_overlap(steps: list[tuple[bool, int]]) -> None:
    """Takes and gives in any order: what is taken is aligned, inside, and apart from all else."""
    arena = Arena()
    live: list[tuple[int, int]] = []
    for take, n in steps:
        if take or not live:
            offset = arena.take(n)
            assert offset % ALIGN == 0 and offset + n <= arena.size
            assert all(offset + max(n, 1) <= o or o + max(s, 1) <= offset for o, s in live)
            live.append((offset, n))
        else:
            arena.give(*live.pop(n % len(live)))
        free = arena.free
        assert free == sorted(free) and all(o + s < p for (o, s), (p, _) in itertools.pairwise(free))
    for offset, n in live:
        arena.give(offset, n)
    # All of it is one free range again.
    assert arena.free == ([(0, arena.size)] if arena.size else [])


def test_the_best_fitting_range_is_taken() -> None:
    arena = Arena()
    a, b, c, d = (arena.take(n) for n in (640, 64, 128, 64))
    assert (a, b, c, d) == (0, 640, 704, 832)
    arena.give(a, 640)
    arena.give(c, 128)
    assert arena.take(100) == c and arena.take(100) == a
    assert arena.size == 896


def test_a_free_range_at_the_end_grows() -> None:
    arena = Arena()
    a = arena.take(128)
    arena.give(a, 128)
    assert arena.take(256) == 0 and arena.size == 256


# --------------------------------------------------------------- plans


@pytest.mark.parametrize("depth", [2, 3, 10, 50])
def test_a_chain_needs_two_buffers(depth: int) -> None:
    """Beside what its kernels need for themselves, which is the same for each."""
    _, plan = planned(chain(depth))
    assert len({p.launch.symbol for p in plan.launches}) == len(planned(chain(1))[1].launches)
    assert plan.arena <= 2 * 16 * 24 * 4 + planned(chain(1))[1].arena


def test_results_and_inputs_are_the_callers() -> None:
    _, plan = planned(chain(3))
    places = [place for p in plan.launches for place in p.places]
    assert ("out", 0) in places and {("in", 0), ("in", 1)} <= set(places)
    single = planned(chain(1))[1]
    assert all(kind != "arena" for p in single.launches for kind, _ in p.places) or single.arena


def test_a_plan_as_text() -> None:
    b = Builder("f")
    x = b.param(F("f32[3, 4]"))
    b.loc = Loc("train.py", 7)
    text = str(planned(b.build([b.exp(x)]))[1]).splitlines()
    assert text[0] == "plan @f: 1 launches, arena 0 bytes"
    assert text[1].startswith("  0: group0 map_") and "(in0, out0) e0=12 parallel=1 " in text[1]
    assert text[1].endswith('loc("train.py":7)')


def test_nothing_is_launched_for_results_without_elements() -> None:
    b = Builder("f")
    x = b.param(F("f32[3, 0]"))
    _, plan = planned(b.build([b.exp(x), b.sum(x, axes=(1,))]))
    assert len(plan.launches) == 1


class Groups:
    """In the place of the compiler: launches over all operands, results, and scratch memory of random sizes."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.scratch: list[list[int]] = []  # for each group that is bound, in order

    def bind_all(self, wanted: Sequence[Wanted], *how: object) -> list[BoundGroup]:
        return [self.bind(w.group) for w in wanted]

    def bind(self, group: Function) -> BoundGroup:
        sizes = [int(n) for n in self.rng.integers(0, 3000, int(self.rng.integers(0, 3)))]
        self.scratch.append(sizes)
        buffers = [("p", i) for i in range(len(group.params))] + [("r", i) for i in range(len(group.results))]
        buffers += [("s", i) for i in range(len(sizes))]
        launch = Launch(group.name, tuple(buffers), (), "1", "1")
        return BoundGroup(CompiledGroup("", (launch,), tuple(("uint8", str(n)) for n in sizes), ()), {})


Interval = tuple[int, int, int, int, str]  # first and last operation, first byte, end, what it is


def intervals(module: Module, plan: Plan, groups: Groups) -> list[Interval]:
    """Every range of the arena that holds something, with the operations during which it does."""
    ops = module.entry.ops
    last = {v: i for i, op in enumerate(ops) for v in op.operands}
    computing = [(i, op) for i, op in enumerate(ops) if any(int(r.type.nbytes) for r in op.results)]
    found: list[Interval] = []
    for (i, op), p, scratch in zip(computing, plan.launches, groups.scratch, strict=True):
        assert p.group == op.attrs["function"].name
        for (kind, k), (where, at) in zip(p.launch.buffers, p.places, strict=True):
            if kind == "s":
                assert where == "arena"
                found.append((i, i, at, at + scratch[k], f"scratch {k} of {p.group}"))
            elif kind == "r" and where == "arena":
                v = op.results[k]
                found.append((i, last.get(v, i), at, at + int(v.type.nbytes), f"result {k} of {p.group}"))
    return found


@pytest.mark.parametrize("start", range(0, 80, 20))
def test_live_ranges_never_overlap(start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(start, start + 20):
        f = Generator(seed).function(30)
        for fused in (True, False):
            groups = Groups(seed)
            monkeypatch.setattr(plans, "bind_groups", groups.bind_all)
            module, plan = planned(f, fused)
            held = intervals(module, plan, groups)
            for n, (first, until, low, high, what) in enumerate(held):
                assert low >= 0 and high <= plan.arena
                for first2, until2, low2, high2, other in held[n + 1 :]:
                    together = first <= until2 and first2 <= until
                    assert not together or high <= low2 or high2 <= low, f"seed {seed}: {what} and {other}"
            # Nothing lives in two places, and what is read lies where it was written.
            place: dict[Value, tuple[str, int]] = {}
            computing = [op for op in module.entry.ops if any(int(r.type.nbytes) for r in op.results)]
            for op, p in zip(computing, plan.launches, strict=True):
                for (kind, k), at in zip(p.launch.buffers, p.places, strict=True):
                    if kind != "s":
                        v = op.operands[k] if kind == "p" else op.results[k]
                        assert place.setdefault(v, at) == at


@pytest.mark.parametrize("seed", range(12))
def test_what_the_arena_held_before_does_not_matter(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read that was not written: with NaN everywhere at first, and with the last run's values."""
    f = Generator(seed).function(16)
    args = inputs_for(f, seed)
    program = compile_function(f, fused=False)
    arenas = Arenas()
    monkeypatch.setattr(programs, "arenas", arenas)
    arena = arenas.own.grow(max(1, program.plan.arena), "f")
    expected = exact_interpret(f, args)
    for byte in (0xFF, 0x00, 0x7F):
        ctypes.memset(arena.address, byte, arena.size)
        got = execute(program, args)
        assert not [d for e, g in zip(expected, got, strict=True) if (d := difference(e, g))]
    again = execute(program, args)
    assert not [d for e, g in zip(expected, again, strict=True) if (d := difference(e, g))]


def test_programs_of_all_sizes_share_one_arena() -> None:
    small, large = compile_function(chain(3)), compile_function(chain(3, 200))
    args = [[plain(F32, (16, n), 1), plain(F32, (n, n), 2)] for n in (24, 200)]
    for _ in range(2):
        for p, a in zip((small, large), args, strict=True):
            (expected,) = exact_interpret(p.function, a)
            assert not difference(expected, execute(p, a)[0])
    assert np.isfinite(execute(small, args[0])[0]).all()


# --------------------------------------------------------------- memory of operations that may overlap


def branches(count: int, size: int = 64) -> Function:
    """Products of one input with weights of their own, each through two kernels: independent of each other."""
    b = Builder("branches")
    x = b.param(TensorType(F32, (size, size)))
    out = []
    for _ in range(count):
        w = b.param(TensorType(F32, (size, size)))
        y = b.dot(x, w, lhs_contract=(1,), rhs_contract=(0,))
        out.append(b.dot(y, w, lhs_contract=(1,), rhs_contract=(0,)))
    return b.build(out)


def test_independent_operations_share_no_memory_where_that_costs_little() -> None:
    module, _ = planned(branches(6))
    tight = lay_out(module.entry, lambda i, op: [16384])
    loose = lay_out(module.entry, lambda i, op: [16384], apart=True)
    assert tight.size < loose.size <= tight.size + tight.size // plans.SPARE + plans.SPARE_BYTES
    firsts = [i for i in range(len(module.entry.ops)) if not _needs(module.entry, i)]
    assert len(firsts) == 6
    assert len({loose.scratch[i][0] for i in firsts}) == 6 > len({tight.scratch[i][0] for i in firsts})
    # Where it would cost much, they do.
    large = lay_out(module.entry, lambda i, op: [1 << 24], apart=True)
    assert large.size <= lay_out(module.entry, lambda i, op: [1 << 24]).size * (1 + 1 / plans.SPARE) + plans.SPARE_BYTES
    assert len({large.scratch[i][0] for i in firsts}) < 6


def _needs(entry: Function, i: int) -> set[Value]:
    made = {r for op in entry.ops for r in op.results}
    return made & set(entry.ops[i].operands)


@pytest.mark.parametrize("depth", [4, 16, 64])
def test_a_chain_is_kept_apart_from_nothing(depth: int) -> None:
    """The arena of a chain does not grow with it, whether operations are kept apart or not."""
    module, _ = planned(chain(depth))
    sizes = {apart: lay_out(module.entry, lambda i, op: [4096], apart=apart).size for apart in (False, True)}
    assert sizes[False] == sizes[True] <= 2 * 16 * 24 * 4 + 4096 + 2 * ALIGN
