"""empty the cache of compiled kernels on disk

    graphc cache clear
"""

from __future__ import annotations

import argparse

from graphc.cli.failure import Failure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("clear",), help="clear: delete every compiled kernel on disk")


def main(options: argparse.Namespace) -> None:
    from graphc.cli.files import reason
    from graphc.codegen import cache

    try:
        disk = cache.disk()
    except ValueError as error:
        raise Failure(str(error)) from error
    if disk is None:
        raise Failure("the cache on disk is turned off (GRAPHC_CACHE=0)")
    count, size = disk.contents()
    try:
        for file in disk.path.glob(f"*{cache.SUFFIX}"):
            file.unlink(missing_ok=True)
    except OSError as error:
        raise Failure(f"cannot empty {disk.path}: {reason(error)}") from error
    print(f"{count} kernels of {size:,} bytes deleted from {disk.path}")
