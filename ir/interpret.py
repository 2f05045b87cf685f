"""The meaning of a function, by NumPy, one operation at a time: the oracle for everything below.

Operations in `ops.elementwise.APPROXIMATE` are accurate but not to the bit; all others are exact by
the bit contract of docs/architecture.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from graphc.ir.function import Function, Operation, Value
from graphc.ir.registry import Array, lookup
from graphc.ir.types import Dim, DimExpr, TensorType, dtype, substitute


def interpret(f: Function, args: Sequence[Any], symbols: Mapping[str, int] | None = None) -> list[Array]:
    """The results of `f` applied to `args`, as new C-contiguous arrays.

    args: one array (or array-like) for each parameter, of exactly its dtype and shape.
    symbols: values of symbolic dimensions that the shapes of `args` do not determine.

    Raises `TypeError` for a wrong number of arguments or a wrong dtype, `ValueError` for a wrong
    shape or a symbol without a value, and what an operation raises (`IndexError` for an index out
    of range), with the operation and its source line added to the message.
    """
    arrays = [np.asarray(a) for a in args]
    _check_dtypes(f, arrays)
    values = bind_symbols(f, [a.shape for a in arrays], symbols)
    concrete = specialize(f, values)
    for name, p, a in zip(f.param_names, concrete.params, arrays):
        if a.shape != p.type.shape:
            raise ValueError(f"@{f.name}: the argument for {name} has shape {list(a.shape)}, but its type is {p.type}")
    env: dict[Value, Array] = dict(zip(concrete.params, arrays))
    for op in concrete.ops:
        env.update(zip(op.results, _evaluate(op, [env[v] for v in op.operands])))
    return [np.array(env[r], order="C") for r in concrete.results]


def bind_symbols(
    f: Function, shapes: Sequence[Sequence[int]], symbols: Mapping[str, int] | None = None
) -> dict[str, int]:
    """The value of every symbolic dimension of `f`, from the shapes of its arguments and `symbols`.

    A dimension such as `2*B + 1` determines `B`. Raises `ValueError` for symbols that stay unknown,
    for shapes that contradict each other, and for ranks that do not fit.
    """
    known: dict[str, Dim] = dict(symbols or {})
    equations: list[tuple[Dim, int, str]] = []
    for name, p, shape in zip(f.param_names, f.params, shapes):
        if len(shape) != p.type.rank:
            raise ValueError(
                f"@{f.name}: the argument for {name} has shape {list(shape)} of rank {len(shape)}, "
                f"but its type is {p.type} of rank {p.type.rank}"
            )
        equations += [(d, n, name) for d, n in zip(p.type.shape, shape)]
    progress = True
    while progress:
        progress = False
        for d, n, _ in equations:
            solved = _solve(substitute(d, known), n)
            if solved is not None:
                known[solved[0]], progress = solved[1], True
    for d, n, name in equations:
        value = substitute(d, known)
        if isinstance(value, int) and value != n:
            at = ", ".join(f"{s} = {known[s]}" for s in sorted(d.symbols())) if isinstance(d, DimExpr) else ""
            where = f" with {at}" if at else ""
            raise ValueError(f"@{f.name}: the argument for {name} has a dimension {n} where its type has {d}{where}")
    missing = _symbols_of(f) - known.keys()
    if missing:
        names = ", ".join(sorted(missing))
        raise ValueError(f"@{f.name}: no argument's shape determines the symbol {names}; pass it in symbols=")
    return {name: int(value) for name, value in known.items() if isinstance(value, int)}


def specialize(f: Function, symbols: Mapping[str, int]) -> Function:
    """`f` with symbolic dimensions replaced by integers, in types, attributes and called functions."""
    if not _symbols_of(f):
        return f
    env: dict[Value, Value] = {p: Value(_type_at(p.type, symbols)) for p in f.params}
    ops = []
    for op in f.ops:
        results = [Value(_type_at(r.type, symbols)) for r in op.results]
        attrs = {k: _attr_at(v, symbols) for k, v in op.attrs.items()}
        ops.append(Operation(op.name, [env[v] for v in op.operands], attrs, results, op.loc))
        env.update(zip(op.results, results))
    return Function(f.name, [env[p] for p in f.params], ops, [env[r] for r in f.results], f.param_names)




def _evaluate(op: Operation, args: Sequence[Array]) -> list[Array]:
    types = tuple(r.type for r in op.results)
    try:
        results = [np.asarray(r) for r in lookup(op.name).eval(args, op.attrs, types)]
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise type(error)(f"{error.args[0] if error.args else error}\n  in {_describe(op)}") from error
    for result, t in zip(results, types, strict=True):
        if result.shape != t.shape or dtype(result.dtype) is not t.dtype:
            got = f"{dtype(result.dtype)}{list(result.shape)}"
            raise RuntimeError(f"internal error: {_describe(op)} evaluated to {got}, not to its type {t}")
    return results


def _describe(op: Operation) -> str:
    types = ", ".join(str(v.type) for v in op.operands)
    return f"{op.name}({types})" + (f" at {op.loc}" if op.loc else "")


def _check_dtypes(f: Function, arrays: Sequence[Array]) -> None:
    if len(arrays) != len(f.params):
        names = ", ".join(f"{n}: {p.type}" for n, p in zip(f.param_names, f.params))
        raise TypeError(f"@{f.name} takes {len(f.params)} arguments ({names}), not {len(arrays)}")
    for name, p, a in zip(f.param_names, f.params, arrays):
        if dtype(a.dtype) is not p.type.dtype:
            raise TypeError(
                f"@{f.name}: the argument for {name} has dtype {a.dtype}, but its type is {p.type}; "
                f"convert it with .astype({p.type.dtype.name!r})"
            )


def _solve(d: Dim, n: int) -> tuple[str, int] | None:
    """The symbol and its value if `d` = `n` is linear in one bare symbol and has a solution."""
    if not isinstance(d, DimExpr):
        return None
    terms = dict(d.terms)
    constant = terms.pop((), 0)
    if len(terms) != 1:
        return None
    ((monomial, scale),) = terms.items()
    if len(monomial) != 1 or not isinstance(monomial[0], str) or (n - constant) % scale:
        return None
    return monomial[0], (n - constant) // scale


def _symbols_of(f: Function) -> frozenset[str]:
    found: set[str] = set()
    for v in f.params:
        found.update(*(d.symbols() for d in v.type.shape if isinstance(d, DimExpr)))
    for op in f.ops:
        for v in op.results:
            found.update(*(d.symbols() for d in v.type.shape if isinstance(d, DimExpr)))
        for attr in op.attrs.values():
            found |= _symbols_in(attr)
    return frozenset(found)


def _symbols_in(attr: Any) -> frozenset[str]:
    if isinstance(attr, DimExpr):
        return attr.symbols()
    if isinstance(attr, Function):
        return _symbols_of(attr)
    if isinstance(attr, tuple):
        return frozenset().union(*map(_symbols_in, attr))
    return frozenset()


def _type_at(t: TensorType, symbols: Mapping[str, int]) -> TensorType:
    return t.with_shape(substitute(d, symbols) for d in t.shape)


def _attr_at(attr: Any, symbols: Mapping[str, int]) -> Any:
    if isinstance(attr, DimExpr):
        return substitute(attr, symbols)
    if isinstance(attr, Function):
        return specialize(attr, symbols)
    if isinstance(attr, tuple):
        return tuple(_attr_at(a, symbols) for a in attr)
    return attr


