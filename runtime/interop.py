"""Tensors from Python data, NumPy and DLPack, and back; copying and pickling.

NumPy arrays are shared without a copy by `asarray` and `from_numpy`: changing the array changes the
tensor. graphc itself never writes to memory that it shares.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from graphc.ir.types import F64, I64, DType
from graphc.ir.types import dtype as as_dtype
from graphc.runtime.core import (
    Meta,
    Parameter,
    Tensor,
    _new,
    alias,
    empty,
    is_contiguous,
    make,
    set_requires_grad,
    values_of,
    view_of,
)
from graphc.runtime.device import CPU, Device, resolve
from graphc.runtime.grad_mode import local, state
from graphc.runtime.memory import ForeignBuffer
from graphc.runtime.ops_elementwise import astype
from graphc.runtime.spec import DEFAULT_FLOAT, DEFAULT_INT, spec_of
from graphc.runtime.transfer import to_device


def from_numpy(array: np.ndarray[Any, Any]) -> Tensor:
    """A tensor that shares the memory of a NumPy array.

    Raises `TypeError` for an element type that graphc does not have.

    >>> import numpy as np, graphc as gc
    >>> a = np.zeros(3, np.float32)
    >>> t = gc.from_numpy(a)
    >>> a[0] = 5
    >>> t.tolist()
    [5.0, 0.0, 0.0]
    """
    if not isinstance(array, np.ndarray):
        raise TypeError(f"from_numpy takes a NumPy array, not {type(array).__name__}; use graphc.asarray")
    return _shared(array)


def _shared(array: np.ndarray[Any, Any]) -> Tensor:
    dtype = as_dtype(array.dtype.newbyteorder("="))
    if not array.dtype.isnative or not array.flags.aligned:
        array = array.astype(dtype.numpy)
    spec = spec_of(dtype, array.shape)
    address = array.ctypes.data
    buffer = ForeignBuffer(array)
    t = make(spec, buffer, address, None if is_contiguous(spec, array.strides) else array.strides)
    if state.active and local.tracer is not None:
        local.tracer.note_foreign(t)
    return t


def _copied(array: np.ndarray[Any, Any], device: Device = CPU) -> Tensor:
    t = empty(spec_of(as_dtype(array.dtype), array.shape, False, device))
    if device is CPU:
        np.copyto(view_of(t, writable=True), array)
    else:
        device.context.write(t._address, np.ascontiguousarray(array))
    return t


def asarray(obj: Any, /, *, dtype: Any = None, device: Any = None, copy: bool | None = None) -> Tensor:
    """A tensor from a tensor, NumPy array, DLPack object, number or nested sequence of numbers.

    Shares memory where it can unless `copy` is True; raises `ValueError` if `copy` is False and it
    cannot. Python floats become float32, integers int64.
    """
    kind = None if dtype is None else as_dtype(dtype)
    if isinstance(obj, Tensor):
        t = _like(obj, kind, copy)
        place = t._spec.device if device is None else resolve(device)
    else:
        t = _on_cpu(obj, kind, copy)
        place = t._spec.device if device is None and t._spec.device is not CPU else resolve(device)
    if place is t._spec.device:
        return t
    if copy is False:
        raise ValueError(f"asarray: {t._spec} cannot get to {place} without a copy; leave copy out")
    return to_device(t, place)


def _like(obj: Tensor, kind: DType | None, copy: bool | None) -> Tensor:
    """A tensor in an element type."""
    if kind is not None and obj._spec.dtype is not kind:
        if copy is False:
            raise ValueError(f"asarray: {obj._spec} cannot become {kind} without a copy")
        return astype(obj, kind)
    if obj._spec.weak:
        # A Python number that is being recorded becomes the tensor that it would be outside.
        return astype(obj, {F64: DEFAULT_FLOAT, I64: DEFAULT_INT}.get(obj._spec.dtype, obj._spec.dtype))
    return alias(obj) if copy and obj._meta is None else obj


def _on_cpu(obj: Any, kind: DType | None, copy: bool | None) -> Tensor:
    """A tensor from anything else: where its memory is, or on the CPU."""
    if hasattr(obj, "__dlpack_device__") and not isinstance(obj, np.ndarray) and obj.__dlpack_device__()[0] == 2:
        t = from_dlpack(obj)
        return t if kind is None else astype(t, kind, copy=False)
    if isinstance(obj, (np.ndarray, np.generic)) or (
        hasattr(obj, "__array__") and not isinstance(obj, (int, float, list, tuple))
    ):
        array = np.asarray(obj)
        if kind is not None and array.dtype != kind.numpy:
            if copy is False:
                raise ValueError(f"asarray: an array of {array.dtype} cannot become {kind} without a copy")
            if array.dtype.kind in "biuf" or array.dtype.name == "bfloat16":
                return astype(_shared(array), kind)
            array = array.astype(kind.numpy)
        return _copied(array) if copy else _shared(array)
    if hasattr(obj, "__dlpack__"):
        return from_dlpack(obj)
    if copy is False:
        raise ValueError(f"asarray: {type(obj).__name__} has no memory to share; leave copy out")
    return _from_python(obj, kind, CPU)


def _from_python(obj: Any, dtype: DType | None, device: Device = CPU) -> Tensor:
    if isinstance(obj, (list, tuple)) and _holds_tensor(obj):
        from graphc.runtime.ops_layout import stack

        place = _place_of(obj) or device
        items = [x if isinstance(x, Tensor) else _from_python(x, dtype, place) for x in obj]
        return stack(items if dtype is None else [astype(x, dtype, copy=False) for x in items])
    try:
        array = np.asarray(obj)
    except ValueError:
        raise ValueError("tensor: the nested sequences are ragged; all rows must have the same length") from None
    if array.size == 0 and array.dtype == np.float64 and dtype is None:
        array = array.astype(DEFAULT_FLOAT.numpy)
    if array.dtype == object and all(isinstance(v, int) for v in array.reshape(-1)):
        largest = max((int(v) for v in array.reshape(-1)), key=abs)
        raise OverflowError(f"tensor: the integer {largest} does not fit in 64 bits")
    if array.dtype == object or array.dtype.kind not in "biuf":
        raise TypeError(f"tensor: {type(obj).__name__} holds elements that are not numbers ({array.dtype})")
    target = dtype
    if target is None and not _holds_array(obj):
        target = {F64: DEFAULT_FLOAT, I64: DEFAULT_INT}.get(as_dtype(array.dtype), as_dtype(array.dtype))
    if target is not None and array.dtype != target.numpy:
        if target.is_integer and array.dtype.kind in "iu" and array.size:
            _check_range(int(array.min()), int(array.max()), target)
        array = array.astype(target.numpy)
    t = _copied(array, device)
    if state.active and local.tracer is not None:
        local.tracer.note_constant(t, array)
    return t


def _place_of(obj: Any) -> Device | None:
    """The device of the first tensor in nested sequences."""
    for x in obj:
        found = x._spec.device if isinstance(x, Tensor) else _place_of(x) if isinstance(x, (list, tuple)) else None
        if found is not None:
            return found
    return None


def _check_range(low: int, high: int, target: DType) -> None:
    bounds = np.iinfo(target.numpy)
    if low < bounds.min or high > bounds.max:
        raise OverflowError(
            f"tensor: the integer {low if low < bounds.min else high} does not fit in {target.name}, which holds "
            f"{bounds.min} to {bounds.max}; use a wider element type, or astype to wrap around"
        )


def _holds_tensor(obj: Any) -> bool:
    return any(isinstance(x, Tensor) or (isinstance(x, (list, tuple)) and _holds_tensor(x)) for x in obj)


def _holds_array(obj: Any) -> bool:
    if isinstance(obj, (np.ndarray, np.generic)):
        return True
    return isinstance(obj, (list, tuple)) and any(_holds_array(x) for x in obj[:1])


def tensor(data: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """A new tensor with a copy of `data`: numbers, nested sequences, a NumPy array or a tensor.

    >>> import graphc as gc
    >>> gc.tensor([[1, 2], [3, 4]]).shape
    (2, 2)
    """
    t = asarray(data, dtype=dtype, device=device, copy=True)
    if isinstance(data, Tensor):
        t = alias(t)
    if requires_grad:
        set_requires_grad(t, True)
    return t


def make_parameter(source: Tensor, requires_grad: bool = True, kind: type[Parameter] = Parameter) -> Parameter:
    """A `Parameter` with the value of `source`."""
    p = adopt(_new(kind), source)
    if requires_grad:
        set_requires_grad(p, True)
    assert isinstance(p, Parameter)
    return p


def adopt(t: Tensor, source: Tensor) -> Tensor:
    """Give the uninitialised tensor `t` the value of `source`, as a leaf."""
    if state.active and local.tracer is not None:
        local.tracer.see(source)
    t._spec, t._buffer = source._spec, source._buffer
    t._address, t._strides = source._address, source._strides
    t._meta, t._traced = None, source._traced
    return t


def numpy(x: Tensor) -> np.ndarray[Any, Any]:
    """The values as a read-only NumPy array that shares the tensor's memory.

    Raises `TypeError` for a tensor on a GPU: `x.cpu()` copies it.
    """
    if x._spec.device is not CPU:
        return view_of(x)
    if state.active and local.tracer is not None:
        local.tracer.observe(x)
    return view_of(x)


def looked_at(x: Tensor) -> np.ndarray[Any, Any]:
    """The values as a NumPy array, copied from where they are."""
    if state.active and local.tracer is not None:
        local.tracer.observe(x)
    return values_of(x)


def array_protocol(x: Tensor, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
    """NumPy's `__array__`."""
    array = numpy(x)
    if dtype is not None and np.dtype(dtype) != array.dtype:
        if copy is False:
            raise ValueError(f"a tensor {x._spec} cannot become an array of {dtype} without a copy")
        return array.astype(dtype)
    return array.copy() if copy else array


