"""Before fusion: values that cost less to compute than to store and read get a copy for each reader.

A value of this kind comes by a few elementwise operations from one other value of its size, which lies in memory anyway, and
from smaller ones (the mean of its row, a bias). Readers in different kernels then read that value, and none is stored between
them: the gradient of layer norm reads x again rather than x - mean and its quotient. Nothing changes a bit.
"""

from __future__ import annotations

from graphc.codegen.fuse import ALONE, CONTRACT, FREE
from graphc.codegen.likely import likely
from graphc.ir.function import Function, Operation, Value
from graphc.ir.registry import lookup
from graphc.ir.types import Shape, size_of

# What an element may cost, in units of a plain operation. To store it and to read it again costs about as much.
MOST_COST = 8
_DEAR = frozenset(("div", "sqrt", "reciprocal"))
_DEAR_ON_A_DEVICE = _DEAR | {"exp", "exp2", "log", "log2"}
_DEAR_COST = 4
_TOO_DEAR = frozenset(
    ["exp", "exp2", "log", "log2", "expm1", "log10", "log1p", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "pow", "atan2", "hypot", "logaddexp", "nextafter", "remainder", "floor_divide"]
)  # fmt: skip
_SMALLER = 16  # times fewer elements: what is repeated along rows


def recompute(f: Function, device: bool = False) -> Function:
    """`f` with such values copied. A function with sizes of which nothing is known comes back as it is.

    device: for a GPU, to which exp and log cost less than memory.
    """
    if any(likely(d) is None for v in f.params for d in v.type.shape):
        return f
    users: dict[Value, list[Operation]] = {}
    for op in f.ops:
        for v in dict.fromkeys(op.operands):
            users.setdefault(v, []).append(op)
    sources = _sources(f, _DEAR_ON_A_DEVICE if device else _DEAR)
    copied = {v for v in sources if len(users.get(v, ())) > 1}
    if not copied:
        return f
    producer = {r: op for op in f.ops for r in op.results}
    ops: list[Operation] = []

    def emit(op: Operation, fresh: bool) -> Operation:
        operands = [copy(v) if v in copied or (fresh and v in sources) else v for v in op.operands]
        if fresh or any(v in copied for v in op.operands):
            op = Operation(op.name, operands, op.attrs, [Value(r.type) for r in op.results] if fresh else op.results, op.loc)
        ops.append(op)
        return op

    def copy(v: Value) -> Value:
        """A copy of `v` for the operation that is made next, by copies all the way to what lies in memory."""
        return emit(producer[v], True).results[0]

    wanted = set(f.results)
    for op in f.ops:
        if not (op.results and op.results[0] in copied) or op.results[0] in wanted:
            emit(op, False)
    return Function(f.name, f.params, ops, f.results, f.param_names)


def _sources(f: Function, dear: frozenset[str]) -> dict[Value, tuple[Value | None, int]]:
    """The values that may be computed again: what of their size they come from, if anything, and at what cost."""
    producer = {r: op for op in f.ops for r in op.results}
    small: dict[Value, bool] = {}
    sizes: dict[Shape, int] = {}

    def elements(v: Value) -> int:
        shape = v.type.shape
        size = sizes.get(shape)
        if size is None:
            size = sizes[shape] = likely(size_of(shape)) or 0
        return size

    def is_small(v: Value, size: int) -> bool:
        """Whether `v` is something smaller, repeated."""
        if v not in small:
            op = producer.get(v)
            found = op is not None and op.name in ("broadcast", "full", "constant", "iota", "reshape")
            if found and op is not None and op.operands and elements(op.operands[0]) * _SMALLER > size:
                found = op.name in ("broadcast", "reshape") and is_small(op.operands[0], size)
            small[v] = found
        return small[v]

    stored = {*f.params, *f.results}
    # What products, convolutions, scatters and scans read must be stored, and need not be computed again.
    for op in reversed(f.ops):
        if op.name in CONTRACT | ALONE or (op.name in FREE and op.results and op.results[0] in stored):
            stored |= set(op.operands)
    sources: dict[Value, tuple[Value | None, int]] = {}
    for op in f.ops:
        if len(op.results) != 1 or op.name in _TOO_DEAR - dear or op.name in FREE | ALONE | CONTRACT:
            continue
        if lookup(op.name).family not in ("elementwise", "compare"):
            continue
        v = op.results[0]
        if v in stored:
            continue
        size = elements(v)
        large = [o for o in dict.fromkeys(op.operands) if not is_small(o, size)]
        if len(large) > 1 or any(o.type.shape != v.type.shape for o in large):
            continue
        source, cost = sources.get(large[0], (large[0], 0)) if large else (None, 0)
        if source is not None and source.type.dtype.itemsize > v.type.dtype.itemsize and source not in stored:
            continue
        cost += _DEAR_COST if op.name in dear else 1
        if cost <= MOST_COST:
            sources[v] = source, cost
    return sources


__all__ = ["recompute"]
