"""Errors in IR text, drawn under the line they are in."""

from __future__ import annotations


class IRSyntaxError(ValueError):
    """IR text that cannot be read: its grammar, names, operations or types are wrong.

    `line` and `column` count from 1. `str()` gives the message, the line and a caret under it.
    """

    def __init__(
        self, message: str, text: str, line: int, column: int, width: int = 1, source: str = "<ir>"
    ) -> None:
        self.message = message
        self.line = line
        self.column = column
        self.source = source
        super().__init__(f"{source}:{line}:{column}: {message}\n{draw(text, line, column, width)}")


def draw(text: str, line: int, column: int, width: int = 1) -> str:
    """Line `line` of `text` with `width` carets under `column`, both counted from 1."""
    lines = text.splitlines()
    content = lines[line - 1].expandtabs(1) if line <= len(lines) else ""
    number = f"{line:4} | "
    carets = "^" * max(1, min(width, len(content) - column + 1))
    return f"{number}{content}\n{' ' * (len(number) - 2)}| {' ' * (column - 1)}{carets}"
