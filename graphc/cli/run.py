"""run IR text on arrays

Takes a .npy file for each parameter of the first function in order, or .npz files with arrays by parameter name,
or random numbers. Prints the results, or writes them to a .npz file as result0, result1, ...

    graphc run net.gir --input x.npy
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from graphc.cli.failure import Failure, choose

if TYPE_CHECKING:
    import numpy as np
    from graphc.ir.function import Function
    from graphc.ir.types import TensorType

BACKENDS = ("llvm", "interpret")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE.gir")
    parser.add_argument("--input", action="append", default=[], metavar="FILE", help="a .npy file for a parameter, or a .npz")
    parser.add_argument("--random", type=int, metavar="SEED", help="fill the parameters that no file gives with random numbers")
    parser.add_argument("--size", action="append", default=[], metavar="NAME=N", help="size of a symbolic dimension")
    parser.add_argument("--backend", default="llvm", metavar="NAME", help=f"{' or '.join(BACKENDS)} (default: llvm)")
    parser.add_argument("-o", "--output", metavar="FILE", help=".npz file for the results, or .npy for a single one")


def main(options: argparse.Namespace) -> None:
    from graphc.cli.opt import read_module
    from graphc.ir.interpret import bind_symbols, specialize

    backend = choose(options.backend, BACKENDS, "backend", "graphc run")
    f = read_module(options.file).entry
    sizes = _sizes(options.size)
    args = _arguments(f, options, sizes)
    try:
        concrete = specialize(f, bind_symbols(f, [a.shape for a in args], sizes))
    except ValueError as error:
        raise Failure(str(error).replace("pass it in symbols=", "give it with --size NAME=N")) from error
    try:
        results = _interpreted(concrete, args) if backend == "interpret" else _compiled(concrete, args)
    except (IndexError, TypeError, ValueError) as error:
        raise Failure(str(error)) from error
    _give(results, options.output)


def _sizes(texts: Sequence[str]) -> dict[str, int]:
    out = {}
    for text in texts:
        name, equals, number = text.partition("=")
        if not equals or not number.strip().isdigit():
            raise Failure(f"--size {text!r} gives no size; write for example --size B=32")
        out[name.strip()] = int(number)
    return out


def _arguments(f: Function, options: argparse.Namespace, sizes: dict[str, int]) -> list[np.ndarray[Any, Any]]:
    import numpy as np

    found: dict[str, np.ndarray[Any, Any]] = {}
    rest = list(f.param_names)
    for path in options.input:
        for name, array in _read(path).items():
            if name:
                name = choose(name, f.param_names, "parameter", f"@{f.name}")
            elif rest:
                name = rest[0]
            else:
                raise Failure(f"{path} is one input too many: @{f.name} has {len(f.params)} parameters")
            if name not in rest:
                raise Failure(f"{path} gives the parameter {name} a second time")
            rest.remove(name)
            found[name] = array
    if rest and options.random is None:
        names = ", ".join(f"{n}: {p.type}" for n, p in zip(f.param_names, f.params, strict=True) if n in rest)
        raise Failure(f"@{f.name} needs --input for {names} (or --random SEED)")
    rng = np.random.default_rng(options.random)
    types = dict(zip(f.param_names, f.param_types, strict=True))
    arrays = {n: _random(rng, n, types[n], sizes) for n in rest}
    arrays.update({n: _typed(a, n, types[n]) for n, a in found.items()})
    return [arrays[n] for n in f.param_names]


def _read(path: str) -> dict[str, np.ndarray[Any, Any]]:
    """Arrays by name; the array of a .npy file has the name ""."""
    import numpy as np
    from graphc.cli.files import reason

    try:
        data = np.load(path, allow_pickle=False)
        return {"": data} if isinstance(data, np.ndarray) else dict(data)
    except OSError as error:
        raise Failure(f"cannot read {path}: {reason(error)}") from error
    except (ValueError, EOFError) as error:
        raise Failure(f"cannot read {path}: it is no .npy or .npz file of numbers") from error


def _typed(a: np.ndarray[Any, Any], name: str, t: TensorType) -> np.ndarray[Any, Any]:
    if t.dtype.short == "bf16" and a.dtype.kind == "V" and a.dtype.itemsize == 2:
        # NumPy's files do not know bfloat16 and keep its bits.
        a = a.view(t.dtype.numpy)
    if a.dtype != t.dtype.numpy:
        raise Failure(f"the array for {name} is {a.dtype}, but its type is {t}; convert it with .astype({t.dtype.name!r})")
    return a


def _random(rng: Any, name: str, t: TensorType, sizes: dict[str, int]) -> np.ndarray[Any, Any]:
    import numpy as np
    from graphc.ir.types import DimExpr, substitute

    shape = [substitute(d, sizes) for d in t.shape]
    if any(isinstance(d, DimExpr) for d in shape):
        raise Failure(f"--random needs the sizes of {name}: {t}; give them with --size NAME=N")
    if t.dtype.is_float:
        return np.asarray(rng.standard_normal(shape)).astype(t.dtype.numpy)
    return np.asarray(rng.integers(0, 2 if t.dtype.kind == "b" else 10, shape)).astype(t.dtype.numpy)


def _interpreted(f: Function, args: list[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
    from graphc.ir.interpret import interpret

    return interpret(f, args)


def _compiled(f: Function, args: list[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
    import numpy as np
    from graphc.codegen.program import compile_function

    for name, p, a in zip(f.param_names, f.params, args, strict=True):
        if a.shape != p.type.shape:
            raise Failure(f"the array for {name} has shape {list(a.shape)}, but its type is {p.type}")
    held = [np.require(a, requirements="C") for a in args]
    out = [np.empty([int(d) for d in t.shape], t.dtype.numpy) for t in f.result_types]
    compile_function(f).run([a.ctypes.data for a in held], [a.ctypes.data for a in out])
    return out


def _give(results: list[np.ndarray[Any, Any]], output: str | None) -> None:
    import numpy as np
    from graphc.cli.files import write
    from graphc.ir.types import dtype

    if output is None:
        for i, a in enumerate(results):
            print(f"result{i}: {dtype(a.dtype).short}{list(a.shape)}\n{a}")
        return
    if output.endswith(".npy"):
        if len(results) != 1:
            raise Failure(f"a .npy file holds one array, and there are {len(results)} results; name a .npz file")
        write(output, lambda out: np.save(out, results[0]))
        return

    named: dict[str, Any] = {f"result{i}": a for i, a in enumerate(results)}
    write(output, lambda out: np.savez(out, **named))
