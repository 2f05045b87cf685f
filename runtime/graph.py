"""The graph behind tensors: the nodes between outputs and targets, and the one function that differentiates them.

The backward functions of the nodes, in descending order of their numbers, with cotangents added in that order, become
one function, which is compiled and remembered under the structure of the graph. `quick_backward` is the path of
`loss.backward()`: one pass over the nodes gives the key, and what is found under it runs at once.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from graphc.ir.function import Builder, Value
from graphc.runtime import emission as e
from graphc.runtime.core import ABSTRACT, Meta, Tensor
from graphc.runtime.device import CPU
from graphc.runtime.dispatch import Entry, device_of, execute, remember
from graphc.runtime.errors import describe, here, loc_of
from graphc.runtime.grad_mode import state
from graphc.runtime.node import Node
from graphc.runtime.spec import Spec

# The key of a graph's structure -> the entry of its backward function.
_cache: dict[Any, Entry] = {}

Target = tuple[Any, int]  # (node or leaf Meta, output index)


def target_of(meta: Meta) -> Target:
    return (meta, 0) if meta.node is None else (meta.node, meta.index)


class Graph:
    """The nodes between outputs and the targets whose gradients are wanted.

    nodes: in descending order of their numbers. targets: in the order their gradients are returned.
    """

    def __init__(self, outputs: Sequence[Tensor], wanted: Sequence[Meta] | None, first: int = -1) -> None:
        """wanted: what to differentiate by; None for all leaves. Nodes numbered below `first` count as leaves."""
        self.first = first
        self.outputs = [target_of(t._meta) for t in outputs if t._meta is not None]
        self.nodes = self._reach()
        if wanted is None:
            self.targets = self._leaves()
        else:
            self.targets = list(dict.fromkeys(target_of(m) for m in wanted))
            self._prune()

    def _reach(self) -> list[Node]:
        seen: set[Node] = set()
        stack = [t[0] for t in self.outputs if isinstance(t[0], Node)]
        while stack:
            node = stack.pop()
            if node not in seen:
                seen.add(node)
                stack += [m.node for m in node.edges if m.node is not None and m.node.number >= self.first]
        return sorted(seen, key=lambda n: -n.number)

    def _leaves(self) -> list[Target]:
        found: dict[Target, None] = {}
        for t in self.outputs:
            if isinstance(t[0], Meta) and t[0].requires_grad:
                found[t] = None
        for node in self.nodes:
            for m in node.edges:
                if m.node is None or m.node.number < self.first:
                    found[target_of(m)] = None
        for node in self.nodes:
            for index, metas in (node.hooked or {}).items():
                if any(m is not None and m.retain for m in (ref() for ref in metas)):
                    found[(node, index)] = None
        return list(found)

    def _prune(self) -> None:
        """Keep the nodes that lead to a target."""
        wanted = set(self.targets)
        leading: set[Node] = set()
        for node in reversed(self.nodes):
            if any(target_of(m) in wanted or m.node in leading for m in node.edges):
                leading.add(node)
        self.nodes = [n for n in self.nodes if n in leading]


class Plan:
    """A graph numbered: `key` is its structure, `inputs` the saved values its backward function takes."""

    def __init__(self, graph: Graph, seeds: Sequence[Tensor | None]) -> None:
        self.graph = graph
        self.seeds = seeds
        self.inputs: list[Tensor] = []
        self.edges: list[Meta | None] = []
        self._places: dict[Any, int] = {}
        self.slots: list[tuple[int, ...]] = []
        numbers: dict[Any, int] = {node: i for i, node in enumerate(graph.nodes)}

        def numbered(target: Target) -> tuple[int, int]:
            if target[0] in numbers:
                return numbers[target[0]], target[1]
            # A leaf, or a node that leads to no target.
            return numbers.setdefault(target, len(numbers)), 0

        key: list[Any] = [len(graph.outputs)]
        for node in graph.nodes:
            slots = self._saved(node)
            self.slots.append(slots)
            key.append((node.back, slots, tuple([numbered(target_of(m)) for m in node.edges])))
        key += [numbered(t) for t in (*graph.outputs, *graph.targets)]
        key += [None if s is None else s._spec for s in seeds]
        key += [t._spec for t in self.inputs]
        self.key = tuple(key)

    def _saved(self, node: Node) -> tuple[int, ...]:
        if node.saved is None:
            raise RuntimeError(
                f"backward through {node.name}, recorded at {describe((node.code, node.offset))}, a second time: its saved "
                "values were freed by the first backward; pass retain_graph=True to that one, or compute the loss again"
                f"\n  at {here()}"
            )
        back = node.back
        if back.opaque:
            return tuple([self._place(t, None) for t in node.saved])
        # Where each saved value came from, for derivatives of the gradient.
        origins: list[Any] = [node.edges[back.wrt.index(i)] if i in back.wrt else None for i in back.inputs]
        origins += [(node, j) for j in back.outputs]
        return tuple([self._place(t, origin) for t, origin in zip(node.saved, origins)])

    def _place(self, t: Tensor, origin: Any) -> int:
        traced = t._traced
        identity = (t._address, t._strides, t._spec) if t._strides is not ABSTRACT else (traced[1] if traced else id(t))
        place = self._places.get(identity)
        if place is None:
            place = self._places[identity] = len(self.inputs)
            self.inputs.append(t)
            self.edges.append(None)
        if self.edges[place] is None and origin is not None:
            self.edges[place] = origin if isinstance(origin, Meta) else Meta(t._spec, *origin)
        return place

    def entry(self) -> Entry:
        """The backward function of this structure."""
        known = _cache.get(self.key)
        if known is None:
            known = self._build()
            remember(_cache, self.key, known, 1024)
        return known

    def _build(self) -> Entry:
        b = Builder("backward")
        graph = self.graph
        saved = [b.param(t._spec.type) for t in self.inputs]
        cotangents: dict[Target, Value] = {}

        def add(target: Target, g: Value) -> None:
            known = cotangents.get(target)
            cotangents[target] = g if known is None else b.emit("add", known, g)

        for target, seed in zip(graph.outputs, self.seeds):
            spec = spec_at(target)
            add(target, e.filled(b, 1, spec.dtype, ()) if seed is None else b.param(spec.type))
        wanted = set(graph.targets)
        kept: dict[Target, Value] = {}
        for node, slots in zip(graph.nodes, self.slots):
            b.loc = loc_of((node.code, node.offset))
            types = node.entry.specs
            given = []
            for j in node.entry.float_outputs:
                target = (node, j)
                g = cotangents.pop(target, None)
                if g is None:
                    g = e.filled(b, 0, types[j].dtype, types[j].shape)
                elif target in wanted:
                    kept[target] = g
                given.append(g)
            for m, g in zip(node.edges, b.inline(node.back.function, *(saved[i] for i in slots), *given)):
                add(target_of(m), g)
        cotangents.update(kept)
        zero = [t for t in graph.targets if t not in cotangents]
        for t in zero:
            spec = spec_at(t)
            cotangents[t] = e.filled(b, 0, spec.dtype, spec.shape)
        operands = [t._spec for t in self.inputs]
        operands += [spec_at(t) for t, seed in zip(graph.outputs, self.seeds) if seed is not None]
        specs = [spec_at(t) for t in graph.targets]
        device = device_of("backward", [*operands, *specs])
        function = b.build([cotangents[t] for t in graph.targets])
        return Entry("backward", function, operands=operands, device=device, specs=specs)

    def connected(self) -> set[Target]:
        """The targets that gradients reach."""
        reached = set(self.graph.outputs)
        for node in self.graph.nodes:
            if any(t[0] is node for t in reached):
                reached.update(target_of(m) for m in node.edges)
        return reached


def spec_at(target: Target) -> Spec:
    owner, index = target
    return owner.spec if isinstance(owner, Meta) else owner.entry.specs[index]  # type: ignore[no-any-return]


# What `quick_backward` found under a graph's structure before.
_programs: dict[Any, Entry] = {}
_number_of = operator.attrgetter("number")


def quick_backward(x: Tensor) -> tuple[list[Node], list[Meta], list[Tensor]] | None:
    """The nodes behind a scalar, the leaves with gradients and these, each a new tensor; None where that takes more.

    It takes more where somebody listens: a tracer, hooks, a leaf or a result that keeps its gradient; and on other devices.
    """
    meta = x._meta
    assert meta is not None
    root = meta.node
    if root is None or state.active:
        return None
    seen = {root}
    stack = [root]
    while stack:
        node = stack.pop()
        if node.hooked is not None:
            return None
        for m in node.edges:
            n = m.node
            if n is not None and n not in seen:
                seen.add(n)
                stack.append(n)
    nodes = sorted(seen, key=_number_of, reverse=True)
    numbers: dict[Node, int] = dict(zip(nodes, range(len(nodes))))
    leaves: dict[Meta, int] = {}
    places: dict[Any, int] = {}
    inputs: list[Tensor] = []
    # How many edges and saved values a node has is known from its backward function.
    key: list[Any] = [meta.index]
    for node in nodes:
        back = node.back
        key.append(back)
        for m in node.edges:
            n = m.node
            if n is None:
                key.append(leaves.setdefault(m, ~len(leaves)))
            else:
                key.append(numbers[n])
                key.append(m.index)
        saved = node.saved
        if saved is None:
            return None
        for t in saved:
            identity = (t._address, t._strides, t._spec)
            place = places.get(identity)
            if place is None:
                place = places[identity] = len(inputs)
                inputs.append(t)
            key.append(place)
    found = tuple(key)
    entry = _programs.get(found)
    if entry is None:
        plan = Plan(Graph([x], None), [None])
        entry = plan.entry()
        if entry.device is not CPU or not entry.specs or len(plan.inputs) != len(inputs):
            return None
        remember(_programs, found, entry, 1024)
    return nodes, list(leaves), execute(entry, inputs)