def array_ufunc(x: Tensor, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
    """NumPy's `__array_ufunc__`: `array + tensor` is a tensor; other NumPy functions of tensors give arrays."""
    if method == "__call__" and not options and ufunc.nin == 2:
        operator = "__matmul__" if ufunc is np.matmul else f"__{_UFUNCS.get(ufunc.__name__)}__"
        if hasattr(Tensor, operator):
            # A scalar is of no device, as a number is.
            left, right = (
                a if isinstance(a, Tensor) else asarray(a) if np.ndim(a) else asarray(a, device=CPU) for a in inputs
            )
            return getattr(left, operator)(right)
    return getattr(ufunc, method)(*(numpy(a) if isinstance(a, Tensor) else a for a in inputs), **options)


# The NumPy functions behind operators.
_UFUNCS = {
    "add": "add", "subtract": "sub", "multiply": "mul", "divide": "truediv", "floor_divide": "floordiv",
    "remainder": "mod", "power": "pow", "bitwise_and": "and", "bitwise_or": "or", "bitwise_xor": "xor",
    "left_shift": "lshift", "right_shift": "rshift", "equal": "eq", "not_equal": "ne", "less": "lt", "less_equal": "le",
    "greater": "gt", "greater_equal": "ge",
}  # fmt: skip


def dlpack(x: Tensor, **options: Any) -> Any:
    """DLPack's `__dlpack__`: the memory is shared, and must not be written to.

    Raises `BufferError` for element types that DLPack consumers on NumPy cannot hold (bfloat16).
    """
    if x._spec.device is not CPU:
        from graphc.runtime.cuda.dlpack import export

        if state.active and local.tracer is not None:
            local.tracer.observe(x)
        x._spec.device.context.synchronize()
        return export(x, options.get("max_version"))
    if x._spec.dtype.name == "bfloat16":
        raise BufferError("DLPack export of bfloat16 is not supported; use x.astype(graphc.float32)")
    if state.active and local.tracer is not None:
        local.tracer.observe(x)
    options.pop("stream", None)
    version = options.get("max_version")
    # The older protocol has no read-only flag, and NumPy refuses to export read-only memory through it.
    return view_of(x, writable=version is None or tuple(version) < (1, 0)).__dlpack__(**options)


def dlpack_device(x: Tensor) -> tuple[int, int]:
    """DLPack's `__dlpack_device__`: (kDLCPU, 0) or (kDLCUDA, number of the device)."""
    place = x._spec.device
    return (1, 0) if place is CPU else (2, place.index or 0)


def from_dlpack(obj: Any, /) -> Tensor:
    """A tensor that shares the memory of an object with `__dlpack__`, on the CPU or a CUDA device."""
    if obj.__dlpack_device__()[0] == 2:
        from graphc.runtime.cuda.dlpack import import_from

        t = import_from(obj)
        if state.active and local.tracer is not None:
            local.tracer.note_foreign(t)
        return t
    return _shared(np.from_dlpack(obj))


def tolist(x: Tensor) -> Any:
    """Nested lists of Python numbers; a number for rank 0."""
    return looked_at(x).tolist()


def item(x: Tensor) -> bool | int | float:
    """The only element as a Python number. Raises `ValueError` if there are several."""
    spec = x._spec
    if spec.concrete and spec.size != 1:
        raise ValueError(f"item: {spec} has {spec.size} elements; index it, or use tolist()")
    read = _READ.get(spec.dtype.name)
    result: bool | int | float
    if read is not None and x._strides is None and spec.device is CPU and not state.active:
        result = read(x._address).value
    else:
        result = looked_at(x).item()
    return result


# How a number is read where C has its type.
_READ: dict[str, Any] = {
    "bool": ctypes.c_bool.from_address,
    "float32": ctypes.c_float.from_address,
    "float64": ctypes.c_double.from_address,
    **{
        f"{sign}int{bits}": getattr(ctypes, f"c_{sign}int{bits}").from_address
        for sign in ("", "u")
        for bits in (8, 16, 32, 64)
    },
}


def deepcopy(x: Tensor, memo: dict[int, Any]) -> Tensor:
    """A tensor of its own with the same value and, for a leaf, a copy of its gradient."""
    if x._meta is not None and x._meta.node is not None:
        raise RuntimeError(f"the result of {x._meta.node.name} cannot be deep-copied with its history; use x.detach()")
    t = adopt(_new(type(x)), x)
    memo[id(x)] = t
    if x._meta is not None:
        t._meta = Meta(t._spec)
        t._meta.requires_grad = x._meta.requires_grad
        t._meta.grad = None if x._meta.grad is None else alias(x._meta.grad)
    if isinstance(x, Parameter):
        import copy

        t.__dict__.update(copy.deepcopy(x.__dict__, memo))
    return t


def reduce(x: Tensor) -> tuple[Any, ...]:
    """For pickle: the class, element type, shape and bytes."""
    extra = dict(x.__dict__) if isinstance(x, Parameter) else {}
    data = np.ascontiguousarray(looked_at(x)).tobytes()
    place = str(x._spec.device)
    return (_restore, (type(x), x._spec.dtype.name, x._spec.shape, data, x.requires_grad and x.is_leaf, extra, place))


def _restore(
    kind: type[Tensor],
    dtype: str,
    shape: tuple[int, ...],
    data: bytes,
    requires_grad: bool,
    extra: dict[str, Any],
    device: str = "cpu",
) -> Tensor:
    array = np.frombuffer(data, dtype=as_dtype(dtype).numpy).reshape(shape)
    t = adopt(_new(kind), _copied(array, resolve(device)))
    if requires_grad:
        set_requires_grad(t, True)
    if extra:
        t.__dict__.update(extra)
    return t
