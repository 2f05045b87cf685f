"""graphc: a compiler-style deep-learning framework.

`import graphc as gc` is light: names are loaded when they are first used, and neither LLVM nor the
parser of the text form is loaded before something is compiled or parsed.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

# Public modules and where they live: `import graphc.nn` gives `graphc.runtime.nn`.
_MODULES = {
    "autograd": "graphc.runtime.autograd",
    "cuda": "graphc.runtime.cuda",
    "data": "graphc.runtime.data",
    "io": "graphc.runtime.io",
    "losses": "graphc.runtime.losses",
    "memory": "graphc.runtime.memory",
    "metrics": "graphc.runtime.metrics",
    "nn": "graphc.runtime.nn",
    "optim": "graphc.runtime.optim",
    "random": "graphc.runtime.random",
    "transforms": "graphc.transforms",
}
# Public names and the module that has them; the functions of tensors come from `graphc.runtime.ops` besides.
_NAMES = {
    "graphc.runtime.tensor": ("Tensor", "Parameter", "no_grad", "enable_grad", "inference_mode", "set_grad_enabled"),
    "graphc.runtime.grad_mode": ("is_grad_enabled",),
    "graphc.runtime.composite": ("composite",),
    "graphc.runtime.compiled": ("compile",),
    "graphc.runtime.trace": ("trace_function",),
    "graphc.runtime.random": (
        "Generator", "manual_seed", "rand", "randn", "randint", "randperm", "rand_like", "randn_like", "bernoulli",
        "multinomial", "uniform", "normal",
    ),
    "graphc.runtime.io": ("save", "load"),
    "graphc.runtime.device": ("device", "get_default_device", "set_default_device"),
    "graphc.runtime.precision": ("get_matmul_precision", "set_matmul_precision"),
    "graphc.runtime.threads": ("set_num_threads", "get_num_threads"),
    "graphc.runtime.errors": ("InternalError", "AbstractValueError", "OutOfMemoryError"),
    "graphc.transforms": ("grad", "value_and_grad", "vjp", "jvp"),
    "graphc.ir.types": ("TensorType",),
}  # fmt: skip
_HOME = {name: module for module, names in _NAMES.items() for name in names}
_DTYPES = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "bfloat16", "float32",
    "float64",
)  # fmt: skip
# PyTorch's names of element types.
_DTYPE_NAMES = {
    "half": "float16", "float": "float32", "double": "float64", "short": "int16", "int": "int32", "long": "int64",
}  # fmt: skip
_CONSTANTS = {
    "pi": 3.141592653589793,
    "e": 2.718281828459045,
    "inf": float("inf"),
    "nan": float("nan"),
    "newaxis": None,
}


def __getattr__(name: str) -> Any:
    value = _load(name)
    globals()[name] = value
    return value


def _load(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name in _HOME:
        # Methods are attached to tensors by this module, whichever name is used first.
        importlib.import_module("graphc.runtime.tensor")
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _DTYPES or name in _DTYPE_NAMES:
        return importlib.import_module("graphc.ir.types").dtype(_DTYPE_NAMES.get(name, name))
    if name in _CONSTANTS:
        return _CONSTANTS[name]
    if name == "__all__":
        # What `help(graphc)` lists; made when it is asked for, since it loads the runtime.
        return [n for n in __dir__() if not n.startswith("__")]
    if name.startswith("__"):
        raise AttributeError(name)
    importlib.import_module("graphc.runtime.tensor")
    functions = importlib.import_module("graphc.runtime.ops").NAMES
    if name in functions:
        return functions[name]
    # Given a name, Python adds no guess of its own to the message.
    raise AttributeError(f"graphc has no attribute {name!r}{_hint(name)}", name=name)


# Where functions are that PyTorch has at the top, beside the methods of tensors.
_ELSEWHERE = {"graphc.nn.functional": "graphc.runtime.nn.functional", "graphc.nn": "graphc.runtime.nn"}


def _hint(name: str) -> str:
    """Where else there is something of this name, or what else is spelled nearly so."""
    for public, module in _ELSEWHERE.items():
        if name in dir(importlib.import_module(module)):
            return f"; it is {public}.{name}"
    if callable(getattr(importlib.import_module("graphc.runtime.tensor").Tensor, name, None)):
        return f"; it is a method: x.{name}(...)"
    import difflib

    close = difflib.get_close_matches(name, __dir__())
    return f"; did you mean {' or '.join(close)}?" if close else ""


def __dir__() -> list[str]:
    importlib.import_module("graphc.runtime.tensor")
    functions = importlib.import_module("graphc.runtime.ops").NAMES
    return sorted({*_MODULES, *_HOME, *_DTYPES, *_DTYPE_NAMES, *_CONSTANTS, *functions, "__version__"})


class _Alias:
    """Finder and loader: lets `import graphc.nn.functional` give the module `graphc.runtime.nn.functional` itself.

    Not derived from `importlib.abc`, whose import would take longer than all else here.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith("graphc.") or self._real(fullname) is None:
            return None
        return importlib.machinery.ModuleSpec(fullname, self)  # type: ignore[arg-type]

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        real = self._real(spec.name)
        assert real is not None
        module = importlib.import_module(real)
        self._specs[spec.name] = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # The import system has just given the module the alias's spec.
        spec = module.__spec__
        if spec is not None:
            module.__spec__ = self._specs.pop(spec.name)

    def __init__(self) -> None:
        self._specs: dict[str, importlib.machinery.ModuleSpec | None] = {}

    @staticmethod
    def _real(fullname: str) -> str | None:
        first, _, rest = fullname.removeprefix("graphc.").partition(".")
        home = _MODULES.get(first)
        if home is None or home == fullname:
            return None
        return f"{home}.{rest}" if rest else home


sys.meta_path.insert(0, _Alias())
