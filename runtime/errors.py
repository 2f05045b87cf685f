"""Errors as designed output: where the user's line is, and how a broken rule is told.

The user's line is the innermost Python frame outside the package. Rules raise plain `ValueError`,
`TypeError` or `IndexError` whose text is "the rule; the cure"; `explain` puts the operation, the
operand types and the line around it.
"""

from __future__ import annotations

import linecache
import os
import sys
from collections.abc import Iterable
from types import CodeType, FrameType
from typing import Any

from graphc.codegen.pages import OutOfMemoryError as OutOfMemoryError
from graphc.ir.function import Function, Loc


class InternalError(RuntimeError):
    """A fault of graphc itself, never of the program that met it."""


class DeviceIndexError(IndexError):
    """An index out of range that a kernel met, as whoever waited is told. owner: the program that met it, as it names itself."""

    def __init__(self, message: str, owner: Any = None) -> None:
        super().__init__(message)
        self.owner = owner


class Unavailable(RuntimeError):
    """A device, or what its programs are made with, is not there; the text says what is missing and how to get it."""


class AbstractValueError(TypeError):
    """Python asked for the value of a tensor that has a type but no value yet."""


def internal_error(function: Function, error: Exception) -> InternalError:
    """The fault of graphc that a function, whose types are right, cannot be compiled; its IR is saved in a file."""
    import tempfile

    from graphc.ir.text import print_function

    with tempfile.NamedTemporaryFile("w", prefix=f"graphc-{function.name}-", suffix=".gir", delete=False) as file:
        file.write(print_function(function))
    return InternalError(
        f"{function.name} cannot be compiled: {type(error).__name__}: {error}; this is a fault of graphc, please report it "
        f"with its IR, which is in {file.name}"
    )


# File -> whether it belongs to graphc. A code object costs too much to hash.
_inside: dict[str, bool] = {}
_frame = sys._getframe


def _is_inside(frame: FrameType) -> bool:
    file = frame.f_code.co_filename
    name = frame.f_globals.get("__name__", "")
    inside = name == "graphc" or name.startswith("graphc.")
    # That of `exec` may be anybody's.
    if file != "<string>":
        _inside[file] = inside
    return bool(inside)


def user_frame(depth: int = 2) -> tuple[CodeType, int]:
    """The code object and instruction offset of the innermost frame outside graphc."""
    frame: Any = _frame(depth)
    while frame is not None:
        code = frame.f_code
        inside = _inside.get(code.co_filename)
        if not inside and (inside is False or not _is_inside(frame)):
            return code, frame.f_lasti
        frame = frame.f_back
    return _frame(1).f_code, _frame(1).f_lasti


def line_of(code: CodeType, offset: int) -> int:
    """The source line of an instruction of `code`."""
    for start, end, line in code.co_lines():
        if start <= offset < end and line is not None:
            return line
    return code.co_firstlineno


_locs: dict[tuple[str, str, int, int], Loc] = {}


def loc_of(place: tuple[CodeType, int]) -> Loc:
    """The place as a `Loc`; files below the working directory are named relative to it."""
    code, offset = place
    key = (code.co_filename, code.co_qualname, code.co_firstlineno, offset)
    known = _locs.get(key)
    if known is None:
        known = Loc(_short(code.co_filename), line_of(code, offset))
        if code.co_filename[:1] != "<":
            if len(_locs) > 4096:
                _locs.clear()
            _locs[key] = known
    return known


def _short(file: str) -> str:
    here = os.getcwd() + os.sep
    return file[len(here) :] if file.startswith(here) else file


def here(depth: int = 2) -> str:
    """`train.py:41: y = x @ w` for the user's current line."""
    code, offset = user_frame(depth + 1)
    return describe((code, offset))


def describe(place: tuple[CodeType, int]) -> str:
    """`train.py:41: y = x @ w` for a recorded place."""
    code, offset = place
    line = line_of(code, offset)
    source = linecache.getline(code.co_filename, line).strip()
    at = f"{_short(code.co_filename)}:{line}"
    return f"{at}: {source}" if source else at


def called() -> str:
    """The function of graphc that the user called, with the types of its tensors: `sum(f32[3, 4])`.

    Walks the stack, so only for a message. A composite is told by its name, a method by the function behind it.
    """
    from graphc.runtime.core import Tensor

    frame: FrameType | None = _frame(1)
    found = ""
    while frame is not None and _is_inside(frame):
        code, values = frame.f_code, frame.f_locals
        name = getattr(values.get("self"), "_name", "") if code.co_name in ("__call__", "_apply") else code.co_name
        if isinstance(name, str) and name.isidentifier() and not name.startswith("_") and name not in _WRAPPERS:
            given = [values.get(n) for n in code.co_varnames[: code.co_argcount]]
            given += values.get("args", ()) if code.co_name in ("__call__", "_apply") or not given else ()
            flat = [x for a in given for x in (a if isinstance(a, (list, tuple)) else (a,))]
            found = f"{name}({', '.join(str(x._spec) for x in flat if isinstance(x, Tensor))})"
        frame = frame.f_back
    return found


# Names of functions around the one that the user asked for.
_WRAPPERS = {"called", "normal_axis", "normal_axes", "method", "wrapped", "wrapper", "forward", "emit", "build", "lookup"}


def explain(error: Exception, operation: str, types: Iterable[Any]) -> Exception:
    """A new exception of the kind of `error` which also names the operation, its operands and the line."""
    if isinstance(error, DeviceIndexError):
        # Often of an operation before; it names that, and the line.
        return error
    kind: type[Exception] | None = next(
        (
            k
            for k in (IndexError, ZeroDivisionError, OutOfMemoryError, MemoryError, TypeError, ValueError, Unavailable)
            if isinstance(error, k)
        ),
        None,
    )
    text = str(error)
    if isinstance(error, InternalError):
        kind = InternalError
    elif kind is None:
        kind = InternalError
        text = f"{type(error).__name__}: {text}; this is a fault of graphc, please report it"
    signature = f"{operation}({', '.join(map(str, types))})"
    if not text.startswith(operation + "("):
        text = f"{signature}: {text.removeprefix(operation + ': ')}"
    told = kind(f"{text}\n  at {here(3)}")
    # The way to a fault of graphc is worth keeping; that to a broken rule is not.
    told.__cause__ = error if kind is InternalError else None
    return told
