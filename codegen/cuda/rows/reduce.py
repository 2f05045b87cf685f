"""Row groups on a device: reductions along any dimensions with what feeds and follows them, in one kernel.

All forms keep the order that the bit contract fixes (docs/architecture.md): lane i mod 32 in chunks of 4096, the
lanes by halving, the chunks ascending. That order was made for warps, so no form pays for it.

| form | where | held between sweeps |
| --- | --- | --- |
| rows registers | rows that a warp can hold | registers |
| rows shared | longer rows that a block can hold | shared memory |
| rows loop | any | nothing |
| columns registers, columns loop | kept dimensions further in than the reduced ones | registers, nothing |
| partials rows, partials columns | few and long ones: chunks over the device, then their combination | |
"""

from __future__ import annotations

from collections.abc import Mapping

from graphc.codegen.cuda.choice import Choice, divisors, is_narrow
from graphc.codegen.cuda.rows.columns import Columns
from graphc.codegen.cuda.rows.partials import lower_partials
from graphc.codegen.cuda.rows.rows import WARP, Rows
from graphc.codegen.cuda.rows.staged import Places, Staged
from graphc.codegen.cuda.rows.sweeps import held_values, most_live
from graphc.codegen.cuda.target import Target
from graphc.codegen.lower.index import dim_expr
from graphc.codegen.lower.lowered import Lowered
from graphc.codegen.lower.map import work_of
from graphc.codegen.lower.nest import Names, group_buffers, group_extents
from graphc.codegen.lower.pull import Pull
from graphc.codegen.lower.row_group import CHUNK, LANES, RowGroup, domain_of, is_columns, single_pass
from graphc.ir.function import Function
from graphc.ir.passes import run_pipeline
from graphc.ir.types import Shape, dim_symbols, size_of, substitute

Sizes = Mapping[str, int]
Numbers = tuple[tuple[str, int], ...]
FORMS: dict[str, type[Rows] | type[Columns] | type[Staged]] = {"columns": Columns, "rows shared": Staged, "rows": Rows}
ACCESS = 16  # bytes of the widest load
# Registers of a thread that may hold elements; a wide access asks for more of them at once.
MOST_HELD, MOST_WIDE = 96, 48
MOST_LINES = 48  # elements of a thread that are written out: longer code takes long to compile, and to fetch
MOST_UNHELD = 32  # elements that a thread loads at once where nothing is held: enough are under way
SECTORS = 64  # bytes of neighbouring columns that a block takes at least
RESIDENT = 48  # warps of a multiprocessor that hide each other's waiting
MANY_CHAINS = 8
FEW_CHUNKS = 4  # fewer are not worth a second kernel
MOST_DOWN = 32  # threads that share a column


