"""After fusion: reductions over the same dimensions that read the same memory share a kernel.

The gradients of a layer's gain and bias are two sums down the columns of one cotangent; neither reads the other, so fusion,
which follows values to their readers, leaves them apart. What one of them writes counts as well, if it does not wait for its
reductions: the sums of batch norm's gradient read the cotangent of an activation while it is made. Nothing changes a bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graphc.codegen.fuse import ALONE, CONTRACT, MOST_OPERATIONS, REDUCE
from graphc.codegen.likely import likely
from graphc.codegen.lower.row_group import domain_of, is_columns, single_pass
from graphc.ir.function import Builder, Module, Operation, Value
from graphc.ir.types import Shape, size_of

MOST_RESULTS = 8
# Fewer rows than this may have to share the threads (lower/reduce.py), which they cannot while they write.
FEW_ROWS = 16
Now = Callable[[Value], Value]
Domain = tuple[Shape, tuple[int, ...]]


def merge(module: Module) -> Module:
    """`module` with such groups merged, one pair at a time."""
    merger = _Merger(module)
    while (pair := merger.pair()) is not None:
        merger.merge(*pair)
    return with_calls(module, merger.calls, merger.now) if merger.results else module


def with_calls(module: Module, calls: Sequence[Operation], now: Now) -> Module:
    """`module` with other calls. now: what stands for a value that they or the results name."""
    b = Builder(module.entry.name)
    env: dict[Value, Value] = {}
    for p, name in zip(module.entry.params, module.entry.param_names, strict=True):
        env[p] = b.param(p.type, name)
    for op in calls:
        b.loc = op.loc
        env.update({v: env[now(v)] for v in op.operands})
        b.copy(op, env)
    functions = (op.attrs["function"] for op in calls)
    return Module([b.build([env[now(r)] for r in module.entry.results]), *functions])


class _Merger:
    """The calls while pairs of them become one.

    What it costs to find the next pair depends on how many calls read memory that another one reads, not on all there are.
    """

    def __init__(self, module: Module) -> None:
        self.calls = list(module.entry.ops)
        self.results: dict[Value, Value] = {}  # of calls that were merged
        self.first: dict[Value, Value] = {}  # what a result of a merged call was called at first
        self.maker = {r: op for op in self.calls for r in op.results}
        self.place = {op: k for k, op in enumerate(self.calls)}
        # By domain, calls in their order; what each reads of the domain's shape, or writes before it has reduced anything, by its
        # first name; others that read some of it.
        self.alike: dict[Domain, list[Operation]] = {}
        self.reads: dict[Operation, set[Value]] = {}
        self.writes: dict[Operation, set[Value]] = {}
        self.partners: dict[Operation, set[Operation]] = {}
        for op in self.calls:
            domain = _domain(op)
            if domain is not None:
                self._add(op, domain)
        for domain, ops in self.alike.items():
            self._match(domain, ops)

    def now(self, v: Value) -> Value:
        """What stands for a result of a call that was merged."""
        while v in self.results:
            v = self.results[v]
        return v

    def _add(self, op: Operation, domain: Domain) -> None:
        self.partners[op] = set()
        # Columns are spread over chunks only where one pass does it: the others stay by themselves.
        alone = is_columns(*domain) and not single_pass(op.attrs["function"])
        shape = domain[0]
        self.reads[op] = set() if alone else {self.first.get(v, v) for v in op.operands if v.type.shape == shape}
        self.writes[op] = {self.first.get(v, v) for v in _written_at_once(op, domain)}
        self.alike.setdefault(domain, []).append(op)

    def _match(self, domain: Domain, ops: list[Operation]) -> None:
        """Find the partners of `ops` in their domain."""
        readers: dict[Value, list[Operation]] = {}
        for op in self.alike[domain]:
            for v in self.reads[op] | self.writes[op]:
                readers.setdefault(v, []).append(op)
        for op in ops:
            for other in (o for v in self.reads[op] | self.writes[op] for o in readers[v]):
                if other is not op and _fit(op, other):
                    self.partners[op].add(other)
                    self.partners[other].add(op)

    def pair(self) -> tuple[Operation, Operation, Domain, int] | None:
        """Two calls that may be one, and its place: that of the first if the second is ready there, that of the second if nobody in
        between waits for the first."""
        place = self.place
        for domain, ops in sorted(self.alike.items(), key=lambda item: place[item[1][0]]):
            for first in ops:
                i = place[first]
                for j, second in sorted((place[o], o) for o in self.partners[first] if place[o] > i):
                    # Of the first's results the second may read what is written at once.
                    own = {v for v in second.operands if self.now(v) in first.results}
                    if own and not self._reads_at_once(first, second, own):
                        continue
                    if all(v in own or self._made_before(v, i) for v in second.operands):
                        return first, second, domain, i
                    between = (v for op in self.calls[i + 1 : j] for v in op.operands)
                    if not any(self.now(v) in first.results for v in between):
                        return first, second, domain, j
        return None

    def _reads_at_once(self, first: Operation, second: Operation, own: set[Value]) -> bool:
        """Whether one pass computes `own`, results of the first, and all that the second makes of them."""
        written = self.writes[first]
        return single_pass(second.attrs["function"]) and all(self.first.get(n := self.now(v), n) in written for v in own)

    def _made_before(self, v: Value, place: int) -> bool:
        maker = self.maker.get(self.now(v))
        return maker is None or self.place[maker] < place

    def merge(self, first: Operation, second: Operation, domain: Domain, at: int) -> None:
        """Make one call of two, at this place."""
        merged = _merged(first, second, self.now)
        for old, new in zip((*first.results, *second.results), merged.results, strict=True):
            self.results[old] = new
            self.first[new] = self.first.get(old, old)
            self.maker[new] = merged
        gone = (first, second)
        self.calls = [merged if k == at else op for k, op in enumerate(self.calls) if k == at or op not in gone]
        self.place = {op: k for k, op in enumerate(self.calls)}
        for op in gone:
            for other in self.partners.pop(op):
                if other in self.partners:
                    self.partners[other].discard(op)
        self.alike[domain] = [op for op in self.alike[domain] if op not in gone]
        self._add(merged, domain)
        self._match(domain, [merged])
        for ops in self.alike.values():
            ops.sort(key=self.place.__getitem__)


def _domain(op: Operation) -> Domain | None:
    """What a call reduces, if it is a row group."""
    group = op.attrs["function"]
    names = {o.name for o in group.ops}
    return domain_of(group) if names & REDUCE and not names & (CONTRACT | ALONE) else None


def _written_at_once(op: Operation, domain: Domain) -> list[Value]:
    """The results of the domain's shape, if they do not wait for a reduction of the call; of rows that are one thread's anyway."""
    shape, axes = domain
    rows = likely(size_of(d for i, d in enumerate(shape) if i not in axes))
    if is_columns(*domain) or rows is None or rows < FEW_ROWS:
        return []
    group = op.attrs["function"]
    if not single_pass(group):
        return []
    made = {v for o in group.ops for v in o.results}
    found = zip(op.results, group.results, strict=True)
    return [v for v, inner in found if inner.type.shape == shape and inner in made]


def _fit(first: Operation, second: Operation) -> bool:
    a, b = first.attrs["function"], second.attrs["function"]
    return len(a.ops) + len(b.ops) <= MOST_OPERATIONS and len(a.results) + len(b.results) <= MOST_RESULTS


def _merged(first: Operation, second: Operation, now: Now) -> Operation:
    a, c = first.attrs["function"], second.attrs["function"]
    b = Builder(a.name)
    operands: list[Value] = []
    params: dict[Value, Value] = {}
    results: list[Value] = []
    for call, group in ((first, a), (second, c)):
        env: dict[Value, Value] = {}
        written = dict(zip(first.results, results, strict=True)) if call is second else {}
        for v, p in zip(map(now, call.operands), group.params, strict=True):
            if v in written:
                env[p] = written[v]
                continue
            if v not in params:
                params[v] = b.param(p.type)
                operands.append(v)
            env[p] = params[v]
        for op in group.ops:
            b.loc = op.loc
            copy = Operation(op.name, [env[v] for v in op.operands], op.attrs, [Value(r.type) for r in op.results], op.loc)
            b.append(copy)
            env.update(zip(op.results, copy.results, strict=True))
        results += [env[r] for r in group.results]
    return Operation("call", operands, {"function": b.build(results), "noinline": False}, [Value(r.type) for r in results], second.loc)
