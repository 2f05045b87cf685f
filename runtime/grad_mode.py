"""What the current thread is doing: whether operations are differentiable, and which tracer listens.

Invariants: everything here belongs to one thread; `state.tracing` counts tracers of all threads so that
dispatch asks a thread-local question only when there is one.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from graphc.runtime.trace import Tracer

F = TypeVar("F", bound=Callable[..., Any])


class Local(threading.local):
    """Per thread: `grad` (are operations recorded for gradients) and `tracer` (the innermost, or None)."""

    grad: bool = True
    inference: bool = False
    tracer: Tracer | None = None


class Tracing:
    """`active` is the number of tracers in the process.

    `stamp` is another object whenever a tensor that was made before got another type, memory or record: whoever finds
    the stamp that it noted need not look at tensors again. It is written after the change.
    """

    __slots__ = ("active", "stamp")

    def __init__(self) -> None:
        self.active = 0
        self.stamp = object()


local = Local()
state = Tracing()


def is_grad_enabled() -> bool:
    """Whether operations on tensors that require gradients are recorded."""
    return local.grad


class _GradMode:
    """A context manager and decorator that sets the mode and puts the old one back."""

    mode = True
    inference: bool | None = None

    def __init__(self) -> None:
        self._saved: list[tuple[bool, bool]] = []

    def __enter__(self) -> None:
        self._saved.append((local.grad, local.inference))
        local.grad = self.mode
        if self.inference is not None:
            local.inference = self.inference

    def __exit__(self, *exc: object) -> None:
        local.grad, local.inference = self._saved.pop()

    def __call__(self, f: F) -> F:
        @functools.wraps(f)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with self._fresh():
                return f(*args, **kwargs)

        return wrapped  # type: ignore[return-value]

    def _fresh(self) -> _GradMode:
        return type(self)()


class no_grad(_GradMode):
    """Nothing inside is recorded for gradients. A context manager and a decorator.

    >>> import graphc as gc
    >>> w = gc.ones((2,), requires_grad=True)
    >>> with gc.no_grad():
    ...     y = w * 2
    >>> y.requires_grad
    False
    """

    mode = False


class enable_grad(_GradMode):
    """Recording for gradients, also inside `no_grad`. A context manager and a decorator."""

    mode = True


class inference_mode(_GradMode):
    """As `no_grad`, and says that the results will never be differentiated."""

    mode = False
    inference = True


class set_grad_enabled(_GradMode):
    """Recording for gradients as `mode` says; works as a statement and as a context manager."""

    def __init__(self, mode: bool) -> None:
        super().__init__()
        self.mode = bool(mode)
        self._saved.append((local.grad, local.inference))
        local.grad = self.mode

    def __enter__(self) -> None:
        local.grad = self.mode

    def _fresh(self) -> _GradMode:
        local.grad, local.inference = self._saved[-1]
        return set_grad_enabled(self.mode)


def is_inference() -> bool:
    """Whether the current thread is inside `inference_mode`."""
    return local.inference
