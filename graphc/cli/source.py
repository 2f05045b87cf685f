"""FILE.py:NAME: the user's function or module, loaded and traced with types only."""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from graphc.cli.failure import Failure, choose
from graphc.runtime.errors import InternalError, describe

if TYPE_CHECKING:
    from graphc.ir.types import TensorType
    from graphc.runtime.trace import Traced


@dataclass(frozen=True)
class Source:
    """What FILE.py:NAME names: a function, or an `nn.Module`; and the place in the file that defines it.

    names: id -> name of tensors in modules and optimizers of the file.
    """

    name: str
    call: Callable[..., Any]
    module: Any | None
    file: str
    line: int
    names: dict[int, str]


def load_source(spec: str) -> Source:
    """Run the file and find the name: a function, a module, or a module class without arguments."""
    path, colon, name = spec.rpartition(":")
    if not colon or not path or not name:
        raise Failure(f"{spec!r} names no function; write FILE.py:NAME, such as model.py:net")
    place = Path(path)
    if not place.is_file():
        raise Failure(f"there is no file {path}")
    return _found(_run(place), path, name)


def _run(place: Path) -> ModuleType:
    label = "".join(c if c.isalnum() else "_" for c in place.stem)
    found = importlib.util.spec_from_file_location(label, place)
    if found is None or found.loader is None:
        raise Failure(f"{place} is not a Python file; its name should end in .py")
    module = importlib.util.module_from_spec(found)
    # As when Python runs a script: what stands beside it can be imported.
    sys.path.insert(0, str(place.resolve().parent))
    sys.modules[label] = module
    try:
        found.loader.exec_module(module)
    except SyntaxError as error:
        file = os.path.relpath(error.filename or place)
        raise Failure(f"{file}:{error.lineno}: SyntaxError: {error.msg}") from error
    except InternalError:
        raise
    except (Exception, SystemExit) as error:
        raise Failure(f"running {place} failed: {_told(error)}") from error
    return module


def _found(module: ModuleType, path: str, name: str) -> Source:
    from graphc.runtime.nn import Module

    value: Any = module
    at = path
    for part in name.split("."):
        if not hasattr(value, part):
            own = [n for n, v in vars(value).items() if not n.startswith("_") and _fits(v, module)]
            choose(part, own, "function or module", at)
        value = getattr(value, part)
        at = f"{at}:{part}" if at == path else f"{at}.{part}"
    label = name.rpartition(".")[2]
    if isinstance(value, type) and issubclass(value, Module):
        try:
            value = value()
        except TypeError as error:
            needed = [p for p in inspect.signature(value).parameters.values() if p.default is p.empty]
            if not needed:
                raise Failure(f"making {name}() failed: {_told(error)}") from error
            arguments = ", ".join(map(str, needed))
            raise Failure(
                f"{at} is a class that needs arguments ({arguments}); name an instance of it, made in the file"
            ) from error
    owner = value if isinstance(value, Module) else None
    if owner is None and (isinstance(value, type) or not callable(value)):
        raise Failure(f"{at} is {_kind(value)}, not a function or an nn.Module")
    names = _tensors(owner, "") if owner is not None else _all_tensors(module)
    return Source(label, value, owner, path, _line_of(path, name.partition(".")[0]), names)


def _all_tensors(module: ModuleType) -> dict[int, str]:
    """Names of the tensors in every `nn.Module` and optimizer of a file."""
    from graphc.runtime.nn import Module
    from graphc.runtime.optim import Optimizer

    names: dict[int, str] = {}
    for kind in (Module, Optimizer):
        for variable, value in vars(module).items():
            if isinstance(value, kind):
                for key, name in _tensors(value, f"{variable}.").items():
                    names.setdefault(key, name)
    return names


def _tensors(owner: Any, prefix: str) -> dict[int, str]:
    from graphc.runtime.nn import Module

    if isinstance(owner, Module):
        return {id(t): prefix + name for name, t in (*owner.named_parameters(), *owner.named_buffers())}
    names = {}
    for g, group in enumerate(owner.param_groups):
        at = f"{prefix}{g}." if len(owner.param_groups) > 1 else prefix
        names.update({id(t): at + name for name, t in group.tensors.items()})
    params = [p for group in owner.param_groups for p in group.params]
    for i, p in enumerate(params):
        names.update({id(t): f"{prefix}{i}.{name}" for name, t in owner.state[p].items()})
    return names


def _line_of(path: str, name: str) -> int:
    """The line of a file that binds `name` at its top level, or 1."""
    import ast

    for statement in reversed(ast.parse(Path(path).read_bytes()).body):
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            bound = statement.name == name
        else:
            stored = (n for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
            bound = any(n.id == name for n in stored)
        if bound:
            return statement.lineno
    return 1


def _fits(value: Any, module: ModuleType) -> bool:
    from graphc.runtime.nn import Module

    if isinstance(value, type):
        return issubclass(value, Module) and value.__module__ == module.__name__
    return isinstance(value, Module) or (inspect.isfunction(value) and value.__module__ == module.__name__)


def _kind(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"


def input_types(texts: Sequence[str]) -> list[TensorType]:
    """The types that --input gives."""
    from graphc.ir.types import TensorType

    types = []
    for text in texts:
        try:
            types.append(TensorType.parse(text))
        except (TypeError, ValueError) as error:
            raise Failure(f"--input {text!r}: {error}") from error
    return types


def trace(source: Source, inputs: Sequence[str]) -> Traced:
    """The source as a function of the IR, for inputs of these types."""
    from graphc.runtime.trace import trace_function

    types = input_types(inputs)
    _check_count(source, len(types))
    try:
        return trace_function(_called_there(source), types, name=source.name, names=source.names)
    except InternalError:
        raise
    except Exception as error:
        raise Failure(f"tracing {source.name} failed: {_told(error)}") from error


def _called_there(source: Source) -> Callable[..., Any]:
    """The source, called from the line that defines it, for operations that no line of the user's file runs.

    A network made of library layers only has no such line.
    """
    scope: dict[str, Any] = {"source": source.call}
    text = "\n" * (source.line - 1) + "def call(*inputs): return source(*inputs)"
    exec(compile(text, source.file, "exec"), scope)
    call: Any = scope["call"]
    call.__wrapped__ = source.call if source.module is None else source.module.forward
    return call  # type: ignore[no-any-return]


def _check_count(source: Source, count: int) -> None:
    try:
        signature = inspect.signature(source.call if source.module is None else source.module.forward)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*range(count))
    except TypeError as error:
        takes = f"{source.name}({', '.join(signature.parameters)})"
        given = {0: "no --input is", 1: "1 --input is"}.get(count, f"{count} --input are")
        raise Failure(f"{given} given, but {takes} needs one for each argument: {error}") from error


def _told(error: BaseException) -> str:
    """Kind and text of an error of the user's program, with the user's line under it."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if "\n  at " in text:
        return text
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        module = frame.f_globals.get("__name__", "")
        if module.partition(".")[0] != "graphc" and "importlib" not in frame.f_code.co_filename:
            return f"{text}\n  at {describe((frame.f_code, frame.f_lasti))}"
    return text
