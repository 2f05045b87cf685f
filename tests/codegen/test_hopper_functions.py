"""The functions of hopper.h: their simulation, their arithmetic, their text in kernels, and what the compilers say of them."""

from __future__ import annotations

import ctypes
import dataclasses
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from graphc.codegen.c.prelude import FOLDER, sections
from graphc.codegen.cuda.compiler import find_nvcc
from graphc.codegen.cuda.products import hopper
from graphc.codegen.cuda.simulate import SimulationError, compiler
from graphc.codegen.cuda.target import HOPPER
from graphc.codegen.cuda.tensormap import BYTES, encoding, simulated
from graphc.ir.types import BF16

from tests.codegen.contractions import biased, conv_group
from tests.codegen.device import Case, check_compiles, cuda_text, library, prepare
from tests.codegen.hopper_products import MAJORS, case, dot, plain
from tests.codegen.products import gelu


def test_every_function_is_simulated() -> None:
    text = '#include "simulate.h"\n#include "simulate_hopper.h"\n'
    command = [compiler(), "-std=c++17", "-E", "-P", "-x", "c++", f"-I{FOLDER}", "-"]
    seen = subprocess.run(command, input=text, check=True, capture_output=True, text=True).stdout
    own = {"shared_address", "wgmma_descriptor"}
    names = set(re.findall(r"^// function ([a-z]\w*)$", (FOLDER / "hopper.h").read_text(), re.MULTILINE)) - own
    called = {n for n in names if not n.startswith("wgmma_step")}
    assert len(called) > 40
    assert not (missing := {n for n in called if not re.search(rf"\b{n}\(", seen)}), missing


COPY = """\
extern "C" __global__ void copy(const __grid_constant__ TensorMap from, const __grid_constant__ TensorMap to) {
    DYNAMIC_SHARED(shared);
    unsigned short *tile = (unsigned short *)shared;
    unsigned long long *full = (unsigned long long *)(shared + 8192);
    if (threadIdx.x == 0) {
        mbarrier_init(full, 1);
        mbarrier_init_done();
        mbarrier_arrive_expect(full, 8192);
        bulk_load_2d(tile, &from, full, 8, -3);
    }
    __syncthreads();
    mbarrier_wait(full, 0);
    for (int i = threadIdx.x; i < 4096; i += 64) tile[i] += 1;
    async_proxy_fence();
    named_barrier(1, 64);
    if (threadIdx.x == 0) {
        bulk_store_2d(&to, tile, 8, -3);
        bulk_store_commit();
        bulk_store_wait();
    }
}
"""


def test_bulk_copies_there_and_back() -> None:
    """A box that overhangs at the top and on the right: zeros come from outside, nothing goes there."""
    source = np.arange(40 * 56, dtype=np.uint16).reshape(40, 56)
    target = np.full_like(source, 9)
    wanted = target.copy()
    wanted[:, 8:] = source[:, 8:] + 1
    e = encoding(BF16, (56, 40), (56,), (64, 64))
    maps = [ctypes.create_string_buffer(simulated(a.ctypes.data, e), BYTES) for a in (source, target)]
    built = library(COPY)
    for seed in range(4):
        target[...] = 9
        built.launch("copy", maps, 1, 64, 8192 + 8, seed)
        assert np.array_equal(target, wanted)
    forgotten = COPY.replace("        bulk_store_wait();\n", "")
    with pytest.raises(SimulationError, match="ended with 1 bulk copies under way"):
        library(forgotten).launch("copy", maps, 1, 64, 8192 + 8)


def test_descriptors_are_those_of_the_header(tmp_path: Path) -> None:
    """hopper.h's own arithmetic, compiled for the CPU: what its steps are given for tiles at shared address 0x12400 and 0x4000."""
    text = "".join(sections("cuda")[name] for name in ("wgmma_descriptor", "WGMMA_TILE")).replace("INLINE", "static")
    source = tmp_path / "descriptors.cpp"
    source.write_text(
        "#include <cstdio>\nstatic unsigned shared_address(const void *p) { return (unsigned)(size_t)p; }\n"
        "template <int A, int B> static void step(float *, unsigned long long a, unsigned long long b) "
        '{ printf("%llx %llx\\n", a, b); }\n'
        + text
        + "WGMMA_TILE(kk, step, 0, 0)\nWGMMA_TILE(mm, step, 1, 1)\n"
        "int main() { kk(nullptr, (void *)0x12400, (void *)0x4000); mm(nullptr, (void *)0x12400, (void *)0x4000); }\n"
    )
    subprocess.run([compiler(), str(source), "-o", str(tmp_path / "descriptors")], check=True)
    out = subprocess.run([tmp_path / "descriptors"], check=True, capture_output=True, text=True).stdout
    # PTX ISA, matrix descriptor: bits 0-13 start, 16-29 leading, 32-45 stride offset, all in 16 bytes; 62-63 swizzle.
    found = [tuple(int(x, 16) for x in line.split()) for line in out.splitlines()]
    for line, (step, leading) in zip(found, [(32, 16)] * 4 + [(2048, 8192)] * 4, strict=True):
        i = found.index(line) % 4
        for start, d in zip((0x12400, 0x4000), line, strict=True):
            assert d == (start + i * step) >> 4 | leading >> 4 << 16 | 1024 >> 4 << 32 | 1 << 62


