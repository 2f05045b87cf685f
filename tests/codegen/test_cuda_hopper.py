"""Products by wgmma, in simulation: exact on small integers, the same bits for every tile, way and order of threads."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from graphc.codegen.canonical import canonicalise
from graphc.codegen.cuda.lower import choose
from graphc.codegen.cuda.products import hopper
from graphc.codegen.cuda.simulate import SimulationError
from graphc.codegen.cuda.target import HOPPER
from graphc.ir.function import Builder, Function, Value
from graphc.ir.types import TensorType

from tests.codegen.compiled import difference
from tests.codegen.contractions import biased, conv_attrs, conv_group
from tests.codegen.device import (
    Case,
    Prepared,
    Reported,
    check_groups,
    cuda_text,
    library,
    prepare,
    run_prepared,
)
from tests.codegen.hopper_products import (
    MAJORS,
    SMALL,
    Array,
    case,
    chosen,
    dot,
    integers,
    plain,
    reals,
    ways,
)
from tests.codegen.products import gelu
from tests.equality.oracle import exact_interpret


def test_integers_are_exact_in_every_tile_and_order_in_memory() -> None:
    cases = []
    for i, tile in enumerate((*hopper.TILES, hopper.CLUSTERS[0], hopper.CLUSTERS[2])):
        major = list(MAJORS)[i % 4]
        dtype = ("bf16", "f16")[i % 2]
        # One and a bit of a tile, one and a bit of a block of k, more tiles than blocks.
        rows = tile.rows * tile.cluster
        cases.append(case(plain(dtype, major, rows + 8, 72, tile.columns + 24), tile))
    for prepared in check_groups(cases, seeds=(0, 1, 2)):
        assert ways(prepared) == (hopper.VIEW, hopper.VIEW)


def test_long_sums_go_round_the_ring() -> None:
    shapes = [(8, 64 * 13, 8), (72, 64 * 6, 136), (200, 8, 8), (8, 64 * 5 + 8, 72)]
    cases = [case(plain("bf16", major, *shape)) for major, shape in zip(MAJORS, shapes, strict=True)]
    check_groups(cases, seeds=(0, 1, 2, 3, 4))


@pytest.mark.parametrize(("rows", "narrow"), [(100_000_000, True), (400_000_000, False)])
def test_positions_in_a_packed_operand_fit_their_type(rows: int, narrow: bool) -> None:
    # Rows of 3 are padded to 8: the packed operand is larger than all that the group names.
    c = canonicalise(plain("bf16", "km", rows, 3, 4))
    found = choose(c.function, {n: int(d) for n, d in c.extents}, HOPPER)
    assert found.number("left") == hopper.PACK and found.narrow is narrow


def test_odd_sizes_are_packed() -> None:
    sizes = [(1, 1, 1), (1, 7, 3), (13, 5, 1), (65, 67, 63), (7, 129, 5), (64, 64, 65)]
    majors = ("km", "kk", "mk", "mm", "km", "km")
    groups = [plain(("bf16", "f16")[i % 2], major, *s) for i, (s, major) in enumerate(zip(sizes, majors, strict=True))]
    prepared = check_groups([case(g) for g in groups])
    assert ways(prepared[3]) == (hopper.PACK, hopper.PACK)
    assert ways(prepared[5]) == (hopper.VIEW, hopper.PACK)


def _scaled(side: int) -> Function:
    """A product one side of which is computed in front of it."""
    b = Builder("group")
    x, y, s = (b.param(TensorType.parse(t)) for t in ("bf16[40, 72]", "bf16[72, 24]", "bf16[]"))
    sides = [x, y]
    sides[side] = b.emit("mul", sides[side], b.emit("broadcast", s, shape=sides[side].type.shape, axes=()))
    return b.build([b.emit("dot", *sides, lhs_contract=(1,), rhs_contract=(0,))])


def test_producers_in_front_are_packed() -> None:
    for side, p in enumerate(check_groups([case(_scaled(0)), case(_scaled(1))])):
        assert ways(p)[side] == hopper.PACK and ways(p)[1 - side] == hopper.VIEW
        assert [k.name.split("_")[0] for k in p.kernels] == ["pack", "contract"]


def _heads(b: Builder, root: Value) -> Sequence[Value]:
    return [b.emit("permute", root, axes=(1, 0, 2))]


def _sliced() -> Function:
    b = Builder("group")
    x, w = b.param(TensorType.parse("bf16[40, 144]")), b.param(TensorType.parse("bf16[96, 64]"))
    part = b.emit("slice", x, start=(3, 48), limit=(37, 96), stride=(1, 1))
    below = b.emit("slice", w, start=(16, 0), limit=(64, 64), stride=(1, 1))
    return b.build([b.emit("dot", part, below, lhs_contract=(1,), rhs_contract=(0,))])


def test_batches_and_slices_are_views() -> None:
    groups = [
        dot("bf16[3, 24, 40]", "bf16[3, 40, 16]", (2,), (1,), 1),
        dot("bf16[3, 24, 40]", "bf16[3, 16, 40]", (2,), (2,), 1, epilogue=_heads),
        dot("f16[2, 5, 72, 16]", "f16[2, 5, 16, 72]", (3,), (2,), 2),
        dot("bf16[3, 24, 40]", "bf16[40, 16]", (2,), (0,)),
        _sliced(),
    ]
    for p in check_groups([case(g) for g in groups]):
        assert ways(p) == (hopper.VIEW, hopper.VIEW)


def test_batch_dimensions_apart_in_memory() -> None:
    """Heads inside of rows, as attention has them: the batch coordinates lie on both sides of the row."""
    b = Builder("group")
    q, k = (b.param(TensorType.parse("bf16[2, 24, 3, 16]")) for _ in range(2))
    groups = [
        b.build([b.emit("dot", q, k, lhs_batch=(0, 2), rhs_batch=(0, 2), lhs_contract=(3,), rhs_contract=(3,))])
    ]
    (p,) = check_groups([case(g) for g in groups])
    assert ways(p) == (hopper.VIEW, hopper.VIEW)
    assert p.kernels[0].grid is not None and all(len(m.sizes) == 4 for m in p.kernels[0].grid.maps)


def test_tf32_operands_run_along_the_depth() -> None:
    groups = [plain("f32", major, 72, 100, 136, "tf32") for major in MAJORS]
    groups.append(plain("f32", "km", 65, 33, 7, "tf32"))
    found = [ways(p) for p in check_groups([case(g) for g in groups])]
    v, k = hopper.VIEW, hopper.PACK
    assert found == [(v, v), (v, k), (k, v), (k, k), (k, k)]


def test_float32_operands_rounded_first() -> None:
    """In "bf16" both are packed; in "tf32" an operand is rounded to nearest even, the same on both ways to shared memory."""
    group = plain("f32", "kk", 8, 32, 8, "bf16")
    x = reals(group)
    import ml_dtypes

    near = [a.astype(ml_dtypes.bfloat16).astype(np.float32) for a in x]
    (bf16,) = check_groups([Case(group, x, None, SMALL, expected=[near[0] @ near[1].T], compare=_close)])
    assert ways(bf16) == (hopper.PACK, hopper.PACK)
    ones = np.zeros((8, 32), np.float32)
    ones[np.arange(8), np.arange(8)] = 1
    # A tie to even below, a tie to even above, just below and above a tie, a carry into the exponent.
    bits = np.array([0x3F801000, 0x3F803000, 0x3F800FFF, 0x3F801001, 0x3FFFF000, 0xBF801000, 0x00001000, 0x7F800000], np.uint32)
    want = np.array([0x3F800000, 0x3F804000, 0x3F800000, 0x3F802000, 0x40000000, 0xBF800000, 0x00000000, 0x7F800000], np.uint32)
    values = np.zeros((8, 32), np.float32)
    values[0, :8] = bits.view(np.float32)
    expected = np.zeros((8, 8), np.float32)
    expected[0] = want.view(np.float32)
    # inf * 0 is a NaN in its row.
    values[0, 7], expected[0, 7] = 0, 0
    exact = plain("f32", "kk", 8, 32, 8, "tf32")
    packed = plain("f32", "mm", 8, 32, 8, "tf32")
    check_groups([
        Case(exact, [values, ones], None, SMALL, expected=[expected]),
        Case(packed, [np.ascontiguousarray(values.T), np.ascontiguousarray(ones.T)], None, SMALL, expected=[expected]),
    ])  # fmt: skip


def _close(a: Array, b: Array) -> str:
    return "" if np.allclose(a, b, rtol=1e-5, atol=1e-5) else "far from the product of the rounded operands"


def test_epilogues() -> None:
    groups = [
        dot("bf16[70, 40]", "bf16[40, 72]", epilogue=biased(1)),
        dot("bf16[70, 40]", "bf16[40, 75]", epilogue=biased(0)),
        dot("f16[9, 16]", "f16[16, 33]", epilogue=biased(1)),
    ]
    check_groups([case(g) for g in groups])


def test_convolutions_gather_patches() -> None:
    same = {"padding": ((1, 1), (1, 1))}
    groups = [
        conv_group("bf16[2, 8, 9, 9]", "bf16[24, 8, 3, 3]", **same),
        conv_group("f16[3, 5, 7, 6]", "f16[17, 5, 3, 2]", epilogue=biased(1), strides=(2, 1)),
        conv_group("bf16[1, 8, 40, 32]", "bf16[72, 8, 1, 1]"),
        conv_group("bf16[2, 32, 6, 6]", "bf16[32, 16, 3, 3]", groups=2, **same),
        conv_group("bf16[2, 6, 5, 5]", "bf16[3, 6, 2, 2]", lhs_dilation=(2, 2), rhs_dilation=(1, 2)),
    ]
    prepared = check_groups([case(g) for g in groups], seeds=(0, 1, 2))
    assert [ways(p)[1] for p in prepared] == [hopper.GATHER, hopper.GATHER, hopper.VIEW, hopper.GATHER, hopper.GATHER]


def test_convolution_in_tf32() -> None:
    b = Builder("group")
    x, w = b.param(TensorType.parse("f32[2, 3, 8, 8]")), b.param(TensorType.parse("f32[8, 3, 3, 3]"))
    attrs = {**conv_attrs(2), "precision": "tf32", "padding": ((1, 1), (1, 1))}
    check_groups([case(b.build([b.emit("conv", x, w, **attrs)]))])


def test_an_empty_depth_and_an_empty_result() -> None:
    groups = [dot("bf16[8, 0]", "bf16[0, 8]"), dot("bf16[0, 8]", "bf16[8, 8]")]
    check_groups([Case(g, [np.zeros([int(d) for d in p.type.shape], p.type.dtype.numpy) for p in g.params], None, SMALL) for g in groups])


def _bits(cases: list[Case]) -> list[Array]:
    prepared = [prepare(c, i) for i, c in enumerate(cases)]
    built = library(cuda_text([k for p in prepared for k in p.kernels], SMALL))
    return [run_prepared(p, built)[0] for p in prepared]


def test_bits_do_not_depend_on_the_tile_or_the_way() -> None:
    """The definition of a product is one for all schedules: a function of its shape, types and precision."""
    group = plain("bf16", "km", 136, 200, 264)
    x = reals(group)
    other = plain("bf16", "mk", 136, 200, 264)
    turned = [np.ascontiguousarray(a.T) for a in x]
    cases = [Case(group, x, chosen(group, t), SMALL) for t in (*hopper.TILES, hopper.CLUSTERS[1])]
    cases.append(Case(other, turned, None, SMALL))
    packed = chosen(group, hopper.TILES[3])
    numbers = tuple((n, hopper.PACK if n in ("left", "right") else v) for n, v in packed.numbers)
    cases.append(Case(group, x, dataclasses.replace(packed, numbers=numbers), SMALL))
    numbers = tuple((n, hopper.GATHER if n in ("left", "right") else v) for n, v in packed.numbers)
    cases.append(Case(group, x, dataclasses.replace(packed, numbers=numbers, narrow=False), SMALL))
    first, *rest = (a.view(np.uint16) for a in _bits(cases))
    for i, a in enumerate(rest):
        assert np.array_equal(first, a), f"case {i + 1}"
    assert np.allclose(first.view(x[0].dtype).astype(np.float64), x[0].astype(np.float64) @ x[1].astype(np.float64), 0.02, 0.1)


def test_one_choice_for_other_sizes() -> None:
    """A choice made for some sizes is right for all that keep its divisors."""
    group = plain("bf16", "km", 48, 80, 112)
    choice = chosen(group, hopper.TILES[5])
    assert choice.divides == (("e0", 16), ("e1", 16), ("e2", 16))
    others = [plain("bf16", "km", *sizes) for sizes in ((16, 32, 64), (80, 160, 48), (144, 16, 32))]
    for other in others:
        assert canonicalise(other).function.key() == canonicalise(group).function.key()
    check_groups([Case(other, integers(other), choice, SMALL) for other in others])


# What goes wrong -> (a pattern in the text of a kernel, what stands there instead).
MISTAKES = {
    "fewer bytes are waited for": (r"(mbarrier_arrive_expect\(.*), (\d+)\)", r"\1, \2 - 128)"),
    "more bytes are waited for": (r"(mbarrier_arrive_expect\(.*), (\d+)\)", r"\1, \2 + 128)"),
    "the parity of full stages": (r"(mbarrier_wait\(full .*), (\w+)\)", r"\1, \2 ^ 1)"),
    "the parity of empty stages": (r"(mbarrier_wait\(empty .*), (\w+)\)", r"\1, \2 ^ 1)"),
    "nobody waits for a stage": (r"mbarrier_wait\(full .*", ""),
    "stages are filled too soon": (r"mbarrier_wait\(empty .*", ""),
    "a stage is given back too soon": (r"wgmma_wait_1\(\);", ""),
    "sums are read too soon": (r"wgmma_wait_0\(\);", ""),
    "no fence before products": (r"wgmma_fence\(\);", ""),
    "an arrival is forgotten": (r"mbarrier_arrive\(empty .*", ""),
    "arrivals are miscounted": (r"mbarrier_init\(empty, 8\)", "mbarrier_init(empty, 4)"),
    "rows of the other consumer": (r"(wgmma_bf16_n64_km\(sums, left \+ .*?) \* 64,", r"\1 * 64 % 4096,"),
    "columns a tile further": (r"(wgmma_bf16_n64_km\(.*)\);", r"\1 + 4096);"),
    "neighbours along the other dimension": (r"wgmma_bf16_n64_km", "wgmma_bf16_n64_kk"),
    "no barrier before chunks are written": (r"__syncwarp\(\);", "", 0),
    "no barrier before chunks are read": (r"__syncwarp\(\);", "", 1),
}


# The same of consumers that take turns, in clusters: blocks that take several tiles with few steps.
MISTAKES_OF_TURNS = {
    "turns are not waited for": (r"mbarrier_wait\(turns.*", ""),
    "the other's stages are not left out": (r"stage_\d+ = position_\d+ % 6;", ""),
    "arrivals at one block only": (r"mbarrier_arrive_cluster\((.*), 2\)", r"mbarrier_arrive_cluster(\1, 1)"),
    "a part of a tile is missing": (r"bulk_load_2d_part\(.*, 1, rank_\d+, 3\);", ""),
}


def test_mistakes_show() -> None:
    """The simulation is strict enough: each of these kernels fails, or gives something else, for some order of threads."""
    _all_show(plain("bf16", "km", 136, 64 * 5, 72), hopper.TILES[4], MISTAKES)


def test_mistakes_of_turns_show() -> None:
    _all_show(plain("bf16", "kk", 264, 72, 152), hopper.CLUSTERS[2], MISTAKES_OF_TURNS)


def _all_show(group: Function, tile: hopper.Tile, mistakes: dict[str, Any]) -> None:
    x = integers(group)
    (expected,) = exact_interpret(group, x)
    prepared, texts = [], []
    for number, (pattern, other, *which) in enumerate(mistakes.values()):
        p = prepare(Case(group, x, chosen(group, tile), SMALL), number)
        text = cuda_text(p.kernels, SMALL)
        places = list(re.finditer(pattern, text))
        assert places, pattern
        for m in reversed([places[which[0]]] if which else places):
            text = text[: m.start()] + m.expand(other) + text[m.end() :]
        head, start, kernel = text.partition('extern "C"')
        texts.append((head if number == 0 else "") + start + kernel)
        prepared.append(p)
    right = prepare(Case(group, x, chosen(group, tile), SMALL), len(mistakes))
    texts.append("".join(cuda_text(right.kernels, SMALL).partition('extern "C"')[1:]))
    built = library("".join(texts))
    assert not any(_goes_wrong(right, built, expected, seed) for seed in range(6))
    for name, p in zip(mistakes, prepared, strict=True):
        assert any(_goes_wrong(p, built, expected, seed) for seed in range(6)), f"nothing shows that {name}"


def _goes_wrong(p: Prepared, built: Any, expected: Array, seed: int) -> bool:
    try:
        (got,) = run_prepared(p, built, seed)
    except SimulationError:
        return True
    return bool(difference(expected, got))


def test_choices_follow_the_sizes() -> None:
    def tile_of(group: Function) -> tuple[int, ...]:
        c = canonicalise(group)
        found = choose(c.function, {n: int(d) for n, d in c.extents}, HOPPER)
        return tuple(found.number(n) for n in ("rows", "columns", "paired"))

    assert tile_of(plain("bf16", "km", 8192, 8192, 8192)) == (128, 256, 0)
    # A long epilogue behind a short sum runs beside the products of the next tile.
    assert tile_of(dot("bf16[4096, 1024]", "bf16[1024, 4096]", epilogue=gelu)) == (128, 128, 1)
    assert tile_of(plain("bf16", "km", 8, 512, 512)) == (64, 64, 0)


def test_a_wrong_index_in_front_is_reported() -> None:
    """Rows of a table, looked up on their way to be packed."""
    b = Builder("group")
    table, rows, w = (b.param(TensorType.parse(t)) for t in ("bf16[50, 24]", "i32[20]", "bf16[24, 16]"))
    looked_up = b.emit("gather", table, rows, axis=0)
    group = b.build([b.emit("dot", looked_up, w, lhs_contract=(1,), rhs_contract=(0,))])
    x = integers(group)
    x[1] = np.arange(20, dtype=np.int32) - 5
    check_groups([Case(group, x, None, SMALL)])
    x[1][7] = 50
    p = prepare(Case(group, x, None, SMALL))
    with pytest.raises(Reported) as caught:
        run_prepared(p, library(cuda_text(p.kernels, SMALL)))
    assert caught.value.value == 50 and caught.value.operation is not None and caught.value.operation.name == "gather"
