"""Functions that differ in sizes, as one function with symbols."""

from __future__ import annotations

from graphc.codegen.apart import told_apart
from graphc.codegen.canonical import canonicalise
from graphc.codegen.general import form, generalise
from graphc.codegen.likely import likely
from graphc.codegen.program import front
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
    apart = told_apart(product)
    assert apart is not None and list(apart.sizes.values()) == [32]
    (a, b), (c, d) = (p.type.shape for p in apart.group.params)
    assert a == 32 and b == c == 64 and d not in (32, 64) and apart.group.results[0].type.shape == (a, d)
    added = parse_function("func @g(%x: f32[32, 7], %y: f32[32, 7]) -> (f32[32, 7]) {\n  %0: f32[32, 7] = add %x, %y\n  return %0\n}")
    assert told_apart(added) is None


def test_nothing_is_likely_of_a_symbol_of_the_user() -> None:
    assert likely(symbol("batch")) is None and likely(3) == 3 and likely(symbol("n0_6") * 2 + 1) == 13


def test_no_two_sizes_get_one_name() -> None:
    conv = parse_function(
        """func @f(%x: f32[2, 2, 4, 4], %w: f32[3, 2, 2, 2], %y: f32[3, 2], %z: f32[3, 2]) -> (f32[2, 3, 2, 3], f32[3, 3]) {
  %0: f32[2, 3, 2, 3] = conv %x, %w {strides=[2, 1], padding=[[0, 0], [0, 0]], lhs_dilation=[1, 1], rhs_dilation=[1, 1], groups=1, batch_groups=1}
  %1: f32[3, 3] = dot %y, %z {lhs_batch=[], lhs_contract=[1], rhs_batch=[], rhs_contract=[1]}
  return %0, %1
}"""
    )
    apart = told_apart(conv)
    assert apart is not None
    x, w, y, z = (p.type.shape for p in apart.group.params)
    assert x[1] == w[1] and y[1] == z[1] and x[2:] == (4, 4) and w[2:] == (2, 2)
    # Examples, channels in, channels out, rows of the product, its columns, its inner dimension.
    assert len({x[0], x[1], w[0], y[0], z[0], y[1]}) == 6


def test_a_length_is_open_from_the_first_one() -> None:
    def heads(n: int) -> Function:
        """Heads side by side, as after attention; the first positions of a table; as many heads as examples."""
        return parse_function(
            f"""func @heads(%x: f32[4, 4, {n}, 16], %t: f32[130, 64], %w: f32[64, 64]) -> (f32[4, {n}, 64]) {{
  %0: f32[4, {n}, 4, 16] = permute %x {{axes=[0, 2, 1, 3]}}
  %1: f32[4, {n}, 64] = reshape %0 {{shape=[4, {n}, 64]}}
  %2: f32[4, {n}, 64] = dot %1, %w {{lhs_batch=[], lhs_contract=[2], rhs_batch=[], rhs_contract=[0]}}
  %3: f32[{n}, 64] = slice %t {{start=[0, 0], limit=[{n}, 64], stride=[1, 1]}}
  %4: f32[4, {n}, 64] = broadcast %3 {{axes=[1, 2], shape=[4, {n}, 64]}}
  %5: f32[4, {n}, 64] = add %2, %4
  return %5
}}"""
        )

    def behind(n: int) -> Function:
        return parse_function(
            f"""func @behind(%x: f32[{n}, 64], %zero: f32[]) -> (f32[130, 64]) {{
  %0: f32[130, 64] = pad %x, %zero {{low=[0, 0], high=[{130 - n}, 0], interior=[0, 0]}}
  return %0
}}"""
        )

    for make in (heads, behind):
        first, second = make(128), make(100)
        general = generalise(second, (form(first), form(second)))
        assert general is not None
        keys = {canonicalise(f).function.key() for f in (first, second, make(64), make(4), general.function)}
        assert len(keys) == 1


def test_a_count_that_is_a_power_of_two_is_a_count() -> None:
    """Multiplying by the reciprocal gives the same bits, and another kernel."""

    def mean(n: int) -> Function:
        return parse_function(
            f"""func @mean(%x: f32[{n}, 7]) -> (f32[7]) {{
  %0: f32[7] = sum %x {{axes=[0]}}
  %1: f32[] = constant {{value=dense<f32[]>({float(n)})}}
  %2: f32[7] = full %1 {{shape=[7]}}
  %3: f32[7] = div %0, %2
  return %3
}}"""
        )

    found = {n: front(mean(n)) for n in (32, 33)}
    # The pass multiplies where it can; kernels divide by what is given to them.
    assert "mul" in str(found[32][0]) and "div" in str(found[33][0])
    keys = {canonicalise(op.attrs["function"]).function.key() for n in found for op in found[n][1].entry.ops}
    assert len(keys) == 1
    assert [a.item() for n in found for a in found[n][2]] == [32.0, 33.0]
