"""Device maps, in simulation: every operation, layout and form gives the interpreter's bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from graphc.codegen.canonical import canonicalise
from graphc.codegen.cuda.lower import choose, kind
from graphc.codegen.cuda.target import HOPPER
from graphc.ir.function import Builder, Function, Value
from graphc.ir.registry import operations
from graphc.ir.types import BF16, BOOL, F16, F32, F64, I8, I64, U32, U64, DType, TensorType, dtype

from tests.codegen.device import Case, Reported, check_groups, prepare, run_group
from tests.codegen.layouts import WAYS_IN, WAYS_OUT
from tests.codegen.operation_cases import Case as OperationCase
from tests.codegen.operation_cases import accepted, apply
from tests.codegen.values import Array, mixed, plain

POINTWISE = [op for op in sorted(operations()) if operations()[op].family in ("elementwise", "compare")]
MAPPED = (
    "reshape permute broadcast slice pad concat flip full iota gather take_along check_index random_bits "
    "max_pool max_pool_grad max_pool_take sum_pool sum_pool_grad"
).split()
DTYPES = (F32, F16, BF16, F64, BOOL, I8, I64)


def function_of(op: str, case: OperationCase, seed: int = 0) -> Case | None:
    """A group of one operation; None where there is nothing to compute."""
    b = Builder(op)
    arrays = [o.fill(o.shape, seed + i) for i, o in enumerate(case.operands)]
    values = [b.param(TensorType(dtype(a.dtype), a.shape)) for a in arrays]
    results = apply(b, op, case, values)
    if any(r in values for r in results) or not any(r.type.size for r in results):
        return None
    return Case(b.build(list(results)), arrays)


def built(
    *operands: tuple[DType, tuple[int, ...]], body: Callable[..., Any], values: Callable[..., Array] = mixed
) -> tuple[Function, list[Array]]:
    b = Builder("group")
    params = [b.param(TensorType(d, s)) for d, s in operands]
    out = body(b, *params)
    arrays = [values(d, s, i) for i, (d, s) in enumerate(operands)]
    return b.build(list(out) if isinstance(out, (tuple, list)) else [out]), arrays


def forced(case: tuple[Function, list[Array]], **changes: Any) -> Case:
    """A case under its own choice, changed."""
    canonical = canonicalise(case[0])
    chosen = choose(canonical.function, {n: int(d) for n, d in canonical.extents}, HOPPER)
    return Case(case[0], case[1], replace(chosen, **changes))


def form(case: tuple[Function, list[Array]]) -> str:
    return str(prepare(Case(*case)).choice)


# Every operation


@pytest.mark.parametrize("start", range(0, len(POINTWISE), 20))
def test_every_elementwise_operation(start: int) -> None:
    """Once in float32 where it has that, once in another type."""
    cases = []
    for number, op in enumerate(POINTWISE[start : start + 20], start):
        found = accepted(op)
        own = [cases for roles, cases in found if roles[0] is F32][:1]
        for listed in (*own, found[number % len(found)][1]):
            case = function_of(op, listed[0])
            assert case is not None
            # An element a thread: the forms have tests of their own, and each writes the body out.
            cases.append(forced((case.group, list(case.inputs)), numbers=(("width", 1), ("vectors", 1))))
    check_groups(cases, seeds=(0,))


@pytest.mark.slow
@pytest.mark.parametrize("op", [*POINTWISE, *MAPPED])
def test_operation_in_every_type(op: str) -> None:
    cases = [function_of(op, case, 16 * i) for _, listed in accepted(op) for i, case in enumerate(listed)]
    check_groups([c for c in cases if c is not None], seeds=(0,))


@pytest.mark.parametrize("op", MAPPED)
def test_structured_operation(op: str) -> None:
    found = accepted(op)
    cases = []
    for i, (roles, listed) in enumerate(found):
        if (roles[0] is F32 and len(roles) < 2) or roles == (F32, I64) or roles == found[0][0]:
            some = listed
        else:
            some = [listed[i % len(listed)]] if roles[0] in DTYPES else []
        cases += [function_of(op, case, 16 * i) for case in some]
    kept = [c for c in cases if c is not None]
    assert kept
    check_groups(kept[:24], seeds=(0,))


# Forms


SIZES = (1, 2, 3, 5, 255, 256, 257, 1023, 1024, 1025, 2047, 2048, 2049, 4099)


def test_flat() -> None:
    """Vectors of every width, whole and not, around the ends of tiles."""

    def negated(b: Builder, x: Value) -> Value:
        return b.emit("not", x) if x.type.dtype is BOOL else b.emit("neg", x)

    cases: list[Any] = []
    for i, n in enumerate(SIZES):
        for d in (F32, DTYPES[i % len(DTYPES)]):
            cases.append(built((d, (n,)), body=negated))
    cases += [
        built((F32, (5001,)), (F32, (5001,)), (F32, (5001,)), body=lambda b, x, y, z: b.emit("fma", x, y, z)),
        built((F32, (5001,)), body=lambda b, x: [b.cast(x, dtype=BF16), b.emit("isnan", x), b.emit("exp", x)]),
    ]
    cases += [forced(c, narrow=False) for c in cases[:6]]
    small = dict.fromkeys(("width", "vectors"))
    for width, vectors in ((1, 1), (2, 3), (8, 1), (16, 2)):
        numbers = tuple(zip(small, (width, vectors), strict=True))
        cases.append(forced(built((F32, (3000,)), body=negated), numbers=numbers))
    assert all(str(p.choice).startswith("map ") or p.choice.form == "map" for p in check_groups(cases, seeds=(0,)))


def biased(shape: tuple[int, ...], d: DType = F32) -> tuple[Function, list[Array]]:
    """A vector added to every line, another to every column."""
    last = len(shape) - 1

    def body(b: Builder, x: Value, y: Value, z: Value) -> Value:
        sum_ = b.add(x, b.broadcast(y, shape=shape, axes=(last,)))
        return b.mul(sum_, b.broadcast(z, shape=shape, axes=(0,)))

    return built((d, shape), (d, shape[-1:]), (d, shape[:1]), body=body)


def test_lines() -> None:
    """Innermost dimensions that the width divides, and lines that nothing divides."""
    even = [biased(s) for s in ((3, 4), (7, 64), (5, 3, 8), (33, 516))] + [biased((5, 24), BF16), biased((6, 10), F64)]
    wrapped = [biased(s) for s in ((7, 63), (5, 3, 7), (3, 193), (2, 257), (5, 1025), (2, 3, 771), (9, 5))]
    wrapped += [biased((3, 333), F16), biased((40, 9), BF16), biased((6, 7, 17), I8), biased((33, 18), BF16)]
    short = [biased((3, 3)), biased((70, 2, 3)), biased((5, 7), F16), biased((33, 7), F64), biased((7, 66))]
    assert all("map width" in form(c) and "%" in form(c) for c in even)
    assert all("map wrapped" in form(c) for c in wrapped)
    assert all("map width" in form(c) for c in short)
    check_groups([*even, *wrapped, *short, *(forced(c, narrow=False) for c in (even[1], wrapped[3]))])


def test_long_lines_read_out_of_order() -> None:
    """A block divides once, and its threads take elements of one line."""

    def flipped(shape: tuple[int, ...], d: DType) -> tuple[Function, list[Array]]:
        return built((d, shape), (d, shape[:1]), body=lambda b, x, y: b.add(
            b.flip(b.slice(x, start=(0, 1), limit=shape, stride=(1, 1)), axes=(1,)),
            b.broadcast(y, shape=(shape[0], shape[1] - 1), axes=(0,)),
        ))  # fmt: skip

    cases = [flipped(s, d) for s, d in (((3, 194), F32), ((2, 1026), F32), ((5, 258), BF16), ((2, 772), F64))]
    assert all("map rows" in form(c) for c in cases)
    check_groups([*cases, forced(cases[1], narrow=False)])


def crossed(shape: tuple[int, ...], axes: tuple[int, ...], d: DType) -> tuple[Function, list[Array]]:
    turned = tuple(shape[a] for a in axes)

    def body(b: Builder, x: Value, y: Value) -> Value:
        p = b.permute(x, axes=axes)
        return b.emit("xor" if d is BOOL else "add", p, y)

    return built((d, shape), (d, turned), body=body)


def test_transposes() -> None:
    cases = []
    sides = ((64, 64), (65, 64), (127, 33), (128, 34), (300, 16), (333, 21))
    for i, shape in enumerate(sides):
        cases += [crossed(shape, (1, 0), d) for d in (F32, DTYPES[i % len(DTYPES)])]
    cases += [crossed((3, 70, 65), (0, 2, 1), F32), crossed((70, 3, 65), (2, 1, 0), BF16), crossed((66, 5, 64), (2, 1, 0), F64)]
    cases.append(built((F32, (80, 81)), (F32, (80, 81)), body=lambda b, x, y: b.permute(b.mul(x, b.emit("exp", y)), axes=(1, 0))))
    cases.append(built((F32, (80, 81)), body=lambda b, x: b.permute(b.flip(x, axes=(0,)), axes=(1, 0))))
    cases.append(built((F32, (70, 75)), (F32, ()), body=lambda b, x, v: b.permute(
        b.pad(x, v, low=(1, 0), high=(2, 3), interior=(0, 0)), axes=(1, 0)
    )))  # fmt: skip
    assert all("map transpose" in form(c) for c in cases)
    f, _ = built((F32, (20, 70)), (I64, (66,)), body=lambda b, x, i: b.permute(b.gather(x, i, axis=0), axes=(1, 0)))
    picked = (f, [plain(F32, (20, 70), 0), np.arange(66) % 40 - 20])
    assert "map transpose" in form(picked)
    cases.append(picked)
    # A matrix and its transpose meet: one is read through squares.
    cases.append(built((F32, (96, 96)), body=lambda b, x: b.add(x, b.permute(x, axes=(1, 0)))))
    larger = [("across", 0), ("elements", 2), ("whole", 1)]
    wide = [forced(crossed(s, (1, 0), F32), numbers=tuple(larger)) for s in ((128, 66), (64, 192))]
    wide.append(forced(crossed((129, 67), (1, 0), F32), numbers=(*larger[:2], ("whole", 0)), divides=()))
    check_groups([*cases, *wide, forced(cases[0], narrow=False)])
    small = crossed((8, 9), (1, 0), F32)
    assert "map transpose" not in form(small)


def test_concats() -> None:
    def joined(*shapes: tuple[int, ...], axis: int, d: DType = F32) -> tuple[Function, list[Array]]:
        return built(*((d, s) for s in shapes), body=lambda b, *xs: b.concat(*xs, axis=axis))

    cases = [
        joined((8,), (16,), (4,), axis=0),
        joined((9,), (16,), (4,), axis=0),
        joined((5, 8), (5, 4), (5, 12), axis=1),
        joined((5, 8), (5, 3), axis=1, d=BF16),
        joined((5, 8), (7, 8), (1, 8), axis=0, d=F64),
        joined((2, 3, 8), (2, 4, 8), axis=1, d=I8),
        joined((1000,), (1,), (3000,), (4096,), axis=0),
        joined(*[(i % 3 + 1, 4) for i in range(20)], axis=0),
        built((F32, (3, 8)), (F32, (3, 4)), (F32, (3, 12)), body=lambda b, x, y, z: b.mul(b.concat(x, y, axis=1), z)),
    ]
    assert all("map join" in form(c) for c in cases)
    check_groups([*cases, forced(cases[2], narrow=False)])


def test_single_elements() -> None:
    cases = [
        built((F32, ()), (F32, ()), body=lambda b, x, y: b.mul(x, y)),
        built((F16, (1, 1)), body=lambda b, x: b.emit("sqrt", b.reshape(x, shape=(1,)))),
        built((I64, (1,)), (F32, (9,)), body=lambda b, i, x: b.gather(x, b.emit("abs", b.cast(b.emit("ne", i, i), dtype=I8)), axis=0)),
    ]
    assert all(form(c).startswith("map single") for c in cases)
    check_groups(cases)


def dropped(n: int, offset: int, d: DType = F32, bits: DType = U32) -> Case:
    """What dropout does, and the bits themselves."""
    b = Builder("dropout")
    x, key, at = b.param(TensorType(d, (n,))), b.param(TensorType(U64, ())), b.param(TensorType(U64, ()))
    drawn = b.emit("random_bits", key, at, shape=(n,), dtype=bits)
    half = b.emit("full", b.constant(value=np.asarray(1 << bits.bits - 1, bits.numpy)), shape=(n,))
    zero = b.emit("full", b.constant(value=np.zeros((), d.numpy)), shape=(n,))
    f = b.build([b.emit("select", b.emit("lt", drawn, half), x, zero), b.emit("shift_right", drawn, half)])
    return Case(f, [mixed(d, (n,), 0), np.asarray(0x123456789ABCDEF0, np.uint64), np.asarray(offset, np.uint64)])


def test_random_bits_of_vectors() -> None:
    """A block of Philox serves several lanes, wherever the offset falls into it."""
    cases = [dropped(n, offset) for n, offset in ((1, 0), (5, 3), (1027, 0), (1028, 1), (3000, 2), (3000, 7), (9, 2**33 - 2))]
    cases += [dropped(n, offset, BF16, U32) for n, offset in ((2100, 0), (2101, 2**64 - 7))]
    cases += [dropped(n, offset, d, U64) for n, offset, d in ((700, 0, F64), (701, 5, F64), (66, 2**64 - 3, F32), (65, 1, I8))]
    check_groups(cases, seeds=(0,))


# Layouts


@pytest.mark.parametrize("way_in", WAYS_IN)
def test_layouts(way_in: str) -> None:
    """Operands through each layout, results through each; the shapes rotate."""
    shapes = ((40, 100), (3, 1, 5), (2, 33), (1, 3, 1, 17, 2), (2, 3, 4, 5), (100, 40), (17,))
    cases = []
    for i, way_out in enumerate(WAYS_OUT):
        shape = shapes[(i + len(way_in)) % len(shapes)]
        d = DTYPES[i % len(DTYPES)] if i % 2 else F32
        b, arrays = Builder("layout"), []

        def param(s: tuple[int, ...], b: Builder = b, arrays: list[Array] = arrays, d: DType = d) -> Value:
            arrays.append(plain(d, s, len(arrays)))
            return b.param(TensorType(d, s))

        x, y = (WAYS_IN[way_in](b, param, shape) for _ in range(2))
        out = WAYS_OUT[way_out](b, b.emit("xor" if d is BOOL else "add", x, y))
        f, constants = without_constants(b.build([out]))
        arrays += constants
        if out.type.size and kind(f) == "map":
            cases.append((f, arrays))
    assert len(cases) >= 5
    check_groups(cases, seeds=(0,))


def without_constants(f: Function) -> tuple[Function, list[Array]]:
    """Constants of several elements as further parameters, as in `codegen.prepare`."""
    large = [op for op in f.ops if op.name == "constant" and op.result.type.size != 1]
    params = [*f.params, *(op.result for op in large)]
    rest = [op for op in f.ops if op not in large]
    return Function(f.name, params, rest, list(f.results)), [op.attrs["value"].array for op in large]


# Reports, in place


def test_index_out_of_range() -> None:
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    f, _ = built((F32, (4, 3)), (I64, (5,)), body=lambda b, x, i: b.gather(x, i, axis=0))
    index = np.array([0, 3, -4, 1, -1])
    check_groups([Case(f, [x, index])])
    for bad in (4, -5, 2**40, -(2**63)):
        index[2] = bad
        with pytest.raises(Reported) as caught:
            run_group(f, [x, index], seeds=(0,))
        assert caught.value.value == bad and caught.value.operation is not None
        assert caught.value.operation.name == "gather"


def test_unsigned_index_out_of_range() -> None:
    f, _ = built((F32, (4,)), (dtype("u64"), (2,)), body=lambda b, x, i: b.gather(x, i, axis=0))
    with pytest.raises(Reported):
        run_group(f, [np.zeros(4, np.float32), np.array([1, 2**64 - 1], np.uint64)], seeds=(0,))


def test_in_place() -> None:
    def update(b: Builder, p: Value, g: Value, m: Value) -> tuple[Value, Value]:
        moved = b.add(b.mul(m, m), g)
        return b.sub(p, moved), moved

    cases = []
    for shape in ((5000,), (3,), (1,)):
        f, arrays = built((F32, shape), (F32, shape), (F32, shape), body=update)
        cases.append(Case(f, arrays, in_place=((0, 0), (2, 1))))
    f, arrays = biased((9, 65))
    cases.append(Case(f, arrays, in_place=((0, 0),)))
    check_groups(cases)


def test_arithmetic_on_positions_is_done_in_64_bits() -> None:
    """What is computed from a position is no position."""

    def body(b: Builder) -> Value:
        i = b.emit("iota", shape=(3000,), axis=0, dtype=I64)
        return b.mul(b.mul(i, i), b.mul(i, i))

    check_groups([built(body=body)])
