"""Whole programs as C99: every operation of every element type, scheduled for the CPU, gives the bits of its meaning."""

from __future__ import annotations

from pathlib import Path

import pytest
from graphc.codegen.aot_c import compile_ahead_c
from graphc.ir.registry import operations

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


@needs_c
@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, len(OPERATIONS), 6))
def test_every_operation(tmp_path: Path, first: int) -> None:
    check(OPERATIONS[first : first + 6], 100, tmp_path, "-O1")
