"""The machine that code is made for: triple, CPU, features, vector width, data layout.

Results do not depend on any of this (docs/numerics.md), only speed does; but every target must have
a fused multiply-add in hardware, because `fma` is an operation of its own in every kernel.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from typing import Any

# What the host must have: fma for the arithmetic, f16c for float16 conversions.
_X86_REQUIRED = ("avx2", "fma", "f16c", "bmi2")
# What a named CPU has is asked of LLVM, by what it makes of this.
_PROBE = """
define <16 x float> @probe(<16 x float> %x) #0 {
  %y = call <16 x float> @llvm.fma(<16 x float> %x, <16 x float> %x, <16 x float> %x)
  ret <16 x float> %y
}
define half @convert(float %x) #0 {
  %y = fptrunc float %x to half
  ret half %y
}
attributes #0 = { nounwind "prefer-vector-width"="512" }
"""


@dataclass(frozen=True)
class Target:
    """What LLVM compiles for. `features` is LLVM's "+a,-b" text; empty: those of `cpu`."""

    triple: str
    cpu: str
    features: str
    vector_bits: int
    data_layout: str

    def key(self) -> str:
        """Text that differs wherever generated code may differ."""
        return f"{self.triple}|{self.cpu}|{self.features}|{self.vector_bits}"

    @property
    def architecture(self) -> str:
        """`x86_64` or `aarch64`."""
        name = self.triple.split("-", 1)[0].lower()
        return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)


def llvm_binding() -> Any:
    """`llvmlite.binding`, initialised once for the host's architecture."""
    return _initialised()


@functools.cache
def _initialised() -> Any:
    import llvmlite.binding as llvm  # type: ignore[import-untyped]

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm


@functools.cache
def host_target() -> Target:
    """The target of this process: the host, or the CPU named by the environment's GRAPHC_CPU.

    Raises `RuntimeError` where the CPU lacks a fused multiply-add or is of another architecture.
    """
    return make_target(os.environ.get("GRAPHC_CPU", ""))


@functools.cache
def make_target(cpu: str = "", triple: str = "") -> Target:
    """The target for an LLVM CPU name such as "x86-64-v3"; "" is the host with all it has.

    triple: another machine to make assembly or objects for, such as "aarch64-unknown-linux-gnu".
    Raises `RuntimeError` where the CPU lacks a fused multiply-add or is of another architecture.
    """
    llvm = _initialised()
    if triple and triple != llvm.get_process_triple():
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
        cpu = cpu or ("x86-64-v3" if triple.startswith(("x86_64", "amd64")) else "generic")
    triple = triple or llvm.get_process_triple()
    architecture = triple.split("-", 1)[0].lower()
    if architecture in ("x86_64", "amd64"):
        cpu, features, bits = _x86(llvm, cpu, triple)
    elif architecture in ("aarch64", "arm64"):
        # Every AArch64 CPU has fma and 128-bit vectors; kernels use fixed-width NEON.
        cpu, features, bits = (cpu or llvm.get_host_cpu_name()), "", 128
    else:
        raise RuntimeError(
            f"graphc makes code for x86-64 (level v3 and up) and AArch64, not for {triple}; "
            "use a machine of one of these architectures"
        )
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, features=features)
    return Target(triple, cpu, features, bits, str(machine.target_data))


def _x86(llvm: Any, cpu: str, triple: str) -> tuple[str, str, int]:
    if cpu:
        made = _probe(llvm, triple, cpu)
        if "vfmadd" not in made or "__truncsfhf2" in made:
            raise RuntimeError(
                f"GRAPHC_CPU={cpu} is not known to LLVM or has no fused multiply-add; graphc needs x86-64-v3 "
                "(Haswell, Zen) or newer: set GRAPHC_CPU to such a CPU, or unset it"
            )
        return cpu, "", 512 if "zmm" in made else 256
    host = llvm.get_host_cpu_features()
    missing = [f for f in _X86_REQUIRED if not host.get(f)]
    if missing:
        raise RuntimeError(
            f"this CPU ({llvm.get_host_cpu_name()}) lacks {', '.join(missing)}; graphc needs x86-64-v3 "
            "(Haswell, Zen) or newer, since a fused multiply-add is part of every kernel"
        )
    wide = all(host.get(f) for f in ("avx512f", "avx512bw", "avx512dq", "avx512vl"))
    # Features are listed one by one: a virtual machine may hide some of those the name implies.
    return llvm.get_host_cpu_name(), host.flatten(), 512 if wide else 256


def _probe(llvm: Any, triple: str, cpu: str) -> str:
    # LLVM aborts on a CPU without these, such as one that it does not know.
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, features="+64bit,+cx8,+sse2")
    return str(machine.emit_assembly(llvm.parse_assembly(_PROBE, llvm.create_context())))
