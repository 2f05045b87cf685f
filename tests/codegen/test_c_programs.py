"""Whole programs as C99: every operation of every element type, scheduled for the CPU, gives the bits of its meaning."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from graphc.codegen.aot_c import compile_ahead_c
from graphc.codegen.stages import stage_text
from graphc.ir.registry import operations
from graphc.ir.text import parse_function

from tests.codegen.compiled import difference
from tests.codegen.operation_cases import accepted
from tests.codegen.test_operations import OPERATIONS, WHOLE, Packed, _some
from tests.equality.oracle import exact_interpret
from tests.graphc.ahead import Entry
from tests.graphc.test_aot_c import build, needs_c

# A few of each family, for the tests that always run.
SOME = ("cast", "pow", "sum", "argmax", "linear_scan", "pad", "dot", "conv", "max_pool", "scatter_add", "take_along", "random_bits")


def packed(op: str, most: int) -> Packed:
    """One function of cases of an operation."""
    found, p = accepted(op), Packed(op)
    for roles, cases in found:
        whole = operations()[op].family in WHOLE
        for case in (cases if whole else _some(op, cases, roles, found[0][0], 2))[:most]:
            p.add(case)
    return p


def check(names: list[str], most: int, folder: Path, level: str) -> None:
    """The operations, each as a C file; all are compiled by one call of the compiler."""
    programs = {op: packed(op, most) for op in names}
    functions = {op: p.b.build(p.results) for op, p in programs.items()}
    written = {op: compile_ahead_c(f, f"op_{op}") for op, f in functions.items()}
    library = build(list(written.values()), folder, level)
    for op, f in functions.items():
        p = programs[op]
        code, got = Entry(written[op], library).run({}, p.args)
        assert code == 0
        for label, e, g in zip(p.labels, exact_interpret(f, p.args), got, strict=True):
            assert not difference(e, g), f"{label}: {difference(e, g)}"


@needs_c
def test_some_operations(tmp_path: Path) -> None:
    check(list(SOME), 1, tmp_path, "-O0")


TWO_GROUPS = """
func @two(%x: f32[N, 40], %w: f32[40, 3]) -> (f32[N, 3], f32[N]) {
  %0: f32[N, 40] = exp %x loc("model.py":7)
  %1: f32[N, 3] = dot %0, %w {lhs_batch=[], lhs_contract=[1], rhs_batch=[], rhs_contract=[0]}
  %2: f32[N] = sum %x {axes=[1]} loc("model.py":9)
  return %1, %2
}
"""


def test_stages_are_one_translation_unit() -> None:
    f = parse_function(TWO_GROUPS)
    c, cuda = stage_text(f, "c"), stage_text(f, "cuda")
    assert c.startswith("#include <math.h>\n") and c.count("#include <math.h>") == 1
    assert cuda.count('extern "C" __global__') >= 2 and "mul_i64" not in cuda  # narrow: sizes that are not known are 64
    for text in (c, cuda):
        assert re.search(r'^// group\d \[.*\](.|\n)*^// +%0: f32\[e0\] = sum %p0 {axes=\[1\]} loc\("model.py":9\)$', text, re.M)
        names = re.findall(r"void (?:__launch_bounds__\(.*?\) )?(group\w+)\(", text)
        assert len(names) == len(set(names)) >= 2
    assert re.search(r"kernel @\w+\(.*\n +blocks .* threads", stage_text(f, "cuda-scheduled"))


@needs_c
@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, len(OPERATIONS), 6))
def test_every_operation(tmp_path: Path, first: int) -> None:
    check(OPERATIONS[first : first + 6], 100, tmp_path, "-O1")
