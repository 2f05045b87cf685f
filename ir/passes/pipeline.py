"""The table of passes and the running of pipelines, with one callback between passes."""

from __future__ import annotations

import difflib
import importlib
import time
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TextIO

from graphc.ir.function import Function


@dataclass(frozen=True)
class Pass:
    """A transformation of functions with a name."""

    name: str
    doc: str
    run: Callable[[Function], Function]


# Called after every pass: the pass, the function before and after (the same object if nothing
# changed), and the seconds that it took.
Callback = Callable[[Pass, Function, Function, float], None]


def _pass(name: str, doc: str) -> Pass:
    """The pass in `passes/<name>.py`, whose module is imported when it first runs."""

    def run(function: Function) -> Function:
        transform: Callable[[Function], Function] = getattr(
            importlib.import_module(f"graphc.ir.passes.{name}"), name
        )
        return transform(function)

    return Pass(name, doc, run)


PASSES: Mapping[str, Pass] = MappingProxyType(
    {
        p.name: p
        for p in (
            _pass("inline", "replace calls by the bodies of the functions called"),
            _pass("fold", "evaluate operations on constants where that is exact to the bit"),
            _pass("simplify", "rewrite by the rules of rules.py until none applies"),
            _pass("cse", "compute equal values once"),
            _pass("dce", "remove operations without uses and without effect"),
        )
    }
)

DEFAULT: tuple[str, ...] = ("inline", "fold", "simplify", "cse", "dce")


def run_pipeline(
    function: Function,
    names: Iterable[str],
    callback: Callback | None = None,
    stage: Callable[[str], AbstractContextManager[Any]] = nullcontext,
) -> Function:
    """`function` after the named passes in order, each inside `stage(its name)`.

    All names are looked up before the first pass runs; an unknown one is a `ValueError`.
    """
    for p in [_lookup(name) for name in names]:
        begin = time.perf_counter()
        with stage(p.name):
            result = p.run(function)
        seconds = time.perf_counter() - begin
        if callback is not None:
            callback(p, function, result, seconds)
        function = result
    return function


def _lookup(name: str) -> Pass:
    if name in PASSES:
        return PASSES[name]
    close = difflib.get_close_matches(name, PASSES)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    raise ValueError(f"there is no pass {name!r}; the passes are {', '.join(PASSES)}{hint}")


@dataclass
class PassObserver:
    """A callback that verifies, dumps and times. Made by `observe`.

    A dump is text that parses: what the function was, then after each pass what it became, under
    comments with the pass, the numbers of operations and the time.
    """

    verify: bool = True
    dump: TextIO | None = None
    times: MutableMapping[str, float] | None = None
    _started: bool = field(default=False, repr=False)

    def __call__(self, p: Pass, before: Function, after: Function, seconds: float) -> None:
        if self.times is not None:
            self.times[p.name] = self.times.get(p.name, 0.0) + seconds
        if self.dump is not None:
            self._dump(self.dump, p, before, after, seconds)
        if self.verify and after is not before:
            from graphc.ir.verify import VerifyError, verify

            try:
                verify(after)
            except VerifyError as error:
                error.add_note(f"after the pass {p.name}")
                raise

    def _dump(self, stream: TextIO, p: Pass, before: Function, after: Function, seconds: float) -> None:
        if not self._started:
            stream.write(f"# input: {len(before.ops)} operations\n{before}\n\n")
            self._started = True
        head = f"# {p.name}: {len(before.ops)} -> {len(after.ops)} operations, {seconds * 1e3:.2f} ms"
        stream.write(f"{head} (unchanged)\n\n" if after is before else f"{head}\n{after}\n\n")


def observe(
    verify: bool = True, dump: TextIO | None = None, times: MutableMapping[str, float] | None = None
) -> PassObserver:
    """A callback for one `run_pipeline`: checks what every pass returns, writes it to `dump`, and adds
    up seconds by pass name in `times`.
    """
    return PassObserver(verify, dump, times)
