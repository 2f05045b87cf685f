"""What is measured on a CUDA device. Each row is one text for graphc and PyTorch where their names agree."""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import gpt
from benchmarks.case import Case, Clocked, Figure, Registry, Row, Size

rows = Registry()
COPY = 0.9
FUSED, PRODUCTS, ATTENTION, STEPS, CALLS, COMPILE = (
    "fused kernels past L2", "matrix products", "attention", "training steps", "launches", "compile time"
)  # fmt: skip
_AT_COPY = Figure("90 % of copy bandwidth", of_limit=1 / COPY)


def row(name: str, family: str, figure: Figure | None = None) -> Callable[[Callable[[Size], Case]], Callable[[Size], Case]]:
    """Register a function `Size -> Case`."""

    def register(make: Callable[[Size], Case]) -> Callable[[Size], Case]:
        rows.add(Row(name, family, make, figure=figure))
        return make

    return register


def of(f: Callable[[Any, Any], Callable[..., Any]], *inputs: np.ndarray, dtype: str = "", grad: int = 0) -> dict[str, Any]:
    """The makers for `f(xp, functional)` of arrays: graphc compiled, PyTorch eager and compiled.

    dtype: element type of the floating inputs. grad: with the gradients of the sum's first `grad` inputs, which the work returns too.
    """

    def graphc() -> Callable[[], Any]:
        import graphc as gc

        args = [gc.asarray(a, device="cuda") for a in inputs]
        if dtype:
            args = [a.to(dtype=getattr(gc, dtype)) if a.dtype.is_float else a for a in args]
        body = f(gc, gc.nn.functional)
        if grad:

            def both(*xs: Any) -> Any:
                y, pull = gc.vjp(lambda *leaves: body(*leaves, *xs[grad:]), *xs[:grad])
                found = pull(gc.ones_like(y))
                return (y, *(found if isinstance(found, tuple) else (found,)))

            run = gc.compile(both)
        else:
            run = gc.compile(body)
        return lambda: run(*args)

    def torch(compiled: bool) -> Callable[[], Any]:
        torch = torch_on_device()
        args = [torch.from_numpy(a).cuda() for a in inputs]
        if dtype:
            args = [a.to(getattr(torch, dtype)) if a.is_floating_point() else a for a in args]
        body = f(torch, torch.nn.functional)
        run = torch.compile(body, dynamic=False) if compiled else body
        if not grad:

            def forward() -> Any:
                with torch.no_grad():
                    return run(*args)

            return forward
        leaves = [a.requires_grad_() for a in args[:grad]]

        def both() -> Any:
            y = run(*args)
            return (y, *torch.autograd.grad(y, leaves, torch.ones_like(y)))

        return both

    return {"graphc": graphc, "torch": lambda: torch(False), "torch.compile": lambda: torch(True)}


def torch_on_device() -> Any:
    """PyTorch; raises `ModuleNotFoundError` where it cannot use the device, a simulated one for example."""
    import torch

    if not torch.cuda.is_available():
        raise ModuleNotFoundError("this PyTorch has no CUDA device", name="torch")
    return torch


def synchronise() -> None:
    """Wait for the device, for every library that is loaded."""
    import graphc as gc

    if gc.cuda.is_available():
        gc.cuda.synchronize()
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


@row("chain of 10 elementwise, 64 M", FUSED, _AT_COPY)
def chain(size: Size) -> Case:
    x = normal(size(1 << 26, 64))

    def text(xp: Any, _: Any) -> Any:
        def f(x: Any) -> Any:
            a = x * 1.5 + 0.25
            b = xp.abs(a - x) * a
            c = xp.tanh(b * b) - 2.0 * a
            return (c + x) * 0.125

        return f

    return Case(of(text, x), bytes=2.0 * x.nbytes, limit="memory", tolerance=1e-5)


@row("gelu, 64 M, bf16", FUSED, _AT_COPY)
def gelu(size: Size) -> Case:
    x = normal(size(1 << 26, 64))
    return Case(of(lambda _, F: F.gelu, x, dtype="bfloat16"), bytes=1.0 * x.nbytes, limit="memory", tolerance=2e-2)


@row("softmax (32768, 1024)", FUSED, _AT_COPY)
def softmax(size: Size) -> Case:
    x = normal(*size((32768, 1024), (4, 8)))
    return Case(of(lambda _, F: lambda v: F.softmax(v, dim=-1), x), bytes=2.0 * x.nbytes, limit="memory", tolerance=1e-5)


