"""Items of programs: what waits for what, which launches share an item, how many parts are worth having."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from graphc.codegen.costs import DEFAULT
from graphc.codegen.dependences import WINDOW, Range, dependences, reduced
from graphc.codegen.items import TOGETHER, make_items, worth
from graphc.codegen.kernels import Launch, Site
from graphc.codegen.plan import Plan, PlannedLaunch
from graphc.codegen.program import compile_function
from graphc.ir.function import Builder
from graphc.ir.types import TensorType
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.codegen.compiled import on_threads
from tests.codegen.test_runner import Program, address_of, planned, threads_of

# --------------------------------------------------------------- dependences

_range = st.tuples(st.sampled_from(["arena", ("in", 0)]), st.integers(0, 40), st.integers(0, 12)).map(
    lambda r: (r[0], r[1], r[1] + r[2])
)
_touches = st.lists(
    st.tuples(st.lists(_range, max_size=3), st.lists(_range, max_size=2)), max_size=14
)


def _meet(some: list[Range], others: list[Range]) -> bool:
    return any(
        a[0] == b[0] and max(a[1], b[1]) < min(a[2], b[2]) for a, b in itertools.product(some, others)
    )


@settings(max_examples=150, deadline=None)
@given(_touches)
def test_what_touches_the_same_memory_is_ordered(touches: list[tuple[list[Range], list[Range]]]) -> None:
    """Two launches are ordered, directly or through others, exactly if a chain of conflicts leads from one to the other."""
    kept, above = reduced(dependences([r for r, _ in touches], [w for _, w in touches]))
    expected: list[int] = []
    for j, (reads, writes) in enumerate(touches):
        mask = 0
        for i, (earlier, written) in enumerate(touches[:j]):
            if _meet(writes, [*earlier, *written]) or _meet(reads, written):
                mask |= expected[i] | 1 << i
        expected.append(mask)
    assert [{j - 1 - k for k in range(j) if mask >> k & 1} for j, mask in enumerate(above)] == [
        {i for i in range(j) if mask >> i & 1} for j, mask in enumerate(expected)
    ]
    for j, needs in enumerate(kept):
        assert needs == sorted(needs, reverse=True)
        # No dependence that another one implies, and none is missing.
        assert not any(expected[a] >> b & 1 for a, b in itertools.permutations(needs, 2))
        union = 0
        for d in needs:
            union |= expected[d] | 1 << d
        assert union == expected[j]


def test_ranges_that_only_touch_do_not_meet() -> None:
    assert dependences([[], [("arena", 64, 128)], [("arena", 0, 64)]], [[("arena", 0, 64)], [], []]) == [set(), set(), {0}]


def test_dependences_from_far_away_are_kept() -> None:
    count = 3 * WINDOW
    kept, _ = reduced([{i - 1, 0} - {i, -1} if i else set() for i in range(count)])
    assert all(own == ([i - 1] if 0 < i <= WINDOW else [i - 1, 0] if i else []) for i, own in enumerate(kept))


# --------------------------------------------------------------- items


def launch(work: int, reads: list[Range], writes: list[Range], parallel: int = 1000, symbol: str = "map_0") -> PlannedLaunch:
    return PlannedLaunch(Launch(symbol, (), (), "", ""), (), (), parallel, work, "", None, (), tuple(reads), tuple(writes))


def block(i: int) -> Range:
    return ("arena", 64 * i, 64 * i + 64)


def plan(*launches: PlannedLaunch) -> Plan:
    return Plan(None, launches, 0)  # type: ignore[arg-type]


def test_small_neighbours_share_an_item() -> None:
    """Up to so many microseconds of them; a long launch has one of its own."""
    small = [launch(1000, [block(i)], [block(i + 1)]) for i in range(100)]
    long = launch(10_000_000, [block(100)], [block(101)])
    made = make_items(plan(*small, long, *small), DEFAULT).items
    assert sum(len(i.launches) for i in made) == 201
    assert [k for i in made for k in i.launches] == list(range(201))
    assert all(i.microseconds <= TOGETHER for i in made if len(i.launches) > 1)
    (alone,) = [i for i in made if 100 in i.launches]
    assert alone.launches == (100,) and alone.worth > 30
    assert all(i.worth == 1 for i in made if i is not alone)
    assert len(made) < 20


def test_an_item_waits_for_all_that_its_launches_wait_for() -> None:
    long = [launch(10_000_000, [], [block(i)]) for i in range(3)]
    small = launch(10, [block(0)], [block(10)]), launch(10, [block(2)], [block(11)])
    made = make_items(plan(*long, *small), DEFAULT)
    assert [i.launches for i in made.items] == [(0,), (1,), (2,), (3, 4)]
    assert made.items[3].needs == (2, 0) and made.ends == (3, 1)


def test_independent_items_are_of_use_to_several_threads() -> None:
    branches = [launch(4_000_000, [block(0)], [block(i + 1)], parallel=1) for i in range(4)]
    made = make_items(plan(*branches), DEFAULT)
    assert [i.useful for i in made.items] == [4, 3, 2, 1] and made.width == 4
    chain = [launch(4_000_000, [block(i)], [block(i + 1)], parallel=1) for i in range(4)]
    assert make_items(plan(*chain), DEFAULT).width == 1


def test_parts_follow_time_and_extent() -> None:
    long = launch(70_000_000, [], [])
    assert worth(long, DEFAULT) == 500  # 1000 us in parts of 2
    assert worth(replace(long, parallel=5), DEFAULT) == 5
    assert worth(replace(long, work=100), DEFAULT) == 1
    # The same number of operations takes longer in a scatter, and a launch that only moves bytes takes time too.
    assert worth(replace(long, work=200_000), DEFAULT) == 1
    assert worth(launch(200_000, [], [], symbol="scan_0"), DEFAULT) > 10
    assert worth(launch(0, [("arena", 0, 10_000_000)], []), DEFAULT) > 10
    assert worth(replace(long, work=1000), DEFAULT, grain=1) == 512


def test_what_writes_over_an_input_waits_for_errors() -> None:
    gather = replace(launch(10_000_000, [block(0)], [block(1)]), sites=(Site("gather", None, 0, 7),))
    update = replace(launch(10_000_000, [block(2)], [block(2)]), in_place=True)
    other = launch(10_000_000, [block(3)], [block(4)])
    made = make_items(plan(gather, update, other), DEFAULT)
    assert [i.needs for i in made.items] == [(), (0,), ()]


def test_weight_and_input_gradient_are_independent() -> None:
    b = Builder("layer")
    x, w, dy = (b.param(TensorType.parse(f"f32[{s}]")) for s in ("512, 256", "128, 256", "512, 128"))
    dw = b.dot(dy, x, lhs_contract=(0,), rhs_contract=(0,))
    dx = b.dot(dy, w, lhs_contract=(1,), rhs_contract=(0,))
    with on_threads(2):
        made = compile_function(b.build([dw, dx])).items
    first = {k for n, i in enumerate(made.items) if not i.needs for k in i.launches}
    groups = [p.group for p in compile_function(b.build([dw, dx])).plan.launches]
    assert {groups[k] for k in first} == set(groups)
    assert len(made.ends) == 2


# --------------------------------------------------------------- run


@pytest.fixture(scope="module")
def mix() -> int:
    return int(address_of(lambda x: x * 3 + 1))


@pytest.mark.parametrize("threads", [1, 2, 3, 8, 64])
def test_random_programs_run_as_if_in_order(threads: int, mix: int) -> None:
    """Launches over overlapping ranges of one arena, however they overlap in time, leave what they leave in order."""
    rng = np.random.default_rng(threads)
    with threads_of(threads):
        for _ in range(12 if threads < 64 else 4):
            _run_randomly(rng, mix)


def _run_randomly(rng: Any, mix: int) -> None:
    size = 3000
    arena = np.arange(size)
    launches = []
    steps = []
    for _ in range(int(rng.integers(1, 60))):
        n = int(rng.integers(1, 700))
        source, target = (int(k) for k in rng.integers(0, size - n, 2))
        if source != target and abs(source - target) < n:
            target = source  # a launch does not write what another element of it reads
        steps.append((source, target, n))
        places = [("arena", arena.ctypes.data + 8 * source), ("arena", arena.ctypes.data + 8 * target)]
        touched = [("arena", 8 * at, 8 * (at + n)) for at in (source, target)]
        # Some are small, so that they share items; some have one part.
        work = int(rng.choice([0, 1000, 1 << 20, 1 << 24]))
        launches.append(planned(mix, n, places, touched[:1], touched[1:], work))
    programs = [Program(launches, grain=grain) for grain in (1, None)]
    for program in programs:
        for _ in range(4):
            arena[:] = np.arange(size)
            expected = arena.copy()
            for source, target, n in steps:
                expected[target : target + n] = expected[source : source + n] * 3 + 1
            assert program.run() == 0
            assert (arena == expected).all()


def test_many_runs_and_threads_that_change(mix: int) -> None:
    """The number of threads may change between runs, and the epoch start anew."""
    rng = np.random.default_rng(0)
    x, out = np.arange(1000), np.zeros(1000, np.int64)
    touched = [("arena", 0, 8000), ("arena", 8000, 16000)]
    places = [("arena", x.ctypes.data), ("arena", out.ctypes.data)]
    program = Program([planned(mix, 1000, places, touched[:1], touched[1:])])
    with threads_of(2) as pool:
        for k in range(300):
            if k % 3 == 0:
                pool.set_threads(int(rng.integers(1, 9)))
            if k == 150:
                program.table._program.array[16] = 2**32 - 3
            out[:] = 0
            assert program.run() == 0
            assert (out == x * 3 + 1).all()


def test_programs_that_go_while_workers_look_around(mix: int) -> None:
    x = np.arange(64)
    with threads_of(4):
        for _ in range(200):
            out = np.zeros(64, np.int64)
            touched = [("arena", 0, 512), ("arena", 512, 1024)]
            places = [("arena", x.ctypes.data), ("arena", out.ctypes.data)]
            program = Program([planned(mix, 64, places, touched[:1], touched[1:])] * 3)
            assert program.run() == 0
            assert (out == x * 3 + 1).all()
            del program
