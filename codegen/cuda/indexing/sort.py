"""Positions 0 .. total - 1 sorted by a small key, equal keys in their order: a radix sort without atomics.

Digits of 8 bits, the least first. For each digit three kernels: blocks count the digits of their chunk; one block
for each digit sums its counts over the chunks; blocks move their chunk to where it belongs. A warp walks a run of the chunk, 32 keys
at a time, and finds by shuffles how many equal digits lie before each; so the order never depends on which thread was first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from graphc.codegen.c.positions import expressions, statements
from graphc.codegen.cuda.choice import Choice
from graphc.codegen.cuda.maps.sweep import BLOCK, THREAD
from graphc.codegen.expr import Expr, binary, cast, children_first, const, equal, index, load, select, shuffle
from graphc.codegen.loops import (
    Alloc,
    Assign,
    Barrier,
    Buffer,
    Declare,
    For,
    Grid,
    If,
    Kernel,
    Let,
    Stmt,
    Store,
)
from graphc.codegen.lower.index import dim_expr
from graphc.codegen.lower.lowered import Scratch
from graphc.codegen.lower.nest import Names
from graphc.ir.types import I32, I64, Dim, DType

BITS = 8
DIGITS = 1 << BITS  # as many as a block has threads
WARP, WARPS = 32, DIGITS // 32
RUN = 64  # keys that a warp walks: few, so that even 10,000 keys keep many multiprocessors busy
CHUNK = WARPS * RUN


@dataclass(frozen=True)
class Keys:
    """What is sorted. key(u): the key of position u, below `rows`; its reports are taken by `reports`. buffers: what it
    reads."""

    total: Dim
    rows: Dim
    key: Callable[[Expr], Expr]
    reports: Callable[[], list[Stmt]]
    buffers: tuple[Buffer, ...]
    extents: tuple[str, ...]


@dataclass(frozen=True)
class Order:
    """buffer[i] is the position that comes i-th, and keys[i] its key."""

    buffer: Buffer
    keys: Buffer


def sort_kernels(
    keys: Keys, passes: int, word: DType, choice: Choice
) -> tuple[tuple[Kernel, ...], tuple[Scratch, ...], Order]:
    """The kernels that sort, their memory, and the order they leave. word: a dtype that holds `total` and `rows`."""
    chunks: Dim = (keys.total + (CHUNK - 1)) // CHUNK
    sums, totals = Buffer("sums", word, "scratch"), Buffer("totals", word, "scratch")
    scratch = [Scratch(sums, word, chunks * DIGITS), Scratch(totals, word, DIGITS)]
    orders = []
    for name in ("a", "b")[: min(2, passes)]:
        order = Order(Buffer(f"order_{name}", word, "scratch"), Buffer(f"keys_{name}", word, "scratch"))
        scratch += [Scratch(b, word, keys.total) for b in (order.buffer, order.keys)]
        orders.append(order)
    kernels: list[Kernel] = []
    source: Order | None = None
    for number in range(passes):
        target = orders[number % 2]
        step = _Pass(keys, number, word, choice, dim_expr(chunks), source, sums, totals)
        kernels += [step.count(), step.sum(), step.move(target)]
        source = target
    assert source is not None
    return tuple(kernels), tuple(scratch), source


def touched(body: tuple[Stmt, ...]) -> set[Buffer]:
    """The buffers that statements read or write."""
    found: set[Buffer] = set()
    for s in statements(body):
        if isinstance(s, Store):
            found.add(s.buffer)
        found |= {n.data for n in children_first(tuple(expressions(s))) if n.op == "load"}
    return found


class _Pass:
    """The kernels of one digit. source: what the passes before left, or None."""

    def __init__(
        self,
        keys: Keys,
        number: int,
        word: DType,
        choice: Choice,
        chunks: Expr,
        source: Order | None,
        sums: Buffer,
        totals: Buffer,
    ) -> None:
        self.keys, self.number, self.word, self.choice = keys, number, word, choice
        self.chunks, self.source, self.sums, self.totals = chunks, source, sums, totals
        self.total = dim_expr(keys.total)
        self.names = Names()
        self.reads = keys.buffers if source is None else (source.buffer, source.keys)

    def kernel(self, name: str, buffers: tuple[Buffer, ...], body: list[Stmt], blocks: Expr) -> Kernel:
        return Kernel(
            name=name,
            buffers=tuple(b for b in buffers if b in touched(tuple(body))),
            extents=self.keys.extents,
            parallel=blocks,
            work=self.total,
            body=tuple(body),
            grid=Grid(blocks, DIGITS, self.choice.divides, self.choice.narrow),
        )

    def walk(
        self, warp: Expr, lane: Expr, report: bool, body: Callable[[Expr, Expr, Expr, Expr, Expr], list[Stmt]]
    ) -> Stmt:
        """Over the run of a warp: body(position, key, digit, rank among equal digits of the 32, how many of them).
        The digit is -1 beyond the end."""
        fresh, word = self.names.fresh, self.word
        batch, u, k = fresh("batch"), fresh("u"), fresh("k")
        key, other = fresh("key", word), fresh("other", I32)
        digit, rank, count = (fresh(n, I32) for n in ("digit", "rank", "count"))
        inside = u < self.total
        if self.source is None:
            # Beyond the end the key of position 0 is looked at, and not used.
            found = cast(self.keys.key(select(inside, u, 0)), word)
            reports = self.keys.reports()
        else:
            found, reports = load(self.source.keys, u, inside), []
        part = cast(binary("shr", key, const(word, BITS * self.number)) & (DIGITS - 1), I32)
        same = select(equal(other, digit), const(I32, 1), const(I32, 0))
        stmts: list[Stmt] = [
            Let(u, BLOCK * CHUNK + warp * RUN + batch * WARP + lane),
            *(reports if report else ()),
            Let(key, found),
            Let(digit, select(inside, part, const(I32, -1))),
            Declare(rank, const(I32, 0)),
            Declare(count, const(I32, 0)),
            For(
                k,
                index(0),
                index(WARP),
                (
                    Let(other, shuffle(digit, "from", k)),
                    Assign(count, count + same),
                    Assign(rank, rank + select(k < lane, same, const(I32, 0))),
                ),
                index(1),
                unroll=True,
            ),
            *body(u, key, digit, rank, count),
        ]
        return For(batch, index(0), index(RUN // WARP), tuple(stmts), index(1))

    def head(self) -> tuple[Expr, Expr, list[Stmt]]:
        warp, lane = self.names.fresh("warp"), self.names.fresh("lane")
        return warp, lane, [Let(warp, THREAD // WARP), Let(lane, THREAD % WARP)]

    def counted(self, counts: Buffer, warp: Expr, lane: Expr, report: bool) -> list[Stmt]:
        """How many of each digit each warp's run has, in shared memory."""
        w = self.names.fresh("w")
        zero = const(self.word, 0)

        def add(u: Expr, key: Expr, digit: Expr, rank: Expr, count: Expr) -> list[Stmt]:
            return [*self._advance(counts, warp, digit, rank, count), Barrier("warp")]

        return [
            For(w, index(0), index(WARPS), (Store(counts, w * DIGITS + THREAD, zero),), index(1), unroll=True),
            Barrier(),
            self.walk(warp, lane, report, add),
            Barrier(),
        ]

    def _advance(self, counts: Buffer, warp: Expr, digit: Expr, rank: Expr, count: Expr) -> list[Stmt]:
        """The last of equal digits adds their number."""
        place = warp * DIGITS + cast(digit, I64)
        last = equal(rank + 1, count) & (digit >= 0)
        return [If(last, (Store(counts, place, load(counts, place) + cast(count, self.word)),))]

    def count(self) -> Kernel:
        counts = Buffer("counts", self.word, "shared")
        warp, lane, body = self.head()
        body.append(Alloc(counts, WARPS * DIGITS))
        body += self.counted(counts, warp, lane, True)
        total = const(self.word, 0)
        for w in range(WARPS):
            total = total + load(counts, THREAD + w * DIGITS)
        body.append(Store(self.sums, THREAD * self.chunks + BLOCK, total))
        return self.kernel("sort_count", (*self.reads, self.sums), body, self.chunks)

    def prefix(self, shared: Buffer, value: Expr) -> list[Stmt]:
        """shared[t] becomes the sum of `value` over threads 0 .. t."""
        stmts: list[Stmt] = [Store(shared, THREAD, value), Barrier()]
        step = 1
        while step < DIGITS:
            before = self.names.fresh("v", self.word)
            stmts += [
                Let(before, load(shared, THREAD - step, step <= THREAD)),
                Barrier(),
                Store(shared, THREAD, load(shared, THREAD) + before),
                Barrier(),
            ]
            step *= 2
        return stmts

    def sum(self) -> Kernel:
        """Block d: over the chunks, how many of digit d come in earlier ones; and how many there are."""
        shared = Buffer("parts", self.word, "shared")
        start = self.names.fresh("t")
        carry, value = self.names.fresh("carry", self.word), self.names.fresh("v", self.word)
        chunk = start + THREAD
        place = BLOCK * self.chunks + chunk
        loop = For(
            start,
            index(0),
            self.chunks,
            (
                Let(value, load(self.sums, place, chunk < self.chunks)),
                *self.prefix(shared, value),
                If(chunk < self.chunks, (Store(self.sums, place, carry + load(shared, THREAD) - value),)),
                Assign(carry, carry + load(shared, index(DIGITS - 1))),
                Barrier(),
            ),
            index(DIGITS),
        )
        body: list[Stmt] = [
            Alloc(shared, DIGITS),
            Declare(carry, const(self.word, 0)),
            loop,
            If(equal(THREAD, 0), (Store(self.totals, BLOCK, carry),)),
        ]
        return self.kernel("sort_sum", (self.sums, self.totals), body, index(DIGITS))

    def move(self, target: Order) -> Kernel:
        counts, shared = Buffer("counts", self.word, "shared"), Buffer("parts", self.word, "shared")
        warp, lane, body = self.head()
        mine, w = self.names.fresh("total", self.word), self.names.fresh("w")
        base, count = self.names.fresh("base", self.word), self.names.fresh("n", self.word)
        place = w * DIGITS + THREAD
        body += [Alloc(counts, WARPS * DIGITS), Alloc(shared, DIGITS)]
        body += self.counted(counts, warp, lane, False)
        body += [
            Let(mine, load(self.totals, THREAD)),
            *self.prefix(shared, mine),
            # Where this thread's digit starts for this chunk, then for each of its warps.
            Declare(base, load(shared, THREAD) - mine + load(self.sums, THREAD * self.chunks + BLOCK)),
            For(
                w,
                index(0),
                index(WARPS),
                (Let(count, load(counts, place)), Store(counts, place, base), Assign(base, base + count)),
                index(1),
                unroll=True,
            ),
            Barrier(),
        ]

        def put(u: Expr, key: Expr, digit: Expr, rank: Expr, count: Expr) -> list[Stmt]:
            at = self.names.fresh("at")
            from_ = cast(load(counts, warp * DIGITS + cast(digit, I64)), I64)
            position = cast(u, self.word) if self.source is None else load(self.source.buffer, u)
            stores = (
                Let(at, from_ + cast(rank, I64)),
                Store(target.keys, at, key),
                Store(target.buffer, at, position),
            )
            return [
                If(digit >= 0, stores),
                Barrier("warp"),
                *self._advance(counts, warp, digit, rank, count),
                Barrier("warp"),
            ]

        body.append(self.walk(warp, lane, False, put))
        buffers = (*self.reads, self.sums, self.totals, target.keys, target.buffer)
        return self.kernel("sort_move", buffers, body, self.chunks)
