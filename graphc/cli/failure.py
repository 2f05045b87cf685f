"""What a command cannot do because of its input."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class Failure(Exception):
    """Input that a command cannot use; the text is all that the user sees."""


def choose(name: str, known: Iterable[str], what: str, owner: str) -> str:
    """`name` if it is among `known`; else a `Failure` that lists close names, or all."""
    names = list(known)
    if name in names:
        return name
    close = difflib.get_close_matches(name, names, 3)
    if close:
        raise Failure(f"{owner} has no {what} {name!r}; did you mean {' or '.join(close)}?")
    has = f"it has {', '.join(names)}" if names else "it has none"
    raise Failure(f"{owner} has no {what} {name!r}; {has}")
