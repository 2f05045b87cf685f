"""Transformations of Python functions of tensors: grad, value_and_grad, vjp, jvp.

They compose with each other and with `compile`: derivatives of derivatives are recorded as any
other operation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from graphc.runtime import autograd
from graphc.runtime.core import Tensor, alias, set_requires_grad
from graphc.runtime.creation import zeros_like
from graphc.runtime.grad_mode import enable_grad
from graphc.runtime.graph import Graph
from graphc.runtime.interop import asarray
from graphc.runtime.ops_elementwise import FUNCTIONS
from graphc.runtime.structure import flatten, unflatten


def _argument(x: Tensor) -> Tensor:
    """`x` as something to differentiate by, keeping its history if it has one."""
    if x._meta is not None and x._meta.requires_grad:
        return FUNCTIONS["positive"](x)
    x = alias(x)
    set_requires_grad(x, True)
    return x


def _opened(args: Sequence[Any], argnums: Sequence[int]) -> tuple[list[Any], list[Tensor], list[Any]]:
    """The arguments with those of `argnums` differentiable; their leaves; their structures."""
    call = list(args)
    leaves: list[Tensor] = []
    structures = []
    for i in argnums:
        if not -len(args) <= i < len(args):
            raise TypeError(f"argnums names argument {i}, the function was called with {len(args)}")
        found: list[Any] = []
        structure = flatten(args[i], found)
        found = [_argument(x if isinstance(x, Tensor) else asarray(x)) for x in found]
        leaves += found
        structures.append((structure, len(found)))
        call[i] = unflatten(structure, iter(found))
    return call, leaves, structures


def _closed(structures: list[Any], values: Sequence[Any]) -> list[Any]:
    source = iter(values)
    return [unflatten(structure, iter([next(source) for _ in range(count)])) for structure, count in structures]


def _watched(outputs: Sequence[Tensor], own: Sequence[Tensor]) -> bool:
    """Whether the outputs depend on something differentiable besides the arguments' own leaves."""
    mine = {id(x._meta) for x in own if x.is_leaf}
    graph = Graph(outputs, None)
    return any(id(owner) not in mine for owner, _ in graph.targets)


def value_and_grad(f: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False) -> Callable[..., Any]:
    """The function that returns the value of `f` and its gradient with respect to the arguments `argnums`.

    `f` must return one number (with `has_aux`, that and anything else). Arguments may be nested tuples, lists
    and dicts of tensors. Returns (value, gradient), ((value, aux), gradient) with `has_aux`; the gradient is a
    tuple if `argnums` is one.

    >>> import graphc as gc
    >>> value, slope = gc.value_and_grad(lambda x: (x * x).sum())(gc.tensor([1.0, 2.0]))
    >>> value.item(), slope.tolist()
    (5.0, [2.0, 4.0])
    """
    several = not isinstance(argnums, int)
    numbers = [argnums] if isinstance(argnums, int) else list(argnums)

    @functools.wraps(f)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with enable_grad():
            call, leaves, structures = _opened(args, numbers)
            out = f(*call, **kwargs)
            value, aux = out if has_aux else (out, None)
            if not isinstance(value, Tensor) or value._spec.size != 1:
                shown = value._spec if isinstance(value, Tensor) else type(value).__name__
                raise TypeError(f"grad: the function must return one number, not {shown}; reduce it, for example with sum()")
            if not value.requires_grad:
                gradients: Sequence[Tensor | None] = [None] * len(leaves)
                keep = False
            else:
                keep = _watched([value], leaves)
                gradients = autograd.grad(value, leaves, retain_graph=keep, create_graph=keep, allow_unused=True)
            filled = [zeros_like(x) if g is None else g for g, x in zip(gradients, leaves)]
        parts = _closed(structures, filled)
        value = value if keep else alias(value)
        return ((value, aux) if has_aux else value), (tuple(parts) if several else parts[0])

    return wrapped


def grad(f: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False) -> Callable[..., Any]:
    """The function that returns the gradient of `f` with respect to the arguments `argnums`; see `value_and_grad`.

    >>> import graphc as gc
    >>> gc.grad(gc.grad(lambda x: x * x * x))(gc.tensor(2.0)).item()
    12.0
    """
    both = value_and_grad(f, argnums, has_aux)

    @functools.wraps(f)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        value, gradient = both(*args, **kwargs)
        return (gradient, value[1]) if has_aux else gradient

    return wrapped


