"""Runs the cases of filetests/*.gir; every pass case must also leave the bits of the results alone."""

from __future__ import annotations

import os
from collections import Counter

import numpy as np
import pytest
from graphc.ir.function import Function
from graphc.ir.interpret import interpret
from graphc.ir.passes import run_pipeline
from graphc.ir.passes.equation import Rule
from graphc.ir.passes.rules import RULES
from graphc.ir.passes.simplify import simplify
from graphc.ir.text import IRSyntaxError, parse_function, parse_module, print_function, print_module
from graphc.ir.types import size_of, substitute
from graphc.ir.verify import verify

from tests.ir.exact import assert_equal_bits, special_values
from tests.ir.file_cases import FOLDER, Case, all_cases, read_cases, write_cases

SYMBOLS = {"B": 3}


def outcome(case: Case) -> str:
    """What the case gives, in the form in which it is expected."""
    if "passes" in case.directives:
        return print_function(transformed(case))
    if "error" in case.directives:
        with pytest.raises(IRSyntaxError) as caught:
            parse_module(case.text, case.path.name)
        return "\n".join(f"# {line}".rstrip() for line in str(caught.value).splitlines())
    assert "roundtrip" in case.directives, f"{case.id} has no directive"
    return print_module(parse_module(case.text))


def transformed(case: Case) -> Function:
    f = parse_function(case.text)
    g = run_pipeline(f, case.directives["passes"].split(","))
    verify(g)
    return g


def bless() -> None:
    """Write what comes out in the place of what is expected."""
    for path in sorted(FOLDER.glob("*.gir")):
        head, cases = read_cases(path)
        for case in cases:
            if "roundtrip" in case.directives:
                case.text = outcome(case)
            else:
                case.expected = outcome(case)
        write_cases(path, head, cases)


if os.environ.get("GRAPHC_BLESS"):
    bless()
CASES = all_cases()


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_case(case: Case) -> None:
    assert outcome(case) == (case.text if "roundtrip" in case.directives else case.expected)


@pytest.mark.parametrize("case", [c for c in CASES if "passes" in c.directives], ids=lambda c: c.id)
def test_passes_keep_bits(case: Case) -> None:
    f, g = parse_function(case.text), transformed(case)
    assert f.param_types == g.param_types and f.param_names == g.param_names
    rng = np.random.default_rng(0)
    for _ in range(20):
        args = []
        for type in f.param_types:
            shape = tuple(int(substitute(d, SYMBOLS)) for d in type.shape)
            if type.dtype.is_integer and "gather" in case.text:
                args.append(rng.integers(0, 4, shape).astype(type.dtype.numpy))
            else:
                args.append(rng.choice(special_values(type.dtype), int(size_of(shape))).reshape(shape))
        for before, after in zip(interpret(f, args, SYMBOLS), interpret(g, args, SYMBOLS), strict=True):
            assert_equal_bits(before, after)


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.name)
def test_every_rule_fires_in_its_case(rule: Rule) -> None:
    name = rule.name
    own = [c for c in CASES if c.directives.get("rule") == name]
    assert own, f"no case in filetests/*.gir shows the rule {name}"
    for case in own:
        fired: Counter[str] = Counter()
        simplify(parse_function(case.text), fired)
        assert fired[name], f"the rule {name} did not fire in {case.id}"


def test_cases_name_rules_that_exist() -> None:
    names = {r.name for r in RULES}
    assert len(names) == len(RULES)
    assert {c.directives["rule"] for c in CASES if "rule" in c.directives} == names
