"""The same function of arrays, run by each library: compiled by graphc, torch.compile and JAX, eager by NumPy and PyTorch, as a
graph of ONNX operators by ONNX Runtime.

Every library gets the inputs in memory of its own, aligned as it likes it. NumPy's is aligned to 16 bytes only, so vectors of 64
bytes that others load from it straddle cache lines.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.case import Work

Function = Callable[..., Any]
Makers = dict[str, Callable[[], Work]]


def graphc(f: Function, *inputs: np.ndarray) -> Work:
    """`gc.compile(f)` on tensors."""
    import graphc as gc

    run, args = gc.compile(f), [gc.asarray(a, copy=True) for a in inputs]
    return lambda: run(*args)


def torch(f: Function, *inputs: np.ndarray) -> Work:
    """`f` as PyTorch runs it, without recording gradients."""
    import torch

    args = [torch.tensor(a) for a in inputs]

    def run() -> Any:
        with torch.no_grad():
            return f(*args)

    return run


def torch_compile(f: Function, *inputs: np.ndarray) -> Work:
    """`torch.compile(f)`."""
    import torch

    return globals()["torch"](torch.compile(f, dynamic=False), *inputs)  # type: ignore[no-any-return]


def jax(f: Function, *inputs: np.ndarray) -> Work:
    """`jax.jit(f)`, waiting for the result."""
    import jax
    import jax.numpy as jnp

    run, args = jax.jit(f), [jnp.asarray(a) for a in inputs]
    return lambda: jax.block_until_ready(run(*args))


def numpy(f: Function, *inputs: np.ndarray) -> Work:
    """`f` of NumPy arrays."""
    return lambda: f(*inputs)


def onnxruntime(make: Callable[[Graph], None], *inputs: np.ndarray) -> Work:
    """The operators that `make` appends to a graph with these inputs (x0, x1, ..), as one session; its inputs stay in place."""
    import onnxruntime as ort

    graph = Graph(inputs)
    make(graph)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads()
    options.log_severity_level = 3
    session = ort.InferenceSession(graph.model(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for i, a in enumerate(inputs):
        binding.bind_ortvalue_input(f"x{i}", ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(a)))
    for name in graph.outputs:
        binding.bind_output(name)

    def run() -> Any:
        session.run_with_iobinding(binding)
        return binding

    return run


def threads() -> int:
    """How many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


class Graph:
    """ONNX operators over given inputs, appended one by one. Constants are initialisers of the graph.

    Example:
        graph("Relu", "x0") gives the name of its result; graph.outputs are the names that the session returns,
        the last result if nothing else is said.
    """

    def __init__(self, inputs: Sequence[np.ndarray]) -> None:
        self._inputs, self._nodes, self._constants = inputs, list[Any](), list[Any]()
        self.outputs: tuple[str, ...] = ()

    def __call__(self, operator: str, *operands: str | np.ndarray, **attributes: Any) -> str:
        from onnx import helper, numpy_helper

        names = []
        for operand in operands:
            if isinstance(operand, str):
                names.append(operand)
                continue
            names.append(f"c{len(self._constants)}")
            self._constants.append(numpy_helper.from_array(operand, names[-1]))
        result = f"v{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, names, [result], **attributes))
        self.outputs = (result,)
        return result

    def model(self) -> bytes:
        """The graph in ONNX's file format."""
        from onnx import TensorProto, helper

        given = [
            helper.make_tensor_value_info(f"x{i}", helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for i, a in enumerate(self._inputs)
        ]
        results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in self.outputs]
        graph = helper.make_graph(self._nodes, "row", given, results, self._constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        return bytes(model.SerializeToString())


RUNNERS: dict[str, Callable[..., Work]] = {
    "graphc": graphc,
    "numpy": numpy,
    "torch": torch,
    "torch.compile": torch_compile,
    "jax": jax,
    "onnxruntime": onnxruntime,
}


def of(functions: Mapping[str, Callable[[], Function]], *inputs: np.ndarray) -> Makers:
    """A maker for each peer. functions: peer -> what gives its function (and imports its library)."""

    def maker(peer: str) -> Callable[[], Work]:
        return lambda: RUNNERS[peer](functions[peer](), *inputs)

    return {p: maker(p) for p in functions}


def namespaces(f: Callable[[Any], Function], names: tuple[str, ...] = tuple(RUNNERS)[:5]) -> dict[str, Callable[[], Function]]:
    """One text for all: `f(xp)` gives the function in terms of the array functions of `xp`."""

    def graphc_xp() -> Function:
        import graphc as gc

        return f(gc)

    def torch_xp() -> Function:
        import torch

        return f(torch)

    def jax_xp() -> Function:
        import jax.numpy as jnp

        return f(jnp)

    table = {"graphc": graphc_xp, "numpy": lambda: f(np), "torch": torch_xp, "torch.compile": torch_xp, "jax": jax_xp}
    return {p: table[p] for p in names}
