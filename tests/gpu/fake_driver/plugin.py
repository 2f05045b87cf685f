"""In a process with the fake driver: what is compiled for its devices are simulation libraries. Import it, or `pytest -p` it."""

from __future__ import annotations

from graphc.runtime.cuda import build
from graphc.runtime.cuda.simulation import SimulationBuilder

build._builders["cubin"] = SimulationBuilder()
