"""Reverse-mode differentiation of what was recorded: `backward` and `grad`.

The nodes behind the outputs become one function (graph.py), remembered under the structure of the graph, so a second
graph of the same structure costs a walk and one call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from graphc.runtime.core import Meta, Tensor, alias
from graphc.runtime.dispatch import Entry, apply_entry, device_of, operand_of, remember
from graphc.runtime.errors import here
from graphc.runtime.grad_mode import local, state
from graphc.runtime.graph import Graph, Plan, Target, quick_backward, spec_at, target_of
from graphc.runtime.node import Node
from graphc.runtime.ops_elementwise import FUNCTIONS
from graphc.runtime.ops_layout import broadcast_to
from graphc.runtime.spec import Spec


def _with_history(t: Tensor, meta: Meta | None) -> Tensor:
    out = alias(t)
    out._meta = meta
    return out


def _gradients(
    outputs: Sequence[Tensor], seeds: Sequence[Tensor | None], wanted: Sequence[Meta] | None, create_graph: bool
) -> tuple[Graph, list[Tensor], set[Target]]:
    """The gradients of the targets, and which targets they reach."""
    graph = Graph(outputs, wanted)
    _check_origin(graph)
    if any(_hooks(node) for node in graph.nodes):
        return _by_nodes(graph, seeds, create_graph)
    if create_graph:
        for node in graph.nodes:
            if node.back.opaque:
                raise RuntimeError(
                    f"create_graph through the compiled function {node.name}: its gradient cannot be differentiated outside it; "
                    f"compile a function that computes that gradient\n  at {here()}"
                )
    plan = Plan(graph, seeds)
    reached = plan.connected() if wanted is not None else set(graph.targets)
    entry = plan.entry()
    inputs = [_with_history(t, m) for t, m in zip(plan.inputs, plan.edges)] if create_graph else plan.inputs
    return graph, _run(entry, [*inputs, *(s for s in seeds if s is not None)], create_graph), reached


def _run(entry: Entry, inputs: list[Tensor], create_graph: bool) -> list[Tensor]:
    if not entry.specs:
        return []
    mode = local.grad
    local.grad = create_graph
    try:
        return apply_entry(entry, inputs)
    finally:
        local.grad = mode


def _check_origin(graph: Graph) -> None:
    tracer = local.tracer
    if state.active and tracer is not None and tracer.execute:
        for node in graph.nodes:
            if node.number < tracer.first_node:
                tracer.impure = (
                    f"backward at {here()} reaches {node.name}, which was recorded before the compiled function began; "
                    "compute the loss inside it"
                )
                return


def _hooks(node: Node) -> bool:
    return node.hooked is not None and any(
        m is not None and m.hooks for metas in node.hooked.values() for m in (ref() for ref in metas)
    )


def _by_nodes(
    graph: Graph, seeds: Sequence[Tensor | None], create_graph: bool
) -> tuple[Graph, list[Tensor], set[Target]]:
    """As the compiled plan, one node at a time, so that hooks see and change gradients on the way."""
    cotangents: dict[Target, Tensor] = {}

    def add(target: Target, g: Tensor) -> None:
        known = cotangents.get(target)
        cotangents[target] = g if known is None else _plus(known, g, create_graph)

    for target, seed in zip(graph.outputs, seeds):
        add(target, FUNCTIONS["stop_gradient"](_one(spec_at(target))) if seed is None else seed)
    plan = Plan(graph, seeds)
    wanted = set(graph.targets)
    kept: dict[Target, Tensor] = {}
    for node, slots in zip(graph.nodes, plan.slots):
        given = []
        for j in node.entry.float_outputs:
            g = cotangents.pop((node, j), None)
            if g is None:
                g = _zeros(node.entry.specs[j])
            else:
                for ref in (node.hooked or {}).get(j, ()):
                    g = _apply_hooks(ref(), g)
                if (node, j) in wanted:
                    kept[(node, j)] = g
            given.append(g)
        saved = [_with_history(plan.inputs[i], plan.edges[i]) if create_graph else plan.inputs[i] for i in slots]
        for m, g in zip(node.edges, _run(_node_entry(node), [*saved, *given], create_graph)):
            add(target_of(m), g)
    cotangents.update(kept)
    reached = {t for t in graph.targets if t in cotangents}
    return graph, [cotangents[t] if t in cotangents else _zeros(spec_at(t)) for t in graph.targets], reached


_node_entries: dict[Any, Entry] = {}


def _node_entry(node: Node) -> Entry:
    entry = _node_entries.get(node.back)
    if entry is None:
        assert node.saved is not None
        operands = [t._spec for t in node.saved] + [node.entry.specs[j] for j in node.entry.float_outputs]
        specs = [spec_at(target_of(m)) for m in node.edges]
        name = f"{node.name}_backward"
        device = device_of(name, [*operands, *specs])
        entry = Entry(name, node.back.function, operands=operands, device=device, specs=specs)
        remember(_node_entries, node.back, entry)
    return entry


def _plus(a: Tensor, b: Tensor, create_graph: bool) -> Tensor:
    mode = local.grad
    local.grad = create_graph
    try:
        return FUNCTIONS["add"](a, b)  # type: ignore[no-any-return]
    finally:
        local.grad = mode


def _zeros(spec: Spec) -> Tensor:
    from graphc.runtime.creation import filled

    return filled(spec.shape, 0, spec.dtype, spec.device)


def _one(spec: Spec) -> Tensor:
    from graphc.runtime.creation import filled

    return filled(spec.shape, 1, spec.dtype, spec.device)


def _apply_hooks(meta: Meta | None, g: Tensor) -> Tensor:
    for hook in list((meta.hooks or {}).values()) if meta is not None else ():
        changed = hook(g)
        if changed is not None:
            if not isinstance(changed, Tensor) or changed._spec is not g._spec:
                raise TypeError(f"a gradient hook must return a tensor {g._spec} or None, not {changed!r}")
            g = changed
    return g


def _seed(output: Tensor, gradient: Any, name: str) -> Tensor | None:
    """The cotangent of an output, None for the implicit 1 of a scalar."""
    spec = output._spec
    if output._meta is None or not output._meta.requires_grad:
        raise RuntimeError(
            f"{name}: the tensor {spec} was not computed from tensors that require gradients; set requires_grad=True on a "
            f"leaf, and do not compute it inside no_grad or after detach\n  at {here()}"
        )
    if gradient is None:
        if spec.size != 1:
            raise RuntimeError(
                f"{name}: a gradient can be made implicitly for one number only, the tensor is {spec}; reduce it, for "
                f"example with sum() or mean(), or pass its gradient\n  at {here()}"
            )
        return None if not spec.shape else _one(spec)
    from graphc.runtime.transfer import to_device

    g = to_device(operand_of(gradient, name), spec.device)
    if g._spec.shape != spec.shape and not g._spec.shape:
        g = broadcast_to(g, spec.shape)
    if g._spec.shape != spec.shape:
        raise ValueError(f"{name}: the gradient {g._spec} must have the shape of the tensor {spec}\n  at {here()}")
    if g._spec is not spec:
        from graphc.runtime.ops_elementwise import astype

        g = astype(g, spec.dtype)
    return g


def _free(graph: Graph) -> None:
    for node in graph.nodes:
        if node.saved:
            node.saved = None


def backward(x: Tensor, gradient: Any = None, retain_graph: bool | None = None, create_graph: bool = False) -> None:
    """Add to `.grad` of every leaf that requires gradients the gradient of `x` with respect to it.

    gradient: the cotangent of `x`; not needed for one number. retain_graph: keep saved values for another
    backward. create_graph: record the computation of the gradients, so that they can be differentiated.
    Raises `RuntimeError` if `x` was not recorded, is not one number, or its saved values are freed.

    >>> import graphc as gc
    >>> w = gc.tensor([2.0, 3.0], requires_grad=True)
    >>> (w * w).sum().backward()
    >>> w.grad.tolist()
    [4.0, 6.0]
    """
    backward_all([x], [gradient], retain_graph, create_graph)


def backward_all(
    tensors: Sequence[Tensor], gradients: Sequence[Any] | None = None, retain_graph: bool | None = None,
    create_graph: bool = False,
) -> None:  # fmt: skip
    """`backward` of several tensors at once."""
    given = gradients if gradients is not None else [None] * len(tensors)
    seeds = [_seed(x, g, "backward") for x, g in zip(tensors, given)]
    keep = create_graph if retain_graph is None else retain_graph
    if len(seeds) == 1 and seeds[0] is None and not create_graph:
        quick = quick_backward(tensors[0])
        if quick is not None:
            nodes, leaves, grads = quick
            for meta, g in zip(leaves, grads):
                if meta.hooks:
                    g = _apply_hooks(meta, g)
                meta.grad = g if meta.grad is None else _plus(meta.grad, g, False)
            if not keep:
                for node in nodes:
                    if node.saved:
                        node.saved = None
            return
    graph, grads, _ = _gradients(tensors, seeds, None, create_graph)
    for (owner, index), g in zip(graph.targets, grads):
        if isinstance(owner, Meta):
            _accumulate(owner, _apply_hooks(owner, g) if owner.hooks else g, create_graph)
        else:
            for ref in owner.hooked[index]:
                meta = ref()
                if meta is not None and meta.retain:
                    _accumulate(meta, g, create_graph)
    if not keep:
        _free(graph)


def _accumulate(meta: Meta, g: Tensor, create_graph: bool) -> None:
    if state.active and local.tracer is not None:
        local.tracer.touch_grad(meta)
    if meta.grad is not None:
        meta.grad = _plus(meta.grad, g, create_graph)
    else:
        # A tensor of its own: two leaves may share one gradient.
        meta.grad = _with_history(g, g._meta)


def grad(
    outputs: Any,
    inputs: Any,
    grad_outputs: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool = False,
) -> tuple[Tensor | None, ...]:
    """The gradients of (the sum of) `outputs` with respect to `inputs`, without touching `.grad`.

    grad_outputs: the cotangents of the outputs; not needed for those of one number. Raises `RuntimeError` for an
    input that the outputs do not depend on, unless `allow_unused` (then its gradient is None).

    >>> import graphc as gc
    >>> x = gc.tensor(3.0, requires_grad=True)
    >>> (dx,) = gc.autograd.grad(x * x * x, x, create_graph=True)
    >>> gc.autograd.grad(dx, x)[0].item()
    18.0
    """
    outs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    ins = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    given = [grad_outputs] if isinstance(grad_outputs, Tensor) else grad_outputs
    seeds = [_seed(x, g, "grad") for x, g in zip(outs, given if given is not None else [None] * len(outs))]
    for i, x in enumerate(ins):
        if x._meta is None or not x._meta.requires_grad:
            raise RuntimeError(f"grad: input {i}, a tensor {x._spec}, does not require gradients\n  at {here()}")
    metas = [x._meta for x in ins if x._meta is not None]
    graph, grads, reached = _gradients(outs, seeds, metas, create_graph)
    by_target = dict(zip(graph.targets, grads))
    result: list[Tensor | None] = []
    for i, meta in enumerate(metas):
        target = target_of(meta)
        if target not in reached:
            if not allow_unused:
                raise RuntimeError(
                    f"grad: the outputs do not depend on input {i}, a tensor {meta.spec}; pass allow_unused=True to get None "
                    f"for it\n  at {here()}"
                )
            result.append(None)
        else:
            result.append(by_target[target])
    if not (create_graph if retain_graph is None else retain_graph):
        _free(graph)
    return tuple(result)


class Handle:
    """Returned by `register_hook`; `remove()` takes the hook away."""

    def __init__(self, hooks: dict[int, Callable[[Any], Any]], key: int) -> None:
        self._hooks = hooks
        self._key = key

    def remove(self) -> None:
        """Take the hook away."""
        self._hooks.pop(self._key, None)
        state.stamp = object()


def _attach(x: Tensor, name: str) -> Meta:
    meta = x._meta
    if meta is None or not meta.requires_grad:
        raise RuntimeError(f"{name}: the tensor {x._spec} does not require gradients\n  at {here()}")
    if meta.node is not None:
        import weakref

        if meta.node.hooked is None:
            meta.node.hooked = {}
        refs = meta.node.hooked.setdefault(meta.index, [])
        if not any(ref() is meta for ref in refs):
            refs.append(weakref.ref(meta))
    return meta


def register_hook(x: Tensor, hook: Callable[[Tensor], Any]) -> Handle:
    """Call `hook(gradient)` whenever the gradient of `x` is computed; a tensor it returns replaces it."""
    meta = _attach(x, "register_hook")
    if meta.hooks is None:
        meta.hooks = {}
    key = max(meta.hooks, default=-1) + 1
    meta.hooks[key] = hook
    state.stamp = object()
    return Handle(meta.hooks, key)


def retain_grad(x: Tensor) -> None:
    """Let `backward` keep the gradient of this result in its `.grad`. Nothing to do for a leaf."""
    meta = _attach(x, "retain_grad")
    if meta.node is not None:
        meta.retain = True

