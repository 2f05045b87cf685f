"""Scalar expressions: what one lane of a kernel computes.

An `Expr` is immutable and interned: building the same expression twice gives the same object, so
identity is equality and an emitter that remembers what it emitted shares common parts for free.

Every machine operation below is one correctly rounded IEEE-754 operation or one exact integer
operation. There is no `exp` here: such functions are written in `codegen/math/` as expressions
over these, once, for all emitters.
"""

from __future__ import annotations

import contextlib
import struct
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any, Union

from graphc.codegen.forks import free_in_child
from graphc.ir.types import BOOL, F32, F64, I32, I64, U32, U64, DType

# name -> (number of operands, "same" | "bool": dtype of the result, operand kinds allowed)
MACHINE_OPS: dict[str, tuple[int, str, str]] = {
    "add": (2, "same", "iuf"),
    "sub": (2, "same", "iuf"),
    "mul": (2, "same", "iuf"),
    "div": (2, "same", "f"),
    # Integer division truncates. The divisor must not be 0, nor -1 where the dividend may be the
    # least integer: whoever builds the expression guards with `select`.
    "idiv": (2, "same", "iu"),
    "irem": (2, "same", "iu"),
    "fma": (3, "same", "f"),
    "neg": (1, "same", "if"),
    "abs": (1, "same", "f"),
    "sqrt": (1, "same", "f"),
    "floor": (1, "same", "f"),
    "ceil": (1, "same", "f"),
    "trunc": (1, "same", "f"),
    "rint": (1, "same", "f"),  # to nearest, ties to even
    "and": (2, "same", "biu"),
    "or": (2, "same", "biu"),
    "xor": (2, "same", "biu"),
    "not": (1, "same", "biu"),
    # Shift counts must be below the width.
    "shl": (2, "same", "iu"),
    "shr": (2, "same", "iu"),  # arithmetic for signed, logical for unsigned
    "mulhi": (2, "same", "u"),  # upper half of the double-width product
    "eq": (2, "bool", "biuf"),
    "ne": (2, "bool", "biuf"),  # true if unordered
    "lt": (2, "bool", "iuf"),  # ordered, as are le, gt, ge
    "le": (2, "bool", "iuf"),
    "gt": (2, "bool", "iuf"),
    "ge": (2, "bool", "iuf"),
}
# Besides these:
#   const                 data = Python bool / int, or the bit pattern (int) of a float
#   var                   data = name; a loop variable, a `Let`, a `Declare`d register or an extent
#   load(index[, cond])   data = the Buffer (see loops.py); index is an I64 expression. Where cond is
#                         false nothing is read (the index may be out of range) and the value is 0
#   select(cond, a, b)    cond is BOOL; only the chosen value matters
#   cast(x)               integer to integer wraps; integer or bool to float rounds to nearest even;
#                         float to integer truncates, saturates, NaN gives 0; float to float rounds
#                         to nearest even; anything to bool is x != 0
#   bitcast(x)            same width, other dtype
#   lanes(x)              data = "add" | "mul" | "max" | "min" | "or" | "and": the values of x in the lanes of the
#                         enclosing vector region, combined by the fixed tree (loops.py); uniform
#   shuffle(x, k)         device kernels only; data = ("down" | "xor" | "from", width): x of the thread that lies k
#                         threads further on, whose number differs in the bits of k, or that has number k, within aligned runs of
#                         `width` threads of a warp; all 32 threads of the warp must evaluate it. k is an I64 expression


class Expr:
    """One node. `op` as above, `dtype` of the value, `args`, and `data` where the op has any."""

    __slots__ = ("__weakref__", "args", "data", "dtype", "op")
    op: str
    dtype: DType
    args: tuple[Expr, ...]
    data: Any

    def __add__(self, other: Operand) -> Expr:
        return binary("add", self, other)

    def __radd__(self, other: Operand) -> Expr:
        return binary("add", other, self)

    def __sub__(self, other: Operand) -> Expr:
        return binary("sub", self, other)

    def __rsub__(self, other: Operand) -> Expr:
        return binary("sub", other, self)

    def __mul__(self, other: Operand) -> Expr:
        return binary("mul", self, other)

    def __rmul__(self, other: Operand) -> Expr:
        return binary("mul", other, self)

    def __truediv__(self, other: Operand) -> Expr:
        return binary("div", self, other)

    def __rtruediv__(self, other: Operand) -> Expr:
        return binary("div", other, self)

    def __floordiv__(self, other: Operand) -> Expr:
        """Truncating integer division; for indices, which are never negative, it is the floor."""
        return binary("idiv", self, other)

    def __mod__(self, other: Operand) -> Expr:
        return binary("irem", self, other)

    def __neg__(self) -> Expr:
        return unary("neg", self)

    def __and__(self, other: Operand) -> Expr:
        return binary("and", self, other)

    def __or__(self, other: Operand) -> Expr:
        return binary("or", self, other)

    def __xor__(self, other: Operand) -> Expr:
        return binary("xor", self, other)

    def __invert__(self) -> Expr:
        return unary("not", self)

    def __lshift__(self, other: Operand) -> Expr:
        return binary("shl", self, other)

    def __rshift__(self, other: Operand) -> Expr:
        return binary("shr", self, other)

    # Comparisons build expressions, but == stays identity: expressions are interned.
    def __lt__(self, other: Operand) -> Expr:
        return binary("lt", self, other)

    def __le__(self, other: Operand) -> Expr:
        return binary("le", self, other)

    def __gt__(self, other: Operand) -> Expr:
        return binary("gt", self, other)

    def __ge__(self, other: Operand) -> Expr:
        return binary("ge", self, other)

    def __bool__(self) -> bool:
        raise TypeError("an expression has no truth value; use select")

    def __repr__(self) -> str:
        return show(self)


