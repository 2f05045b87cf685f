"""Operators of tensors, and what Python asks of a value: `bool`, `int`, `len`, iteration.

`OPERATORS` has them all by method name. In-place operators rebind the tensor to a new value; no other tensor changes.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

from graphc.runtime import interop, ops_layout, ops_linear
from graphc.runtime.core import PART, Tensor, origin, rebind, refresh
from graphc.runtime.dispatch import Op, apply, number, operand, run_single
from graphc.runtime.errors import here
from graphc.runtime.grad_mode import local, state
from graphc.runtime.node import record
from graphc.runtime.ops_elementwise import OPS, astype
from graphc.runtime.precision import setting


def _binary(op: Op, reflected: bool = False) -> Callable[[Tensor, Any], Tensor]:
    cache = op.cache

    def forward(a: Tensor, b: Any) -> Tensor:
        kind = b.__class__
        if kind is float or kind is int:
            b = number(b)
        try:
            entry = cache.get(((), a._spec, b._spec))
        except AttributeError:
            other = operand(b)
            return NotImplemented if other is None else forward(a, other)  # type: ignore[no-any-return]
        if entry is None or state.active:
            return apply(op, (a, b))
        t = run_single(entry, a, b)
        if (a._meta is not None or b._meta is not None) and local.grad:
            record(entry, (a, b), (t,))
        return t

    def backward(a: Tensor, b: Any) -> Tensor:
        other = operand(b)
        return NotImplemented if other is None else forward(other, a)  # type: ignore[no-any-return]

    return backward if reflected else forward


def _in_place(op: Op, method: bool = False) -> Callable[[Tensor, Any], Tensor]:
    def update(a: Tensor, b: Any) -> Tensor:
        other = operand(b)
        if other is None:
            return NotImplemented  # type: ignore[no-any-return]
        if method:
            check_whole(a, f"{op.name}_")
        refresh(a, op.name)
        result = apply(op, (a, other))
        # A Python number that is being traced stays a number: `n += 1` makes another.
        return result if a._spec.weak else assign_result(a, result, op.name)

    return update


def check_whole(t: Tensor, name: str) -> None:
    """Raise for an in-place method of what indexing gave: PyTorch would change the indexed tensor, which stays here."""
    if origin(t) is PART:
        raise TypeError(
            f"{name} on the result of x[...], a tensor of its own, would not change x; write x[...] = value or "
            f"x[...] += value, and x[...].clone() to change a copy in place\n  at {here()}"
        )


def assign_result(t: Tensor, new: Tensor, name: str) -> Tensor:
    """Rebind `t` to `new`, cast to its element type. Raises if the shape or the kind of number would change."""
    if new._spec is not t._spec:
        if new._spec.device is not t._spec.device:
            raise RuntimeError(
                f"{name} in place: the result {new._spec} is on {new._spec.device} and the tensor {t._spec} on "
                f"{t._spec.device}; write x = x ... instead, or move the other operand\n  at {here()}"
            )
        kind, target = new._spec.dtype, t._spec.dtype
        if new._spec.shape != t._spec.shape:
            raise ValueError(
                f"{name} in place: the result {new._spec} does not have the shape of {t._spec}; write x = x ... instead"
                f"\n  at {here()}"
            )
        if "biuf".index(kind.kind) > max("biuf".index(target.kind), 2 if target.is_integer else 0):
            raise TypeError(
                f"{name} in place: the result {new._spec} cannot be kept in {t._spec}; cast with astype first\n  at {here()}"
            )
        new = astype(new, target)
    return rebind(t, new, name)


def _operator(op: Op) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        return apply(op, (x,))

    return forward


_UNARY_OPERATORS = {"neg": "negative", "pos": "positive", "abs": "abs", "invert": "bitwise_invert"}
_OPERATORS = {
    "add": "add",
    "sub": "subtract",
    "mul": "multiply",
    "truediv": "divide",
    "floordiv": "floor_divide",
    "mod": "remainder",
    "pow": "pow",
    "and": "bitwise_and",
    "or": "bitwise_or",
    "xor": "bitwise_xor",
    "lshift": "bitwise_left_shift",
    "rshift": "bitwise_right_shift",
}
_COMPARISONS = {
    "eq": "equal",
    "ne": "not_equal",
    "lt": "less",
    "le": "less_equal",
    "gt": "greater",
    "ge": "greater_equal",
}


_plain_power = _binary(OPS["pow"])


def _power(a: Tensor, b: Any) -> Any:
    if a._spec.weak and a._spec.dtype.is_integer:
        power = operand(b)
        if power is not None and power._spec.weak and power._spec.dtype.is_integer and bool(power < 0):
            # Python's power of integers is a float here.
            return operator.index(a) ** operator.index(power)
    return _plain_power(a, b)


def _matmul_operands(a: Tensor, b: Any) -> Tensor:
    # As in `_binary`: nothing but what a product of two plain matrices needs.
    try:
        entry = ops_linear._MATMUL.cache.get((setting.attrs, a._spec, b._spec))
    except AttributeError:
        entry = None
    if entry is None or state.active or a._strides is not None or b._strides is not None:
        other = operand(b)
        return NotImplemented if other is None else ops_linear.matmul(a, other)  # type: ignore[no-any-return]
    t = run_single(entry, a, b)
    if (a._meta is not None or b._meta is not None) and local.grad:
        record(entry, (a, b), (t,))
    return t


def _matmul_reflected(a: Tensor, b: Any) -> Tensor:
    other = operand(b)
    return NotImplemented if other is None else ops_linear.matmul(other, a)  # type: ignore[no-any-return]


# Values that Python looks at


def _bool(x: Tensor) -> bool:
    if x._spec.concrete and x._spec.size != 1:
        raise ValueError(
            f"the truth of a tensor {x._spec} of {x._spec.size} elements is ambiguous; use x.any() or x.all()\n  at {here()}"
        )
    return bool(interop.item(x))


def _round(x: Tensor, digits: int | None = None) -> Any:
    """A rank-0 tensor is rounded as Python rounds its number."""
    return round(interop.item(x), digits)


def number_attribute(x: Tensor, name: str) -> Any:
    """What only Python numbers have, for one that is being recorded: `n.bit_length()`, `n.real`."""
    if not name.startswith("_") and x._spec.weak:
        return getattr(interop.item(x), name)
    raise AttributeError(f"{type(x).__name__!r} object has no attribute {name!r}", name=name, obj=x)


def _index(x: Tensor) -> int:
    if not x._spec.dtype.is_integer or x._spec.shape:
        raise TypeError(f"only an integer tensor of rank 0 can be used as an index, not {x._spec}")
    return operator.index(interop.item(x))  # type: ignore[arg-type]


def _len(x: Tensor) -> int:
    if not x._spec.shape:
        raise TypeError("a rank-0 tensor has no length")
    return operator.index(x._spec.shape[0])


def _iterate(x: Tensor) -> Iterator[Tensor]:
    if not x._spec.shape:
        raise TypeError("a rank-0 tensor cannot be iterated")
    return iter(ops_layout.unstack(x))


def _contains(x: Tensor, value: Any) -> bool:
    return bool((x == value).any())


OPERATORS: dict[str, Callable[..., Any]] = {
    "__bool__": _bool,
    "__int__": lambda x: int(interop.item(x)),
    "__float__": lambda x: float(interop.item(x)),
    "__index__": _index,
    "__len__": _len,
    "__iter__": _iterate,
    "__contains__": _contains,
    "__round__": _round,
    "__trunc__": lambda x: int(interop.item(x)),
    "__divmod__": lambda x, y: (x // y, x % y),
    "__rdivmod__": lambda x, y: (y // x, y % x),
    **{f"__{name}__": _operator(OPS[function]) for name, function in _UNARY_OPERATORS.items()},
    "__matmul__": _matmul_operands,
    "__rmatmul__": _matmul_reflected,
    **{f"__{name}__": _binary(OPS[function]) for name, function in (_OPERATORS | _COMPARISONS).items()},
    **{f"__r{name}__": _binary(OPS[function], reflected=True) for name, function in _OPERATORS.items()},
    **{f"__i{name}__": _in_place(OPS[function]) for name, function in _OPERATORS.items()},
    "__pow__": _power,
    "__rpow__": lambda x, y: NotImplemented if (base := operand(y)) is None else _power(base, x),
    **{
        f"{method}_": _in_place(OPS[name], method=True)
        for method, name in (("add", "add"), ("sub", "subtract"), ("mul", "multiply"), ("div", "divide"))
    },
}
