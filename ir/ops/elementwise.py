"""Elementwise operations: one row of a table for each, with its meaning and its gradient.

Operands have one dtype and one shape (`select`'s condition is bool). float16 and bfloat16 are widened
to float32, computed, and rounded once. The meaning of the operations in `APPROXIMATE` is given in
real numbers here and to the bit by `codegen/math/`; all others are exact to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from graphc.ir.function import Attrs, Builder, Operation, Value
from graphc.ir.ops import arithmetic
from graphc.ir.ops.arithmetic import convert, is_narrow
from graphc.ir.ops.rules import check_count, check_dtype, same_types, select_types, type_error
from graphc.ir.ops.term import Term
from graphc.ir.registry import REQUIRED, Array, Eval, OpDef, Vjp, register
from graphc.ir.types import BOOL, TensorType

LN2, LN10 = math.log(2.0), math.log(10.0)
API = "array API 2024.12"
OPERANDS, RESULTS = ("operands",), ("results",)

# A gradient rule: (cotangent, *operands, result) -> the cotangents of the operands; None is zero.
Rule = Callable[..., Any]


class Row(NamedTuple):
    """What the table says of one operation; `gradient` is a rule, or why there is none."""

    kinds: str
    meaning: Callable[..., Array]
    gradient: Rule | str
    reads: tuple[str, ...]
    doc: str


def _zero(*terms: Term) -> None:
    """A derivative that is zero wherever it exists."""
    return None


def _exact(f: Callable[..., Array]) -> Eval:
    """Evaluates `f` in the operands' dtype, 16-bit floats in float32, and rounds once."""

    def evaluate(args: Sequence[Array], attrs: Attrs, types: tuple[TensorType, ...]) -> Sequence[Array]:
        wide = [a.astype(np.float32) if is_narrow(a) else a for a in args]
        with np.errstate(all="ignore"):
            return [np.asarray(f(*wide)).astype(types[0].dtype.numpy, copy=False)]

    return evaluate


def _real(f: Callable[..., Array]) -> Eval:
    """Evaluates `f` in float64 and rounds to float32 where that is the dtype computed in."""

    def rounded(*args: Array) -> Array:
        return np.asarray(f(*(a.astype(np.float64) for a in args))).astype(args[0].dtype)

    return _exact(rounded)


def _rule(rule: Rule) -> Vjp:
    def vjp(b: Builder, op: Operation, cotangents: tuple[Value | None, ...]) -> Sequence[Value | None]:
        terms = [Term(b, v) for v in (*cotangents, *op.operands, *op.results) if v is not None]
        out = rule(*terms)
        out = out if isinstance(out, tuple) else (out,) * len(op.operands) if out is None else (out,)
        return [t.value if t is not None else None for t in out]

    return vjp


def _abs(g: Term, x: Term, y: Term) -> Term:
    return g * x.sign()


def _power(g: Term, a: Term, b: Term, y: Term) -> tuple[Term, Term]:
    # 0**-1 and log 0 would give 0 * inf where the derivative is 0, so they are kept from arising.
    exponent = a.eq(0.0).and_(b.eq(0.0)).where(1.0, b)
    base = a.eq(0.0).and_(b.ge(0.0)).where(1.0, a)
    return g * b * a.pow(exponent - 1.0), g * y * base.log()


def _maximum(g: Term, a: Term, b: Term, y: Term) -> tuple[Term, Term]:
    share = a.eq(b).where(g * 0.5, g)
    return a.lt(b).where(0.0, share), b.lt(a).where(0.0, share)


def _minimum(g: Term, a: Term, b: Term, y: Term) -> tuple[Term, Term]:
    share = a.eq(b).where(g * 0.5, g)
    return a.gt(b).where(0.0, share), b.gt(a).where(0.0, share)


def _divide(g: Term, a: Term, b: Term, y: Term) -> tuple[Term, Term]:
    da = g / b
    return da, -(da * y)


def _atan2(g: Term, y: Term, x: Term, angle: Term) -> tuple[Term, Term]:
    scaled = g / (x * x + y * y)
    return scaled * x, -(scaled * y)


def _copysign(g: Term, a: Term, b: Term, y: Term) -> tuple[Term, None]:
    kept = a.signbit().eq(b.signbit()).where(g, -g)
    return a.eq(0.0).where(0.0, kept), None


