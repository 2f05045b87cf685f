"""What machine code is made for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from graphc.codegen.llvm.target import host_target, make_target


@pytest.mark.parametrize(
    "cpu, bits", [("x86-64-v3", 256), ("haswell", 256), ("znver3", 256), ("x86-64-v4", 512), ("sapphirerapids", 512)]
)
def test_vector_width_by_name(cpu, bits):
    target = make_target(cpu, "x86_64-unknown-linux-gnu")
    assert (target.vector_bits, target.architecture) == (bits, "x86_64")


def test_arm_has_vectors_of_128_bits():
    for triple in ("aarch64-unknown-linux-gnu", "arm64-apple-darwin"):
        target = make_target("", triple)
        assert (target.vector_bits, target.architecture) == (128, "aarch64")


@pytest.mark.parametrize("cpu", ["x86-64", "x86-64-v2", "sandybridge", "ivybridge", "nehalem", "no-such-cpu"])
def test_cpus_without_fused_multiply_add_are_refused(cpu):
    with pytest.raises(RuntimeError) as caught:
        make_target(cpu, "x86_64-unknown-linux-gnu")
    assert str(caught.value) == (
        f"GRAPHC_CPU={cpu} is not known to LLVM or has no fused multiply-add; graphc needs x86-64-v3 "
        "(Haswell, Zen) or newer: set GRAPHC_CPU to such a CPU, or unset it"
    )


def test_other_architectures_are_refused():
    with pytest.raises(RuntimeError, match="x86-64 .level v3 and up. and AArch64, not for riscv64"):
        make_target("", "riscv64-unknown-linux-gnu")


def test_keys_differ_where_code_may():
    targets = [
        make_target(cpu, triple)
        for cpu, triple in (
            ("haswell", "x86_64-unknown-linux-gnu"),
            ("znver4", "x86_64-unknown-linux-gnu"),
            ("haswell", "x86_64-apple-darwin"),
            ("", "aarch64-unknown-linux-gnu"),
        )
    ]
    assert len({t.key() for t in targets}) == 4


def test_the_environment_names_the_cpu():
    cpu = "x86-64-v3" if host_target().architecture == "x86_64" else "cortex-a72"
    code = "from graphc.codegen.llvm.target import host_target; print(host_target().cpu)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "GRAPHC_CPU": cpu}, capture_output=True, text=True, check=True
    )
    assert done.stdout == cpu + "\n"
