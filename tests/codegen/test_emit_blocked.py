"""Register-blocked products: the assembly of their inner loops, on several machines."""

from __future__ import annotations

import numpy as np
import pytest
from graphc.codegen.expr import const, fma, load, var
from graphc.codegen.llvm import jit
from graphc.codegen.llvm.emit import emit_kernel
from graphc.codegen.llvm.target import make_target
from graphc.codegen.loops import Assign, Buffer, Declare, Let, Store
from graphc.ir.types import F32

from tests.codegen.kernel_oracle import assert_same
from tests.codegen.kernel_words import BEGIN, END, TARGETS, i, k, kernel, lane, loop, vector


def block_product(rows, width):
    """A register-blocked product of packed panels: a[K, rows], b[K, width] -> c[rows, width]."""
    a, b, c = Buffer("a", F32, "in"), Buffer("b", F32, "in"), Buffer("c", F32, "out")
    totals = [var(f"total{r}", F32) for r in range(rows)]
    column = var("column", F32)
    depth = var("K")
    turn = loop(
        k,
        depth,
        Let(column, load(b, k * width + lane)),
        *[Assign(t, fma(load(a, (i * depth + k) * rows + r), column, t)) for r, t in enumerate(totals)],
    )
    region = vector(
        width,
        *[Declare(t, const(F32, 0.0)) for t in totals],
        turn,
        *[Store(c, (i * rows + r) * width + lane, t) for r, t in enumerate(totals)],
    )
    return kernel([a, b, c], ["K"], loop(i, END, region, start=BEGIN)), (a, b, c)


def inner_loop(assembly):
    """The lines of the loop with the most fused multiply-adds."""
    lines = [line.strip() for line in assembly.splitlines()]
    labels = {line.rstrip(":"): at for at, line in enumerate(lines) if line.endswith(":")}
    best = []
    for at, line in enumerate(lines):
        words = line.split()
        if len(words) == 2 and words[0].startswith(("j", "b.")) and labels.get(words[1], at) < at:
            body = [x for x in lines[labels[words[1]] + 1 : at + 1] if not x.startswith(".") and not x.endswith(":")]
            if sum("fma" in x or "fmla" in x for x in body) > sum("fma" in x or "fmla" in x for x in best):
                best = body
    return best


# cpu, triple, rows, lanes of the tile, floats of a register
TILES = [
    ("skylake-avx512", "x86_64-unknown-linux-gnu", 12, 32, 16),
    ("znver5", "x86_64-unknown-linux-gnu", 12, 32, 16),
    ("haswell", "x86_64-unknown-linux-gnu", 6, 16, 8),
    ("neoverse-n1", "aarch64-unknown-linux-gnu", 8, 8, 4),
]


@pytest.mark.parametrize("cpu, triple, rows, width, register", TILES, ids=lambda v: str(v))
def test_blocked_product_stays_in_registers(cpu, triple, rows, width, register):
    """One fma for each register of the tile and turn, nothing spilled, and hardly anything else."""
    target = make_target(cpu, triple)
    run, _ = block_product(rows, width)
    body = inner_loop(jit.assembly(emit_kernel(run, target), target))
    products = [x for x in body if "fma" in x or "fmla" in x]
    assert len(products) == rows * width // register
    # Loads of the row and the column, broadcasts, and at most nine instructions that count and address.
    assert len(body) <= len(products) + rows + width // register + 9
    stack = [x for x in body if "rsp" in x or "[sp" in x or "rbp" in x]
    assert stack == []


def test_blocked_product_is_right():
    run, (a, b, c) = block_product(12, 32)
    rng = np.random.default_rng(0)
    arrays = {
        a: rng.standard_normal(2 * 7 * 12).astype(np.float32),
        b: rng.standard_normal(7 * 32).astype(np.float32),
        c: np.zeros(2 * 12 * 32, np.float32),
    }
    assert_same(run, arrays, {"K": 7}, 0, 2, TARGETS)
