"""Row groups of random functions on a device, in the form that is chosen and in all others that could be; to the bit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from graphc.codegen.cuda.choice import Choice
from graphc.codegen.cuda.lower import kind
from graphc.codegen.cuda.rows.sweeps import domain_of
from graphc.codegen.fuse import fuse
from graphc.codegen.lower.row_group import is_columns
from graphc.codegen.prepare import prepare as prepared_function
from graphc.ir.interpret import interpret, specialize
from graphc.ir.passes import DEFAULT, run_pipeline
from graphc.ir.types import size_of, substitute

from tests.codegen.device import Array, Case, check_groups, prepare
from tests.codegen.test_fuse import TELL_NAN
from tests.codegen.values import mixed, plain
from tests.ir.random_functions import random_function


def random_groups(seed: int, size: int) -> list[Case]:
    """The row groups of a random function, with the values that reach them; none where an index is out of range."""
    f = specialize(random_function(seed, size), {"B": 2 + seed % 2})
    function, constants = prepared_function(run_pipeline(f, DEFAULT))
    entry = fuse(function).entry
    args: list[Array] = []
    for i, p in enumerate(f.params):
        make = mixed if p.type.dtype.is_float else plain
        args.append(make(p.type.dtype, tuple(map(int, p.type.shape)), seed + i))
    known = dict(zip(entry.params, [*args, *constants], strict=True))
    cases = []
    try:
        for op in entry.ops:
            group = op.attrs["function"]
            inputs = [np.asarray(known[v]) for v in op.operands]
            known.update(zip(op.results, interpret(group, inputs), strict=True))
            if kind(group) == "row" and not any(o.name in TELL_NAN for o in group.ops):
                cases.append(Case(group, inputs))
    except IndexError:
        pass
    return cases


def other_forms(case: Case) -> Sequence[Choice]:
    p = prepare(case)
    shape, axes = domain_of(p.canonical)
    length = substitute(size_of(shape[a] for a in axes), p.sizes)
    if not axes or not isinstance(length, int) or length == 0:
        return []

    def form(name: str, **numbers: int) -> Choice:
        return Choice(name, tuple(numbers.items()), (), True)

    if is_columns(shape, axes):
        team = {"lanes": 32, "wide": 1, "across": 4, "down": 8, "items": 2, "even": 0}
        large = {**team, "down": 16}
        return [form("columns loop", **team), form("columns loop", **large), form("partials columns", **team, together=4)]
    chunks, room = -(-length // 4096), -(-length // 256) * 256
    loop = {"lanes": 32, "wide": 1, "warps": 2}
    return [
        form("rows loop", **loop, parts=1, once=int(length <= 4096)),
        form("rows loop", **loop, parts=2, once=int(length <= 8192)),
        form("partials rows", **loop, parts=1, together=4),
        *(form("rows shared", wide=1, warps=2, chunks=chunks, room=room, even=0, plan=plan, kept=chunks) for plan in (0, 1, 2)),
    ]


@pytest.mark.parametrize("start", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(150, 1500, 150))])
def test_row_groups_of_random_functions(start: int) -> None:
    chosen = [c for seed in range(start, start + 150) for c in random_groups(seed, 60)]
    others = [Case(c.group, c.inputs, choice) for c in chosen for choice in other_forms(c)]
    prepared = check_groups([*chosen, *others], seeds=(0,))
    assert len({p.choice.form for p in prepared}) > 4