PRODUCER = """\
for (int step = 0; step < steps; ++step) {
    const int k = step * 64;
    const int t = parity ^ 1;
    mbarrier_wait(empty + stage, t);
    mbarrier_arrive_expect(full + stage, 16384);
    const int t = stage * 4096;
    bulk_load_2d(left + t, &left_map, full + stage, k, m0);
    bulk_load_2d(right + t, &right_map, full + stage, n0, k);
    const bool t = stage == 4;
    parity = t ? t : parity;
    stage = t ? 0 : stage + 1;
}
"""
CONSUMER = """\
for (int step = 0; step < steps; ++step) {
    mbarrier_wait(full + stage, parity);
    wgmma_fence();
    wgmma_bf16_n64_km(sums, left + (stage * 64 + consumer * 64) * 64, right + stage * 4096);
    wgmma_commit();
    wgmma_wait_1();
    if (thread % 32 == 0 && step > 0) {
        mbarrier_arrive(empty + last);
    }
    last = stage;
    const bool t = stage == 4;
    parity = t ? parity ^ 1 : parity;
    stage = t ? 0 : stage + 1;
}
"""


def test_the_text_of_a_product() -> None:
    """Its two inner loops, without the numbers of names."""
    p = prepare(case(plain("bf16", "km", 72, 136, 40), hopper.TILES[6]))
    text = cuda_text(p.kernels, HOPPER)
    assert "asm" not in text[text.index('extern "C"') :]
    plainly = re.sub(r"\bt\d+\b", "t", re.sub(r"\b(?!wgmma)([a-z]\w*)_\d+\b", r"\1", text))
    lines = [line.strip() for line in plainly.splitlines()]
    for expected in (PRODUCER, CONSUMER):
        wanted = [line.strip() for line in expected.splitlines()]
        assert any(lines[i : i + len(wanted)] == wanted for i in range(len(lines))), plainly


def _compiles(cases: list[Case]) -> None:
    prepared = [prepare(c, i) for i, c in enumerate(cases)]
    kernels = [k for p in prepared for k in p.kernels]
    usage = check_compiles([cuda_text(kernels, HOPPER)], ("sm_90a",), hot=[k.name for k in kernels])
    for p in prepared:
        found = usage[p.kernels[-1].name, "sm_90a"]
        grid = p.kernels[-1].grid
        assert grid is not None
        assert found.registers * grid.threads * grid.resident <= 65536
        # setmaxnreg shares out what the block was started with, which must be all that it can have.
        many = "registers_increase" in cuda_text(p.kernels[-1:], HOPPER)
        assert not many or (grid.threads, found.registers) == (384, 168)


PATCHES = conv_group("bf16[8, 64, 56, 56]", "bf16[64, 64, 3, 3]", padding=((1, 1), (1, 1)))


def test_the_compiler_spills_nothing() -> None:
    large = dot("f16[1024, 512]", "f16[512, 1024]", epilogue=gelu)
    _compiles([
        case(large, hopper.TILES[2], []),
        case(PATCHES, hopper.TILES[3], []),
        case(plain("bf16", "km", 1024, 512, 1024), hopper.CLUSTERS[0], []),
    ])  # fmt: skip


def test_the_compiler_says_nothing_of_waits_or_registers(tmp_path: Path) -> None:
    """It warns where it waits for each wgmma by itself (C7510 and the like), or does not follow setmaxnreg (C7508)."""
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("CUDA C is not compiled here: nvcc was not found")
    heads = "bf16[4, 16, 1024, 1024]"
    groups = [dot(heads, heads, (2,), (2,), 2), dot("bf16[4096, 1024]", "bf16[1024, 4096]", epilogue=biased(1))]
    cases = [case(g, t, []) for g, t in zip(groups, (hopper.CLUSTERS[1], hopper.TILES[2]), strict=True)]
    # 64-bit positions take the most registers.
    cases = [dataclasses.replace(c, choice=dataclasses.replace(c.choice, narrow=False)) for c in cases if c.choice]
    kernels = [k for i, c in enumerate(cases) for k in prepare(c, i).kernels]
    (tmp_path / "kernels.cu").write_text(cuda_text(kernels, HOPPER))
    command = [nvcc, "-cubin", "-gencode=arch=compute_90a,code=sm_90a", "-diag-suppress=177", "kernels.cu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not (done.stdout + done.stderr).strip(), done.stdout + done.stderr


@pytest.mark.slow
def test_the_compiler_spills_nothing_in_any_form() -> None:
    cases = []
    for tile in (*hopper.TILES, *hopper.CLUSTERS):
        cases += [case(plain("bf16", major, 1024, 512, 1024), tile, []) for major in MAJORS]
        cases.append(case(dot("f16[1000, 504]", "f16[504, 1001]", epilogue=gelu), tile, []))
        cases.append(case(dot("f16[1024, 512]", "f16[512, 1024]", epilogue=gelu), tile, []))
        cases.append(case(plain("f32", "kk", 1024, 512, 1024, "tf32"), tile, []))
        if tile.sums <= 64 and tile.cluster == 1:
            cases.append(case(PATCHES, tile, []))
    _compiles(cases)
