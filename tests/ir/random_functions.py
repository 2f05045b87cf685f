"""Random functions over the whole table of operations, for tests of text, passes and code generation.

Each operation family has a recipe that picks operands among the values at hand, or makes parameters
where none fits, and attributes that fit them. `test_text.py` fails for an operation without a recipe.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
from graphc.ir.function import Builder, Function, Loc, Value
from graphc.ir.ops.elementwise import APPROXIMATE
from graphc.ir.registry import operations
from graphc.ir.types import (
    ALL_DTYPES,
    BOOL,
    F32,
    F64,
    I32,
    I64,
    U32,
    U64,
    Dim,
    DType,
    Shape,
    TensorType,
    symbol,
)

from tests.ir.exact import special_values

FLOATS = tuple(d for d in ALL_DTYPES if d.is_float)
INTEGERS = tuple(d for d in ALL_DTYPES if d.is_integer)
DIMS: tuple[Dim, ...] = (1, 2, 3, 4, symbol("B"), symbol("B") + 1)
# Names that need quotes, that repeat, and that look like results.
NAMES = ("x", "x", "x.1", "layer.weight", "odd name", "0", "", "größe", 'say "hi"\n', "f32", "return")
FILES = ("train.py", "a b.py", 'C:\\x\\"y".py')


def random_function(
    seed: int, size: int = 12, exact: bool = False, names: tuple[str, ...] = NAMES, depth: int = 2
) -> Function:
    """A function of about `size` operations, some of them calls of other random functions.

    exact: without operations that the interpreter only approximates, and with indices that are in range.
    """
    return Generator(random.Random(seed), exact, names, depth).function(size)


class Generator:
    def __init__(self, rng: random.Random, exact: bool, names: tuple[str, ...], depth: int) -> None:
        self.rng = rng
        self.exact = exact
        self.names = names
        self.depth = depth
        self.b = Builder("unnamed")
        self.values: list[Value] = []

    def function(self, size: int) -> Function:
        # Few names, so that different functions share one.
        self.b = Builder(self.rng.choice(("main", "f", "f.1", "odd name")))
        table = {n: d for n, d in operations().items() if not (self.exact and n in APPROXIMATE)}
        for _ in range(size):
            name = self.rng.choice(list(table))
            self.b.loc = Loc(self.rng.choice(FILES), self.rng.randrange(1000)) if self.coin() else None
            recipe = RECIPES.get(name) or FAMILIES[table[name].family]
            before = len(self.b._ops)
            recipe(self, name)
            for op in self.b._ops[before:]:
                self.values += op.results
        results = self.rng.sample(self.values, min(len(self.values), 4))
        return self.b.build(results)

    # Choices.

    def coin(self) -> bool:
        return self.rng.random() < 0.5

    def shape(self, low: int = 0, high: int = 3) -> Shape:
        return tuple(self.rng.choice(DIMS) for _ in range(self.rng.randint(low, high)))

    def param(self, type: TensorType) -> Value:
        value = self.b.param(type)
        # The builder has its own name for an empty one.
        self.b._names[-1] = self.rng.choice(self.names) if self.names else f"p{len(self.b._names) - 1}"
        self.values.append(value)
        return value

    def of(self, type: TensorType) -> Value:
        """A value of `type`: one at hand, a parameter, or a constant."""
        found = [v for v in self.values if v.type == type]
        if found and self.rng.random() < 0.8:
            return self.rng.choice(found)
        if self.rng.random() < 0.5:
            return self.param(type)
        return self.constant(type)

    def constant(self, type: TensorType) -> Value:
        picked = self.rng.choice(list(special_values(type.dtype)))
        scalar: Value = self.b.emit("constant", value=np.array(picked, type.dtype.numpy))
        return self.b.emit("full", scalar, shape=type.shape) if type.shape else scalar  # type: ignore[no-any-return]

    def any(self, dtypes: tuple[DType, ...] = ALL_DTYPES, low: int = 0) -> Value:
        """A value of one of `dtypes` of rank at least `low`."""
        found = [v for v in self.values if v.type.dtype in dtypes and v.type.rank >= low and v.type.rank <= 4]
        if found and self.rng.random() < 0.8:
            return self.rng.choice(found)
        return self.of(TensorType(self.rng.choice(dtypes), self.shape(low, 3)))

    def index(self, shape: Shape) -> Value:
        """An index that is in range for every dimension that is not 0."""
        dtype = self.rng.choice((I32, I64))
        scalar = self.b.emit("constant", value=np.array(self.rng.choice((0, -1)), dtype.numpy))
        return self.b.emit("full", scalar, shape=shape)  # type: ignore[no-any-return]


Recipe = Callable[[Generator, str], Any]


def _accepts(name: str, dtype: DType, count: int) -> bool:
    try:
        operations()[name].infer((TensorType(dtype),) * count, {})
    except TypeError:
        return False
    return True


_SIGNATURES = {
    name: (count, dtypes)
    for name, d in operations().items()
    if d.family in ("elementwise", "compare") and not d.attrs and name != "select"
    for count in (1, 2, 3)
    if (dtypes := tuple(t for t in ALL_DTYPES if _accepts(name, t, count)))
}


def _elementwise(g: Generator, name: str) -> None:
    count, dtypes = _SIGNATURES[name]
    x = g.any(dtypes)
    g.b.emit(name, x, *(g.of(x.type) for _ in range(count - 1)))


def _select(g: Generator, name: str) -> None:
    x = g.any()
    g.b.emit(name, g.of(x.type.with_dtype(BOOL)), x, g.of(x.type))


def _bitcast(g: Generator, name: str) -> None:
    x = g.any((*FLOATS, *INTEGERS))
    g.b.emit(name, x, dtype=g.rng.choice([d for d in (*FLOATS, *INTEGERS) if d.bits == x.type.dtype.bits]))


def _reduce(g: Generator, name: str) -> None:
    x = g.any((BOOL,) if name in ("any", "all") else (*FLOATS, *INTEGERS))
    axes = sorted(g.rng.sample(range(x.type.rank), g.rng.randint(0, x.type.rank)))
    g.b.emit(name, x, axes=tuple(axes))


def _argreduce(g: Generator, name: str) -> None:
    x = g.any((*FLOATS, *INTEGERS), low=1)
    axes = [i for i, d in enumerate(x.type.shape) if d != 0]
    if axes:
        g.b.emit(name, x, axis=g.rng.choice(axes))


def _reshape(g: Generator, name: str) -> None:
    x = g.any()
    dims = list(x.type.shape)
    if g.coin() and len(dims) > 1:
        dims[:2] = [dims[0] * dims[1]]
    else:
        dims.insert(g.rng.randint(0, len(dims)), 1)
    g.b.emit(name, x, shape=tuple(dims))


def _permute(g: Generator, name: str) -> None:
    x = g.any()
    g.b.emit(name, x, axes=tuple(g.rng.sample(range(x.type.rank), x.type.rank)))


def _broadcast(g: Generator, name: str) -> None:
    x = g.any()
    shape = [g.rng.choice(DIMS) if d == 1 and g.coin() else d for d in x.type.shape]
    axes = list(range(len(shape)))
    if g.coin():
        at = g.rng.randint(0, len(shape))
        shape.insert(at, g.rng.choice(DIMS))
        axes = [a + (a >= at) for a in axes]
    g.b.emit(name, x, shape=tuple(shape), axes=tuple(axes))


def _slice(g: Generator, name: str) -> None:
    x = g.any()
    start: list[Dim] = []
    limit: list[Dim] = []
    for d in x.type.shape:
        first = g.rng.randint(0, 1) if isinstance(d, int) and d > 1 else 0
        start.append(first)
        limit.append(g.rng.randint(first, d) if isinstance(d, int) else d)
    stride = tuple(g.rng.choice((1, 1, 2)) for _ in start)
    g.b.emit(name, x, start=tuple(start), limit=tuple(limit), stride=stride)


def _pad(g: Generator, name: str) -> None:
    x = g.any()
    low, high = (tuple(g.rng.choice((0, 0, 1, symbol("B"))) for _ in x.type.shape) for _ in "lh")
    # Interior padding of a dimension of size 0 has no meaning.
    interior = tuple(g.rng.choice((0, 0, 1)) if d != 0 else 0 for d in x.type.shape)
    g.b.emit(name, x, g.of(TensorType(x.type.dtype)), low=low, high=high, interior=interior)


def _concat(g: Generator, name: str) -> None:
    x = g.any(low=1)
    axis = g.rng.randrange(x.type.rank)
    pieces = [x]
    for _ in range(g.rng.randint(0, 2)):
        shape = list(x.type.shape)
        shape[axis] = g.rng.choice((0, *DIMS))
        pieces.append(g.of(x.type.with_shape(shape)))
    g.b.emit(name, *pieces, axis=axis)


def _flip(g: Generator, name: str) -> None:
    x = g.any()
    g.b.emit(name, x, axes=tuple(sorted(g.rng.sample(range(x.type.rank), g.rng.randint(0, x.type.rank)))))


def _constant(g: Generator, name: str) -> None:
    dtype = g.rng.choice(ALL_DTYPES)
    shape = g.rng.choice(((), (1,), (0,), (3,), (2, 2), (4, 5), (3, 0, 2)))
    pool = list(special_values(dtype))
    if g.coin():
        pool = pool[:1]
    array = np.array([g.rng.choice(pool) for _ in range(int(np.prod(shape)))], dtype.numpy).reshape(shape)
    if dtype.is_float and array.size and g.coin():
        # A NaN of other bits than the usual.
        flat = array.reshape(-1).view(f"u{dtype.itemsize}")
        flat[0] = np.array(np.nan, dtype.numpy).reshape(1).view(f"u{dtype.itemsize}")[0] | 5
    g.b.emit(name, value=array)


def _full(g: Generator, name: str) -> None:
    g.b.emit(name, g.of(TensorType(g.rng.choice(ALL_DTYPES))), shape=g.shape())


def _iota(g: Generator, name: str) -> None:
    shape = g.shape(1)
    g.b.emit(name, shape=shape, axis=g.rng.randrange(len(shape)), dtype=g.rng.choice((*FLOATS, *INTEGERS)))


def _dot(g: Generator, name: str) -> None:
    x = g.any((*FLOATS, *INTEGERS), low=1)
    axes = g.rng.sample(range(x.type.rank), g.rng.randint(1, x.type.rank))
    cut = g.rng.randint(0, len(axes))
    dims = [x.type.shape[a] for a in axes] + [g.rng.choice(DIMS)]
    order = g.rng.sample(range(len(dims)), len(dims))
    y = g.of(x.type.with_shape(dims[i] for i in order))
    place = [order.index(i) for i in range(len(axes))]
    g.b.emit(
        name, x, y,
        lhs_batch=tuple(axes[:cut]), rhs_batch=tuple(place[:cut]),
        lhs_contract=tuple(axes[cut:]), rhs_contract=tuple(place[cut:]),
    )  # fmt: skip


def _conv(g: Generator, name: str) -> None:
    dtype, rank = g.rng.choice((*FLOATS, *INTEGERS)), g.rng.choice((1, 2))
    groups = g.rng.choice((1, 2))
    pick = lambda *choices: tuple(g.rng.choice(choices) for _ in range(rank))  # noqa: E731
    x = g.of(TensorType(dtype, (g.rng.choice(DIMS), 2 * groups, *pick(4, 5))))
    w = g.of(TensorType(dtype, (2 * groups, 2, *pick(1, 2))))
    padding = tuple((g.rng.randint(0, 2), g.rng.randint(0, 2)) for _ in range(rank))
    g.b.emit(
        name, x, w,
        strides=pick(1, 2), padding=padding, lhs_dilation=pick(1, 2), rhs_dilation=pick(1, 2), groups=groups,
    )  # fmt: skip


def _pool(g: Generator, name: str) -> None:
    kind = (*FLOATS, *INTEGERS)
    rank = g.rng.choice((1, 2))
    pick = lambda *choices: tuple(g.rng.choice(choices) for _ in range(rank))  # noqa: E731
    x = g.of(TensorType(g.rng.choice(kind), (g.rng.choice(DIMS), *pick(4, 5))))
    padding = tuple((g.rng.randint(0, 1), g.rng.randint(0, 1)) for _ in range(rank))
    attrs = {"window": pick(1, 2), "strides": pick(1, 2), "padding": padding, "dilation": pick(1, 2)}
    if name in ("max_pool", "sum_pool"):
        g.b.emit(name, x, **attrs)
    elif name == "sum_pool_grad":
        g.b.emit(name, g.b.emit("sum_pool", x, **attrs), input_shape=x.type.shape, **attrs)
    else:
        values, index = g.b.emit("max_pool", x, **attrs)
        if name == "max_pool_grad":
            g.b.emit(name, values, index, input_shape=x.type.shape, **attrs)
        else:
            g.b.emit(name, x, index, **attrs)


def _attention(g: Generator, name: str) -> None:
    dtype = g.rng.choice(FLOATS)
    wide = F64 if dtype is F64 else F32
    batch, queries, keys = (g.rng.choice(DIMS) for _ in range(3))
    key_heads, group, depth, width = g.rng.choice((1, 2)), g.rng.choice((1, 2)), g.rng.choice((1, 3)), g.rng.choice((1, 2))
    heads = key_heads * group
    q = g.of(TensorType(dtype, (batch, heads, queries, depth)))
    k = g.of(TensorType(dtype, (batch, key_heads, keys, depth)))
    v = g.of(TensorType(dtype, (batch, key_heads, keys, width)))
    operands = [q, k, v, g.of(TensorType(wide))]
    if name == "attention_grad":
        row = TensorType(wide, (batch, heads, queries))
        operands += [g.of(row), g.of(row), g.of(TensorType(dtype, (batch, heads, queries, width)))]
    if g.coin():
        shape = tuple(d if g.coin() else 1 for d in (batch, heads, queries, keys))
        operands.append(g.of(TensorType(g.rng.choice((BOOL, dtype, wide)), shape)))
    g.b.emit(name, *operands, causal=g.coin(), precision=g.rng.choice(("", "exact")))


def _indexing(g: Generator, name: str) -> None:
    x = g.any((*FLOATS, *INTEGERS), low=1)
    axis = g.rng.randrange(x.type.rank)
    shape = list(x.type.shape)
    if x.type.shape[axis] == 0:
        return
    if name in ("gather", "scatter_add", "scatter"):
        index = g.index(g.shape(0, 1))
        shape[axis : axis + 1] = index.type.shape
    else:
        shape[axis] = g.rng.choice(DIMS)
        index = g.index(tuple(shape))
    updates = [] if name in ("gather", "take_along") else [g.of(x.type.with_shape(shape))]
    g.b.emit(name, x, index, *updates, axis=axis)


def _random_bits(g: Generator, name: str) -> None:
    g.b.emit(
        name, g.of(TensorType(U64)), g.of(TensorType(U64)), shape=g.shape(), dtype=g.rng.choice((U32, U64))
    )


def _linear_scan(g: Generator, name: str) -> None:
    x = g.any(FLOATS, low=1)
    g.b.emit(name, x, g.of(x.type), axis=g.rng.randrange(x.type.rank), reverse=g.coin())


def _call(g: Generator, name: str) -> None:
    if g.depth == 0:
        return
    inner = Generator(g.rng, g.exact, g.names, g.depth - 1).function(g.rng.randint(1, 5))
    for _ in range(g.rng.randint(1, 2)):
        g.b.emit(name, *(g.of(t) for t in inner.param_types), function=inner)


RECIPES: dict[str, Recipe] = {
    "select": _select,
    "cast": lambda g, name: g.b.emit(name, g.any(), dtype=g.rng.choice(ALL_DTYPES)),
    "bitcast": _bitcast,
    "argmax": _argreduce,
    "argmin": _argreduce,
    "reshape": _reshape,
    "permute": _permute,
    "broadcast": _broadcast,
    "slice": _slice,
    "pad": _pad,
    "concat": _concat,
    "flip": _flip,
    "constant": _constant,
    "full": _full,
    "iota": _iota,
    "linear_scan": _linear_scan,
    "call": _call,
    "stop_gradient": lambda g, name: g.b.emit(name, g.any()),
    "check_index": lambda g, name: g.b.emit(name, g.index(g.shape()), size=g.rng.choice(DIMS)),
}
FAMILIES: dict[str, Recipe] = {
    "elementwise": _elementwise,
    "compare": _elementwise,
    "reduce": _reduce,
    "dot": _dot,
    "conv": _conv,
    "attention": _attention,
    "pool": _pool,
    "indexing": _indexing,
    "random": _random_bits,
}
