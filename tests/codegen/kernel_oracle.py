"""What a kernel of the loop language means, by NumPy, and the same kernel run as machine code.

`interpret` follows the head of codegen/loops.py statement by statement; lanes are array elements.
"""

from __future__ import annotations

import ctypes

import numpy as np
from graphc.codegen.evaluate import convert, evaluate
from graphc.codegen.expr import Expr, make, var
from graphc.codegen.llvm import jit
from graphc.codegen.llvm.emit import emit_kernel
from graphc.codegen.llvm.target import Target, host_target
from graphc.codegen.loops import (
    Alloc,
    Assign,
    Columns,
    Declare,
    For,
    If,
    Kernel,
    Let,
    Prefetch,
    Report,
    Store,
    Transpose,
    Vector,
)


def lanes(op: str, x: Expr) -> Expr:
    return make("lanes", x.dtype, (x,), op)


class _Oracle:
    def __init__(self, arrays, env):
        self.arrays = dict(arrays)
        self.env = env
        self.width = 0
        self.mask = None
        self.varying = {}
        self.error = [0, 0]

    def value(self, e):
        if e.op == "var":
            return self.env[e]
        args = [self.value(a) for a in e.args]
        if e.op == "load":
            return self.load(e, *args)
        if e.op == "lanes":
            return self.tree(e, args[0])
        names = [var(f"operand{i}", a.dtype) for i, a in enumerate(e.args)]
        result = evaluate(make(e.op, e.dtype, tuple(names), e.data), {n.data: a for n, a in zip(names, args)})
        return np.reshape(result, np.broadcast_shapes(*[np.shape(a) for a in args]))

    def load(self, e, index, cond=None):
        array = self.arrays[e.data]
        mask = self.mask
        if cond is not None:
            mask = cond if mask is None else cond & mask
        if mask is None:
            assert np.all((index >= 0) & (index < len(array))), f"{e} reads outside"
            return array[index]
        if np.shape(index) == () and (cond is None or np.shape(cond) == ()):
            # One element for all lanes.
            return array[index] if np.any(mask) else np.zeros((), array.dtype)
        index, mask = np.broadcast_to(index, (self.width,)), np.broadcast_to(mask, (self.width,))
        out = np.zeros(self.width, array.dtype)
        chosen = index[mask]
        assert np.all((chosen >= 0) & (chosen < len(array))), f"{e} reads outside"
        out[mask] = array[chosen]
        return out

    def tree(self, e, x):
        x = np.broadcast_to(x, (self.width,))
        while len(x) > 1:
            a, b = x[: len(x) // 2], x[len(x) // 2 :]
            with np.errstate(all="ignore"):
                x = {
                    "add": lambda a, b: a + b,
                    "mul": lambda a, b: a * b,
                    "max": lambda a, b: np.where((a >= b) | (a != a), a, b),
                    "min": lambda a, b: np.where((a <= b) | (a != a), a, b),
                    "or": lambda a, b: a | b,
                    "and": lambda a, b: a & b,
                }[e.data](a, b)
        return x[0]

    def block(self, body):
        for s in body:
            _STATEMENTS[type(s)](self, s)

    def set(self, register, x):
        if self.varying[register]:
            x = np.broadcast_to(x, (self.width,))
            if self.mask is not None and register in self.env:
                x = np.where(self.mask, x, self.env[register])
        self.env[register] = np.array(x)

    def declare(self, s):
        self.varying[s.var] = self.width > 0
        x = self.value(s.init)
        self.env[s.var] = np.array(np.broadcast_to(x, (self.width,)) if self.width else x)

    def assign(self, s):
        self.set(s.var, self.value(s.value))

    def let(self, s):
        self.env[s.var] = self.value(s.value)

    def columns(self, s):
        place, source = self.value(s.place), self.arrays[s.source]
        assert self.width == len(s.names) and place.shape == (self.width,)
        for j, name in enumerate(s.names):
            assert np.all((place + j >= 0) & (place + j < len(source)))
            self.env[name] = convert(source[place + j], s.source.dtype, name.dtype)

    def store(self, s):
        index, x, array = self.value(s.index), self.value(s.value), self.arrays[s.buffer]
        if np.shape(index) == () and np.shape(x) == ():
            if self.mask is None or self.mask.any():
                array[index] = x
            return
        index, x = np.broadcast_to(index, (self.width,)), np.broadcast_to(x, (self.width,))
        for lane in range(self.width):
            if self.mask is None or self.mask[lane]:
                assert 0 <= index[lane] < len(array), "a store outside"
                array[index[lane]] = x[lane]

    def transpose(self, s):
        at, step = int(self.value(s.target_at)), int(self.value(s.target_step))
        start, stride = int(self.value(s.source_at)), int(self.value(s.source_step))
        source, target = self.arrays[s.source], self.arrays[s.target]
        for i in range(s.size):
            for j in range(s.columns):
                assert 0 <= at + j * step + i < len(target) and 0 <= start + i * stride + j < len(source)
                target[at + j * step + i] = convert(source[start + i * stride + j], s.source.dtype, s.target.dtype)

    def alloc(self, s):
        self.arrays[s.buffer] = np.zeros(s.size, s.buffer.dtype.numpy)

    def report(self, s):
        cond, x = self.value(s.cond), self.value(s.value)
        if self.width:
            cond = np.broadcast_to(cond, (self.width,))
            cond = cond if self.mask is None else cond & self.mask
        if np.any(cond) and self.error[0] == 0:
            x = np.broadcast_to(x, np.shape(cond))
            self.error = [s.site, int(x[np.argmax(cond)] if np.shape(cond) else x)]

    def vector(self, s):
        self.width = s.width
        self.env[s.var] = np.arange(s.width)
        self.block(s.body)
        self.width = 0

    def condition(self, s):
        cond = self.value(s.cond)
        if cond.shape == ():
            self.block(s.then if cond else s.orelse)
            return
        outer = self.mask
        for body, mask in ((s.then, cond), (s.orelse, ~cond)):
            self.mask = mask if outer is None else outer & mask
            self.block(body)
        self.mask = outer

    def loop(self, s):
        start, stop, step = (int(self.value(x)) for x in (s.start, s.stop, s.step))
        for i in range(start, stop, step):
            self.env[s.var] = np.int64(i)
            self.block(s.body)


_STATEMENTS = {
    Alloc: _Oracle.alloc,
    Assign: _Oracle.assign,
    Declare: _Oracle.declare,
    For: _Oracle.loop,
    If: _Oracle.condition,
    Let: _Oracle.let,
    Report: _Oracle.report,
    Store: _Oracle.store,
    Columns: _Oracle.columns,
    Prefetch: lambda oracle, s: oracle.value(s.index),
    Transpose: _Oracle.transpose,
    Vector: _Oracle.vector,
}


def _environment(kernel, extents, begin, end):
    env = {var(n): np.int64(v) for n, v in extents.items()}
    env[var("begin")], env[var("end")] = np.int64(begin), np.int64(end)
    assert set(extents) == set(kernel.extents)
    return env


def interpret(kernel: Kernel, arrays, extents, begin=0, end=1):
    """Run on copies of `arrays` (buffer -> array); gives (arrays after, [site, value])."""
    copies = {b: a.copy() for b, a in arrays.items()}
    oracle = _Oracle(copies, _environment(kernel, extents, begin, end))
    oracle.block(kernel.body)
    return copies, oracle.error


def execute(kernel: Kernel, arrays, extents, begin=0, end=1, target: Target | None = None):
    """The same by the emitter and LLVM."""
    target = target or host_target()
    text = emit_kernel(kernel, target)
    jit.verify(text)
    name = kernel.name
    address = jit.load(jit.compile_text(text, target), name)
    copies = {b: np.ascontiguousarray(a).copy() for b, a in arrays.items()}
    words = [copies[b].ctypes.data for b in kernel.buffers] + [extents[n] for n in kernel.extents]
    args, error = np.array(words or [0], np.int64), np.zeros(2, np.int64)
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4)(address)
    function(args.ctypes.data, begin, end, error.ctypes.data)
    return copies, error.tolist()


def same_bits(a, b) -> bool:
    """Equal bytes, any NaN for any NaN."""
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    unsigned = np.dtype(f"u{a.dtype.itemsize}")
    equal = a.view(unsigned) == b.view(unsigned)
    if a.dtype.kind not in "biu":
        with np.errstate(invalid="ignore"):  # ml_dtypes raises the flag for a signalling NaN
            equal |= np.isnan(a) & np.isnan(b)
    return bool(np.all(equal))


def assert_same(kernel, arrays, extents, begin=0, end=1, targets=(None,)):
    """Interpreted and executed for each target: equal bits in every buffer, the same error."""
    expected, error = interpret(kernel, arrays, extents, begin, end)
    for target in targets:
        got, got_error = execute(kernel, arrays, extents, begin, end, target)
        assert got_error == error
        for buffer in kernel.buffers:
            if not same_bits(got[buffer], expected[buffer]):
                where = np.flatnonzero(~(got[buffer] == expected[buffer]))[:5]
                raise AssertionError(
                    f"{buffer} differs at {where}: {got[buffer][where]} for {expected[buffer][where]}"
                    f" on {target.cpu if target else 'the host'}"
                )
