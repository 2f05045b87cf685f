"""measure the schedules of a program's products on a CUDA device and keep the fastest

    graphc tune model.py:net --input "f32[64,784]"
    graphc tune --product "bf16[4096,4096]" "bf16[4096,1024]"

What is found is stored in the cache for these sizes and this device, and used from then on.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from graphc.cli.failure import Failure

if TYPE_CHECKING:
    from graphc.ir.function import Function


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", nargs="?", metavar="FILE.py:NAME", help="a function, an nn.Module, or a Module class")
    parser.add_argument(
        "--input", action="append", default=[], metavar="TYPE", help='type of an argument, such as "f32[8,784]"; one for each'
    )
    parser.add_argument("--product", nargs=2, metavar="TYPE", help="instead of a program: the types of two matrices to multiply")
    parser.add_argument("--grad", action="store_true", help="the program with its gradient")
    parser.add_argument(
        "--precision", default="highest", metavar="LEVEL", help="highest, high, medium or exact (default: highest)"
    )
    parser.add_argument("--device", default="cuda", help='such as "cuda:1" (default: cuda)')
    parser.add_argument("--rounds", type=int, default=20, metavar="N", help="runs of each schedule (default: 20)")


def main(options: argparse.Namespace) -> None:
    from graphc.runtime.device import device
    from graphc.runtime.precision import set_matmul_precision

    if (options.source is None) == (options.product is None):
        raise Failure("name a program, FILE.py:NAME, or two types with --product")
    if options.rounds < 1:
        raise Failure(f"--rounds must be at least 1, not {options.rounds}")
    try:
        set_matmul_precision(options.precision)
        found = device(options.device)
    except (ValueError, RuntimeError) as error:
        raise Failure(str(error)) from error
    if found.type != "cuda":
        raise Failure(f'schedules are measured on a CUDA device, not on "{found}"')
    from graphc.runtime.cuda.tuning import products, show, tune

    groups = products(_function(options), found)
    if not groups:
        raise Failure("the program has no product of matrices and no convolution")
    for group in groups:
        print("\n".join(show(tune(group, found, options.rounds))))


def _function(options: argparse.Namespace) -> Function:
    from graphc.cli.ir import gradient
    from graphc.cli.source import load_source, trace

    if options.product is not None:
        import graphc as gc
        from graphc.runtime.trace import trace_function

        try:
            f = trace_function(gc.matmul, options.product, name="product").function
        except (ValueError, TypeError) as error:
            raise Failure(str(error)) from error
    else:
        f = trace(load_source(options.source), options.input).function
    f = gradient(f, None) if options.grad else f
    symbolic = sorted({str(d) for t in f.param_types for d in t.shape if not isinstance(d, int)})
    if symbolic:
        raise Failure(f"schedules are measured for sizes; give numbers for {', '.join(symbolic)}")
    return f
