"""The Python function that replays a recording, written as text once: no loop, no tuple, no look-up that is not needed.

The function takes the arguments of a call. It returns `MISS`, with nothing changed, if the call is not as
recorded: the arguments, the modes, the Python state (guards.py), the tensors read. Else it runs the program, applies its
changes and returns its result. Tensors that are held from outside are looked at only if some tensor has changed since
(`state.stamp`). Recordings of many tensors leave the work after the checks to `Recording.run`, which has loops.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from graphc.ir.types import F64
from graphc.runtime.backend import compile_function
from graphc.runtime.checks import constant, guard_of, item_of, write_checks, write_item
from graphc.runtime.core import Meta, Tensor, _new, alias, empty, make_contiguous
from graphc.runtime.device import CPU
from graphc.runtime.dispatch import number
from graphc.runtime.grad_mode import local, state
from graphc.runtime.memory import Buffer
from graphc.runtime.node import Node
from graphc.runtime.precision import setting
from graphc.runtime.spec import spec_of
from graphc.runtime.views import same

if TYPE_CHECKING:
    from graphc.runtime.recording import Recording, Source
    from graphc.runtime.structure import Structure

# What a replaying function returns for a call that is not as recorded.
MISS: Any = type("Miss", (), {"__slots__": (), "__repr__": lambda self: "MISS"})()
# More inputs and outputs, or checks, than these are looped over.
MOST_TENSORS, MOST_CHECKS = 64, 1000

Replay = Callable[[tuple[Any, ...], dict[str, Any]], Any]


class Text:
    """Lines of a function, and the objects that they name."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.names: dict[str, Any] = {
            "__name__": __name__, "Buffer": Buffer, "Meta": Meta, "MISS": MISS, "Node": Node, "Tensor": Tensor,
            "alias": alias, "getrefcount": sys.getrefcount, "local": local, "make_contiguous": make_contiguous,
            "new": _new, "number": number, "same": same, "setting": setting, "state": state,
            "string_at": ctypes.string_at,
        }  # fmt: skip
        self._known: dict[int, str] = {}

    def __call__(self, line: str, depth: int = 2) -> None:
        self.lines.append("    " * depth + line)

    def name(self, x: Any) -> str:
        """How the text names an object."""
        if x is None or x is True or x is False or x.__class__ is str or (x.__class__ is int and abs(x) < 1 << 62):
            return repr(x)
        known = self._known.get(id(x))
        if known is None:
            known = self._known[id(x)] = f"k{len(self._known)}"
            self.names[known] = x
        return known

    def function(self) -> Replay:
        """The function `replay` that the lines define."""
        exec(compile("\n".join(self.lines), "<replay>", "exec"), self.names)
        found: Replay = self.names.pop("replay")
        return found


class Arguments:
    """What the arguments of a recording were: their structure, and the signature of each leaf (see `Compiled._signature`)."""

    def __init__(self, key: tuple[Any, ...], objects: Sequence[Any]) -> None:
        self.structure: Structure = key[0]
        self.modes = key[1:4]
        self.leaves = key[4:]
        self.objects = {id(x): x for x in objects}

    def write(self, t: Text) -> None:
        """The lines that give the leaves the names a0, a1, ... or return `MISS`."""
        _, _, (positional, named) = self.structure
        self._unpack(t, positional, "args", 0)
        self._unpack(t, named, "kwargs", _leaves(positional))
        tensors: list[int] = []
        for i, leaf in enumerate(self.leaves):
            self._leaf(t, i, leaf, tensors)
        grad, inference, level = self.modes
        t(f"if local.grad is not {grad} or local.inference is not {inference} or setting.level != {level!r}: return MISS")

    def _unpack(self, t: Text, structure: Structure, name: str, first: int) -> None:
        """The names of what a tuple, list or dict holds, whose first leaf is number `first`."""
        kind, keys, items = structure
        if name[0] == "x":
            t(f"if {name}.__class__ is not {t.name(kind)}: return MISS")
        if not items:
            t(f"if {name}: return MISS")
            return
        if kind is dict:
            t(f"if tuple({name}) != {t.name(keys)}: return MISS")
        inner: list[tuple[str, Structure, int]] = []
        for item in items:
            inner.append((f"a{first}" if item is None else f"x{len(t.lines)}_{len(inner)}", item, first))
            first += _leaves(item)
        # A wrong number of items is a ValueError.
        t(f"{''.join(f'{n}, ' for n, _, _ in inner)}= {name}{'.values()' * (kind is dict)}")
        for n, item, at in inner:
            if item is not None:
                self._unpack(t, item, n, at)

    def _leaf(self, t: Text, i: int, leaf: Any, tensors: list[int]) -> None:
        a = f"a{i}"
        if leaf is float or leaf is int:
            t(f"if {a}.__class__ is not {leaf.__name__}: return MISS")
            return
        kind, value, *rest = leaf
        if kind is slice:
            t(f"if not same({a}, {t.name(slice(value, *rest[:2]))}): return MISS")
        elif kind is object:
            t(f"if {a} is not {t.name(self.objects[value])}: return MISS")
        elif not issubclass(kind, Tensor):
            if value is None or kind is bool:
                t(f"if {a} is not {value}: return MISS")
            else:
                v = constant(t, value)
                other = f"{a}.__class__ is not {t.name(kind)} or {a} != {v}" if rest[0] is None else f"not same({a}, {v})"
                t(f"if {a} is not {v} and ({other}): return MISS")
        else:
            first, meta = rest
            t(f"if {a}.__class__ is not {'Tensor' if kind is Tensor else t.name(kind)}: return MISS")
            found = [f"{a}._spec is not {t.name(value)}"]
            if first != i:
                found.append(f"{a} is not a{first}")
            else:
                found += [f"{a} is a{j}" for j in tensors]
                tensors.append(i)
            if meta is None:
                found.append(f"{a}._meta is not None")
            else:
                found.append(f"(m := {a}._meta) is None or m.requires_grad is not {meta[0]} or (m.node is None) is not {meta[1]}")
            t(f"if {' or '.join(found)}: return MISS")


