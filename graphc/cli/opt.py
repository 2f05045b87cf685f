"""run passes over IR text

Reads a file of functions ("-" is standard input), runs the named passes over each and prints the result.
Without --passes it prints what it has read. `default` stands for the passes that every compilation runs.

    graphc opt net.gir --passes fold,cse,dce
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from graphc.cli.failure import Failure

if TYPE_CHECKING:
    from graphc.ir.function import Function, Module


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE.gir")
    parser.add_argument("--passes", default="", metavar="NAMES", help="passes by commas, in order")
    parser.add_argument("--verify", action="store_true", help="check the rules of the IR at first and after every pass")
    parser.add_argument("--dump", action="store_true", help="show the function after every pass, with times")
    parser.add_argument("--stage", metavar="STAGE", help="show the result at a stage of the back end: see graphc ir")
    parser.add_argument("-o", "--output", metavar="FILE", help="write there instead of standard output")


def read_module(path: str) -> Module:
    """The functions of a file."""
    from graphc.cli.files import read_text
    from graphc.ir.text import IRSyntaxError, parse_module

    text = read_text(path)
    try:
        return parse_module(text, source=path)
    except IRSyntaxError as error:
        raise Failure(str(error)) from error


def main(options: argparse.Namespace) -> None:
    from graphc.cli.files import show
    from graphc.cli.ir import back_end
    from graphc.ir.function import Module
    from graphc.ir.passes import DEFAULT

    names: list[str] = []
    for name in filter(None, (n.strip() for n in options.passes.split(","))):
        names += DEFAULT if name == "default" else [name]
    module = read_module(options.file)
    results = [_transformed(f, names, options) for f in module]
    if options.stage:
        show("\n\n".join(back_end(f, options.stage) for f, _ in results), options.output)
    elif options.dump:
        show("\n".join(dump for _, dump in results), options.output)
    else:
        show(str(Module(f for f, _ in results)), options.output)


def _transformed(f: Function, names: list[str], options: argparse.Namespace) -> tuple[Function, str]:
    import io

    from graphc.ir.passes import observe, run_pipeline
    from graphc.ir.verify import VerifyError, verify

    dump = io.StringIO()
    try:
        if options.verify:
            verify(f)
        f = run_pipeline(f, names, observe(options.verify, dump if options.dump else None))
    except VerifyError as error:
        raise Failure("\n".join([str(error), *getattr(error, "__notes__", ())])) from error
    except ValueError as error:
        raise Failure(str(error)) from error
    return f, dump.getvalue()
