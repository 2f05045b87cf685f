"""Other sizes run at once with the kernels that are there; kernels of their own are compiled when they come again."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from graphc.codegen import borrow, cache, changing, kernels
from graphc.codegen.program import BORROWED_RUNS, Program, compile_function
from graphc.codegen.report import Report, collect
from graphc.ir.function import Function
from graphc.ir.interpret import interpret
from graphc.ir.text import parse_function


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No kernels in memory or on disk."""
    monkeypatch.setenv("GRAPHC_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("GRAPHC_COSTS", "default")  # measuring them would compile too
    for module, name in ((kernels, "_memory"), (kernels, "_linked"), (borrow, "_loaded"), (changing, "_families")):
        monkeypatch.setattr(module, name, {})
    cache.forget()
    yield
    cache.forget()


def product(rows: int) -> Function:
    return parse_function(
        f"""func @product(%x: f32[{rows}, 70], %w: f32[70, 50]) -> (f32[{rows}, 50], f32[{rows}]) {{
  %0: f32[{rows}, 50] = dot %x, %w {{lhs_batch=[], lhs_contract=[1], rhs_batch=[], rhs_contract=[0]}}
  %1: f32[{rows}, 50] = square %0
  %2: f32[{rows}] = sum %1 {{axes=[1]}}
  return %1, %2
}}"""
    )


def compiled(f: Function, hurry: bool = True) -> tuple[Program, Report]:
    with collect(f.name) as report:
        return compile_function(f, hurry=hurry), report


def check(f: Function, program: Program) -> None:
    rng = np.random.default_rng(0)
    inputs = [
        rng.standard_normal(t.shape, np.float32) if t.dtype.is_float else rng.integers(0, 5, t.shape).astype(t.dtype.numpy)
        for t in f.param_types
    ]
    outputs = [np.zeros(t.shape, t.dtype.numpy) for t in f.result_types]
    program.run([a.ctypes.data for a in inputs], [a.ctypes.data for a in outputs])
    for a, b in zip(outputs, interpret(f, inputs), strict=True):
        assert a.tobytes() == b.tobytes()


def test_sizes_nearby_borrow_until_they_come_again() -> None:
    first, report = compiled(product(1000))
    assert report.compiled and not first.plan.borrowed
    check(product(1000), first)
    # A batch this small has another schedule.
    second, report = compiled(product(251))
    assert second.plan.borrowed and not report.compiled
    for _ in range(BORROWED_RUNS):
        check(product(251), second)
    with collect("later") as later:
        check(product(251), second)
    assert later.compiled
    check(product(251), second)
    third, report = compiled(product(251))
    assert not third.plan.borrowed and not report.compiled
    check(product(251), third)


def test_nothing_is_borrowed_unless_there_is_a_hurry() -> None:
    compiled(product(1000))
    plain, report = compiled(product(251), hurry=False)
    assert not plain.plan.borrowed and report.compiled


def test_one_thread_makes_the_kernels_of_its_own_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled(product(1000))
    program, _ = compiled(product(251))
    made = []
    written = kernels._written
    monkeypatch.setattr(kernels, "_written", lambda m, key: made.append(key) or written(m, key))
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(check, product(251), program) for _ in range(8 * BORROWED_RUNS)]:
            done.result()
    # The product; the sum of its rows is the same kernel for both.
    assert len(made) == 1


def test_long_launches_far_away_do_not_borrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(borrow, "SHORT", 1000)
    compiled(product(1000))
    _, report = compiled(product(100))
    assert report.compiled


def test_the_extents_that_a_variant_holds_literal_are_in_its_text() -> None:
    assert borrow.literal_of("contract WindowSchedule(literal=(('e1', 16), ('e2', 3)), rows=1) in place ((0, 1),)") == {"e1": 16, "e2": 3}
    assert borrow.literal_of("contract PlaneSchedule(literal=(), width=16)") == {}
    assert borrow.literal_of("contract Schedule(swap=False)") == {}


def convolution(n: int, side: int, channels: int = 8) -> Function:
    return parse_function(
        f"""func @conv(%x: f32[{n}, {channels}, {side}, {side}], %w: f32[8, {channels}, 3, 3], %b: f32[8]) -> (f32[{n}, 8, {side}, {side}]) {{
  %0: f32[{n}, 8, {side}, {side}] = conv %x, %w {{strides=[1, 1], padding=[[1, 1], [1, 1]], lhs_dilation=[1, 1], rhs_dilation=[1, 1], groups=1, batch_groups=1}}
  %1: f32[{n}, 8, {side}, {side}] = broadcast %b {{axes=[1], shape=[{n}, 8, {side}, {side}]}}
  %2: f32[{n}, 8, {side}, {side}] = add %0, %1
  return %2
}}"""
    )


def weight_gradient(n: int, side: int) -> Function:
    """Of a convolution of each channel by itself."""
    return parse_function(
        f"""func @dw(%x: f32[6, {n}, {side}, {side}], %dy: f32[6, {n}, {side}, {side}]) -> (f32[1, 6, 3, 3]) {{
  %0: f32[1, 6, 3, 3] = conv %x, %dy {{strides=[1, 1], padding=[[1, 1], [1, 1]], lhs_dilation=[1, 1], rhs_dilation=[1, 1], groups=1, batch_groups=6}}
  return %0
}}"""
    )