Operand = Union[Expr, int, float, bool]
_interned: dict[Any, _Held] = {}
_lock = free_in_child(threading.RLock())


class _Held(weakref.ref[Expr]):
    """Where the node of a key is, as long as anyone uses it. A dictionary of weak values costs four times as much a look."""

    __slots__ = ("key",)
    key: Any


# What died while another thread had the lock, and may be in `_interned` still.
_gone: list[_Held] = []


def _forget(held: _Held) -> None:
    """Take out what is gone; where another thread puts something in just now, `make` does it later.

    Nobody waits here: this is called wherever an object dies, with any locks held.
    """
    if not _lock.acquire(blocking=False):
        _gone.append(held)
        return
    try:
        if _interned.get(held.key) is held:
            del _interned[held.key]
    finally:
        _lock.release()


def make(op: str, dtype: DType, args: tuple[Expr, ...] = (), data: Any = None) -> Expr:
    """The interned node, without any folding. Prefer the constructors below."""
    key = (op, dtype, args, data.__class__, data)
    held = _interned.get(key)
    node = held() if held is not None else None
    if node is None:
        # Threads compile at the same time; none may keep a node that another replaced.
        with _lock:
            held = _interned.get(key)
            node = held() if held is not None else None
            if node is None:
                node = Expr.__new__(Expr)
                node.op, node.dtype, node.args, node.data = op, dtype, args, data
                _interned[key] = held = _Held(node, _forget)
                held.key = key
                if _gone:
                    with contextlib.suppress(IndexError):
                        while True:
                            _forget(_gone.pop())
    return node


_FLOAT_FORMAT = {F32: ("<f", "<I"), F64: ("<d", "<Q")}


def float_bits(dtype: DType, value: float) -> int:
    """The bit pattern of `value` rounded to `dtype` (any float dtype)."""
    import numpy as np

    if dtype in _FLOAT_FORMAT:
        f, i = _FLOAT_FORMAT[dtype]
        try:
            return int(struct.unpack(i, struct.pack(f, value))[0])
        except OverflowError:
            return int(struct.unpack(i, struct.pack(f, float("inf") if value > 0 else -float("inf")))[0])
    return int(np.array(value).astype(dtype.numpy).view(np.uint16))


def bits_float(dtype: DType, bits: int) -> float:
    """The Python float with that bit pattern."""
    import numpy as np

    if dtype in _FLOAT_FORMAT:
        f, i = _FLOAT_FORMAT[dtype]
        return float(struct.unpack(f, struct.pack(i, bits))[0])
    return float(np.array(bits, np.uint16).view(dtype.numpy))


def const(dtype: DType, value: float | int | bool) -> Expr:
    """A literal. Integers wrap to the width; floats round to nearest."""
    if dtype.kind == "f":
        return make("const", dtype, (), float_bits(dtype, float(value)))
    if dtype.kind == "b":
        return make("const", dtype, (), bool(value))
    wrapped = int(value) & ((1 << dtype.bits) - 1)
    if dtype.kind == "i" and wrapped >> (dtype.bits - 1):
        wrapped -= 1 << dtype.bits
    return make("const", dtype, (), wrapped)


def bits_const(dtype: DType, bits: int) -> Expr:
    """A float literal given by its bit pattern."""
    return make("const", dtype, (), bits)


def var(name: str, dtype: DType = I64) -> Expr:
    return make("var", dtype, (), name)


def index(value: int) -> Expr:
    """An I64 literal, the dtype of all indices."""
    return const(I64, value)


