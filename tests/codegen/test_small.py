"""Products of many small matrices: one kernel for a size, with the bits of the interpreter and nothing read beside the operands."""

from __future__ import annotations

import numpy as np
import pytest
from graphc.codegen.llvm.target import host_target, make_target
from graphc.codegen.lower.contract import lower_contraction, variant
from graphc.codegen.lower.small import LEAST, SmallSchedule
from graphc.codegen.lower.tiles import Schedule
from graphc.ir.function import Builder, Function, Value
from graphc.ir.types import TensorType

from tests.codegen.contractions import arguments, biased, check, check_by_oracle, dot_group
from tests.codegen.run_kernels import Native

LAYOUTS = ("NN", "NT", "TN", "TT")


def product(layout: str, dtype: str = "f32", bias: bool = False) -> Function:
    """Batch e0, rows e1, depth e2, lanes e3."""
    lhs = "[e0, e2, e1]" if layout[0] == "T" else "[e0, e1, e2]"
    rhs = "[e0, e3, e2]" if layout[1] == "T" else "[e0, e2, e3]"
    contract = (1 if layout[0] == "T" else 2,), (2 if layout[1] == "T" else 1,)
    return dot_group(dtype + lhs, dtype + rhs, *contract, batch=1, epilogue=biased(2) if bias else None)


def extents(m: int, k: int, n: int, batch: int = 37) -> dict[str, int]:
    return {"e0": batch, "e1": m, "e2": k, "e3": n}


def checked(f: Function, sizes: dict[str, int], bits: int | None = None) -> SmallSchedule:
    """The small schedule that is chosen, once it was seen to be right."""
    target = host_target() if bits is None else make_target("x86-64-v3")
    schedule = variant(f, sizes, target.vector_bits)
    assert isinstance(schedule, SmallSchedule)
    check(f, sizes, schedule=schedule, target=target)
    # The number of products is not literal.
    check(f, {**sizes, "e0": 5}, schedule=schedule, target=target)
    return schedule


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "size", [(1, 1, 1), (3, 3, 3), (4, 4, 4), (5, 7, 3), (8, 8, 8), (16, 16, 16), (13, 5, 17), (30, 2, 24)], ids=str
)
def test_layouts_and_sizes(layout: str, size: tuple[int, int, int]) -> None:
    checked(product(layout, bias=True), extents(*size))


@pytest.mark.parametrize("size", [(1, 16, 40), (9, 8, 1), (1, 1, 33), (7, 1, 1), (2, 256, 3), (128, 4, 2)], ids=str)
def test_few_rows_lanes_and_terms(size: tuple[int, int, int]) -> None:
    for layout in ("NN", "TN"):
        checked(product(layout), extents(*size))


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f64", "i8", "u16", "i32", "u64"])
@pytest.mark.parametrize("layout", ["NN", "NT"])
def test_dtypes(dtype: str, layout: str) -> None:
    checked(product(layout, dtype), extents(5, 8, 6))
    checked(product(layout, dtype, bias=True), extents(8, 8, 8))


@pytest.mark.skipif(host_target().architecture != "x86_64", reason="code for x86-64-v3 runs on x86-64 only")
def test_narrow_vectors() -> None:
    for layout in LAYOUTS:
        checked(product(layout, bias=True), extents(5, 8, 7), bits=256)
        checked(product(layout), extents(16, 16, 16), bits=256)


def test_what_schedules_are_chosen() -> None:
    """Lanes turned in registers where they lie along the depth; half vectors where they leave less empty; swapped for one column."""
    assert checked(product("NT"), extents(8, 8, 8)).turned == "strip"
    assert checked(product("NT"), extents(3, 3, 3)).turned == ""
    assert checked(product("NT"), extents(13, 12, 21)).turned == "once"
    wide = host_target().vector_bits // 32
    assert checked(product("NN"), extents(6, 3, wide + wide // 2)).width == max(wide // 2, 4)
    assert checked(product("NT"), extents(9, 8, 1)).swap


def test_long_epilogues_are_written_out_for_few_rows() -> None:
    def chain(b: Builder, root: Value) -> list[Value]:
        y = root
        for _ in range(30):
            y = b.emit("sqrt", b.emit("abs", b.emit("sub", y, b.emit("square", y))))
        return [y]

    f = dot_group("f32[e0, e1, e2]", "f32[e0, e2, e3]", (2,), (1,), batch=1, epilogue=chain)
    assert checked(f, extents(8, 8, 8)).rows < 8


def test_what_is_left_to_tiles() -> None:
    for size in ((300, 8, 8), (8, 257, 8), (64, 128, 64), (8, 8, 300)):
        assert isinstance(variant(product("NN"), extents(*size)), Schedule), size
    assert isinstance(variant(product("NN"), extents(8, 8, 8, LEAST - 1)), Schedule)
    assert isinstance(variant(product("NN"), extents(8, 8, 8), literal=False), Schedule)


def test_batches_of_several_dimensions_and_results_moved() -> None:
    f = dot_group("f32[e0, 3, 5, 8]", "f32[e0, 3, 8, 6]", (3,), (2,), batch=2)
    assert isinstance(check(f, {"e0": 11}).kernels[0].name, str)
    assert isinstance(variant(f, {"e0": 11}), SmallSchedule)

    def heads(b: Builder, root: Value) -> list[Value]:
        return [b.emit("permute", root, axes=(0, 2, 1, 3))]

    moved = dot_group("f32[e0, 3, 5, 8]", "f32[e0, 3, 6, 8]", (3,), (3,), batch=2, epilogue=heads)
    assert isinstance(variant(moved, {"e0": 11}), SmallSchedule)
    check(moved, {"e0": 11})


def test_operands_moved_and_one_for_all() -> None:
    """Heads of an attention read where they lie, and a matrix that all products share."""
    b = Builder("group")
    x, y = b.param(TensorType.parse("f32[e0, 4, 3, 8]")), b.param(TensorType.parse("f32[8, 8]"))
    turned = b.emit("permute", x, axes=(0, 2, 1, 3))
    shared = b.emit("broadcast", y, shape=TensorType.parse("f32[e0, 3, 8, 8]").shape, axes=(2, 3))
    root = b.emit("dot", turned, shared, lhs_batch=(0, 1), rhs_batch=(0, 1), lhs_contract=(3,), rhs_contract=(2,))
    f = b.build([root])
    assert isinstance(variant(f, {"e0": 9}), SmallSchedule)
    check(f, {"e0": 9})


def test_every_index_is_inside() -> None:
    for layout, size in (("NN", (3, 3, 3)), ("NT", (5, 8, 6)), ("NT", (3, 5, 3)), ("NT", (4, 17, 5)), ("TN", (30, 4, 5)), ("NN", (9, 8, 1))):
        f, sizes = product(layout, bias=True), extents(*size, batch=LEAST)
        schedule = variant(f, sizes)
        assert isinstance(schedule, SmallSchedule)
        check_by_oracle(f, sizes, schedule)


def test_nan_and_infinity_stay_in_their_products() -> None:
    f, sizes = product("NN"), extents(3, 3, 3)
    a, b = arguments(f, sizes)
    a[4, 1, 2], b[6, 0, 0], b[7, 2, 1] = np.nan, np.inf, -0.0
    lowered = lower_contraction(f, host_target(), sizes)
    (got,) = Native(lowered).run([a, b], f.result_types, sizes, 3)
    assert np.isnan(got).sum() == 3 and np.isnan(got[4, 1]).all() and np.isinf(got).sum() == 3
