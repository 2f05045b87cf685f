"""The documents: their Python runs, their commands print what the page says, their links lead somewhere.

A fenced `python` block is run in the page's namespace, or, if its first line is a comment with a file name, saved under
that name; so is a `c` block. A `text` block is what the Python block before it prints. In a `console` block each line
after `$ ` is a command, followed by its output. A line `...` stands for any lines.

`GRAPHC_BLESS=1 pytest tests/graphc/test_readme.py` writes what came out in the place of what is expected.
"""

from __future__ import annotations

import contextlib
import io
import linecache
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from graphc.codegen.aot import c_compiler

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")))]
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
_FILE = re.compile(r"(?:# |/\* |// )(\S+\.\w+)(?: \*/)?\n")


@dataclass(frozen=True)
class Block:
    kind: str
    text: str
    line: int
    start: int
    stop: int


def blocks(text: str) -> Iterator[Block]:
    for m in _FENCE.finditer(text):
        yield Block(m[1], m[2], text.count("\n", 0, m.start()) + 2, m.start(2), m.end(2))


def matches(expected: str, got: str) -> bool:
    """Whether they are the same lines; a line `...` of the page stands for any number of lines."""
    pattern = "".join(r"(?:.*\n)*?" if line == "..." else re.escape(line) + r"\n" for line in expected.splitlines())
    return re.fullmatch(pattern, got) is not None


class Page:
    """Runs the blocks of a page in order, in a directory of its own."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.namespace: dict[str, object] = {"__name__": "__main__"}
        self.printed = ""
        self.wrong: list[str] = []
        self.edits: list[tuple[int, int, str]] = []

    def run(self, block: Block) -> None:
        file = _FILE.match(block.text)
        if file and block.kind in ("python", "c"):
            Path(file[1]).write_text(block.text)
        elif block.kind == "python":
            out = io.StringIO()
            # A file, because messages show the line of the program.
            Path("example.py").write_text(block.text)
            linecache.clearcache()
            with contextlib.redirect_stdout(out):
                exec(compile(block.text, str(Path("example.py").resolve()), "exec"), self.namespace)
            self.printed = out.getvalue()
        elif block.kind == "text":
            self.compare(block, block.text, self.printed)
        elif block.kind == "console":
            parts = re.split(r"^\$ (.*)\n", block.text, flags=re.M)
            assert parts[0] == "", f"{self.name}:{block.line} does not begin with a command"
            got = [f"$ {command}\n{self.command(command)}" for command in parts[1::2]]
            for command, expected, new in zip(parts[1::2], parts[2::2], got, strict=True):
                if not matches(f"$ {command}\n{expected}", new):
                    self.wrong.append(f"{self.name}:{block.line}: expected\n{expected}\ngot\n{new}")
                    self.edits.append((block.start, block.stop, "".join(got)))

    def command(self, command: str) -> str:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PATH": path, "COLUMNS": "100"},
        )
        return done.stdout

    def compare(self, block: Block, expected: str, got: str) -> None:
        if not matches(expected, got):
            self.wrong.append(f"{self.name}:{block.line}: expected\n{expected}\ngot\n{got}")
            self.edits.append((block.start, block.stop, got))


@pytest.mark.parametrize("name", PAGES)
def test_examples_do_what_the_page_says(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / name).read_text(encoding="utf-8")
    if "\n$ cc " in text and c_compiler() is None:
        pytest.skip("the page compiles C")
    page = Page(name)
    for block in blocks(text):
        page.run(block)
    if page.edits and os.environ.get("GRAPHC_BLESS"):
        for start, stop, new in sorted(set(page.edits), reverse=True):
            text = text[:start] + new + text[stop:]
        (ROOT / name).write_text(text, encoding="utf-8")
        return
    assert not page.wrong, "\n".join(page.wrong)


@pytest.mark.parametrize("name", [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert ((ROOT / name).parent / target).exists(), f"{name} links to {target}, which is not there"


def test_the_commands_that_ci_runs_are_those_of_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "```sh\npip install -e '.[examples]' && python examples/digits.py\n```" in readme
    assert "```sh\npip install -e '.[test]' && pytest\n```" in readme
    # The script looks for the line that begins with `pip install -e '.[test]'`.
    assert len(re.findall(r"^pip install -e '\.\[test\]'", readme, re.M)) == 1
