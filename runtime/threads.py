"""How many CPU threads programs run on. Results do not depend on it."""

from __future__ import annotations


def set_num_threads(count: int) -> None:
    """Run programs on at most `count` threads, the calling one among them; by default there is one for each core.

    Raises `ValueError` below 1.

    >>> import graphc as gc
    >>> gc.set_num_threads(1)
    >>> gc.get_num_threads()
    1
    """
    from graphc.codegen.llvm.runner import runner

    if not isinstance(count, int) or isinstance(count, bool):
        raise TypeError(f"set_num_threads needs an integer, not {type(count).__name__}")
    runner().set_threads(count)


def get_num_threads() -> int:
    """The number of threads that programs may run on."""
    from graphc.codegen.llvm.runner import runner

    return runner().get_threads()
