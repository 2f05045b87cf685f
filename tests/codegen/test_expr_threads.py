"""Expressions are one object each, whichever thread builds them: two threads may compile at the same time."""

from __future__ import annotations

import sys
import threading

from graphc.codegen import expr as e


def test_threads_get_the_same_expressions() -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for run in range(60):
            built: list[e.Expr] = []
            start = threading.Barrier(4)

            def build(run: int = run, built: list[e.Expr] = built, start: threading.Barrier = start) -> None:
                start.wait()
                y = e.var(f"only_here_{run}")
                for k in range(60):
                    y = y * 3 + k
                built.append(y)

            threads = [threading.Thread(target=build) for _ in range(4)]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
            assert all(y is built[0] for y in built), run
    finally:
        sys.setswitchinterval(interval)


def test_threads_forget_only_what_is_gone() -> None:
    """What one thread forgets another may be making anew."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    failed: list[object] = []
    hook, sys.unraisablehook = sys.unraisablehook, lambda told: failed.append(told.exc_value)
    try:

        def build() -> None:
            for _ in range(15000):
                y = e.var("forgotten") * 3
                if e.var("forgotten") * 3 is not y:
                    failed.append(y)
                del y

        threads = [threading.Thread(target=build) for _ in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    finally:
        sys.setswitchinterval(interval)
        sys.unraisablehook = hook
    assert not failed