def _logaddexp(g: Term, a: Term, b: Term, y: Term) -> tuple[Term, Term]:
    # Equal operand and result: also where both are infinite, and their difference is NaN.
    weights = (x.eq(y).where(0.0, x - y).exp() for x in (a, b))
    da, db = (g * w for w in weights)
    return da, db


def _one_minus_square(x: Term) -> Term:
    return (1.0 - x) * (1.0 + x)


_BITS = "its operands are not floating point"
_U: dict[str, Row] = {
    "neg": Row("iuf", np.negative, lambda g, x, y: -g, (), f"-x; integers wrap ({API}, negative)."),
    "abs": Row("biuf", np.abs, _abs, OPERANDS, f"|x|, gradient 0 at 0; the least integer wraps ({API}, abs)."),
    "sign": Row("iuf", arithmetic.sign, _zero, (), f"-1, 0 or 1; NaN for NaN ({API}, sign)."),
    "sqrt": Row("f", np.sqrt, lambda g, x, y: g * 0.5 / y, RESULTS, "The square root (IEEE 754-2019, 5.4.1)."),
    "reciprocal": Row("f", lambda x: x.dtype.type(1) / x, lambda g, x, y: -(g * y * y), RESULTS, f"1 / x, rounded once ({API}, reciprocal)."),
    "square": Row("biuf", lambda x: x * x, lambda g, x, y: g * (x + x), OPERANDS, f"x * x ({API}, square)."),
    "floor": Row("biuf", np.floor, _zero, (), f"The greatest integer not above x ({API}, floor)."),
    "ceil": Row("biuf", np.ceil, _zero, (), f"The least integer not below x ({API}, ceil)."),
    "trunc": Row("biuf", np.trunc, _zero, (), f"x without its fraction ({API}, trunc)."),
    "round": Row("biuf", lambda x: np.rint(x) if x.dtype.kind == "f" else x, _zero, (), f"The nearest integer, ties to even ({API}, round)."),
    "not": Row("biu", np.invert, _BITS, (), f"Every bit inverted; logical not for bool ({API}, bitwise_invert)."),
}  # fmt: skip
_T: dict[str, Row] = {
    "exp": Row("f", np.exp, lambda g, x, y: g * y, RESULTS, f"e**x ({API}, exp)."),
    "exp2": Row("f", np.exp2, lambda g, x, y: g * y * LN2, RESULTS, "2**x (C23, 7.12.6.4)."),
    "expm1": Row("f", np.expm1, lambda g, x, y: g * (y + 1.0), RESULTS, f"e**x - 1, accurate near 0 ({API}, expm1)."),
    "log": Row("f", np.log, lambda g, x, y: g / x, OPERANDS, f"The natural logarithm ({API}, log)."),
    "log2": Row("f", np.log2, lambda g, x, y: g / (x * LN2), OPERANDS, f"The logarithm to base 2 ({API}, log2)."),
    "log10": Row("f", np.log10, lambda g, x, y: g / (x * LN10), OPERANDS, f"The logarithm to base 10 ({API}, log10)."),
    "log1p": Row("f", np.log1p, lambda g, x, y: g / (x + 1.0), OPERANDS, f"log(1 + x), accurate near 0 ({API}, log1p)."),
    "sin": Row("f", np.sin, lambda g, x, y: g * x.cos(), OPERANDS, f"The sine ({API}, sin)."),
    "cos": Row("f", np.cos, lambda g, x, y: -(g * x.sin()), OPERANDS, f"The cosine ({API}, cos)."),
    "tan": Row("f", np.tan, lambda g, x, y: g * (1.0 + y * y), RESULTS, f"The tangent ({API}, tan)."),
    "asin": Row("f", np.arcsin, lambda g, x, y: g / _one_minus_square(x).sqrt(), OPERANDS, f"The inverse sine ({API}, asin)."),
    "acos": Row("f", np.arccos, lambda g, x, y: -(g / _one_minus_square(x).sqrt()), OPERANDS, f"The inverse cosine ({API}, acos)."),
    "atan": Row("f", np.arctan, lambda g, x, y: g / (1.0 + x * x), OPERANDS, f"The inverse tangent ({API}, atan)."),
    "sinh": Row("f", np.sinh, lambda g, x, y: g * x.cosh(), OPERANDS, f"The hyperbolic sine ({API}, sinh)."),
    "cosh": Row("f", np.cosh, lambda g, x, y: g * x.sinh(), OPERANDS, f"The hyperbolic cosine ({API}, cosh)."),
    "tanh": Row("f", np.tanh, lambda g, x, y: g * _one_minus_square(y), RESULTS, f"The hyperbolic tangent ({API}, tanh)."),
    "asinh": Row("f", np.arcsinh, lambda g, x, y: g / (x * x + 1.0).sqrt(), OPERANDS, f"The inverse hyperbolic sine ({API}, asinh)."),
    "acosh": Row("f", np.arccosh, lambda g, x, y: g / ((x - 1.0) * (x + 1.0)).sqrt(), OPERANDS, f"The inverse hyperbolic cosine ({API}, acosh)."),
    "atanh": Row("f", np.arctanh, lambda g, x, y: g / _one_minus_square(x), OPERANDS, f"The inverse hyperbolic tangent ({API}, atanh)."),
    "erf": Row("f", arithmetic.erf, lambda g, x, y: g * (2.0 / math.sqrt(math.pi)) * (-(x * x)).exp(), OPERANDS, "The error function (DLMF 7.2.1)."),
}  # fmt: skip
_B: dict[str, Row] = {
    "add": Row("biuf", np.add, lambda g, a, b, y: (g, g), (), f"a + b; integers wrap; bool: or ({API}, add)."),
    "sub": Row("iuf", np.subtract, lambda g, a, b, y: (g, -g), (), f"a - b; integers wrap ({API}, subtract)."),
    "mul": Row("biuf", np.multiply, lambda g, a, b, y: (g * b, g * a), OPERANDS, f"a * b; integers wrap; bool: and ({API}, multiply)."),
    "div": Row("f", np.divide, _divide, ("operand1", "results"), f"a / b ({API}, divide)."),
    "floor_divide": Row("iuf", arithmetic.floor_divide, _zero, (), f"floor(a / b); integers: 0 for b = 0, wrapping ({API}, floor_divide)."),
    "remainder": Row("iuf", arithmetic.remainder, lambda g, a, b, y: (g, -(g * a.floor_divide(b))), OPERANDS, f"a - b*floor(a / b), of the sign of b; integers: 0 for b = 0 ({API}, remainder)."),
    "maximum": Row("biuf", arithmetic.maximum, _maximum, OPERANDS, "The greater operand, the first of equals, NaN if either is; equals share the gradient (IEEE 754-2019, 9.6)."),
    "minimum": Row("biuf", arithmetic.minimum, _minimum, OPERANDS, "The lesser operand, the first of equals, NaN if either is; equals share the gradient (IEEE 754-2019, 9.6)."),
    "copysign": Row("f", np.copysign, _copysign, OPERANDS, f"|a| with the sign bit of b ({API}, copysign)."),
    "and": Row("biu", np.bitwise_and, _BITS, (), f"Bitwise and ({API}, bitwise_and)."),
    "or": Row("biu", np.bitwise_or, _BITS, (), f"Bitwise or ({API}, bitwise_or)."),
    "xor": Row("biu", np.bitwise_xor, _BITS, (), f"Bitwise exclusive or ({API}, bitwise_xor)."),
    "shift_left": Row("iu", arithmetic.shift_left, _BITS, (), f"a << b; 0 for b < 0 or b >= the width ({API}, bitwise_left_shift)."),
    "shift_right": Row("iu", arithmetic.shift_right, _BITS, (), f"a >> b, arithmetic for signed a; b < 0 or b >= the width leaves the sign only ({API}, bitwise_right_shift)."),
}  # fmt: skip
_R: dict[str, Row] = {
    "pow": Row("iuf", arithmetic.power, _power, ("operands", "results"), f"a**b; integers wrap and truncate ({API}, pow)."),
    "atan2": Row("f", np.arctan2, _atan2, OPERANDS, f"The angle of the point (b, a) ({API}, atan2)."),
    "hypot": Row("f", np.hypot, lambda g, a, b, y: (g * a / y, g * b / y), ("operands", "results"), f"sqrt(a*a + b*b) without overflow ({API}, hypot)."),
    "logaddexp": Row("f", np.logaddexp, _logaddexp, ("operands", "results"), f"log(exp(a) + exp(b)) ({API}, logaddexp)."),
}  # fmt: skip

