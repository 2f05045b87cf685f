"""The text of a function at every stage of the back end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from graphc.codegen.report import current
from graphc.codegen.report import stage as timed
from graphc.ir.function import Function, Module
from graphc.ir.types import DimExpr

if TYPE_CHECKING:
    from graphc.codegen.loops import Kernel


def optimised(f: Function) -> Function:
    """The function after the default passes."""
    from graphc.ir.passes import DEFAULT, run_pipeline

    report = current()
    if report is not None:
        report.operations += len(f.ops)
    result = run_pipeline(f, DEFAULT, stage=timed)
    if report is not None:
        report.optimised += len(result.ops)
    return result


def fused(f: Function) -> Module:
    """The module of groups; constants of several elements have become parameters."""
    from graphc.codegen.grouping import grouped
    from graphc.codegen.prepare import prepare

    prepared = prepare(optimised(f))[0]
    with timed("fuse"):
        return grouped(prepared)


def fused_for_device(f: Function) -> Module:
    """As `fused`, for a CUDA device."""
    from graphc.codegen.grouping import grouped
    from graphc.codegen.prepare import prepare

    return grouped(prepare(optimised(f))[0], device=True)


def _each_group(
    f: Function, show: Callable[[Function, dict[str, int]], str], fuse: Callable[[Function], Module] = fused
) -> str:
    from graphc.codegen.canonical import canonicalise

    parts: list[str] = []
    seen: dict[object, str] = {}
    for op in fuse(f).entry.ops:
        group: Function = op.attrs["function"]
        with timed("canonical"):
            canonical = canonicalise(group)
        sizes = ", ".join(f"{name}={d}" for name, d in canonical.extents)
        where = f" loc({op.loc})" if op.loc else ""
        title = f"; {group.name} [{sizes}]{where}"
        key = canonical.function.key()
        if key in seen:
            parts.append(f"{title}: the kernel of {seen[key]}")
            continue
        seen[key] = group.name
        hint = {name: d for name, d in canonical.extents if not isinstance(d, DimExpr)}
        parts.append(f"{title}\n{show(canonical.function, hint)}")
    return "\n\n".join(parts)


def _loops(group: Function, hint: dict[str, int]) -> str:
    from graphc.codegen.lower.nests import print_nest

    return print_nest(group)


def _scheduled(group: Function, hint: dict[str, int]) -> str:
    from graphc.codegen.llvm.target import host_target
    from graphc.codegen.loops import print_kernel
    from graphc.codegen.lower.lower import lower

    return "\n".join(print_kernel(k) for k in lower(group, host_target(), hint).kernels)


def _llvm(group: Function, hint: dict[str, int]) -> str:
    from graphc.codegen.llvm.emit import emit_kernel
    from graphc.codegen.llvm.target import host_target
    from graphc.codegen.lower.lower import lower

    target = host_target()
    return "\n".join(emit_kernel(k, target) for k in lower(group, target, hint).kernels)


def _asm(group: Function, hint: dict[str, int]) -> str:
    from graphc.codegen.llvm.emit import emit_kernel
    from graphc.codegen.llvm.jit import assembly
    from graphc.codegen.llvm.target import host_target
    from graphc.codegen.lower.lower import lower

    target = host_target()
    return "\n".join(assembly(emit_kernel(k, target), target) for k in lower(group, target, hint).kernels)


def _c(f: Function) -> str:
    from graphc.codegen.c.c99 import emit_kernels
    from graphc.codegen.llvm.target import host_target
    from graphc.codegen.lower.lower import lower

    target = host_target()
    return _one_unit(f, lambda group, hint: lower(group, target, hint).kernels, emit_kernels)


def _device_kernels(group: Function, hint: dict[str, int]) -> tuple[Kernel, ...]:
    """The device kernels of a canonical group; a size that is not known is taken for 64."""
    from graphc.codegen.cuda.lower import choose, lower
    from graphc.codegen.cuda.target import HOPPER
    from graphc.codegen.lower.nest import group_extents

    sizes = dict.fromkeys(group_extents(group), 64) | hint
    return lower(group, choose(group, sizes, HOPPER), HOPPER).kernels


def _cuda(f: Function) -> str:
    from graphc.codegen.c.cuda import emit_kernels
    from graphc.codegen.cuda.target import HOPPER

    return _one_unit(f, _device_kernels, lambda k, notes: emit_kernels(k, HOPPER, notes), fused_for_device)


def _cuda_scheduled(group: Function, hint: dict[str, int]) -> str:
    from graphc.codegen.loops import print_kernel

    return "\n".join(map(print_kernel, _device_kernels(group, hint)))


def _one_unit(
    f: Function,
    kernels_of: Callable[[Function, dict[str, int]], tuple[Kernel, ...]],
    emit: Callable[[list[Kernel], list[str]], str],
    fuse: Callable[[Function], Module] = fused,
) -> str:
    """One translation unit of a program, with a comment on each group; kernels have names of their own."""
    from graphc.codegen.canonical import canonicalise

    kernels: list[Kernel] = []
    notes: list[str] = []
    seen: dict[object, int] = {}
    for op in fuse(f).entry.ops:
        group: Function = op.attrs["function"]
        canonical = canonicalise(group)
        sizes = ", ".join(f"{name}={d}" for name, d in canonical.extents)
        title = f"{group.name} [{sizes}]" + (f" at {op.loc}" if op.loc else "")
        key = canonical.function.key()
        if key in seen:
            notes[seen[key]] = f"{title}\n{notes[seen[key]]}"
            continue
        hint = {name: d for name, d in canonical.extents if not isinstance(d, DimExpr)}
        for i, kernel in enumerate(kernels_of(canonical.function, hint)):
            if i == 0:
                seen[key] = len(kernels)
            notes.append(f"{title}\n{canonical.function}" if i == 0 else f"{title}, continued")
            kernels.append(replace(kernel, name=f"{group.name}_{kernel.name}{i or ''}"))
    return emit(kernels, notes)


def _plan(f: Function) -> str:
    from graphc.codegen.aot_plan import symbols_of
    from graphc.codegen.plan import make_plan

    module = fused(f)
    if symbols_of(module.entry):
        # Only code that is compiled ahead of time has sizes that are not known.
        from graphc.codegen.aot import plan_function

        return str(plan_function(f))
    return str(make_plan(module))


STAGES: dict[str, Callable[[Function], str]] = {
    "optimized": lambda f: str(optimised(f)),
    "fused": lambda f: str(fused(f)),
    "loops": lambda f: _each_group(f, _loops),
    "scheduled": lambda f: _each_group(f, _scheduled),
    "llvm": lambda f: _each_group(f, _llvm),
    "asm": lambda f: _each_group(f, _asm),
    "plan": _plan,
    "c": _c,
    "cuda-scheduled": lambda f: _each_group(f, _cuda_scheduled, fused_for_device),
    "cuda": _cuda,
}


def stage_text(f: Function, stage: str) -> str:
    """The text of `f` at a back-end stage: one of `STAGES`."""
    if stage not in STAGES:
        raise ValueError(f"there is no stage {stage!r}; the stages are: {', '.join(STAGES)}")
    return STAGES[stage](f)
