"""Checks: what must be as it was for a recording to serve, container by container, as a function and as text."""

from __future__ import annotations

import keyword
import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from graphc.runtime.core import Tensor
from graphc.runtime.views import UNSET, Attributes, Body, Cell, same

if TYPE_CHECKING:
    from graphc.runtime.replay import Text

SCALARS = (int, float, bool, str, type(None))


class Check(NamedTuple):
    """A container whose items under `keys` must be `values`, and which must have `size` items unless that is None.

    Numbers and strings are compared by `same`, everything else by identity. order: all keys of a dict, where their order
    or kind could change; absent: names that a namespace must not have.
    """

    container: Any
    keys: tuple[Any, ...]
    values: tuple[Any, ...]
    size: int | None = None
    order: list[Any] | None = None
    absent: tuple[str, ...] = ()

    @property
    def by_order(self) -> bool:
        """Whether this is a whole dict of objects whose keys are costly to look up, as tensors are."""
        return (
            self.size == len(self.keys)
            and self.container.__class__ is dict
            and any(isinstance(k, Tensor) for k in self.keys)
            and not any(isinstance(v, SCALARS) for v in self.values)
        )


def in_order(found: dict[Any, Any], keys: Sequence[Any], values: Sequence[Any]) -> bool:
    """Whether a dict has these keys and values in this order, all by identity."""
    return (
        len(found) == len(keys)
        and all(map(operator.is_, found, keys))
        and all(map(operator.is_, found.values(), values))
    )


def same_keys(found: dict[Any, Any], keys: Sequence[Any]) -> bool:
    """Whether a dict has these keys, of any kind, in this order."""
    return len(found) == len(keys) and (all(map(operator.is_, found, keys)) or all(map(same, found, keys)))


def plain(order: Sequence[Any]) -> bool:
    """Whether keys are strings, which `==` tells apart."""
    return all(k.__class__ is str for k in order)


def guard_of(checks: Sequence[Check]) -> Callable[[], bool]:
    """All checks as one function, for many of them; see `write_checks` for the few."""
    ordered = [c for c in checks if c.by_order]
    others = [c for c in checks if not c.by_order]
    named = [c for c in others if c.order is not None and plain(c.order)]
    dicts, orders = [c.container for c in named], [c.order for c in named]
    keyed = [(c.container, c.order) for c in others if c.order is not None and not plain(c.order)]
    sized, sizes = zip(
        *[(c.container, c.size) for c in others if c.size is not None and c.order is None] or [((), 0)]
    )
    lacking = [(c.container.keys(), c.absent) for c in others if c.absent]
    items = [(c.container, k, v) for c in others for k, v in zip(c.keys, c.values)]
    scalars = [i for i in items if isinstance(i[2], SCALARS)]
    objects = [i for i in items if not isinstance(i[2], SCALARS)]
    (some, names, values), (containers, keys, kept) = (
        [[i[n] for i in found] for n in range(3)] for found in (scalars, objects)
    )

    def holds() -> bool:
        try:
            if tuple(map(len, sized)) != sizes or list(map(list, dicts)) != orders:
                return False
            if not all(map(operator.is_, map(operator.getitem, some, names), values)) and not all(
                map(same, map(operator.getitem, some, names), values)
            ):
                return False
            if not all(map(operator.is_, map(operator.getitem, containers, keys), kept)):
                return False
            return (
                all(in_order(c.container, c.keys, c.values) for c in ordered)
                and all(same_keys(c, order) for c, order in keyed if order is not None)
                and all(found.isdisjoint(absent) for found, absent in lacking)
            )
        except (KeyError, IndexError, ValueError, AttributeError, RuntimeError):
            return False

    return holds


# checks as text


def item_of(t: Text, container: Any, key: Any) -> str:
    """The text of container[key]."""
    if isinstance(container, Cell):
        return f"{t.name(container.cell)}.cell_contents"
    if isinstance(container, Body):
        return f"{t.name(container.space)}[{t.name(key)}]"
    if isinstance(container, Attributes):
        owner = t.name(container.owner)
        return (
            f"{owner}.{key}"
            if key.isidentifier() and not keyword.iskeyword(key)
            else f"getattr({owner}, {t.name(key)})"
        )
    return f"{t.name(container)}[{t.name(key)}]"


def write_item(t: Text, container: Any, key: Any, value: str) -> None:
    """The line of container[key] = value."""
    if isinstance(container, (Attributes, Body)):
        t(f"setattr({t.name(container.owner)}, {t.name(key)}, {value})", 1)
    else:
        t(f"{item_of(t, container, key)} = {value}", 1)


def write_checks(t: Text, checks: Sequence[Check]) -> None:
    """The lines that return `MISS` if the Python state is not as it was."""
    empty = []
    for check in checks:
        container, keys, values, size, order, absent = check
        if check.by_order:
            t(
                f"if not {t.name(in_order)}({t.name(container)}, {t.name(keys)}, {t.name(values)}): return MISS"
            )
            continue
        found = [f"{t.name(k)} in {t.name(container)}" for k in absent]
        if order is not None:
            whole = t.name(container)
            found.append(
                f"[*{whole}] != {t.name(order)}"
                if plain(order)
                else f"not {t.name(same_keys)}({whole}, {t.name(order)})"
            )
        elif size == 0:
            empty.append(t.name(container))
        elif size is not None:
            found.append(
                f"len({t.name(container.space if isinstance(container, Body) else container)}) != {size}"
            )
        for k, v in zip(keys, values):
            text = item_of(t, container, k)
            if v is UNSET and isinstance(container, Attributes):
                found.append(f"hasattr({t.name(container.owner)}, {t.name(k)})")
                continue
            exact = v is None or v.__class__ is bool or not isinstance(v, SCALARS)
            found.append(
                f"{text} is not {t.name(v)}"
                if exact
                else f"(x := {text}) is not {constant(t, v)} and not same(x, {constant(t, v)})"
            )
        if found:
            t(f"if {' or '.join(found)}: return MISS")
    if empty:
        t(f"if {' or '.join(empty)}: return MISS")


def constant(t: Text, v: Any) -> str:
    """A number or string under a name, so that it is found as the same object."""
    known = t._known.get(id(v))
    if known is None:
        known = t._known[id(v)] = f"k{len(t._known)}"
        t.names[known] = v
    return known
