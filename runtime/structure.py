"""Nested Python structures: flattened to leaves and a hashable description, and put together again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from graphc.runtime.views import same

# A description is None for a leaf, or (kind, keys, descriptions of the items).
Structure = Any


class Keys(tuple[Any, ...]):
    """Keys of a dict that are not all strings: 1, 1.0 and True are others."""

    __slots__ = ()
    __hash__ = tuple.__hash__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, tuple) and same(tuple(self), tuple(other))

    def __ne__(self, other: object) -> bool:
        return not self == other


def flatten(value: Any, leaves: list[Any]) -> Structure:
    """Append the leaves of nested tuples, lists and dicts to `leaves`; returns the description."""
    kind = value.__class__
    if kind is tuple or kind is list:
        return (kind, None, tuple([flatten(v, leaves) for v in value]))
    if kind is dict:
        keys = tuple(value)
        if set(map(type, keys)) - {str}:
            keys = Keys(keys)
        return (kind, keys, tuple([flatten(v, leaves) for v in value.values()]))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return (kind, value._fields, tuple([flatten(v, leaves) for v in value]))
    leaves.append(value)
    return None


def unflatten(structure: Structure, leaves: Iterator[Any]) -> Any:
    """The inverse of `flatten`."""
    if structure is None:
        return next(leaves)
    kind, keys, items = structure
    values = [unflatten(s, leaves) for s in items]
    if kind is dict:
        return dict(zip(keys, values))
    return kind(*values) if keys is not None else kind(values)
