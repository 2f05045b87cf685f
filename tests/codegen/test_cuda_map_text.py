"""Device maps as text: loops, CUDA C, and what nvcc makes of it."""

from __future__ import annotations

from graphc.codegen.c.cuda import emit_kernel
from graphc.codegen.cuda.choice import Choice
from graphc.codegen.loops import print_kernel
from graphc.ir.function import Function
from graphc.ir.types import BF16, F32

from tests.codegen.device import Case, check_compiles, cuda_text, prepare
from tests.codegen.test_cuda_map import Array, biased, built, crossed, form


def text_of(case: tuple[Function, list[Array]]) -> str:
    return print_kernel(prepare(Case(*case)).lowered.kernels[0])


def cuda_of(case: tuple[Function, list[Array]]) -> str:
    return emit_kernel(prepare(Case(*case)).lowered.kernels[0])


def test_text_of_a_flat_map() -> None:
    assert text_of(built((F32, (64, 3)), (F32, (64, 3)), body=lambda b, x, y: b.add(x, y))) == """\
kernel @map(in x0: f32, in x1: f32, out y0: f32, e0)
    blocks select(lt(((e0 + 2047) // 2048), 4224), ((e0 + 2047) // 2048), 4224) of 256 threads narrow {
  for p0 = ((block * 2048) + (thread * 4)) .. e0 step (blocks * 2048) {
    if le((p0 + 1028), e0) {
      unrolled for u1 = 0 .. 2 {
        let q2 = (p0 + (u1 * 1024))
        vector l3 < 4 {
          y0[(q2 + l3)] = add(x0[(q2 + l3)], x1[(q2 + l3)])
        }
      }
    } else {
      for u1 = 0 .. 2 {
        let q4 = (p0 + (u1 * 1024))
        if lt(q4, e0) {
          for l5 = 0 .. 4 {
            if lt((q4 + l5), e0) {
              y0[(q4 + l5)] = add(x0[(q4 + l5)], x1[(q4 + l5)])
            }
          }
        }
      }
    }
  }
}"""


def test_cuda_text_of_a_flat_map() -> None:
    assert cuda_of(built((F32, (64,)), (F32, (64,)), body=lambda b, x, y: b.add(x, y))) == """\
extern "C" __global__ void __launch_bounds__(256) map(const float *__restrict__ x0, const float *__restrict__ x1, float *__restrict__ y0, int e0, long long *error, int launch) {
    const int block = blockIdx.x;
    const int blocks = gridDim.x;
    const int thread = threadIdx.x;
    for (int p0 = block * 2048 + thread * 4; p0 < e0; p0 += blocks * 2048) {
        if (p0 + 1028 <= e0) {
            #pragma unroll
            for (int u1 = 0; u1 < 2; ++u1) {
                const int q2 = p0 + u1 * 1024;
                const wide<float, 4> x0_4 = load_wide<4>(x0 + q2);
                const wide<float, 4> x1_4 = load_wide<4>(x1 + q2);
                wide<float, 4> y0_4;
                #pragma unroll
                for (int l3 = 0; l3 < 4; ++l3) {
                    y0_4.lane[l3] = x0_4.lane[l3] + x1_4.lane[l3];
                }
                store_wide(y0 + q2, y0_4);
            }
        } else {
            for (int u1 = 0; u1 < 2; ++u1) {
                const int q4 = p0 + u1 * 1024;
                if (q4 < e0) {
                    for (int l5 = 0; l5 < 4; ++l5) {
                        if (q4 + l5 < e0) {
                            y0[q4 + l5] = x0[q4 + l5] + x1[q4 + l5];
                        }
                    }
                }
            }
        }
    }
}
"""


def test_cuda_text_of_a_transpose() -> None:
    assert cuda_of(crossed((128, 96), (1, 0), F32)) == """\
extern "C" __global__ void __launch_bounds__(256) map_transpose(const float *__restrict__ x0, const float *__restrict__ x1, float *__restrict__ y0, int e0, int e1, long long *error, int launch) {
    const int block = blockIdx.x;
    const int blocks = gridDim.x;
    const int thread = threadIdx.x;
    __shared__ __align__(16) float square0[1056];
    const int x5 = thread % 32;
    const int y6 = thread / 32;
    const int t0 = (e1 + 31) / 32;
    const int t1 = (e0 + 31) / 32;
    for (int item0 = block; item0 < t0 * t1; item0 += blocks) {
        const int left4 = item0 % t1 * 32;
        const int rest1 = item0 / t1;
        const int top3 = rest1 % t0 * 32;
        const bool full8 = top3 + 32 <= e1 && left4 + 32 <= e0;
        if (full8) {
            #pragma unroll
            for (int r7 = 0; r7 < 32; r7 += 8) {
                square0[(y6 + r7) * 33 + x5] = x0[(left4 + y6 + r7) * e1 + (top3 + x5)];
            }
        } else {
            for (int r7 = 0; r7 < 32; r7 += 8) {
                const int t2 = left4 + y6 + r7;
                if (top3 + x5 < e1 && t2 < e0) {
                    square0[(y6 + r7) * 33 + x5] = x0[t2 * e1 + (top3 + x5)];
                }
            }
        }
        __syncthreads();
        if (full8) {
            #pragma unroll
            for (int r7 = 0; r7 < 32; r7 += 8) {
                const int t3 = (top3 + y6 + r7) * e0 + (left4 + x5);
                const float v9 = square0[x5 * 33 + y6 + r7] + x1[t3];
                y0[t3] = v9;
            }
        } else {
            for (int r7 = 0; r7 < 32; r7 += 8) {
                const int t4 = top3 + y6 + r7;
                if (left4 + x5 < e0 && t4 < e1) {
                    const int t5 = t4 * e0 + (left4 + x5);
                    const float v9 = square0[x5 * 33 + y6 + r7] + x1[t5];
                    y0[t5] = v9;
                }
            }
        }
        __syncthreads();
    }
}
"""


HOT = {
    "add": built((F32, (4096,)), (F32, (4096,)), body=lambda b, x, y: b.add(x, y)),
    "gelu": built((BF16, (4096,)), body=lambda b, x: b.mul(x, b.emit("erf", x))),
    "bias": biased((64, 256)),
    "wrapped": biased((64, 257)),
    "wrapped16": biased((64, 49), BF16),
    "transpose": crossed((128, 96), (1, 0), F32),
    "transpose16": crossed((128, 96), (1, 0), BF16),
}


def test_compiled_by_nvcc() -> None:
    """For both generations, without spills."""
    kernels = [k for i, c in enumerate(HOT.values()) for k in prepare(Case(*c), i).kernels]
    check_compiles([cuda_text(kernels)], hot=("map",))
    wide = HOT["add"]
    text = cuda_text(prepare(Case(*wide)).kernels)
    assert "load_wide<4>(x0 + q2)" in text


def test_choices_tell_kernels_apart() -> None:
    assert str(Choice("map", (("width", 4),), narrow=True)) == "map width=4 narrow"
    assert "e1%4" in form(biased((7, 64)))
    assert len({form(biased((7, n))) for n in (64, 65, 66, 256)}) == 3


