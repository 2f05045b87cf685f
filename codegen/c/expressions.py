"""Expressions as text: shared parts become named values once in a scope, the rest is written where it is used.

A `Writer` holds the lines of a kernel and what is known in each scope. A known value is forgotten when a register or a
buffer that it depends on is written. Everything is evaluated where it stands: operands have no effects and may not trap.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from graphc.codegen.c.dialect import (
    ADD,
    ATOM,
    CHOICE,
    COMPARISONS,
    OPERATIONS,
    UNARY,
    Dialect,
    Text,
    convert,
    literal,
    operation,
    reinterpret,
    zero,
)
from graphc.codegen.c.positions import DATA, POSITION, Positions, Role
from graphc.codegen.c.unique import base_name
from graphc.codegen.expr import Expr
from graphc.codegen.loops import Buffer, TensorMap
from graphc.ir.types import BOOL, I64

LONGEST = 80  # characters of text that is written inside other text
Key = tuple[Expr, Role]
_SUM = re.compile(r"\w+ [+-] \w+")  # as short as a name for it
_INT = 1 << 31
_LONG = 1 << 63

_FROM_DATA = frozenset(("load", "cast", "bitcast", "shuffle"))  # a position is what their value is

# Words that a kernel's names must not take.
RESERVED = frozenset(
    "auto break case char const continue default do double else enum extern float for goto if inline int long register "
    "restrict return short signed sizeof static struct switch typedef union unsigned void volatile while asm bool catch class "
    "delete explicit export false friend mutable namespace new operator private protected public template this throw true try "
    "typename using virtual and or not xor error launch args wide memory main".split()
)


class Scope:
    """What is known in a C block: values by (expression, role), names taken, uses of each expression within it."""

    def __init__(self, lines: list[str], pad: int) -> None:
        self.lines, self.pad = lines, pad
        self.start = len(lines)
        self.known: dict[Key, Text] = {}
        self.readers: dict[Any, list[Key]] = {}  # register or buffer -> what is known and depends on it
        self.names: set[str] = set()
        self.uses: Counter[Expr] = Counter()


class Writer:
    """The state of one kernel being written; emit.py adds statements and regions.py vector regions."""

    def __init__(self, dialect: Dialect, positions: Positions) -> None:
        self.dialect, self.positions = dialect, positions
        self.narrow = positions.narrow
        self.scopes: list[Scope] = [Scope([], 1)]
        self.buffers: dict[Buffer, str] = {}
        self.maps: dict[TensorMap, str] = {}
        self.temporaries = 0
        # Inside a run over lanes: the lane variable's scope, and who varies; see regions.py.
        self.run: int | None = None
        self.inside = 0  # how many branches deep inside the run
        self.mask: str | None = None
        self.any_mask: str | None = None
        self._depends: dict[Expr, frozenset[Any]] = {}
        self._stores: frozenset[Buffer] = frozenset()

    # Lines and scopes

    @property
    def scope(self) -> Scope:
        return self.scopes[-1]

    def line(self, text: str, scope: Scope | None = None) -> None:
        s = scope or self.scope
        s.lines.append("    " * s.pad + text if text else "")

    def open(self, head: str) -> None:
        """A block `head {`."""
        self.line(f"{head} {{" if head else "{")
        self.scopes.append(Scope(self.scope.lines, self.scope.pad + 1))

    def close(self, tail: str = "}") -> None:
        self.scopes.pop()
        self.line(tail)

    def name(self, wanted: str, scope: Scope | None = None) -> str:
        """A name that is free here, for the scope given."""
        wanted = base_name(wanted)
        found, count = wanted, 1
        while found in RESERVED or any(found in s.names for s in self.scopes):
            count += 1
            found = f"{wanted}_{count}"
        (scope or self.scope).names.add(found)
        return found

    def temporary(self, scope: Scope) -> str:
        while True:
            found = f"t{self.temporaries}"
            self.temporaries += 1
            if not any(found in s.names for s in self.scopes):
                scope.names.add(found)
                return found

    # What is known

    def count(self, roots: Iterable[Expr]) -> None:
        """The expressions that this scope will evaluate: who occurs twice gets a name."""
        uses, seen = self.scope.uses, set[Expr]()
        stack = list(roots)
        uses.update(stack)
        while stack:
            e = stack.pop()
            if e not in seen and e.op != "lanes":  # what lanes combine is computed before
                seen.add(e)
                uses.update(e.args)
                stack += e.args

    def known(self, key: Key) -> Text | None:
        for s in reversed(self.scopes):
            found = s.known.get(key)
            if found is not None:
                return found
        e, role = key
        if role == POSITION:
            found = self.known((e, DATA))
            return None if found is None else self._narrowed(e, role, found)
        return None

    def depends(self, e: Expr) -> frozenset[Any]:
        """The names and buffers that an expression reads."""
        known = self._depends
        stack = [e]
        while stack:
            n = stack[-1]
            if n in known:
                stack.pop()
                continue
            missing = [a for a in n.args if a not in known]
            if missing:
                stack += missing
                continue
            stack.pop()
            own = frozenset((n,)) if n.op == "var" else frozenset((n.data,)) if n.op == "load" else frozenset()
            known[n] = own.union(*[known[a] for a in n.args])
        return known[e]

    def remember(self, scope: Scope, e: Expr, role: Role, text: Text) -> None:
        """A value has a name in a scope, until something that it depends on is written."""
        scope.known[(e, role)] = text
        if e.op != "var":
            for d in self.depends(e):
                scope.readers.setdefault(d, []).append((e, role))

    def forget(self, written: Iterable[Any]) -> None:
        """Registers and buffers have other contents from here on."""
        for d in written:
            for s in self.scopes:
                for key in s.readers.pop(d, ()):
                    s.known.pop(key, None)

    def varying(self, e: Expr) -> bool:
        """Whether an expression differs from lane to lane; regions.py knows."""
        return False

    # Values

    def value(self, e: Expr, role: Role = None, named: bool = False) -> Text:
        """The text of an expression here. Its names stand in lines before. named: the caller gives the whole a name."""
        if e.dtype is I64 and role is None:
            role = DATA
        pending: dict[Key, Text] = {}
        stack: list[tuple[Expr, Role, bool]] = [(e, role, False)]
        while stack:
            node, r, ready = stack.pop()
            key = (node, r)
            if key in pending:
                continue
            found = self.known(key)
            if found is None and node.op == "const":
                found = literal(self.dialect, node.dtype, node.data)
            if found is not None:
                pending[key] = found
                continue
            if r == POSITION and node.op in _FROM_DATA:
                if (node, DATA) in pending:
                    pending[key] = self._narrowed(node, r, pending[(node, DATA)])
                else:
                    stack += [(node, r, False), (node, DATA, False)]
                continue
            roles = self.positions.operands(node, r)
            if node.op == "lanes":
                raise TypeError("lanes() stands outside a vector region")
            if not ready:
                stack.append((node, r, True))
                operands = zip(reversed(node.args), reversed(roles), strict=True)
                stack += [(a, b, False) for a, b in operands if (a, b) not in pending]
                continue
            keys = list(zip(node.args, roles, strict=True))
            self._hoist(node, keys, pending)
            text = self._text(node, r, [pending[k] for k in keys], keys, pending)
            alone = node is e and not stack and (named or (node.op == "shuffle" and self.scope.uses[e] < 2))
            if not alone and self._wants_name(node, text):
                text = self.give_name(node, r, text)
            pending[key] = text
        return pending[(e, role)]

    def position(self, e: Expr) -> Text:
        return self.value(e, POSITION)

    def _wants_name(self, node: Expr, text: Text) -> bool:
        if node.op in ("shuffle", "var"):
            return node.op == "shuffle"
        if len(text.text) > LONGEST:
            return True
        if text.level == ATOM and not text.loads and text.text.isidentifier():
            return False
        if not any(s.uses[node] > 1 for s in self.scopes[-1:]):
            return False
        if node.dtype is I64 and not text.loads and _SUM.fullmatch(text.text):
            return False
        return node.op not in ("bitcast",) and not (node.op == "cast" and node.args[0].op in ("var", "const"))

    def _hoist(self, node: Expr, keys: list[Key], pending: dict[Key, Text]) -> None:
        """In a run over lanes, what is the same for all lanes is computed before them."""
        if self.run is None or self.inside or not self.varying(node):
            return
        for a, role in keys:
            x = pending[(a, role)]
            if x.level != ATOM or x.loads or "(" in x.text:
                if a.op in ("const", "var") or self.varying(a):
                    continue
                pending[(a, role)] = self.give_name(a, role, x)

    def place(self, node: Expr) -> Scope:
        """Where a name for this expression stands."""
        if self.run is not None and not self.inside and not self.varying(node):
            return self.scopes[self.run - 1]
        return self.scope

    def give_name(self, node: Expr, role: Role, text: Text) -> Text:
        scope = self.place(node)
        name = self.temporary(scope)
        self.line(f"const {self.value_type(node, text)} {name} = {text};", scope)
        named = Text(name, ATOM, False, text.bound, text.small)
        self.remember(scope, node, role, named)
        return named

    def value_type(self, node: Expr, text: Text) -> str:
        if node.dtype is I64:
            return "int" if text.small else self.dialect.index
        return self.dialect.type(node.dtype)

    # One node

    def _text(self, e: Expr, role: Role, args: list[Text], keys: list[Key], pending: dict[Key, Text]) -> Text:
        op = e.op
        if op == "var":
            raise KeyError(f"the variable {e.data} of a kernel is used where it is not in scope")
        if op == "load":
            return self._load(e, args)
        if op == "select":
            for i in (1, 2):
                # What is chosen from is read first: the choice is between values.
                guarded = keys[i][0].op == "load" and len(keys[i][0].args) == 2
                if args[i].loads and not guarded:
                    args[i] = self.give_name(*keys[i], args[i])
            return self._select(e, args)
        if op == "shuffle":
            how, width = e.data
            called = Text(f"shuffle_{how}({args[0]}, {args[1]}, {width})", ATOM, True)
            if e.dtype is I64 and args[0].small:
                called = Text(f"shuffle_{how}({self._long(args[0])}, {args[1]}, {width})", ATOM, True)
            return called
        if op == "cast":
            return convert(self.dialect, args[0], e.args[0].dtype, e.dtype)
        if op == "bitcast":
            return reinterpret(self.dialect, args[0], e.args[0].dtype, e.dtype)
        if op in ("idiv", "irem") and self.mask is not None and e.args[1].op != "const":
            # Where no lane takes part the divisor may be 0.
            guard = self.mask if self.varying(e) else self.any_mask
            inner = self._arithmetic(e, role, args, keys)
            return Text(f"{guard} ? {inner:3} : 0", CHOICE, True, inner.bound, inner.small)
        return self._arithmetic(e, role, args, keys)

    def _narrowed(self, e: Expr, role: Role, x: Text) -> Text:
        """Data where a narrow grid wants a position."""
        if e.dtype is I64 and role == POSITION and self.narrow and not x.small:
            return Text(f"(int){x:15}", UNARY, x.loads, _INT, True)
        return x

    def _arithmetic(self, e: Expr, role: Role, args: list[Text], keys: list[Key]) -> Text:
        dtype = e.args[0].dtype
        if dtype is not I64 or e.op in COMPARISONS:
            return operation(self.dialect, e.op, dtype, args)
        found = self._integer(e.op, keys[0][1] == POSITION, args)
        return self._narrowed(e, role, found)

    def _integer(self, op: str, is_position: bool, args: list[Text]) -> Text:
        """64-bit arithmetic: plain operators on positions and wherever bounds show that nothing overflows."""
        bound = _BOUNDS[op](*[a.bound for a in args])
        small = all(a.small for a in args)
        loads = any(a.loads for a in args)
        if op == "shr" and args[0].small and (args[1].bound is None or args[1].bound > 31):
            # Beyond the width of int.
            args, small = [self._long(args[0]), args[1]], False
        elif is_position and self.narrow:
            return self._plain(op, args, loads, min(bound or _INT, _INT), True)
        if op in ("add", "sub", "mul", "neg", "shl"):
            if small and bound is not None and bound < _INT:
                return self._plain(op, args, loads, bound, True)
            if is_position or (bound is not None and bound < _LONG):
                if small:
                    args = [self._long(args[0]), *args[1:]]
                return self._plain(op, args, loads, bound, False)
            return Text(operation(self.dialect, op, I64, args).text, ATOM, loads)
        return self._plain(op, args, loads, bound, small)

    def _long(self, x: Text) -> Text:
        """An `int` as a 64-bit integer."""
        return Text(f"({self.dialect.type(I64)}){x:15}", UNARY, x.loads, x.bound)

    def _plain(self, op: str, args: list[Text], loads: bool, bound: int | None, small: bool) -> Text:
        table = OPERATIONS[op]
        template, level = table["f"] if op == "neg" else table["u"] if "u" in table else table["i"]
        if op == "neg" and args[0].text.startswith("-"):
            args = [Text(f"({args[0].text})")]
        return Text(template.format(*args, t=self.dialect.type(I64)), level, loads, bound, small)

    def _select(self, e: Expr, args: list[Text]) -> Text:
        cond, a, b = args
        bounds = None if a.bound is None or b.bound is None else max(a.bound, b.bound)
        text = f"{cond:4} ? {a:4} : {b:3}"
        return Text(text, CHOICE, any(x.loads for x in args), bounds, e.dtype is I64 and a.small and b.small)

    def _load(self, e: Expr, args: list[Text]) -> Text:
        buffer: Buffer = e.data
        text = f"{self.pointer(buffer)}[{args[0]}]"
        conditions = [f"{args[1]:5}"] if len(args) == 2 else []
        if self.mask is not None and self.any_mask is not None:
            uniform = not any(map(self.varying, e.args))
            conditions.insert(0, self.any_mask if uniform else self.mask)
        level = ATOM
        if buffer.dtype is BOOL:
            text, level = f"{text} != 0", 9
        if conditions:
            return Text(f"{' && '.join(conditions)} ? {text} : {zero(e.dtype)}", CHOICE, True)
        return Text(text, level, True)

    def pointer(self, buffer: Buffer) -> str:
        if buffer not in self.buffers:
            raise KeyError(f"the buffer {buffer.name} of a kernel is used where it is not in scope")
        return self.buffers[buffer]


def _sum(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a + b


def _product(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a * b


def _first(a: int | None, b: int | None = None) -> int | None:
    return a


def _least(a: int | None, b: int | None) -> int | None:
    known = [x for x in (a, b) if x is not None]
    return min(known) if known else None


def _power(a: int | None, b: int | None) -> int | None:
    """A power of two above both: what bit operations on either sign stay within."""
    return None if a is None or b is None else 1 << max(a, b).bit_length()


_BOUNDS: dict[str, Any] = {
    "add": _sum, "sub": _sum, "mul": _product, "neg": _first, "idiv": _first, "irem": _least, "shr": _first,
    "and": _power, "or": _power, "xor": _power, "not": lambda a: None if a is None else a + 1,
    "shl": lambda a, b: None if a is None or b is None or b > 40 else a << b,
}

__all__ = ["ADD", "Scope", "Writer"]
