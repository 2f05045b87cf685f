"""Dispatch: the only way a tensor is made from tensors.

An `Op` writes strict IR for its operands (`emit`). The function for given attributes and operand types
is an `Entry`, remembered in the op's cache with its compiled program; a call with known types costs a
dictionary look-up, a buffer from a free list and one native call.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from graphc.ir.function import Builder, Function, Value
from graphc.ir.types import BOOL, F64, I64, U64, DType
from graphc.runtime import memory
from graphc.runtime.backend import compile_function
from graphc.runtime.core import ABSTRACT, Tensor, _new, copy_bytes, empty, make, make_contiguous, write_bytes
from graphc.runtime.device import CPU, Device
from graphc.runtime.errors import explain, here
from graphc.runtime.grad_mode import local, state
from graphc.runtime.node import Backward, backward_of, float_outputs, record
from graphc.runtime.spec import DEFAULT_FLOAT, Spec, of_type, spec_of

# emit(b, operands, weak, attrs): writes the operation, returns its result or results. weak[i] says
# that operand i is a Python number.
Emit = Callable[[Builder, Sequence[Value], Sequence[bool], tuple[Any, ...]], Any]
# view(tensor, result spec, attrs) -> (address, byte strides or None), or None if a copy is needed
View = Callable[[Tensor, Spec, tuple[Any, ...]], "tuple[int, tuple[int, ...] | None] | None"]

Buffer = memory.Buffer


class Op:
    """A frontend operation.

    view: for a layout operation, how its result is seen in the operand's memory.
    weak: whether the result for Python numbers only is itself a Python number.
    """

    __slots__ = ("cache", "emit", "name", "on_device", "view", "weak")

    def __init__(self, name: str, emit: Emit, view: View | None = None, weak: bool = False) -> None:
        self.name = name
        self.emit = emit
        self.view = view
        self.weak = weak
        self.cache: dict[Any, Entry] = {}
        # The entries of other devices than the CPU, apart, so that they cost the CPU nothing.
        self.on_device: dict[Any, Entry] = {}

    def __repr__(self) -> str:
        return f"<operation {self.name}>"


class Entry:
    """An operation for given attributes and operand types: its function, and its program once it ran.

    device: where the program runs. operands: the types of the operands, which may be on the CPU where the device is another.
    """

    __slots__ = (
        "attrs", "backwards", "device", "float_outputs", "function", "long", "name", "operands", "place", "run", "spec", "specs",
        "view",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        function: Function,
        weak: bool = False,
        view: View | None = None,
        attrs: Any = (),
        operands: Sequence[Spec] = (),
        device: Device = CPU,
        specs: Sequence[Spec] | None = None,
    ) -> None:
        self.name = name
        self.function = function
        self.specs = tuple(of_type(t, weak, device) for t in function.result_types) if specs is None else tuple(specs)
        self.operands = tuple(operands)
        self.device = device
        # The result of an operation that has one, where the CPU runs it.
        self.spec = self.specs[0] if len(self.specs) == 1 and device is CPU else None
        self.float_outputs = float_outputs(function)
        self.view = view
        # How far from the first element of a row-major operand the view begins, and its strides; () if it is a copy.
        self.place: Any = None
        self.attrs = attrs
        self.run: Callable[[Sequence[int], Sequence[int]], None] = self._first_run
        # Whether other Python threads run meanwhile: they may give an operand other memory, and this one holds what it reads.
        self.long = True
        # The gradients by the set of inputs they are for, a number whose bit i stands for input i.
        self.backwards: dict[int, Backward] = {}

    def _first_run(self, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        program = compile_function(self.function, (), self.device, self.operands, self.specs)
        self.run, self.long = program.run, not getattr(program, "short", True)
        self.run(inputs, outputs)

    def execute(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Run on a device that is not the CPU."""
        addresses = []
        for t in inputs:
            if t._strides is not None:
                make_contiguous(t)
            if t._address & ALIGNED and t._spec.device is not CPU:
                align(t)
            addresses.append(t._address)
        outputs = [empty(s) for s in self.specs]
        try:
            self.run(addresses, [t._address for t in outputs])
        except Exception as error:
            told = explain(error, self.name, [t._spec for t in inputs])
            raise told from told.__cause__
        return outputs

    def backward(self, wrt: int) -> Backward:
        """The gradient with respect to a set of inputs."""
        inputs = tuple(i for i in range(len(self.function.params)) if wrt >> i & 1)
        back = self.backwards[wrt] = backward_of(self.function, inputs)
        return back