# Operations whose bits are defined by `codegen/math/`, and only approximated by `eval`.
APPROXIMATE = frozenset(_T) | frozenset(_R)


def _register(table: dict[str, Row], count: int, evaluate: Callable[[Callable[..., Array]], Eval]) -> None:
    for name, row in table.items():
        smooth = not isinstance(row.gradient, str)
        register(
            OpDef(
                name=name,
                family="elementwise",
                infer=same_types(name, count, row.kinds),
                eval=evaluate(row.meaning),
                doc=row.doc,
                vjp=_rule(row.gradient) if not isinstance(row.gradient, str) else None,
                reads=row.reads,
                no_gradient="" if smooth else str(row.gradient),
            )
        )


_register(_U, 1, _exact)
_register(_T, 1, _real)
_register(_B, 2, _exact)
# `power` chooses its own precision, since integers are among its operands.
_register({"pow": _R.pop("pow")}, 2, _exact)
_register(_R, 2, _real)
_register(
    {
        "fma": Row("iuf", arithmetic.fma, lambda g, a, b, c, y: (g * b, g * a, g), ("operand0", "operand1"),
                   "a*b + c, rounded once; integers wrap (IEEE 754-2019, 5.4.1)."),
    },
    3,
    _exact,
)  # fmt: skip


