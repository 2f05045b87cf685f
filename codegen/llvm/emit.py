"""Kernels of the loop language as LLVM text.

`emit_kernel` gives a module with one function,
`void @NAME(ptr args, i64 begin, i64 end, ptr error)`, in static single assignment form: loops are
rotated and registers are phi nodes. Expressions are in expressions.py, memory in memory.py,
placement in scope.py; this file is statements and control flow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from graphc.codegen.expr import Expr, var
from graphc.codegen.llvm.columns import columns
from graphc.codegen.llvm.expressions import condition, value
from graphc.codegen.llvm.masks import any_lane, both, inverse
from graphc.codegen.llvm.memory import STREAM, element_type, prefetch, store
from graphc.codegen.llvm.scope import REGISTER, Value, Writer, result
from graphc.codegen.llvm.target import Target
from graphc.codegen.llvm.transpose import transpose
from graphc.codegen.loops import (
    Alloc,
    Assign,
    Buffer,
    Columns,
    Declare,
    For,
    If,
    Kernel,
    Let,
    Prefetch,
    Report,
    Stmt,
    Store,
    Transpose,
    Vector,
)
from graphc.ir.types import I64

Effects = frozenset[Any]
# Thread-private arrays live on the stack; a worker's stack is at least 8 MiB.
MAX_LOCAL_BYTES = 2 << 20
# Metadata node 1: branch weights of an error.
UNLIKELY = 1


@dataclass
class _Register:
    varying: bool
    mask: Value | None  # in force where it was declared


class _Emitter(Writer):
    """One kernel in the making."""

    def __init__(self) -> None:
        super().__init__()
        self.registers: dict[Expr, _Register] = {}
        self.effects: dict[int, Effects] = {}
        self.allocations: list[str] = []
        self.local_bytes = 0


def emit_kernel(kernel: Kernel, target: Target) -> str:
    """The LLVM module of a kernel. Raises `TypeError` where the kernel breaks a rule of the loop language."""
    return emit_kernels((kernel,), target)


def emit_kernels(kernels: Sequence[Kernel], target: Target) -> str:
    """One LLVM module with a function for each kernel: cheaper to compile than a module each."""
    functions: list[str] = []
    metadata = ["!0 = !{}", f'!{UNLIKELY} = !{{!"branch_weights", i32 1, i32 1048575}}', f"!{STREAM} = !{{i32 1}}"]
    first = UNLIKELY + 1
    for kernel in kernels:
        functions += _function(kernel, first, target)
        metadata += _alias_metadata(len(kernel.buffers), first)
        first += 3 * len(kernel.buffers) + 1
    width = target.vector_bits
    return "\n".join(
        [
            f'target datalayout = "{target.data_layout}"',
            f'target triple = "{target.triple}"',
            *functions,
            f'attributes #0 = {{ nounwind "prefer-vector-width"="{width}" "no-trapping-math"="true" }}',
            *metadata,
            "",
        ]
    )


def _function(kernel: Kernel, first: int, target: Target) -> list[str]:
    """The lines of a kernel's function; `first` is its first metadata node."""
    if kernel.grid is not None:
        raise TypeError(f"kernel {kernel.name} has a grid: it is scheduled for a device, and codegen/c/cuda.py writes it")
    w = _Emitter()
    w.scales = target.vector_bits == 512
    w.set_width(0)
    w.written = _effects(w, kernel.body)
    entry = w.push("entry")
    w.allocations = entry.lines
    for i, buffer in enumerate(kernel.buffers):
        w.pointers[buffer] = f"%b{i}"
        w.tags[buffer] = f", !alias.scope !{first + 2 * i}, !noalias !{first + 2 * i + 1}"
        entry.lines.append(f"%q{i} = getelementptr i64, ptr %args, i64 {i}")
        entry.lines.append(f"%b{i} = load ptr, ptr %q{i}, align 8, !invariant.load !0")
    for i, extent in enumerate(kernel.extents, len(kernel.buffers)):
        entry.lines.append(f"%q{i} = getelementptr i64, ptr %args, i64 {i}")
        entry.lines.append(f"%e{i} = load i64, ptr %q{i}, align 8, !invariant.load !0")
        w.name(var(extent), Value(I64, 0, 0, f"%e{i}", base=f"%e{i}"))
    for name in ("begin", "end"):
        w.name(var(name), Value(I64, 0, 0, f"%{name}", base=f"%{name}"))
    _block(w, kernel.body)
    w.line("ret void")
    head = f"define void @{kernel.name}(ptr noalias readonly %args, i64 %begin, i64 %end, ptr noalias %error) #0 {{"
    return [head, "entry:", *[line for piece in w.pieces for line in piece], "}"]


