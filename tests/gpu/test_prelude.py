"""What kernels may call, on a GPU: conversions over all of their operands, and the simulation's kernels against the simulation.

These say whether codegen/c/simulate.h means what the hardware does; tests/codegen/test_simulate.py says what it means.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import graphc as gc
import ml_dtypes
import numpy as np
import pytest
from graphc.codegen.c.prelude import functions, header_functions, used
from graphc.runtime.cuda.build import builder
from graphc.runtime.cuda.driver import Node
from graphc.runtime.cuda.parameters import Parameters

from tests.codegen import test_simulate as simulated

pytestmark = pytest.mark.gpu
# A smaller share of all operands, for a device that is none (tests/gpu/test_fake_driver.py).
SHARE = int(os.environ.get("GRAPHC_TEST_SHARE", "1"))

_PLAIN = "".join(
    header_functions("numbers.h")[name].replace("INLINE", "static __device__").replace(f" {name}(", f" plain_{name}(")
    for name in ("float_to_half", "half_to_float", "float_to_bfloat")
)
CONVERSIONS = (
    _PLAIN
    + """
// c: how many operands give other bits than integer arithmetic does; NaN for NaN.
extern "C" __global__ void conversions(unsigned *c, unsigned long long first, unsigned long long step) {
    for (unsigned long long i = first + (blockIdx.x * 256ull + threadIdx.x) * step; i < 1ull << 32; i += gridDim.x * 256ull * step) {
        const float x = bits_float((unsigned)i);
        if (i < 1u << 16) {
            const float y = half_to_float((unsigned short)i), z = plain_half_to_float((unsigned short)i);
            if (float_bits(y) != float_bits(z) && (y == y || z == z)) atomicAdd(c, 1u);
        }
        if (x != x) {
            if ((float_to_half(x) & 0x7FFFu) <= 0x7C00u || (float_to_bfloat(x) & 0x7FFFu) <= 0x7F80u) atomicAdd(c + 3, 1u);
            continue;
        }
        if (float_to_half(x) != plain_float_to_half(x)) atomicAdd(c + 1, 1u);
        if (float_to_bfloat(x) != plain_float_to_bfloat(x)) atomicAdd(c + 2, 1u);
    }
}
"""
)


def with_prelude(text: str) -> str:
    return functions(used(text, "cuda"), "cuda") + text


@pytest.fixture(scope="module")
def load() -> Callable[[str], Any]:
    """load(text): the module of a CUDA C text on the device."""
    found: dict[str, Any] = {}

    def loaded(text: str) -> Any:
        if text not in found:
            context = gc.device("cuda").context
            binary = builder(context.driver.kind).build(with_prelude(text), (), context.target)
            found[text] = context.driver.load(binary)
        return found[text]

    return loaded


def call(module: Any, name: str, *arguments: Any, blocks: int = 1, threads: int = 32, shared: int = 0) -> list[np.ndarray[Any, Any]]:
    """The arrays among the arguments after a launch; integers are ints of 4 bytes, NumPy's what they are."""
    context = gc.device("cuda").context
    driver, stream = context.driver, context.stream()
    arrays = [a for a in arguments if isinstance(a, np.ndarray) and a.ndim]
    places = {id(a): driver.allocate(a.nbytes) for a in arrays}
    parameters = Parameters([8 if id(a) in places else np.asarray(a).itemsize if isinstance(a, np.generic) else 4 for a in arguments])
    for start, a in zip(parameters.starts, arguments, strict=True):
        parameters.words[start] = places.get(id(a), 0) or int(a)
    for a in arrays:
        driver.copy_in(places[id(a)], a.ctypes.data, a.nbytes, stream)
    driver.launch(Node(driver.function(module, name, shared), blocks, threads, shared, parameters), stream)
    out = [np.empty_like(a) for a in arrays]
    for a, o in zip(arrays, out, strict=True):
        driver.copy_out(o.ctypes.data, places[id(a)], a.nbytes, stream)
        driver.free(places[id(a)])
    return out


def test_conversions(load: Callable[[str], Any]) -> None:
    """The hardware's conversions to and from 16 bits are those of numbers.h, for every float32."""
    wrong = call(load(CONVERSIONS), "conversions", np.zeros(4, "u4"), np.uint64(0), np.uint64(SHARE), blocks=2048 // SHARE + 1, threads=256)
    assert wrong[0].tolist() == [0, 0, 0, 0], "half_to_float, float_to_half, float_to_bfloat, NaN"


@pytest.fixture(scope="module")
def library() -> Any:
    from graphc.codegen.cuda import simulate

    return simulate.library(simulated.TEXT, simulated.cache_folder())


def whole(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Small integers, whose sums are exact in any order."""
    return np.random.default_rng([seed, *shape]).integers(-8, 9, shape).astype("f4")


A, B = np.random.default_rng(1).standard_normal((2, 4096)).astype("f4")
HALF = {"bf16": ml_dtypes.bfloat16, "f16": np.float16}
CASES: dict[str, tuple[tuple[Any, ...], dict[str, int]]] = {
    "add": ((A[:1000], B[:1000], np.zeros(1000, "f4"), np.int64(1000)), {"blocks": 3, "threads": 256}),
    "sum": ((A[:1000], np.zeros(1, "f4"), 1000), {"threads": 128}),
    "tiles": ((A[:2304].copy(), B[:2304].copy(), np.zeros(2304, "f4"), 48, 3), {"blocks": 9, "threads": 256}),
    "warps": ((np.arange(64, dtype="i4"), np.zeros(64, "i4"), 1), {"threads": 64}),
    "dynamic_at": ((np.zeros(32, "f4"), 0), {"shared": 1024}),
    "pipeline": ((A[:160].copy(), np.zeros(160, "f4"), 5, 0), {}),
    "zero_fill": ((A[:128].copy(), np.zeros(128, "f4"), 12), {}),
    "product_bf16": ((whole(256).astype(HALF["bf16"]).view("u2"), whole(128, seed=1).astype(HALF["bf16"]).view("u2"), whole(128, seed=2)), {}),
    "product_f16": ((whole(256).astype(HALF["f16"]).view("u2"), whole(128, seed=1).astype(HALF["f16"]).view("u2"), whole(128, seed=2)), {}),
    "product_transposed": ((whole(256).astype(HALF["bf16"]).view("u2"), whole(128, seed=1).astype(HALF["bf16"]).view("u2"), np.zeros(128, "f4")), {}),
    "product_tf32": ((whole(128).view("u4"), whole(64, seed=1).view("u4"), whole(128, seed=2)), {}),
    **{
        f"shuffle_{kind}": ((np.arange(64).astype(numpy), np.zeros(192, numpy), 3, 8), {"threads": 64})
        for kind, numpy in (("i8", "i1"), ("u16", "u2"), ("i32", "i4"), ("u64", "u8"), ("f32", "f4"), ("f64", "f8"))
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_as_simulated(load: Callable[[str], Any], library: Any, name: str) -> None:
    """The bits of the simulation. Products are of small integers: the hardware adds in an order of its own."""
    import ctypes

    arguments, how = CASES[name]
    words = [ctypes.c_longlong(int(a)) if isinstance(a, np.int64) else a for a in arguments]
    expected = simulated.call(library, name, *words, **how)
    got = call(load(simulated.TEXT), name, *arguments, **how)
    for a, b in zip(expected, got, strict=True):
        assert a.tobytes() == b.tobytes()
