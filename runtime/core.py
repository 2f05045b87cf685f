"""The class `Tensor`: storage and identity. Operations are attached to it by `graphc.runtime.tensor`.

Invariants: a tensor has `_spec` (its interned type), memory (`_buffer` keeps it alive, `_address` is
the first element) and byte `_strides`, which are None for row-major contiguous memory. Values are
immutable; an in-place operation gives the tensor another value (`rebind`). While a function is traced
without values the strides are `ABSTRACT` and there is no memory. `_meta` is None unless the tensor
takes part in differentiation; `_traced` is (tracer, IR value) or (None, constant).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from graphc.ir.types import DType
from graphc.runtime import memory
from graphc.runtime.device import CPU, Device
from graphc.runtime.errors import AbstractValueError, here
from graphc.runtime.grad_mode import local, state
from graphc.runtime.spec import Spec

if TYPE_CHECKING:
    from graphc.runtime.methods import Methods
    from graphc.runtime.node import Node
else:
    Methods = object

ABSTRACT: tuple[int, ...] = (1 << 62,)


class Meta:
    """What differentiation knows of one value: the node that made it, or, for a leaf, its gradient."""

    node: Node | None
    # Most instances need none of these, so they are found on the class.
    requires_grad: bool = True
    grad: Tensor | None = None
    hooks: dict[int, Callable[[Any], Any]] | None = None
    retain: bool = False

    def __init__(self, spec: Spec, node: Node | None = None, index: int = 0) -> None:
        self.spec = spec
        self.node = node
        self.index = index


class Tensor(Methods):
    """An array of numbers of one element type.

    Made by `gc.tensor`, `gc.asarray`, `gc.zeros` and friends. Follows the Python array API standard,
    and PyTorch where the standard is silent.
    """

    # `_origin` is set only where an in-place method concerns another tensor: for `p.data` it is p, and for what
    # indexing gives it is `PART`.
    __slots__ = ("__weakref__", "_address", "_buffer", "_meta", "_origin", "_spec", "_strides", "_traced")
    _spec: Spec
    _buffer: Any
    _address: int
    _strides: tuple[int, ...] | None
    _meta: Meta | None
    _traced: tuple[Any, Any] | None
    _origin: Any

    @property
    def shape(self) -> tuple[Any, ...]:
        """The sizes of the dimensions, a tuple of integers (of `Dim` while tracing with symbols)."""
        return self._spec.shape

    @property
    def dtype(self) -> DType:
        """The element type."""
        return self._spec.dtype

    @property
    def device(self) -> Device:
        """Where the memory is."""
        return self._spec.device

    @property
    def is_cuda(self) -> bool:
        """Whether the memory is on a CUDA device."""
        return self._spec.device is not CPU

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self._spec.shape)

    @property
    def is_leaf(self) -> bool:
        """Whether no recorded operation made this tensor."""
        return self._meta is None or self._meta.node is None

    @property
    def is_abstract(self) -> bool:
        """Whether this tensor stands for a value that is not known yet (while tracing)."""
        return self._strides is ABSTRACT

    @property
    def requires_grad(self) -> bool:
        """Whether gradients flow to this tensor. Only floating point leaves can be given it."""
        return self._meta is not None and self._meta.requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        set_requires_grad(self, value)

    @property
    def grad(self) -> Tensor | None:
        """The gradient that `backward` accumulated in this tensor, or None."""
        if state.active and local.tracer is not None:
            return local.tracer.grad_of(self)
        return None if self._meta is None else self._meta.grad

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if value is not None:
            if not isinstance(value, Tensor):
                raise TypeError(f".grad takes a Tensor or None, not {type(value).__name__}")
            if value._spec is not self._spec:
                raise TypeError(
                    f".grad of a tensor {self._spec} must have its type, not {value._spec}; reshape or cast the gradient"
                )
        if self._meta is None:
            if value is None:
                return
            self._meta = Meta(self._spec)
            self._meta.requires_grad = False
        if state.active and local.tracer is not None:
            local.tracer.set_grad(self)
        self._meta.grad = value

    @property
    def grad_fn(self) -> Node | None:
        """The recorded operation that made this tensor, or None for a leaf."""
        return None if self._meta is None else self._meta.node


class Parameter(Tensor):
    """A tensor that a Module trains: a leaf that requires gradients by default."""

    __slots__ = ("__dict__",)


_new: Any = object.__new__
PART = object()
# Reads the slot itself: absent on most tensors, and `__getattr__` is not asked.
_slot: Any = Tensor.__dict__["_origin"].__get__


def origin(t: Tensor) -> Any:
    """The tensor whose `data` this is, `PART` for what indexing gave, or None."""
    try:
        return _slot(t)
    except AttributeError:
        return None


def make(spec: Spec, buffer: Any, address: int, strides: tuple[int, ...] | None = None) -> Tensor:
    """A tensor over existing memory."""
    t = _new(Tensor)
    t._spec = spec
    t._buffer = buffer
    t._address = address
    t._strides = strides
    t._meta = None
    t._traced = None
    return t


def empty(spec: Spec) -> Tensor:
    """A contiguous tensor with memory of its own, contents undefined."""
    try:
        block = spec.free.pop()
    except IndexError:
        block = spec.obtain(spec.nbytes)
    buffer = _new(memory.Buffer)
    buffer.block = block
    return make(spec, buffer, block[0])


def abstract(spec: Spec) -> Tensor:
    """A tensor that has a type and no value."""
    return make(spec, None, 0, ABSTRACT)


def alias(t: Tensor) -> Tensor:
    """The same value as a tensor of its own, apart from differentiation."""
    if state.active and local.tracer is not None:
        local.tracer.see(t)
    a = _new(Tensor)
    a._spec = t._spec
    a._buffer = t._buffer
    a._address = t._address
    a._strides = t._strides
    a._meta = None
    a._traced = t._traced
    return a


def contiguous_strides(spec: Spec) -> tuple[int, ...]:
    """Row-major byte strides."""
    strides = []
    step = spec.dtype.itemsize
    for d in reversed(spec.shape):
        strides.append(step)
        step *= d  # type: ignore[assignment]
    return tuple(reversed(strides))


def is_contiguous(spec: Spec, strides: tuple[int, ...]) -> bool:
    """Whether byte strides are those of row-major memory; dimensions of size 1 may have any."""
    if spec.size == 0:
        return True
    step = spec.dtype.itemsize
    for d, s in zip(reversed(spec.shape), reversed(strides)):
        if d != 1 and s != step:
            return False
        step *= d  # type: ignore[assignment]
    return True


_copied: Callable[[Tensor, Tensor], bool] | None = None


def make_contiguous(t: Tensor) -> None:
    """Give the tensor contiguous memory with the same value, computing one that waits in a tracer.

    Raises for a tensor without a value.
    """
    if t._strides is ABSTRACT:
        if t._traced is not None and t._traced[0] is not None and t._traced[0].give_value(t):
            if t._strides is not None:
                make_contiguous(t)
            return
        raise AbstractValueError(
            f"a tensor {t._spec} that is being traced has no value yet\n  at {here()}\n"
            "use tensor operations (where, select by index) instead of its value, or do not keep it after tracing"
        )
    fresh = empty(t._spec)
    if t._spec.device is CPU:
        global _copied
        if _copied is None:
            from graphc.runtime.strided import copied as _copied
        assert _copied is not None
        if not _copied(fresh, t):
            np.copyto(view_of(fresh, writable=True), view_of(t))
    else:
        context = t._spec.device.context
        context.pack(fresh._address, t._address, t._spec, t._strides)
        context.moved(t._buffer, fresh._buffer)
    # What dies here runs Python, and another thread may look at the tensor then: not before the address is there.
    old = t._buffer
    t._buffer, t._address, t._strides = fresh._buffer, fresh._address, None
    del old
    state.stamp = object()


class _Memory:
    """Lends memory to NumPy and keeps its owner alive."""

    __slots__ = ("__array_interface__", "__weakref__", "owner")

    def __init__(self, owner: Any, interface: dict[str, Any]) -> None:
        self.owner = owner
        self.__array_interface__ = interface


def view_of(t: Tensor, writable: bool = False) -> np.ndarray[Any, Any]:
    """The memory of a tensor as a NumPy array, without a copy. Raises for a tensor without a value or on a GPU."""
    if t._strides is ABSTRACT:
        make_contiguous(t)
    spec = t._spec
    if spec.device is not CPU:
        raise TypeError(
            f"a tensor {spec} cannot become a NumPy array, because its memory is on {spec.device}; "
            f"use x.cpu() to copy it first\n  at {here()}"
        )
    dtype = spec.dtype.numpy
    # NumPy reads bfloat16 from the interface as raw bytes only.
    code = dtype.str if dtype.kind != "V" and spec.dtype.name != "bfloat16" else "<u2"
    interface = {
        "version": 3,
        "shape": spec.shape,
        "typestr": code,
        "data": (t._address, not writable),
        "strides": t._strides,
    }
    array = np.asarray(_Memory(t._buffer, interface))
    return array if array.dtype == dtype else array.view(dtype)


def values_of(t: Tensor) -> np.ndarray[Any, Any]:
    """The values of a tensor as a NumPy array: its memory, or, on a GPU, a copy, once what computes it is done."""
    if t._strides is ABSTRACT:
        make_contiguous(t)
    spec = t._spec
    if spec.device is CPU:
        return view_of(t)
    if t._strides is not None:
        make_contiguous(t)
    raw: np.ndarray[Any, Any] = spec.device.context.read(t._address, spec.nbytes)
    return raw.view(spec.dtype.numpy).reshape(spec.shape)  # type: ignore[arg-type]


def write_bytes(t: Tensor, data: bytes) -> None:
    """Fill the memory of a fresh contiguous tensor."""
    if t._spec.device is CPU:
        ctypes.memmove(t._address, data, len(data))
    else:
        t._spec.device.context.write(t._address, data)


def copy_bytes(target: Tensor, source: Tensor) -> None:
    """Give a fresh contiguous tensor the bytes of a contiguous one on the same device."""
    spec = target._spec
    if spec.device is CPU:
        ctypes.memmove(target._address, source._address, spec.nbytes)
    else:
        spec.device.context.copy(target._address, source._address, spec.nbytes)


def set_requires_grad(t: Tensor, value: bool) -> None:
    """Start or stop recording operations on a leaf. Raises `TypeError` for integers, `RuntimeError` for a result."""
    if value:
        if not t._spec.dtype.is_float:
            raise TypeError(
                f"a tensor {t._spec} cannot require gradients: only floating point tensors can; "
                f"use x.astype(graphc.float32)\n  at {here()}"
            )
        if t._meta is None:
            t._meta = Meta(t._spec)
        t._meta.requires_grad = True
    elif t._meta is not None:
        if t._meta.node is not None:
            raise RuntimeError(
                f"requires_grad of the result of an operation cannot be switched off; use x.detach()\n  at {here()}"
            )
        t._meta.requires_grad = False
    state.stamp = object()


def rebind(t: Tensor, new: Tensor, operation: str) -> Tensor:
    """Give `t` the value of `new`, which must have its type. Returns `t`.

    Raises `RuntimeError` for a leaf that requires gradients while operations are recorded.
    """
    meta = t._meta
    if meta is not None and meta.requires_grad and meta.node is None and local.grad:
        raise RuntimeError(
            f"{operation} in place on a leaf {t._spec} that requires gradients; "
            f"wrap it in `with graphc.no_grad():` to update the value, or write it out of place\n  at {here()}"
        )
    if state.active and local.tracer is not None:
        local.tracer.note_write(t)
        new = local.tracer.settled(new)
    # As in `make_contiguous`: the old memory goes once the tensor has the new.
    old = t._buffer
    t._spec, t._buffer, t._address, t._strides = new._spec, new._buffer, new._address, new._strides
    del old
    # A Python number's mark as a constant does not pass to a tensor, whose value may change.
    t._traced = new._traced if new._traced is None or new._traced[0] is not None else None
    if new._meta is not None and new._meta.requires_grad:
        t._meta = new._meta
    elif meta is not None and meta.node is None:
        meta.spec = t._spec
    elif local.grad:
        t._meta = None
    state.stamp = object()
    owner = origin(t)
    if owner is not None:
        if owner is PART:
            del t._origin
        else:
            share(owner, t, operation)
    return t


def share(t: Tensor, source: Tensor, operation: str) -> None:
    """Give `t` the value of `source` apart from differentiation, as `t.data = source` does."""
    recorded, local.grad = local.grad, False
    try:
        rebind(t, alias(source), operation)
    finally:
        local.grad = recorded


def refresh(t: Tensor, operation: str) -> None:
    """Before an in-place operation reads `t`: if `t` is `p.data`, it takes over what p has become since."""
    owner = origin(t)
    if owner is not None and owner is not PART:
        del t._origin
        share(t, owner, operation)
        t._origin = owner