def _infer_cast(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    check_count("cast", types, 1)
    return (types[0].with_dtype(check_dtype("cast", types, attrs["dtype"])),)


def _vjp_cast(b: Builder, op: Operation, cotangents: tuple[Value | None, ...]) -> Sequence[Value | None]:
    (g,) = cotangents
    assert g is not None
    return [b.emit("cast", g, dtype=op.operands[0].type.dtype)]


def _infer_bitcast(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    check_count("bitcast", types, 1)
    source, target = types[0].dtype, check_dtype("bitcast", types, attrs["dtype"])
    if BOOL in (source, target) or source.bits != target.bits:
        rule = f"{source} has {source.bits} bits and {target} has {target.bits}; both must be numbers of one width"
        raise type_error("bitcast", types, rule, "use cast to convert values")
    return (types[0].with_dtype(target),)


def _vjp_select(b: Builder, op: Operation, cotangents: tuple[Value | None, ...]) -> Sequence[Value | None]:
    (g,) = cotangents
    assert g is not None
    cond, value = Term(b, op.operands[0]), Term(b, g)
    return [None, cond.where(value, 0.0).value, cond.where(0.0, value).value]


def _bits(args: Sequence[Array], attrs: Attrs, types: tuple[TensorType, ...]) -> Sequence[Array]:
    return [np.ascontiguousarray(args[0]).view(attrs["dtype"].numpy).reshape(args[0].shape)]


register(
    OpDef(
        name="nextafter",
        family="elementwise",
        infer=same_types("nextafter", 2, "f"),
        eval=lambda args, attrs, types: [arithmetic.nextafter(args[0], args[1])],
        doc=f"The neighbour of a towards b in their own dtype ({API}, nextafter).",
        reads=(),
        no_gradient="it steps between neighbouring numbers, and is not differentiable",
    )
)
register(
    OpDef(
        name="select",
        family="elementwise",
        infer=select_types("select"),
        eval=lambda args, attrs, types: [np.where(args[0], args[1], args[2])],
        doc=f"a where the condition holds, else b ({API}, where).",
        vjp=_vjp_select,
        reads=("operand0",),
    )
)
register(
    OpDef(
        name="cast",
        family="elementwise",
        infer=_infer_cast,
        eval=lambda args, attrs, types: [convert(args[0], attrs["dtype"])],
        doc="x as `dtype`: integers wrap; floats round once to nearest even; float to integer truncates and "
        f"saturates, NaN gives 0; to bool is x != 0 ({API}, astype; saturation as in LLVM fptosi.sat).",
        vjp=_vjp_cast,
        attrs={"dtype": REQUIRED},
        reads=(),
    )
)
register(
    OpDef(
        name="bitcast",
        family="elementwise",
        infer=_infer_bitcast,
        eval=_bits,
        doc="The bits of x read as `dtype` of the same width (LLVM, bitcast).",
        attrs={"dtype": REQUIRED},
        reads=(),
        no_gradient="it reinterprets bits, and is not differentiable",
    )
)
