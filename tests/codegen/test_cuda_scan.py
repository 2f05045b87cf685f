"""Device scans, in simulation: along every axis, in both directions, around the edges of tiles."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from graphc.codegen.c.cuda import emit_kernel
from graphc.codegen.canonical import canonicalise
from graphc.codegen.cuda.choice import Choice
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


def with_numbers(case: Case, lines: int, steps: int) -> Case:
    return replace(case, choice=Choice("scan tiles", (("lines", lines), ("steps", steps)), narrow=True))


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
    forced = [with_numbers(c, lines, steps) for lines, steps in ((32, 64), (32, 4), (8, 16)) for c in (cases[9], cases[12], cases[15])]
    check_groups([*cases, *forced, wide(cases[9])])


def test_tiles_suit_the_lines() -> None:
    """Many lines: 32 side by side; few: longer pieces of 8."""

    def chosen(lines: int, length: int) -> str:
        f = canonicalise(scan((3, length), 1).group).function
        return str(choose(f, {"e0": lines, "e1": length}, HOPPER))

    assert chosen(3, 17) == "scan tiles lines=8 steps=32 narrow"
    assert chosen(3, 9) == "scan tiles lines=8 steps=16 narrow"
    assert chosen(132, 7000) == "scan tiles lines=8 steps=256 narrow"
    assert chosen(132 * 32, 100) == "scan tiles lines=32 steps=64 narrow"
    assert chosen(132 * 32, 9) == "scan tiles lines=32 steps=16 narrow"
    assert chosen(132, 5) == "scan lines ahead=16 narrow"


def test_cases_of_the_operation() -> None:
    found = accepted("linear_scan")
    cases = [function_of("linear_scan", c) for roles, listed in found for c in (listed if roles == (F32,) else listed[3:4])]
    check_groups([c for c in cases if c is not None], seeds=(0,))


def test_text() -> None:
    assert print_kernel(prepare(scan((9, 3), 0)).lowered.kernels[0]) == """\
kernel @scan_lines(in x0: f32, in x1: f32, out y0: f32, e0, e1)
    blocks select(lt(((e1 + 63) // 64), 4224), ((e1 + 63) // 64), 4224) of 64 threads narrow {
  local a: f32[16]
  local b: f32[16]
  for line1 = ((block * 64) + thread) .. e1 step (blocks * 64) {
    var h0: f32 = 0x0.0p+0:f32
    if gt(e0, 0) {
      h0 := x1[line1]
      y0[line1] = h0
    }
    for i2 = 1 .. e0 step 16 {
      if le((i2 + 16), e0) {
        unrolled for j4 = 0 .. 16 {
          a[j4] = x0[(((i2 + j4) * e1) + line1)]
          b[j4] = x1[(((i2 + j4) * e1) + line1)]
        }
        unrolled for j4 = 0 .. 16 {
          h0 := fma(a[j4], h0, b[j4])
          y0[(((i2 + j4) * e1) + line1)] = h0
        }
      } else {
        for k3 = i2 .. e0 {
          h0 := fma(x0[((k3 * e1) + line1)], h0, x1[((k3 * e1) + line1)])
          y0[((k3 * e1) + line1)] = h0
        }
      }
    }
  }
}"""


def test_cuda_text() -> None:
    assert emit_kernel(prepare(cumulative((9, 400), 0)).lowered.kernels[0]) == """\
extern "C" __global__ void __launch_bounds__(64) scan_lines(const float *__restrict__ x0, float *__restrict__ y0, int e0, int e1, long long *error, int launch) {
    const int block = blockIdx.x;
    const int blocks = gridDim.x;
    const int thread = threadIdx.x;
    __align__(16) float b[16];
    for (int line1 = block * 64 + thread; line1 < e1; line1 += blocks * 64) {
        float h0 = 0.0f;
        if (e0 > 0) {
            h0 = x0[line1];
            y0[line1] = h0;
        }
        for (int i2 = 1; i2 < e0; i2 += 16) {
            if (i2 + 16 <= e0) {
                #pragma unroll
                for (int j4 = 0; j4 < 16; ++j4) {
                    b[j4] = x0[(i2 + j4) * e1 + line1];
                }
                #pragma unroll
                for (int j4 = 0; j4 < 16; ++j4) {
                    h0 = fmaf(1.0f, h0, b[j4]);
                    y0[(i2 + j4) * e1 + line1] = h0;
                }
            } else {
                for (int k3 = i2; k3 < e0; ++k3) {
                    const int t0 = k3 * e1 + line1;
                    h0 = fmaf(1.0f, h0, x0[t0]);
                    y0[t0] = h0;
                }
            }
        }
    }
}
"""


def test_compiled_by_nvcc() -> None:
    cases = [scan((64, 200), axis, d=d) for axis in (0, 1) for d in (F32, BF16)]
    check_compiles([cuda_text([k for i, c in enumerate(cases) for k in prepare(c, i).kernels])], hot=("scan",))
