"""The public `Tensor`: operations are attached to the class of `core` as methods; operators are in operators.py.

Methods carry array API names and PyTorch's. Item assignment rebinds the tensor to a new value; no other tensor changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from graphc.ir import types as ir_types
from graphc.ir.types import DType
from graphc.runtime import (
    autograd,
    display,
    indexing,
    interop,
    ops_layout,
    ops_linear,
    ops_reduce,
    random,
    transfer,
)
from graphc.runtime import ops as functions
from graphc.runtime.core import (
    Parameter,
    Tensor,
    alias,
    contiguous_strides,
    make_contiguous,
    rebind,
    set_requires_grad,
)
from graphc.runtime.device import CPU, Device, resolve
from graphc.runtime.device import device as device_named
from graphc.runtime.dispatch import apply, operand_of
from graphc.runtime.grad_mode import enable_grad, inference_mode, no_grad, set_grad_enabled
from graphc.runtime.interop import asarray, from_dlpack, from_numpy, tensor
from graphc.runtime.operators import OPERATORS, assign_result, check_whole, number_attribute
from graphc.runtime.ops_elementwise import FUNCTIONS, astype, where

# Storage and types


def _to(
    x: Tensor, *targets: Any, dtype: Any = None, device: Any = None, non_blocking: bool = False, copy: bool = False
) -> Tensor:
    """`x` on a device, in an element type, or as another tensor is: `to("cuda")`, `to(gc.float64)`, `to(other)`.

    non_blocking: do not wait for a copy from pinned memory to a GPU; what is computed there waits for it by itself.
    """
    for target in targets:
        if isinstance(target, Tensor):
            dtype, device = target._spec.dtype, target._spec.device
        elif isinstance(target, (DType, type, np.dtype)):
            dtype = target
        elif isinstance(target, (str, Device)):
            device = target
        elif not isinstance(target, bool):
            raise TypeError(f"to: {target!r} is neither a device nor an element type")
    place = x._spec.device if device is None else resolve(device)
    moves = place is not x._spec.device
    if dtype is not None and not (moves and place is CPU):
        # The element type changes on the GPU, where that is faster.
        t = transfer.to_device(x, place, non_blocking) if moves else x
        return astype(t, dtype, copy=copy and not moves)
    if dtype is not None:
        x = astype(x, dtype, copy=False)
    if moves:
        return transfer.to_device(x, place, non_blocking)
    return astype(x, x._spec.dtype, copy=True) if copy else x


def _cuda(x: Tensor, device: Any = None, non_blocking: bool = False) -> Tensor:
    """`x` on a CUDA device, the current one unless told."""
    return transfer.to_device(x, device_named("cuda" if device is None else device), non_blocking)


def _pin_memory(x: Tensor) -> Tensor:
    """A copy in memory that a GPU can read by itself, so that `to("cuda", non_blocking=True)` need not wait."""
    from graphc.runtime.cuda.pinned import pinned

    return pinned(x)


def _is_pinned(x: Tensor) -> bool:
    """Whether a GPU can read the memory of this CPU tensor by itself."""
    from graphc.runtime.cuda.pinned import is_pinned

    return is_pinned(x)


def _record_stream(x: Tensor, stream: Any) -> None:
    """Say that `stream` uses the memory too, so that nobody else gets it before that stream is done with it."""
    if x._spec.device is not CPU:
        x._spec.device.context.record_stream(x._buffer, stream)


def _detach(x: Tensor) -> Tensor:
    """The same value, apart from differentiation."""
    return alias(x)


def _clone(x: Tensor) -> Tensor:
    """A tensor of its own with the same value; gradients flow through it."""
    return FUNCTIONS["positive"](x)


def _contiguous(x: Tensor) -> Tensor:
    """The tensor itself, its memory in row-major order."""
    if x._strides is not None and not x.is_abstract:
        make_contiguous(x)
    return x


def _requires_grad_(x: Tensor, requires_grad: bool = True) -> Tensor:
    """Switch `requires_grad` and return the tensor."""
    set_requires_grad(x, requires_grad)
    return x


def _copy_(x: Tensor, source: Any) -> Tensor:
    """Give the tensor the value of `source`, broadcast and cast to its type."""
    check_whole(x, "copy_")
    new = operand_of(source, "copy_")
    if new._spec.dtype is not x._spec.dtype or new._spec.weak:
        new = astype(new, x._spec.dtype)
    if new._spec.shape != x._spec.shape:
        new = ops_layout.broadcast_to(new, x._spec.shape)
    return rebind(x, transfer.to_device(new, x._spec.device), "copy_")


def _fill_(x: Tensor, value: Any) -> Tensor:
    """Give every element this value."""
    check_whole(x, "fill_")
    return rebind(x, functions.full_like(x, value), "fill_")


def _uniform_(x: Tensor, low: float = 0.0, high: float = 1.0, *, generator: Any = None) -> Tensor:
    """Give the tensor uniform random values in [low, high)."""
    check_whole(x, "uniform_")
    return assign_result(x, random.uniform(low, high, x._spec.shape, dtype=x._spec.dtype, device=random._beside(x), generator=generator), "uniform_")


def _normal_(x: Tensor, mean: float = 0.0, std: float = 1.0, *, generator: Any = None) -> Tensor:
    """Give the tensor normal random values."""
    check_whole(x, "normal_")
    return assign_result(x, random.normal(mean, std, x._spec.shape, dtype=x._spec.dtype, device=random._beside(x), generator=generator), "normal_")


def _data(x: Tensor) -> Tensor:
    """The value apart from differentiation, as a tensor whose in-place operations give `x` their result."""
    t = alias(x)
    t._origin = x
    return t


def _set_data(x: Tensor, value: Any) -> None:
    """`x.data = value`: another value, of any shape, without a record."""
    with no_grad():
        rebind(x, alias(operand_of(value, "data")), "data")


class _Size(int):
    """The number of elements (array API `x.size`), which can be called as PyTorch's `x.size(dim)`."""

    shape: ir_types.Shape

    def __call__(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]


