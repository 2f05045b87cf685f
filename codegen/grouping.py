"""From a prepared function to the module of its groups: what is cheap is computed again rather than stored, operations that
belong together share a kernel, and so do reductions of the same memory; on CPUs those of rows and of columns too, and window
positions are stored small. Nothing changes a bit."""

from __future__ import annotations

from functools import partial

from graphc.codegen.calls import expanded
from graphc.codegen.fuse import fuse
from graphc.codegen.join import join
from graphc.codegen.merge import merge
from graphc.codegen.narrow import narrow
from graphc.codegen.recompute import recompute
from graphc.ir.function import Builder, Function, Module, Value
from graphc.ir.passes.cse import cse


def grouped(prepared: Function, device: bool = False) -> Module:
    """The groups of a prepared function. device: for a GPU, which computes faster than it moves memory."""
    again = recompute(prepared, device)
    module = merge(fuse(again))
    module = module if again is prepared else _without_repetition(module)
    module = module if device else narrow(join(module))
    return expanded(module, partial(grouped, device=device), device)


def _without_repetition(module: Module) -> Module:
    """`module` where copies of a value that came into one group are one again: that much less to lower."""
    b = Builder(module.entry.name)
    env: dict[Value, Value] = {}
    for p, name in zip(module.entry.params, module.entry.param_names, strict=True):
        env[p] = b.param(p.type, name)
    for op in module.entry.ops:
        b.loc = op.loc
        group: Function = op.attrs["function"]
        if len({o.name for o in group.ops}) < len(group.ops):  # else nothing is there twice
            group = cse(group)
        b.copy(op, env, group)
    entry = b.build([env[r] for r in module.entry.results])
    return Module([entry, *(op.attrs["function"] for op in entry.ops)])
