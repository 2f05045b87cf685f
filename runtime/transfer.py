"""Copies of tensors from one device to another: an operation like others, with a gradient that comes back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graphc.ir.function import Builder
from graphc.runtime.core import Tensor, empty, make_contiguous
from graphc.runtime.device import CPU, Device
from graphc.runtime.dispatch import Entry, apply_entry, remember
from graphc.runtime.grad_mode import local, state
from graphc.runtime.ops_elementwise import settled


class _Transfer(Entry):
    """A copy to another device. While tracing it changes the type only: a program runs on one device, and what
    it takes and gives elsewhere is copied on the way in and out."""

    __slots__ = ()

    def execute(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        return [transfer(inputs[0], self.specs[0].device)]


_transfers: dict[Any, Entry] = {}


def to_device(x: Tensor, device: Device, non_blocking: bool = False) -> Tensor:
    """`x` on a device; itself if it is there. Gradients flow back to where they came from."""
    spec = x._spec
    if spec.device is device:
        return x
    if spec.weak:
        # A Python number becomes the tensor that it stands for.
        x = settled(x)
        spec = x._spec
    if x._meta is None and (not state.active or local.tracer is None):
        return transfer(x, device, non_blocking)
    entry = _transfers.get((spec, device))
    if entry is None:
        b = Builder("to")
        v = b.param(spec.type)
        # A value of its own, which the same elements on another device are not.
        function = b.build([b.emit("reshape", v, shape=spec.shape)])
        there = spec.on(device)
        entry = _Transfer("to", function, operands=[spec], device=spec.device if device is CPU else device, specs=[there])
        remember(_transfers, (spec, device), entry)
    return apply_entry(entry, (x,))[0]


def transfer(x: Tensor, device: Device, non_blocking: bool = False) -> Tensor:
    """A copy of a tensor's value on another device."""
    if x._strides is not None:
        make_contiguous(x)
    source = x._spec.device
    if device is CPU:
        t = empty(x._spec.on(CPU))
        source.context.read_into(t._address, x._address, x._spec.nbytes)
    elif source is CPU:
        t = empty(x._spec.on(device))
        device.context.write_from(t._address, x._address, x._spec.nbytes, x._buffer, non_blocking)
    else:
        t = empty(x._spec.on(device))
        device.context.copy_peer(t._address, x._address, x._spec.nbytes, source.context)
    return t
