"""Locks and `os.fork`: the child has only the thread that forked, and no other that could release what it held.

A lock that guards a few lines of Python is simply free in the child (`free_in_child`): what it guards is whole after every one
of them. Where a thread may be inside of native code with locks of its own, the fork waits for it (`waited_for`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

L = TypeVar("L")


def free_in_child(lock: L) -> L:
    """`lock`, a `threading.Lock` or `RLock` that lives as long as the process."""
    again: Any = getattr(lock, "_at_fork_reinit", None)
    if again is not None and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=again)
    return lock


def waited_for(*locks: Callable[[], Any]) -> None:
    """Hold locks while the process forks, in this order. Each function gives a lock, or None where there is none yet."""
    held: list[Any] = []

    def before() -> None:
        for find in locks:
            lock = find()
            if lock is not None:
                lock.acquire()
                held.append(lock)

    def after() -> None:
        while held:
            held.pop().release()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=before, after_in_parent=after, after_in_child=after)
