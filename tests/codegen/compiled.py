"""Runs compiled functions on NumPy arrays, and compares them bit for bit with what they mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from graphc.codegen import program as programs
from graphc.codegen.llvm.runner import runner
from graphc.codegen.program import Program, compile_function
from graphc.ir.function import Function
from graphc.ir.types import dtype

from tests.equality.oracle import exact_interpret

Array = np.ndarray[Any, Any]
# What lies behind every output: code that writes past its end is seen.
_GUARD = 192


def execute(program: Program, args: Sequence[Array]) -> list[Array]:
    """The results of a program. Fails if it writes beside them. No memory is aligned to more than an element."""
    held = [_moved(a) for a in args]
    memory, out = [], []
    for t in program.output_types:
        size = int(t.nbytes)
        block = np.full(size + 3 * _GUARD, 0xA5, np.uint8)
        start = _GUARD - block.ctypes.data % 64 + t.dtype.itemsize  # aligned to an element only
        memory.append((block, start, size))
        out.append(block[start : start + size].view(t.dtype.numpy).reshape([int(d) for d in t.shape]))
    before = [a.tobytes() for a in held]
    program.run([a.ctypes.data for a in held], [b.ctypes.data + s for b, s, _ in memory])
    for i, (block, start, size) in enumerate(memory):
        beside = np.concatenate([block[:start], block[start + size :]])
        assert (beside == 0xA5).all(), f"the program wrote beside result {i}"
    for i, (a, b) in enumerate(zip(held, before, strict=True)):
        assert a.tobytes() == b, f"the program wrote to parameter {i}"
    return out


def _moved(a: Array) -> Array:
    """A copy that starts one element after a multiple of 64 bytes."""
    block = np.empty(a.nbytes + 192, np.uint8)
    start = 64 - block.ctypes.data % 64 + a.itemsize
    out = block[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
    out[...] = a
    return out


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    """Within, programs run on so many threads, and even the smallest launch is cut into as many parts."""
    grain, before = programs.GRAIN, runner().get_threads()
    programs.GRAIN = 1
    runner().set_threads(count)
    try:
        yield
    finally:
        programs.GRAIN = grain
        runner().set_threads(before)


def run(f: Function, *args: Array, **options: Any) -> list[Array]:
    return execute(compile_function(f, **options), args)


def difference(expected: Array, got: Array) -> str:
    """Where two arrays differ in type or in a bit, any NaN counting as any other; "" if nowhere."""
    if expected.shape != got.shape or expected.dtype != got.dtype:
        return f"{got.dtype}{list(got.shape)} instead of {expected.dtype}{list(expected.shape)}"
    if dtype(expected.dtype).is_float:
        bits = np.dtype(f"u{expected.dtype.itemsize}")
        same = (expected != expected) & (got != got)
        same |= np.ascontiguousarray(expected).view(bits).reshape(expected.shape) == got.view(bits)
    else:
        same = expected == got
    wrong = np.argwhere(~same)
    if not len(wrong):
        return ""
    at = tuple(int(i) for i in wrong[0])
    return f"{len(wrong)} of {got.size} elements, first at {at}: {got[at]!r} instead of {expected[at]!r}"


def failures(f: Function, args: Sequence[Array], labels: Sequence[str] = (), **options: Any) -> list[str]:
    """For every result that is not what the function means, on one thread or three: its label and the difference."""
    expected = exact_interpret(f, args)
    names = labels or [f"result {i}" for i in range(len(expected))]
    alone = execute(compile_function(f, **options), args)
    with on_threads(3):
        together = execute(compile_function(f, **options), args)
    found = []
    for how, got in (("", alone), (" on three threads", together)):
        pairs = zip(names, expected, got, strict=True)
        found += [f"{name}{how}: {wrong}" for name, e, g in pairs if (wrong := difference(e, g))]
    return found


def assert_compiled(f: Function, args: Sequence[Array], labels: Sequence[str] = (), **options: Any) -> None:
    """The compiled function gives the bits that the interpreter gives."""
    wrong = failures(f, args, labels, **options)
    assert not wrong, "\n".join([*wrong[:8], f"({len(wrong)} results differ)", str(f)[:4000]])
