"""`conv` kernels: every geometry, schedule and dtype gives the bits of the interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphc.codegen.llvm.target import host_target, make_target
from graphc.codegen.lower.contract import lower_contraction, variant
from graphc.codegen.lower.tiles import Schedule
from graphc.codegen.lower.windows.gradient_schedule import GradientSchedule
from graphc.ir.function import Builder, Function
from graphc.ir.types import TensorType

from tests.codegen.contractions import arguments, biased, check, check_by_oracle, conv_attrs, conv_group
from tests.codegen.run_kernels import Native

SAME = ((1, 1), (1, 1))
E = {"e0": 5, "e1": 6}

CASES: dict[str, tuple[str, str, dict[str, Any], dict[str, int]]] = {
    "same": ("f32[4, 3, 8, 8]", "f32[16, 3, 3, 3]", {"padding": SAME}, {}),
    "one channel": ("f32[4, 1, 8, 8]", "f32[16, 1, 3, 3]", {"padding": SAME}, {}),
    "symbolic batch": ("f32[e0, 3, 8, 8]", "f32[5, 3, 3, 3]", {"padding": SAME}, {"e0": 3}),
    "symbolic image": ("f32[2, 3, e0, e1]", "f32[3, 3, 3, 3]", {"padding": SAME}, E),
    "symbolic channels": ("f32[2, e0, 6, 6]", "f32[e1, e0, 2, 2]", {}, E),
    "valid": ("f32[3, 4, 9, 7]", "f32[6, 4, 3, 2]", {}, {}),
    "wide": ("f32[1, 2, 3, 70]", "f32[3, 2, 3, 3]", {"padding": ((1, 1), (0, 2))}, {}),
    "long": ("f32[2, 3, 300]", "f32[4, 3, 5]", {"padding": ((2, 2),)}, {}),
    "strided": ("f32[2, 3, 9, 12]", "f32[4, 3, 3, 3]", {"padding": SAME, "strides": (2, 3)}, {}),
    "symbolic stride": ("f32[2, 3, e0, e1]", "f32[4, 3, 3, 3]", {"padding": SAME, "strides": (2, 2)}, {"e0": 9, "e1": 8}),
    "rhs dilation": ("f32[2, 3, 9, 12]", "f32[4, 3, 3, 2]", {"padding": ((2, 1), (0, 3)), "rhs_dilation": (2, 3)}, {}),
    "lhs dilation": ("f32[2, 3, 5, 4]", "f32[4, 3, 3, 3]", {"padding": ((2, 2), (1, 2)), "lhs_dilation": (2, 3)}, {}),
    "both dilations": (
        "f32[2, 3, 5, 4]", "f32[4, 3, 3, 3]",
        {"padding": ((3, 2), (4, 2)), "lhs_dilation": (2, 3), "rhs_dilation": (2, 2), "strides": (1, 2)}, {},
    ),
    "negative padding": ("f32[2, 3, 9, 8]", "f32[4, 3, 2, 3]", {"padding": ((-2, 1), (1, -3))}, {}),
    "large padding": ("f32[2, 2, 3, 3]", "f32[3, 2, 3, 3]", {"padding": ((5, 4), (0, 6))}, {}),
    "groups": ("f32[3, 6, 7, 6]", "f32[8, 3, 3, 3]", {"padding": SAME, "groups": 2}, {}),
    "depthwise": ("f32[2, 20, 9, 9]", "f32[20, 1, 3, 3]", {"padding": SAME, "groups": 20}, {}),
    "batch groups": ("f32[6, 4, 7, 9]", "f32[6, 4, 3, 2]", {"padding": ((1, 2), (0, 1)), "batch_groups": 3}, {}),
    "pointwise": ("f32[3, 40, 6, 6]", "f32[24, 40, 1, 1]", {}, {}),
    "whole image": ("f32[5, 8, 4, 4]", "f32[10, 8, 4, 4]", {}, {}),
    "deep": ("f32[2, 70, 4, 4]", "f32[4, 70, 3, 3]", {"padding": SAME}, {}),
    "three dimensions": ("f32[2, 2, 4, 5, 6]", "f32[3, 2, 2, 3, 2]", {"padding": ((1, 1), (0, 1), (1, 0))}, {}),
    "no spatial dimension": ("f32[5, 30]", "f32[7, 30]", {}, {}),
    "no output": ("f32[2, 3, 4, 4]", "f32[3, 3, 5, 3]", {}, {}),
    "small integers": ("i8[2, 3, 6, 6]", "i8[4, 3, 3, 3]", {"padding": SAME}, {}),
    "half": ("f16[2, 30, 6, 6]", "f16[4, 30, 3, 3]", {"padding": SAME}, {}),
    "double": ("f64[2, 3, 6, 6]", "f64[4, 3, 3, 3]", {"padding": SAME}, {}),
}  # fmt: skip


def group(name: str) -> tuple[Function, dict[str, int]]:
    x, w, attrs, extents = CASES[name]
    return conv_group(x, w, biased(1), **attrs), extents


@pytest.mark.parametrize("name", CASES)
def test_geometries(name: str) -> None:
    f, extents = group(name)
    check(f, extents)


PLAIN = Schedule(
    swap=False, rows=4, lanes=16, row_mode="direct", lane_mode="local", block=32, chunk=256, split=False, run=0,
    per_example=True, near=True,
)  # fmt: skip
SCHEDULES = {
    "example": PLAIN,
    "all examples": PLAIN._replace(per_example=False, row_mode="packed"),
    "runs": PLAIN._replace(run=16),
    "runs of all examples": PLAIN._replace(run=32, per_example=False, near=False),
    "far": PLAIN._replace(near=False),
    "packed": PLAIN._replace(lane_mode="packed", row_mode="packed"),
    "packed far": PLAIN._replace(lane_mode="packed", near=False, per_example=False),
    "split": PLAIN._replace(split=True, per_example=False, near=False),
    "channels in lanes": PLAIN._replace(swap=True, row_mode="packed", rows=6, lanes=8, block=8),
    "offsets": PLAIN._replace(swap=True, row_mode="table", lane_mode="packed", rows=5, lanes=16, block=16, per_example=False),
    "offsets of an example": PLAIN._replace(swap=True, row_mode="table", rows=9, lanes=8, block=8),
    "split offsets": PLAIN._replace(swap=True, row_mode="table", lane_mode="packed", split=True, rows=3, lanes=16, block=16),
    "channels in packed lanes": PLAIN._replace(swap=True, row_mode="packed", lane_mode="packed", per_example=False),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ["same", "symbolic image", "strided", "both dilations", "groups", "batch groups", "deep", "long"])
def test_every_schedule_gives_the_same_bits(name: str, schedule: str) -> None:
    f, extents = group(name)
    check(f, extents, schedule=SCHEDULES[schedule])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_by_the_loop_language(schedule: str) -> None:
    """The oracle checks every index: padding reads nothing outside of the operand."""
    f = conv_group("f32[2, 2, 4, 3]", "f32[3, 2, 3, 3]", biased(1), padding=((1, 1), (1, 2)), strides=(1, 2))
    check_by_oracle(f, {}, SCHEDULES[schedule]._replace(rows=2, lanes=4, block=8))


def gradients(n: int, c: int, o: int, h: int, w: int, kernel: int, stride: int, pad: int) -> dict[str, Function]:
    """The convolutions that are the gradients of one by its input and by its kernel."""
    b = Builder("input")
    out_h, out_w = ((s + 2 * pad - kernel) // stride + 1 for s in (h, w))
    dy = b.param(TensorType.parse(f"f32[{n}, {o}, {out_h}, {out_w}]"))
    weight = b.param(TensorType.parse(f"f32[{o}, {c}, {kernel}, {kernel}]"))
    flipped = b.permute(b.flip(weight, axes=(2, 3)), axes=(1, 0, 2, 3))
    back = kernel - 1 - pad
    padding = tuple((back, s + pad - ((t - 1) * stride + 1)) for s, t in ((h, out_h), (w, out_w)))
    dx = b.conv(dy, flipped, **conv_attrs(2, padding=padding, lhs_dilation=(stride, stride)))
    by_input = b.build([dx])
    b = Builder("kernel")
    x = b.param(TensorType.parse(f"f32[{n}, {c}, {h}, {w}]"))
    dy = b.param(TensorType.parse(f"f32[{n}, {o}, {out_h}, {out_w}]"))
    padding = tuple((pad, (t - 1) * stride + kernel - s - pad) for s, t in ((h, out_h), (w, out_w)))
    dw = b.conv(
        b.permute(x, axes=(1, 0, 2, 3)), b.permute(dy, axes=(1, 0, 2, 3)),
        **conv_attrs(2, padding=padding, rhs_dilation=(stride, stride)),
    )  # fmt: skip
    return {"input": by_input, "kernel": b.build([b.permute(dw, axes=(1, 0, 2, 3))])}


@pytest.mark.parametrize("of", ["input", "kernel"])
@pytest.mark.parametrize("case", [(20, 1, 16, 8, 8, 3, 1, 1), (20, 16, 8, 4, 4, 3, 1, 1), (3, 4, 5, 9, 7, 3, 2, 1)], ids=str)
def test_gradients(case: tuple[int, ...], of: str) -> None:
    f = gradients(*case)[of]
    check(f)
    for name in ("packed", "split", "channels in lanes", "offsets", "split offsets"):
        check(f, schedule=SCHEDULES[name])


def test_long_sums_are_parallel() -> None:
    """The gradient by a small kernel has few results and a long sum: its blocks are tasks of their own."""
    f = gradients(64, 1, 16, 8, 8, 3, 1, 1)["kernel"]
    s = variant(f, {})
    assert isinstance(s, GradientSchedule)
    assert s.blocks
    assert [k.name for k in check(f).kernels] == ["contract", "finish"]
    assert [k.name for k in check(f, schedule=SCHEDULES["split offsets"]).kernels] == ["pack", "contract", "finish"]


def test_specials_meet_the_padding() -> None:
    """Padding takes part as exact zeros: an infinite weight makes NaN at the border."""
    f = conv_group("f32[1, 1, 4, 4]", "f32[2, 1, 3, 3]", padding=SAME)
    x, w = arguments(f, {})
    w[0, 0, 0, 0], w[1, 0, 2, 2] = np.inf, np.nan
    for schedule in (None, *SCHEDULES.values()):
        check(f, args=[x, w], schedule=schedule)


def test_padding_by_another_value_comes_first() -> None:
    """A pad operation before the convolution folds into its reads."""
    b = Builder("group")
    x, v = b.param(TensorType.parse("f32[2, 3, 5, 5]")), b.param(TensorType.parse("f32[]"))
    w = b.param(TensorType.parse("f32[4, 3, 3, 3]"))
    padded = b.pad(x, v, low=(0, 0, 1, 1), high=(0, 0, 1, 1), interior=(0, 0, 0, 0))
    check(b.build([b.conv(padded, w, **conv_attrs(2, padding=SAME))]))


def test_rows_do_not_depend_on_their_batch() -> None:
    parts = []
    for n in (1, 9):
        f = conv_group(f"f32[{n}, 3, 6, 6]", "f32[8, 3, 3, 3]", padding=SAME)
        x, w = arguments(f, {})
        x[0] = np.linspace(-1, 1, 108, dtype=np.float32).reshape(3, 6, 6)
        w[:] = np.linspace(2, -1, w.size, dtype=np.float32).reshape(w.shape)
        parts.append(Native(lower_contraction(f, host_target())).run([x, w], f.result_types, {})[0][0])
    assert parts[0].tobytes() == parts[1].tobytes()


@pytest.mark.parametrize("name", ["same", "strided", "groups", "lhs dilation", "half"])
def test_avx2(name: str) -> None:
    target = make_target("x86-64-v3") if host_target().architecture == "x86_64" else host_target()
    f, extents = group(name)
    check(f, extents, target=target)
