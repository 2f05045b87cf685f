"""Random products and convolutions on the device, in simulation: to the bit by fma, exact sums on tensor cores."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from graphc.codegen.canonical import canonicalise
from graphc.codegen.cuda.products.contract import candidates
from graphc.codegen.cuda.target import AMPERE, Target
from graphc.ir.function import Function
from graphc.ir.registry import IRTypeError

from tests.codegen.contractions import biased, conv_group
from tests.codegen.device import Case, check_compiles, check_groups, cuda_text, prepare
from tests.codegen.products import case, gelu, product_of

SIZES = (1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 24, 31, 32, 33, 40, 64, 65)
DEPTHS = (1, 2, 3, 8, 16, 33, 64, 130)
LONG = (256, 257, 300, 520)


def arithmetic(r: random.Random) -> tuple[str, str, bool]:
    """Element type, precision, and whether tensor cores are asked for."""
    dtype, precision = r.choice(
        [("f32", ""), ("f32", ""), ("f64", ""), ("i32", ""), ("bf16", "exact"), ("bf16", ""), ("f16", ""), ("f32", "tf32"), ("f32", "bf16")]
    )
    return dtype, precision, precision in ("tf32", "bf16") or (dtype in ("bf16", "f16") and not precision)


def typed(dtype: str, shape: list[int]) -> str:
    return f"{dtype}[{', '.join(map(str, shape))}]"


def random_dot(r: random.Random) -> tuple[Function, bool] | None:
    dtype, precision, tensor = arithmetic(r)
    batch = [r.choice((1, 2, 3)) for _ in range(r.choice((0, 0, 1, 2)))]
    depth = [r.choice(LONG)] if r.random() < 0.3 else [r.choice(DEPTHS) for _ in range(r.choice((1, 1, 2)))]
    sides = [[r.choice(SIZES) for _ in range(r.choice((0, 1, 1, 2)))] for _ in range(2)]
    if math.prod([*batch, *depth, *sides[0], *sides[1]]) > 4_000_000:
        return None
    shapes, contracted = [], []
    for free in sides:
        first = r.random() < 0.5
        shapes.append(typed(dtype, batch + (depth + free if first else free + depth)))
        start = len(batch) + (0 if first else len(free))
        contracted.append([start + i for i in range(len(depth))])
    rank = len(batch) + len(sides[0]) + len(sides[1])
    after = r.choice([None, biased(rank - 1), gelu]) if rank and dtype != "i32" else None
    made = product_of(*shapes, None, *contracted, len(batch), precision, after)
    return made, tensor


def random_conv(r: random.Random) -> tuple[Function, bool] | None:
    dtype, precision, tensor = arithmetic(r)
    rank, groups = r.choice((1, 2, 2, 2, 3)), r.choice((1, 1, 1, 2, 4))
    parts = r.choice((2, 4)) if groups == 1 and r.random() < 0.2 else 1
    examples, channels = r.choice((1, 2, 3)) * parts, r.choice((1, 2, 3, 4, 8, 16))
    outputs = groups * parts * r.choice((1, 2, 4, 8, 16, 20))
    x = [examples, channels * groups, *(r.choice((1, 3, 5, 8, 9, 12)) for _ in range(rank))]
    w = [outputs, channels, *(r.choice((1, 1, 2, 3, 3, 5)) for _ in range(rank))]

    def each(*among: Any) -> tuple[Any, ...]:
        return tuple(r.choice(among) for _ in range(rank))

    after = r.choice([None, None, biased(1), gelu]) if dtype != "i32" else None
    padding = tuple(zip(each(0, 0, 1, 2, -1), each(0, 1, 2), strict=True))
    try:
        made = conv_group(
            typed(dtype, x), typed(dtype, w), after, strides=each(1, 1, 2), padding=padding, lhs_dilation=each(1, 1, 1, 2),
            rhs_dilation=each(1, 1, 1, 2), groups=groups, batch_groups=parts, precision=precision,
        )  # fmt: skip
    except IRTypeError:  # the kernel is larger than what it reads
        return None
    return (made, tensor) if all(math.prod(int(d) for d in t.shape) for t in made.result_types) else None


def random_cases(seed: int, count: int) -> list[Case]:
    r = random.Random(seed)
    targets = [Target(80, r.choice((2, 8, 108)), 163 << 10, 1 << 20), Target(75, 4, 64 << 10), Target(90, r.choice((2, 132)))]
    cases: list[Case] = []
    while len(cases) < count:
        found = r.choice((random_dot, random_conv))(r)
        if found is not None:
            group, tensor = found
            target = r.choice(targets[::2] if tensor else targets)
            # Where the order is the hardware's, sums that are exact in any order.
            cases.append(case(group, seed=len(cases), integers=tensor, target=target))
    return cases


def test_random_products() -> None:
    check_groups(random_cases(0, 12), seeds=(5,))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 9))
def test_many_random_products(seed: int) -> None:
    check_groups(random_cases(seed, 60), seeds=(seed,))


@pytest.mark.slow
def test_no_schedule_spills_registers() -> None:
    """Every tile of the tables, for products that lie well and for some that do not."""
    ones = ((1, 1), (1, 1))
    groups = [
        product_of("f32[1024, 1024]", "f32[1024, 1024]", epilogue=gelu),
        product_of("f32[1024, 1000]", "f32[1000, 1030]"),
        product_of("f32[1024, 1001]", "f32[1030, 1001]", lhs_contract=(1,), rhs_contract=(1,)),
        product_of("f32[16, 200, 1024]", "f32[16, 1024, 100]", None, (2,), (1,), 1, "", gelu),
        product_of("f64[500, 500]", "f64[500, 500]"),
        product_of("bf16[500, 500]", "bf16[500, 510]", epilogue=gelu),
        product_of("f32[500, 500]", "f32[500, 510]", precision="tf32"),
        conv_group("f32[32, 128, 56, 56]", "f32[128, 128, 3, 3]", biased(1), padding=ones),
        conv_group("bf16[32, 128, 56, 56]", "bf16[128, 128, 3, 3]", biased(1), padding=ones),
        conv_group("bf16[32, 3, 56, 56]", "bf16[128, 3, 3, 3]", biased(1), padding=ones),
    ]
    texts = []
    for group in groups:
        canonical = canonicalise(group)
        sizes = {name: int(d) for name, d in canonical.extents}
        for choice in candidates(canonical.function, sizes, AMPERE):
            texts.append(cuda_text(prepare(Case(group, [], choice, AMPERE), len(texts)).kernels, AMPERE))
    found = check_compiles(texts, hot=("contract", "finish", "pad", "pack"))
    assert len(found) >= 2 * len(texts)