def build(op: Op, attrs: tuple[Any, ...], inputs: Sequence[Tensor]) -> Entry:
    """The entry for operands of these types. Raises the rule that they break, at the user's line."""
    specs = [t._spec for t in inputs]
    device = _device_for(op.name, specs, attrs)
    b = Builder(op.name)
    weak = [s.weak for s in specs]
    operands = [b.param(s.type) for s in specs]
    view = op.view
    if weak and all(weak) and not op.weak and not any(isinstance(a, DType) for a in attrs):
        # Python numbers only, and no element type is asked for: they count as the tensors that `asarray` makes of them.
        if any(s.dtype is F64 for s in specs):
            view = None
        operands = [b.emit("cast", v, dtype=DEFAULT_FLOAT) if v.type.dtype is F64 else v for v in operands]
        weak = [False] * len(weak)
    try:
        results = op.emit(b, operands, weak, attrs)
    except Exception as error:
        told = explain(error, op.name, specs)
        raise told from told.__cause__
    function = b.build(results if isinstance(results, (tuple, list)) else (results,))
    return Entry(op.name, function, op.weak and bool(weak) and all(weak), view, attrs, specs, device)


def _device_for(name: str, specs: Sequence[Spec], attrs: tuple[Any, ...]) -> Device:
    """Where an operation runs: where its operands are, numbers and tensors of rank 0 on the CPU apart.

    Raises `RuntimeError` for operands on two devices.
    """
    device = next((a for a in attrs if a.__class__ is Device), CPU)
    for s in specs:
        if s.device is not device and s.device is not CPU:
            if device is not CPU:
                raise two_devices(name, specs)
            device = s.device
    if device is not CPU and any(s.device is CPU and s.shape for s in specs):
        raise two_devices(name, specs)
    return device


def two_devices(name: str, specs: Sequence[Spec]) -> RuntimeError:
    """What to say of operands on two devices."""
    places = list(dict.fromkeys(s.device for s in specs if s.shape or s.device is not CPU))
    target = next((d for d in places if d is not CPU), CPU)
    types = ", ".join(str(s) if s.weak or s.device is not CPU else f"{s} on cpu" for s in specs)
    return RuntimeError(
        f"{name}({types}): the operands are on {' and '.join(map(str, places))}, and an operation works on one device; "
        f'move one of them, as in x.to("{target}")\n  at {here(3)}'
    )


def device_of(name: str, specs: Sequence[Spec]) -> Device:
    """Where a traced function runs whose values have these types: on the one device besides the CPU, if there is any.

    Raises `RuntimeError` if there are two.
    """
    found = {s.device for s in specs if s.device is not CPU}
    if len(found) > 1:
        raise RuntimeError(
            f"{name}: a function that runs as one program works on one CUDA device, not on "
            f"{' and '.join(sorted(map(str, found)))}; call it once for each device\n  at {here()}"
        )
    return found.pop() if found else CPU


def lookup(op: Op, inputs: Sequence[Tensor], attrs: tuple[Any, ...] = ()) -> Entry:
    """The entry for these operands, from the cache or new."""
    key = (attrs, *[t._spec for t in inputs])
    entry = op.cache.get(key) or op.on_device.get(key)
    if entry is None:
        entry = build(op, attrs, inputs)
        remember(op.cache if entry.device is CPU else op.on_device, key, entry)
    return entry


def remember(cache: dict[Any, Any], key: Any, value: Any, most: int = 4096) -> None:
    """Put an item into a cache of at most `most` items; the oldest goes."""
    if len(cache) >= most:
        cache.pop(next(iter(cache)), None)
    cache[key] = value


