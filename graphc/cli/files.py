"""Files of the command line: read with designed errors, written under another name and then renamed."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from graphc.cli.failure import Failure


def reason(error: OSError) -> str:
    """The system's words for an error, in lower case as in the middle of a sentence."""
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]


def read_text(path: str) -> str:
    """The text of a file; "-" is standard input."""
    if path == "-":
        return sys.stdin.read()
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise Failure(f"cannot read {path}: {reason(error)}") from error
    except UnicodeDecodeError as error:
        raise Failure(f"cannot read {path}: it is not UTF-8 text (byte {error.start})") from error


def write(path: str, fill: Callable[[IO[bytes]], object]) -> None:
    """Let `fill` write a file that appears under `path` only when it is complete."""
    place = Path(path)
    part = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place.parent, prefix=f".{place.name}.", delete=False) as out:
            part = out.name
            fill(out)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(part, 0o666 & ~mask)
        os.replace(part, place)
    except OSError as error:
        raise Failure(f"cannot write {path}: {reason(error)}") from error
    finally:
        if part is not None and os.path.exists(part):
            os.unlink(part)


def show(text: str, output: str | None) -> None:
    """Write text to the file `output`, or to standard output if that is None."""
    if output is None:
        print(text)
    else:
        write(output, lambda out: out.write(text.encode() + b"\n"))
