"""CPU kernels as C99: one translation unit that compiles without warnings and gives the bits of the LLVM code.

Kernel ABI, as LLVM's (docs/architecture.md): `void k(const int64_t *args, int64_t begin, int64_t end, int64_t *error)`. A
`Report` writes without compare-and-swap: the caller runs kernels one after another. Compile with -ffp-contract=off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from graphc.codegen.c import prelude
from graphc.codegen.c.dialect import ATOM, C99, Text
from graphc.codegen.c.emit import Emitter
from graphc.codegen.c.positions import DATA, POSITION, expressions, statements
from graphc.codegen.c.unique import prepared
from graphc.codegen.expr import children_first, var
from graphc.codegen.loops import Buffer, Kernel, Stmt, Store, Transpose, without_columns

HEADERS = "#include <math.h>\n#include <stdint.h>\n"
SIGNATURE = "(const int64_t *args, int64_t begin, int64_t end, int64_t *error)"


def used_buffers(body: tuple[Stmt, ...]) -> set[Buffer]:
    """The buffers that statements read or write."""
    found: set[Buffer] = set()
    for s in statements(body):
        found |= {n.data for n in children_first(tuple(expressions(s))) if n.op == "load"}
        if isinstance(s, Store):
            found.add(s.buffer)
        elif isinstance(s, Transpose):
            found |= {s.target, s.source}
    return found


def emit_kernel(kernel: Kernel, note: str = "", storage: str = "") -> str:
    """The text of one kernel, without headers and prelude. note: a comment above it; storage: such as "static "."""
    if kernel.grid is not None:
        raise TypeError(f"kernel {kernel.name} has a grid: it is scheduled for a device, and codegen/c/cuda.py writes it")
    kernel, positions = prepared(replace(kernel, body=without_columns(kernel.body)))
    w = Emitter(C99, kernel, positions)
    w.scope.names |= {"begin", "end"}
    used = used_buffers(kernel.body)
    for i, b in enumerate(kernel.buffers):
        if b in used:
            name = w.buffers[b] = w.name(b.name)
            const = "const " if b.kind == "in" else ""
            element = C99.element(b.dtype)
            w.line(f"{const}{element} *restrict {name} = ({const}{element} *)(intptr_t)args[{i}];")
    for i, extent in enumerate(kernel.extents, len(kernel.buffers)):
        if var(extent) in positions.needs:
            name = w.name(extent)
            w.line(f"const int64_t {name} = args[{i}];")
            for role in (POSITION, DATA):
                w.define(var(extent), role, Text(name))
    for name in ("begin", "end"):
        for role in (POSITION, DATA):
            w.define(var(name), role, Text(name, ATOM))
    w.block(kernel.body)
    comment = [f"// {x}".rstrip() for x in note.splitlines()]
    return "\n".join([*comment, f"{storage}void {kernel.name}{SIGNATURE} {{", *w.scopes[0].lines, "}"]) + "\n"


def translation_unit(texts: Sequence[str]) -> str:
    """Headers and the functions of the prelude that `texts` call, then the texts."""
    body = "\n".join(texts)
    return "\n".join(x for x in (HEADERS, prelude.functions(prelude.used(body, "c99"), "c99"), body) if x)


def emit_kernels(kernels: Sequence[Kernel], notes: Sequence[str] = ()) -> str:
    """One translation unit. notes: a comment for each kernel."""
    return translation_unit([emit_kernel(k, notes[i] if notes else "") for i, k in enumerate(kernels)])


__all__ = ["emit_kernel", "emit_kernels", "translation_unit", "used_buffers"]
