"""Device products by fma: the interpreter's bits for every shape, layout, epilogue and tile."""

from __future__ import annotations

import re

import numpy as np
import pytest
from graphc.codegen.cuda.target import AMPERE, HOPPER, Target
from graphc.ir.function import Builder, Value
from graphc.ir.types import F16, F32, TensorType

from tests.codegen.contractions import biased, dot_group
from tests.codegen.device import Case, Reported, check_compiles, check_groups, cuda_text, prepare, run_group
from tests.codegen.products import case, cast_to, fma_choices, gelu, product_of, same_result

SMALL_DEVICE = Target(80, 2, 163 << 10, 1 << 20)


def test_shapes() -> None:
    shapes = [(1, 1, 1), (1, 5, 3), (5, 7, 1), (33, 8, 65), (64, 16, 64), (129, 5, 130), (17, 31, 129), (2, 64, 300), (300, 40, 3)]
    groups = [dot_group(f"f32[{m}, {k}]", f"f32[{k}, {n}]", (1,), (0,)) for m, k, n in shapes]
    check_groups([case(g) for g in groups])


@pytest.mark.parametrize("depth", [1, 255, 256, 257, 600])
def test_blocks_of_k(depth: int) -> None:
    groups = [dot_group(f"f32[{m}, {depth}]", f"f32[{depth}, {n}]", (1,), (0,)) for m, n in ((20, 40), (1, 37), (50, 1))]
    cases = [case(g) for g in groups] + [case(g, target=SMALL_DEVICE) for g in groups]
    check_groups(cases, seeds=(0,))


def test_empty_sums_and_results() -> None:
    check_groups([case(dot_group("f32[5, 0]", "f32[0, 9]", (1,), (0,))), case(dot_group("f32[0, 4]", "f32[4, 9]", (1,), (0,)))])


def test_transposed_operands_and_batches() -> None:
    groups = [
        dot_group("f32[40, 70]", "f32[40, 36]", (0,), (0,)),
        dot_group("f32[36, 40]", "f32[28, 40]", (1,), (1,)),
        dot_group("f32[44, 33]", "f32[52, 44]", (0,), (1,)),
        dot_group("f32[3, 20, 24]", "f32[3, 24, 12]", (2,), (1,), batch=1),
        dot_group("f32[2, 3, 7, 5]", "f32[2, 3, 5, 6]", (3,), (2,), batch=2),
        dot_group("f32[6, 5, 9]", "f32[9, 5, 8]", (1, 2), (1, 0)),
        dot_group("f32[4, 5, 6]", "f32[6, 7, 3]", (2,), (0,)),
        dot_group("f32[30]", "f32[30]", (0,), (0,)),
        dot_group("f32[700]", "f32[700, 21]", (0,), (0,)),
    ]
    check_groups([case(g) for g in groups])


@pytest.mark.parametrize("dtype", ["f64", "i32", "u8", "i64", "f16", "bf16"])
def test_element_types(dtype: str) -> None:
    precision = "exact" if dtype in ("f16", "bf16") else ""
    groups = [product_of(f"{dtype}[21, 35]", f"{dtype}[35, 18]", precision=precision)]
    groups += [product_of(f"{dtype}[16, 300]", f"{dtype}[300, 16]", precision=precision)]
    check_groups([case(g) for g in groups])


def test_epilogues() -> None:
    groups = [
        dot_group("f32[37, 20]", "f32[20, 41]", (1,), (0,), epilogue=biased(1)),
        dot_group("f32[40, 20]", "f32[20, 48]", (1,), (0,), epilogue=biased(0)),
        dot_group("f32[70, 33]", "f32[33, 64]", (1,), (0,), epilogue=gelu),
        dot_group("f32[2, 19, 300]", "f32[2, 300, 20]", (2,), (1,), batch=1, epilogue=gelu),
        dot_group("f32[9, 20]", "f32[20, 12]", (1,), (0,), epilogue=cast_to(F16)),
        dot_group("f32[9, 20]", "f32[20, 12]", (1,), (0,), epilogue=lambda b, r: [b.emit("permute", r, axes=(1, 0))]),
    ]
    check_groups([case(g) for g in groups])


def scaled(b: Builder, x: Value, y: Value) -> tuple[Value, Value]:
    """Both operands computed: x * x cast up, and exp(-y)."""
    return b.emit("mul", x, x), b.emit("exp", b.emit("neg", y))


def padded_rows(b: Builder, x: Value, y: Value) -> tuple[Value, Value]:
    filler = b.param(x.type.with_shape(()))
    return b.emit("pad", x, filler, low=(1, 2), high=(3, 0), interior=(1, 0)), y


def test_producers() -> None:
    groups = [
        product_of("f32[30, 25]", "f32[25, 40]", scaled),
        product_of("f32[10, 25]", "f32[27, 40]", padded_rows),
        product_of("f16[10, 25]", "f16[25, 40]", lambda b, x, y: (b.emit("cast", x, dtype=F32), b.emit("cast", y, dtype=F32))),
        product_of("f32[25, 30]", "f32[40, 25]", lambda b, x, y: tuple(b.emit("permute", v, axes=(1, 0)) for v in (x, y))),
        product_of("f32[30]", "f32[30, 20]", lambda b, x, y: (b.emit("broadcast", x, shape=(8, 30), axes=(1,)), y)),
    ]
    check_groups([case(g) for g in groups])


