"""The linear recurrence h[i] = a[i]*h[i-1] + b[i] along one axis.

One operation gives cumulative sums (a = 1), cumulative products, and moving averages, and is closed
under differentiation: its gradient is the same recurrence in the other direction (Blelloch, "Prefix
Sums and Their Applications", 1990, section 1.4, for the recurrence). The order is sequential.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from graphc.ir.function import Attrs, Builder, Operation, Value
from graphc.ir.ops.arithmetic import fma, is_narrow
from graphc.ir.ops.reduce import shifted
from graphc.ir.ops.rules import check_axis, same_types, type_error
from graphc.ir.registry import REQUIRED, Array, OpDef, register
from graphc.ir.types import TensorType

_same = same_types("linear_scan", 2, "iuf")


def _infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    result = _same(types, attrs)
    check_axis("linear_scan", types, attrs["axis"], types[0].rank)
    if not isinstance(attrs["reverse"], bool):
        raise type_error("linear_scan", types, f"reverse must be True or False, not {attrs['reverse']!r}")
    return result


def _eval(args: Sequence[Array], attrs: Attrs, types: tuple[TensorType, ...]) -> Sequence[Array]:
    wide = [x.astype(np.float32) if is_narrow(x) else x for x in args]
    a, b = (np.moveaxis(x, attrs["axis"], 0) for x in wide)
    out = np.array(b)
    order = range(len(b) - 1, -1, -1) if attrs["reverse"] else range(len(b))
    before: int | None = None
    with np.errstate(all="ignore"):
        for i in order:
            if before is not None:
                out[i] = fma(np.asarray(a[i]), np.asarray(out[before]), np.asarray(b[i]))
            before = i
        return [np.moveaxis(out, 0, attrs["axis"]).astype(types[0].dtype.numpy)]


def _vjp(b: Builder, op: Operation, cotangents: tuple[Value | None, ...]) -> Sequence[Value | None]:
    (g,) = cotangents
    assert g is not None
    axis, reverse = op.attrs["axis"], op.attrs["reverse"]
    following = shifted(b, op.operands[0], axis, later=reverse)
    db = b.emit("linear_scan", following, g, axis=axis, reverse=not reverse)
    da = b.emit("mul", db, shifted(b, op.result, axis, later=not reverse))
    return [da, db]


register(
    OpDef(
        name="linear_scan",
        family="scan",
        infer=_infer,
        eval=_eval,
        doc="h[i] = fma(a[i], h[i-1], b[i]) in ascending order along `axis` (descending if `reverse`), from the "
        "first h = b, whose a is not read; float16 and bfloat16 carry h in float32 and round each result "
        "once (Blelloch 1990, 1.4).",
        vjp=_vjp,
        attrs={"axis": REQUIRED, "reverse": False},
        reads=("operand0", "results"),
    )
)