def apply(op: Op, inputs: Sequence[Tensor], attrs: tuple[Any, ...] = ()) -> Tensor:
    """The result of an operation that has one."""
    key = (attrs, *[t._spec for t in inputs])
    entry = op.cache.get(key)
    if entry is None:
        entry = op.on_device.get(key) or lookup(op, inputs, attrs)
    if entry.view is not None and not state.active and len(inputs) == 1:
        return _seen(entry, inputs[0])
    return run_one(entry, inputs)


def _seen(entry: Entry, x: Tensor) -> Tensor:
    """The result of a layout operation, in the memory of its operand where that can be."""
    if x._strides is None:
        place = entry.place
        if place is None:
            assert entry.view is not None
            place = entry.place = entry.view(make(x._spec, None, 0), entry.specs[0], entry.attrs) or ()
        if not place:
            return apply_entry(entry, (x,))[0]
        t: Any = _new(Tensor)
        t._spec = entry.specs[0]
        t._buffer = x._buffer
        offset, t._strides = place
        t._address = x._address + offset
        t._meta = None
        t._traced = None
    else:
        t = _view(entry, x)
        if t is None:
            return apply_entry(entry, (x,))[0]
    if x._meta is not None and local.grad:
        record(entry, (x,), (t,))
    return t


def run_one(entry: Entry, inputs: Sequence[Tensor]) -> Tensor:
    """As `apply_entry`, for an entry that has one result."""
    spec = entry.spec
    if spec is None or entry.view is not None or state.active:
        return apply_entry(entry, inputs)[0]
    differentiable = False
    addresses = []
    for x in inputs:
        if x._strides is not None:
            make_contiguous(x)
        if x._meta is not None:
            differentiable = True
        addresses.append(x._address)
    held = None
    if entry.long:
        held = [(x._buffer, x._address) for x in inputs]
        addresses = [address for _, address in held]
    try:
        block = spec.free.pop()
    except IndexError:
        block = spec.obtain(spec.nbytes)
    t = _new(Tensor)
    t._spec = spec
    t._buffer = buffer = _new(Buffer)
    buffer.block = block
    t._address = address = block[0]
    t._strides = None
    t._meta = None
    t._traced = None
    try:
        entry.run(addresses, (address,))
    except Exception as error:
        told = explain(error, entry.name, [x._spec for x in inputs])
        raise told from told.__cause__
    del held
    if differentiable and local.grad:
        record(entry, inputs, (t,))
    return t  # type: ignore[no-any-return]


def apply_many(op: Op, inputs: Sequence[Tensor], attrs: tuple[Any, ...] = ()) -> list[Tensor]:
    """The results of an operation that may have several."""
    return apply_entry(lookup(op, inputs, attrs), inputs)


