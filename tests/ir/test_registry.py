"""The table of operations is complete: every operation has its rules, and the documents name it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from graphc.ir.function import Builder
from graphc.ir.registry import REQUIRED, IRTypeError, OpDef, lookup, operations, register
from graphc.ir.types import TensorType

EXPECTED = {
    "elementwise": "neg abs sign sqrt reciprocal square exp exp2 expm1 log log2 log10 log1p sin cos tan asin acos "
    "atan sinh cosh tanh asinh acosh atanh erf floor ceil trunc round not add sub mul div floor_divide remainder pow "
    "maximum minimum atan2 hypot copysign nextafter logaddexp and or xor shift_left shift_right fma select cast bitcast",
    "compare": "eq ne lt le gt ge isnan isinf isfinite signbit",
    "reduce": "sum prod max min any all argmax argmin",
    "scan": "linear_scan",
    "layout": "reshape permute broadcast slice pad concat flip",
    "create": "constant full iota",
    "dot": "dot",
    "conv": "conv",
    "pool": "max_pool max_pool_grad max_pool_take sum_pool sum_pool_grad",
    "indexing": "gather scatter_add take_along put_along_add",
    "attention": "attention attention_grad",
    "random": "random_bits",
    "control": "call stop_gradient check_index",
}
FAMILY_OF = {name: family for family, names in EXPECTED.items() for name in names.split()}
ARCHITECTURE = Path(__file__).parents[2] / "docs" / "architecture.md"


def test_no_operation_is_missing() -> None:
    assert {name: d.family for name, d in operations().items() if name in FAMILY_OF} == FAMILY_OF


def test_no_operation_is_undocumented() -> None:
    rows = dict(re.findall(r"^\| (\w+)[^|]*\| (.*) \|$", ARCHITECTURE.read_text(), re.MULTILINE))
    missing = [f"{d.family}: {d.name}" for d in operations().values() if d.name not in re.findall(r"\w+", rows[d.family])]
    assert not missing


@pytest.mark.parametrize("definition", operations().values(), ids=lambda d: d.name)
def test_every_operation_has_its_rules(definition: OpDef) -> None:
    assert callable(definition.infer) and callable(definition.eval)
    assert definition.doc.rstrip().endswith(".") and "\n" not in definition.doc
    # A gradient rule or a reason why there is none, never both and never neither.
    assert (definition.vjp is None) == bool(definition.no_gradient)
    assert all(re.fullmatch(r"operands|results|operand\d", name) for name in definition.reads)
    if definition.vjp is None:
        assert definition.reads == ()


@pytest.mark.parametrize("definition", operations().values(), ids=lambda d: d.name)
def test_wrong_operand_counts_are_refused_by_name(definition: OpDef) -> None:
    """Nine operands of rank 0 fit no operation but concat, which needs an axis they do not have."""
    types = (TensorType.parse("f32[]"),) * 9
    attrs = {k: None if v is REQUIRED else v for k, v in definition.attrs.items()}
    with pytest.raises((IRTypeError, ValueError), match=definition.name):
        definition.infer(types, attrs)


def test_lookup_suggests_close_names() -> None:
    with pytest.raises(KeyError, match="there is no operation 'sqrtt'; did you mean sqrt"):
        lookup("sqrtt")


def test_attributes_are_checked_by_name() -> None:
    b = Builder("f")
    x = b.param(TensorType.parse("f32[3]"))
    with pytest.raises(IRTypeError, match="sum has no attribute 'axis'; it has: axes"):
        b.emit("sum", x, axis=0)
    with pytest.raises(IRTypeError, match="sum needs the attribute 'axes'"):
        b.emit("sum", x)


def test_registering_twice_is_an_error() -> None:
    with pytest.raises(ValueError, match="add is registered twice"):
        register(lookup("add"))
