"""Attention on a device: by fma the interpreter's bits, on tensor cores near them; what the kernels cost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from graphc.codegen.c.cuda import shared_bytes
from graphc.codegen.cuda.target import AMPERE, HOPPER, Target
from graphc.codegen.fuse import fuse
from graphc.ir.function import Builder
from graphc.ir.interpret import interpret
from graphc.ir.types import TensorType

from tests.codegen.attention_cases import Case as Sizes
from tests.codegen.attention_cases import projected
from tests.codegen.compiled import difference
from tests.codegen.device import (
    Case,
    check_compiles,
    check_groups,
    cuda_text,
    library,
    prepare,
    run_prepared,
)

EXACT = [
    # B, H, Hk, T, S, D, E
    Sizes((2, 4, 2, 65, 67, 5, 8)),
    Sizes((1, 2, 1, 70, 130, 17, 3), causal=True),
    Sizes((1, 2, 2, 130, 70, 16, 24), causal=True, kind="bfloat16", precision="exact"),
    Sizes((1, 1, 1, 7, 65, 33, 9), kind="float64", mask=("bool", (1, 1, 7, 65))),
    Sizes((1, 2, 1, 20, 40, 8, 72), kind="float16", precision="exact", mask=("added", (1, 2, 1, 40))),
    Sizes((1, 2, 2, 3, 0, 4, 4)),
]
MORE_EXACT = [Sizes((1, 1, 1, 1, 1, 1, 1)), Sizes((1, 1, 1, 3, 66, 200, 100)), Sizes((1, 3, 1, 40, 70, 256, 256), kind="float64")]


def case(sizes: Sizes, gradient: bool, **options: object) -> Case:
    return Case(sizes.function(gradient), sizes.args(gradient), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "gradient"])
def test_by_fma_it_gives_the_interpreters_bits(gradient: bool) -> None:
    check_groups([case(s, gradient) for s in EXACT], seeds=(0, 1))


@pytest.mark.slow
@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "gradient"])
def test_more_sizes_by_fma(gradient: bool) -> None:
    check_groups([case(s, gradient) for s in MORE_EXACT], seeds=(0,))


@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "gradient"])
def test_infinities_and_nan(gradient: bool) -> None:
    sizes = Sizes((1, 2, 2, 66, 70, 4, 4), causal=True)
    args = sizes.args(gradient)
    args[0][0, 0, 3, 1], args[1][0, 0, 9, 2], args[2][0, 1, 60, 0], args[2][0, 0, 69, 1] = np.inf, np.nan, -np.inf, np.inf
    if gradient:
        args[6][0, 1, 65, 2], args[4][0, 1, 2], args[5][0, 1, 50] = np.inf, -np.inf, np.nan
    check_groups([Case(sizes.function(gradient), args)], seeds=(0,))


TENSOR = [
    Sizes((2, 4, 2, 65, 67, 5, 8), kind="bfloat16"),
    Sizes((1, 2, 1, 70, 130, 17, 3), causal=True, kind="float16"),
    Sizes((1, 1, 1, 7, 65, 24, 16), kind="bfloat16", mask=("bool", (1, 1, 7, 65))),
    Sizes((1, 2, 1, 20, 40, 8, 24), kind="float16", mask=("added", (1, 2, 1, 40))),
    Sizes((1, 2, 1, 9, 66, 8, 16), precision="bf16"),
]
LARGE = [
    Sizes((1, 1, 1, 1, 1, 1, 1), kind="bfloat16"),
    Sizes((1, 2, 2, 3, 0, 8, 8), kind="float16"),
    Sizes((1, 2, 2, 130, 70, 64, 64), causal=True, kind="bfloat16"),
    Sizes((1, 1, 1, 150, 200, 128, 128), kind="float16", causal=True),
    Sizes((1, 1, 1, 70, 80, 256, 200), kind="bfloat16"),
]


def bounds(sizes: Sizes, gradient: bool) -> list[np.ndarray]:
    """How far each result may be from the exact one.

    Weights and slopes are rounded to the operands' type before they are summed: an error of u times the sum of the absolute terms. Both
    results, that of the interpreter too, are rounded once more. Everything else is of the order of float32's rounding, of which there are less than 2000.
    """
    args = sizes.args(gradient)
    mask = args[7 if gradient else 4 :]
    q, k, v = (a.astype(np.float64) for a in args[:3])
    group = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, group, 1), np.repeat(v, group, 1)
    scale = float(args[3])
    t = q @ k.swapaxes(2, 3) * scale
    if mask:
        t = np.where(mask[0], t, -np.inf) if mask[0].dtype == bool else t + mask[0].astype(np.float64)
    if sizes.causal:
        t = np.where(np.tri(*t.shape[2:], dtype=bool), t, -np.inf)
    u = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-8}[sizes.kind] + 2000 * 2.0**-24
    # Below the least normal float16 an error is absolute.
    tiny = 2.0**-25 / u if sizes.kind == "float16" else 0.0
    if not gradient:
        top = t.max(-1, keepdims=True, initial=-1e30)
        p = np.exp(t - top)
        p /= np.maximum(p.sum(-1, keepdims=True), 1e-30)
        size = (p + tiny) @ np.abs(v)
        return [3 * u * size + 1e-7, np.full(t.shape[:3], 2e-5)]
    lse, delta, dout = (a.astype(np.float64) for a in args[4:7])
    p = np.exp(t - np.where(lse == -np.inf, 0, lse)[..., None])
    ds = p * (np.abs(np.abs(dout) @ np.abs(v).swapaxes(2, 3)) * 2000 * 2.0**-24 / u + np.abs(dout @ v.swapaxes(2, 3) - delta[..., None]))
    p, ds = p + tiny, ds + tiny

    def of_keys(x: np.ndarray) -> np.ndarray:
        return x.reshape(x.shape[0], x.shape[1] // group, group, *x.shape[2:]).sum(2)

    sums = [ds @ np.abs(k) * abs(scale), of_keys(ds.swapaxes(2, 3) @ np.abs(q)) * abs(scale), of_keys(p.swapaxes(2, 3) @ np.abs(dout))]
    return [3 * u * x + 1e-7 for x in sums]


def near(sizes: Sizes, gradient: bool, results: list[np.ndarray]) -> None:
    f, args = sizes.function(gradient), sizes.args(gradient)
    for i, (want, got, bound) in enumerate(zip(interpret(f, args), results, bounds(sizes, gradient), strict=True)):
        with np.errstate(invalid="ignore"):
            off = np.where(want == got, 0, np.abs(want.astype(np.float64) - got.astype(np.float64)))
        assert (off <= bound).all(), f"{sizes}: result {i} is off by {np.nanmax(off / bound)} bounds"


def results_of(cases: list[Case], seed: int = 0) -> list[list[np.ndarray]]:
    prepared = [prepare(c, i) for i, c in enumerate(cases)]
    built = library(cuda_text([k for p in prepared for k in p.kernels], cases[0].target))
    return [run_prepared(p, built, seed) for p in prepared]


WAYS = pytest.mark.parametrize(
    ("gradient", "target"), [(False, AMPERE), (True, AMPERE), (False, HOPPER), (True, HOPPER)],
    ids=["forward", "gradient", "wgmma forward", "wgmma gradient"],
)


@WAYS
def test_on_tensor_cores_it_is_near(gradient: bool, target: Target) -> None:
    cases = [case(s, gradient, target=target) for s in TENSOR]
    for sizes, results in zip(TENSOR, results_of(cases), strict=True):
        near(sizes, gradient, results)


@pytest.mark.slow
@WAYS
def test_more_sizes_on_tensor_cores(gradient: bool, target: Target) -> None:
    for sizes in LARGE:
        near(sizes, gradient, results_of([case(sizes, gradient, target=target)])[0])


SCHEDULES = {
    "mma": [(("tall", 16), ("stages", 1)), (("tall", 32), ("stages", 2))],
    "wgmma": [
        (("consumers", 1), ("stages", 2), ("viewed", 1)),
        (("consumers", 2), ("stages", 3), ("viewed", 1)),
        (("consumers", 2), ("stages", 2), ("viewed", 0)),
    ],
}


@pytest.mark.parametrize(
    ("gradient", "target"), [pytest.param(False, AMPERE, marks=pytest.mark.slow), (True, AMPERE), (False, HOPPER), (True, HOPPER)]
)
def test_every_schedule_and_order_of_threads_gives_the_same_bits(gradient: bool, target: Target) -> None:
    sizes = Sizes((1, 2, 1, 70, 140, 8, 16), kind="bfloat16", causal=True)
    first = prepare(Case(sizes.function(gradient), [], None, target)).choice
    choices = [replace(first, numbers=numbers) for numbers in SCHEDULES[first.form.split()[1]]]
    assert sorted(dict(first.numbers)) == sorted(dict(choices[0].numbers))
    cases = [case(sizes, gradient, target=target, choice=c) for c in choices]
    expected, *others = results_of(cases) + results_of(cases[1:], seed=1) + results_of(cases[1:2], seed=2)
    for other in others:
        for a, b in zip(expected, other, strict=True):
            assert not difference(a, b)


def test_the_arithmetic_follows_from_type_precision_and_target() -> None:
    def form(sizes: Sizes, target: Target) -> str:
        return prepare(Case(sizes.function(False), [], None, target)).choice.form

    shape = (1, 2, 2, 16, 16, 8, 8)
    assert form(Sizes(shape), AMPERE) == form(Sizes(shape), HOPPER) == "attention fma"
    assert form(Sizes(shape, kind="bfloat16", precision="exact"), HOPPER) == "attention fma"
    assert form(Sizes(shape, kind="bfloat16"), AMPERE) == "attention mma"
    for changed in ((9, 2, 1, 1000, 3, 8, 8), (1, 1, 1, 1, 1, 7, 129), (8, 32, 32, 4096, 4096, 128, 128)):
        assert form(Sizes(changed, kind="bfloat16"), HOPPER) == "attention wgmma"
    assert form(Sizes(shape, precision="bf16"), AMPERE) == "attention mma"
    assert form(Sizes(shape, kind="float16"), Target(75)) == "attention fma"


@pytest.mark.parametrize("target", [Target(86, 82, 99 << 10, 6 << 20), AMPERE, HOPPER], ids=lambda t: t.arch)
def test_tiles_of_large_heads_fit_into_shared_memory(target: Target) -> None:
    for head in (64, 128, 192, 256):
        for gradient in (False, True):
            for kind in ("bfloat16", "float32"):
                f = Sizes((8, 16, 16, 1024, 1024, head, head), kind=kind).function(gradient)
                for kernel in prepare(Case(f, [], None, target)).kernels:
                    assert sum(shared_bytes(kernel)) <= target.shared, (head, gradient, kind, kernel.name)


def test_layout_in_front_is_copied_as_it_lies() -> None:
    b = Builder("projected")
    x = b.param(TensorType.parse("bf16[2, 70, 144]"))
    f = b.build([projected(b, x)])
    group = next(c.attrs["function"] for c in fuse(f).entry.ops if any(o.name == "attention" for o in c.attrs["function"].ops))
    text = cuda_text(prepare(Case(group, [], None, AMPERE)).kernels, AMPERE)
    assert "copy_async_16(queries" in text and "copy_async_16(values" in text
    value = np.random.default_rng(1).standard_normal((2, 70, 144)).astype(group.params[0].type.dtype.numpy)
    results = [results_of([Case(group, [value], None, target)])[0][0] for target in (AMPERE, HOPPER)]
    assert dict(prepare(Case(group, [], None, HOPPER)).choice.numbers)["viewed"] == 1
    exact = interpret(group, [value])[0].astype(np.float64)
    for got in results:
        # Values are below 4.5 and weights add up to 1; see `bounds`.
        assert np.abs(got.astype(np.float64) - exact).max() <= 3 * 2.0**-8 * 4.5


HOT = [
    Sizes((8, 8, 8, 4096, 4096, 64, 64), causal=True, kind="bfloat16"),
    Sizes((8, 8, 8, 4096, 4096, 128, 128), kind="bfloat16"),
    Sizes((8, 8, 2, 2048, 2048, 128, 128), causal=True, kind="float16"),
    Sizes((8, 8, 8, 2048, 2048, 256, 256), causal=True, kind="bfloat16"),
    Sizes((8, 8, 8, 1024, 1024, 64, 64), causal=True),
    Sizes((8, 8, 8, 1024, 1024, 128, 128)),
]


@pytest.mark.parametrize("number", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, len(HOT)))])
def test_hot_kernels_keep_their_registers(number: int) -> None:
    for target in (AMPERE, HOPPER):
        groups = [HOT[number].function(gradient) for gradient in (False, True)]
        texts = [cuda_text(prepare(Case(g, [], None, target), number).kernels, target) for g in groups]
        check_compiles(texts, (target.arch,), hot=("attention",))