def _alias_metadata(count: int, first: int) -> list[str]:
    """One scope a buffer; each access is in its own scope and not in the others."""
    domain = first + 2 * count
    scopes = [domain + 1 + i for i in range(count)]
    lines = [f"!{domain} = distinct !{{!{domain}}}"]
    for i, scope in enumerate(scopes):
        others = ", ".join([f"!{s}" for s in scopes if s != scope])
        lines.append(f"!{scope} = distinct !{{!{scope}, !{domain}}}")
        lines.append(f"!{first + 2 * i} = !{{!{scope}}}")
        lines.append(f"!{first + 2 * i + 1} = !{{{others}}}")
    return lines


def _effects(w: _Emitter, body: tuple[Stmt, ...]) -> Effects:
    """The registers and buffers that a block writes."""
    known = w.effects.get(id(body))
    if known is not None:
        return known
    keys: set[Any] = set()
    for s in body:
        if isinstance(s, Store):
            keys.add(s.buffer)
        elif isinstance(s, Transpose):
            keys.add(s.target)
        elif isinstance(s, Assign):
            keys.add(s.var)
        elif isinstance(s, (For, Vector)):
            keys |= _effects(w, s.body)
        elif isinstance(s, If):
            keys |= _effects(w, s.then) | _effects(w, s.orelse)
    w.effects[id(body)] = found = frozenset(keys)
    return found


def _block(w: _Emitter, body: tuple[Stmt, ...]) -> None:
    for s in body:
        STATEMENTS[type(s)](w, s)


# Registers


def _owner(w: _Emitter) -> int:
    """The scope that owns the lines being written: what is written now is valid until that scope ends."""
    depth = len(w.scopes) - 1
    while w.scopes[depth].shared:
        depth -= 1
    return depth


def _set_register(w: _Emitter, register: Expr, v: Value) -> None:
    w.changed(register)
    new = v.with_deps(w.bit(register))
    new.depth = min(v.depth, _owner(w))
    w.memo[register] = new


def _declare(w: _Emitter, s: Declare) -> None:
    v = value(w, s.init)
    if w.width:
        v = Value(v.dtype, v.depth, 0, None, w.vector(v), w.width, None)
    w.registers[s.var] = _Register(w.width > 0, w.mask)
    w.scopes[-1].entries.append(s.var)
    _set_register(w, s.var, v)


def _assign(w: _Emitter, s: Assign) -> None:
    register = w.registers.get(s.var)
    if register is None or s.var not in w.memo:
        raise KeyError(f"{s.var.data} is assigned but not declared in an enclosing block")
    v = value(w, s.value)
    if not register.varying:
        if v.coef != 0:
            raise TypeError(
                f"{s.var.data} is declared outside the vector region and holds one value; "
                "assign it a uniform one, such as lanes.add(..)"
            )
        if w.mask is not None and w.mask is not register.mask:
            raise TypeError(f"{s.var.data} holds one value and is assigned under a condition that varies over the lanes")
        _set_register(w, s.var, v)
        return
    text, depth = w.vector(v), v.depth
    if w.mask is not None and w.mask is not register.mask:
        old, mask = w.memo[s.var], w.mask
        depth = max(depth, old.depth, mask.depth, w.scopes[-1].pure_floor)
        t, lanes = w.vector_types[v.dtype.short], w.vector_types["bool"]
        text = w.put(depth, f"select {lanes} {w.vector(mask)}, {t} {text}, {t} {w.vector(old)}")
    _set_register(w, s.var, Value(v.dtype, depth, 0, None, text, w.width, None))


def _let(w: _Emitter, s: Let) -> None:
    if s.var in w.memo:
        raise TypeError(f"the name {s.var.data} is given twice")
    v = value(w, s.value)
    w.changed(s.var)
    # The name keeps this value whatever is written later. What is computed from it and hoisted out of
    # this scope is forgotten when the name is given to another value.
    deps = 0 if v.depth == len(w.scopes) - 1 else w.bit(s.var)
    w.name(s.var, v.with_deps(deps) if v.deps != deps else v)


def _carried(w: _Emitter, effects: Effects) -> list[Expr]:
    """The registers among `effects` that are alive here, in a fixed order."""
    alive = [k for k in effects if isinstance(k, Expr) and k in w.memo and k in w.registers]
    return sorted(alive, key=lambda e: str(e.data))


def _register_operand(w: _Emitter, register: Expr) -> str:
    return w.operand(w.memo[register], w.registers[register].varying)


