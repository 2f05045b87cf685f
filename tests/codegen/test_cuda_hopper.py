"""Products by wgmma, in simulation: exact on small integers, the same bits for every tile, way and order of threads."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphc.codegen.c.prelude import sections
from graphc.codegen.canonical import canonicalise
from graphc.codegen.cuda import hopper
from graphc.codegen.cuda.choice import Choice
from graphc.codegen.cuda.compiler import find_nvcc
from graphc.codegen.cuda.lower import choose
from graphc.codegen.cuda.simulate import SimulationError, compiler
from graphc.codegen.cuda.target import HOPPER
from graphc.ir.function import Builder, Function, Value
from graphc.ir.types import TensorType

from tests.codegen.compiled import difference
from tests.codegen.contractions import biased, conv_attrs, conv_group
from tests.codegen.device import (
    Case,
    Prepared,
    Reported,
    check_compiles,
    check_groups,
    cuda_text,
    library,
    prepare,
    run_prepared,
)
from tests.codegen.products import gelu
from tests.equality.oracle import exact_interpret

Array = np.ndarray[Any, Any]
SMALL = dataclasses.replace(HOPPER, multiprocessors=2)  # so that blocks take several tiles


def dot(
    lhs: str, rhs: str, left: Sequence[int] = (1,), right: Sequence[int] = (0,), batch: int = 0, precision: str = "",
    epilogue: Any = None,
) -> Function:
    b = Builder("group")
    x, y = b.param(TensorType.parse(lhs)), b.param(TensorType.parse(rhs))
    both = tuple(range(batch))
    root = b.emit(
        "dot", x, y, lhs_batch=both, rhs_batch=both, lhs_contract=tuple(left), rhs_contract=tuple(right), precision=precision
    )
    return b.build(epilogue(b, root) if epilogue else [root])


def integers(group: Function, seed: int = 0, most: int = 3) -> list[Array]:
    """Small enough that every sum is exact in any order."""
    rng = np.random.default_rng(seed)
    return [rng.integers(-most, most + 1, [int(d) for d in p.type.shape]).astype(p.type.dtype.numpy) for p in group.params]


def reals(group: Function, seed: int = 0) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal([int(d) for d in p.type.shape]).astype(p.type.dtype.numpy) for p in group.params]


def chosen(group: Function, tile: hopper.Tile, target: Any = SMALL) -> Choice:
    """The choice for a group, with another tile."""
    c = canonicalise(group)
    found = choose(c.function, {n: int(d) for n, d in c.extents}, target)
    assert found.form == hopper.FORM
    return hopper.tile_choice(
        tile, (found.number("left"), found.number("right")), found.number("example"), found.divides, found.narrow,
        bool(found.number("packed")),
    )  # fmt: skip


def case(group: Function, tile: hopper.Tile | None = None, inputs: list[Array] | None = None) -> Case:
    return Case(group, integers(group) if inputs is None else inputs, chosen(group, tile) if tile else None, SMALL)


def ways(p: Prepared) -> tuple[int, int]:
    return p.choice.number("left"), p.choice.number("right")


MAJORS = {
    "kk": ("[{m}, {k}]", "[{n}, {k}]", (1,), (1,)),
    "km": ("[{m}, {k}]", "[{k}, {n}]", (1,), (0,)),
    "mk": ("[{k}, {m}]", "[{n}, {k}]", (0,), (1,)),
    "mm": ("[{k}, {m}]", "[{k}, {n}]", (0,), (0,)),
}


def plain(dtype: str, major: str, m: int, k: int, n: int, precision: str = "") -> Function:
    left, right, a, b = MAJORS[major]
    return dot(dtype + left.format(m=m, k=k, n=n), dtype + right.format(m=m, k=k, n=n), a, b, precision=precision)


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


def test_descriptors_are_those_of_the_header(tmp_path: Path) -> None:
    """hopper.h's own arithmetic, compiled for the CPU: what its steps are given for tiles at shared address 0x12400 and 0x4000."""
    text = "".join(sections("cuda")[name] for name in ("wgmma_descriptor", "WGMMA_TILE")).replace("INLINE", "static")
    source = tmp_path / "descriptors.cpp"
    source.write_text(
        "#include <cstdio>\nstatic unsigned shared_address(const void *p) { return (unsigned)(size_t)p; }\n"
        "template <int A, int B> static void step(float *, unsigned long long a, unsigned long long b) "
        '{ printf("%llx %llx\\n", a, b); }\n'
        + text
        + "WGMMA_TILE(kk, step, 0, 0)\nWGMMA_TILE(mm, step, 1, 1)\n"
        "int main() { kk(nullptr, (void *)0x12400, (void *)0x4000); mm(nullptr, (void *)0x12400, (void *)0x4000); }\n"
    )
    subprocess.run([compiler(), str(source), "-o", str(tmp_path / "descriptors")], check=True)
    out = subprocess.run([tmp_path / "descriptors"], check=True, capture_output=True, text=True).stdout
    # PTX ISA, matrix descriptor: bits 0-13 start, 16-29 leading, 32-45 stride offset, all in 16 bytes; 62-63 swizzle.
    found = [tuple(int(x, 16) for x in line.split()) for line in out.splitlines()]
    for line, (step, leading) in zip(found, [(32, 16)] * 4 + [(2048, 8192)] * 4, strict=True):
        i = found.index(line) % 4
        for start, d in zip((0x12400, 0x4000), line, strict=True):
            assert d == (start + i * step) >> 4 | leading >> 4 << 16 | 1024 >> 4 << 32 | 1 << 62