def mean_pool(n: int, side: int) -> Function:
    """The mean over the batch, whose divisor is a number in the text, of pooled images."""
    out = side // 2
    return parse_function(
        f"""func @pool(%x: f32[{n}, 3, {side}, {side}]) -> (f32[3, {out}, {out}]) {{
  %0: f32[{n}, 3, {out}, {out}], %1: i32[{n}, 3, {out}, {out}] = max_pool %x {{window=[2, 2], strides=[2, 2], padding=[[0, 0], [0, 0]], dilation=[1, 1]}}
  %2: f32[3, {out}, {out}] = sum %0 {{axes=[0]}}
  %3: f32[] = constant {{value=dense<f32[]>({float(n)})}}
  %4: f32[3, {out}, {out}] = full %3 {{shape=[3, {out}, {out}]}}
  %5: f32[3, {out}, {out}] = div %2, %4
  return %5
}}"""
    )


def normalised(n: int, length: int) -> Function:
    """Squared distances from the greatest of a row, as parts of their sum."""
    return parse_function(
        f"""func @normalised(%x: f32[{n}, {length}]) -> (f32[{n}, {length}]) {{
  %0: f32[{n}] = max %x {{axes=[1]}}
  %1: f32[{n}, {length}] = broadcast %0 {{axes=[0], shape=[{n}, {length}]}}
  %2: f32[{n}, {length}] = sub %x, %1
  %3: f32[{n}, {length}] = square %2
  %4: f32[{n}] = sum %3 {{axes=[1]}}
  %5: f32[{n}, {length}] = broadcast %4 {{axes=[0], shape=[{n}, {length}]}}
  %6: f32[{n}, {length}] = div %3, %5
  return %6
}}"""
    )


def attention(n: int, length: int) -> Function:
    return parse_function(
        f"""func @attention(%q: f32[{n}, 2, {length}, 8], %k: f32[{n}, 2, {length}, 8], %v: f32[{n}, 2, {length}, 8]) -> (f32[{n}, 2, {length}, 8]) {{
  %0: f32[] = constant {{value=dense<f32[]>(0.5)}}
  %1: f32[{n}, 2, {length}, 8], %2: f32[{n}, 2, {length}] = attention %q, %k, %v, %0 {{causal=true}}
  return %1
}}"""
    )


def picked(n: int, length: int) -> Function:
    """Rows of a table, and their gradient."""
    return parse_function(
        f"""func @picked(%t: f32[5, 7], %i: i64[{n}, {length}], %z: f32[5, 7]) -> (f32[{n}, {length}, 7], f32[5, 7]) {{
  %0: f32[{n}, {length}, 7] = gather %t, %i {{axis=0}}
  %1: f32[{n}, {length}, 7] = square %0
  %2: f32[5, 7] = scatter_add %z, %i, %1 {{axis=0}}
  return %1, %2
}}"""
    )


def scanned(n: int, length: int) -> Function:
    """The gradient of a cumulative sum, which reads its factors shifted by one."""
    return parse_function(
        f"""func @scan(%a: f32[{n}, {length + 1}], %b: f32[{n}, {length}]) -> (f32[{n}, {length}]) {{
  %0: f32[{n}, {length}] = slice %a {{start=[0, 1], limit=[{n}, {length + 1}], stride=[1, 1]}}
  %1: f32[{n}, {length}] = linear_scan %0, %b {{axis=1, reverse=true}}
  return %1
}}"""
    )


# Of each family a function of a batch and a length or side.
FAMILIES: tuple[Callable[[int, int], Function], ...] = (
    convolution, weight_gradient, mean_pool, normalised, attention, picked, scanned,
)  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_another_batch_compiles_nothing(family: Callable[[int, int], Function]) -> None:
    # Of the sizes that are equal by chance one changes: 8 channels, 6 groups, 7 columns.
    for first, others in ((8, (9, 1, 3)), (6, (7, 2)), (7, (40,))):
        changing.forget()
        compiled(family(first, 10))
        for n in others:
            program, report = compiled(family(n, 10))
            assert not report.compiled or (family is mean_pool and n == others[0]), n
            assert program.plan.borrowed
            for _ in range(BORROWED_RUNS + 2):
                check(family(n, 10), program)


@pytest.mark.parametrize("family", FAMILIES)
def test_another_length_compiles_general_kernels_once(family: Callable[[int, int], Function]) -> None:
    generator = random.Random(3)
    compiled(family(4, 12))
    compiled(family(4, 20))
    for _ in range(3):
        n, length = generator.randrange(1, 9), generator.randrange(2, 70)
        program, report = compiled(family(4, length))
        assert not report.compiled and program.plan.borrowed, length
        check(family(4, length), program)
        program, _ = compiled(family(n, length))
        check(family(n, length), program)


def test_a_borrowing_program_is_not_on_disk_and_that_which_follows_is() -> None:
    def chain(rows: int) -> Function:
        lines = [f"  %{i}: f32[{rows}, 9] = add %{i - 1 if i else 'x'}, %x" for i in range(20)]
        text = "\n".join(lines)
        return parse_function(f"func @chain(%x: f32[{rows}, 9]) -> (f32[{rows}, 9]) {{\n{text}\n  return %19\n}}")

    compile_function(chain(30), keep=True, hurry=True)
    program = compile_function(chain(31), keep=True, hurry=True)
    assert program.plan.borrowed

    def stored() -> bool:
        with collect("again") as report:
            compile_function(chain(31), keep=True)
        return "fuse" not in report.seconds

    for _ in range(BORROWED_RUNS + 1):
        check(chain(31), program)
    assert stored()


def test_a_structure_that_cannot_be_left_open_is_planned_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled(normalised(8, 9))
    tried = []

    def refuse(*args: object, **options: object) -> None:
        tried.append(args)
        raise AssertionError("a size must be known")

    monkeypatch.setattr(changing, "make_plan", refuse)
    for n in (5, 6):
        program, _ = compiled(normalised(n, 9))
        check(normalised(n, 9), program)
    assert len(tried) == 1
