"""show the text of a Python function or module at any stage of the compiler

Stages: trace (as traced, with calls of composites), grad (with its gradient), optimized, fused, loops,
scheduled, llvm, asm, plan, c (C99 of the CPU's kernels), cuda-scheduled, cuda (CUDA C). With --wrt, the later stages show the gradient too.

    graphc ir model.py:net --input "f32[B,1,8,8]" --stage optimized
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from graphc.cli.failure import Failure, choose

if TYPE_CHECKING:
    from graphc.ir.function import Function

STAGES = ("trace", "grad", "optimized", "fused", "loops", "scheduled", "llvm", "asm", "plan", "c", "cuda-scheduled", "cuda")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="FILE.py:NAME", help="a function, an nn.Module, or a Module class")
    parser.add_argument(
        "--input", action="append", default=[], metavar="TYPE", help='type of an argument, such as "f32[B,1,8,8]"; one for each'
    )
    parser.add_argument("--stage", default="trace", metavar="STAGE", help=f"one of {', '.join(STAGES)} (default: trace)")
    parser.add_argument("--wrt", metavar="NAMES", help="parameters for the gradient, by commas (default: all of floats)")
    parser.add_argument("--training", action="store_true", help="trace a module in training mode, not in eval mode")
    parser.add_argument("-o", "--output", metavar="FILE", help="write there instead of standard output")


def main(options: argparse.Namespace) -> None:
    from graphc.cli.files import show
    from graphc.cli.source import load_source, trace

    stage = choose(options.stage, STAGES, "stage", "graphc ir")
    source = load_source(options.source)
    if source.module is not None:
        source.module.train(options.training)
    f = trace(source, options.input).function
    if stage == "grad" or options.wrt is not None:
        f = gradient(f, None if options.wrt is None else options.wrt.split(","))
    show(str(f) if stage in ("trace", "grad") else back_end(f, stage), options.output)


def gradient(f: Function, names: Sequence[str] | None) -> Function:
    """`f` with the gradients of the named parameters."""
    from graphc.ir.autodiff import vjp

    wrt = None
    if names is not None:
        wrt = [f.param_names.index(choose(n.strip(), f.param_names, "parameter", f"@{f.name}")) for n in names]
    try:
        return vjp(f, wrt)
    except TypeError as error:
        raise Failure(f"@{f.name} has no gradient: {error}") from error


def back_end(f: Function, stage: str) -> str:
    """The text of `f` at a stage of the back end."""
    from graphc.codegen.stages import STAGES as known
    from graphc.codegen.stages import stage_text

    try:
        return stage_text(f, choose(stage, known, "stage", "the back end"))
    except RuntimeError as error:
        raise Failure(str(error)) from error
