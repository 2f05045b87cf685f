"""backward, grad, hooks, modes and transformations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import graphc as gc
import numpy as np
import pytest
from graphc.runtime import autograd, graph

RNG = np.random.default_rng(0)


def same(a: gc.Tensor | None, b: Any) -> None:
    assert a is not None
    want = b.numpy() if isinstance(b, gc.Tensor) else np.asarray(b, a.dtype.numpy)
    assert a.shape == want.shape
    np.testing.assert_array_equal(a.numpy(), want)


def leaf(*shape: int, dtype: Any = gc.float64) -> gc.Tensor:
    return gc.tensor(RNG.uniform(0.3, 0.9, shape), dtype=dtype, requires_grad=True)


FUNCTIONS: dict[str, tuple[Callable[..., gc.Tensor], tuple[tuple[int, ...], ...]]] = {
    "polynomial": (lambda x: x**3 - 2 * x, ((3,),)),
    "product": (lambda x, y: x * y + x / y - y, ((2, 3), (3,))),
    "exp log": (lambda x: gc.exp(gc.log(x) * 2) + gc.sqrt(x), ((4,),)),
    "trigonometry": (lambda x: gc.sin(x) * gc.cos(x) + gc.tanh(x), ((4,),)),
    "matmul": (lambda x, y: x @ y, ((2, 3), (3, 4))),
    "batched matmul": (lambda x, y: x @ y, ((5, 2, 3), (5, 3, 2))),
    "transposed": (lambda x, y: x.T @ y.T, ((3, 2), (4, 3))),
    "einsum": (lambda x, y: gc.einsum("ijk,kl->il", x, y), ((2, 3, 4), (4, 2))),
    "mean var": (lambda x: x.mean(0) * x.var(0) + x.std(1, keepdims=True).sum(), ((3, 3),)),
    "max": (lambda x: x.max(1) + x.min(0), ((3, 3),)),
    "prod": (lambda x: x.prod(1), ((3, 4),)),
    "cumulative": (lambda x: gc.cumulative_sum(x, axis=1) * gc.cumulative_prod(x, axis=0), ((2, 3),)),
    "layout": (lambda x: gc.flip(x.reshape(3, 4).T, axis=0)[1:, ::2] * 2, ((12,),)),
    "concat": (lambda x, y: gc.concat([x, y, x], axis=1) ** 2, ((2, 2), (2, 3))),
    "stack": (lambda x, y: gc.stack([x, y * x], axis=0), ((2, 2), (2, 2))),
    "where clip": (lambda x: gc.where(x > 0.6, x * x, x * 3) + gc.clip(x, 0.4, 0.8), ((9,),)),
    "take": (lambda x: gc.take(x, gc.tensor([0, 2, 0]), axis=0), ((3, 2),)),
    "take along": (lambda x: gc.take_along_axis(x, gc.tensor([[0, 1], [1, 1]]), axis=1), ((2, 2),)),
    "softmax": (lambda x: gc.nn.functional.softmax(x) * x, ((2, 3),)),
    "layer norm": (lambda x, w: gc.nn.functional.layer_norm(x, (3,), w), ((2, 3), (3,))),
    "conv": (lambda x, w: gc.nn.functional.conv2d(x, w, padding=1), ((1, 2, 4, 4), (3, 2, 3, 3))),
    "tril pad": (lambda x: gc.pad(gc.tril(x), [(1, 0), (0, 2)]) * 3, ((3, 3),)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_first_and_second_derivatives_by_differences(name: str) -> None:
    f, shapes = FUNCTIONS[name]
    args = [leaf(*s) for s in shapes]
    weight = gc.tensor(RNG.uniform(-1, 1, f(*args).shape))

    def loss(*xs: gc.Tensor) -> gc.Tensor:
        return (f(*xs) * weight).sum()

    directions = [gc.tensor(RNG.uniform(-1, 1, s)) for s in shapes]
    h = 1e-6

    def at(step: float) -> list[gc.Tensor]:
        return [(x.detach() + d * step).requires_grad_() for x, d in zip(args, directions)]

    grads = autograd.grad(loss(*args), args)
    slope = sum(float((g * d).sum()) for g, d in zip(grads, directions))
    with gc.no_grad():
        difference = (loss(*at(h)) - loss(*at(-h))).item() / (2 * h)
    # Central differences at step 1e-6 in float64 are good to about 1e-9 relative to the values here.
    assert slope == pytest.approx(difference, rel=1e-6, abs=1e-7)

    def slopes(xs: list[gc.Tensor], **options: Any) -> gc.Tensor:
        found = autograd.grad(loss(*xs), xs, create_graph=True, allow_unused=True, **options)
        total = gc.zeros((), dtype=gc.float64)
        for g, d in zip(found, directions):
            if g is not None:
                total = total + (g * d).sum()
        return total

    curve = slopes(args)
    if not curve.requires_grad:
        return
    second = autograd.grad(curve, args, allow_unused=True)
    value = sum(float((g * d).sum()) for g, d in zip(second, directions) if g is not None)
    bent = (slopes(at(h)).item() - slopes(at(-h)).item()) / (2 * h)
    assert value == pytest.approx(bent, rel=1e-5, abs=1e-6)


def test_backward_accumulates_in_leaves() -> None:
    x, y = gc.ones(2, requires_grad=True), gc.ones(2, requires_grad=True)
    for expected in (1, 2, 3):
        (x * 3 + y).sum().backward()
        same(x.grad, [3 * expected] * 2)
        same(y.grad, [expected] * 2)
    x.grad = None
    (x * 3).sum().backward()
    same(x.grad, [3, 3])
    assert (x * 3).grad is None


def test_gradients_of_several_uses_are_added() -> None:
    x = gc.tensor(2.0, requires_grad=True)
    y = x * x
    z = y * y + y * x
    z.backward()
    assert x.grad.item() == 4 * 8 + 3 * 4


def test_gradient_argument() -> None:
    x = gc.ones(3, requires_grad=True)
    (x * 2).backward(gc.tensor([1.0, 2.0, 3.0]))
    same(x.grad, [2, 4, 6])
    (x * 2).backward(1.0)
    same(x.grad, [4, 6, 8])
    with pytest.raises(ValueError, match="must have the shape"):
        (x * 2).backward(gc.ones(2))


def test_second_backward_needs_retain_graph() -> None:
    x = gc.ones(3, requires_grad=True)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    same(x.grad, [4, 4, 4])
    with pytest.raises(RuntimeError, match=r"multiply, recorded at .*test_autograd.py.*a second time.*retain_graph=True"):
        y.backward()


def test_what_saves_nothing_can_run_again() -> None:
    x = gc.ones(3, requires_grad=True)
    y = (x + 1).sum()
    y.backward()
    y.backward()
    same(x.grad, [2, 2, 2])


def test_errors_of_backward() -> None:
    x = gc.ones(3, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"one number only, the tensor is f32\[3\]; reduce it"):
        (x * 2).backward()
    with pytest.raises(RuntimeError, match="not computed from tensors that require gradients"):
        gc.ones(1).backward()
    with pytest.raises(TypeError, match=r"i64\[2\] cannot require gradients.*astype"):
        gc.tensor([1, 2], requires_grad=True)
    with pytest.raises(RuntimeError, match="use x.detach"):
        (x * 2).requires_grad = False
    with pytest.raises(RuntimeError, match="add in place on a leaf"):
        x += 1


def test_modes() -> None:
    x = gc.ones(2, requires_grad=True)
    with gc.no_grad():
        assert not (x * 2).requires_grad and not gc.is_grad_enabled()
        with gc.enable_grad():
            assert (x * 2).requires_grad
        x += 1
    assert x.requires_grad and x.is_leaf
    same(x, [2, 2])
    with gc.inference_mode():
        assert not (x * 2).requires_grad
    with gc.set_grad_enabled(False):
        assert not (x * 2).requires_grad
    gc.set_grad_enabled(False)
    assert not gc.is_grad_enabled()
    gc.set_grad_enabled(True)

    @gc.no_grad()
    def f() -> bool:
        return (x * 2).requires_grad

    assert not f() and gc.is_grad_enabled()
    with pytest.raises(ValueError), gc.no_grad():
        raise ValueError
    assert gc.is_grad_enabled()


def test_detach_and_leaves() -> None:
    x = gc.ones(2, requires_grad=True)
    y = x * 2
    assert x.is_leaf and not y.is_leaf and y.detach().is_leaf and y.grad_fn is not None and x.grad_fn is None
    assert y.grad_fn.name == "multiply"
    (y.detach() * x).sum().backward()
    same(x.grad, [2, 2])
    assert not gc.stop_gradient(y).requires_grad
    z = (gc.stop_gradient(x) * x).sum()
    x.grad = None
    z.backward()
    same(x.grad, [1, 1])


def test_integers_and_comparisons_are_not_recorded() -> None:
    x = gc.ones(2, requires_grad=True)
    assert not (x > 0).requires_grad and not x.argmax().requires_grad and not x.long().requires_grad
    assert x.double().requires_grad
    x.double().sum().backward()
    assert x.grad.dtype is gc.float32


def test_nodes_keep_only_what_gradients_read() -> None:
    x, c = gc.ones(4, requires_grad=True), gc.ones(4)
    assert [len((f(x)).grad_fn.saved) for f in (lambda x: x + c, lambda x: x * c, gc.exp, lambda x: x.sum(), gc.sin)] == [0, 1, 1, 0, 1]
    y = gc.exp(x)
    assert y.grad_fn.saved[0]._buffer is y._buffer
    y = x * c
    assert y.grad_fn.saved[0]._buffer is c._buffer


def test_saved_values_do_not_change() -> None:
    x = gc.ones(3, requires_grad=True)
    y = x * 2
    z = y * y
    y += 100
    z.sum().backward()
    same(x.grad, [8, 8, 8])


def test_in_place_on_results_is_differentiated() -> None:
    x = gc.ones(3, requires_grad=True)
    y = x * 2
    y *= y
    y += x
    y.sum().backward()
    same(x.grad, [9, 9, 9])


def test_hooks() -> None:
    seen: list[Any] = []
    x = gc.ones(2, requires_grad=True)
    y = x * 3
    y.register_hook(lambda g: seen.append(g.tolist()))
    doubled = y.register_hook(lambda g: g * 2)
    x.register_hook(lambda g: g + 1)
    y.sum().backward(retain_graph=True)
    assert seen == [[1, 1]]
    same(x.grad, [7, 7])
    doubled.remove()
    x.grad = None
    y.sum().backward()
    same(x.grad, [4, 4])
    x.register_hook(lambda g: g.reshape(2, 1))
    with pytest.raises(TypeError, match="hook must return"):
        (x * 2).sum().backward()


def test_retain_grad() -> None:
    x = gc.ones(2, requires_grad=True)
    y = x * 3
    y.retain_grad()
    z = y * y
    z.sum().backward()
    same(y.grad, [6, 6])
    same(x.grad, [18, 18])


def test_grad_leaves_fields_alone() -> None:
    x, y = gc.ones(2, requires_grad=True), gc.ones(2, requires_grad=True)
    z = x * y
    gx, gz = autograd.grad((z * z).sum(), [x, z])
    same(gx, [2, 2])
    same(gz, [2, 2])
    assert x.grad is None and y.grad is None
    with pytest.raises(RuntimeError, match="do not depend on input 1"):
        autograd.grad((x * 2).sum(), [x, y])
    assert autograd.grad((x * 2).sum(), [x, y], allow_unused=True)[1] is None
    with pytest.raises(RuntimeError, match="input 0, a tensor .* does not require gradients"):
        autograd.grad((x * 2).sum(), gc.ones(2))
    (g,) = autograd.grad([x * 2, x * y], x, [gc.ones(2), gc.ones(2)])
    same(g, [3, 3])


def test_derivatives_of_any_order() -> None:
    x = gc.tensor(2.0, requires_grad=True)
    y = x**5
    for expected in (80.0, 160.0, 240.0, 240.0, 120.0):
        (y,) = autograd.grad(y, x, create_graph=True)
        assert y.item() == expected


def test_gradient_penalty_through_backward() -> None:
    w = gc.tensor([1.0, 2.0], requires_grad=True)
    x = gc.tensor([3.0, 4.0], requires_grad=True)
    (g,) = autograd.grad((w * x * x).sum(), x, create_graph=True)
    (g * g).sum().backward()
    # g = 2 w x, so d/dw of the sum of (2 w x)^2 is 8 w x^2, and d/dx 8 w^2 x.
    same(w.grad, [72, 256])
    same(x.grad, [24, 128])


def test_graphs_of_one_structure_share_a_program() -> None:
    x = gc.ones(3, requires_grad=True)
    (x * 2.0).exp().sum().backward()
    known = len(graph._cache)
    for factor in (3.0, 4.0):
        (x * factor).exp().sum().backward()
    assert len(graph._cache) == known


def test_long_chains_do_not_recurse() -> None:
    x = y = gc.ones(1, requires_grad=True)
    for _ in range(2000):
        y = y * 1.0
    assert y.grad_fn is not None
    graph = autograd.Graph([y], None)
    assert len(graph.nodes) == 2000 and x.is_leaf


def test_unused_outputs_have_zero_cotangents() -> None:
    @gc.composite
    def both(x: gc.Tensor) -> tuple[gc.Tensor, gc.Tensor]:
        return gc.exp(x), x * 2

    x = gc.zeros(2, requires_grad=True)
    both(x)[1].sum().backward()
    same(x.grad, [2, 2])


def test_transformations() -> None:
    x = gc.tensor([1.0, 2.0])
    same(gc.grad(lambda x: (x**3).sum())(x), [3, 12])
    value, (gx, gy) = gc.value_and_grad(lambda x, y: (x * y).sum(), argnums=(0, 1))(x, x + 1)
    assert value.item() == 8
    same(gx, [2, 3])
    same(gy, [1, 2])
    (value, aux), g = gc.value_and_grad(lambda p: ((p["w"] * x).sum(), "aux"), has_aux=True)({"w": x, "b": x})
    assert aux == "aux"
    same(g["w"], x)
    same(g["b"], [0, 0])
    assert not g["w"].requires_grad
    assert gc.grad(gc.grad(gc.grad(lambda x: x**4)))(gc.tensor(2.0)).item() == 48
    y, pull = gc.vjp(lambda a, b: (a * b, a + b), x, x)
    same(pull((gc.ones(2), gc.zeros(2)))[0], x)
    same(pull((gc.zeros(2), gc.ones(2)))[1], [1, 1])
    same(y[0], x * x)
    y, dy = gc.jvp(lambda a, b: a * a * b, (x, x), (gc.ones(2), gc.zeros(2)))
    same(dy, [2, 8])
    # Forward over reverse.
    hessian_vector = gc.jvp(gc.grad(lambda x: (x**3).sum()), (x,), (gc.tensor([1.0, 1.0]),))[1]
    same(hessian_vector, [6, 12])
    with pytest.raises(TypeError, match="must return one number"):
        gc.grad(lambda x: x)(x)
    w = gc.ones(2, requires_grad=True)
    gc.grad(lambda x: (x * x * w).sum())(x).sum().backward()
    same(w.grad, [2, 4])
