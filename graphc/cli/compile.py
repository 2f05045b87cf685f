"""compile a Python function or module to an object, a C header and a shared library; or to C (-o PATH.c)

Symbolic dimensions of the inputs become arguments of the C function. Parameters become constants, or with --train
part of a state that every call updates: a whole training step runs without Python.

    graphc compile model.py:net --input "f32[B,1,8,8]" -o build/net
    graphc compile model.py:net --input "f32[B,1,8,8]" -o build/net.c
    graphc compile train.py:step --train --input "f32[B,1,8,8]" --input "i64[B]" -o build/step
"""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphc.cli.failure import Failure

if TYPE_CHECKING:
    from graphc.cli.source import Source
    from graphc.codegen.aot import AheadOfTime
    from graphc.codegen.aot_c import AheadOfTimeC
    from graphc.runtime.trace import Traced


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="FILE.py:NAME", help="a function, an nn.Module, or a Module class")
    parser.add_argument(
        "--input", action="append", default=[], metavar="TYPE", help='type of an argument, such as "f32[B,1,8,8]"; one for each'
    )
    parser.add_argument("-o", "--output", required=True, metavar="PATH", help="where PATH.o, PATH.h and PATH.so go; with .c: C99 source and header")
    parser.add_argument("--weights", metavar="FILE", help="safetensors file with the module's parameters")
    parser.add_argument("--train", action="store_true", help="parameters and optimizer state become state of the C function")
    parser.add_argument("--name", help="name of the C function (default: the last part of PATH)")
    parser.add_argument("--cpu", default="", help="LLVM's name of the CPU to compile for (default: this machine's)")
    parser.add_argument("--no-shared", action="store_true", help="write no shared library")


def main(options: argparse.Namespace) -> None:
    from graphc.cli.files import reason
    from graphc.cli.source import load_source, trace
    from graphc.codegen.aot import compile_ahead, write_files
    from graphc.codegen.aot_c import AheadOfTimeC, compile_ahead_c, write_c_files

    as_c = options.output.endswith(".c")
    output = re.sub(r"\.(o|h|so|dylib|c)$", "", options.output)
    name = options.name or Path(output).name
    source = load_source(options.source)
    if options.weights is not None:
        _load_weights(source.name, source.module, options.weights)
    if source.module is not None:
        source.module.train(options.train)
    traced = trace(source, options.input)
    state = _state(source, traced) if options.train else {}
    if not options.train:
        _check_pure(source.name, traced)
    if len(traced.function.results) == len(traced.writes):
        raise Failure(f"{source.name} returns no tensor, so there is nothing to compile")
    first = len(traced.function.params) - len(traced.captured)
    held: list[Any] = list(traced.captured)
    constants = {first + i: t.detach().numpy() for i, t in enumerate(held)}
    compile_it = compile_ahead_c if as_c else compile_ahead
    try:
        compiled = compile_it(traced.function, name, constants, options.cpu, state)
    except ValueError as error:
        cure = "; give another with --name" if "cannot name" in str(error) else ""
        raise Failure(f"{error}{cure}") from error
    try:
        if isinstance(compiled, AheadOfTimeC):
            written = write_c_files(compiled, output)
        else:
            written = write_files(compiled, output, shared=not options.no_shared)
    except OSError as error:
        raise Failure(f"cannot write {output}.{'c' if as_c else 'o'}: {reason(error)}") from error
    _report(compiled, written, asked_shared=not options.no_shared and not as_c)


def _load_weights(name: str, module: Any, path: str) -> None:
    from graphc.cli.files import reason
    from graphc.runtime.io import load

    if module is None:
        raise Failure(f"--weights needs an nn.Module to load them into, and {name} is a function")
    try:
        module.load_state_dict(load(path))
    except OSError as error:
        raise Failure(f"cannot read {path}: {reason(error)}") from error
    except (TypeError, ValueError) as error:
        raise Failure(str(error)) from error


def _check_pure(name: str, traced: Traced) -> None:
    f = traced.function
    if traced.writes:
        first = len(f.params) - len(traced.captured)
        changed = ", ".join(f.param_names[first + i] for i, _ in traced.writes)
        raise Failure(
            f"{name} changes tensors from outside ({changed}), which a compiled function cannot; "
            "return their new values instead, or make them state with --train"
        )


def _state(source: Source, traced: Traced) -> dict[int, int | None]:
    """Parameters that are state -> the results that are their new values, if they have any."""
    first = len(traced.function.params) - len(traced.captured)
    new = dict(traced.writes)
    return {
        first + i: new.get(i) for i, t in enumerate(traced.captured) if i in new or id(t) in source.names
    }


def _report(compiled: AheadOfTime | AheadOfTimeC, written: list[Path], asked_shared: bool) -> None:
    from graphc.codegen.aot import AheadOfTime
    from rich.console import Console
    from rich.table import Table

    plan = compiled.plan
    how = f"compiled for {compiled.cpu}" if isinstance(compiled, AheadOfTime) else "written as C99"
    console = Console(highlight=False, soft_wrap=True)
    table = Table(title=f"{compiled.name}, {how}", title_justify="left")
    table.add_column("written")
    table.add_column("bytes", justify="right")
    for path in written:
        table.add_row(str(path), f"{path.stat().st_size:,}")
    console.print(table)
    held = sum(a.nbytes for a in plan.constants.values())
    elements = sum(math.prod(a.shape) for a in plan.constants.values())
    facts = Table.grid(padding=(0, 2))
    inputs = ", ".join(f"{plan.entry.param_names[i]}: {plan.entry.params[i].type}" for i in plan.inputs)
    facts.add_row("inputs", inputs or "none")
    facts.add_row("outputs", ", ".join(str(plan.entry.result_types[i]) for i in plan.outputs))
    facts.add_row("kernels", f"{len(plan.kernels)}, called {len(plan.launches)} times")
    facts.add_row("constants", f"{held:,} bytes, {elements:,} elements")
    if plan.state:
        facts.add_row("state", f"{plan.state_bytes:,} bytes, {len(plan.state)} tensors")
    facts.add_row("workspace", f"{plan.workspace} bytes")
    console.print(facts)
    if asked_shared and len(written) == 2:
        console.print("There is no C compiler here (cc, gcc, clang or $CC), so no shared library was linked.")
