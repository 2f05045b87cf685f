"""Programs for sizes that change: what was planned with these sizes open serves the next ones.

The first function of a structure is planned as it is. When one comes that differs in sizes (general.py), the two are planned
together, with symbols; this plan then serves every further function that differs there only, without passes, fusion or choices of
schedules. The kernels of the first function are those of the general one wherever they leave the changed sizes open, so as a rule
nothing is compiled. What a program is like when its sizes come again is not decided here: see `compile_function`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from graphc.codegen.donation import accepted
from graphc.codegen.forks import free_in_child
from graphc.codegen.general import Form, General, form, generalise
from graphc.codegen.plan import Plan, make_plan
from graphc.codegen.report import stage
from graphc.ir.function import Function, Module

Donate = Sequence[tuple[int, int]]
MOST_FAMILIES, MOST_FORMS, MOST_GENERAL = 1024, 8, 4


@dataclass(frozen=True)
class Planned:
    """A general function after its passes and fusion. arrays: its constants, which follow its numbers."""

    general: General
    operations: int
    module: Module
    arrays: tuple[Any, ...]


@dataclass
class Family:
    """The functions of one structure that came, and general ones. closed: each is planned as it is from now on."""

    forms: list[Form] = field(default_factory=list)
    planned: list[Planned] = field(default_factory=list)
    closed: bool = False


@dataclass(frozen=True)
class Found:
    """A program's plan, its constants, the pairs that share memory, the operations after passes."""

    plan: Plan
    constants: tuple[Any, ...]
    donated: frozenset[tuple[int, int]]
    operations: int


# A kernel or a pass may need a size that is left open here: the function is then planned as it is.
_REFUSED = (AssertionError, TypeError, ValueError, NameError, KeyError)
_families: dict[Any, Family] = {}
_lock = free_in_child(threading.Lock())


def find(f: Function, donate: Donate) -> Found | None:
    """The plan of a function by that of others of its structure, None where there are none. The function is known from now on."""
    with stage("canonical"):
        mine = form(f)
        with _lock:
            if len(_families) >= MOST_FAMILIES:
                _families.clear()
            family = _families.setdefault((f.name, mine.structure), Family())
    planned, sizes = _planned(f, mine, family)
    if planned is None:
        return None
    general = planned.general
    try:
        with stage("plan"):
            donated = accepted(planned.module, donate) if donate else frozenset()
            plan = make_plan(planned.module, donated=donated, hurry=True, sizes=sizes)
    except _REFUSED:
        family.closed = True
        return None
    opened = general.function.params[len(f.params) :]
    numbers = [
        np.frombuffer(mine.numbers[i], p.type.dtype.numpy)
        for i, p in zip(general.numbers, opened, strict=True)
    ]
    return Found(plan, (*numbers, *planned.arrays), donated, planned.operations)


def _planned(f: Function, mine: Form, family: Family) -> tuple[Planned | None, dict[str, int]]:
    if family.closed:
        return None, {}
    for known in family.planned:
        sizes = known.general.sizes_of(mine)
        if sizes is not None:
            return known, sizes
    others = [each for each in family.forms if each.sizes != mine.sizes]
    if mine not in family.forms and len(family.forms) < MOST_FORMS:
        family.forms.append(mine)
    if not others or len(family.planned) >= MOST_GENERAL:
        return None, {}
    # With as little left open as possible.
    nearest = min(others, key=lambda o: sum(a != b for a, b in zip(o.sizes, mine.sizes, strict=True)))
    with stage("canonical"):
        general = generalise(f, (nearest, mine))
    sizes = general.sizes_of(mine) if general is not None else None
    if general is None or sizes is None:
        return None, {}
    from graphc.codegen.program import front

    try:
        optimised, module, arrays = front(general.function)
    except _REFUSED:
        family.closed = True
        return None, {}
    made = Planned(general, len(optimised.ops), module, tuple(np.ascontiguousarray(a) for a in arrays))
    family.planned.append(made)
    return made, sizes


def forget() -> None:
    """No function has come."""
    _families.clear()