def vjp(f: Callable[..., Any], *primals: Any) -> tuple[Any, Callable[[Any], tuple[Any, ...]]]:
    """The value of `f` at `primals`, and the function from a cotangent of it to those of the primals.

    >>> import graphc as gc
    >>> y, pull = gc.vjp(lambda a, b: a * b, gc.tensor(3.0), gc.tensor(4.0))
    >>> [g.item() for g in pull(gc.tensor(1.0))]
    [4.0, 3.0]
    """
    with enable_grad():
        call, leaves, structures = _opened(primals, range(len(primals)))
        result = f(*call)
        outputs: list[Any] = []
        structure = flatten(result, outputs)
        keep = _watched([y for y in outputs if y.requires_grad], leaves)

    def pull(cotangent: Any) -> tuple[Any, ...]:
        given: list[Any] = []
        flatten(cotangent, given)
        if len(given) != len(outputs):
            raise ValueError(f"vjp: the function returned {len(outputs)} tensors, {len(given)} cotangents were given")
        pairs = [(y, g) for y, g in zip(outputs, given) if y.requires_grad]
        with enable_grad():
            more = keep or any(isinstance(g, Tensor) and g.requires_grad for _, g in pairs)
            gradients = autograd.grad(
                [y for y, _ in pairs], leaves, [g for _, g in pairs], retain_graph=True, create_graph=more, allow_unused=True
            )
        filled = [zeros_like(x) if g is None else g for g, x in zip(gradients, leaves)]
        return tuple(_closed(structures, filled))

    return unflatten(structure, iter([y if keep else alias(y) for y in outputs])), pull


def jvp(f: Callable[..., Any], primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
    """The value of `f` at `primals` and its derivative in the direction `tangents`.

    Forward mode as the derivative of the vjp with respect to its cotangent, in which it is linear (Townsend 2017).

    >>> import graphc as gc
    >>> y, dy = gc.jvp(lambda x: x * x, (gc.tensor(3.0),), (gc.tensor(2.0),))
    >>> dy.item()
    12.0
    """
    with enable_grad():
        call, leaves, _ = _opened(primals, range(len(primals)))
        result = f(*call)
        outputs: list[Any] = []
        structure = flatten(result, outputs)
        directions: list[Any] = []
        flatten(tuple(tangents), directions)
        if len(directions) != len(leaves):
            raise ValueError(f"jvp: {len(leaves)} primal tensors and {len(directions)} tangents; they must match")
        for i, (x, t) in enumerate(zip(leaves, directions)):
            if isinstance(t, Tensor) and t.shape not in ((), x.shape):
                raise ValueError(f"jvp: tangent {i} is {t._spec}, and its primal {x._spec}; they must have the same shape")
        active = [y for y in outputs if y.requires_grad]
        keep = _watched(active, leaves) or any(isinstance(t, Tensor) and t.requires_grad for t in directions)
        # Any value does for the cotangents: the second derivative does not depend on them.
        dummies = [zeros_like(y) for y in active]
        for d in dummies:
            set_requires_grad(d, True)
        pulled = autograd.grad(active, leaves, dummies, retain_graph=True, create_graph=True, allow_unused=True)
        linear = [(g, t) for g, t in zip(pulled, directions) if g is not None and g.requires_grad]
        pushed: Sequence[Tensor | None] = [None] * len(dummies)
        if linear:
            pushed = autograd.grad(
                [g for g, _ in linear],
                dummies,
                [t if isinstance(t, Tensor) else asarray(t, dtype=g.dtype) for g, t in linear],
                retain_graph=True,
                create_graph=keep,
                allow_unused=True,
            )
    found = iter(pushed)
    derivatives = []
    for y in outputs:
        pushed_to_y = next(found) if y.requires_grad else None
        derivatives.append(zeros_like(y) if pushed_to_y is None else pushed_to_y)
    values = [y if keep else alias(y) for y in outputs]
    return unflatten(structure, iter(values)), unflatten(structure, iter(derivatives))
