"""Where instructions go: values, scopes, and the writer that places each instruction as far out as it may go.

The emitter writes static single assignment form directly. Invariants:
- A `Value` is placed in the scope of its deepest operand, so loop invariants are hoisted and common
  parts are shared without any pass over the text; expressions are interned, so a dictionary from
  expression to value is the whole of common subexpression elimination.
- Scope k's instructions dominate everything written later in scopes >= k while it is open.
- Indices (I64) are kept as base + offset + coefficient * lane, with literal offset and
  coefficient, until somebody needs the number: this is the analysis that finds contiguous accesses.
"""

from __future__ import annotations

from graphc.codegen.expr import Expr
from graphc.codegen.llvm.pattern import Coef, expand
from graphc.codegen.loops import Buffer
from graphc.ir.types import I64, DType

# Registers hold bool as i1, and the 16-bit floats as their bits.
REGISTER = {
    "bool": "i1", "i8": "i8", "i16": "i16", "i32": "i32", "i64": "i64", "u8": "i8", "u16": "i16",
    "u32": "i32", "u64": "i64", "f16": "i16", "bf16": "i16", "f32": "float", "f64": "double",
}  # fmt: skip
MEMORY = {**REGISTER, "bool": "i8"}


class Value:
    """What an expression became.

    coef: 0 for a uniform value, a literal for an affine I64 one (base + offset + coef * lane), a tuple
        for one with a literal for each lane (pattern.py), None for any other varying one.
    base, offset: I64 only; base is "" for none.
    scalar: the operand text of a uniform value (None: not yet computed from base and offset).
    vector, width: the operand text as a vector of that width, where there is one.
    depth: the scope it is placed in; deps: bits of the registers and buffers it was read from.
    """

    __slots__ = ("base", "coef", "deps", "depth", "dtype", "offset", "scalar", "vector", "width")

    def __init__(
        self,
        dtype: DType,
        depth: int,
        deps: int,
        scalar: str | None,
        vector: str | None = None,
        width: int = 0,
        coef: Coef | None = 0,
        base: str = "",
        offset: int = 0,
    ) -> None:
        self.dtype = dtype
        self.depth = depth
        self.deps = deps
        self.scalar = scalar
        self.vector = vector
        self.width = width
        self.coef = coef
        self.base = base
        self.offset = offset

    def with_deps(self, deps: int) -> Value:
        """The same value, for a name that depends on `deps`."""
        return Value(
            self.dtype, self.depth, deps, self.scalar, self.vector, self.width, self.coef, self.base, self.offset
        )


class Scope:
    """A stretch of code that may have its own expressions.

    pure_floor, load_floor: the outermost scope to which an expression that cannot trap, or one that
        can (a load, a division), may be hoisted from here.
    shared: written into the same lines as the parent (a vector region, a mask, an unrolled turn).
    """

    __slots__ = ("addresses", "entries", "lines", "load_floor", "pure_floor", "shared")

    def __init__(self, lines: list[str], shared: bool, pure_floor: int, load_floor: int) -> None:
        self.lines = lines
        self.shared = shared
        self.pure_floor = pure_floor
        self.load_floor = load_floor
        self.entries: list[Expr] = []
        self.addresses: dict[tuple[str, str], str] = {}  # (buffer, base of the index) -> pointer


def wrap64(x: int) -> int:
    """x modulo 2**64 as a signed number."""
    return ((x + (1 << 63)) & ((1 << 64) - 1)) - (1 << 63)


