"""File tests: cases in `filetests/*.gir`, each a text, what to do with it, and what is expected.

A case starts with `# test: <what it shows>`, followed by directives and the text:

    # rule: <name>             this simplification rule must fire
    # passes: <names>          run the pipeline; `# expect:` and the resulting text follow the text
    # roundtrip                the text is what printing its module gives
    # error                    reading it fails; `# expect:` and the drawn message, commented, follow

`GRAPHC_BLESS=1 pytest tests/ir/test_filetests.py` writes what came out in the place of what is expected.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).parent / "filetests"
_START = "# test:"
_EXPECT = "# expect:"


@dataclass
class Case:
    path: Path
    title: str
    directives: dict[str, str] = field(default_factory=dict)
    text: str = ""
    expected: str = ""

    @property
    def id(self) -> str:
        return f"{self.path.stem}: {self.title}"

    def render(self) -> str:
        lines = [f"{_START} {self.title}"]
        lines += [f"# {k}: {v}" if v else f"# {k}" for k, v in self.directives.items()]
        lines.append(self.text)
        if "roundtrip" not in self.directives:
            lines += [_EXPECT, self.expected]
        return "\n".join(lines).rstrip("\n") + "\n"


def read_cases(path: Path) -> tuple[str, list[Case]]:
    """The head of a file, and its cases."""
    head, *parts = ("\n" + path.read_text(encoding="utf-8")).split(f"\n{_START} ")
    cases = []
    for part in parts:
        title, _, rest = part.partition("\n")
        case = Case(path, title.strip())
        lines = rest.split("\n")
        while lines and lines[0].startswith("# ") and lines[0] != _EXPECT:
            key, _, value = lines.pop(0)[2:].partition(":")
            case.directives[key.strip()] = value.strip()
        text, _, expected = "\n".join(lines).partition(f"{_EXPECT}\n")
        case.text, case.expected = text.strip("\n"), expected.strip("\n")
        cases.append(case)
    return head.strip("\n"), cases


def write_cases(path: Path, head: str, cases: list[Case]) -> None:
    path.write_text("\n".join([head + "\n", *(c.render() for c in cases)]), encoding="utf-8")


def all_cases() -> list[Case]:
    return [case for path in sorted(FOLDER.glob("*.gir")) for case in read_cases(path)[1]]