def _fresh_register(w: _Emitter, register: Expr, name: str) -> None:
    """The register has the value of a phi node that stands in the innermost block."""
    varying = w.registers[register].varying
    w.changed(register)
    w.memo[register] = result(w, register.dtype, _owner(w), w.bit(register), varying, name)


def _register_type(w: _Emitter, register: Expr) -> str:
    return w.typed(register.dtype.short, w.registers[register].varying)


# Control flow


def _for(w: _Emitter, s: For) -> None:
    start, stop, step = value(w, s.start), value(w, s.stop), value(w, s.step)
    literal = not (start.base or stop.base or step.base or start.coef or stop.coef or step.coef)
    if s.unroll:
        if not literal:
            raise TypeError(f"the loop over {s.var.data} is to be unrolled, but its bounds are not literals")
        for i in range(start.offset, stop.offset, step.offset):
            w.push("turn")
            w.changed(s.var)
            w.name(s.var, Value(I64, 0, w.bit(s.var), str(i), offset=i))
            _block(w, s.body)
            w.pop()
        return
    if literal and start.offset >= stop.offset:
        return
    effects = _effects(w, s.body)
    carried = _carried(w, effects)
    for key in effects:
        w.changed(key)
    first, last, stride = w.scalar(start), w.scalar(stop), w.scalar(step)
    initial = [_register_operand(w, r) for r in carried]
    types = [_register_type(w, r) for r in carried]
    n = w.fresh()
    before = w.label
    if not literal:
        # In a piece of its own: what is hoisted from the body goes before it.
        w.piece().extend((f"%g{n} = icmp slt i64 {first}, {last}", f"br i1 %g{n}, label %pre{n}, label %exit{n}"))
        w.push("guard")
        w.new_block(f"pre{n}")
    preheader = w.label
    enter = w.piece()
    w.push("loop")
    w.label = f"loop{n}"
    depth = len(w.scopes) - 1
    index = f"%i{n}"
    w.name(s.var, Value(I64, depth, 0, index, base=index))
    for r in carried:
        _fresh_register(w, r, f"%r{w.fresh()}")
    names = [_register_operand(w, r) for r in carried]
    _block(w, s.body)
    final = [_register_operand(w, r) for r in carried]
    latch = w.label
    enter += [f"br label %loop{n}", f"loop{n}:"]
    enter.append(f"{index} = phi i64 [ {first}, %{preheader} ], [ %n{n}, %{latch} ]")
    for name, t, a, b in zip(names, types, initial, final):
        enter.append(f"{name} = phi {t} [ {a}, %{preheader} ], [ {b}, %{latch} ]")
    w.line(f"%n{n} = add nsw i64 {index}, {stride}")
    w.line(f"%c{n} = icmp slt i64 %n{n}, {last}")
    w.line(f"br i1 %c{n}, label %loop{n}, label %exit{n}")
    w.pop()
    if not literal:
        w.pop()
    w.new_block(f"exit{n}")
    for r, t, a, b in zip(carried, types, initial, final):
        name = b
        if not literal:
            name = w.put(len(w.scopes) - 1, f"phi {t} [ {a}, %{before} ], [ {b}, %{latch} ]")
        _fresh_register(w, r, name)


def _vector(w: _Emitter, s: Vector) -> None:
    if w.width:
        raise TypeError("vector regions do not nest")
    if s.width < 1 or s.width & (s.width - 1):
        raise TypeError(f"a vector region has a power of two of lanes, not {s.width}")
    w.push("region")
    w.set_width(s.width)
    w.name(s.var, Value(I64, len(w.scopes) - 1, 0, None, coef=1))
    _block(w, s.body)
    w.set_width(0)
    w.pop()


def _if(w: _Emitter, s: If) -> None:
    cond = condition(w, s.cond)
    if cond.coef != 0:
        _masked(w, cond, s)
        return
    if cond.scalar in ("true", "false"):
        chosen = s.then if cond.scalar == "true" else s.orelse
        w.push("turn")
        _block(w, chosen)
        w.pop()
        return
    effects = _effects(w, s.then) | _effects(w, s.orelse)
    carried = _carried(w, effects)
    old = [w.memo[r] for r in carried]
    initial = [_register_operand(w, r) for r in carried]
    types = [_register_type(w, r) for r in carried]
    n = w.fresh()
    before = w.label
    no = f"else{n}" if s.orelse else f"exit{n}"
    question = w.scalar(cond)
    w.piece().append(f"br i1 {question}, label %then{n}, label %{no}")
    ends: list[tuple[str, list[str]]] = []
    for label, block in ((f"then{n}", s.then), (f"else{n}", s.orelse)):
        if not block:
            ends.append((before, initial))
            if block is s.then:
                # An empty `then` still needs its block.
                w.push("branch")
                w.new_block(label)
                w.line(f"br label %exit{n}")
                w.pop()
                ends[-1] = (label, initial)
            continue
        for r, v in zip(carried, old):
            w.changed(r)
            w.memo[r] = v
        w.push("branch")
        w.new_block(label)
        _block(w, block)
        ends.append((w.label, [_register_operand(w, r) for r in carried]))
        w.line(f"br label %exit{n}")
        w.pop()
    w.new_block(f"exit{n}")
    (a_label, a), (b_label, b) = ends
    for r, t, x, y in zip(carried, types, a, b):
        name = w.put(len(w.scopes) - 1, f"phi {t} [ {x}, %{a_label} ], [ {y}, %{b_label} ]")
        _fresh_register(w, r, name)


