"""The memory between the kernels of programs: one growing block for each thread.

Invariants: a thread sets `busy` before it reads which block its arena has, and works in that one until it takes `busy` back. Whoever
takes the block away (any thread may, where memory is wanted) does so before it reads `busy`; while that is set,
the block waits in `leaving`, and goes when the run ends.
"""

from __future__ import annotations

import contextlib
import threading
import weakref

from graphc.codegen import pages


class Arena:
    """The arena of one thread. block: its memory; leaving: what a run may still work in."""

    __slots__ = ("__weakref__", "block", "busy", "leaving")

    def __init__(self) -> None:
        self.block: pages.Pages | None = None
        self.busy = False
        self.leaving: list[pages.Pages] = []
        at = id(self)
        _all[at] = weakref.ref(self, lambda _: _all.pop(at, None))

    def grow(self, size: int, program: str, outer: bool = False) -> pages.Pages:
        """A block of `size` bytes instead of that which is there. Raises `OutOfMemoryError`, which names the program.

        outer: whether another program of this thread works in the old one, which was interrupted by a finalizer.
        """
        old, self.block = self.block, None
        if outer and old is not None:
            self.leaving.append(old)
        del old
        try:
            # In huge pages from half of one on.
            self.block = block = pages.take(
                size if size < pages.HUGE // 2 else -(-size // pages.HUGE) * pages.HUGE, arena=True
            )
        except MemoryError:
            raise pages.OutOfMemoryError(
                f"out of memory: {pages.show_size(size)} asked for by the arena of program {program} (values between its "
                "kernels), after what waited to be used again was given back; use a smaller batch, several smaller "
                "compiled functions, or free tensors that you no longer need"
            ) from None
        return block

    def give_back(self) -> None:
        """Give the block back: now, or when the run that works in it ends."""
        block, self.block = self.block, None
        if block is not None and self.busy:
            self.leaving.append(block)
            if not self.busy:
                # The run ended meanwhile, maybe before it could see that.
                with contextlib.suppress(ValueError):
                    self.leaving.remove(block)


class Arenas(threading.local):
    """own: the arena of the calling thread."""

    def __init__(self) -> None:
        self.own = Arena()


def give_back() -> None:
    """Give the arenas of all threads back."""
    for found in list(_all.values()):
        arena = found()
        if arena is not None:
            arena.give_back()


_all: dict[int, weakref.ref[Arena]] = {}
arenas = Arenas()
pages.on_shortage(give_back)
