"""Functions written ahead of time as C: a strict compiler takes the text, and its code gives the bits of the object output."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphc.codegen.aot_c import AheadOfTimeC, compile_ahead_c, write_c_files
from graphc.ir.function import Builder, Function
from graphc.ir.types import ALL_DTYPES

from tests.codegen.compiled import difference
from tests.codegen.values import combinations
from tests.equality.programs import Generator
from tests.graphc.ahead import Entry, just_in_time, random_args
from tests.graphc.test_aot import BATCHES, convolutional, descent, lookup, param, rows, wide

FLAGS = ("-std=c99", "-pedantic", "-Wall", "-Werror", "-ffp-contract=off")
COMPILER = shutil.which("gcc") or shutil.which("cc")
needs_c = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")


@dataclass
class Net:
    """A function, what is constant in it, and the sizes that it is run with."""

    f: Function
    sizes: Sequence[Mapping[str, int]] = ({},)
    constants: Mapping[int, Any] = field(default_factory=dict)


def held(f: Function) -> dict[int, Any]:
    return {i: a for i, a in enumerate(random_args(f, {"B": 1}, seed=1)) if i}


def special_constants() -> Function:
    """A constant of every element type, with infinities, NaN, subnormals and both zeros."""
    b = Builder("f")
    results = []
    for d in ALL_DTYPES:
        (values,) = combinations((d,))
        y = b.constant(value=values)
        results.append(b.concat(y, y, axis=0))
    return b.build(results)


def layered() -> Function:
    """Sums over all rows keep the operations apart: several launches share slots of the workspace."""
    b = Builder("f")
    x = param(b, "f32[B, 16]")
    y: Any = x
    for _ in range(3):
        y = b.exp(b.neg(b.abs(b.sub(y, wide(b, b.sum(y, axes=(0,)), x.type.shape, 1)))))
    return b.build([y])


def build(written: Sequence[AheadOfTimeC], folder: Path, level: str) -> str:
    """One library of several C files, in one call of the compiler."""
    files = [str(write_c_files(c, folder / c.name)[0]) for c in written]
    library = folder / "all.so"
    command = [str(COMPILER), *FLAGS, level, "-shared", "-fPIC", "-o", str(library), *files, "-lm"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:3000]
    return str(library)


@needs_c
@pytest.mark.parametrize("level", ["-O0", "-O3"])
def test_every_function_gives_the_bits_of_the_object(tmp_path: Path, level: str) -> None:
    nets = {"digits": Net(convolutional(), BATCHES[:4], held(convolutional())), "layered": Net(layered(), BATCHES[:4])}
    if level == "-O0":
        nets.update({"rows": Net(rows(), BATCHES[:5]), "special": Net(special_constants())})
        nets.update({f"random{seed}": Net(Generator(1000 + seed).function()) for seed in range(2)})
    written = {name: compile_ahead_c(net.f, name, net.constants) for name, net in nets.items()}
    library = build(list(written.values()), tmp_path, level)
    for name, net in nets.items():
        entry = Entry(written[name], library)
        for symbols in net.sizes:
            args = random_args(net.f, symbols)
            code, got = entry.run(symbols, [a for i, a in enumerate(args) if i not in net.constants])
            assert code == 0, entry.error(code)
            whole = [net.constants.get(i, a) for i, a in enumerate(args)]
            for e, g in zip(just_in_time(net.f, symbols, whole), got, strict=True):
                assert not difference(e, g), f"{name} {symbols}: {difference(e, g)}"


@needs_c
def test_errors_and_state(tmp_path: Path) -> None:
    initial = np.array([1, 2, 3], np.float32)
    look, step = compile_ahead_c(lookup(), "lookup"), compile_ahead_c(descent(), "descent", {2: initial}, state={2: 1})
    library = build([look, step], tmp_path, "-O1")
    entry = Entry(look, library)
    table = random_args(lookup(), {"T": 9, "N": 4})[0]
    code, _ = entry.run({"T": 9, "N": 4}, [table, np.array([0, 8, 9, 3])])
    assert b"gather" in entry.error(code) and b"model.py:12" in entry.error(code)
    assert b"is negative" in entry.error(entry.call(9, -1, 0, 0, 0, 0))
    assert entry.error(99) == b"lookup has no such return code"

    trained = Entry(step, library)
    weights = initial
    for n in (5, 1, 7):
        args = random_args(descent(), {"N": n}, seed=n)[:2]
        code, (loss, before) = trained.run({"N": n}, args)
        expected = just_in_time(descent(), {"N": n}, [*args, weights])
        assert code == 0 and before.tobytes() == weights.tobytes() and loss.tobytes() == expected[0].tobytes()
        weights = expected[1]
        assert trained.state.tobytes()[:12] == weights.tobytes()


def test_the_text() -> None:
    written = compile_ahead_c(convolutional(), "digits", held(convolutional()))
    assert '#include "digits.h"\n' in written.source
    assert "static void digits_kernel0(const int64_t *args, int64_t begin, int64_t end, int64_t *error) {\n" in written.source
    assert "    if (B < 0) return 1;\n" in written.source
    assert "static const float constant" in written.source
    assert written.header.startswith("/* digits, written by graphc as C99.\n")
    assert "-ffp-contract=off" in written.header


def test_names_that_c_cannot_have() -> None:
    with pytest.raises(ValueError, match="is not a C identifier"):
        compile_ahead_c(rows(), "two words")