def _masked(w: _Emitter, cond: Value, s: If) -> None:
    outer = w.mask
    for block, inverted in ((s.then, False), (s.orelse, True)):
        if not block:
            continue
        mask = inverse(w, cond) if inverted else cond
        w.mask = mask if outer is None else both(w, outer, mask)
        w.push("mask")
        _block(w, block)
        w.pop()
        w.mask = outer


# Memory and errors


def _store(w: _Emitter, s: Store) -> None:
    store(w, s.buffer, value(w, s.index), value(w, s.value), s.stream)
    w.changed(s.buffer)


def _prefetch(w: _Emitter, s: Prefetch) -> None:
    prefetch(w, s.buffer, value(w, s.index), s.write)


def _alloc(w: _Emitter, s: Alloc) -> None:
    w.local_bytes += s.size * s.buffer.dtype.itemsize
    if w.local_bytes > MAX_LOCAL_BYTES:
        raise TypeError(
            f"thread-private arrays of a kernel take at most {MAX_LOCAL_BYTES} bytes; "
            f"with {s.buffer.name} they take {w.local_bytes}"
        )
    name = f"%l{w.fresh()}"
    w.pointers[s.buffer] = name
    w.tags[s.buffer], w.sizes[s.buffer] = "", s.size
    w.allocations.insert(0, f"{name} = alloca [{s.size} x {element_type(s.buffer)}], align 64")
    w.changed(s.buffer)


def _report(w: _Emitter, s: Report) -> None:
    cond, what = value(w, s.cond), value(w, s.value)
    if what.dtype.kind == "f":
        raise TypeError(f"Report at site {s.site} gives a {what.dtype}; cast it to an integer, which is what an error holds")
    n, depth = w.fresh(), len(w.scopes) - 1
    varying = cond.coef != 0 or w.mask is not None
    what_varies = what.coef != 0
    text = w.operand(what, what_varies)
    lanes, bits = "", f"i{w.width}"
    if varying:
        mask = cond if w.mask is None else both(w, w.mask, cond)
        lanes = w.vector(mask)
        question = any_lane(w, mask, depth)
    else:
        question = w.scalar(cond)
    w.line(f"br i1 {question}, label %report{n}, label %fine{n}, !prof !{UNLIKELY}")
    w.line(f"report{n}:")
    short = what.dtype.short
    scalar = REGISTER[short]
    if what_varies:
        lane = "0"
        if varying:
            whole = w.put(depth, f"bitcast <{w.width} x i1> {lanes} to {bits}")
            lane = w.put(depth, f"call {bits} @llvm.cttz({bits} {whole}, i1 true)")
        text = w.put(depth, f"extractelement {w.vector_types[short]} {text}, {bits if varying else 'i64'} {lane}")
    if what.dtype.bits < 64:
        text = w.put(depth, f"{'sext' if what.dtype.kind == 'i' else 'zext'} {scalar} {text} to i64")
    pair = w.put(depth, f"cmpxchg ptr %error, i64 0, i64 {s.site} monotonic monotonic")
    won = w.put(depth, f"extractvalue {{ i64, i1 }} {pair}, 1")
    w.line(f"br i1 {won}, label %first{n}, label %fine{n}")
    w.line(f"first{n}:")
    w.line(f"%w{n} = getelementptr i64, ptr %error, i64 1")
    w.line(f"store i64 {text}, ptr %w{n}, align 8")
    w.line(f"br label %fine{n}")
    w.new_block(f"fine{n}")


STATEMENTS: dict[type, Callable[[_Emitter, Any], None]] = {
    For: _for,
    Vector: _vector,
    If: _if,
    Let: _let,
    Declare: _declare,
    Assign: _assign,
    Store: _store,
    Alloc: _alloc,
    Transpose: transpose,
    Columns: columns,
    Prefetch: _prefetch,
    Report: _report,
}

__all__ = ["Buffer", "emit_kernel", "emit_kernels"]
