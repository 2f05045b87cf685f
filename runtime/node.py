"""Nodes of the differentiation graph, and the backward function of one operation.

Invariants: a node keeps only the inputs and outputs that its backward function reads; nodes are
numbered in the order they were made, so descending numbers are a reverse topological order.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from types import CodeType
from typing import TYPE_CHECKING, Any

from graphc.ir.function import Function, Operation, Value
from graphc.runtime.core import Meta, Tensor, _new, alias
from graphc.runtime.errors import _frame, _inside, user_frame
from graphc.runtime.grad_mode import state

if TYPE_CHECKING:
    from graphc.runtime.dispatch import Entry

_numbers = itertools.count()


class Backward:
    """The gradient of one operation with respect to some of its inputs.

    function: params are the saved inputs, the saved outputs, a cotangent for each floating point
    output; results are the gradients of the inputs `wrt`. opaque: the saved values are not inputs and outputs of the
    operation, so the gradient itself cannot be differentiated.
    """

    __slots__ = ("function", "inputs", "opaque", "outputs", "wrt")

    def __init__(
        self, function: Function, inputs: tuple[int, ...], outputs: tuple[int, ...], wrt: tuple[int, ...], opaque: bool = False
    ) -> None:
        self.opaque = opaque
        self.function = function
        self.inputs = inputs
        self.outputs = outputs
        self.wrt = wrt


def float_outputs(function: Function) -> tuple[int, ...]:
    """The results that have cotangents."""
    return tuple(i for i, r in enumerate(function.results) if r.type.dtype.is_float)


def backward_of(f: Function, wrt: tuple[int, ...]) -> Backward:
    """Differentiate `f`, then let results of `f` that the gradient needs come in as parameters."""
    from graphc.codegen.report import stage
    from graphc.ir.autodiff import vjp

    with stage("autodiff"):
        return _backward_of(f, wrt, vjp(f, wrt))


def _backward_of(f: Function, wrt: tuple[int, ...], g: Function) -> Backward:
    """The gradient `g` = vjp(f, wrt) with the results of `f` as parameters."""
    count, outs = len(f.params), len(f.results)
    known: dict[Value, Value] = {}
    results_in: list[Value] = []
    params = set(g.params)
    for r in g.results[:outs]:
        v = Value(r.type)
        results_in.append(v)
        if r not in params:
            known.setdefault(r, v)
    ops = [
        Operation(op.name, [known.get(v, v) for v in op.operands], op.attrs, op.results, op.loc)
        if any(v in known for v in op.operands)
        else op
        for op in g.ops
    ]
    grads = [known.get(v, v) for v in g.results[outs:]]
    kept, used = live(ops, grads)
    inputs = tuple(i for i, p in enumerate(g.params[:count]) if p in used)
    outputs = tuple(j for j, v in enumerate(results_in) if v in used)
    all_params = [*(g.params[i] for i in inputs), *(results_in[j] for j in outputs), *g.params[count:]]
    return Backward(Function(f"{f.name}_backward", all_params, kept, grads), inputs, outputs, wrt)


def live(ops: list[Operation], results: list[Value]) -> tuple[list[Operation], set[Value]]:
    """The operations that `results` depend on, and the values that those read."""
    used = set(results)
    kept = []
    for op in reversed(ops):
        if any(r in used for r in op.results):
            kept.append(op)
            used.update(op.operands)
    return kept[::-1], used


class Node:
    """One recorded operation.

    edges: the `Meta` of each input in `back.wrt`; saved: the values `back` reads, None once freed.
    """

    __slots__ = ("back", "code", "edges", "entry", "hooked", "number", "offset", "saved")

    number: int
    code: CodeType
    offset: int
    # output index -> the Meta objects whose hooks or retained gradients backward must serve
    hooked: dict[int, list[Callable[[], Meta | None]]] | None

    def __init__(self, entry: Entry, back: Backward, edges: tuple[Meta, ...], saved: tuple[Tensor, ...] | None) -> None:
        self.entry = entry
        self.back = back
        self.edges = edges
        self.saved = saved
        self.hooked = None
        self.number = next(_numbers)
        self.code, self.offset = user_frame(3)

    @property
    def name(self) -> str:
        """The name of the operation."""
        return self.entry.name

    def __repr__(self) -> str:
        return f"<{self.name}>"


def next_number() -> int:
    """A number above those of all nodes made so far."""
    return next(_numbers)


def record(entry: Entry, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    """Make the node of an operation, if any of its inputs requires gradients."""
    wrt = 0
    bit = 1
    edges: tuple[Meta, ...] = ()
    for t in inputs:
        m = t._meta
        if m is not None and m.requires_grad:
            wrt += bit
            edges += (m,)
        bit += bit
    if not wrt or not entry.float_outputs:
        return
    back = entry.backwards.get(wrt)
    if back is None:
        back = entry.backward(wrt)
    node = _new(Node)
    node.entry = entry
    node.back = back
    node.edges = edges
    node.hooked = None
    if not back.inputs and not back.outputs:
        node.saved = ()
    elif state.active:
        node.saved = (*[alias(inputs[i]) for i in back.inputs], *[alias(outputs[j]) for j in back.outputs])
    else:
        # `alias`, without a call for each.
        saved = []
        for i in back.inputs:
            t = inputs[i]
            a = _new(Tensor)
            a._spec = t._spec
            a._buffer = t._buffer
            a._address = t._address
            a._strides = t._strides
            a._meta = None
            a._traced = t._traced
            saved.append(a)
        for j in back.outputs:
            t = outputs[j]
            a = _new(Tensor)
            a._spec = t._spec
            a._buffer = t._buffer
            a._address = t._address
            a._strides = t._strides
            a._meta = None
            a._traced = t._traced
            saved.append(a)
        node.saved = tuple(saved)
    node.number = next(_numbers)
    # `user_frame`, without a call where all files are known.
    frame: Any = _frame(2)
    while True:
        code = frame.f_code
        inside = _inside.get(code.co_filename)
        if inside is False:
            node.code = code
            node.offset = frame.f_lasti
            break
        frame = frame.f_back
        if inside is None or frame is None:
            node.code, node.offset = user_frame(3)
            break
    for j in entry.float_outputs:
        t = outputs[j]
        m = _new(Meta)
        m.spec = t._spec
        m.node = node
        m.index = j
        t._meta = m
