"""Measuring the schedules of products on a device: every candidate runs, the fastest is stored (codegen/cuda/products/tuned.py)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from graphc.codegen.canonical import Canonical, canonicalise
from graphc.codegen.cuda import kernels
from graphc.codegen.cuda.choice import Choice
from graphc.codegen.cuda.lower import kind
from graphc.codegen.cuda.products import tuned
from graphc.codegen.cuda.products.contract import candidates
from graphc.ir.function import Function
from graphc.ir.types import TensorType
from graphc.runtime.cuda.build import build
from graphc.runtime.cuda.execute import Executable
from graphc.runtime.device import Device
from graphc.runtime.errors import InternalError
from graphc.runtime.spec import Spec, of_type


@dataclass(frozen=True)
class Tuned:
    """A group with its candidates and their times in milliseconds, fastest first. before: what was chosen until now."""

    group: Function
    before: Choice
    times: tuple[tuple[Choice, float], ...]

    def time(self, choice: Choice) -> float | None:
        return next((t for c, t in self.times if c == choice), None)


def products(function: Function, device: Device) -> list[Function]:
    """The groups with a product that a function has on a device, each once."""
    program = build(device.context, function, (), ())
    found: dict[Any, Function] = {}
    for op in program.module.entry.ops:
        group = op.attrs["function"]
        if kind(group) == "contract":
            found.setdefault(_launch(group)[0].function.key(), group)
    return list(found.values())


def _launch(group: Function) -> tuple[Canonical, dict[str, int]]:
    canonical = canonicalise(group)
    return canonical, {name: int(d) for name, d in canonical.extents}


def tune(group: Function, device: Device, rounds: int = 20) -> Tuned:
    """Measure every schedule of a group and store the fastest. Raises `InternalError` where two differ in a bit."""
    context = device.context
    canonical, sizes = _launch(group)
    known = candidates(canonical.function, sizes, context.target)
    before = tuned.lookup(canonical.function, sizes, context.target) or known[0]
    inputs = [_operand(t, i) for i, t in enumerate(group.param_types)]
    times: list[tuple[Choice, float]] = []
    expected: list[bytes] | None = None
    try:
        for choice in known:
            kernels.forget()
            with tuned.forced(canonical.function, sizes, context.target, choice):
                milliseconds, results = _measure(group, device, inputs, rounds)
            if expected is not None and results != expected:
                raise InternalError(f"the schedules {known[0]} and {choice} of one product give different bits")
            expected = results
            times.append((choice, milliseconds))
    finally:
        kernels.forget()
    times.sort(key=lambda found: found[1])
    tuned.store(canonical.function, sizes, context.target, times[0][0])
    return Tuned(group, before, tuple(times))


def _operand(type: TensorType, seed: int) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    shape, dtype = [int(d) for d in type.shape], type.dtype
    values = rng.standard_normal(shape, np.float32) if dtype.is_float else rng.integers(0, 2, shape)
    return np.asarray(values).astype(dtype.numpy)


def _specs(types: Sequence[TensorType], device: Device) -> list[Spec]:
    return [of_type(t, False, device) for t in types]


def _measure(
    group: Function, device: Device, inputs: Sequence[np.ndarray[Any, Any]], rounds: int
) -> tuple[float, list[bytes]]:
    """Milliseconds of one run, and the results."""
    context = device.context
    results = _specs(group.result_types, device)
    # Compiling makes groups with names of their own.
    function = Function("measured", group.params, group.ops, group.results, group.param_names)
    program = Executable(function, (), device, _specs(group.param_types, device), results)
    given = [context.allocator.take(x.nbytes) for x in inputs]
    wanted = [context.allocator.take(s.nbytes) for s in results]
    try:
        for block, x in zip(given, inputs):
            context.write(block[0], x)
        sources, targets = [b[0] for b in given], [b[0] for b in wanted]
        program.run(sources, targets)
        found = [context.read(b[0], s.nbytes).tobytes() for b, s in zip(wanted, results)]
        start, end = (context.driver.new_event(timing=True) for _ in range(2))
        context.driver.record(start, context.stream())
        for _ in range(rounds):
            program.run(sources, targets)
        context.driver.record(end, context.stream())
        context.driver.synchronize_event(end)
        return context.driver.elapsed(start, end) / rounds, found
    finally:
        for block in (*given, *wanted):
            block[2].append(block)


def show(found: Tuned) -> Iterator[str]:
    """What was measured, as lines of text."""
    root = next(op for op in found.group.ops if op.name in ("dot", "conv"))
    operands = " x ".join(str(v.type) for v in root.operands)
    precision = root.attrs.get("precision") or "default"
    yield f"{root.name} {operands}, precision {precision}, {len(found.group.ops) - 1} operations fused with it"
    for i, (choice, milliseconds) in enumerate(found.times):
        mark = (" (until now)" if choice == found.before else "") + (" (stored)" if i == 0 else "")
        yield f"  {milliseconds:10.4f} ms  {choice}{mark}"


__all__ = ["Tuned", "products", "show", "tune"]