def apply_entry(entry: Entry, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Run an entry, tell the tracer, and record a node if gradients are wanted."""
    if state.active and local.tracer is not None:
        outputs = local.tracer.apply(entry, inputs)
    else:
        outputs = execute(entry, inputs)
    for t in inputs:
        if t._meta is not None:
            if local.grad:
                record(entry, inputs, outputs)
            break
    return outputs


def execute(entry: Entry, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Run an entry on values."""
    if entry.view is not None:
        seen = _view(entry, inputs[0])
        if seen is not None:
            return [seen]
    if entry.device is not CPU:
        return entry.execute(inputs)
    addresses = []
    for t in inputs:
        if t._strides is not None:
            make_contiguous(t)
        addresses.append(t._address)
    held = None
    if entry.long:
        held = [(t._buffer, t._address) for t in inputs]
        addresses = [address for _, address in held]
    outputs = [empty(s) for s in entry.specs]
    try:
        entry.run(addresses, [t._address for t in outputs])
    except Exception as error:
        told = explain(error, entry.name, [t._spec for t in inputs])
        raise told from told.__cause__
    del held
    return outputs


# Kernels of a device rely on addresses that are multiples of 16.
ALIGNED = 15


def align(t: Tensor) -> None:
    """Give a contiguous tensor of a device memory of its own, where kernels can take it."""
    fresh = empty(t._spec)
    copy_bytes(fresh, t)
    t._spec.device.context.moved(t._buffer, fresh._buffer)
    t._buffer, t._address = fresh._buffer, fresh._address
    state.stamp = object()


def _view(entry: Entry, x: Tensor) -> Tensor | None:
    if x._strides is ABSTRACT:
        make_contiguous(x)
    spec = entry.specs[0]
    assert entry.view is not None
    place = entry.view(x, spec, entry.attrs)
    if place is None:
        return None
    t = _new(Tensor)
    t._spec = spec
    t._buffer = x._buffer
    t._address, t._strides = place
    t._meta = None
    t._traced = None
    return t


def run_single(entry: Entry, a: Tensor, b: Tensor) -> Tensor:
    """`execute` for two operands and one result: the path of `x + y`."""
    if a._strides is not None:
        make_contiguous(a)
    if b._strides is not None:
        make_contiguous(b)
    addresses = (a._address, b._address)
    held = (a._buffer, b._buffer) if entry.long else None
    spec = entry.spec
    try:
        block = spec.free.pop()  # type: ignore[union-attr]
    except IndexError:
        block = spec.obtain(spec.nbytes)  # type: ignore[union-attr]
    t = _new(Tensor)
    t._spec = spec  # type: ignore[assignment]
    t._buffer = buffer = _new(Buffer)
    buffer.block = block
    t._address = address = block[0]
    t._strides = None
    t._meta = None
    t._traced = None
    try:
        entry.run(addresses, (address,))
    except Exception as error:
        told = explain(error, entry.name, (a._spec, b._spec))
        raise told from told.__cause__
    del held
    return t


# Python numbers

_FLOAT, _INT, _UINT, _BOOL = (spec_of(d, (), True) for d in (F64, I64, U64, BOOL))
_numbers: dict[Any, Tensor] = {}


def number(value: bool | int | float) -> Tensor:
    """A Python number as a weak rank-0 tensor. Raises `OverflowError` for an int beyond 64 bits."""
    kind = value.__class__
    if kind is float:
        # 0.0 and -0.0 are equal, and NaN is not equal to itself: their bits are the key.
        key = (kind, value) if value and value == value else (kind, struct.pack("<d", value))
    else:
        key = (kind, value)
    known = _numbers.get(key)
    if known is None:
        if len(_numbers) > 4096:
            _numbers.clear()
        known = _numbers[key] = _number(value)
    return known


def _number(value: bool | int | float) -> Tensor:
    if isinstance(value, bool):
        spec, data = _BOOL, struct.pack("<?", value)
    elif isinstance(value, float):
        spec, data = _FLOAT, struct.pack("<d", value)
    elif -(2**63) <= value < 2**63:
        spec, data = _INT, struct.pack("<q", value)
    elif 0 <= value < 2**64:
        spec, data = _UINT, struct.pack("<Q", value)
    else:
        raise OverflowError(f"the integer {value} does not fit in 64 bits")
    t = empty(spec)
    write_bytes(t, data)
    t._traced = (None, value)
    return t


_NUMBERS = (bool, int, float)


def operand(x: Any) -> Tensor | None:
    """`x` as an operand: a tensor, or a number or array made into one; None if it is neither."""
    if isinstance(x, Tensor):
        return x
    if x.__class__ in _NUMBERS:
        return number(x)
    if isinstance(x, (np.ndarray, np.generic)):
        from graphc.runtime.interop import asarray

        # A scalar is of no device, as a number is.
        return asarray(x) if x.ndim else asarray(x, device=CPU)
    if isinstance(x, _NUMBERS):
        return number(x + 0 if not isinstance(x, int) else int(x))
    return None


def operand_of(x: Any, operation: str) -> Tensor:
    """As `operand`; raises `TypeError` for what is not an operand."""
    t = operand(x)
    if t is None:
        raise TypeError(f"{operation}: {type(x).__name__} is not a tensor or a number; use graphc.asarray to make it one")
    return t