@row("softmax (4096, 16384)", FUSED, _AT_COPY)
def softmax_long(size: Size) -> Case:
    x = normal(*size((4096, 16384), (4, 8)))
    return Case(of(lambda _, F: lambda v: F.softmax(v, dim=-1), x), bytes=2.0 * x.nbytes, limit="memory", tolerance=1e-5)


@row("layer norm forward + backward (32768, 1024)", FUSED, _AT_COPY)
def layer_norm(size: Size) -> Case:
    n, c = size((32768, 1024), (4, 8))
    x, w, b = normal(n, c), normal(c), normal(c)
    # x is read forwards and backwards (it is larger than L2), y and dx are written.
    makers = of(lambda _, F: lambda x, w, b: F.layer_norm(x, (c,), w, b), x, w, b, grad=3)
    return Case(makers, bytes=4.0 * x.nbytes, limit="memory", tolerance=1e-4)


@row("cross entropy forward + backward (16384, 32000)", FUSED, _AT_COPY)
def cross_entropy(size: Size) -> Case:
    n, c = size((16384, 32000), (4, 8))
    x, t = normal(n, c), np.random.default_rng(1).integers(0, c, n)
    makers = of(lambda _, F: F.cross_entropy, x, t, grad=1)
    return Case(makers, bytes=3.0 * x.nbytes, limit="memory", tolerance=1e-4)


@row("sum over axis 0 of (16384, 16384)", FUSED, _AT_COPY)
def columns(size: Size) -> Case:
    x = normal(*size((16384, 16384), (4, 8)))
    return Case(of(lambda xp, _: lambda v: v.sum(0), x), bytes=1.0 * x.nbytes, limit="memory", tolerance=1e-4)


def _product(size: Size, m: int, n: int, k: int, dtype: str, epilogue: bool = False) -> Case:
    m, n, k = size((m, n, k), (16, 16, 16))
    a, b, c = normal(m, k), normal(k, n), normal(n)
    if epilogue:
        makers = of(lambda _, F: lambda a, b, c: F.gelu(a @ b + c, approximate="tanh"), a, b, c, dtype=dtype)
    else:
        makers = of(lambda *_: lambda a, b: a @ b, a, b, dtype=dtype)
    return Case(makers, flops=2.0 * m * n * k, tolerance=1e-4 if dtype == "float32" else 2e-2)


@row("bf16 8192 cubed", PRODUCTS, Figure("85 % of cuBLAS", faster_than=("torch",), share=0.85))
def bf16_large(size: Size) -> Case:
    return _product(size, 8192, 8192, 8192, "bfloat16")


@row("f16 4096 cubed", PRODUCTS, Figure("85 % of cuBLAS", faster_than=("torch",), share=0.85))
def f16_medium(size: Size) -> Case:
    return _product(size, 4096, 4096, 4096, "float16")


@row("bf16 4096 x 4096 x 1024, bias + gelu", PRODUCTS, Figure("faster than cuBLAS and a kernel", faster_than=("torch",)))
def bf16_epilogue(size: Size) -> Case:
    return _product(size, 4096, 4096, 1024, "bfloat16", epilogue=True)


@row("float32 (fma) 4096 cubed", PRODUCTS, Figure("90 % of cuBLAS", faster_than=("torch",), share=0.9))
def f32_medium(size: Size) -> Case:
    return _product(size, 4096, 4096, 4096, "float32")


def _attention(size: Size, head: int, backward: bool) -> Case:
    b, h, t, d = size((4, 16, 4096, head), (1, 2, 8, 16))
    q, k, v = (normal(b, h, t, d) for _ in range(3))

    def text(_: Any, F: Any) -> Any:
        return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)

    flops = 2.0 * b * h * t * t * d * (3.5 if backward else 1.0)
    return Case(of(text, q, k, v, dtype="bfloat16", grad=3 if backward else 0), flops=flops, tolerance=5e-2)


for _head, _backward in itertools.product((64, 128), (False, True)):
    _name = f"causal bf16, head {_head}, T = 4096, forward" + (" + backward" if _backward else "")
    row(_name, ATTENTION, Figure("70 % of FlashAttention", faster_than=("torch",), share=0.7))(
        lambda size, head=_head, backward=_backward: _attention(size, head, backward)  # type: ignore[misc]
    )


@row("GPT, 12 layers of 768, 16 x 1024 tokens, bf16", STEPS, Figure("faster than torch.compile", faster_than=("torch.compile",)))
def gpt_step(size: Size) -> Case:
    sizes = size(gpt.GPT2, gpt.TOY)
    makers = {
        "graphc": lambda: gpt.graphc(sizes, "cuda", "bfloat16"),
        "torch": lambda: torch_on_device() and gpt.torch(sizes, "cuda", "bfloat16"),
        "torch.compile": lambda: torch_on_device() and gpt.torch(sizes, "cuda", "bfloat16", compiled=True),
    }
    return Case(makers, flops=sizes.flops, tolerance=5e-2)


