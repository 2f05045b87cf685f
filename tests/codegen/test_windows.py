"""Convolutions with lanes over output pixels: every geometry, tile and dtype gives the bits of the interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphc.codegen.llvm.target import host_target, make_target
from graphc.codegen.lower.windows.lower import candidate
from graphc.codegen.lower.windows.schedule import WindowSchedule
from graphc.ir.function import Function

from tests.codegen.contractions import arguments, biased, check, check_by_oracle, conv_group
from tests.codegen.test_conv import CASES, gradients, group

SAME = ((1, 1), (1, 1))


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
    {"padding": SAME, "lhs_dilation": (2, 2)},
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


@pytest.mark.parametrize("name", ["same", "strided", "groups", "lhs dilation", "half", "double"])
def test_avx2(name: str) -> None:
    target = make_target("x86-64-v3") if host_target().architecture == "x86_64" else host_target()
    f, extents = group(name)
    check(f, extents, schedule=schedule_of(f, extents, target.vector_bits), target=target)


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
        found = candidate(f, {}, 512)
        if found is not None:
            done += 1
            check(f, schedule=found[1])