def _leaves(structure: Structure) -> int:
    """How many leaves a structure has."""
    return 1 if structure is None else sum(map(_leaves, structure[2]))


class _Writer:
    """Writes the function of one recording."""

    def __init__(self, r: Recording) -> None:
        self.r = r
        self.t = Text()
        self.program = r.program()
        self.inputs = [self._source(s) for s in r.sources]

    def _source(self, s: Source) -> str:
        """The text of the tensor that a source stands for."""
        t = self.t
        if s[0] == "held":
            return t.name(s[1])
        if s[0] == "arg":
            return f"a{s[1]}"
        if s[0] == "number":
            return f"number(a{s[1]})"
        if s[0] == "slot":
            return item_of(t, s[1], s[2])
        if s[0] == "scalar":
            return f"number({item_of(t, s[1], s[2])})"
        return f"{self._source(s[1])}._meta.grad"

    def write(self) -> Replay:
        r, t = self.r, self.t
        t("def replay(args, kwargs):", 0)
        t("try:", 1)
        r.arguments.write(t)
        self._guards()
        self._grads_as_recorded()
        self._others()
        r_name = t.name(r)
        if any(s[0] == "held" for s in r.sources):
            t(f"if state.stamp is not {r_name}.stamp and not {r_name}.look(): return MISS")
        t("except (KeyError, IndexError, ValueError, AttributeError, TypeError, RuntimeError): return MISS", 1)
        if r.early.places:
            self._early()
        if r.looped():
            leaves = "".join(f"a{i}, " for i in range(len(r.arguments.leaves)))
            others = "".join(f"{self.inputs[i]}, " for i, s in enumerate(r.sources) if s[0] != "held")
            t(f"return {r_name}.run(({leaves}), ({others}))", 1)
        else:
            self._body()
        return t.function()

    # checks

    def _guards(self) -> None:
        r, t = self.r, self.t
        if sum(len(c.keys) + 1 for c in r.checks) <= MOST_CHECKS:
            write_checks(t, r.checks)
        else:
            t(f"if not {t.name(guard_of(r.checks))}(): return MISS")

    def _grads_as_recorded(self) -> None:
        t = self.t
        for source, none, spec, _ in self.r.grads:
            if none is None:
                continue
            m = f"(m := {self._source(source)}._meta) is"
            if none:
                t(f"if {m} not None and m.grad is not None: return MISS")
            else:
                t(f"if {m} None or m.grad is None or m.grad._spec is not {t.name(spec)}: return MISS")

    def _others(self) -> None:
        """Names for inputs that are not held, and the checks of their types."""
        r, t = self.r, self.t
        for i, (s, spec, flag) in enumerate(zip(r.sources, r.specs, r.flags)):
            if s[0] == "held":
                continue
            if s[0] != "arg":
                t(f"i{i} = {self.inputs[i]}")
                self.inputs[i] = f"i{i}"
                if s[0] in ("number", "scalar"):
                    t(f"if i{i}._spec is not {t.name(spec)}: return MISS")
                    continue
            x = self.inputs[i]
            found = [f"{x}._spec is not {t.name(spec)}"] if s[0] != "arg" else []
            if flag >= 2:
                found.append(f"(m := {x}._meta) is None or not m.hooks or m.requires_grad is not {flag == 3}")
            else:
                found.append(f"(m := {x}._meta) is not None and (m.hooks or m.requires_grad)" if not flag else
                             f"(m := {x}._meta) is None or m.hooks or not m.requires_grad")  # fmt: skip
            # The signature has said of an argument that it has no record.
            leaf = r.arguments.leaves[s[1]] if s[0] == "arg" else None
            if leaf is None or leaf[3] is not None:
                t(f"if {' or '.join(found)}: return MISS")

    # the call

    def _body(self) -> None:
        r, t = self.r, self.t
        for s, x in zip(r.sources, self.inputs):
            if s[0] in ("arg", "slot", "grad"):
                t(f"if {x}._strides is not None: make_contiguous({x})", 1)
        donated = {j: i for i, j in self.program.donated}
        own = t.name(r.own)
        for i in donated.values():
            x = self.inputs[i]
            foreign = "" if r.sources[i][0] == "held" else f" or {x}._buffer.foreign"
            t(f"if getrefcount({x}._buffer) != {EXCLUSIVE}{foreign}: {own}({x})", 1)
        outputs = []
        for j, spec in enumerate(r.result_specs):
            if j in donated:
                outputs.append(f"{self.inputs[donated[j]]}._address")
                continue
            wanted = t.name(spec)
            t(f"try: b = {wanted}.free.pop()", 1)
            t(f"except IndexError: b = {t.name(r.obtain)}({wanted})", 1)
            t(f"o{j} = new(Buffer)", 1)
            t(f"o{j}.block = b", 1)
            t(f"p{j} = b[0]", 1)
            outputs.append(f"p{j}")
        self._run([f"{x}._address" for x in self.inputs], outputs)
        if r.late:
            seen = [repr(o) for o in r.outcomes[: len(r.early.places)]]
            for j, expected in enumerate(r.outcomes[len(seen) :], r.first_decision):
                seen.append(f"string_at(p{j}, {r.result_specs[j].nbytes})")
                self._expect(seen, expected)
        self._commit(donated)

    def _run(self, inputs: list[str], outputs: list[str]) -> None:
        t = self.t
        if not self.r.short:
            # Another thread may give a tensor other memory meanwhile.
            t(f"held = ({''.join(f'{x}._buffer, ' for x in self.inputs)})", 1)
        t("try:", 1)
        direct = getattr(self.program, "direct", None)
        if direct is None:
            given = ["".join(f"{x}, " for x in found) for found in (inputs, outputs)]
            t(f"{t.name(self.program.run)}(({given[0]}), ({given[1]}))")
        else:
            call, block, fail = direct
            t(f"if {t.name(call)}({', '.join([str(block), *inputs, *outputs])}): {t.name(fail)}()")
        t("except Exception as error:", 1)
        t(f"told = {t.name(self.r.failed)}(error)")
        t("raise told from told.__cause__")
        if not self.r.short:
            t("del held", 1)

    def _early(self) -> None:
        """The lines that find another outcome of the first decisions before the program runs."""
        r, t = self.r, self.t
        known = r.early
        for i in {~at for at in known.places if at < 0} | set(known.inputs):
            if r.sources[i][0] in ("arg", "slot", "grad"):
                t(f"if {self.inputs[i]}._strides is not None: make_contiguous({self.inputs[i]})", 1)
        if known.inputs or known.specs:
            program = compile_function(known.function, (), CPU, [r.specs[i] for i in known.inputs], known.specs)
            t(f"early = {t.name(empty)}({t.name(spec_of(F64, (len(known.specs),)))})", 1)
            t("e = early._address", 1)
            inputs = "".join(f"{self.inputs[i]}._address, " for i in known.inputs)
            outputs = "".join(f"e + {8 * n}, " for n in range(len(known.specs)))
            t("try:", 1)
            t(f"{t.name(program.run)}(({inputs}), ({outputs}))")
            t(f"except (IndexError, ValueError): raise {t.name(r.mismatch)}([]) from None", 1)
        seen = []
        for at, expected, d in zip(known.places, r.outcomes, r.decisions):
            address = f"{self.inputs[~at]}._address" if at < 0 else f"e + {8 * at}"
            seen.append(f"string_at({address}, {d.spec.nbytes})")
            self._expect(seen, expected)

    def _expect(self, seen: list[str], expected: bytes) -> None:
        """The lines that raise `Mismatch` unless the last of the outcomes seen is the recorded one."""
        t = self.t
        t(f"if {seen[-1]} != {expected!r}: raise {t.name(self.r.mismatch)}([{', '.join(seen)}])", 1)

    def _commit(self, donated: dict[int, int]) -> None:
        r, t = self.r, self.t
        for n, m in enumerate(r.made):
            self._tensor(f"t{n}", t.name(m.spec), f"o{m.result}", f"p{m.result}")
        if r.history is not None and r.arguments.modes[0]:
            self._attach(donated)
        writes = [(i, j) for i, j in r.writes if j not in donated]
        for i, j in writes:
            x = self.inputs[i]
            # The old memory goes once the tensor has the new address.
            t(f"old = {x}._buffer; {x}._buffer = o{j}; {x}._address = p{j}; {x}._strides = old = None", 1)
        if writes:
            t(f"{t.name(r.wrote)}()", 1)
        for source, _, _, new in r.grads:
            if new != "kept":
                x = self._source(source)
                t(f"if (m := {x}._meta) is None: m = {t.name(without_gradient)}({x})", 1)
                t(f"m.grad = {'None' if new is None else f't{new}'}", 1)
        for c, k, slot in r.slots:
            write_item(t, c, k, f"t{slot}")
        for c, k, made, kind in r.numbers:
            write_item(t, c, k, f"{t.name(kind)}({self._number(made)})")
        t(f"return {self._result(r.structure, iter(r.leaves))}", 1)

    def _tensor(self, name: str, spec: str, buffer: str, address: str) -> None:
        t = self.t
        t(f"{name} = new(Tensor)", 1)
        t(f"{name}._spec = {spec}; {name}._buffer = {buffer}; {name}._address = {address}", 1)
        t(f"{name}._strides = {name}._meta = {name}._traced = None", 1)

    def _attach(self, donated: dict[int, int]) -> None:
        r, t = self.r, self.t
        history = r.history
        assert history is not None
        saved, edges = "None", ""
        if history.back is not None:
            names = []
            for n, s in enumerate(history.saved):
                if s < 0:
                    names.append(f"alias({self.inputs[~s]})")
                else:
                    self._tensor(f"s{n}", t.name(r.result_specs[s]), f"o{s}", f"p{s}")
                    names.append(f"s{n}")
            saved = f"({''.join(f'{n}, ' for n in names)})"
            edges = "".join(f"{self._source(s)}._meta, " for s in history.edges)
        back = t.name(history.back or r.freed)
        t(f"node = Node({t.name(history.entry)}, {back}, ({edges}), {saved})", 1)
        for n, m in enumerate(r.made):
            if m.differentiable is not None:
                t(f"t{n}._meta = Meta({t.name(m.spec)}, node, {m.differentiable})", 1)

    def _number(self, j: int) -> str:
        spec = self.r.result_specs[j]
        return f"{self.t.name(_read)}({self.t.name(spec)}, o{j})"

    def _result(self, structure: Structure, leaves: Any) -> str:
        """The text of what is returned."""
        t = self.t
        if structure is None:
            kind, x = next(leaves)
            if kind == "made":
                return f"t{x}"
            if kind == "number":
                return self._number(x)
            return self.inputs[x] if kind == "input" else t.name(x)
        kind, keys, items = structure
        inner = [self._result(s, leaves) for s in items]
        if kind is dict:
            return "{" + ", ".join(f"{t.name(k)}: {v}" for k, v in zip(keys, inner)) + "}"
        if kind is list:
            return f"[{', '.join(inner)}]"
        values = "".join(f"{v}, " for v in inner)
        return f"({values})" if kind is tuple else f"{t.name(kind)}({values})"


def _read(spec: Any, buffer: Any) -> Any:
    from graphc.runtime.core import make
    from graphc.runtime.interop import item

    return item(make(spec, buffer, buffer.block[0]))


def without_gradient(t: Tensor) -> Meta:
    """The record of a tensor that had none and gets a `.grad`."""
    t._meta = meta = Meta(t._spec)
    meta.requires_grad = False
    return meta


def replay_of(recording: Recording) -> Replay:
    """The function that replays a recording."""
    return _Writer(recording).write()


def _exclusive() -> int:
    """What `getrefcount(t._buffer)` is where only `t` holds it."""
    t = _new(Tensor)
    t._buffer = Buffer()
    t._buffer.block = (0, None, [], 0)
    found: dict[str, int] = {}
    exec("n = count(t._buffer)", {"count": sys.getrefcount, "t": t}, found)
    return found["n"]


EXCLUSIVE = _exclusive()
