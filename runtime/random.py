"""Random tensors from counter-based bits: `Generator`, `manual_seed`, rand, randn, randint, randperm ...

A generator is a key and an offset, both rank-0 uint64 tensors; drawing rebinds the offset, so that a
compiled function takes the generator's state and returns it. Bits are a function of (key, position):
Philox4x32-10 (Salmon et al. 2011). float32 uniforms come from the upper 24 bits of a 32-bit word.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from graphc.ir.function import Builder, Value
from graphc.ir.types import F32, F64, I64, U32, U64, DType, Shape, size_of
from graphc.ir.types import dtype as as_dtype
from graphc.runtime import emission as e
from graphc.runtime.core import Tensor, empty, rebind, set_requires_grad, values_of, write_bytes
from graphc.runtime.device import CPU, Device, resolve
from graphc.runtime.dispatch import Op, apply_many, operand_of
from graphc.runtime.errors import here
from graphc.runtime.grad_mode import local, state
from graphc.runtime.spec import DEFAULT_FLOAT, DEFAULT_INT, spec_of

Attrs = tuple[Any, ...]
# float element type -> (bits drawn, how many of the upper ones are used)
_SOURCE = {"float64": (U64, 53), "float32": (U32, 24), "float16": (U32, 11), "bfloat16": (U32, 8)}


def _bits(b: Builder, state: Sequence[Value], shape: Shape, dtype: DType) -> tuple[Value, Value]:
    """Random bits and the offset after them, from a key and an offset; offsets count 32-bit words."""
    key, offset = state
    count = e.dim_value(b, size_of(shape), U64)
    if dtype is U32:
        return b.emit("random_bits", key, offset, shape=shape, dtype=U32), b.emit("add", offset, count)
    one = e.constant(b, 1, U64)
    start = b.emit("shift_right", b.emit("add", offset, one), one)
    after = b.emit("shift_left", b.emit("add", start, count), one)
    return b.emit("random_bits", key, start, shape=shape, dtype=U64), after


def _upper(b: Builder, bits: Value, kept: int, dtype: DType, above_zero: bool = False) -> Value:
    """The upper `kept` bits as k * 2**-kept in [0, 1), or (k + 1) * 2**-kept in (0, 1]."""
    shape = bits.type.shape
    k = b.emit("shift_right", bits, e.filled(b, bits.type.dtype.bits - kept, bits.type.dtype, shape))
    if above_zero:
        k = b.emit("add", k, e.filled(b, 1, bits.type.dtype, shape))
    result: Value = b.emit("mul", e.cast(b, k, dtype), e.filled(b, 2.0**-kept, dtype, shape))
    return result


def _emit_uniform(b: Builder, values: Sequence[Value], weak: Sequence[bool], attrs: Attrs) -> Any:
    shape, dtype = attrs
    source, kept = _SOURCE[dtype.name]
    bits, after = _bits(b, values, shape, source)
    return _upper(b, bits, kept, dtype), after


def _emit_normal(b: Builder, values: Sequence[Value], weak: Sequence[bool], attrs: Attrs) -> Any:
    shape, dtype = attrs
    wide = F64 if dtype is F64 else F32
    source, kept = _SOURCE[wide.name]
    # Box and Muller 1958: sqrt(-2 ln u) cos(2 pi v) is normal for uniform u in (0, 1] and v in [0, 1).
    bits, after = _bits(b, values, (2, *shape), source)
    rank = len(shape)
    halves = [
        e.reshape(
            b,
            b.emit("slice", bits, start=(i, *(0,) * rank), limit=(i + 1, *shape), stride=(1,) * (rank + 1)),
            shape,
        )
        for i in (0, 1)
    ]
    u, v = _upper(b, halves[0], kept, wide, above_zero=True), _upper(b, halves[1], kept, wide)
    radius = b.emit("sqrt", b.emit("mul", b.emit("log", u), e.filled(b, -2.0, wide, shape)))
    angle = b.emit("mul", v, e.filled(b, 2 * math.pi, wide, shape))
    return e.cast(b, b.emit("mul", radius, b.emit("cos", angle)), dtype), after


def _emit_integers(b: Builder, values: Sequence[Value], weak: Sequence[bool], attrs: Attrs) -> Any:
    shape, dtype = attrs
    key, offset, low, high = values
    bits, after = _bits(b, (key, offset), shape, U64)
    low, high = e.cast(b, low, I64), e.cast(b, high, I64)
    # 64 bits modulo the range: for a range of n the bias is below n / 2**64.
    span = e.broadcast(b, e.cast(b, b.emit("sub", high, low), U64), shape)
    drawn = e.cast(b, b.emit("remainder", bits, span), I64)
    return e.cast(b, b.emit("add", drawn, e.broadcast(b, low, shape)), dtype), after


def _emit_permutation(b: Builder, values: Sequence[Value], weak: Sequence[bool], attrs: Attrs) -> Any:
    n = attrs[0]
    bits, after = _bits(b, values, (n,), U64)
    # The place of each number is how many come before it; equal bits keep their order.
    mine = b.emit("broadcast", bits, shape=(n, n), axes=(0,))
    other = b.emit("broadcast", bits, shape=(n, n), axes=(1,))
    row, column = (b.emit("iota", shape=(n, n), axis=i, dtype=I64) for i in (0, 1))
    tie = b.emit("and", b.emit("eq", other, mine), b.emit("lt", column, row))
    before = b.emit("or", b.emit("lt", other, mine), tie)
    place = b.emit("sum", e.cast(b, before, I64), axes=(1,))
    line = b.emit("iota", shape=(n,), axis=0, dtype=I64)
    return b.emit("scatter", e.filled(b, 0, I64, (n,)), place, line, axis=0), after


def _emit_bits(b: Builder, values: Sequence[Value], weak: Sequence[bool], attrs: Attrs) -> Any:
    return _bits(b, values, *attrs)


_UNIFORM = Op("rand", _emit_uniform)
_NORMAL = Op("randn", _emit_normal)
_INTEGERS = Op("randint", _emit_integers)
_PERMUTATION = Op("randperm", _emit_permutation)
_BITS = Op("random_bits", _emit_bits)
_STATE = spec_of(U64, ())


def _word(value: int, device: Device = CPU) -> Tensor:
    t = empty(_STATE if device is CPU else _STATE.on(device))
    write_bytes(t, (value % 2**64).to_bytes(8, "little"))
    return t


class Generator:
    """A stream of random numbers: a key, made from a seed, and how much of the stream was used.

    >>> import graphc as gc
    >>> a = gc.rand(3, generator=gc.Generator(7))
    >>> b = gc.rand(3, generator=gc.Generator(7))
    >>> bool((a == b).all())
    True
    """

    __slots__ = ("__weakref__", "key", "offset")

    def __init__(self, seed: int = 0, device: Any = None) -> None:
        if isinstance(seed, (str, Device)):
            seed, device = 0, seed
        place = resolve(device)
        self.key = _word(seed, place)
        self.offset = _word(0, place)

    @property
    def device(self) -> Device:
        """Where the state is and the numbers are drawn."""
        return self.key._spec.device

    def manual_seed(self, seed: int) -> Generator:
        """Start the stream of `seed` (taken modulo 2**64) from its beginning."""
        rebind(self.key, _constant(seed, self.device), "manual_seed")
        rebind(self.offset, _constant(0, self.device), "manual_seed")
        return self

    @property
    def state(self) -> tuple[int, int]:
        """(key, offset); assignable."""
        return int(self.key), int(self.offset)

    @state.setter
    def state(self, value: tuple[int, int]) -> None:
        rebind(self.key, _constant(value[0], self.device), "state")
        rebind(self.offset, _constant(value[1], self.device), "state")

    def __repr__(self) -> str:
        place = "" if self.device is CPU else f", device={str(self.device)!r}"
        return f"Generator(key={int(self.key)}, offset={int(self.offset)}{place})"

    def __getstate__(self) -> tuple[int, int, str]:
        return (*self.state, str(self.device))

    def __setstate__(self, value: tuple[int, int, str]) -> None:
        place = resolve(value[2])
        self.key, self.offset = _word(value[0], place), _word(value[1], place)


def _constant(value: int, device: Device = CPU) -> Tensor:
    t = _word(value, device)
    if state.active and local.tracer is not None:
        local.tracer.note_constant(t, np.uint64(value % 2**64))
    return t


default_generator = Generator()


# The generators of CUDA devices, made when they are first used, from the seed given last.
_of_devices: dict[Device, Generator] = {}
_seed = 0


def manual_seed(seed: int) -> Generator:
    """Seed the default generators of all devices. Returns that of the CPU.

    Inside a compiled function, which works on one device, those of the CPU and of the current CUDA device.
    """
    global _seed
    _seed = seed
    traced = state.active and local.tracer is not None
    for device, generator in _of_devices.items():
        if not traced or device is resolve("cuda"):
            generator.manual_seed(seed)
    return default_generator.manual_seed(seed)


def generator_of(device: Device) -> Generator:
    """The default generator of a device."""
    if device is CPU:
        return default_generator
    known = _of_devices.get(device)
    if known is None:
        known = _of_devices.setdefault(device, Generator(_seed, device))
    return known


def _draw(op: Op, generator: Generator | None, attrs: Attrs, *operands: Tensor, device: Any = None) -> Tensor:
    if generator is None:
        source = generator_of(resolve(device))
    else:
        source = generator
        if device is not None and resolve(device) is not source.device:
            raise RuntimeError(
                f"{op.name}: the generator is on {source.device} and the numbers are wanted on {device}; pass a "
                f'generator of that device, as graphc.Generator(seed, device="{device}")\n  at {here()}'
            )
    if source.device is not CPU and not state.active:
        # The state was perhaps last drawn from on another stream.
        for word in (source.key, source.offset):
            source.device.context.follow(word._buffer)
    values, offset = apply_many(op, (source.key, source.offset, *operands), attrs)
    rebind(source.offset, offset, op.name)
    return values


def _shape(shape: tuple[Any, ...], size: Any) -> Shape:
    if size is not None:
        return e.normal_shape(size)
    if len(shape) == 1 and not isinstance(shape[0], int):
        return e.normal_shape(shape[0])
    return e.normal_shape(shape)


def _float(dtype: Any, name: str) -> DType:
    kind = DEFAULT_FLOAT if dtype is None else as_dtype(dtype)
    if not kind.is_float:
        raise TypeError(f"{name} makes floating point numbers, not {kind}; use randint for integers")
    return kind


def _finished(t: Tensor, requires_grad: bool) -> Tensor:
    if requires_grad:
        set_requires_grad(t, True)
    return t


def rand(
    *shape: Any, size: Any = None, dtype: Any = None, device: Any = None, generator: Generator | None = None,
    requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """Uniform numbers in [0, 1): multiples of 2**-24 for float32, of 2**-53 for float64."""
    t = _draw(_UNIFORM, generator, (_shape(shape, size), _float(dtype, "rand")), device=device)
    return _finished(t, requires_grad)


def randn(
    *shape: Any, size: Any = None, dtype: Any = None, device: Any = None, generator: Generator | None = None,
    requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """Normal numbers of mean 0 and variance 1 (Box and Muller 1958)."""
    t = _draw(_NORMAL, generator, (_shape(shape, size), _float(dtype, "randn")), device=device)
    return _finished(t, requires_grad)


def randint(
    low: int, high: Any = None, size: Any = (), *, dtype: Any = None, device: Any = None,
    generator: Generator | None = None,
) -> Tensor:  # fmt: skip
    """Integers in [low, high), int64 by default; `randint(high, size=...)` starts at 0.

    Raises `ValueError` for an empty range.
    """
    if high is None or isinstance(high, (tuple, list)):
        low, high, size = 0, low, size if high is None else high
    if isinstance(low, int) and isinstance(high, int) and low >= high:
        raise ValueError(f"randint: the range [{low}, {high}) is empty")
    kind = DEFAULT_INT if dtype is None else as_dtype(dtype)
    bounds = (operand_of(low, "randint"), operand_of(high, "randint"))
    return _draw(_INTEGERS, generator, (e.normal_shape(size), kind), *bounds, device=device)


def randperm(n: int, *, device: Any = None, generator: Generator | None = None) -> Tensor:
    """A random order of 0 ... n - 1, int64: the order that sorts n random 64-bit numbers."""
    if state.active and local.tracer is not None:
        return _draw(_PERMUTATION, generator, (int(n),), device=device)
    from graphc.runtime.interop import _copied

    # The same definition by sorting, which is faster than counting.
    bits = _draw(_BITS, generator, ((int(n),), U64), device=device)
    return _copied(np.argsort(values_of(bits), kind="stable").astype(np.int64), bits._spec.device)


def rand_like(
    x: Tensor, /, *, dtype: Any = None, device: Any = None, generator: Generator | None = None
) -> Tensor:
    """As `rand`, with the shape, element type and device of `x`."""
    return rand(x._spec.shape, dtype=dtype or x._spec.dtype, device=_beside(x, device), generator=generator)


def randn_like(
    x: Tensor, /, *, dtype: Any = None, device: Any = None, generator: Generator | None = None
) -> Tensor:
    """As `randn`, with the shape, element type and device of `x`."""
    return randn(x._spec.shape, dtype=dtype or x._spec.dtype, device=_beside(x, device), generator=generator)


def _beside(x: Tensor, device: Any = None) -> Any:
    """Where numbers for `x` are drawn."""
    return x._spec.device if device is None else device


def uniform(
    low: Any, high: Any, size: Any = (), *, dtype: Any = None, device: Any = None, generator: Generator | None = None
) -> Tensor:
    """Uniform numbers in [low, high)."""
    return rand(size=size, dtype=dtype, device=device, generator=generator) * (high - low) + low


def normal(
    mean: Any, std: Any, size: Any = (), *, dtype: Any = None, device: Any = None, generator: Generator | None = None
) -> Tensor:
    """Normal numbers of this mean and standard deviation."""
    return randn(size=size, dtype=dtype, device=device, generator=generator) * std + mean


def bernoulli(p: Tensor, *, generator: Generator | None = None) -> Tensor:
    """1 with probability `p`, else 0, for each element; element type of `p`."""
    from graphc.runtime.ops_elementwise import astype

    drawn = rand(p._spec.shape, dtype=p._spec.dtype, device=_beside(p), generator=generator)
    return astype(drawn < p, p._spec.dtype)


def multinomial(p: Tensor, num_samples: int, *, generator: Generator | None = None) -> Tensor:
    """`num_samples` draws with replacement of a class number (int64) with probability proportional to p[..., class]."""
    from graphc.runtime.ops_layout import expand_dims
    from graphc.runtime.ops_reduce import sum as total
    from graphc.runtime.ops_scan import cumulative_sum

    edges = cumulative_sum(p, axis=-1)
    point = rand((*p._spec.shape[:-1], num_samples), dtype=p._spec.dtype, device=_beside(p), generator=generator)
    point = point * edges[..., -1:]
    return total(expand_dims(edges[..., :-1], -2) <= expand_dims(point, -1), axis=-1)