@row("100 dependent small kernels", CALLS, Figure("under 20 us a call", seconds=20e-6))
def many_launches(size: Size) -> Case:
    count = size(100, 4)
    x, w = normal(64), normal(64, 64) / 8

    def text(*_: Any) -> Any:
        def f(x: Any, w: Any) -> Any:
            for _ in range(count):
                x = w @ x
            return x

        return f

    # The kernels take their own time; what the host spends on one call is timed without waiting for them.
    def host(work: Callable[[], Any]) -> Clocked:
        for _ in range(5):
            work()

        def run() -> float:
            times = []
            for _ in range(20):
                synchronise()
                start = time.perf_counter()
                work()
                times.append(time.perf_counter() - start)
            synchronise()
            return statistics.median(times)

        return Clocked(run)

    makers = of(text, x, w)
    return Case({name: (lambda make=make: host(make())) for name, make in makers.items()}, tolerance=None)


_COMPILE = """
import time
from benchmarks.gpu_rows import ten_kernels
program, builder = ten_kernels()
from graphc.codegen.cuda.program import compile_function
from graphc.codegen.cuda.target import HOPPER
if {warm}:
    from graphc.codegen.cuda import kernels
    from graphc.codegen import cache
    units = compile_function(program, HOPPER, builder).units
    kernels.forget()
    cache.forget()
    start = time.perf_counter()
    if {warm} == "read":
        for unit in units:
            assert kernels._unit(unit.name).binary == unit.binary
    else:
        compile_function(program, HOPPER, builder)
    print(time.perf_counter() - start)
else:
    built = []
    class Timed:
        kind = builder.kind + " timed"
        def build(self, *args):
            start = time.perf_counter()
            data = builder.build(*args)
            built.append((start, time.perf_counter()))
            return data
    launches = compile_function(program, HOPPER, Timed()).launches
    assert len(launches) == 10, len(launches)
    # Units are built side by side.
    print(max(b for _, b in built) - min(a for a, _ in built))
"""


def ten_kernels() -> tuple[Any, Any]:
    """A function of ten fused kernels of the usual kinds, and what builds cubins."""
    import graphc as gc
    from graphc.codegen.cuda.compiler import CubinBuilder
    from graphc.runtime.trace import trace_function

    F = gc.nn.functional

    def ten(gelu: Any, silu: Any, chain: Any, soft: Any, log_soft: Any, norm: Any, weight: Any, bias: Any, rows: Any,
            columns: Any, best: Any, turned: Any) -> Any:  # fmt: skip
        return (
            F.gelu(gelu), F.silu(silu) * 2.0, gc.tanh(chain * 1.5 + 0.25) - chain, F.softmax(soft, dim=-1),
            F.log_softmax(log_soft, dim=-1), F.layer_norm(norm, (1024,), weight, bias), gc.sum(rows, axis=1),
            gc.sum(columns, axis=0), gc.argmax(best, axis=1), gc.exp(gc.permute_dims(turned, (1, 0))),
        )  # fmt: skip

    shapes = ["513, 1024", "514, 1024", "515, 1024", "512, 1024", "512, 1000", "512, 1024", "1024", "1024", "512, 768",
              "512, 1280", "512, 640", "512, 2048"]  # fmt: skip
    return trace_function(ten, [f"f32[{s}]" for s in shapes]).function, CubinBuilder()


def _compile_row(warm: str) -> Case:
    def run() -> float:
        # A new process with an empty folder each time: nothing is remembered.
        with tempfile.TemporaryDirectory() as folder:
            environment = {**os.environ, "GRAPHC_CACHE_DIR": folder}
            text = _COMPILE.format(warm=repr(warm))
            done = subprocess.run([sys.executable, "-c", text], env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
        return float(done.stdout.split()[-1])

    return Case({"graphc": lambda: Clocked(run)}, tolerance=None)


@row("text to cubin, 10 fused kernels", COMPILE, Figure("under 300 ms", seconds=0.3))
def cold(size: Size) -> Case:
    return _compile_row("")


@row("their cubins from the cache on disk", COMPILE, Figure("1 ms", seconds=1e-3))
def cached(size: Size) -> Case:
    return _compile_row("read")


@row("the same program from the cache, planning included", COMPILE)
def warm(size: Size) -> Case:
    return _compile_row("plan")
