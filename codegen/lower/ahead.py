"""Asking for the memory that an epilogue will read and write while its tile is summed up.

Rows of a tile lie far apart, so nothing but the program knows what comes next: without this every line of a large result
is waited for when it is stored, one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from graphc.codegen.expr import Expr, children_first, index, replace
from graphc.codegen.loops import Buffer, For, If, Let, Prefetch, Stmt, Store, Vector
from graphc.codegen.lower.affine import depends

LINE = 64  # bytes


def fetch_ahead(epilogue: Sequence[Stmt], row: Expr) -> list[Stmt]:
    """Prefetches of what the vector regions of the last loop of an epilogue read and write, but for what is the same
    for all of its turns; `row` is the name of that loop's variable here."""
    loop = epilogue[-1]
    if not isinstance(loop, For):
        return []
    body: list[Stmt] = []
    for region in _regions(loop.body):
        seen: set[tuple[Buffer, Expr]] = set()
        for buffer, at, write in _places(region.body):
            # What lies in scratch memory is the kernel's own, at places that it names later.
            if (
                buffer.kind in ("local", "scratch")
                or (buffer, at) in seen
                or not (depends(at, loop.var) and depends(at, region.var))
            ):
                continue
            seen.add((buffer, at))
            for lane in range(0, region.width, LINE // buffer.dtype.itemsize):
                body.append(Prefetch(buffer, replace(at, {loop.var: row, region.var: index(lane)}), write))
        break  # the others are the same with a mask
    return [For(row, loop.start, loop.stop, tuple(body), loop.step)] if body else []


def _regions(body: Sequence[Stmt]) -> Iterator[Vector]:
    for s in body:
        if isinstance(s, Vector):
            yield s
        elif isinstance(s, If):
            yield from _regions((*s.then, *s.orelse))


def _places(body: Sequence[Stmt]) -> Iterator[tuple[Buffer, Expr, bool]]:
    """What is written, and what is read where nothing but loops decides: buffer, index, whether it is written."""
    values: list[Expr] = []
    stack = list(body)
    while stack:
        s = stack.pop()
        if isinstance(s, If):
            stack += [*s.then, *s.orelse]
        elif isinstance(s, Let):
            values.append(s.value)
        elif isinstance(s, Store):
            values.append(s.value)
            if not s.stream:
                yield s.buffer, s.index, True
    for e in children_first(tuple(values)):
        if (
            e.op == "load"
            and e.data.kind != "local"
            and all(x.op != "load" for x in children_first((e.args[0],)))
        ):
            yield e.data, e.args[0], False
