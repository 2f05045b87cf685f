"""Optimisation never changes a bit: random programs, run every way there is.

Each program runs fused, with every operation in a kernel of its own, unoptimised, on one thread
and on several, and by the interpreter (with the compiler's definition of transcendental functions);
row-wise programs also run one row at a time. On a failure the function is written to a `.gir` file
and the message says how to run it again.

`GRAPHC_EQUALITY_SEEDS=start:stop` chooses other seeds; `--device cuda` runs each program there too.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphc.codegen import program as programs_module
from graphc.codegen.llvm.runner import runner
from graphc.codegen.program import Program, compile_function
from graphc.ir.autodiff import vjp
from graphc.ir.function import Function
from graphc.ir.passes import run_pipeline
from graphc.ir.text import print_function

from tests.equality.oracle import exact_interpret
from tests.equality.programs import Generator, inputs_for, same_bits

Array = np.ndarray[Any, Any]


def _seeds() -> list[int]:
    start, stop = os.environ.get("GRAPHC_EQUALITY_SEEDS", "0:400").split(":")
    return list(range(int(start), int(stop)))


def execute(program: Program, args: list[Array]) -> list[Array]:
    held = [np.ascontiguousarray(a) for a in args]
    out = [np.empty(t.shape, t.dtype.numpy) for t in program.output_types]
    program.run([a.ctypes.data for a in held], [o.ctypes.data for o in out])
    return out


def execute_on(device: str, f: Function, args: list[Array]) -> list[Array]:
    """The results of a program of a CUDA device; every third input of rank 0 stays on the CPU."""
    import graphc as gc
    from graphc.runtime.core import empty
    from graphc.runtime.cuda.execute import executable
    from graphc.runtime.spec import of_type

    place = gc.device(device)
    held = [gc.asarray(a, device="cpu" if not a.shape and i % 3 == 0 else place) for i, a in enumerate(args)]
    out = [empty(of_type(t, False, place)) for t in f.result_types]
    program = executable(f, (), place, [t._spec for t in held], [t._spec for t in out])
    for _ in range(2):
        program.run([t._address for t in held], [t._address for t in out])
    return [t.cpu().numpy() for t in out]


def check(f: Function, seed: int, what: str, expected: list[Array], got: list[Array]) -> None:
    for i, (a, b) in enumerate(zip(expected, got, strict=True)):
        if same_bits(a, b):
            continue
        path = Path(tempfile.gettempdir(), f"graphc-{f.name}.gir")
        path.write_text(print_function(f))
        differing = np.argwhere(~((a == b) | ((a != a) & (b != b))))
        first = tuple(differing[0]) if len(differing) else ()
        pytest.fail(
            f"result {i} of seed {seed} differs ({what}) at {first}: {a[first]!r} and {b[first]!r}\n"
            f"function: {path}\nagain: GRAPHC_EQUALITY_SEEDS={seed}:{seed + 1} pytest {__file__}",
            pytrace=False,
        )


@pytest.fixture
def many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even the smallest launch is cut into as many pieces as there are threads."""
    monkeypatch.setattr(programs_module, "GRAIN", 1)


def run_on(threads: int, program: Program, args: list[Array]) -> list[Array]:
    before = runner().get_threads()
    runner().set_threads(threads)
    try:
        return execute(program, args)
    finally:
        runner().set_threads(before)


@pytest.mark.parametrize("seed", _seeds())
def test_every_way_gives_the_same_bits(seed: int, many_parts: None, request: pytest.FixtureRequest) -> None:
    f = Generator(seed).function()
    if seed % 4 == 0:
        f = run_pipeline(vjp(f), ("inline", "dce"))
    args = inputs_for(f, seed)
    fused = compile_function(f)
    expected = execute(fused, args)
    check(f, seed, "one thread", expected, run_on(1, fused, args))
    check(f, seed, "three threads", expected, run_on(3, fused, args))
    check(f, seed, "every operation on its own", expected, execute(compile_function(f, fused=False), args))
    check(f, seed, "unoptimised", expected, execute(compile_function(f, optimise=False), args))
    check(f, seed, "interpreted", expected, exact_interpret(f, args))
    device = request.config.getoption("--device")
    if device != "cpu":
        check(f, seed, f"on {device}", expected, execute_on(device, f, args))


@pytest.mark.parametrize("seed", [s for s in _seeds() if s % 4 == 1])
def test_a_row_alone_or_in_company(seed: int, many_parts: None) -> None:
    batch = 5
    f = Generator(seed, row_wise=True, batch=batch).function()
    one = Generator(seed, row_wise=True, batch=1).function()
    args = inputs_for(f, seed)
    together = execute(compile_function(f), args)
    alone = compile_function(one)
    batched = [int(q.type.shape[0]) != int(p.type.shape[0]) for p, q in zip(f.params, one.params) if p.type.rank] if f.params else []
    assert any(batched)
    for row in range(batch):
        sliced = [
            a[row : row + 1] if p.type.shape != q.type.shape else a
            for a, p, q in zip(args, f.params, one.params, strict=True)
        ]
        check(one, seed, f"row {row}", [t[row : row + 1] for t in together], execute(alone, sliced))