def _compiles(cases: list[Case]) -> None:
    prepared = [prepare(c, i) for i, c in enumerate(cases)]
    kernels = [k for p in prepared for k in p.kernels]
    usage = check_compiles([cuda_text(kernels, HOPPER)], ("sm_90a",), hot=[k.name for k in kernels])
    for p in prepared:
        found = usage[p.kernels[-1].name, "sm_90a"]
        grid = p.kernels[-1].grid
        assert grid is not None
        assert found.registers * grid.threads * grid.resident <= 65536
        # setmaxnreg shares out what the block was started with, which must be all that it can have.
        many = "registers_increase" in cuda_text(p.kernels[-1:], HOPPER)
        assert not many or (grid.threads, found.registers) == (384, 168)


PATCHES = conv_group("bf16[8, 64, 56, 56]", "bf16[64, 64, 3, 3]", padding=((1, 1), (1, 1)))


def test_the_compiler_spills_nothing() -> None:
    large = dot("f16[1024, 512]", "f16[512, 1024]", epilogue=gelu)
    _compiles([
        case(plain("bf16", "km", 1024, 512, 1024), hopper.TILES[0], []),
        case(large, hopper.TILES[2], []),
        case(plain("f32", "kk", 1024, 512, 1024, "tf32"), hopper.TILES[5], []),
        case(PATCHES, hopper.TILES[3], []),
        case(plain("bf16", "kk", 1024, 512, 1024), hopper.CLUSTERS[0], []),
    ])  # fmt: skip


def test_the_compiler_says_nothing_of_waits_or_registers(tmp_path: Path) -> None:
    """It warns where it waits for each wgmma by itself (C7510 and the like), or does not follow setmaxnreg (C7508)."""
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("CUDA C is not compiled here: nvcc was not found")
    heads = "bf16[4, 16, 1024, 1024]"
    groups = [dot(heads, heads, (2,), (2,), 2), dot("bf16[4096, 1024]", "bf16[1024, 4096]", epilogue=gelu)]
    cases = [case(g, t, []) for g, t in zip(groups, (hopper.CLUSTERS[1], hopper.TILES[2]), strict=True)]
    # 64-bit positions take the most registers.
    cases = [dataclasses.replace(c, choice=dataclasses.replace(c.choice, narrow=False)) for c in cases if c.choice]
    kernels = [k for i, c in enumerate(cases) for k in prepare(c, i).kernels]
    (tmp_path / "kernels.cu").write_text(cuda_text(kernels, HOPPER))
    command = [nvcc, "-cubin", "-gencode=arch=compute_90a,code=sm_90a", "-diag-suppress=177", "kernels.cu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not (done.stdout + done.stderr).strip(), done.stdout + done.stderr


@pytest.mark.slow
def test_the_compiler_spills_nothing_in_any_form() -> None:
    cases = []
    for tile in (*hopper.TILES, *hopper.CLUSTERS):
        cases += [case(plain("bf16", major, 1024, 512, 1024), tile, []) for major in MAJORS]
        cases.append(case(dot("f16[1000, 504]", "f16[504, 1001]", epilogue=gelu), tile, []))
        cases.append(case(dot("f16[1024, 512]", "f16[512, 1024]", epilogue=gelu), tile, []))
        cases.append(case(plain("f32", "kk", 1024, 512, 1024, "tf32"), tile, []))
        if tile.sums <= 64 and tile.cluster == 1:
            cases.append(case(PATCHES, tile, []))
    _compiles(cases)


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


PRODUCER = """\
for (int step = 0; step < steps; ++step) {
    const int k = step * 64;
    const int t = parity ^ 1;
    mbarrier_wait(empty + stage, t);
    mbarrier_arrive_expect(full + stage, 16384);
    const int t = stage * 4096;
    bulk_load_2d(left + t, &left_map, full + stage, k, m0);
    bulk_load_2d(right + t, &right_map, full + stage, n0, k);
    const bool t = stage == 4;
    parity = t ? t : parity;
    stage = t ? 0 : stage + 1;
}
"""
CONSUMER = """\
for (int step = 0; step < steps; ++step) {
    mbarrier_wait(full + stage, parity);
    wgmma_fence();
    wgmma_bf16_n64_km(sums, left + (stage * 64 + consumer * 64) * 64, right + stage * 4096);
    wgmma_commit();
    wgmma_wait_1();
    if (thread % 32 == 0 && step > 0) {
        mbarrier_arrive(empty + last);
    }
    last = stage;
    const bool t = stage == 4;
    parity = t ? parity ^ 1 : parity;
    stage = t ? 0 : stage + 1;
}
"""


def test_the_text_of_a_product() -> None:
    """Its two inner loops, without the numbers of names."""
    p = prepare(case(plain("bf16", "km", 72, 136, 40), hopper.TILES[6]))
    text = cuda_text(p.kernels, HOPPER)
    assert "asm" not in text[text.index('extern "C"') :]
    plainly = re.sub(r"\bt\d+\b", "t", re.sub(r"\b(?!wgmma)([a-z]\w*)_\d+\b", r"\1", text))
    lines = [line.strip() for line in plainly.splitlines()]
    for expected in (PRODUCER, CONSUMER):
        wanted = [line.strip() for line in expected.splitlines()]
        assert any(lines[i : i + len(wanted)] == wanted for i in range(len(lines))), plainly
