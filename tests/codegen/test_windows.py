"""Convolutions with lanes over output pixels: every geometry, tile and dtype gives the bits of the interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphc.codegen.llvm.target import host_target, make_target
from graphc.codegen.lower.contract import variant
from graphc.codegen.lower.tiles import Schedule
from graphc.codegen.lower.windows.gradient_schedule import GradientSchedule
from graphc.codegen.lower.windows.groups import GroupSchedule
from graphc.codegen.lower.windows.lower import (
    candidate,
    gradient_candidate,
    group_candidate,
    input_candidate,
    plane_candidate,
    spread_candidate,
)
from graphc.codegen.lower.windows.planes import PlaneSchedule
from graphc.codegen.lower.windows.schedule import WindowSchedule
from graphc.ir.autodiff import vjp
from graphc.ir.function import Builder, Function
from graphc.ir.passes import DEFAULT, run_pipeline
from graphc.ir.types import TensorType

from tests.codegen.compiled import assert_compiled
from tests.codegen.contractions import arguments, biased, check, check_by_oracle, conv_attrs, conv_group
from tests.codegen.test_conv import CASES, gradients, group

SAME = ((1, 1), (1, 1))
Ints = tuple[int, ...]


def schedule_of(f: Function, extents: dict[str, int], vector_bits: int = 512) -> WindowSchedule:
    found = candidate(f, extents, vector_bits)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("name", [n for n in CASES if n not in ("no spatial dimension", "no output")])
def test_geometries(name: str) -> None:
    f, extents = group(name)
    check(f, extents, schedule=schedule_of(f, extents))


@pytest.mark.parametrize("name", ["no spatial dimension", "no output"])
def test_what_has_no_windows(name: str) -> None:
    f, extents = group(name)
    assert candidate(f, extents, 512) is None


def test_unknown_sizes_are_not_for_windows() -> None:
    f, _ = group("symbolic image")
    assert candidate(f, {}, 512) is None
    assert candidate(group("symbolic batch")[0], {}, 512) is not None


def test_pointwise_convolutions_are_products() -> None:
    """Of few channels they are not, nor where the window is larger."""
    deep = gradients(3, 70, 40, 9, 7, 1, 1, 0)
    assert isinstance(variant(conv_group("f32[3, 70, 9, 7]", "f32[40, 70, 1, 1]"), {}), Schedule)
    assert isinstance(variant(deep["kernel"], {}), Schedule)
    for x, w, attrs in (
        ("f32[3, 5, 19, 17]", "f32[40, 5, 1, 1]", {}),
        ("f32[3, 70, 19, 17]", "f32[40, 70, 3, 3]", {"padding": SAME}),
    ):
        assert isinstance(variant(conv_group(x, w, **attrs), {}), WindowSchedule)
    for f in deep.values():
        check(f)


TILES = {
    "one row": {"rows": 1, "vectors": 2},
    "one vector": {"rows": 3, "vectors": 1},
    "many vectors": {"rows": 2, "vectors": 7},
    "narrow": {"rows": 4, "vectors": 2, "width": 8, "block": 100},
    "small blocks": {"rows": 4, "vectors": 1, "images": 1, "block": 1},
    "shared channels": {"rows": 2, "vectors": 2, "parts": 2},
    "images": {"rows": 3, "vectors": 3, "images": 2, "block": 100},
}


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize(
    "name",
    [
        "same",
        "symbolic batch",
        "strided",
        "both dilations",
        "groups",
        "batch groups",
        "deep",
        "long",
        "wide",
        "three dimensions",
    ],
)
def test_every_tile_gives_the_same_bits(name: str, tile: str) -> None:
    f, extents = group(name)
    s = schedule_of(f, extents)._replace(**TILES[tile])
    pixels = int(np.prod([int(d) for d in f.ops[0].result.type.shape[2:]]))
    whole = -(-pixels // s.width)
    s = s._replace(block=min(s.block, whole))
    check(f, extents, schedule=s._replace(block=whole) if s.images > 1 else s)


@pytest.mark.parametrize("attrs", [
    {"padding": ((1, 1), (1, 2)), "strides": (1, 2)},
    {"padding": ((2, 0), (0, 3)), "strides": (2, 1), "rhs_dilation": (1, 2)},
    {"padding": ((1, -1), (-1, 1))},
    {"padding": ((0, 1), (1, 0)), "lhs_dilation": (1, 2)},
], ids=str)  # fmt: skip
def test_reads_nothing_outside(attrs: dict[str, Any]) -> None:
    """The oracle checks every index."""
    f = conv_group("f32[3, 2, 4, 5]", "f32[3, 2, 2, 3]", biased(1), **attrs)
    s = schedule_of(f, {})
    for change in (
        {"rows": 2, "vectors": 2, "width": 4, "images": 1, "block": 2},
        {"rows": 3, "vectors": 1, "images": 1, "block": 1, "width": 32},
    ):
        check_by_oracle(f, {}, s._replace(**change))


def test_specials_meet_the_padding() -> None:
    f = conv_group("f32[1, 1, 4, 4]", "f32[2, 1, 3, 3]", padding=SAME)
    x, w = arguments(f, {})
    w[0, 0, 0, 0], w[1, 0, 2, 2], x[0, 0, 1, 2] = np.inf, np.nan, -np.inf
    check(f, args=[x, w], schedule=schedule_of(f, {}))


@pytest.mark.parametrize("of", ["input", "kernel"])
@pytest.mark.parametrize(
    "case", [(20, 1, 16, 8, 8, 3, 1, 1), (3, 4, 5, 9, 7, 3, 2, 1), (2, 40, 3, 5, 6, 3, 1, 0)], ids=str
)
def test_gradients(case: tuple[int, ...], of: str) -> None:
    f = gradients(*case)[of]
    check(f, schedule=schedule_of(f, {}))


# Convolutions with a large window and few results: lanes over output channels.
WIDE: dict[str, tuple[str, str, dict[str, Any], dict[str, int]]] = {
    "images": ("f32[3, 20, 8, 8]", "f32[6, 20, 6, 6]", {}, {}),
    "padded": ("f32[2, 5, 12, 10]", "f32[19, 5, 12, 10]", {"padding": SAME}, {}),
    "symbolic depth": ("f32[4, e0, 12, 10]", "f32[7, e0, 10, 8]", {}, {"e0": 9}),
    "strided": ("f32[4, 3, 13, 11]", "f32[5, 3, 6, 5]", {"rhs_dilation": (2, 2), "padding": ((0, 0), (1, -1))}, {}),
    "dilated": ("f32[4, 3, 20, 18]", "f32[8, 3, 16, 15]", {"strides": (2, 3), "padding": ((1, 1), (2, 2))}, {}),
    "parts": ("f32[6, 4, 9, 9]", "f32[15, 4, 8, 7]", {"batch_groups": 3}, {}),
    "long": ("f32[2, 4, 700]", "f32[6, 4, 690]", {"padding": ((3, 3),)}, {}),
    "volume": ("f32[2, 3, 6, 7, 8]", "f32[9, 3, 5, 5, 7]", {"padding": ((1, 0), (0, 1), (1, 1))}, {}),
    "one output": ("f32[5, 3, 9, 7]", "f32[1, 3, 8, 7]", {"padding": SAME}, {}),
    "three outputs": ("f32[4, 3, 19, 17]", "f32[3, 3, 17, 16]", {"padding": SAME}, {}),
    "few groups": ("f32[2, 3, 9, 11]", "f32[2, 3, 9, 11]", {"padding": SAME, "batch_groups": 2}, {}),
    "many outputs": ("f32[5, 9, 7, 6]", "f32[70, 9, 5, 4]", {"padding": ((0, 1), (1, 0))}, {}),
    "spread": ("f32[2, 3, 7, 6]", "f32[9, 3, 5, 7]", {"lhs_dilation": (1, 2), "padding": SAME}, {}),
    "halves": ("f16[3, 6, 9, 9]", "f16[5, 6, 8, 8]", {"padding": SAME}, {}),
    "doubles": ("f64[3, 6, 9, 9]", "f64[9, 6, 8, 8]", {}, {}),
    "integers": ("i8[3, 6, 9, 9]", "i8[9, 6, 8, 8]", {}, {}),
}  # fmt: skip
CHUNKS: dict[str, dict[str, Any]] = {
    "chosen": {},
    "split": {"blocks": 1},
    "split twice": {"blocks": 2},
    "one example": {"blocks": 0, "images": 1},
    "two examples": {"blocks": 0, "images": 2},
    "part of an example": {"blocks": 0, "images": 1, "pixels": 31},
}


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("name", WIDE)
def test_few_results(name: str, chunk: str) -> None:
    x, w, attrs, extents = WIDE[name]
    f = conv_group(x, w, biased(1), **attrs)
    found = gradient_candidate(f, extents, 512)
    assert found is not None
    check(f, extents, schedule=changed(found[1], f, CHUNKS[chunk]))


def changed(s: GradientSchedule, f: Function, change: dict[str, Any]) -> GradientSchedule:
    """A schedule with another cut of k."""
    s = s._replace(**change)
    pixels = int(np.prod([int(d) for d in f.params[1].type.shape[2:]]))
    if "pixels" not in change:
        s = s._replace(pixels=min(pixels, s.blocks * 256 or pixels))
    return s._replace(images=(s.blocks * 256 - 2) // pixels + 2) if s.blocks else s


@pytest.mark.parametrize("outputs", [1, 3, 8])
def test_the_compiler_takes_few_results(outputs: int) -> None:
    f = conv_group("f32[3, 4, 20, 20]", f"f32[{outputs}, 4, 20, 20]", padding=SAME)
    assert isinstance(variant(f, {}), GradientSchedule)


def test_few_results_read_nothing_outside() -> None:
    f = conv_group("f32[1, 9, 6, 5]", "f32[5, 9, 6, 5]", biased(1), padding=((1, 0), (0, 0)))
    found = gradient_candidate(f, {}, 512)
    assert found is not None
    for change in (CHUNKS["split"], {"blocks": 0, "images": 1, "pixels": 20}):
        check_by_oracle(f, {}, changed(found[1]._replace(width=4, vectors=1), f, change))


def test_few_results_in_tiles_with_a_vector_to_spare() -> None:
    f = conv_group("f32[1, 9, 6, 5]", "f32[4, 9, 6, 5]", biased(1), padding=((1, 0), (0, 0)))
    found = gradient_candidate(f, {}, 512)
    assert found is not None
    for change in (CHUNKS["split"], {"blocks": 0, "images": 1, "pixels": 20}):
        check_by_oracle(f, {}, changed(found[1]._replace(width=4, vectors=2), f, change))


def test_few_results_with_specials() -> None:
    f = conv_group("f32[1, 2, 4, 4]", "f32[4, 2, 4, 4]", padding=SAME)
    x, w = arguments(f, {})
    w[0, 0, 0, 0], w[1, 1, 2, 2], x[0, 0, 1, 2] = np.inf, np.nan, -np.inf
    found = gradient_candidate(f, {}, 512)
    assert found is not None
    check(f, args=[x, w], schedule=found[1])


# The same with many groups of few channels: lanes over groups. Groups are the kernel's channels of each part.
GROUPS: dict[str, tuple[str, str, dict[str, Any], dict[str, int]]] = {
    "depthwise": ("f32[20, 3, 9, 20]", "f32[20, 3, 9, 20]", {"padding": SAME, "batch_groups": 20}, {}),
    "many pixels": ("f32[4, 2, 23, 41]", "f32[4, 2, 23, 41]", {"padding": ((1, 1), (2, 0)), "batch_groups": 4}, {}),
    "small images": ("f32[17, 90, 3, 2]", "f32[17, 90, 3, 2]", {"padding": SAME, "batch_groups": 17}, {}),
    "two and three": ("f32[10, 3, 8, 9]", "f32[15, 3, 6, 7]", {"batch_groups": 5}, {}),
    "strided": ("f32[7, 3, 13, 11]", "f32[7, 3, 6, 5]", {"rhs_dilation": (2, 2), "padding": ((0, 0), (1, -1)), "batch_groups": 7}, {}),
    "dilated": ("f32[8, 3, 20, 18]", "f32[16, 3, 16, 15]", {"strides": (2, 3), "padding": ((1, 1), (2, 2)), "batch_groups": 8}, {}),
    "cropped": ("f32[6, 3, 12, 16]", "f32[6, 3, 9, 11]", {"padding": ((-1, 0), (1, -5)), "batch_groups": 6}, {}),
    "far strides": ("f32[4, 2, 30, 33]", "f32[4, 2, 7, 9]", {"rhs_dilation": (4, 4), "padding": ((3, 0), (2, 1)), "batch_groups": 4}, {}),
    "large windows": ("f32[9, 2, 16, 30]", "f32[9, 2, 12, 17]", {"padding": ((1, 2), (1, 4)), "batch_groups": 9}, {}),
    "long": ("f32[18, 3, 700]", "f32[18, 3, 700]", {"padding": ((3, 5),), "batch_groups": 18}, {}),
    "short": ("f32[5, 300, 3]", "f32[5, 300, 2]", {"padding": ((2, 1),), "batch_groups": 5, "rhs_dilation": (2,)}, {}),
    "symbolic": ("f32[8, e0, 9, 9]", "f32[8, e0, 9, 9]", {"padding": SAME, "batch_groups": 8}, {"e0": 5}),
    "halves": ("f16[12, 6, 9, 9]", "f16[12, 6, 8, 8]", {"padding": SAME, "batch_groups": 6}, {}),
    "doubles": ("f64[9, 6, 9, 9]", "f64[18, 6, 8, 8]", {"batch_groups": 9}, {}),
    "integers": ("i8[9, 6, 9, 9]", "i8[18, 6, 8, 8]", {"batch_groups": 9}, {}),
}  # fmt: skip


@pytest.mark.parametrize("blocks", [1, 4])
@pytest.mark.parametrize("name", GROUPS)
def test_many_groups(name: str, blocks: int) -> None:
    x, w, attrs, extents = GROUPS[name]
    f = conv_group(x, w, biased(1), **attrs)
    found = group_candidate(f, extents, 512)
    assert found is not None
    check(f, extents, schedule=found[1]._replace(blocks=blocks))


@pytest.mark.parametrize("attrs", [
    {"padding": SAME},
    {"padding": ((2, 0), (-1, 3)), "strides": (2, 1)},
    {"padding": ((1, 1), (0, 1)), "rhs_dilation": (2, 2)},
], ids=str)  # fmt: skip
def test_many_groups_read_nothing_outside(attrs: dict[str, Any]) -> None:
    f = conv_group("f32[5, 2, 6, 7]", "f32[5, 2, 4, 4]", biased(1), batch_groups=5, **attrs)
    found = group_candidate(f, {}, 512)
    assert found is not None
    check_by_oracle(f, {}, found[1]._replace(blocks=1, width=4))


def test_many_groups_with_specials() -> None:
    f = conv_group("f32[4, 2, 4, 4]", "f32[4, 2, 4, 4]", padding=SAME, batch_groups=4)
    x, w = arguments(f, {})
    w[0, 0, 0, 0], w[1, 1, 2, 2], x[0, 0, 1, 2] = np.inf, np.nan, -np.inf
    found = group_candidate(f, {}, 512)
    assert found is not None
    check(f, args=[x, w], schedule=found[1])


def test_the_compiler_takes_lanes_over_groups() -> None:
    f = conv_group("f32[32, 2, 9, 9]", "f32[64, 2, 9, 9]", padding=SAME, batch_groups=32)
    assert isinstance(variant(f, {}), GroupSchedule)
    f = conv_group("f32[12, 2, 9, 9]", "f32[64, 2, 9, 9]", padding=SAME, batch_groups=2)
    assert isinstance(variant(f, {}), GradientSchedule)


# One group of few outputs: lanes over its inputs.
INPUTS: dict[str, tuple[str, str, dict[str, Any], dict[str, int]]] = {
    "one output": ("f32[20, 3, 9, 7]", "f32[1, 3, 8, 7]", {"padding": SAME}, {}),
    "three outputs": ("f32[37, 2, 19, 17]", "f32[3, 2, 17, 16]", {"padding": SAME}, {}),
    "few inputs": ("f32[5, 4, 19, 17]", "f32[2, 4, 17, 16]", {"padding": ((0, 2), (1, 1))}, {}),
    "symbolic depth": ("f32[16, e0, 12, 10]", "f32[7, e0, 10, 8]", {}, {"e0": 9}),
    "strided": ("f32[18, 3, 13, 11]", "f32[5, 3, 6, 5]", {"rhs_dilation": (2, 2), "padding": ((0, 0), (1, -1))}, {}),
    "dilated": ("f32[9, 3, 20, 18]", "f32[8, 3, 16, 15]", {"strides": (2, 3), "padding": ((1, 1), (2, 2))}, {}),
    "long": ("f32[6, 4, 700]", "f32[2, 4, 690]", {"padding": ((3, 3),)}, {}),
    "large window": ("f32[7, 2, 17, 16]", "f32[2, 2, 11, 9]", {}, {}),
    "halves": ("bf16[17, 5, 9, 9]", "bf16[3, 5, 9, 9]", {"padding": SAME}, {}),
    "integers": ("i8[17, 5, 9, 9]", "i8[3, 5, 9, 9]", {"padding": SAME}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", INPUTS)
def test_few_outputs(name: str) -> None:
    x, w, attrs, extents = INPUTS[name]
    f = conv_group(x, w, biased(1), **attrs)
    found = input_candidate(f, extents, 512)
    assert found is not None
    for blocks in (found[1].blocks, 1, 3):
        check(f, extents, schedule=found[1]._replace(blocks=blocks))


@pytest.mark.parametrize(
    "attrs", [{"padding": ((1, 1), (1, 2))}, {"padding": ((-1, 2), (0, 1)), "strides": (1, 2)}], ids=str
)
def test_few_outputs_read_nothing_outside(attrs: dict[str, Any]) -> None:
    f = conv_group("f32[5, 2, 6, 9]", "f32[2, 2, 4, 5]", biased(1), **attrs)
    found = input_candidate(f, {}, 512)
    assert found is not None
    check_by_oracle(f, {}, found[1]._replace(blocks=1, width=4))


def test_few_outputs_with_specials() -> None:
    f = conv_group("f32[5, 2, 9, 9]", "f32[2, 2, 8, 8]", padding=SAME)
    x, w = arguments(f, {})
    w[0, 0, 0, 0], w[1, 1, 2, 2], x[0, 0, 1, 2] = np.inf, np.nan, -np.inf
    found = input_candidate(f, {}, 512)
    assert found is not None
    check(f, args=[x, w], schedule=found[1])


def test_few_outputs_of_something_computed() -> None:
    """The other operand is an expression, as the cotangent of relu is."""
    b = Builder("group")
    x, dy, y = (
        b.param(TensorType.parse(t)) for t in ("f32[20, 3, 9, 9]", "f32[2, 3, 8, 8]", "f32[2, 3, 8, 8]")
    )
    w = b.emit("select", b.emit("gt", y, dy), dy, y)
    f = b.build([b.emit("conv", x, w, **conv_attrs(2, padding=SAME))])
    s = variant(f, {})
    assert isinstance(s, GroupSchedule)
    assert s.shared
    check(f)


def test_the_compiler_takes_lanes_over_inputs() -> None:
    few = gradients(8, 16, 3, 28, 28, 3, 1, 1)["kernel"]
    many = gradients(8, 16, 32, 28, 28, 3, 1, 1)["kernel"]
    assert isinstance(variant(few, {}), GroupSchedule)
    assert isinstance(variant(many, {}), GradientSchedule)


# Channels that are alone: nothing is copied.
PLANES: dict[str, tuple[str, str, dict[str, Any], dict[str, int]]] = {
    "depthwise": ("f32[2, 5, 9, 20]", "f32[5, 1, 3, 3]", {"padding": SAME, "groups": 5}, {}),
    "narrow": ("f32[e0, 5, 7, 5]", "f32[5, 1, 3, 3]", {"padding": SAME, "groups": 5}, {"e0": 3}),
    "two of each": ("f32[2, 3, 8, 33]", "f32[6, 1, 2, 3]", {"padding": ((0, 1), (2, 2)), "groups": 3}, {}),
    "strided": ("f32[2, 3, 11, 41]", "f32[3, 1, 3, 3]", {"padding": SAME, "groups": 3, "strides": (2, 2)}, {}),
    "far strides": ("f32[2, 3, 14, 30]", "f32[3, 1, 2, 2]", {"groups": 3, "strides": (3, 4)}, {}),
    "dilated lines": ("f32[2, 3, 9, 40]", "f32[3, 1, 3, 3]", {"padding": ((1, 1), (3, 3)), "groups": 3, "rhs_dilation": (1, 3)}, {}),
    "cropped": ("f32[2, 3, 9, 40]", "f32[3, 1, 3, 2]", {"padding": ((-1, 2), (1, -4)), "groups": 3}, {}),
    "spread": ("f32[2, 3, 9, 21]", "f32[3, 1, 3, 3]", {"padding": SAME, "groups": 3, "lhs_dilation": (2, 2)}, {}),
    "spread and cropped": (
        "f32[2, 3, 6, 13]", "f32[3, 1, 2, 5]",
        {"padding": ((-2, 3), (4, -3)), "groups": 3, "lhs_dilation": (3, 2), "strides": (2, 1), "rhs_dilation": (1, 3)}, {},
    ),
    "spread line": ("f32[2, 4, 50]", "f32[4, 1, 4]", {"padding": ((2, 3),), "groups": 4, "lhs_dilation": (3,)}, {}),
    "large padding": ("f32[1, 2, 3, 3]", "f32[2, 1, 3, 3]", {"padding": ((5, 4), (0, 20)), "groups": 2}, {}),
    "parts": ("f32[6, 1, 7, 19]", "f32[3, 1, 3, 2]", {"padding": ((1, 2), (0, 1)), "batch_groups": 3}, {}),
    "one channel": ("f32[3, 1, 12, 18]", "f32[2, 1, 5, 5]", {"padding": ((2, 2), (2, 2))}, {}),
    "long": ("f32[2, 4, 100]", "f32[4, 1, 9]", {"padding": ((4, 4),), "groups": 4, "strides": (2,)}, {}),
    "halves": ("bf16[2, 5, 9, 20]", "bf16[5, 1, 3, 3]", {"padding": SAME, "groups": 5}, {}),
    "integers": ("i8[2, 5, 9, 20]", "i8[5, 1, 3, 3]", {"padding": SAME, "groups": 5}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANES)
def test_planes(name: str) -> None:
    x, w, attrs, extents = PLANES[name]
    f = conv_group(x, w, biased(1), **attrs)
    s = plane_candidate(f, extents, 512)
    assert s is not None
    check(f, extents, schedule=s)
    if name in ("large padding", "far strides", "spread and cropped"):
        check_by_oracle(f, extents, s._replace(width=4))


@pytest.mark.parametrize("change", [{"rhs_dilation": (2, 1)}, {"groups": 1}], ids=str)
def test_what_is_not_for_planes(change: dict[str, Any]) -> None:
    x = "f32[2, 3, 9, 9]"
    f = conv_group(x, f"f32[3, {3 // change.get('groups', 3)}, 3, 3]", **{"groups": 3, **change})
    assert plane_candidate(f, {}, 512) is None


def test_the_compiler_takes_planes_for_depthwise() -> None:
    f = conv_group("f32[2, 20, 9, 9]", "f32[20, 1, 3, 3]", padding=SAME, groups=20)
    assert isinstance(variant(f, {}), PlaneSchedule)
    f = conv_group("f32[2, 20, 24, 24]", "f32[24, 20, 3, 3]", padding=SAME)
    assert isinstance(variant(f, {}), WindowSchedule)


@pytest.mark.parametrize(
    ("x", "w", "windows"),
    [
        ((2, 64, 40, 40), (64, 64, 3, 3), True),
        ((2, 64, 40, 40), (3, 64, 3, 3), True),  # three rows of a product's tile
        ((2, 64, 20, 20), (6, 64, 5, 5), True),
        ((2, 32, 14, 14), (3, 32, 1, 1), False),
        ((2, 16, 16, 16, 16), (32, 16, 3, 3, 3), False),
        ((2, 1, 16, 16, 16), (8, 1, 3, 3, 3), True),
    ],
)
def test_what_is_for_windows(x: Ints, w: Ints, windows: bool) -> None:
    f = conv_group(f"f32{list(x)}", f"f32{list(w)}", padding=((w[2] // 2,) * 2,) * (len(w) - 2))
    assert isinstance(variant(f, {}), WindowSchedule) is windows


# A dilated x: the zeros between its elements are left out.
SPREAD: dict[str, tuple[str, str, dict[str, Any], dict[str, int]]] = {
    "two": ("f32[3, 5, 7, 6]", "f32[9, 5, 3, 3]", {"padding": ((1, 2), (1, 1)), "lhs_dilation": (2, 2)}, {}),
    "two of each": ("f32[2, 30, 7, 6]", "f32[4, 30, 4, 5]", {"padding": ((2, 2), (0, 3)), "lhs_dilation": (2, 3)}, {}),
    "one dimension": ("f32[e0, 3, 9]", "f32[4, 3, 4]", {"padding": ((2, 2),), "lhs_dilation": (2,)}, {"e0": 3}),
    "smaller window": ("f32[2, 3, 5, 5]", "f32[4, 3, 1, 1]", {"padding": ((0, 1), (0, 1)), "lhs_dilation": (2, 2)}, {}),
    "groups": ("f32[2, 6, 5, 5]", "f32[8, 3, 3, 3]", {"padding": SAME, "lhs_dilation": (2, 1), "groups": 2}, {}),
    "cropped": ("f32[2, 3, 8, 7]", "f32[4, 3, 3, 3]", {"padding": ((-1, 3), (2, -2)), "lhs_dilation": (2, 2)}, {}),
    "volume": ("f32[2, 3, 3, 4, 3]", "f32[4, 3, 2, 3, 3]", {"padding": ((1, 1),) * 3, "lhs_dilation": (2, 2, 2)}, {}),
    "halves": ("f16[2, 30, 4, 5]", "f16[5, 30, 3, 3]", {"padding": SAME, "lhs_dilation": (2, 2)}, {}),
    "integers": ("i8[2, 30, 4, 5]", "i8[5, 30, 3, 3]", {"padding": SAME, "lhs_dilation": (2, 2)}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", SPREAD)
def test_spread(name: str) -> None:
    x, w, attrs, extents = SPREAD[name]
    f = conv_group(x, w, biased(1), **attrs)
    found = spread_candidate(f, extents, 512)
    assert found is not None
    check(f, extents, schedule=found[1])


def test_spread_reads_nothing_outside() -> None:
    f = conv_group(
        "f32[3, 2, 3, 2]", "f32[3, 2, 3, 2]", biased(1), padding=((1, 2), (1, 0)), lhs_dilation=(2, 2)
    )
    found = spread_candidate(f, {}, 512)
    assert found is not None
    check_by_oracle(f, {}, found[1])


@pytest.mark.parametrize("images", [1, 2])
def test_zeros_left_out_change_no_bit(images: int) -> None:
    """Zeros between elements meet infinite and NaN weights, and turn a sum of -0.0 into +0.0."""
    f = conv_group("f32[4, 16, 5, 5]", "f32[8, 16, 3, 3]", padding=((1, 2), (1, 2)), lhs_dilation=(2, 2))
    found = spread_candidate(f, {}, 512)
    assert found is not None
    s = found[1]
    s = s._replace(tile=s.tile._replace(images=images, block=-(-36 // s.tile.width)))
    x, w = arguments(f, {})
    tiny = [x * np.float32(1e-30), w * np.float32(1e-30)]
    check(f, args=tiny, schedule=s)
    # Products that vanish below zero come first, zeros times what is positive later.
    check(f, args=[-abs(tiny[0]), abs(tiny[1])], schedule=s)
    w[0, 0, 0, 0], w[3, 5, 1, 1], w[5, 15, 2, 2] = np.inf, np.nan, -np.inf
    check(f, args=[x, w], schedule=s)


@pytest.mark.parametrize("name", ["same", "strided", "groups", "lhs dilation", "half", "double"])
def test_avx2(name: str) -> None:
    target = make_target("x86-64-v3") if host_target().architecture == "x86_64" else host_target()
    f, extents = group(name)
    check(f, extents, schedule=schedule_of(f, extents, target.vector_bits), target=target)


@pytest.mark.parametrize(
    ("x", "w", "stride", "groups"),
    [
        ((3, 5, 11, 13), (7, 5, 3, 3), 2, 1),
        ((2, 6, 17, 35), (6, 1, 3, 3), 1, 6),
        ((4, 3, 12, 12), (8, 3, 5, 5), 1, 1),
    ],
)
def test_with_its_gradients(x: Ints, w: Ints, stride: int, groups: int) -> None:
    """As a program: with guards around every result, on one thread and three."""
    both, pad = (stride, stride), w[2] // 2
    f = conv_group(
        f"f32{list(x)}", f"f32{list(w)}", strides=both, groups=groups, padding=((pad, pad), (pad, pad))
    )
    g = run_pipeline(vjp(f), DEFAULT)
    assert_compiled(g, arguments(g, {}))


@pytest.mark.slow
def test_random_geometries() -> None:
    rng = np.random.default_rng(7)
    done = 0
    while done < 60:
        rank = int(rng.integers(1, 4))
        n, c, o = (int(v) for v in rng.integers(1, 9, 3))
        image, window = rng.integers(1, 12, rank), rng.integers(1, 5, rank)
        groups = int(rng.integers(1, 3))
        attrs = {
            "padding": tuple((int(a), int(b)) for a, b in rng.integers(-1, 4, (rank, 2))),
            "strides": tuple(int(v) for v in rng.integers(1, 4, rank)),
            "lhs_dilation": tuple(int(v) for v in rng.integers(1, 3, rank)),
            "rhs_dilation": tuple(int(v) for v in rng.integers(1, 4, rank)),
            "groups": groups,
        }
        dtype = str(rng.choice(["f32", "f64", "f16", "bf16", "i8", "i32"]))
        x = f"{dtype}[{', '.join(map(str, (n, c * groups, *image)))}]"
        w = f"{dtype}[{', '.join(map(str, (o * groups, c, *window)))}]"
        try:
            f = conv_group(x, w, **attrs)
        except (TypeError, ValueError):
            continue
        for found in (
            candidate(f, {}, 512),
            gradient_candidate(f, {}, 512),
            group_candidate(f, {}, 512),
            input_candidate(f, {}, 512),
            (0.0, plane_candidate(f, {}, 512)),
        ):
            if found is not None and found[1] is not None:
                done += 1
                check(f, schedule=found[1])
