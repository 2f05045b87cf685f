"""A group of one element has a kernel without lanes; it gives the bits of the kernel for many."""

from __future__ import annotations

import graphc as gc
import numpy as np
import pytest
from graphc.codegen.lower.map import lower_map
from graphc.ir.function import Builder
from graphc.ir.types import TensorType
from graphc.runtime.ops_elementwise import BINARY, FUNCTIONS, UNARY

VALUES = np.array([0.3, -1.7, 2.5, 0.0, -0.0, 1e-40, np.inf, -np.inf, np.nan, 123456.7, 1.0, -1.0])


@pytest.mark.parametrize("dtype", [gc.float32, gc.float64, gc.bfloat16, gc.int32, gc.uint64, gc.bool], ids=str)
def test_one_element_as_many(dtype) -> None:
    values = VALUES if dtype.is_float else np.nan_to_num(VALUES, nan=3, posinf=100, neginf=-100)
    many = gc.asarray(values).astype(dtype)
    single = [gc.asarray(x) for x in many.numpy()]
    checked = 0
    for name in [*UNARY, *BINARY]:
        f = FUNCTIONS[name]
        operands = (many,) if name in UNARY else (many, gc.flip(many))
        try:
            wanted = f(*operands).numpy()
        except TypeError:
            continue  # not defined for this element type
        for i in range(len(values)):
            pair = (single[i],) if name in UNARY else (single[i], single[-1 - i])
            got = f(*pair).numpy()
            assert got.shape == ()
            # Which NaN it is is not part of the contract.
            same = got.tobytes() == wanted[i].tobytes() or (got != got and wanted[i] != wanted[i])
            assert same, f"{name}({', '.join(str(p) for p in pair)}) is {got}, among many {wanted[i]}"
            checked += 1
    assert checked > 100


@pytest.mark.parametrize("shape", ["", "1", "1, 1"])
def test_its_kernel_has_no_loop_over_elements(shape: str) -> None:
    b = Builder("f")
    x = b.param(TensorType.parse(f"f32[{shape}]"))
    (kernel,) = lower_map(b.build((b.emit("exp", x),))).kernels
    assert kernel.parallel.data == 1
    assert "vector" not in str(kernel.body) and "Vector" not in repr(kernel.body)
