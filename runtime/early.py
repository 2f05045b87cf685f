"""Decisions that are known before the program runs: those made by numbers and tensors of rank 0 alone.

`if step % 10 == 0`, `blocks[i]`, `for _ in range(n)` look at values that little work gives. That work is a program of its
own, which runs first: for another outcome nothing else has run yet, and the program need not keep its inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from graphc.ir.function import Function, Operation, Value
from graphc.runtime.device import CPU
from graphc.runtime.node import live
from graphc.runtime.spec import Spec

# More operations than these are not run twice.
MOST_OPERATIONS = 64


class Early(NamedTuple):
    """The first decisions of a recording.

    places: for each decision ~i if it is parameter i, else its number among the results of `function`. inputs: the
    parameters that `function` takes. specs: of its results.
    """

    places: tuple[int, ...]
    function: Function
    inputs: tuple[int, ...]
    specs: tuple[Spec, ...]


def early(
    name: str, params: Sequence[Value], types: Sequence[Spec], ops: Sequence[Operation], decisions: Sequence[Value], specs: Sequence[Spec]
) -> Early:
    """As many of the first decisions as are known early. types: of the parameters; specs: of the decisions."""
    number = {v: i for i, v in enumerate(params)}
    places: list[int] = []
    results: list[Value] = []
    kept: list[Operation] = []
    used: set[Value] = set()
    for v in decisions:
        if v in number:
            if types[number[v]].device is not CPU or v.type.shape:
                break
            places.append(~number[v])
            continue
        found, reached = live(list(ops), [*results, v])
        reads = [types[number[x]] for x in reached if x in number]
        values = [*reached, *(r for op in found for r in op.results)]
        if len(found) > MOST_OPERATIONS or any(x.type.shape for x in values) or any(s.device is not CPU for s in reads):
            break
        places.append(len(results))
        results.append(v)
        kept, used = found, reached
    inputs = tuple(i for i, v in enumerate(params) if v in used)
    function = Function(f"{name}_decisions", [params[i] for i in inputs], kept, results)
    return Early(tuple(places), function, inputs, tuple(specs[: len(places)][i] for i, at in enumerate(places) if at >= 0))
