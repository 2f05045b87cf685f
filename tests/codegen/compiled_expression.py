"""A scalar expression over variables as native code: maps arrays to an array, 16 lanes at a time."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from graphc.codegen.expr import Expr, children_first, index, load, replace, var
from graphc.codegen.llvm.emit import emit_kernel
from graphc.codegen.llvm.jit import compile_text
from graphc.codegen.llvm.jit import load as load_object
from graphc.codegen.llvm.target import Target, host_target
from graphc.codegen.loops import Buffer, For, Kernel, Store, Vector

Array = np.ndarray[Any, Any]
LANES = 16
_numbers = itertools.count()


class CompiledExpression:
    """`CompiledExpression(e)({"x": array})` is the value of e for each x, like `evaluate`."""

    def __init__(self, root: Expr, target: Target | None = None) -> None:
        self.result = Buffer("result", root.dtype, "out")
        variables = [e for e in children_first((root,)) if e.op == "var"]
        self.inputs = {e.data: Buffer(e.data, e.dtype, "in") for e in variables}
        block, lane = var("block"), var("lane")
        position = block * LANES + lane
        value = replace(root, {e: load(self.inputs[e.data], position) for e in variables})
        store = Store(self.result, position, value)
        loop = For(block, var("begin"), var("end"), (Vector(lane, LANES, (store,)),), index(1))
        name = f"expression{next(_numbers)}"
        buffers = (*self.inputs.values(), self.result)
        kernel = Kernel(name, buffers, (), index(0), index(0), (loop,))
        address = load_object(compile_text(emit_kernel(kernel, target or host_target()), target), name)
        kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
        self.function = kind(address)

    def __call__(self, env: Mapping[str, Array], out: Array | None = None) -> Array:
        """All arrays have one length, a multiple of 16 if `out` is given, else any."""
        (count,) = {len(a) for a in env.values()}
        blocks = -(-count // LANES)
        if out is None:
            out = np.empty(blocks * LANES, self.result.dtype.numpy)
            env = {k: np.resize(v, blocks * LANES) for k, v in env.items()}
        held = [np.ascontiguousarray(env[name]) for name in self.inputs]
        words = [a.ctypes.data for a in held] + [out.ctypes.data]
        args = (ctypes.c_int64 * len(words))(*words)
        self.function(ctypes.addressof(args), 0, blocks, None)
        return out[:count]
