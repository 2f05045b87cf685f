"""Device scans, in simulation: along every axis, in both directions, around the edges of tiles."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from graphc.codegen.canonical import canonicalise
from graphc.codegen.cuda.lower import choose
from graphc.codegen.cuda.target import HOPPER
from graphc.codegen.loops import print_kernel
from graphc.ir.function import Builder, Function, Value
from graphc.ir.types import BF16, F16, F32, F64, I8, I64, U32, DType, TensorType

from tests.codegen.device import Case, check_compiles, check_groups, cuda_text, prepare
from tests.codegen.operation_cases import accepted
from tests.codegen.test_cuda_map import function_of
from tests.codegen.values import mixed, plain

DTYPES = (F32, F16, BF16, F64, I8, I64, U32)


def scan(shape: tuple[int, ...], axis: int, reverse: bool = False, d: DType = F32, values: Any = plain) -> Case:
    b = Builder("scan")
    x, y = (b.param(TensorType(d, shape)) for _ in range(2))
    f = b.build([b.emit("linear_scan", x, y, axis=axis, reverse=reverse)])
    return Case(f, [values(d, shape, i) for i in range(2)])


def cumulative(shape: tuple[int, ...], axis: int, d: DType = F32) -> Case:
    """A cumulative sum: the factors are one number."""
    b = Builder("cumsum")
    x = b.param(TensorType(d, shape))
    one: Value = b.emit("full", b.constant(value=np.ones((), d.numpy)), shape=shape)
    f: Function = b.build([b.emit("linear_scan", one, x, axis=axis, reverse=False)])
    return Case(f, [plain(d, shape, 0)])


def form(case: Case) -> str:
    return str(prepare(case).choice)


def wide(case: Case) -> Case:
    canonical = canonicalise(case.group)
    choice = choose(canonical.function, {n: int(d) for n, d in canonical.extents}, HOPPER)
    return replace(case, choice=replace(choice, narrow=False))


def test_side_by_side() -> None:
    """Lines that are neighbours in memory."""
    shapes = ((1, 5), (7, 3), (8, 33), (9, 64), (16, 65), (17, 130), (3, 17, 5), (2, 40, 3))
    cases = [scan(s, len(s) - 2, i % 2 == 1, DTYPES[i % len(DTYPES)]) for i, s in enumerate(shapes)]
    cases += [scan((5, 7, 3), 0), scan((100, 2), 0, True, values=mixed), cumulative((33, 5), 0), cumulative((9, 40), 0, BF16)]
    assert all(form(c).startswith("scan lines") for c in cases)
    check_groups([*cases, wide(cases[3])])


def test_innermost() -> None:
    """Lines along memory: tiles of 32 lines and 16, 32 or 64 steps."""
    shapes = ((8,), (100,), (64,), (65,), (3, 16), (5, 17), (33, 9), (31, 33), (32, 128), (65, 63), (2, 3, 200), (40, 7))
    cases = [scan(s, len(s) - 1, i % 2 == 1, DTYPES[i % len(DTYPES)]) for i, s in enumerate(shapes)]
    cases += [scan((34, 130), 1, reverse, values=mixed) for reverse in (False, True)]
    cases += [cumulative((35, 70), 1), cumulative((300,), 0, F16), cumulative((3, 20), 1, I64)]
    assert {" ".join(form(c).split()[:3]) for c in cases} >= {f"scan tiles steps={n}" for n in (16, 32, 64)}
    check_groups([*cases, wide(cases[9])])


def test_cases_of_the_operation() -> None:
    found = accepted("linear_scan")
    cases = [function_of("linear_scan", c) for roles, listed in found for c in (listed if roles == (F32,) else listed[3:5])]
    check_groups([c for c in cases if c is not None], seeds=(0,))


def test_text() -> None:
    assert print_kernel(prepare(scan((3, 9), 1)).lowered.kernels[0]).startswith("""\
kernel @scan_tiles(in x0: f32, in x1: f32, out y0: f32, e0, e1)
    blocks select(lt(((e0 + 31) // 32), 4224), ((e0 + 31) // 32), 4224) of 128 threads narrow {
  shared addends: f32[544]
  shared factors: f32[544]
  let c4 = (thread % 16)
  let r5 = (thread // 16)
  for item1 = block .. ((e0 + 31) // 32) step blocks {
    let first2 = (item1 * 32)
    var h0: f32 = 0x0.0p+0:f32
    for t3 = 0 .. e1 step 16 {
      for some7 = 0 .. 32 step 32 {
        unrolled for part6 = 0 .. 32 step 8 {
          let line8 = (first2 + ((r5 + some7) + part6))
          if and(lt(line8, e0), lt((t3 + c4), e1)) {
            addends[((((r5 + some7) + part6) * 17) + c4)] = x1[((line8 * e1) + (t3 + c4))]
            factors[((((r5 + some7) + part6) * 17) + c4)] = x0[((line8 * e1) + (t3 + c4))]
          }
        }
      }
      barrier block
""")


@pytest.mark.parametrize("axis", [0, 1])
def test_compiled_by_nvcc(axis: int) -> None:
    cases = [scan((64, 200), axis, d=d) for d in (F32, BF16, F64)]
    check_compiles([cuda_text([k for i, c in enumerate(cases) for k in prepare(c, i).kernels])], hot=("scan",))
