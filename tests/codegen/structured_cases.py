"""Cases of the operations with structure: reductions, scan, layout, dot, conv, pooling, indexing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphc.ir.types import BOOL, F32, F64, DType

from tests.codegen.values import Array, Shape, indices, mixed, plain

if TYPE_CHECKING:
    from tests.codegen.operation_cases import Case, Family, Operand, Roles

# --------------------------------------------------------------- reductions, scan

# Rows, columns, both forms cut into chunks, several groups of axes, nothing to reduce, nothing at all.
_ROWS = [((n,), (0,)) for n in (1, 15, 16, 17, 31, 32, 33, 4095, 4096, 4097, 10000, 17000)]
_REDUCTIONS: tuple[tuple[Shape, tuple[int, ...]], ...] = (
    *_ROWS,
    ((7, 33), (1,)),
    ((2, 4097), (1,)),
    ((3, 20000), (1,)),
    ((33, 7), (0,)),
    ((4097, 3), (0,)),
    ((17, 40), (0,)),
    ((20000, 2), (0,)),
    ((3, 17, 5), (1,)),
    ((3, 4, 5), (0, 2)),
    ((2, 3, 4, 5), (1, 2)),
    ((2, 3, 4, 5), (0, 3)),
    ((3, 1, 5, 1), (1, 3)),
    ((1, 1), (0, 1)),
    ((1, 9), (0,)),
    ((), ()),
    ((3, 5), ()),
    ((0,), (0,)),
    ((0, 3), (0,)),
    ((0, 3), (1,)),
    ((3, 0), (0,)),
    ((3, 0), (1,)),
    ((2, 0, 3), (1,)),
    ((2, 0, 3), (0, 2)),
    ((0, 0), (0, 1)),
)


def _case(operands: tuple[Operand, ...], attrs: dict[str, Any], layouts: bool = True) -> Case:
    from tests.codegen.operation_cases import Case

    return Case(operands, attrs, layouts)


def _of(dtype: DType, shape: Shape, values: Any = plain) -> Operand:
    from tests.codegen.operation_cases import of

    return of(dtype, shape, values)


def _index(dtype: DType, shape: Shape, size: int) -> Operand:
    from tests.codegen.operation_cases import Operand

    def fill(s: Shape, seed: int) -> Array:
        return indices(dtype, s, seed, size)

    return Operand(shape, fill)


def _rotating(items: tuple[Any, ...], op: str, roles: Roles, count: int) -> list[Any]:
    from tests.codegen.operation_cases import rotating

    return rotating(items, op, roles, count)


def _reduce(op: str, roles: Roles) -> list[Case]:
    (d,) = roles
    chosen = [((5, 37), (1,)), ((37, 5), (0,)), *_rotating(_REDUCTIONS, op, roles, 5)]
    return [_case((_of(d, s, values),), {"axes": a}) for s, a in chosen for values in (plain, mixed)]


def _position(op: str, roles: Roles) -> list[Case]:
    (d,) = roles
    pairs = tuple((s, a[0]) for s, a in _REDUCTIONS if len(a) == 1 and s[a[0]])
    chosen = [((5, 37), 1), ((37, 5), 0), ((3, 4, 5), 1), *_rotating(pairs, op, roles, 4)]
    return [_case((_of(d, s, values),), {"axis": a}) for s, a in chosen for values in (plain, mixed)]


def _scan(op: str, roles: Roles) -> list[Case]:
    shapes = ((1,), (100,), (3, 33), (33, 3), (2, 17, 5), (1, 7, 1), (0,), (0, 3), (3, 0))
    return [
        _case((_of(roles[0], s, mixed), _of(roles[0], s, plain)), {"axis": a, "reverse": (len(s) + a + s[0]) % 2 == 0})
        for s in shapes
        for a in range(len(s))
    ]


# --------------------------------------------------------------- layout

_LAYOUT: dict[str, tuple[tuple[Shape, dict[str, Any]], ...]] = {
    "reshape": (
        ((6,), {"shape": (2, 3)}),
        ((4, 6), {"shape": (3, 8)}),
        ((), {"shape": (1, 1)}),
        ((1,), {"shape": ()}),
        ((2, 3, 4), {"shape": (4, 6)}),
        ((3, 35), {"shape": (3, 5, 7)}),
        ((0, 3), {"shape": (5, 0, 2)}),
    ),
    "permute": (
        ((3, 5), {"axes": (1, 0)}),
        ((2, 3, 4), {"axes": (2, 0, 1)}),
        ((2, 3, 4, 5), {"axes": (0, 2, 1, 3)}),
        ((2, 1, 4, 1, 3), {"axes": (4, 3, 2, 1, 0)}),
        ((17, 33), {"axes": (1, 0)}),
        ((), {"axes": ()}),
        ((3, 0), {"axes": (1, 0)}),
    ),
    "broadcast": (
        ((), {"shape": (3, 4), "axes": ()}),
        ((3,), {"shape": (3, 4), "axes": (0,)}),
        ((4,), {"shape": (3, 4), "axes": (1,)}),
        ((3, 1), {"shape": (3, 4), "axes": (0, 1)}),
        ((1, 1), {"shape": (2, 3, 4), "axes": (0, 2)}),
        ((2, 3), {"shape": (2, 5, 3), "axes": (0, 2)}),
        ((3, 3), {"shape": (3, 3, 3), "axes": (1, 2)}),
        ((1,), {"shape": (1, 0), "axes": (0,)}),
        ((1,), {"shape": (0,), "axes": (0,)}),
        ((0, 1), {"shape": (0, 7), "axes": (0, 1)}),
    ),
    "slice": (
        ((10,), {"start": (2,), "limit": (9,), "stride": (3,)}),
        ((5, 7), {"start": (1, 0), "limit": (5, 7), "stride": (2, 1)}),
        ((5, 7), {"start": (0, 6), "limit": (5, 7), "stride": (1, 4)}),
        ((5, 7), {"start": (2, 3), "limit": (2, 5), "stride": (1, 1)}),
        ((3, 4, 5), {"start": (0, 1, 0), "limit": (3, 3, 5), "stride": (1, 1, 1)}),
        ((3, 4, 5), {"start": (0, 0, 0), "limit": (3, 4, 5), "stride": (1, 1, 1)}),
        ((3, 0), {"start": (1, 0), "limit": (2, 0), "stride": (1, 1)}),
        ((9000,), {"start": (1,), "limit": (8999,), "stride": (2,)}),
    ),
    "pad": (
        ((5,), {"low": (2,), "high": (3,), "interior": (0,)}),
        ((5,), {"low": (0,), "high": (0,), "interior": (2,)}),
        ((3, 4), {"low": (1, 0), "high": (0, 2), "interior": (1, 3)}),
        ((3, 4), {"low": (0, 0), "high": (0, 1), "interior": (0, 0)}),
        ((2, 3, 4), {"low": (0, 1, 0), "high": (0, 1, 0), "interior": (0, 0, 0)}),
        ((0,), {"low": (2,), "high": (1,), "interior": (0,)}),
        ((0, 3), {"low": (2, 1), "high": (1, 0), "interior": (1, 1)}),
        ((), {"low": (), "high": (), "interior": ()}),
        ((1, 1), {"low": (0, 4), "high": (4, 0), "interior": (5, 5)}),
    ),
    "flip": (
        ((7,), {"axes": (0,)}),
        ((3, 4), {"axes": (0,)}),
        ((3, 4), {"axes": (1,)}),
        ((3, 4, 5), {"axes": (0, 2)}),
        ((3, 4, 5), {"axes": (0, 1, 2)}),
        ((3, 4), {"axes": ()}),
        ((), {"axes": ()}),
        ((3, 0), {"axes": (0, 1)}),
    ),
}


def _layout(op: str, roles: Roles) -> list[Case]:
    extra = (_of(roles[0], ()),) if op == "pad" else ()
    return [_case((_of(roles[0], s, mixed), *extra), attrs) for s, attrs in _LAYOUT[op]]


def _concat(op: str, roles: Roles) -> list[Case]:
    lists: list[tuple[list[Shape], int]] = [
        ([(3,), (5,)], 0),
        ([(2, 3), (2, 1), (2, 4)], 1),
        ([(2, 3), (5, 3)], 0),
        ([(2, 3, 4), (2, 1, 4)], 1),
        ([(4, 2)], 0),
        ([(0, 3), (2, 3), (0, 3)], 0),
        ([(2, 0), (2, 0)], 1),
        ([(1,)] * 9, 0),
        ([(4100,), (17,), (1,)], 0),
    ]
    return [_case(tuple(_of(roles[0], s, mixed) for s in shapes), {"axis": axis}) for shapes, axis in lists]


# --------------------------------------------------------------- dot, conv

# lhs, rhs, then lhs_batch, rhs_batch, lhs_contract, rhs_contract
_DOTS: tuple[tuple[Any, ...], ...] = (
    ((3, 4), (4, 5), (), (), (1,), (0,)),
    ((17, 33), (33, 40), (), (), (1,), (0,)),
    ((5, 257), (257, 9), (), (), (1,), (0,)),
    ((520,), (520,), (), (), (0,), (0,)),
    ((3, 4), (5, 4), (), (), (1,), (1,)),
    ((40, 3), (40, 20), (), (), (0,), (0,)),
    ((2, 3, 4), (2, 4, 5), (0,), (0,), (2,), (1,)),
    ((3, 2, 4), (5, 4, 2), (1,), (2,), (2,), (1,)),
    ((3, 4, 5), (5, 4, 6), (), (), (1, 2), (1, 0)),
    ((3, 4, 5), (6, 4, 5), (), (), (2, 1), (2, 1)),
    ((3,), (4,), (), (), (), ()),
    ((2, 3), (2, 3), (0, 1), (0, 1), (), ()),
    ((3, 0), (0, 4), (), (), (1,), (0,)),
    ((0, 3), (3, 4), (), (), (1,), (0,)),
    ((3, 4), (4, 0), (), (), (1,), (0,)),
    ((0, 3, 4), (0, 4, 5), (0,), (0,), (2,), (1,)),
    ((1, 1), (1, 1), (), (), (1,), (0,)),
    ((1, 300), (300, 33), (), (), (1,), (0,)),
    ((33, 300), (300, 1), (), (), (1,), (0,)),
    ((), (), (), (), (), ()),
)


def _dot(op: str, roles: Roles) -> list[Case]:
    names = ("lhs_batch", "rhs_batch", "lhs_contract", "rhs_contract")
    return [
        _case((_of(roles[0], left, values), _of(roles[0], right)), dict(zip(names, axes, strict=True)))
        for i, (left, right, *axes) in enumerate(_DOTS)
        for values in ((plain, mixed) if i < 2 else (plain,))
    ]


def _conv_attrs(rank: int, **given: Any) -> dict[str, Any]:
    attrs: dict[str, Any] = {"strides": (1,) * rank, "padding": ((0, 0),) * rank}
    attrs |= {"lhs_dilation": (1,) * rank, "rhs_dilation": (1,) * rank, "groups": 1, "batch_groups": 1}
    return attrs | given


_CONVS: tuple[tuple[Shape, Shape, dict[str, Any]], ...] = (
    ((2, 3, 8, 9), (4, 3, 3, 3), _conv_attrs(2)),
    ((2, 3, 8, 9), (17, 3, 3, 2), _conv_attrs(2, strides=(2, 1), padding=((1, 1), (0, 2)))),
    ((1, 1, 6, 6), (1, 1, 1, 1), _conv_attrs(2)),
    ((2, 2, 20), (3, 2, 5), _conv_attrs(1, padding=((2, 2),), rhs_dilation=(2,))),
    ((2, 2, 7), (3, 2, 3), _conv_attrs(1, lhs_dilation=(3,), padding=((2, 1),))),
    ((2, 2, 9, 9), (2, 2, 3, 3), _conv_attrs(2, padding=((-1, -2), (1, -1)))),
    ((2, 4, 5, 5), (6, 2, 3, 3), _conv_attrs(2, groups=2, padding=((1, 1), (1, 1)))),
    ((2, 4, 5), (4, 1, 3), _conv_attrs(1, groups=4)),
    ((4, 3, 6), (4, 3, 2), _conv_attrs(1, batch_groups=2)),
    ((2, 2, 4, 4, 4), (3, 2, 2, 2, 2), _conv_attrs(3, strides=(2, 1, 2))),
    ((3, 5), (4, 5), _conv_attrs(0)),
    ((0, 2, 5), (3, 2, 3), _conv_attrs(1)),
    ((2, 0, 5), (3, 0, 3), _conv_attrs(1)),
    ((2, 2, 2), (3, 2, 3), _conv_attrs(1)),
    ((1, 30, 5, 5), (2, 30, 3, 3), _conv_attrs(2)),
)


def _conv(op: str, roles: Roles) -> list[Case]:
    return [_case((_of(roles[0], x), _of(roles[0], w)), attrs) for x, w, attrs in _CONVS]


# --------------------------------------------------------------- pooling


def _window(*window: int, **given: Any) -> dict[str, Any]:
    rank = len(window)
    return {"window": window, "strides": window, "padding": ((0, 0),) * rank, "dilation": (1,) * rank} | given


# The pooled input's shape, the attributes, the shape of the result.
_POOLS: tuple[tuple[Shape, dict[str, Any], Shape], ...] = (
    ((2, 3, 8, 6), _window(2, 2), (2, 3, 4, 3)),
    ((2, 7, 9), _window(3, 3, strides=(2, 1), padding=((1, 1), (0, 2))), (2, 4, 9)),
    ((3, 20), _window(4, strides=(3,), dilation=(2,), padding=((2, 1),)), (3, 6)),
    ((5,), _window(2, strides=(1,)), (4,)),
    ((2, 3, 4, 5), _window(2, 1, 2), (2, 1, 4, 2)),
    ((4,), _window(2, strides=(2,), padding=((3, 3),)), (5,)),
    ((0, 6), _window(2), (0, 3)),
    ((3, 1), _window(2), (3, 0)),
)


def _pool(op: str, roles: Roles) -> list[Case]:
    from graphc.ir.types import I32

    (d,) = roles
    cases = []
    for shape, attrs, result in _POOLS:
        to_input = op.endswith("_grad")
        held = _of(d, result if to_input else shape, plain if to_input else mixed)
        count = 1
        for k in attrs["window"]:
            count *= k
        picks = (_index(I32, result, count),) if op in ("max_pool_grad", "max_pool_take") else ()
        cases.append(_case((held, *picks), attrs | ({"input_shape": shape} if to_input else {})))
    return cases


# --------------------------------------------------------------- indexing


def _indexing(op: str, roles: Roles) -> list[Case]:
    d, i = roles
    along = op in ("take_along", "put_along", "put_along_add")
    # x, axis, the index's shape; for the others the index has the rank of x.
    table: list[tuple[Shape, int, Shape]] = (
        [((7,), 0, (20,)), ((3, 8), 1, (3, 33)), ((8, 3), 0, (4, 3)), ((2, 5, 17), 1, (2, 9, 17)), ((3, 4), 1, (3, 0)),
         ((0, 4), 1, (0, 6)), ((1, 4), 1, (1, 6)), ((4, 0), 0, (2, 0))]
        if along
        else [((7,), 0, (20,)), ((9, 4), 0, (3, 5)), ((3, 8), 1, (17,)), ((2, 6, 33), 1, (2, 2)), ((5,), 0, ()),
              ((5, 3), 0, ()), ((3, 4), 1, (0,)), ((0, 4), 1, (6,)), ((4, 0), 0, (3,)), ((1, 5), 0, (40,))]
    )  # fmt: skip
    cases = []
    for shape, axis, picked in table:
        updates = picked if along else (*shape[:axis], *picked, *shape[axis + 1 :])
        operands = [_of(d, shape, mixed), _index(i, picked, shape[axis])]
        if op not in ("gather", "take_along"):
            operands.append(_of(d, updates))
        cases.append(_case(tuple(operands), {"axis": axis}))
    return cases


SINGLE: dict[str, Family] = {"concat": _concat, "argmax": _position, "argmin": _position}
# --------------------------------------------------------------- attention

# (batch, heads, key heads, queries, keys, head, head of values), causal, (dtype of the mask, or "" for that of q; its dimensions)
_ATTENTION: tuple[tuple[tuple[int, ...], bool, tuple[str, Shape] | None], ...] = (
    ((2, 2, 2, 5, 7, 3, 4), False, None),
    ((1, 4, 2, 17, 66, 8, 1), True, None),
    ((1, 2, 1, 65, 3, 1, 9), False, ("bool", (1, 2, 1, 3))),
    ((2, 1, 1, 1, 1, 1, 1), True, ("", (2, 1, 1, 1))),
    ((1, 2, 2, 2, 70, 17, 2), True, ("bool", (1, 1, 2, 70))),
    ((1, 3, 3, 4, 0, 2, 2), False, None),
    ((1, 3, 3, 0, 4, 2, 2), False, None),
)


def _attention(op: str, roles: Roles) -> list[Case]:
    (d,) = roles
    wide = F64 if d is F64 else F32
    found = []
    for (b, h, hk, t, s, k, v), causal, mask in _ATTENTION:
        operands = [_of(d, (b, h, t, k)), _of(d, (b, hk, s, k)), _of(d, (b, hk, s, v)), _of(wide, ())]
        if op == "attention_grad":
            operands += [_of(wide, (b, h, t)), _of(wide, (b, h, t)), _of(d, (b, h, t, v))]
        if mask is not None:
            operands.append(_of(BOOL if mask[0] else d, mask[1]))
        found.append(_case(tuple(operands), {"causal": causal}))
    return found


FAMILIES: dict[str, Family] = {
    "attention": _attention,
    "reduce": _reduce,
    "scan": _scan,
    "layout": _layout,
    "dot": _dot,
    "conv": _conv,
    "pool": _pool,
    "indexing": _indexing,
}
