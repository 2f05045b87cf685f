"""Tensors: making, element types, operators, functions and methods against NumPy."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import graphc as gc
import numpy as np
import pytest
from graphc.runtime import ops as xp

DTYPES = [
    gc.bool, gc.int8, gc.int16, gc.int32, gc.int64, gc.uint8, gc.uint16, gc.uint32, gc.uint64, gc.float16, gc.bfloat16,
    gc.float32, gc.float64,
]  # fmt: skip
RNG = np.random.default_rng(0)


def same(t: gc.Tensor, expected: Any) -> None:
    """Equal in element type, shape and bits (any NaN for a NaN)."""
    want = np.asarray(expected)
    got = t.numpy()
    assert got.dtype == want.dtype and got.shape == want.shape, (got.dtype, got.shape, want.dtype, want.shape)
    np.testing.assert_array_equal(got, want)
    if want.dtype.kind == "f":
        number = ~np.isnan(want)
        np.testing.assert_array_equal(np.signbit(got)[number], np.signbit(want)[number])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_round_trip_of_every_element_type(dtype: Any) -> None:
    values = np.array([[0, 1, 2], [3, 4, 5]]).astype(dtype.numpy)
    t = gc.tensor(values)
    assert t.dtype is dtype and t.shape == (2, 3) and t.ndim == 2 and t.size == 6
    assert t.nbytes == values.nbytes and t.itemsize == values.itemsize
    same(t, values)
    same(gc.zeros(2, 3, dtype=dtype), np.zeros((2, 3), dtype.numpy))
    same(gc.full((2,), 1, dtype=dtype), np.ones(2, dtype.numpy))


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(1, gc.int64), (1.5, gc.float32), (True, gc.bool), ([1, 2.5], gc.float32), ([], gc.float32), ([[True]], gc.bool)],
)
def test_default_element_types_of_python_data(value: Any, dtype: Any) -> None:
    assert gc.tensor(value).dtype is dtype


def test_numpy_element_types_are_kept() -> None:
    assert gc.tensor(np.ones(2)).dtype is gc.float64
    assert gc.tensor(np.float16(1)).dtype is gc.float16
    assert gc.tensor([np.float64(1)]).dtype is gc.float64


def test_tensor_of_tensors() -> None:
    a, b = gc.ones(2), gc.zeros(2)
    same(gc.tensor([a, b]), np.array([[1, 1], [0, 0]], np.float32))


# The table of the array API standard's promotion, with PyTorch's rule for integers and floats.
PROMOTED = [
    (gc.int8, gc.int16, gc.int16),
    (gc.uint8, gc.int8, gc.int16),
    (gc.uint16, gc.int8, gc.int32),
    (gc.uint32, gc.int32, gc.int64),
    (gc.uint8, gc.uint32, gc.uint32),
    (gc.bool, gc.int8, gc.int8),
    (gc.bool, gc.float16, gc.float16),
    (gc.int64, gc.float16, gc.float16),
    (gc.float16, gc.bfloat16, gc.float32),
    (gc.bfloat16, gc.float32, gc.float32),
    (gc.float32, gc.float64, gc.float64),
]


@pytest.mark.parametrize(("a", "b", "c"), PROMOTED, ids=str)
def test_promotion(a: Any, b: Any, c: Any) -> None:
    assert (gc.ones(2, dtype=a) + gc.ones(2, dtype=b)).dtype is c
    assert (gc.ones(2, dtype=b) * gc.ones(2, dtype=a)).dtype is c
    assert gc.result_type(a, b) is c


def test_uint64_and_signed_integers_have_no_common_type() -> None:
    with pytest.raises(TypeError, match="uint64 and signed"):
        gc.ones(2, dtype=gc.uint64) + gc.ones(2, dtype=gc.int8)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_python_numbers_take_the_element_type(dtype: Any) -> None:
    x = gc.ones(2, dtype=dtype)
    assert (x + 1).dtype is dtype and (1 + x).dtype is dtype and (x * True).dtype is dtype
    assert (x + 1.5).dtype is (dtype if dtype.is_float else gc.float32)


def test_numbers_beyond_int64() -> None:
    x = gc.full((2,), 2**64 - 1, dtype=gc.uint64)
    same(x & (2**64 - 1), np.full(2, 2**64 - 1, np.uint64))
    with pytest.raises(OverflowError):
        x + 2**64


BINARY = ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "eq", "ne", "lt", "le", "gt", "ge"]


@pytest.mark.parametrize("name", BINARY)
def test_operators_are_those_of_numpy(name: str) -> None:
    a = RNG.integers(1, 9, (3, 1)).astype(np.float32)
    b = RNG.integers(1, 5, (4,)).astype(np.float32)
    f = getattr(type(a), f"__{name}__")
    same(getattr(gc.Tensor, f"__{name}__")(gc.tensor(a), gc.tensor(b)), f(a, b))
    i, j = a.astype(np.int64), b.astype(np.int64)
    if name != "truediv":
        same(getattr(gc.Tensor, f"__{name}__")(gc.tensor(i), gc.tensor(j)), f(i, j))


def test_reflected_operators() -> None:
    x = gc.tensor([2.0, 4.0])
    same(8 / x, np.array([4, 2], np.float32))
    same(1 - x, np.array([-1, -3], np.float32))
    same(2**x, np.array([4, 16], np.float32))
    same(np.array([1.0, 2.0], np.float32) + x, np.array([3, 6], np.float32))
    same(gc.tensor([7, 9]) // 2, np.array([3, 4]))
    same(9 % gc.tensor([4, 5]), np.array([1, 4]))
    same(~gc.tensor([1, 2]) ^ 1, ~np.array([1, 2]) ^ 1)
    same(gc.tensor([1, 2]) << 2, np.array([4, 8]))


def test_integer_division_is_floating_point() -> None:
    assert (gc.tensor([1, 2]) / 2).dtype is gc.float32
    assert gc.exp(gc.tensor([1])).dtype is gc.float32


def test_unknown_operands_are_left_to_python() -> None:
    assert (gc.ones(2) == "a") is False
    with pytest.raises(TypeError, match="unsupported operand"):
        gc.ones(2) + "a"  # type: ignore[operator]


def test_in_place_operators_rebind() -> None:
    x = gc.ones(3)
    y = x
    before = x.detach()
    x += 2
    assert x is y
    same(x, np.full(3, 3, np.float32))
    same(before, np.ones(3, np.float32))
    i = gc.tensor([1, 2])
    i *= 3
    same(i, np.array([3, 6]))
    with pytest.raises(TypeError, match="cannot be kept in"):
        i += 0.5
    with pytest.raises(ValueError, match="shape"):
        x += gc.ones(2, 3)


UNARY = {
    "abs": "abs", "negative": "negative", "sign": "sign", "square": "square", "floor": "floor", "ceil": "ceil",
    "trunc": "trunc", "round": "rint", "sqrt": "sqrt", "reciprocal": "reciprocal", "isnan": "isnan", "isinf": "isinf",
    "isfinite": "isfinite", "signbit": "signbit",
}  # fmt: skip


@pytest.mark.parametrize("name", UNARY)
def test_exact_unary_functions(name: str) -> None:
    x = np.array([-2.5, -0.0, 0.0, 0.5, 1.5, 3.0, np.inf, np.nan], np.float32)
    with np.errstate(all="ignore"):
        same(getattr(gc, name)(gc.tensor(x)), getattr(np, UNARY[name])(x))


CLOSE = {
    "exp": "exp", "expm1": "expm1", "log": "log", "log2": "log2", "log10": "log10", "log1p": "log1p", "sin": "sin", "cos": "cos",
    "tan": "tan", "asin": "arcsin", "acos": "arccos", "atan": "arctan", "sinh": "sinh", "cosh": "cosh", "tanh": "tanh",
    "asinh": "arcsinh", "atanh": "arctanh", "exp2": "exp2",
}  # fmt: skip


@pytest.mark.parametrize("name", CLOSE)
def test_transcendental_functions(name: str) -> None:
    x = np.linspace(0.1, 0.9, 17).astype(np.float32)
    # The functions are within 2 ulp (docs/numerics.md), NumPy's within a few.
    np.testing.assert_allclose(getattr(gc, name)(gc.tensor(x)).numpy(), getattr(np, CLOSE[name])(x), rtol=1e-6)


REDUCE = ["sum", "prod", "max", "min", "any", "all", "argmax", "argmin"]


@pytest.mark.parametrize("name", REDUCE)
@pytest.mark.parametrize("axis", [None, 0, 1, -1, (0, 2)])
@pytest.mark.parametrize("keepdims", [False, True])
def test_reductions(name: str, axis: Any, keepdims: bool) -> None:
    if name.startswith("arg") and isinstance(axis, tuple):
        pytest.raises(TypeError, gc.argmax, gc.ones(2, 2), axis=axis)
        return
    x = RNG.integers(-3, 4, (2, 3, 4))
    for values in (x, x.astype(np.float32)):
        same(getattr(gc, name)(gc.tensor(values), axis=axis, keepdims=keepdims), getattr(np, name)(values, axis=axis, keepdims=keepdims))
    same(getattr(gc.tensor(x), name)(dim=axis, keepdim=keepdims), getattr(np, name)(x, axis=axis, keepdims=keepdims))


def test_sums_widen_integers() -> None:
    assert gc.sum(gc.ones(3, dtype=gc.int8)).dtype is gc.int64
    assert gc.sum(gc.ones(3, dtype=gc.uint8)).dtype is gc.uint64
    assert gc.sum(gc.ones(3, dtype=gc.bool)).item() == 3
    assert gc.sum(gc.ones(3, dtype=gc.float16)).dtype is gc.float16
    assert gc.sum(gc.ones(3), dtype=gc.float64).dtype is gc.float64


def test_mean_var_std() -> None:
    x = RNG.standard_normal((4, 5)).astype(np.float32)
    t = gc.tensor(x)
    # The order of the additions differs from NumPy's.
    np.testing.assert_allclose(t.mean(0).numpy(), x.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(t.var(axis=1, correction=1).numpy(), x.var(1, ddof=1), rtol=1e-5)
    np.testing.assert_allclose(gc.std(t).item(), x.std(), rtol=1e-5)
    with pytest.raises(TypeError, match=r"mean\(i64\[2\]\).*astype"):
        gc.mean(gc.tensor([1, 2]))


def test_reductions_of_nothing() -> None:
    x = gc.zeros(0, 3)
    same(x.sum(0), np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="no elements"):
        x.max(0)


def test_cumulative() -> None:
    x = np.arange(1, 7).reshape(2, 3)
    same(gc.cumulative_sum(gc.tensor(x), axis=1), np.cumsum(x, 1))
    same(gc.cumulative_prod(gc.tensor(x), axis=0), np.cumprod(x, 0))
    same(gc.cumulative_sum(gc.tensor(x), axis=1, include_initial=True), np.concatenate([np.zeros((2, 1), int), np.cumsum(x, 1)], 1))
    same(gc.cumulative_prod(gc.tensor([2.0, -3.0, 0.5])), np.array([2, -6, -3], np.float32))


X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
LAYOUT: dict[str, tuple[Any, Any]] = {
    "reshape": (lambda t: t.reshape(4, -1), lambda a: a.reshape(4, -1)),
    "view": (lambda t: t.view((6, 4)), lambda a: a.reshape(6, 4)),
    "permute": (lambda t: t.permute(2, 0, 1), lambda a: a.transpose(2, 0, 1)),
    "permuted and reshaped": (lambda t: t.permute(2, 0, 1).reshape(-1), lambda a: a.transpose(2, 0, 1).reshape(-1)),
    "transpose": (lambda t: t.transpose(0, 2), lambda a: a.swapaxes(0, 2)),
    "T": (lambda t: t.T, lambda a: a.T),
    "mT": (lambda t: t.mT, lambda a: a.swapaxes(1, 2)),
    "moveaxis": (lambda t: gc.moveaxis(t, 0, 2), lambda a: np.moveaxis(a, 0, 2)),
    "moveaxes": (lambda t: gc.moveaxis(t, (0, 1), (2, 0)), lambda a: np.moveaxis(a, (0, 1), (2, 0))),
    "flip": (lambda t: gc.flip(t, axis=(0, 2)), lambda a: np.flip(a, (0, 2))),
    "flip all": (lambda t: gc.flip(t), lambda a: np.flip(a)),
    "expand_dims": (lambda t: gc.expand_dims(t, axis=1), lambda a: np.expand_dims(a, 1)),
    "unsqueeze": (lambda t: t.unsqueeze(-1), lambda a: np.expand_dims(a, -1)),
    "squeeze": (lambda t: t[:1].squeeze(0), lambda a: a[0]),
    "flatten": (lambda t: t.flatten(1), lambda a: a.reshape(2, 12)),
    "broadcast": (lambda t: gc.broadcast_to(t[:, :1], (5, 2, 3, 4)), lambda a: np.broadcast_to(a[:, :1], (5, 2, 3, 4))),
    "expand": (lambda t: t[:, :1].expand(-1, 3, -1), lambda a: np.broadcast_to(a[:, :1], (2, 3, 4))),
    "roll": (lambda t: gc.roll(t, 2, axis=2), lambda a: np.roll(a, 2, 2)),
    "roll back": (lambda t: gc.roll(t, -1), lambda a: np.roll(a, -1)),
    "roll two": (lambda t: gc.roll(t, (1, -2), axis=(0, 2)), lambda a: np.roll(a, (1, -2), (0, 2))),
    "tile": (lambda t: gc.tile(t, (2, 1, 3)), lambda a: np.tile(a, (2, 1, 3))),
    "repeat": (lambda t: gc.repeat(t, 2, axis=1), lambda a: np.repeat(a, 2, 1)),
    "repeat each": (lambda t: gc.repeat(t, [1, 0, 2], axis=1), lambda a: np.repeat(a, [1, 0, 2], 1)),
    "concat": (lambda t: gc.concat([t, t[:1]], axis=0), lambda a: np.concatenate([a, a[:1]], 0)),
    "concat flat": (lambda t: gc.concat([t, t[:1]], axis=None), lambda a: np.concatenate([a, a[:1]], None)),
    "stack": (lambda t: gc.stack([t, t], axis=-1), lambda a: np.stack([a, a], -1)),
    "tril": (lambda t: gc.tril(t, k=-1), lambda a: np.tril(a, -1)),
    "triu": (lambda t: gc.triu(t, k=1), lambda a: np.triu(a, 1)),
    "pad": (lambda t: gc.pad(t, [(1, 0), 2, (0, -1)], value=7), lambda a: np.pad(a, [(1, 0), (2, 2), (0, 0)], constant_values=7)[:, :, :-1]),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUT)
def test_layout(name: str) -> None:
    f, reference = LAYOUT[name]
    result = f(gc.tensor(X))
    same(result, np.ascontiguousarray(reference(X)))
    # What comes out works as an operand, whatever its strides are.
    same(result + 1, np.ascontiguousarray(reference(X)) + 1)


def test_layout_makes_no_copy() -> None:
    x = gc.tensor(X)
    for view in (x.T, x[1], x[:, ::2], x.reshape(6, 4), x.unsqueeze(0), gc.flip(x), gc.broadcast_to(x, (2, 2, 3, 4))):
        assert view._buffer is x._buffer
    assert x[1].is_contiguous() and not x.T.is_contiguous() and x.T.contiguous().is_contiguous()


def test_values_are_never_shared() -> None:
    x = gc.zeros(4)
    y = x[1:3]
    y += 1
    same(x, np.zeros(4, np.float32))
    x[0] = 5
    same(y, np.ones(2, np.float32))


def test_split_and_unstack() -> None:
    x = gc.arange(10)
    assert [p.tolist() for p in gc.split(x, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [p.shape for p in x.chunk(3)] == [(4,), (4,), (2,)]
    assert [p.item() for p in gc.unstack(x[:3])] == [0, 1, 2]
    with pytest.raises(ValueError, match="add up to 9"):
        gc.split(x, [4, 5])


MATMUL = [((3,), (3,)), ((2, 3), (3,)), ((3,), (3, 4)), ((2, 3), (3, 4)), ((5, 2, 3), (3, 4)), ((3,), (5, 3, 4)),
          ((5, 1, 2, 3), (4, 3, 2)), ((2, 0), (0, 3)), ((5, 2, 3), (3,))]  # fmt: skip


@pytest.mark.parametrize(("a", "b"), MATMUL, ids=str)
def test_matmul(a: Any, b: Any) -> None:
    x, y = RNG.integers(-4, 5, a).astype(np.float32), RNG.integers(-4, 5, b).astype(np.float32)
    same(gc.tensor(x) @ gc.tensor(y), x @ y)


def test_matmul_reads_transposed_views_in_place() -> None:
    x, y = RNG.integers(-4, 5, (3, 2)).astype(np.float32), RNG.integers(-4, 5, (4, 3)).astype(np.float32)
    a, b = gc.tensor(x).T, gc.tensor(y).T
    same(a @ b, x.T @ y.T)
    assert not a.is_contiguous() and not b.is_contiguous()


def test_products() -> None:
    a, b = RNG.integers(-4, 5, (2, 3, 4)).astype(np.float32), RNG.integers(-4, 5, (4, 3, 5)).astype(np.float32)
    s, t = gc.tensor(a), gc.tensor(b)
    same(gc.tensordot(s, t, axes=1), np.tensordot(a, b, 1))
    same(gc.tensordot(s, t, axes=((1, 2), (1, 0))), np.tensordot(a, b, ((1, 2), (1, 0))))
    same(gc.vecdot(s, s), np.sum(a * a, -1))
    same(gc.vecdot(s, s, axis=1), np.sum(a * a, 1))
    same(gc.outer(s[0, 0], t[:, 0, 0]), np.outer(a[0, 0], b[:, 0, 0]))
    for equation, x, y in [("ijk,klm->ijlm", a, b), ("ijk,kjm->im", a, b), ("ijk,ijk->ij", a, a), ("ijk,ijl->ikl", a, a)]:
        same(gc.einsum(equation, gc.tensor(x), gc.tensor(y)), np.einsum(equation, x, y))
    same(gc.einsum("ijk->kj", s), np.einsum("ijk->kj", a))


def test_where_and_clip() -> None:
    x = np.array([-2.0, 0.0, 3.0, np.nan], np.float32)
    same(gc.where(gc.tensor(x) > 0, x, 0), np.where(x > 0, x, 0).astype(np.float32))
    same(gc.clip(gc.tensor(x), -1, 1), np.clip(x, -1, 1))
    same(gc.tensor(x).clamp(max=0.5), np.minimum(x, np.float32(0.5)))
    same(gc.tensor(x).masked_fill(gc.tensor(x) < 0, 9), np.array([9, 0, 3, np.nan], np.float32))


def test_astype_saturates_and_wraps() -> None:
    same(gc.tensor([1e10, -1e10, 1.9, float("nan")]).astype(gc.int32), np.array([2**31 - 1, -(2**31), 1, 0], np.int32))
    same(gc.tensor([300, -1]).astype(gc.uint8), np.array([44, 255], np.uint8))
    same(gc.bitcast(gc.tensor([1.0]), gc.int32), np.array([0x3F800000], np.int32))


def test_creation() -> None:
    same(gc.arange(5), np.arange(5))
    same(gc.arange(7, 1, -2), np.arange(7, 1, -2))
    same(gc.arange(0.0, 1.0, 0.25), np.arange(0, 1, 0.25, np.float32))
    same(gc.arange(0), np.arange(0))
    same(gc.linspace(0, 1, 5), np.linspace(0, 1, 5, dtype=np.float32))
    same(gc.linspace(0, 1, 4, endpoint=False), np.linspace(0, 1, 4, endpoint=False, dtype=np.float32))
    same(gc.linspace(3, 4, 1), np.array([3], np.float32))
    same(gc.eye(2, 3, k=1), np.eye(2, 3, 1, np.float32))
    same(gc.one_hot(gc.tensor([1, 0]), 3), np.array([[0, 1, 0], [1, 0, 0]]))
    same(gc.full_like(gc.ones(2, dtype=gc.int8), 3), np.array([3, 3], np.int8))
    for got, want in zip(gc.meshgrid(gc.arange(2), gc.arange(3)), np.meshgrid(np.arange(2), np.arange(3))):
        same(got, want)
    with pytest.raises(ValueError, match="step"):
        gc.arange(0, 1, 0)
    with pytest.raises(ValueError, match="sizes"):
        gc.zeros(-1)


def test_python_protocols() -> None:
    x = gc.tensor([[1, 2], [3, 4]])
    assert len(x) == 2 and [row.tolist() for row in x] == [[1, 2], [3, 4]] and 3 in x
    assert int(x[0, 0]) == 1 and float(x[0, 1]) == 2.0 and bool(x[0, 0]) and [10, 20][x[0, 0]] == 20
    assert f"{gc.tensor(1.5):.2f}" == "1.50" and math.floor(float(gc.tensor(2.7))) == 2
    assert hash(x) == hash(x) and x in {x}
    with pytest.raises(ValueError, match=r"ambiguous; use x.any\(\) or x.all\(\)"):
        bool(x)
    with pytest.raises(ValueError, match="has 4 elements"):
        x.item()
    with pytest.raises(TypeError, match="no length"):
        len(gc.tensor(1))
    with pytest.raises(TypeError, match="integer tensor of rank 0"):
        [1, 2][gc.tensor(0.0)]  # type: ignore[call-overload]


def test_torch_names() -> None:
    x = gc.zeros(2, 3)
    assert x.size() == (2, 3) and x.size(1) == 3 and x.size == 6 and x.dim() == 2 and x.numel() == 6
    assert x.stride() == (3, 1) and x.T.stride() == (1, 3) and x.element_size() == 4 and x.device == "cpu"
    assert x.double().dtype is gc.float64 and x.long().dtype is gc.int64 and x.to(gc.float16).dtype is gc.float16
    assert x.to("cpu") is x and x.cpu() is x and x.float() is x and x.is_floating_point()
    assert x.type_as(gc.ones(1, dtype=gc.int8)).dtype is gc.int8 and x.to(gc.ones(1, dtype=gc.int8)).dtype is gc.int8
    x.fill_(2).add_(1).mul_(2)
    same(x, np.full((2, 3), 6, np.float32))
    x.zero_()
    x.copy_(gc.tensor([1, 2, 3]))
    same(x, np.array([[1, 2, 3]] * 2, np.float32))
    x.data = gc.ones(4)
    assert x.shape == (4,)
    assert gc.tensor([3.0, 4.0]).norm().item() == 5.0
    assert gc.cat is gc.concat


def test_repr() -> None:
    assert repr(gc.tensor([1.0, 2.5])) == "tensor([1. , 2.5])"
    assert repr(gc.tensor([1, 2], dtype=gc.int8)) == "tensor([1, 2], dtype=graphc.int8)"
    assert repr(gc.tensor(1.0, requires_grad=True)) == "tensor(1., requires_grad=True)"
    assert repr(gc.tensor(1.0, requires_grad=True) * 2) == "tensor(2., grad_fn=<multiply>)"
    assert repr(gc.zeros(0, 2)) == "tensor([], dtype=graphc.float32, shape=(0, 2))"
    assert repr(gc.tensor([1.5], dtype=gc.bfloat16)) == "tensor([1.5], dtype=graphc.bfloat16)"
    assert repr(gc.nn.Parameter(gc.ones(1))).startswith("Parameter([1.]")


@pytest.mark.parametrize("dtype", [gc.float32, gc.bfloat16, gc.int8, gc.bool], ids=str)
def test_pickle_and_copy(dtype: Any) -> None:
    x = gc.tensor([[1, 0], [0, 1]], dtype=dtype).T
    for y in (pickle.loads(pickle.dumps(x)), copy.deepcopy(x), copy.copy(x)):
        assert y is not x and y.dtype is dtype
        same(y, x.numpy())
    p = gc.nn.Parameter(gc.ones(2))
    p.grad = gc.zeros(2)
    q = copy.deepcopy(p)
    assert isinstance(q, gc.nn.Parameter) and q.requires_grad and q.grad is not p.grad
    q.data = q.data + 1
    same(p.detach(), np.ones(2, np.float32))
    assert isinstance(pickle.loads(pickle.dumps(p)), gc.nn.Parameter)
    with pytest.raises(RuntimeError, match="detach"):
        copy.deepcopy(p * 2)


def test_element_type_questions() -> None:
    assert gc.finfo(gc.float32).eps == np.finfo(np.float32).eps and gc.finfo(gc.bfloat16).bits == 16
    assert gc.iinfo(gc.uint8).max == 255
    assert gc.isdtype(gc.int8, "integral") and gc.isdtype(gc.float16, ("bool", "real floating"))
    assert not gc.isdtype(gc.bool, "numeric") and gc.isdtype(gc.int8, gc.int8)
    assert gc.can_cast(gc.int8, gc.int16) and not gc.can_cast(gc.float64, gc.float32)
    assert gc.result_type(gc.ones(1, dtype=gc.int8), 1.0) is gc.float32
    with pytest.raises(TypeError, match="use iinfo"):
        gc.finfo(gc.int8)


def test_devices() -> None:
    assert gc.device("cpu") == gc.zeros(1).device and str(gc.device("cpu")) == "cpu"
    with pytest.raises(RuntimeError, match="cuda.*not available"):
        gc.zeros(1).to("cuda")
    with pytest.raises(ValueError, match="not a device"):
        gc.zeros(1, device="tpu")


def test_memory_statistics() -> None:
    before = gc.memory.stats()
    x = gc.zeros(1000)
    assert gc.memory.stats().live_bytes >= before.live_bytes + 4000
    del x
    assert gc.memory.stats().live_bytes == before.live_bytes
    gc.memory.empty_cache()
    assert gc.memory.stats().cached_bytes == 0


def test_out_of_memory_names_the_sizes() -> None:
    with pytest.raises(MemoryError, match=r"GiB asked for, .* held by tensors"):
        gc.zeros(1 << 50)


def test_memory_is_aligned_and_reused() -> None:
    x = gc.ones(5)
    address = x.data_ptr()
    assert address % 64 == 0
    del x
    assert gc.ones(6).data_ptr() == address


def test_functions_take_array_api_positions() -> None:
    assert xp.sum(gc.ones(2, 3), axis=1).shape == (2,)
    assert gc.zeros((2, 3)).shape == gc.zeros(2, 3).shape
    assert gc.ones(()).shape == ()
    assert gc.ones(2).__array_namespace__() is gc
