"""Device programs: what is refused before anything is built, and what a program says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from graphc.codegen.cuda.kernels import TooLarge
from graphc.codegen.cuda.program import compile_function
from graphc.codegen.cuda.target import HOPPER, Target
from graphc.ir.text import parse_function


class Unbuilt:
    """Builds nothing, and counts what it is asked for."""

    kind = "nothing"

    def __init__(self) -> None:
        self.units: list[list[str]] = []

    def build(self, text: str, kernels: Sequence[Any], target: Target) -> bytes:
        self.units.append([k.name for k in kernels])
        return b""


@pytest.fixture(autouse=True)
def _no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHC_CACHE", "0")


ATTENTION = """
func @f(%q: f64[1, 1, 8, 256], %k: f64[1, 1, 8, 256], %v: f64[1, 1, 8, 256], %s: f64[]) -> (f64[1, 1, 8, 256]) {
  %o: f64[1, 1, 8, 256], %l: f64[1, 1, 8] = attention %q, %k, %v, %s {causal=false}
  return %o
}
"""


def test_a_kernel_that_no_block_can_hold() -> None:
    f = parse_function(ATTENTION)
    with pytest.raises(TooLarge, match=r"a kernel of attention of f64, f64, f64, f64 needs \d+ bytes of shared memory a block, and a device of compute capability 7\.5 has 65536; use a narrower element type"):
        compile_function(f, Target(75, 40, 64 << 10, 4 << 20), Unbuilt())
    assert compile_function(f, HOPPER, Unbuilt()).launches


def test_independent_groups_of_one_kernel_are_one_launch() -> None:
    lines = [f"  %y{i}: f32[{n}] = add %x{i}, %x{i}" for i, n in enumerate((5, 70, 300))]
    params = ", ".join(f"%x{i}: f32[{n}]" for i, n in enumerate((5, 70, 300)))
    text = f"func @f({params}) -> (f32[5], f32[70], f32[300]) {{\n" + "\n".join(lines) + "\n  return %y0, %y1, %y2\n}"
    builder = Unbuilt()
    program = compile_function(parse_function(text), HOPPER, builder)
    (launch,) = program.launches
    assert launch.members == 4 and launch.blocks == 3 and len(launch.arguments) == 4 * 4
    # The last member has no blocks: its end is that of the one before.
    ends = [a[1] for a in launch.arguments[3::4]]
    assert ends == [1, 2, 3, 3]
    assert [name.rsplit("_", 1)[1] for (name,) in builder.units] == ["x4"]
    assert "group0 and 2 more" in str(program)


def test_known_kernels_are_not_built_again() -> None:
    text = "func @f(%x: f32[{n}]) -> (f32[{n}]) {{\n  %y: f32[{n}] = exp2 %x\n  return %y\n}}"
    builder = Unbuilt()
    compile_function(parse_function(text.format(n=77)), HOPPER, builder)
    before = len(builder.units)
    compile_function(parse_function(text.format(n=78)), HOPPER, builder)
    assert before == 1 and len(builder.units) == 1
