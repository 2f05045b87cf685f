"""The device that CUDA code is made for: what decides its text and its schedule."""

from __future__ import annotations

from dataclasses import dataclass

OLDEST = 70  # independent thread scheduling, and shuffles with a mask


@dataclass(frozen=True)
class Target:
    """capability: 10 * major + minor. multiprocessors, shared (bytes a block may have) and l2 (bytes) guide schedules.

    >>> Target(90).arch, Target(80).arch
    ('sm_90a', 'sm_80')
    """

    capability: int = 90
    multiprocessors: int = 132
    shared: int = 227 << 10
    l2: int = 50 << 20

    def __post_init__(self) -> None:
        if self.capability < OLDEST:
            raise ValueError(
                f"graphc compiles for CUDA devices of compute capability 7.0 and later, not {self.capability / 10}: "
                "use a newer GPU, or the device \"cpu\""
            )

    @property
    def arch(self) -> str:
        """The name that the compilers know; the "a" allows instructions that later chips lack."""
        return f"sm_{self.capability}" + ("a" if self.capability in (90, 100, 103, 120) else "")

    @property
    def tensor_cores(self) -> str:
        """The best form of tensor-core products: "wgmma", "mma" or "" (none that graphc uses)."""
        if self.capability == 90:
            return "wgmma"
        return "mma" if self.capability >= 80 else ""

    def key(self) -> str:
        """All of the target that decides the bytes of a kernel."""
        return f"cuda {self.arch} {self.multiprocessors} {self.shared} {self.l2}"


HOPPER = Target(90)
AMPERE = Target(80, 108, 163 << 10, 40 << 20)
