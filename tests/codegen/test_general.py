"""Functions that differ in sizes, as one function with symbols."""

from __future__ import annotations

from graphc.codegen.apart import told_apart
from graphc.codegen.general import form, generalise
from graphc.codegen.likely import likely
from graphc.ir.function import Function
from graphc.ir.text import parse_function
from graphc.ir.types import symbol


def rows(n: int, k: int, divisor: float) -> Function:
    return parse_function(
        f"""func @rows(%x: f32[{n}, 2, {k}], %y: f32[{n * 2}, {k}]) -> (f32[{n * 2}, {k}]) {{
  %0: f32[{n * 2}, {k}] = reshape %x {{shape=[{n * 2}, {k}]}}
  %1: f32[] = constant {{value=dense<f32[]>({divisor})}}
  %2: f32[{n * 2}, {k}] = full %1 {{shape=[{n * 2}, {k}]}}
  %3: f32[{n * 2}, {k}] = div %0, %2
  %4: f32[{n * 2}, {k}] = add %3, %y
  return %4
}}"""
    )


def test_what_differs_is_open_and_what_follows_from_it_is_followed() -> None:
    first, second = rows(32, 5, 32.0), rows(33, 5, 33.0)
    general = generalise(second, (form(first), form(second)))
    assert general is not None
    n = general.function.params[0].type.shape[0]
    assert likely(n) == 32 and general.function.params[0].type.shape[2] == 5
    # 64 and 66 rows are no size of their own, and the divisor is a parameter.
    assert general.function.params[1].type.shape[0] == n * 2 and general.numbers == (0,)
    assert general.sizes_of(form(rows(7, 5, 7.0))) == {str(n): 7}
    assert general.sizes_of(form(rows(7, 6, 7.0))) is None
    assert form(first).structure == form(second).structure != form(parse_function(str(first).replace("= add", "= sub"))).structure


def test_without_elements_nothing_is_general() -> None:
    first, second = rows(32, 5, 1.0), rows(0, 5, 1.0)
    assert generalise(second, (form(first), form(second))) is None


def test_of_sides_that_are_even_it_is_known_that_they_are() -> None:
    def halves(n: int) -> Function:
        """A gradient of pooling, which needs twice the half to be the whole."""
        return parse_function(
            f"""func @halves(%x: f32[2, {n}], %y: f32[2, {n // 2}]) -> (f32[2, {n}]) {{
  %0: f32[2, {n // 2}] = slice %x {{start=[0, 0], limit=[2, {n}], stride=[1, 2]}}
  %1: f32[2, {n // 2}] = add %0, %y
  %2: f32[2, {n}] = concat %1, %1 {{axis=1}}
  %3: f32[2, {n}] = mul %2, %x
  return %3
}}"""
        )

    first, second = halves(28), halves(32)
    general = generalise(second, (form(first), form(second)))
    assert general is not None
    assert general.sizes_of(form(halves(36))) is not None and general.sizes_of(form(halves(30))) is None


def test_only_sizes_that_nothing_ties_are_told_apart() -> None:
    product = parse_function(
        """func @f(%x: f32[32, 64], %w: f32[64, 32]) -> (f32[32, 32]) {
  %0: f32[32, 32] = dot %x, %w {lhs_batch=[], lhs_contract=[1], rhs_batch=[], rhs_contract=[0]}
  return %0
}"""
    )
    apart = told_apart(product, {0, 1})
    assert apart is not None and list(apart.sizes.values()) == [32]
    (a, b), (c, d) = (p.type.shape for p in apart.group.params)
    assert a == 32 and b == c == 64 and d not in (32, 64) and apart.group.results[0].type.shape == (a, d)
    added = parse_function("func @g(%x: f32[32, 7], %y: f32[32, 7]) -> (f32[32, 7]) {\n  %0: f32[32, 7] = add %x, %y\n  return %0\n}")
    assert told_apart(added, {0, 1}) is None


def test_nothing_is_likely_of_a_symbol_of_the_user() -> None:
    assert likely(symbol("batch")) is None and likely(3) == 3 and likely(symbol("n0_6") * 2 + 1) == 13
