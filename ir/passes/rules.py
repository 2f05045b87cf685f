"""The simplification rules: a table of equations, and the rules of layout_rules.py and cast_rules.py.

Every rule is exact to the bit (which NaN excepted): that of two zeros, infinities and NaNs included. Rules
that are absent are absent for that reason: x + 0.0 is not x for x = -0.0, x * 0.0 is not 0.0 for an infinite
x, x - x is not 0.0 for an infinite x, and pow(x, 2) is not the square that `mul` rounds.
"""

from __future__ import annotations

from graphc.ir.passes.cast_rules import CAST_RULES
from graphc.ir.passes.equation import Rule, equation
from graphc.ir.passes.layout_rules import LAYOUT_RULES

# b: bool, i and u: integers (which wrap), f: floating point. For bool, add is or, and mul is and.
_EQUATIONS: tuple[tuple[str, str, str], ...] = (
    # Neutral elements. -0.0 is the neutral element of float addition, +0.0 only of subtraction.
    ("add_zero", "iu", "add(x, 0) -> x"),
    ("add_false", "b", "add(x, false) -> x"),
    ("add_negative_zero", "f", "add(x, -0.0) -> x"),
    ("sub_zero", "iuf", "sub(x, 0) -> x"),
    ("mul_one", "iuf", "mul(x, 1) -> x"),
    ("mul_true", "b", "mul(x, true) -> x"),
    ("div_one", "f", "div(x, 1) -> x"),
    ("floor_divide_one", "iu", "floor_divide(x, 1) -> x"),
    ("maximum_of_least", "f", "maximum(x, -inf) -> x"),
    ("least_maximum_of", "f", "maximum(-inf, x) -> x"),
    ("minimum_of_greatest", "f", "minimum(x, inf) -> x"),
    ("greatest_minimum_of", "f", "minimum(inf, x) -> x"),
    ("shift_left_zero", "iu", "shift_left(x, 0) -> x"),
    ("shift_right_zero", "iu", "shift_right(x, 0) -> x"),
    # Absorbing elements and cancellation, of integers and bools only.
    ("mul_zero", "iu", "mul(x, 0) -> 0"),
    ("mul_false", "b", "mul(x, false) -> false"),
    ("sub_self", "iu", "sub(x, x) -> 0"),
    ("remainder_one", "iu", "remainder(x, 1) -> 0"),
    # Negation. The sign of a product or quotient is exact, so factors of -1 and pairs of signs go.
    ("neg_neg", "iuf", "neg(neg(x)) -> x"),
    ("mul_minus_one", "iuf", "mul(x, -1) -> neg(x)"),
    ("div_minus_one", "f", "div(x, -1) -> neg(x)"),
    ("negative_zero_sub", "f", "sub(-0.0, x) -> neg(x)"),
    ("zero_sub", "iu", "sub(0, x) -> neg(x)"),
    ("add_neg", "iuf", "add(x, neg(y)) -> sub(x, y)"),
    ("sub_neg", "iuf", "sub(x, neg(y)) -> add(x, y)"),
    ("neg_sub", "iu", "neg(sub(x, y)) -> sub(y, x)"),
    ("mul_neg_neg", "iuf", "mul(neg(x), neg(y)) -> mul(x, y)"),
    ("div_neg_neg", "f", "div(neg(x), neg(y)) -> div(x, y)"),
    ("square_neg", "iuf", "square(neg(x)) -> square(x)"),
    ("square_abs", "iuf", "square(abs(x)) -> square(x)"),
    ("abs_neg", "if", "abs(neg(x)) -> abs(x)"),
    # Idempotence.
    ("abs_abs", "iuf", "abs(abs(x)) -> abs(x)"),
    ("abs_square", "f", "abs(square(x)) -> square(x)"),
    ("abs_unsigned", "bu", "abs(x) -> x"),
    ("sign_sign", "iuf", "sign(sign(x)) -> sign(x)"),
    ("maximum_self", "biuf", "maximum(x, x) -> x"),
    ("minimum_self", "biuf", "minimum(x, x) -> x"),
    ("copysign_self", "f", "copysign(x, x) -> x"),
    ("floor_integer", "biu", "floor(x) -> x"),
    ("ceil_integer", "biu", "ceil(x) -> x"),
    ("trunc_integer", "biu", "trunc(x) -> x"),
    ("round_integer", "biu", "round(x) -> x"),
    # Bits.
    ("not_not", "biu", "not(not(x)) -> x"),
    ("and_self", "biu", "and(x, x) -> x"),
    ("or_self", "biu", "or(x, x) -> x"),
    ("xor_self", "iu", "xor(x, x) -> 0"),
    ("xor_self_bool", "b", "xor(x, x) -> false"),
    ("and_zero", "iu", "and(x, 0) -> 0"),
    ("and_false", "b", "and(x, false) -> false"),
    ("and_ones", "iu", "and(x, -1) -> x"),
    ("and_true", "b", "and(x, true) -> x"),
    ("or_zero", "iu", "or(x, 0) -> x"),
    ("or_false", "b", "or(x, false) -> x"),
    ("or_ones", "iu", "or(x, -1) -> -1"),
    ("or_true", "b", "or(x, true) -> true"),
    ("xor_zero", "iu", "xor(x, 0) -> x"),
    ("xor_false", "b", "xor(x, false) -> x"),
    ("xor_ones", "iu", "xor(x, -1) -> not(x)"),
    ("xor_true", "b", "xor(x, true) -> not(x)"),
    # Comparisons. A NaN is unordered: it equals nothing, so x == x is not true for floats, but x < x is false.
    ("eq_self", "biu", "eq(x, x) -> true"),
    ("ne_self", "biu", "ne(x, x) -> false"),
    ("le_self", "iu", "le(x, x) -> true"),
    ("ge_self", "iu", "ge(x, x) -> true"),
    ("lt_self", "iuf", "lt(x, x) -> false"),
    ("gt_self", "iuf", "gt(x, x) -> false"),
    ("eq_true", "b", "eq(x, true) -> x"),
    ("ne_false", "b", "ne(x, false) -> x"),
    ("eq_false", "b", "eq(x, false) -> not(x)"),
    ("ne_true", "b", "ne(x, true) -> not(x)"),
    ("not_eq", "biuf", "not(eq(x, y)) -> ne(x, y)"),
    ("not_ne", "biuf", "not(ne(x, y)) -> eq(x, y)"),
    ("not_lt", "iu", "not(lt(x, y)) -> ge(x, y)"),
    ("not_le", "iu", "not(le(x, y)) -> gt(x, y)"),
    ("not_gt", "iu", "not(gt(x, y)) -> le(x, y)"),
    ("not_ge", "iu", "not(ge(x, y)) -> lt(x, y)"),
    # Selection.
    ("select_same", "biuf", "select(c, x, x) -> x"),
    ("select_true", "biuf", "select(true, x, y) -> x"),
    ("select_false", "biuf", "select(false, y, x) -> x"),
    ("select_not", "biuf", "select(not(c), x, y) -> select(c, y, x)"),
    ("select_is_condition", "b", "select(c, true, false) -> c"),
    ("select_is_not_condition", "b", "select(c, false, true) -> not(c)"),
    ("select_select_true", "biuf", "select(c, select(c, x, y), z) -> select(c, x, z)"),
    ("select_select_false", "biuf", "select(c, x, select(c, y, z)) -> select(c, x, z)"),
    # After autodiff, which alone gives it a meaning.
    ("stop_gradient", "biuf", "stop_gradient(x) -> x"),
)

RULES: tuple[Rule, ...] = (
    *(equation(*row) for row in _EQUATIONS),
    *CAST_RULES,
    *LAYOUT_RULES,
)
