"""`Spec`: the type of a tensor as the runtime keeps it, one object for each type.

Invariants: specs are interned, so identity is equality and a spec is a cheap key. A weak spec is that
of a Python number: it takes the element type of what it meets (array API, mixing with scalars).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from graphc.ir.types import (
    BF16,
    BOOL,
    F16,
    F32,
    F64,
    I8,
    I16,
    I32,
    I64,
    U64,
    Dim,
    DType,
    Shape,
    TensorType,
    size_of,
)
from graphc.runtime.device import CPU, Device
from graphc.runtime.memory import Block


class Spec:
    """An element type, a shape, whether it is weak, and a device; with what dispatch needs of them.

    free: the blocks of the device's memory that wait to be used again; obtain: where to get one if there is none.
    """

    __slots__ = ("concrete", "device", "dtype", "free", "nbytes", "obtain", "shape", "size", "type", "weak")
    dtype: DType
    shape: Shape
    weak: bool
    type: TensorType
    concrete: bool
    size: int
    nbytes: int
    device: Device
    free: Any
    obtain: Callable[[int], Block]

    def __str__(self) -> str:
        if self.weak:
            return _PYTHON[self.dtype.kind]
        return str(self.type) if self.device is CPU else f"{self.type} on {self.device}"

    __repr__ = __str__

    def __reduce__(self) -> tuple[Any, ...]:
        return (spec_of, (self.dtype, self.shape, self.weak, self.device))

    def with_shape(self, shape: Shape) -> Spec:
        return spec_of(self.dtype, shape, self.weak, self.device)

    def with_dtype(self, dtype: DType) -> Spec:
        return spec_of(dtype, self.shape, False, self.device)

    def on(self, device: Device) -> Spec:
        return spec_of(self.dtype, self.shape, False, device)


_PYTHON = {"b": "bool", "i": "int", "u": "int", "f": "float"}
_specs: dict[tuple[str, Shape, bool, str], Spec] = {}


def spec_of(dtype: DType, shape: Shape, weak: bool = False, device: Device = CPU) -> Spec:
    """The one spec of this element type and shape on this device."""
    key = (dtype.name, shape, weak, device.name)
    spec = _specs.get(key)
    if spec is None:
        spec = Spec()
        spec.dtype, spec.shape, spec.weak, spec.device = dtype, shape, weak, device
        spec.type = TensorType(dtype, shape)
        size = size_of(shape)
        spec.concrete = isinstance(size, int) and all(isinstance(d, int) for d in shape)
        if spec.concrete:
            assert isinstance(size, int)
            spec.size, spec.nbytes = size, size * dtype.itemsize
            spec.free, spec.obtain = device.memory.free_list(spec.nbytes), device.memory.obtain
        spec = _specs.setdefault(key, spec)
    return spec


def of_type(type: TensorType, weak: bool = False, device: Device = CPU) -> Spec:
    """The spec of an IR type."""
    return spec_of(type.dtype, type.shape, weak, device)


# Element type promotion: array API 2024.12 "Type promotion"; where the standard is silent (integer with
# float, float16 with bfloat16) PyTorch's rule: the float wins, and the two 16-bit floats meet in float32.
_RANK = {"b": 0, "u": 1, "i": 1, "f": 2}
_SIGNED = {8: I8, 16: I16, 32: I32, 64: I64}
DEFAULT_FLOAT, DEFAULT_INT = F32, I64


def promote(a: DType, b: DType) -> DType:
    """The element type of an operation on `a` and `b`. Raises `TypeError` for uint64 with signed integers."""
    if a is b:
        return a
    if _RANK[a.kind] != _RANK[b.kind]:
        return a if _RANK[a.kind] > _RANK[b.kind] else b
    if a.kind == "f":
        if {a, b} == {F16, BF16}:
            return F32
        return a if a.bits > b.bits else b
    if a.kind == b.kind:
        return a if a.bits > b.bits else b
    signed, unsigned = (a, b) if a.kind == "i" else (b, a)
    if unsigned is U64:
        raise TypeError("uint64 and signed integers have no common integer type; cast one of them with astype")
    return signed if signed.bits > unsigned.bits else _SIGNED[unsigned.bits * 2]


def promote_all(dtypes: list[DType], weak: list[bool]) -> DType:
    """The common element type of operands; weak ones give way to the others."""
    strong = [d for d, w in zip(dtypes, weak) if not w]
    if not strong:
        common = dtypes[0]
        for d in dtypes[1:]:
            common = promote(common, d) if {common, d} != {U64, I64} else U64
        return common
    common = strong[0]
    for d in strong[1:]:
        common = promote(common, d)
    for d, w in zip(dtypes, weak):
        if w and _RANK[d.kind] > _RANK[common.kind]:
            common = DEFAULT_FLOAT if d.kind == "f" else DEFAULT_INT
    return common


def default_float(d: DType) -> DType:
    """The float that functions such as `exp` compute in for operands of element type `d`."""
    return d if d.is_float else DEFAULT_FLOAT


def broadcast_shapes(*shapes: Shape) -> Shape:
    """The common shape of operands (array API "Broadcasting"). Raises `ValueError` naming the dimension."""
    rank = max(map(len, shapes), default=0)
    out = []
    for i in range(rank):
        size: Dim = 1
        for shape in shapes:
            j = i - (rank - len(shape))
            if j < 0 or shape[j] == size or shape[j] == 1:
                continue
            if size != 1:
                texts = " and ".join("[" + ", ".join(map(str, s)) + "]" for s in shapes)
                raise ValueError(
                    f"shapes {texts} do not broadcast: dimension {i - rank} is {size} and {shape[j]}; "
                    "sizes must be equal or 1: reshape or expand_dims one of them"
                )
            size = shape[j]
        out.append(size)
    return tuple(out)


__all__ = ["BOOL", "DEFAULT_FLOAT", "DEFAULT_INT", "F64", "Spec", "broadcast_shapes", "of_type", "promote", "spec_of"]