class _SymbolicSize(ir_types.DimExpr):
    """As `_Size`, where the number depends on symbols."""

    __slots__ = ("shape",)

    __call__ = _Size.__call__


def _size(x: Tensor) -> Any:
    shape = x._spec.shape
    n = ir_types.size_of(shape)
    size = _SymbolicSize(n.terms) if isinstance(n, ir_types.DimExpr) else _Size(n)
    object.__setattr__(size, "shape", shape)
    return size


def _stride(x: Tensor, dim: int | None = None) -> Any:
    """How many elements lie between neighbours along each dimension, or along one."""
    strides = contiguous_strides(x._spec) if x._strides is None else x._strides
    steps = tuple(s // x._spec.dtype.itemsize for s in strides)
    return steps if dim is None else steps[dim]


def _reversed(x: Tensor) -> Tensor:
    return apply(ops_layout.PERMUTE, (x,), (tuple(range(len(x._spec.shape) - 1, -1, -1)),))


def _transpose(x: Tensor, dim0: int | None = None, dim1: int | None = None) -> Tensor:
    """Two dimensions exchanged; without arguments, all dimensions reversed."""
    if dim0 is None or dim1 is None:
        return _reversed(x)
    return ops_layout.swapaxes(x, dim0, dim1)


def _varargs(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def method(x: Tensor, *sizes: Any, **names: Any) -> Tensor:
        if not sizes:
            return f(x, **names)
        first = sizes[0] if len(sizes) == 1 else sizes
        return f(x, first if isinstance(first, (tuple, list)) else (first,), **names)

    method.__doc__ = f.__doc__
    return method


def _reshape(x: Tensor, *sizes: Any, **names: Any) -> Tensor:
    """`reshape` with the shape as one argument or several."""
    if sizes and not names and all(map(_is_int, sizes)):
        # The sizes are a shape as they stand.
        return apply(ops_layout.RESHAPE, (x,), (sizes,))
    return _reshape_to(x, *sizes, **names)


def _is_int(d: Any) -> bool:
    return d.__class__ is int


_reshape_to = _varargs(functions.NAMES["reshape"])


def _view(x: Tensor, *sizes: Any) -> Tensor:
    """As `reshape`; with an element type, the bits read as that type."""
    if len(sizes) == 1 and isinstance(sizes[0], DType):
        return functions.bitcast(x, sizes[0])
    return _METHODS["reshape"](x, *sizes)  # type: ignore[no-any-return]


def _cast(dtype: DType) -> Callable[[Tensor], Tensor]:
    def method(x: Tensor) -> Tensor:
        return astype(x, dtype, copy=False)

    method.__doc__ = f"The tensor in {dtype.name}."
    return method


def _type_as(x: Tensor, other: Tensor) -> Tensor:
    """The tensor in the element type of `other`."""
    return astype(x, other._spec.dtype, copy=False)


def _masked_fill(x: Tensor, mask: Any, value: Any) -> Tensor:
    """`value` where the mask holds, else `x`."""
    return where(mask, value, x)


def _norm(x: Tensor, p: float = 2.0, axis: Any = None, keepdims: bool = False, **names: Any) -> Tensor:
    """The p-norm of vectors along `axis` (None: of all elements)."""
    size = FUNCTIONS["abs"](x)
    if p == 2.0:
        square = ops_reduce.sum(x * x, axis, keepdims, **names)
        # The gradient at the origin is 0, one of the subgradients, and not 0/0.
        origin = square == 0
        return FUNCTIONS["sqrt"](where(origin, 1, square)) * where(origin, 0, 1)
    if p == 1.0:
        return ops_reduce.sum(size, axis, keepdims, **names)
    if p == float("inf"):
        return ops_reduce.max(size, axis, keepdims, **names)
    return ops_reduce.sum(size**p, axis, keepdims, **names) ** (1 / p)


def _new_filled(value: float) -> Callable[..., Tensor]:
    def method(x: Tensor, *shape: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
        size = shape[0] if len(shape) == 1 else shape
        kind = x._spec.dtype if dtype is None else dtype
        device = x._spec.device if device is None else device
        return functions.full(size, value, dtype=kind, device=device, requires_grad=requires_grad)  # type: ignore[no-any-return]

    method.__doc__ = f"A tensor of this shape with {value:g} everywhere, by default in the element type of this one."
    return method


def _new_tensor_like(x: Tensor, data: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """A tensor of `data`, by default in the element type of this one."""
    place = x._spec.device if device is None else device
    return tensor(data, x._spec.dtype if dtype is None else dtype, place, requires_grad)


def _array_namespace(x: Tensor, *, api_version: str | None = None) -> Any:
    """The module with the functions of the array API standard."""
    import graphc

    return graphc


# Functions whose first argument is the tensor, by method name.
_METHODS: dict[str, Callable[..., Any]] = {
    **{
        name: functions.NAMES[name]
        for name in (
            *FUNCTIONS, "logical_not", "clip", "clamp", "sum", "prod", "mean", "var", "std", "max", "min", "any", "all",
            "argmax", "argmin", "swapaxes", "moveaxis", "broadcast_to", "expand_dims", "unsqueeze", "squeeze", "flatten",
            "unstack", "split", "chunk", "roll", "tril", "triu", "matmul", "outer", "take", "take_along_axis", "gather",
            "index_add", "scatter_add", "nonzero", "isclose", "allclose", "diag", "diagonal", "trace", "diff", "count_nonzero",
             "astype", "cumsum", "cumprod", "mul", "sub", "div", "neg",
        )
        if name not in ("stop_gradient", "positive")
    },
    "reshape": _reshape,
    "permute": _varargs(functions.NAMES["permute_dims"]),
    "permute_dims": _varargs(functions.NAMES["permute_dims"]),
    "expand": _varargs(functions.NAMES["broadcast_to"]),
    "flip": _varargs(functions.NAMES["flip"]),
    "tile": _varargs(ops_layout.tile),
    "repeat": _varargs(ops_layout.tile),
    "repeat_interleave": lambda x, repeats, dim=None: ops_layout.repeat(x, repeats, axis=dim),
    "view": _view,
    "transpose": _transpose,
    "t": lambda x: _reversed(x),
    "dot": ops_linear.vecdot,
    "mm": ops_linear.matmul,
    "bmm": ops_linear.matmul,
    "index_select": lambda x, dim, index: indexing.take(x, index, axis=dim),
    "masked_fill": _masked_fill,
    "norm": _norm,
    "item": interop.item,
    "tolist": interop.tolist,
    "numpy": interop.numpy,
    "detach": _detach,
    "clone": _clone,
    "contiguous": _contiguous,
    "is_contiguous": lambda x: x._strides is None,
    "to": _to,
    "cpu": lambda x: transfer.to_device(x, CPU),
    "cuda": _cuda,
    "pin_memory": _pin_memory,
    "is_pinned": _is_pinned,
    "record_stream": _record_stream,
    "float": _cast(ir_types.F32),
    "double": _cast(ir_types.F64),
    "half": _cast(ir_types.F16),
    "bfloat16": _cast(ir_types.BF16),
    "int": _cast(ir_types.I32),
    "long": _cast(ir_types.I64),
    "bool": _cast(ir_types.BOOL),
    "type_as": _type_as,
    "stride": _stride,
    "dim": lambda x: len(x._spec.shape),
    "numel": lambda x: ir_types.size_of(x._spec.shape),
    "element_size": lambda x: x._spec.dtype.itemsize,
    "requires_grad_": _requires_grad_,
    "copy_": _copy_,
    "fill_": _fill_,
    "zero_": lambda x: _fill_(x, 0),
    "uniform_": _uniform_,
    "normal_": _normal_,
    "new_zeros": _new_filled(0),
    "new_ones": _new_filled(1),
    "new_tensor": _new_tensor_like,
    "backward": autograd.backward,
    "retain_grad": autograd.retain_grad,
    "register_hook": autograd.register_hook,
    "is_floating_point": lambda x: x._spec.dtype.is_float,
    "data_ptr": lambda x: x._address,
    "__array_namespace__": _array_namespace,
    "__array__": interop.array_protocol,
    "__array_ufunc__": interop.array_ufunc,
    "__dlpack__": interop.dlpack,
    "__dlpack_device__": interop.dlpack_device,
    "__deepcopy__": interop.deepcopy,
    "__copy__": lambda x: interop.deepcopy(x, {}),
    "__reduce__": interop.reduce,
    "__repr__": display.show,
    "__format__": display.show_formatted,
    "__getitem__": indexing.getitem,
    "__setitem__": indexing.setitem,
    "__hash__": lambda x: hash(interop.item(x)) if x._spec.weak else object.__hash__(x),
    **OPERATORS,
}
_PROPERTIES: dict[str, Any] = {
    "T": property(_reversed, doc="Dimensions reversed."),
    "mT": property(ops_layout.matrix_transpose, doc="The last two dimensions exchanged."),
    "size": property(_size, doc="The number of elements; `x.size(dim)` is the size of a dimension."),
    "nbytes": property(lambda x: x._spec.nbytes, doc="The number of bytes of the elements."),
    "itemsize": property(lambda x: x._spec.dtype.itemsize, doc="The number of bytes of an element."),
    "data": property(_data, _set_data, doc="The value apart from differentiation; assignment and changes in place give it another."),
}
for _name, _f in _METHODS.items():
    setattr(Tensor, _name, _f)
for _name, _p in _PROPERTIES.items():
    setattr(Tensor, _name, _p)
# Not among the methods: type checkers should not take every name for an attribute.
setattr(Tensor, "__getattr__", number_attribute)  # noqa: B010


def _new_tensor(
    cls: type, data: Any = (), dtype: Any = None, requires_grad: bool | None = None, device: Any = None
) -> Tensor:
    if issubclass(cls, Parameter):
        source = data if isinstance(data, Tensor) and dtype is None and device is None else asarray(data, dtype=dtype, device=device)
        return interop.make_parameter(source, requires_grad is not False, cls)
    return tensor(data, dtype, device, requires_grad=bool(requires_grad))


Tensor.__new__ = _new_tensor  # type: ignore[method-assign,assignment]

__all__ = [
    "Parameter",
    "Tensor",
    "asarray",
    "enable_grad",
    "from_dlpack",
    "from_numpy",
    "inference_mode",
    "no_grad",
    "set_grad_enabled",
    "tensor",
]
