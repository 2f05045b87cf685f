"""Schedules that were measured (`graphc tune`) and found better than what `choose` estimates.

An entry of the cache for each (canonical text, sizes, target). Like compiled code it belongs to one version of
graphc's back end: another version measures anew.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping

from graphc.codegen import cache
from graphc.codegen.cuda.choice import Choice
from graphc.codegen.cuda.target import Target
from graphc.codegen.kernels import kernel_text
from graphc.ir.function import Function


def entry(group: Function, sizes: Mapping[str, int], target: Target) -> str:
    """The name in the cache of what was measured for a canonical group and these sizes."""
    text = ", ".join(f"{n}={v}" for n, v in sorted(sizes.items()))
    return cache.key(kernel_text(group, f"tuned {text}"), target.key())


_forced: dict[str, Choice] = {}


@contextlib.contextmanager
def forced(group: Function, sizes: Mapping[str, int], target: Target, choice: Choice) -> Iterator[None]:
    """Within, `choose` gives this choice: how a schedule is measured."""
    name = entry(group, sizes, target)
    _forced[name] = choice
    try:
        yield
    finally:
        del _forced[name]


def lookup(group: Function, sizes: Mapping[str, int], target: Target) -> Choice | None:
    """The forced or stored choice, if there is one."""
    name = entry(group, sizes, target)
    if name in _forced:
        return _forced[name]
    data = cache.get(name)
    return None if data is None else decode(data)


def store(group: Function, sizes: Mapping[str, int], target: Target, choice: Choice) -> None:
    """Let `choose` give this choice from now on, in this process and later ones."""
    cache.put(entry(group, sizes, target), encode(choice))


def encode(choice: Choice) -> bytes:
    """A choice as JSON.

    >>> decode(encode(Choice("contract fma", (("rows", 64),), (("e0", 8),), True)))
    Choice(form='contract fma', numbers=(('rows', 64),), divides=(('e0', 8),), narrow=True)
    """
    held = {"form": choice.form, "numbers": choice.numbers, "divides": choice.divides, "narrow": choice.narrow}
    return json.dumps(held).encode()


def decode(data: bytes) -> Choice:
    held = json.loads(data)
    numbers, divides = (tuple((str(n), int(v)) for n, v in held[key]) for key in ("numbers", "divides"))
    return Choice(held["form"], numbers, divides, held["narrow"])