def choose(group: Function, sizes: Sizes, target: Target) -> Choice:
    """The schedule of a row group for these sizes."""
    group = _shared_once(group)
    shape, axes = domain_of(group)
    if is_columns(shape, axes):
        return _choose_columns(group, sizes, target)
    length = _value(tuple(shape[a] for a in axes), sizes)
    narrow = is_narrow(group, sizes)
    held = held_values(group)
    live = max(1, most_live(held))
    lanes = _power(length, LANES)
    lines = max(1, -(-length // lanes))
    wide = max(1, min(ACCESS // _widest(group, shape), lanes))
    most, most_wide = (MOST_HELD, MOST_WIDE) if held else (MOST_UNHELD, MOST_UNHELD)
    while wide > 1 and (length % wide or length == 0 or lines * wide * live > most_wide):
        wide //= 2
    divides = _useful(group, sizes, shape, axes, wide)
    if lines * live * wide <= most and lines * wide <= MOST_LINES:
        numbers: Numbers = (("lanes", lanes), ("wide", wide), ("lines", lines), ("full", int(lines * lanes == length)), ("parts", 1), ("warps", 4))
        return Choice("rows registers", numbers, divides, narrow)
    chunks = -(-length // CHUNK)
    rows = _value(tuple(d for i, d in enumerate(shape) if i not in axes), sizes)
    # Several levels read their operands again where they are spread over the device.
    few = target.multiprocessors // (1 if single_pass(group) else 4)
    if chunks >= FEW_CHUNKS and rows < few:
        wide = min(ACCESS // _widest(group, shape), 4)
        while wide > 1 and (length % wide or rows * chunks // wide < target.multiprocessors * 8):
            wide //= 2
        numbers = (("lanes", LANES), ("wide", wide), ("parts", 1), ("warps", 4), ("together", _power(rows, WARP)))
        return Choice("partials rows", numbers, _useful(group, sizes, shape, axes, wide), narrow)
    shared = _choose_staged(group, sizes, target, length)
    if shared is not None:
        return shared
    parts = min(chunks, 16)
    warps = parts if parts > 1 else 2
    numbers = (("lanes", LANES), ("wide", 1), ("parts", parts), ("warps", warps), ("once", int(chunks <= parts)))
    return Choice("rows loop", numbers, (), narrow)


def _choose_staged(group: Function, sizes: Sizes, target: Target, length: int) -> Choice | None:
    """Rows in shared memory, where something is to be held, and fits."""
    shape, axes = domain_of(group)
    chunks = -(-length // CHUNK)
    room = -(-length // 256) * 256
    # Elements that a copy may take at once; before compute capability 8.0 there are no such copies.
    even = next(d for d in (16, 8, 4, 2, 1) if length % d == 0) if target.capability >= 80 else 0
    # Two rows at once hide each other's copies; many chains are work enough for all warps.
    for plan, limit in ((0, 2), (1, 2 if chunks >= MANY_CHAINS else 0), (2, 2 if chunks >= MANY_CHAINS else 0), (0, 1), (1, 1), (2, 1)):
        places = Places(group, even, plan)
        bytes_a_row = room * places.itemsize + (1 << 10)
        if places.held and bytes_a_row * limit <= target.shared and limit:
            break
    else:
        return None
    kept = chunks
    half = (target.shared // 2 - (1 << 10)) // (CHUNK * places.itemsize)
    if 2 * bytes_a_row > target.shared and places.only_chains and 4 * half >= 3 * chunks:
        kept, room = half, half * CHUNK
        bytes_a_row = room * places.itemsize + (1 << 10)
    # As many warps as hide each other's waiting, over the rows that fit on a multiprocessor.
    warps = 4
    while warps < WARP and 2 * warps * (target.shared // bytes_a_row) <= RESIDENT:
        warps *= 2
    wide = max(1, min(ACCESS // _widest(group, shape), 4))
    while wide > 1 and (length % wide or warps * WARP * wide > length):
        wide //= 2
    numbers = (("wide", wide), ("warps", warps), ("chunks", chunks), ("room", room), ("even", even), ("plan", plan), ("kept", kept))
    return Choice("rows shared", numbers, _useful(group, sizes, shape, axes, wide), is_narrow(group, sizes))


def _choose_columns(group: Function, sizes: Sizes, target: Target) -> Choice:
    shape, axes = domain_of(group)
    kept = [i for i in range(len(shape)) if i not in axes]
    lane_dim = max(i for i in kept if shape[i] != 1)
    length, n = _value(tuple(shape[a] for a in axes), sizes), _value((shape[lane_dim],), sizes)
    rows = _value(tuple(shape[i] for i in kept if i != lane_dim), sizes)
    lanes = _power(length, LANES)
    wide = ACCESS // _widest(group, shape)
    live = max(1, most_live(held_values(group)))
    lines = max(1, -(-length // lanes))

    def blocks(wide: int, across: int) -> int:
        return rows * -(-n // (across * wide))

    # As many columns a thread as fill the device, and whole sectors of memory for a line of a block.
    while wide > 1 and (n % wide or blocks(wide, WARP) < 2 * target.multiprocessors):
        wide //= 2
    across = min(WARP, _power(-(-n // wide), WARP))
    # At least a sector of memory, better two, for each line of a block.
    chunks = max(1, -(-length // CHUNK))
    while across * wide * _widest(group, shape) > SECTORS and blocks(wide, across) * chunks < target.multiprocessors:
        across //= 2
    down = min(lanes, MOST_DOWN)
    while down > 1 and across * down > 512 and lines * (lanes // down) * wide * live * 2 <= MOST_WIDE:
        down //= 2  # fewer threads with more in flight each
    while across * down > 1024:
        down //= 2
    items = max(1, 128 // (across * down))
    held = lines * (lanes // down) * wide * live
    numbers: Numbers = (("lanes", lanes), ("wide", wide), ("across", across), ("down", down), ("items", items))
    even = int(n % (across * wide) == 0 and rows % items == 0)
    divides = _useful(group, sizes, shape, (lane_dim,), wide)
    if held <= MOST_WIDE:
        numbers = (*numbers, ("even", even), ("lines", lines), ("full", int(lines * lanes == length)))
        return Choice("columns registers", numbers, divides, is_narrow(group, sizes))
    tiles = -(-rows // items) * -(-n // (across * wide))
    if length > CHUNK and tiles < target.multiprocessors // (1 if single_pass(group) else 2):
        numbers = (*numbers, ("even", even), ("together", _power(rows * n, WARP)))
        return Choice("partials columns", numbers, divides, is_narrow(group, sizes))
    return Choice("columns loop", (*numbers, ("even", even)), divides, is_narrow(group, sizes))


def _power(n: int, most: int) -> int:
    """The least power of two that is at least `n`, up to `most`."""
    p = 1
    while p < n and p < most:
        p *= 2
    return p


def _widest(group: Function, shape: Shape) -> int:
    """Bytes of the widest element of a parameter or result of the full shape."""
    return max((v.type.dtype.itemsize for v in (*group.params, *group.results) if v.type.shape == shape), default=4)


def lower(group: Function, choice: Choice, target: Target) -> Lowered:
    """The kernels of a row group under a schedule."""
    group = _shared_once(group)
    params, results = group_buffers(group)
    pull = Pull(group, dict(zip(group.params, params, strict=True)))
    shape, axes = domain_of(group)
    row = RowGroup(group, pull, Names(), shape, axes)
    targets = list(zip(group.results, results, strict=True))
    extents, work = group_extents(group), dim_expr(size_of(shape)) * work_of(group)
    if choice.form.startswith("partials"):
        return lower_partials(row, params, results, targets, choice)
    form = next((made for name, made in FORMS.items() if choice.form.startswith(name)))
    kernel = form(row, targets, choice).kernel((*params, *results), extents, work)
    return Lowered((kernel,), params, results, sites=tuple(pull.sites))


def _shared_once(group: Function) -> Function:
    """`group` without copies of one value (recompute.py makes them for every reader): they are held once."""
    return run_pipeline(group, ("cse",))


def _value(dims: Shape, sizes: Sizes) -> int:
    found = substitute(size_of(dims), dict(sizes))
    assert isinstance(found, int)
    return found


def _useful(group: Function, sizes: Sizes, shape: Shape, axes: tuple[int, ...], wide: int) -> tuple[tuple[str, int], ...]:
    """The divisors that wide accesses along the row need, and no others: each is another kernel."""
    names = {s for a in axes for s in dim_symbols(shape[a])}
    return tuple((n, min(d, wide)) for n, d in divisors(group, sizes) if n in names) if wide > 1 else ()


__all__ = ["choose", "lower"]