def test_an_index_that_is_out_of_range_is_reported() -> None:
    b = Builder("group")
    table, where, w = (b.param(TensorType.parse(t)) for t in ("f32[10, 8]", "i32[20]", "f32[8, 12]"))
    rows = b.emit("gather", table, where, axis=0)
    group = b.build([b.emit("dot", rows, w, lhs_contract=(1,), rhs_contract=(0,))])
    given = case(group).inputs
    index = np.arange(20, dtype=np.int32) % 10
    check_groups([(group, [given[0], index, given[2]])])
    index[7] = 10
    with pytest.raises(Reported) as told:
        run_group(group, [given[0], index, given[2]])
    assert told.value.value == 10 and told.value.operation is not None and told.value.operation.name == "gather"


@pytest.mark.parametrize("layout", ["rows", "columns"])
@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_tiles_give_the_same_bits(layout: str, step: int) -> None:
    group = (
        dot_group("f32[70, 300]", "f32[300, 132]", (1,), (0,), epilogue=biased(1))
        if layout == "rows"
        else dot_group("f32[300, 68]", "f32[131, 300]", (0,), (1,), epilogue=biased(1))
    )
    choices = fma_choices(group, split=True)[layout == "rows" :: step]
    check_groups(same_result(group, choices), seeds=(1,))


@pytest.mark.slow
def test_every_tile_for_odd_sizes() -> None:
    cases = []
    for m, k, n in ((129, 513, 65), (33, 17, 257), (128, 256, 128)):
        group = dot_group(f"f32[{m}, {k}]", f"f32[{k}, {n}]", (1,), (0,))
        cases += same_result(group, fma_choices(group, split=k > 256))
    check_groups(cases, seeds=(0, 1, 2))


def test_hot_kernels_keep_their_registers() -> None:
    texts = {}
    for number, target in enumerate((Target(90), AMPERE)):
        group = dot_group("f32[1024, 1024]", "f32[1024, 1024]", (1,), (0,), epilogue=gelu)
        p = prepare(Case(group, [], None, target), number)
        texts[f"{number}"] = cuda_text(p.kernels, target)
    found = check_compiles(texts, hot=("contract",))
    assert found


GOLDEN = """\
    const int item = block * 256 + thread;
    if (item < e0 * e2) {
        const int column = item % e2;
        const int rest = item / e2;
        const int row = rest % e0;
        float total = 0.0f;
        for (int start = 0; start < e1; start += 256) {
            float acc = 0.0f;
            for (int k = start; k < (start + 256 < e1 ? start + 256 : e1); ++k) {
                acc = fmaf(p0[e1 * row + k], p1[column + e2 * k], acc);
            }
            total = start == 0 ? acc : total + acc;
        }
        const float value = total;
        r0[e2 * row + column] = value;
    }
}
"""


def test_the_text_of_a_direct_product() -> None:
    p = prepare(Case(dot_group("f32[30, 2]", "f32[2, 20]", (1,), (0,)), []))
    text = re.sub(r"\b([a-z]\w*)_\d+\b", r"\1", cuda_text(p.kernels))
    assert text[text.index("    const int item") :] == GOLDEN


def test_one_choice_for_other_sizes() -> None:
    """A choice made for some sizes is right for all that keep its divisors: for longer sums too."""
    group = dot_group("f32[40, 32]", "f32[32, 48]", (1,), (0,), epilogue=biased(1))
    others = [
        dot_group(f"f32[{m}, {k}]", f"f32[{k}, {n}]", (1,), (0,), epilogue=biased(1))
        for m, k, n in ((16, 48, 32), (8, 608, 16), (72, 272, 144))
    ]
    choices = [c for c in fma_choices(group, split=True) if (c.number("rows"), c.number("columns")) == (32, 32)]
    check_groups([case(g, choice) for g in others for choice in choices], seeds=(0,))


def test_choices_follow_the_sizes() -> None:
    def tile_of(m: int, k: int, n: int, target: Target = HOPPER) -> tuple[int, int, int]:
        found = prepare(Case(dot_group(f"f32[{m}, {k}]", f"f32[{k}, {n}]", (1,), (0,)), [], None, target)).choice
        return found.number("rows"), found.number("columns"), found.number("split")

    assert tile_of(4096, 4096, 4096) == (128, 128, 0)
    assert tile_of(1, 4096, 4096) == (1, 128, 1)
    assert tile_of(4096, 4096, 1) == (128, 1, 1)
    # Few tiles and a long sum: blocks of k over the grid.
    assert tile_of(768, 16384, 768)[2] == 1
    # Where shared memory is short the largest tiles do not fit.
    assert tile_of(4096, 4096, 4096, Target(75, 40, 64 << 10)) in ((128, 64, 0), (64, 128, 0))
