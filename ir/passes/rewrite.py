"""The walk that passes share: operations in order, some replaced, the rest kept as the same objects.

Invariant: an operation whose operands did not change is taken over as it is, with its result values, so
that a pass costs by what it changes, and `finish` can tell that nothing did.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from graphc.ir.function import Attributes, Builder, DenseArray, Function, Operation, Value
from graphc.ir.registry import lookup
from graphc.ir.types import DType, TensorType


class Rewriter(Builder):
    """A builder for a changed copy of `function`.

    `definition` of a value of the new function is the operation it comes from, None for a parameter.
    """

    def __init__(self, function: Function) -> None:
        super().__init__(function.name)
        self.function = function
        self.changed = False
        self.definitions: dict[Value, Operation] = {}
        self._replaced: dict[Value, Value] = {}
        self._uses: dict[Value, int] | None = None

    def definition(self, value: Value) -> Operation | None:
        return self.definitions.get(value)

    def current(self, op: Operation) -> Operation:
        """`op` reading the replaced operands; `op` itself if none is replaced."""
        replaced = self._replaced
        for v in op.operands:
            if v in replaced:
                operands = [replaced.get(v, v) for v in op.operands]
                return Operation(op.name, operands, op.attrs, op.results, op.loc)
        return op

    def append(self, op: Operation) -> Operation:
        self._ops.append(op)
        for r in op.results:
            self.definitions[r] = op
        return op

    def make_op(self, name: str, *operands: Value, **attrs: Any) -> Operation:
        """A new operation, its types inferred and checked, that is not part of the function yet."""
        definition = lookup(name)
        complete = Attributes(definition.complete(attrs))
        types = definition.infer(tuple([v.type for v in operands]), complete)
        return Operation(name, operands, complete, [Value(t) for t in types], self.loc)

    def emit_op(self, name: str, *operands: Value, **attrs: Any) -> Operation:
        return self.append(self.make_op(name, *operands, **attrs))

    def replace(self, old: Iterable[Value], new: Sequence[Value]) -> None:
        """Later operations read `new` in the place of `old`."""
        self.changed = True
        self._replaced.update(zip(old, new, strict=True))

    def used_once(self, value: Value) -> bool:
        """Whether the function that is rewritten has this value and reads it, or returns it, at one place."""
        if self._uses is None:
            self._uses = self.function.uses()
        return self._uses.get(value) == 1

    def constant(self, value: DenseArray, type: TensorType) -> Value:
        """Emit the rank-0 array `value` as a tensor of `type`, spread if that has dimensions."""
        element: Value = self.emit("constant", value=value)
        spread: Value = self.emit("full", element, shape=type.shape) if type.shape else element
        return spread

    def uniform(self, value: Value) -> DenseArray | None:
        """The rank-0 array that `value` repeats, if it is a constant scalar, or one spread."""
        op = self.definitions.get(value)
        while op is not None and (
            op.name == "full" or (op.name == "broadcast" and not op.operands[0].type.shape)
        ):
            op = self.definitions.get(op.operands[0])
        if op is None or op.name != "constant":
            return None
        array: DenseArray = op.attrs["value"]
        return array if array.array.ndim == 0 else None

    def finish(self) -> Function:
        """The new function, or the old one if nothing was replaced."""
        f = self.function
        if not self.changed:
            return f
        results = [self._replaced.get(v, v) for v in f.results]
        return Function(f.name, f.params, self._ops, results, f.param_names)


def scalar(value: float | int | bool, type: TensorType) -> DenseArray:
    """`value` as a rank-0 array of the dtype of `type`; integers wrap."""
    # Of equal numbers that differ in their bits (0.0 and -0.0) or class (1 and True), each has its own array.
    return _scalar(repr(value), value, type.dtype)


@lru_cache(maxsize=256)
def _scalar(text: str, value: float | int | bool, dtype: DType) -> DenseArray:
    if dtype.is_integer:
        wrapped = int(value) & ((1 << dtype.bits) - 1)
        unsigned = np.array([wrapped], f"u{dtype.itemsize}")
        return DenseArray(unsigned.view(dtype.numpy).reshape(()))
    with np.errstate(over="ignore", under="ignore"):
        return DenseArray(np.array([value]).astype(dtype.numpy).reshape(()))
