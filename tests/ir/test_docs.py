"""docs/ir.md says what the code does: its tables are generated, its texts parse, its examples run.

`GRAPHC_BLESS=1 pytest tests/ir/test_docs.py` writes the tables.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from graphc.ir.text import parse_module, print_module
from graphc.ir.text.reference import operation_tables, pass_table, rule_table

PAGE = Path(__file__).parents[2] / "docs" / "ir.md"
TABLES = {"operations": operation_tables, "passes": pass_table, "rules": rule_table}


def blocks(language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


if os.environ.get("GRAPHC_BLESS"):
    text = PAGE.read_text(encoding="utf-8")
    for name, table in TABLES.items():
        head, _, rest = text.partition(f"<!-- {name} -->\n")
        text = f"{head}<!-- {name} -->\n{table()}\n<!-- end -->{rest.partition('<!-- end -->')[2]}"
    PAGE.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_generated(name: str) -> None:
    written = (
        PAGE.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")[2].partition("\n<!-- end -->")[0]
    )
    assert written == TABLES[name](), "run GRAPHC_BLESS=1 pytest tests/ir/test_docs.py"


def test_texts_parse_and_are_printed_as_written() -> None:
    texts = blocks("gir")
    assert texts
    for text in texts:
        assert print_module(parse_module(text)) == text.strip()


def test_examples_run() -> None:
    examples = blocks("python")
    assert examples
    for code in examples:
        exec(compile(code, str(PAGE), "exec"), {})
