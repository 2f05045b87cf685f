"""The loop language: a kernel as explicit loops, vector regions and stores.

A kernel works on flat buffers with I64 element indices. Extents are symbols, passed at launch.

Semantics:
- `For` runs its body for var = start, start+step, ... below stop. `unroll=True` asks the emitter
  to repeat the body (start, stop, step must be literals).
- Every kernel's body is run for the sub-range [begin, end) of its parallel extent: the variables
  `begin` and `end` are in scope. Iterations of that range are independent.
- `Vector(var, width, body)`: the body runs for all var = 0..width-1 at once, one lane each
  (single program, multiple data). An expression is *varying* if it depends on the lane variable,
  on a varying register, or loads at a varying index; else it is uniform. Loops inside a vector
  region have uniform bounds. Vector regions do not nest.
- `If(cond)`: a uniform condition branches; a varying one masks stores, loads and assignments.
- `Declare` makes a register (one per lane if declared inside a vector region), `Assign` writes it.
- `Let` names a value once.
- `lanes.add(x)` etc. combine the lanes of x by halving: lane i with lane i + width/2, then
  width/4, ... down to one; the result is uniform. All lanes take part, whatever the mask.
- `Transpose`, outside of vector regions, copies `size` rows of `columns` elements, rows to columns:
  target[target_at + j*target_step + i] = cast(source[source_at + i*source_step + j]).
- `Columns`, in a vector region, names the columns of a strip of rows: as many loads as names, of neighbouring places in
  each lane, done as one load a lane and a transposition in registers.
- `Prefetch` asks for the memory line of an element, which need not exist, so that it is near when it is read or written;
  it changes no value and raises no error.
- `Alloc` makes a thread-private array of a literal number of elements, uninitialised.
- `Report(cond, site, value)`: where cond holds, an error is recorded for the program: the first
  site (an integer that the caller maps to an operation) and value win; execution goes on.

Device kernels (`Kernel.grid` is set) are the same language bound to blocks of threads:
- the body is what one thread does; `block`, `blocks` (how many there are) and `thread` are in scope
  instead of `begin` and `end`. A warp is 32 threads, numbered along `thread`.
- `Alloc` of a buffer of kind "shared" is memory of the block; "local" is the thread's own, in registers
  where every index is literal once the loops marked `unroll` are written out.
- `Barrier`: all threads of the block, or of the warp, have arrived and see each other's stores.
- the expression `shuffle(x, k)` is x of another thread of the warp (expr.py).
- `Vector(var, width, body)`: one thread does all lanes; accesses that are contiguous over the lanes and
  provably aligned become one wide access.
- `Call`: a function of the device's prelude by name (copies past the registers, tensor-core products).
- `Grid.maps`: views of buffers for the bulk copy engine (sm_90), arguments of `Call` by address.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Union

from graphc.codegen.expr import Expr, cast, load, show
from graphc.ir.types import DType


@dataclass(frozen=True, eq=False)
class Buffer:
    """A flat array. kind: "in", "out", "inout", "scratch" (kernel arguments), "local" or "shared"."""

    name: str
    dtype: DType
    kind: str

    def __repr__(self) -> str:
        return f"{self.kind} {self.name}: {self.dtype}"


@dataclass(frozen=True)
class For:
    var: Expr
    start: Expr
    stop: Expr
    body: tuple[Stmt, ...]
    step: Expr
    unroll: bool = False


@dataclass(frozen=True)
class Vector:
    var: Expr
    width: int
    body: tuple[Stmt, ...]


@dataclass(frozen=True)
class If:
    cond: Expr
    then: tuple[Stmt, ...]
    orelse: tuple[Stmt, ...] = ()


@dataclass(frozen=True)
class Let:
    var: Expr
    value: Expr


@dataclass(frozen=True)
class Declare:
    var: Expr
    init: Expr


@dataclass(frozen=True)
class Assign:
    var: Expr
    value: Expr


@dataclass(frozen=True)
class Store:
    """stream: go to memory past the caches, where the target can; the first lane of every unmasked
    vector must then lie at a multiple of 64 bytes."""

    buffer: Buffer
    index: Expr
    value: Expr
    stream: bool = False


@dataclass(frozen=True)
class Alloc:
    buffer: Buffer  # kind "local" or "shared"
    size: int


@dataclass(frozen=True)
class Transpose:
    target: Buffer
    target_at: Expr
    target_step: Expr
    source: Buffer
    source_at: Expr
    source_step: Expr
    size: int
    across: int = 0  # 0: as many columns as rows

    @property
    def columns(self) -> int:
        return self.across or self.size


@dataclass(frozen=True)
class Columns:
    """names[j] = cast(source[place + j]) in a vector region over `lane` that has as many lanes as there are names.

    `place` depends on the lane and on nothing else that varies; all lanes take part, whatever the mask.
    """

    lane: Expr
    names: tuple[Expr, ...]
    source: Buffer
    place: Expr

    @property
    def lets(self) -> tuple[Let, ...]:
        """The same, one name after the other."""
        return tuple(Let(n, cast(load(self.source, self.place + j), n.dtype)) for j, n in enumerate(self.names))


@dataclass(frozen=True)
class Prefetch:
    buffer: Buffer
    index: Expr
    write: bool = False


@dataclass(frozen=True)
class Report:
    cond: Expr
    site: int
    value: Expr


@dataclass(frozen=True)
class Barrier:
    scope: str = "block"  # or "warp"


@dataclass(frozen=True)
class Place:
    """The address of an element, for a `Call`."""

    buffer: Buffer
    index: Expr


@dataclass(frozen=True)
class TensorMap:
    """A strided view of a buffer of which the bulk copy engine moves boxes, to and from shared memory.

    It is the argument `const __grid_constant__ TensorMap name` of the kernel, made on the host for each address and
    size. sizes: elements along each of 2 to 5 dimensions, the innermost first; strides: in elements, of all
    dimensions but the innermost, whose stride is 1; both I64 expressions over the extents. The strides and the
    buffer's start are multiples of 16 bytes. box: elements along each dimension. What lies outside reads as zero.
    Boxes lie in shared memory with the 16-byte units of each 128-byte row permuted ("128-byte swizzle"): unit u of
    row r at u xor (r mod 8).
    rounded: float32 elements are rounded to the 10 bits that tf32 keeps, to nearest even, on their way.
    """

    name: str
    buffer: Buffer
    sizes: tuple[Expr, ...]
    strides: tuple[Expr, ...]
    box: tuple[int, ...]
    rounded: bool = False


@dataclass(frozen=True)
class Call:
    """A function of the prelude. What it writes through a `Place` is named in `writes`."""

    name: str
    args: tuple[Union[Expr, Place, TensorMap], ...]
    writes: tuple[Buffer, ...] = ()


Stmt = Union[For, Vector, If, Let, Declare, Assign, Store, Alloc, Transpose, Columns, Prefetch, Report, Barrier, Call]


@dataclass(frozen=True)
class Grid:
    """How a device kernel is bound.

    blocks: how many blocks, an I64 expression over the extents. threads: of a block, a multiple of 32.
    divides: (extent, divisor) that the launch guarantees, which is what proves wide accesses aligned.
    narrow: every index, and every product of extents, fits 32 bits.
    resident: blocks that should fit on one multiprocessor (0: the compiler decides the registers).
    maps: the kernel's first arguments, in front of its buffers.
    cluster: so many neighbouring blocks run side by side and reach each other's shared memory; `blocks` is a multiple.
    members: if not 0, one launch runs the kernel for so many sets of buffers and extents; `block` and `blocks` count
        within a member. Its only argument is a table of 8-byte words: for each member its buffers, its extents and the end
        of its blocks (the blocks of all members up to it); then the address of the error words and the launch's number.
    """

    blocks: Expr
    threads: int
    divides: tuple[tuple[str, int], ...] = ()
    narrow: bool = False
    resident: int = 0
    maps: tuple[TensorMap, ...] = ()
    cluster: int = 1
    members: int = 0


@dataclass(frozen=True)
class Kernel:
    """One kernel: `buffers` then `extents` are its arguments, in order.

    parallel: the number of independent iterations, an I64 expression over the extents; the body
        refers to its share as the variables `begin` and `end`.
    work: roughly how many elementary operations the whole launch does, over the extents; decides
        whether a launch is worth several threads.
    """

    name: str
    buffers: tuple[Buffer, ...]
    extents: tuple[str, ...]
    parallel: Expr
    work: Expr
    body: tuple[Stmt, ...]
    sites: tuple[str, ...] = field(default=())
    grid: Grid | None = None


def without_columns(body: Sequence[Stmt]) -> tuple[Stmt, ...]:
    """Statements with every `Columns` as the `Let`s that it stands for, and without any `Prefetch`."""
    out: list[Stmt] = []
    for s in body:
        if isinstance(s, Prefetch):
            continue
        if isinstance(s, Columns):
            out += s.lets
        elif isinstance(s, (For, Vector)):
            out.append(replace(s, body=without_columns(s.body)))
        elif isinstance(s, If):
            out.append(If(s.cond, without_columns(s.then), without_columns(s.orelse)))
        else:
            out.append(s)
    return tuple(out)


def print_kernel(kernel: Kernel) -> str:
    """The text of a kernel, one statement a line."""
    head = ", ".join([*map(repr, kernel.buffers), *kernel.extents])
    bound = f"parallel {show(kernel.parallel)}"
    if kernel.grid is not None:
        g = kernel.grid
        bound = f"blocks {show(g.blocks)} of {g.threads} threads" + (" narrow" if g.narrow else "")
        bound += f" in clusters of {g.cluster}" if g.cluster > 1 else ""
        bound += "".join(f", {name} % {d} == 0" for name, d in g.divides)
        bound += f", {g.members} members" if g.members else ""
        bound += "".join(f",\n    {_show_map(m)}" for m in g.maps)
    lines = [f"kernel @{kernel.name}({head})", f"    {bound} {{"]
    lines += _print_block(kernel.body, "  ")
    return "\n".join([*lines, "}"])


def _show_map(m: TensorMap) -> str:
    sizes, strides = (", ".join(map(show, part)) for part in (m.sizes, m.strides))
    box = " x ".join(map(str, m.box))
    return f"map {m.name} of {m.buffer.name}[{sizes}] strides {strides} box {box}" + (" rounded" if m.rounded else "")


def _show_argument(a: Expr | Place | TensorMap) -> str:
    if isinstance(a, Place):
        return f"&{a.buffer.name}[{show(a.index)}]"
    return f"&{a.name}" if isinstance(a, TensorMap) else show(a)


def _print_block(body: Sequence[Stmt], pad: str) -> list[str]:
    out: list[str] = []
    for s in body:
        if isinstance(s, For):
            step = "" if show(s.step) == "1" else f" step {show(s.step)}"
            mark = "unrolled " if s.unroll else ""
            head = f"{mark}for {show(s.var)} = {show(s.start)} .. {show(s.stop)}{step}"
            out += [f"{pad}{head} {{", *_print_block(s.body, pad + "  "), pad + "}"]
        elif isinstance(s, Vector):
            head = f"vector {show(s.var)} < {s.width}"
            out += [f"{pad}{head} {{", *_print_block(s.body, pad + "  "), pad + "}"]
        elif isinstance(s, If):
            out += [f"{pad}if {show(s.cond)} {{", *_print_block(s.then, pad + "  ")]
            if s.orelse:
                out += [pad + "} else {", *_print_block(s.orelse, pad + "  ")]
            out.append(pad + "}")
        elif isinstance(s, Let):
            out.append(f"{pad}let {show(s.var)} = {show(s.value)}")
        elif isinstance(s, Declare):
            out.append(f"{pad}var {show(s.var)}: {s.var.dtype} = {show(s.init)}")
        elif isinstance(s, Assign):
            out.append(f"{pad}{show(s.var)} := {show(s.value)}")
        elif isinstance(s, Store):
            past = " stream" if s.stream else ""
            out.append(f"{pad}{s.buffer.name}[{show(s.index)}] = {show(s.value)}{past}")
        elif isinstance(s, Alloc):
            out.append(f"{pad}{s.buffer.kind} {s.buffer.name}: {s.buffer.dtype}[{s.size}]")
        elif isinstance(s, Transpose):
            target = f"{s.target.name}[{show(s.target_at)} step {show(s.target_step)}]"
            source = f"{s.source.name}[{show(s.source_at)} step {show(s.source_step)}]"
            out.append(f"{pad}transpose {s.size} x {s.columns} {target} = {source}")
        elif isinstance(s, Columns):
            names = f"{show(s.names[0])} .. {show(s.names[-1])}"
            out.append(f"{pad}columns {names} = {s.source.name}[{show(s.place)} ..]")
        elif isinstance(s, Prefetch):
            out.append(f"{pad}prefetch {s.buffer.name}[{show(s.index)}]{' to write' if s.write else ''}")
        elif isinstance(s, Barrier):
            out.append(f"{pad}barrier {s.scope}")
        elif isinstance(s, Call):
            out.append(f"{pad}{s.name}({', '.join(map(_show_argument, s.args))})")
        else:
            out.append(f"{pad}report {s.site} if {show(s.cond)}: {show(s.value)}")
    return out
