"""Groups with one contraction, run natively and compared with the interpreter bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from graphc.codegen.llvm.target import Target, host_target
from graphc.codegen.lower.contract import lower_contraction
from graphc.codegen.lower.lowered import Lowered
from graphc.codegen.lower.tiles import Schedule
from graphc.codegen.lower.windows.lower import WindowSchedules
from graphc.ir.function import Builder, Function, Value
from graphc.ir.interpret import interpret
from graphc.ir.types import DType, TensorType, substitute

from tests.codegen.kernel_oracle import interpret as interpret_kernel
from tests.codegen.kernel_oracle import same_bits
from tests.codegen.run_kernels import Native, parallel_of

Array = np.ndarray[Any, Any]
Epilogue = Callable[[Builder, Value], Sequence[Value]]


def random_array(rng: np.random.Generator, shape: Sequence[int], dtype: DType) -> Array:
    if dtype.is_float:
        return np.asarray(rng.standard_normal(shape).astype(dtype.numpy))
    info = np.iinfo(dtype.numpy)
    return np.asarray(rng.integers(info.min, info.max, shape, dtype.numpy, endpoint=True))


def arguments(f: Function, extents: Mapping[str, int], seed: int = 0) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [random_array(rng, [int(substitute(d, extents)) for d in p.type.shape], p.type.dtype) for p in f.params]  # type: ignore[arg-type]


def check(
    f: Function,
    extents: Mapping[str, int] | None = None,
    args: Sequence[Array] | None = None,
    schedule: Schedule | WindowSchedules | None = None,
    hint: Mapping[str, int] | None = None,
    target: Target | None = None,
    parts: int = 3,
) -> Lowered:
    """Native results equal the interpreter's bits; gives what was lowered."""
    extents = dict(extents or {})
    args = arguments(f, extents) if args is None else args
    lowered = lower_contraction(f, target or host_target(), hint or extents, schedule)
    got = Native(lowered, target).run(args, f.result_types, extents, parts)
    want = interpret(f, args, symbols=extents)
    for g, w in zip(got, want, strict=True):
        assert same_bits(g, w), f"{np.sum(g != w)} of {g.size} elements differ under {schedule}"
    return lowered


def check_by_oracle(f: Function, extents: Mapping[str, int], schedule: Schedule | WindowSchedules | None = None) -> None:
    """The kernels under the meaning of the loop language, which also checks every index."""
    args = arguments(f, extents)
    lowered = lower_contraction(f, host_target(), dict(extents), schedule)
    memory = {b: np.ascontiguousarray(a).reshape(-1) for b, a in zip(lowered.params, args, strict=True)}
    for b, t in zip(lowered.results, f.result_types, strict=True):
        memory[b] = np.full(int(substitute(t.size, extents)), 77, b.dtype.numpy)  # type: ignore[call-overload]
    for s in lowered.scratch:
        memory[s.buffer] = np.full(int(substitute(s.size, extents)), 77, s.dtype.numpy)  # type: ignore[call-overload]
    for kernel in lowered.kernels:
        used = {b: memory[b] for b in kernel.buffers}
        sizes = {n: extents[n] for n in kernel.extents}
        after, error = interpret_kernel(kernel, used, sizes, 0, parallel_of(kernel, sizes))
        assert error == [0, 0]
        memory.update({b: after[b] for b in kernel.buffers})
    for b, w in zip(lowered.results, interpret(f, args, symbols=extents), strict=True):
        assert same_bits(memory[b].reshape(w.shape), w)


def dot_group(
    lhs: str, rhs: str, lhs_contract: Sequence[int], rhs_contract: Sequence[int], batch: int = 0,
    epilogue: Epilogue | None = None,
) -> Function:  # fmt: skip
    """`dot` of two parameters given as types, the first `batch` dimensions of both being the batch."""
    b = Builder("group")
    x, y = b.param(TensorType.parse(lhs)), b.param(TensorType.parse(rhs))
    both = tuple(range(batch))
    root = b.emit(
        "dot", x, y, lhs_batch=both, rhs_batch=both, lhs_contract=tuple(lhs_contract), rhs_contract=tuple(rhs_contract)
    )
    return b.build(epilogue(b, root) if epilogue else [root])


def conv_group(x: str, w: str, epilogue: Epilogue | None = None, **attrs: Any) -> Function:
    b = Builder("group")
    a, k = b.param(TensorType.parse(x)), b.param(TensorType.parse(w))
    root = b.emit("conv", a, k, **conv_attrs(a.type.rank - 2, **attrs))
    return b.build(epilogue(b, root) if epilogue else [root])


def conv_attrs(rank: int, **attrs: Any) -> dict[str, Any]:
    ones = (1,) * rank
    plain = {"strides": ones, "padding": ((0, 0),) * rank, "lhs_dilation": ones, "rhs_dilation": ones}
    return {**plain, **attrs}


def biased(axis: int) -> Epilogue:
    """Bias along one axis, then relu; the sum before it is a result too."""

    def epilogue(b: Builder, root: Value) -> Sequence[Value]:
        t = root.type
        bias = b.param(TensorType(t.dtype, (t.shape[axis],)))
        y = b.emit("add", root, b.emit("broadcast", bias, shape=t.shape, axes=(axis,)))
        zero = b.emit("broadcast", b.param(TensorType(t.dtype)), shape=t.shape, axes=())
        return [b.emit("maximum", y, zero), root]

    return epilogue
