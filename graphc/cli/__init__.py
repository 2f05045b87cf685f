"""The command line, `graphc COMMAND`. One file for each command: its arguments, and what it does.

Exit codes: 0, or 1 where graphc itself is at fault, or 2 for input that graphc cannot use; then one
designed message is on standard error, and `--traceback` shows Python's own.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from graphc.cli.failure import Failure


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message} ({self.prog} --help tells more)", file=sys.stderr)
        raise SystemExit(2)


def _version() -> str:
    import importlib.metadata

    return f"graphc {importlib.metadata.version('graphc')}"


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *args: object) -> NoReturn:
        print(_version())
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    from graphc.cli import cache, compile, doctor, ir, opt, run, tune

    parser = _Parser(prog="graphc", description="Compile, show, transform and run programs of tensors.")
    parser.add_argument("--version", nargs=0, action=_Version, help="show the version and leave")
    every = _Parser(add_help=False)
    every.add_argument("--traceback", action="store_true", help="show Python's traceback of an error")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    for module in (compile, ir, opt, run, tune, doctor, cache):
        name = module.__name__.rpartition(".")[2]
        about = (module.__doc__ or "").partition("\n\n")[0]
        sub = commands.add_parser(
            name,
            parents=[every],
            help=about,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(sub)
        sub.set_defaults(run=module.main)
    return parser


def _run(options: argparse.Namespace) -> None:
    if not os.environ.get("GRAPHC_LOG"):
        options.run(options)
        return
    from graphc.codegen.report import collect

    with collect(f"by graphc {options.command}"):
        options.run(options)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit code."""
    options = _parser().parse_args(arguments)
    try:
        _run(options)
        sys.stdout.flush()
    except Failure as failure:
        if options.traceback:
            raise
        print(f"graphc {options.command}: {failure}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader has seen enough; what is left in the buffer has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if options.traceback:
            raise
        kind = type(error).__name__
        print(
            f"graphc {options.command}: {kind}: {error}\n"
            "This is a fault of graphc. Please report it with the output of the same command and --traceback",
            file=sys.stderr,
        )
        return 1
    return 0
