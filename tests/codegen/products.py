"""Products on the device in simulation: small cases of dot and conv, and every tile of the tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from graphc.codegen.canonical import canonicalise
from graphc.codegen.cuda.choice import Choice, divisors, is_narrow
from graphc.codegen.cuda.products.contract import FMA_TILES, TENSOR_TILES, fma_choice, tensor_choice
from graphc.ir.function import Builder, Function, Value
from graphc.ir.types import TensorType

from tests.codegen.contractions import Epilogue, random_array
from tests.codegen.device import Case
from tests.equality.oracle import exact_interpret

Array = np.ndarray[Any, Any]


def inputs(group: Function, seed: int = 0, integers: bool = False) -> list[Array]:
    """Random operands; `integers`: small ones, whose sums of products are exact in any order."""
    rng = np.random.default_rng(seed)
    if not integers:
        return [random_array(rng, [int(d) for d in p.type.shape], p.type.dtype) for p in group.params]
    return [
        rng.integers(-4, 5, [int(d) for d in p.type.shape]).astype(p.type.dtype.numpy) for p in group.params
    ]


def case(group: Function, choice: Choice | None = None, seed: int = 0, integers: bool = False, **more: Any) -> Case:
    return Case(group, inputs(group, seed, integers), choice, **more)


def same_result(group: Function, choices: Sequence[Choice], **more: Any) -> list[Case]:
    """The group under each choice, on the same operands; what must come out is computed once."""
    first = case(group, **more)
    expected = exact_interpret(group, list(first.inputs))
    return [replace(first, choice=c, expected=expected) for c in choices]


def _launch(group: Function) -> tuple[tuple[tuple[str, int], ...], bool]:
    canonical = canonicalise(group)
    sizes = {name: int(d) for name, d in canonical.extents}
    return divisors(canonical.function, sizes), is_narrow(canonical.function, sizes)


def fma_choices(
    group: Function, split: bool, examples: Sequence[int] = (1,), padded: Sequence[bool] = (False,)
) -> list[Choice]:
    """Every tile of the table, with blocks of k over the grid and without."""
    divides, narrow = _launch(group)
    return [
        fma_choice(t, s, e, divides, narrow, q)
        for t in FMA_TILES for s in ((False, True) if split and t.splits else (False,)) for e in examples for q in padded
    ]  # fmt: skip


def tensor_choices(group: Function, example: int = 1, packed: bool = False) -> list[Choice]:
    divides, narrow = _launch(group)
    return [tensor_choice(t, packed, example, divides, narrow) for t in TENSOR_TILES]


def gelu(b: Builder, root: Value) -> Sequence[Value]:
    """x * 0.5 * (1 + erf(x * 0.70710678)), after a bias and before a residual; the sum itself is a result too."""
    t = root.type

    def number(value: float) -> Value:
        from graphc.ir.function import DenseArray

        c: Value = b.emit("constant", value=DenseArray(np.asarray(value).astype(t.dtype.numpy)))
        return b.emit("full", c, shape=t.shape)  # type: ignore[no-any-return]

    bias = b.param(TensorType(t.dtype, (t.shape[-1],)))
    x = b.emit("add", root, b.emit("broadcast", bias, shape=t.shape, axes=(t.rank - 1,)))
    inner = b.emit("add", number(1.0), b.emit("erf", b.emit("mul", x, number(0.70710678))))
    y = b.emit("mul", b.emit("mul", x, number(0.5)), inner)
    residual = b.param(t)
    return [b.emit("add", y, residual), root]


def cast_to(dtype: Any) -> Epilogue:
    return lambda b, root: [b.emit("cast", root, dtype=dtype)]


def product_of(
    lhs: str, rhs: str, before: Any = None, lhs_contract: Sequence[int] = (1,), rhs_contract: Sequence[int] = (0,),
    batch: int = 0, precision: str = "", epilogue: Epilogue | None = None,
) -> Function:  # fmt: skip
    """`dot` with something done to the operands first: before(b, x, y) -> (x, y)."""
    b = Builder("group")
    x, y = b.param(TensorType.parse(lhs)), b.param(TensorType.parse(rhs))
    left, right = before(b, x, y) if before else (x, y)
    axes = tuple(range(batch))
    root = b.emit(
        "dot", left, right, lhs_batch=axes, rhs_batch=axes, lhs_contract=tuple(lhs_contract),
        rhs_contract=tuple(rhs_contract), precision=precision,
    )  # fmt: skip
    return b.build(epilogue(b, root) if epilogue else [root])
