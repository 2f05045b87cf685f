"""Errors: the operation, the operand types, the rule, the user's line, the cure."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import graphc as gc
import pytest
from graphc.runtime import dispatch, errors

CASES: list[tuple[Callable[[], Any], type[Exception], list[str]]] = [
    (lambda: gc.ones(2, 3) + gc.ones(4), ValueError, ["add(f32[2, 3], f32[4]): ", "dimension -1 is 3 and 4", "reshape or expand_dims"]),
    (lambda: gc.ones(2, 3) @ gc.ones(2, 3), ValueError, ["matmul(f32[2, 3], f32[2, 3]): ", "contracted and must be equal", "transpose"]),
    (lambda: gc.ones(2, 3) @ gc.tensor(1.0), ValueError, ["matmul(f32[2, 3], f32[]): ", "use * for numbers"]),
    (lambda: gc.ones(6).reshape(4, 2), ValueError, ["reshape(f32[6]): ", "[4, 2] has 8 elements and the tensor 6"]),
    (lambda: gc.ones(6).reshape(4, -1), ValueError, ["reshape(f32[6]): ", "not divisible by 4"]),
    (lambda: gc.ones(6).reshape(-1, -1), ValueError, ["more than one -1"]),
    (lambda: gc.concat([gc.ones(2, 3), gc.ones(2, 2)]), TypeError, ["concat(f32[2, 3], f32[2, 2]): ", "dimension 0 only", "slice, pad or reshape"]),
    (lambda: gc.stack([gc.ones(2), gc.ones(3)]), ValueError, ["stack(f32[2], f32[3]): ", "must have one shape"]),
    (lambda: gc.ones(2, dtype=gc.uint64) + gc.ones(2, dtype=gc.int8), TypeError, ["add(u64[2], i8[2]): ", "cast one of them with astype"]),
    (lambda: ~gc.ones(2), TypeError, ["bitwise_invert(f32[2]): ", "not f32", "cast the operand"]),
    (lambda: gc.ones(2) << 1, TypeError, ["bitwise_left_shift(f32[2], int): "]),
    (lambda: gc.bitcast(gc.ones(2), gc.int8), TypeError, ["bitcast(f32[2]): ", "use cast"]),
    (lambda: gc.broadcast_to(gc.ones(2, 3), (3, 2)), ValueError, ["broadcast_to(f32[2, 3]): ", "cannot be broadcast to [3, 2]"]),
    (lambda: gc.one_hot(gc.ones(2), 3), TypeError, ["one_hot(f32[2]): ", "astype(graphc.int64)"]),
    (lambda: gc.take(gc.ones(2), gc.tensor([5])), IndexError, ["take(f32[2], i64[1]): ", "index 5", "[-2, 2)"]),
    (lambda: gc.nn.functional.conv2d(gc.ones(1, 2, 4, 4), gc.ones(3, 1, 3, 3)), ValueError, ["channels"]),
]  # fmt: skip


@pytest.mark.parametrize(("f", "kind", "parts"), CASES, ids=lambda v: v[0][:40] if isinstance(v, list) else "")
def test_messages(f: Callable[[], Any], kind: type[Exception], parts: list[str]) -> None:
    with pytest.raises(kind) as info:
        f()
    text = str(info.value)
    assert [p for p in parts if p not in text] == [], text


@pytest.mark.parametrize(("f", "kind", "parts"), CASES[:15], ids=lambda v: v[0][:40] if isinstance(v, list) else "")
def test_the_users_line_is_named(f: Callable[[], Any], kind: type[Exception], parts: list[str]) -> None:
    with pytest.raises(kind) as info:
        f()
    at = f"tests/runtime/test_errors.py:{f.__code__.co_firstlineno}: "
    assert at in str(info.value)


@pytest.mark.parametrize(
    ("f", "text"),
    [
        (lambda: gc.ones(2, 3).sum(2), r"axis 2 is out of range for rank 2; it must be in \[-2, 1\]"),
        (lambda: gc.tensor(1.0).sum(0), "a rank-0 tensor has no axes"),
        (lambda: gc.ones(2).argmax(3), "axis 3 is out of range"),
        (lambda: gc.ones(2, 2).transpose(0, 5), "axis 5 is out of range"),
    ],
)
def test_axes_out_of_range(f: Callable[[], Any], text: str) -> None:
    with pytest.raises(IndexError, match=text):
        f()


@pytest.mark.parametrize(
    ("f", "kind", "text"),
    [
        (lambda: gc.sum(gc.ones(2, 2), axis=(0, 0)), ValueError, "name an axis twice"),
        (lambda: gc.sum(gc.ones(2), axis=1.5), TypeError, "an axis is an integer, not 1.5"),
        (lambda: gc.zeros(2.5), TypeError, "a shape consists of integers"),
        (lambda: gc.permute_dims(gc.ones(2, 3), (0, 0)), ValueError, "not a permutation"),
        (lambda: gc.squeeze(gc.ones(2, 1), 0), ValueError, "dimension 0 of .* is not 1"),
        (lambda: gc.exp("a"), TypeError, "exp: str is not a tensor or a number"),
        (lambda: gc.concat([]), ValueError, "nothing to concatenate"),
        (lambda: gc.einsum("ii->i", gc.ones(2, 2)), ValueError, "name each of the 2 dimensions"),
        (lambda: gc.ones(2).to(3), TypeError, "neither a device nor an element type"),
        (lambda: gc.dtype_of, AttributeError, "graphc has no attribute"),
        (lambda: setattr(gc.ones(2, requires_grad=True), "grad", gc.ones(3)), TypeError, "must have its type"),
    ],
)
def test_arguments(f: Callable[[], Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        f()


def test_tracebacks_are_short() -> None:
    try:
        gc.ones(2) + gc.ones(3)
    except ValueError as error:
        frames = traceback.extract_tb(error.__traceback__)
        assert len(frames) <= 5
        assert error.__cause__ is None and error.__suppress_context__


def test_own_faults_say_so_and_keep_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Any:
        raise KeyError("lost")

    op = dispatch.Op("broken", broken)
    with pytest.raises(gc.InternalError, match=r"broken\(f32\[2\]\): KeyError: 'lost'; this is a fault of graphc") as info:
        dispatch.apply(op, (gc.ones(2),))
    assert isinstance(info.value.__cause__, KeyError)


def test_user_frames() -> None:
    code, offset = errors.user_frame(1)
    assert code is test_user_frames.__code__
    line = test_user_frames.__code__.co_firstlineno
    assert errors.line_of(code, offset) == line + 1
    assert str(errors.loc_of((code, offset))) == f'"tests/runtime/test_errors.py":{line + 1}'
    assert errors.describe((code, offset)).endswith(f"test_errors.py:{line + 1}: code, offset = errors.user_frame(1)")


def test_nodes_know_their_line() -> None:
    x = gc.ones(2, requires_grad=True)
    y = x * x
    node = y.grad_fn
    assert node is not None and node.code is test_nodes_know_their_line.__code__
    assert errors.line_of(node.code, node.offset) == test_nodes_know_their_line.__code__.co_firstlineno + 2
    function = gc.trace_function(lambda a: gc.exp(a) + 1, ["f32[2]"]).function
    assert function.ops[0].loc is not None and function.ops[0].loc.file.endswith("test_errors.py")