def _operand(value: Operand, dtype: DType) -> Expr:
    return value if isinstance(value, Expr) else const(dtype, value)


def _int(e: Expr) -> int | None:
    return e.data if e.op == "const" and e.dtype.kind in "iu" else None


def binary(op: str, a: Operand, b: Operand) -> Expr:
    """A machine operation on two operands; Python numbers take the dtype of the other one.

    Folds what index arithmetic produces (x+0, x*1, x*0, constants) for integers only: float
    expressions are emitted exactly as written.
    """
    dtype = a.dtype if isinstance(a, Expr) else b.dtype  # type: ignore[union-attr]
    x, y = _operand(a, dtype), _operand(b, dtype)
    arity, result, kinds = MACHINE_OPS[op]
    if arity != 2 or x.dtype is not y.dtype or dtype.kind not in kinds:
        raise TypeError(f"expression {op}({x.dtype}, {y.dtype}) is not defined")
    if dtype.kind in "iu":
        folded = _fold_integer(op, x, y)
        if folded is not None:
            return folded
    return make(op, BOOL if result == "bool" else dtype, (x, y))


_INT_FOLD: dict[str, Callable[[int, int], int]] = {
    "add": lambda p, q: p + q,
    "sub": lambda p, q: p - q,
    "mul": lambda p, q: p * q,
}


