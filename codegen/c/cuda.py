"""Device kernels as CUDA C: one translation unit, with what it needs of the prelude.

Kernel ABI: docs/architecture.md, section CUDA.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphc.codegen.c import prelude
from graphc.codegen.c.dialect import ATOM, CUDA, Text
from graphc.codegen.c.emit import Emitter
from graphc.codegen.c.positions import DATA, POSITION, statements
from graphc.codegen.c.unique import prepared
from graphc.codegen.cuda.target import Target
from graphc.codegen.expr import var
from graphc.codegen.loops import Alloc, Buffer, Call, Kernel, Place

MOST_STATIC = 48 << 10  # bytes; more must be asked for at the launch


def _shared(kernel: Kernel) -> list[tuple[Alloc, int]]:
    """The shared arrays of a kernel with their alignment, each once."""
    addressed: dict[Buffer, int] = {}
    found: dict[Buffer, Alloc] = {}
    for s in statements(kernel.body):
        if isinstance(s, Call):
            # The tiles of wgmma are swizzled by the bits of their addresses.
            align = 1024 if s.name.startswith("wgmma") else 128
            for b in (a.buffer for a in s.args if isinstance(a, Place)):
                addressed[b] = max(align, addressed.get(b, 0))
        elif isinstance(s, Alloc) and s.buffer.kind == "shared":
            found[s.buffer] = s
    return [(s, addressed.get(b, 16)) for b, s in found.items()]


def _layout(kernel: Kernel) -> tuple[list[tuple[Alloc, int, int]], int]:
    """The shared arrays with alignment and offset, and the bytes of all; those that need more come first."""
    at, placed = 0, []
    for s, align in sorted(_shared(kernel), key=lambda x: -x[1]):
        at = (at + align - 1) // align * align
        placed.append((s, align, at))
        at += s.size * s.buffer.dtype.itemsize
    return placed, at


def shared_bytes(kernel: Kernel) -> tuple[int, int]:
    """(static, dynamic) bytes of shared memory of a block; the dynamic ones are given at the launch."""
    total = _layout(kernel)[1]
    return (total, 0) if total <= MOST_STATIC else (0, total)


def emit_kernel(kernel: Kernel, note: str = "") -> str:
    """The text of one kernel, without the prelude. note: lines of a comment above it."""
    if kernel.grid is None:
        raise TypeError(f"kernel {kernel.name} has no grid: it is scheduled for the CPU, and codegen/c/c99.py writes it")
    kernel, positions = prepared(kernel)
    assert kernel.grid is not None
    w = Emitter(CUDA, kernel, positions)
    index = "int" if kernel.grid.narrow else CUDA.index
    arguments = []
    for m in kernel.grid.maps:
        name = w.maps[m] = w.name(m.name)
        arguments.append(f"const __grid_constant__ TensorMap {name}")
    for b in kernel.buffers:
        name = w.buffers[b] = w.name(b.name)
        const = "const " if b.kind == "in" else ""
        alone = "" if b.kind in ("inout", "scratch") else "__restrict__ "
        arguments.append(f"{const}{CUDA.element(b.dtype)} *{alone}{name}")
    for extent in kernel.extents:
        name = w.name(extent)
        arguments.append(f"{index} {name}")
        for role in (POSITION, DATA):
            w.define(var(extent), role, Text(name, ATOM, False, 1 << 31 if kernel.grid.narrow else None, kernel.grid.narrow))
    arguments += ["long long *error", "int launch"]
    for v, source, bound in (
        ("block", "blockIdx.x", None),
        ("blocks", "gridDim.x", None),
        ("thread", "threadIdx.x", kernel.grid.threads - 1),
    ):
        if var(v) not in positions.needs:
            continue
        name = w.name(v)
        if kernel.grid.members and v != "thread":
            arguments.append(f"int {name}")
        else:
            w.line(f"const int {name} = {source};")
        for role in (POSITION, DATA):
            w.define(var(v), role, Text(name, ATOM, False, bound or (1 << 31), True))
    _declare_shared(w, kernel)
    w.block(kernel.body)
    resident = f", {kernel.grid.resident}" if kernel.grid.resident else ""
    cluster = f" __cluster_dims__({kernel.grid.cluster}, 1, 1)" if kernel.grid.cluster > 1 else ""
    bounds = f'extern "C" __global__ void{cluster} __launch_bounds__({kernel.grid.threads}{resident})'
    head = f"{bounds} {kernel.name}({', '.join(arguments)}) {{"
    tail = ["}"]
    if kernel.grid.members:
        head = f"static __device__ __forceinline__ void {kernel.name}_member({', '.join(arguments)}) {{"
        tail += ["", *_members(kernel, arguments, bounds)]
    comment = [f"// {x}".rstrip() for x in note.splitlines()]
    return "\n".join([*comment, head, *w.scopes[0].lines, *tail]) + "\n"


def _members(kernel: Kernel, parameters: Sequence[str], bounds: str) -> list[str]:
    """The kernel that finds a block's member and calls its function with what the table says (`loops.Grid.members`)."""
    assert kernel.grid is not None
    if kernel.grid.maps or _shared(kernel):
        raise TypeError(f"kernel {kernel.name} has {kernel.grid.members} members; it can have no maps and no shared memory")
    last = len(kernel.buffers) + len(kernel.extents)
    given = {"error": "table.error", "launch": "(int)table.launch", "block": "block - first", "blocks": "end - first"}
    arguments = []
    for i, parameter in enumerate(parameters):
        kind, star, name = parameter.replace("__restrict__ ", "").rpartition("*")
        if i < last:
            kind, name = (kind + star, name) if star else (parameter.rpartition(" ")[0], "")
            arguments.append(f"({kind})table.word[member][{i}]")
        else:
            arguments.append(given[parameter.rpartition(" ")[2].lstrip("*")])
    return [
        f"{bounds} {kernel.name}(const __grid_constant__ members<{kernel.grid.members}, {last + 1}> table) {{",
        "    const int block = blockIdx.x;",
        "    const int member = find_member(table, block);",
        f"    const int first = member ? (int)table.word[member - 1][{last}] : 0, end = (int)table.word[member][{last}];",
        f"    {kernel.name}_member({', '.join(arguments)});",
        "}",
    ]


def _declare_shared(w: Emitter, kernel: Kernel) -> None:
    placed, total = _layout(kernel)
    memory = w.name("shared") if total > MOST_STATIC else ""
    if memory:
        w.line(f"DYNAMIC_SHARED({memory});")
    for s, align, at in placed:
        kind = CUDA.element(s.buffer.dtype)
        name = w.shared[s.buffer] = w.name(s.buffer.name)
        if memory:
            w.line(f"{kind} *{name} = ({kind} *)({memory} + {at});")
        else:
            w.line(f"__shared__ __align__({align}) {kind} {name}[{s.size}];")


def emit_kernels(kernels: Sequence[Kernel], target: Target, notes: Sequence[str] = ()) -> str:
    """One translation unit: the functions of the prelude that are used, then the kernels. notes: a comment for each."""
    texts = [emit_kernel(k, notes[i] if notes else "") for i, k in enumerate(kernels)]
    body = "\n".join(texts)
    return "\n".join(x for x in (prelude.functions(prelude.used(body, "cuda"), "cuda"), body) if x)


__all__ = ["emit_kernel", "emit_kernels", "shared_bytes"]