class Writer:
    """The state of emitting one kernel: pieces of text, open scopes, values of expressions."""

    def __init__(self) -> None:
        self.count = 0
        self.pieces: list[list[str]] = []
        self.scopes: list[Scope] = []
        self.memo: dict[Expr, Value] = {}
        self.dependents: dict[int, list[Expr]] = {}
        self.bits: dict[Expr | Buffer, int] = {}
        self.label = "entry"
        self.scales = False  # whether the target scales by powers of two in one instruction
        self.width = 0  # of the enclosing vector region; 0 outside
        self.mask: Value | None = None  # lanes that take part; None: all
        self.vector_types: dict[str, str] = {}
        self._types: dict[int, dict[str, str]] = {}
        self.pointers: dict[Buffer, str] = {}
        self.tags: dict[Buffer, str] = {}
        self.sizes: dict[Buffer, int] = {}  # elements of thread-private arrays
        self.written: frozenset[Expr | Buffer] = frozenset()

    # Text and scopes

    def piece(self) -> list[str]:
        """A new stretch of text after all others."""
        lines: list[str] = []
        self.pieces.append(lines)
        return lines

    def push(self, kind: str) -> Scope:
        """Open a scope: "entry", "region", "turn", "mask" (in the parent's text); "loop", "guard", "branch"."""
        shared = kind in ("region", "turn", "mask")
        depth = len(self.scopes)
        parent = self.scopes[-1] if self.scopes else None
        pure = depth if parent is None or kind == "branch" else parent.pure_floor
        load = depth if parent is None or kind in ("branch", "guard", "mask") else parent.load_floor
        lines = parent.lines if shared and parent else self.piece()
        scope = Scope(lines, shared, pure, load)
        self.scopes.append(scope)
        return scope

    def pop(self) -> None:
        memo = self.memo
        for e in self.scopes.pop().entries:
            memo.pop(e, None)

    def new_block(self, label: str) -> None:
        """Go on in a new basic block, in the innermost scope."""
        lines = self.piece()
        lines.append(f"{label}:")
        self.label = label
        for scope in reversed(self.scopes):
            scope.lines = lines
            if not scope.shared:
                break

    def line(self, text: str) -> None:
        self.scopes[-1].lines.append(text)

    def fresh(self) -> int:
        self.count += 1
        return self.count

    def put(self, depth: int, text: str) -> str:
        """Write an instruction in the scope of that depth; gives its name."""
        self.count += 1
        name = f"%v{self.count}"
        self.scopes[depth].lines.append(f"{name} = {text}")
        return name

    def set_width(self, width: int) -> None:
        self.width = width
        types = self._types.get(width)
        if types is None:
            types = {k: f"<{width} x {t}>" for k, t in REGISTER.items()} if width else REGISTER
            self._types[width] = types
        self.vector_types = types

    # Values of expressions

    def remember(self, e: Expr, v: Value) -> None:
        """v is the value of e until its scope ends or what it was read from changes."""
        self.memo[e] = v
        self.scopes[v.depth].entries.append(e)
        deps = v.deps
        while deps:
            low = deps & -deps
            self.dependents.setdefault(low, []).append(e)
            deps ^= low

    def name(self, e: Expr, v: Value) -> None:
        """Bind a variable in the innermost scope."""
        self.memo[e] = v
        self.scopes[-1].entries.append(e)

    def bit(self, key: Expr | Buffer) -> int:
        bit = self.bits.get(key)
        if bit is None:
            bit = self.bits[key] = 1 << len(self.bits)
        return bit

    def changed(self, key: Expr | Buffer) -> None:
        """A register or buffer was written: forget what was computed from it."""
        memo = self.memo
        for e in self.dependents.pop(self.bit(key), ()):
            memo.pop(e, None)

    def scalar(self, v: Value) -> str:
        """The operand text of a uniform value."""
        text = v.scalar
        if text is None:
            if v.coef != 0:
                raise TypeError(f"a value of {v.dtype} that varies over the lanes stands where a uniform one must")
            if not v.base:
                text = str(v.offset)
            elif v.offset == 0:
                text = v.base
            else:
                text = self.put(v.depth, f"add i64 {v.base}, {v.offset}")
            v.scalar = text
        return text

    def vector(self, v: Value) -> str:
        """The operand text as a vector of the region's width; uniform values are splatted."""
        if v.width == self.width:
            return v.vector  # type: ignore[return-value]
        width = self.width
        text = self.splat(self.scalar(v), v.dtype.short, v.depth) if v.coef == 0 else self._affine(v)
        v.vector, v.width = text, width
        return text

    def splat(self, text: str, short: str, depth: int) -> str:
        scalar, vector = REGISTER[short], self.vector_types[short]
        if text[0] != "%":
            return f"splat ({scalar} {text})"
        one = self.put(depth, f"insertelement {vector} poison, {scalar} {text}, i64 0")
        return self.put(
            depth, f"shufflevector {vector} {one}, {vector} poison, <{self.width} x i32> zeroinitializer"
        )

    def lanes_of(self, coef: Coef, scalar: str) -> str:
        """The literal vector 0, coef, 2*coef, ..., or that of a pattern."""
        bits = int(scalar[1:])
        half = 1 << (bits - 1)
        terms = (((x + half) & (2 * half - 1)) - half for x in expand(coef, self.width))
        return "<" + ", ".join([f"{scalar} {t}" for t in terms]) + ">"

    def _affine(self, v: Value) -> str:
        lanes = self.lanes_of(v.coef or 0, "i64")
        if not v.base and not v.offset:
            return lanes
        start = self.uniform_part(v)
        vector = self.vector_types["i64"]
        return self.put(v.depth, f"add {vector} {self.splat(self.scalar(start), 'i64', v.depth)}, {lanes}")

    def uniform_part(self, v: Value) -> Value:
        """An affine value at lane 0."""
        return Value(I64, v.depth, v.deps, None, base=v.base, offset=v.offset)

    def operand(self, v: Value, varying: bool) -> str:
        return self.vector(v) if varying else self.scalar(v)

    def typed(self, short: str, varying: bool) -> str:
        return self.vector_types[short] if varying else REGISTER[short]


def place(w: Writer, args: list[Value], floor: int) -> tuple[int, int, bool]:
    """Depth, dependences and whether varying, of what is computed from `args`."""
    deps, varying = 0, False
    for a in args:
        if a.depth > floor:
            floor = a.depth
        deps |= a.deps
        if a.coef != 0:
            varying = True
    return floor, deps, varying


def result(w: Writer, dtype: DType, depth: int, deps: int, varying: bool, text: str) -> Value:
    """The value of a name or literal just made."""
    if varying:
        return Value(dtype, depth, deps, None, text, w.width, None)
    return Value(dtype, depth, deps, text, base=text if dtype is I64 else "")