def _fold_integer(op: str, x: Expr, y: Expr) -> Expr | None:
    p, q = _int(x), _int(y)
    if p is not None and q is not None:
        if op in _INT_FOLD:
            return const(x.dtype, _INT_FOLD[op](p, q))
        if op in ("idiv", "irem") and p >= 0 and q > 0:
            return const(x.dtype, p // q if op == "idiv" else p % q)
    if op in ("add", "or", "xor") and p == 0:
        return y
    if op in ("add", "sub", "or", "xor", "shl", "shr") and q == 0:
        return x
    if op == "mul":
        if p == 1:
            return y
        if q == 1:
            return x
        if p == 0 or q == 0:
            return const(x.dtype, 0)
    if op == "idiv" and q == 1:
        return x
    if op == "irem" and q == 1:
        return const(x.dtype, 0)
    if op == "idiv" and x.op == "const" and p == 0:
        return x
    return None


def unary(op: str, x: Expr) -> Expr:
    arity, result, kinds = MACHINE_OPS[op]
    if arity != 1 or x.dtype.kind not in kinds:
        raise TypeError(f"expression {op}({x.dtype}) is not defined")
    return make(op, BOOL if result == "bool" else x.dtype, (x,))


def fma(a: Operand, b: Operand, c: Operand) -> Expr:
    """a*b + c, rounded once."""
    dtype = next(e.dtype for e in (a, b, c) if isinstance(e, Expr))
    args = (_operand(a, dtype), _operand(b, dtype), _operand(c, dtype))
    if dtype.kind != "f" or any(e.dtype is not dtype for e in args):
        raise TypeError(f"expression fma({', '.join(str(e.dtype) for e in args)}) is not defined")
    return make("fma", dtype, args)


def sqrt(x: Expr) -> Expr:
    return unary("sqrt", x)


def absolute(x: Expr) -> Expr:
    return unary("abs", x)


def floor(x: Expr) -> Expr:
    return unary("floor", x)


def rint(x: Expr) -> Expr:
    return unary("rint", x)


def trunc(x: Expr) -> Expr:
    return unary("trunc", x)


def equal(a: Operand, b: Operand) -> Expr:
    return binary("eq", a, b)


def not_equal(a: Operand, b: Operand) -> Expr:
    return binary("ne", a, b)


def select(cond: Expr, a: Operand, b: Operand) -> Expr:
    """a where cond, else b. Both are evaluated; neither may trap."""
    dtype = a.dtype if isinstance(a, Expr) else b.dtype  # type: ignore[union-attr]
    x, y = _operand(a, dtype), _operand(b, dtype)
    if cond.dtype is not BOOL or x.dtype is not y.dtype:
        raise TypeError(f"expression select({cond.dtype}, {x.dtype}, {y.dtype}) is not defined")
    if cond.op == "const":
        return x if cond.data else y
    return x if x is y else make("select", dtype, (cond, x, y))


def cast(x: Expr, dtype: DType) -> Expr:
    """x converted to `dtype`, as defined at the head of this file."""
    if x.dtype is dtype:
        return x
    if x.op == "const" and x.dtype.kind in "iu" and dtype.kind in "iu":
        return const(dtype, x.data)
    return make("cast", dtype, (x,))


def bitcast(x: Expr, dtype: DType) -> Expr:
    if x.dtype is dtype:
        return x
    if x.dtype.bits != dtype.bits or BOOL in (x.dtype, dtype):
        raise TypeError(f"expression bitcast({x.dtype} to {dtype}) is not defined")
    return make("bitcast", dtype, (x,))


def to_bits(x: Expr) -> Expr:
    """The unsigned bit pattern of a float32 or float64."""
    return bitcast(x, {32: U32, 64: U64}[x.dtype.bits])


def to_signed_bits(x: Expr) -> Expr:
    return bitcast(x, {32: I32, 64: I64}[x.dtype.bits])


def load(buffer: Any, position: Expr, cond: Expr | None = None) -> Expr:
    """The element of `buffer` at the flat I64 `position`; zero, and not read, where `cond` is false."""
    if cond is None or (cond.op == "const" and cond.data):
        return make("load", buffer.dtype, (position,), buffer)
    return make("load", buffer.dtype, (position, cond), buffer)


def shuffle(x: Expr, how: str, k: Operand, width: int = 32) -> Expr:
    """x of another thread of the warp. how: "down", "xor" or "from", as at the head of this file.

    >>> from graphc.ir.types import F32
    >>> show(shuffle(var("x", F32), "down", 16))
    'shuffle_down_32(x, 16)'
    """
    return make("shuffle", x.dtype, (x, _operand(k, I64)), (how, width))


def logical_and(a: Expr, b: Expr) -> Expr:
    """Boolean and, folding constants."""
    if a.op == "const":
        return b if a.data else a
    if b.op == "const":
        return a if b.data else b
    return a if a is b else binary("and", a, b)


def children_first(roots: tuple[Expr, ...]) -> list[Expr]:
    """Every node reachable from `roots` once, operands before users."""
    seen: set[Expr] = set()
    order: list[Expr] = []
    stack = list(reversed(roots))
    while stack:
        node = stack[-1]
        if node not in seen:
            first = [a for a in node.args if a not in seen]
            if first:
                first.reverse()
                stack += first
                continue
            seen.add(node)
            order.append(node)
        stack.pop()
    return order


def replace(root: Expr, mapping: dict[Expr, Expr]) -> Expr:
    """`root` with nodes replaced (by identity), rebuilt through the plain `make`."""
    done: dict[Expr, Expr] = dict(mapping)
    for node in children_first((root,)):
        if node in done:
            continue
        args = tuple(done[a] for a in node.args)
        done[node] = node if args == node.args else make(node.op, node.dtype, args, node.data)
    return done[root]


# An expression whose text would repeat shared parts beyond this many nodes names them instead.
_LONG_TEXT = 200


def show(e: Expr) -> str:
    """The text of an expression, fully parenthesised by calls; used by the loop printer.

    A long one with shared parts reads `VALUE where t0 = ..; t1 = ..`, each part once.
    """
    order = children_first((e,))
    size: dict[Expr, int] = {}
    for node in order:
        size[node] = 1 + sum(size[a] for a in node.args)
    if size[e] <= _LONG_TEXT:
        return _text(e, {})
    users = Counter(a for node in order for a in node.args)
    names: dict[Expr, str] = {}
    parts = []
    for node in order:
        if users[node] > 1 and node.args:
            text = _text(node, names)
            names[node] = f"t{len(names)}"
            parts.append(f"{names[node]} = {text}")
    return f"{_text(e, names)} where {'; '.join(parts)}" if parts else _text(e, names)


def _text(e: Expr, names: dict[Expr, str]) -> str:
    if e in names:
        return names[e]

    def inner(x: Expr) -> str:
        return _text(x, names)

    if e.op == "const":
        if e.dtype.kind == "f":
            value = bits_float(e.dtype, e.data)
            return f"{value.hex() if value == value else 'nan'}:{e.dtype}"
        return str(e.data).lower() if e.dtype is BOOL else (
            str(e.data) if e.dtype is I64 else f"{e.data}:{e.dtype}"
        )
    if e.op == "var":
        return str(e.data)
    if e.op == "load":
        condition = f" if {inner(e.args[1])}" if len(e.args) == 2 else ""
        return f"{e.data.name}[{inner(e.args[0])}{condition}]"
    infix = {"add": "+", "sub": "-", "mul": "*", "idiv": "//", "irem": "%"}
    if e.op in infix and e.dtype is I64:
        return f"({inner(e.args[0])} {infix[e.op]} {inner(e.args[1])})"
    args = ", ".join(map(inner, e.args))
    if e.op in ("cast", "bitcast"):
        return f"{e.op}<{e.dtype}>({args})"
    if e.op == "lanes":
        return f"lanes.{e.data}({args})"
    if e.op == "shuffle":
        how, width = e.data
        return f"shuffle_{how}_{width}({args})"
    return f"{e.op}({args})"
