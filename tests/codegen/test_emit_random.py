"""Random kernels, interpreted and executed: scopes, hoisting, masks, registers and memory in all combinations."""

from __future__ import annotations

import random

import numpy as np
import pytest
from graphc.codegen.expr import binary, cast, const, equal, fma, index, load, select, var
from graphc.codegen.loops import (
    Alloc,
    Assign,
    Buffer,
    Declare,
    For,
    If,
    Kernel,
    Let,
    Report,
    Store,
    Vector,
    print_kernel,
)
from graphc.ir.types import F32, I64

from tests.codegen.kernel_oracle import assert_same, lanes
from tests.codegen.kernel_words import TARGETS

SIZE = 512
X, D = Buffer("x", F32, "in"), Buffer("d", I64, "in")
Y, Z = Buffer("y", F32, "inout"), Buffer("z", I64, "out")
EXTENTS = {"n": 5, "m": 3}


class Maker:
    """Grows a kernel; every index is reduced into its buffer, so that any program is a legal one."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.names = 0
        # (expression, varies over the lanes) for each name in scope, and the registers with their region
        self.integers = [(var(v), False) for v in ("n", "m", "begin", "end")]
        self.floats: list = []
        self.registers: list = []
        self.locals: list = []
        self.width = 0
        self.masked = False

    def fresh(self, dtype=I64):
        self.names += 1
        # Names come back in sibling scopes, as lowering gives them.
        return var(f"v{self.names % 40}{'f' if dtype is F32 else ''}", dtype)

    def one(self, *choices):
        return self.random.choice(choices)()

    def integer(self, depth=2, uniform=False):
        pool = [e for e, varying in self.integers if not (varying and uniform)]
        if depth == 0 or self.random.random() < 0.3:
            return self.one(lambda: index(self.random.randint(-3, 9)), lambda: self.random.choice(pool))
        a, b = (self.integer(depth - 1, uniform) for _ in range(2))
        return self.one(
            lambda: a + b,
            lambda: a + b,
            lambda: a - b,
            lambda: a * index(self.random.randint(-2, 40)),
            lambda: a * b,
            lambda: select(self.condition(depth - 1, uniform), a, b),
            lambda: (a & index(63)) // index(self.random.randint(1, 7)),
            lambda: load(D, self.at(a)),
            lambda: self.pattern() + a if self.width and not uniform else a * 3,
            lambda: cast(self.float(depth - 1, uniform), I64) & index(255),
        )

    def at(self, e):
        """Inside a buffer; sometimes in a form that stays affine in the lane."""
        return binary("and", e, index(SIZE - 1))

    def place(self, uniform=False):
        base = binary("and", self.integer(2, True), index(127))
        if self.width and not uniform:
            lane, step = var("lane"), self.random.choice([1, 1, 1, -1, 2, 3])
            shift = 200 if step < 0 else 0
            return self.one(
                lambda: base + lane * step + shift,
                lambda: lane * step + (base + shift),
                lambda: self.at(self.integer()),
                lambda: base + self.pattern(),
            )
        return base

    def load_inside(self, uniform):
        """A load at any index, with the condition that it lies in the buffer."""
        at = self.integer(1, True)
        if self.width and not uniform:
            at = self.one(lambda: at + var("lane"), lambda: var("lane") * 2 + at - 8, lambda: self.integer())
        lower, upper = binary("ge", at, index(0)), binary("lt", at, index(SIZE))
        return load(self.random.choice([X, Y]), at, binary("and", lower, upper))

    def pattern(self):
        """Positions of a small image: offsets from lane to lane that are literals, below 300."""
        by, shift = self.random.randint(1, 7), self.random.randint(0, 5)
        lane = var("lane") + shift
        high, low = self.random.randint(0, 7), self.random.randint(0, 7)
        return (lane // by) * high + (lane % by) * low

    def float(self, depth=2, uniform=False):
        pool = [e for e, varying in self.floats if not (varying and uniform)]
        if depth == 0 or self.random.random() < 0.25:
            leaves = [lambda: const(F32, self.random.choice([0.5, -1.25, 3.0, 0.1])), lambda: load(X, self.place(uniform))]
            if pool:
                leaves += [lambda: self.random.choice(pool)] * 3
            return self.random.choice(leaves)()
        a, b = (self.float(depth - 1, uniform) for _ in range(2))
        choices = [
            lambda: a + b,
            lambda: a * b,
            lambda: fma(a, b, self.float(depth - 1, uniform)),
            lambda: select(self.condition(depth - 1, uniform), a, b),
            lambda: cast(self.integer(depth - 1, uniform), F32),
            lambda: load(Y, self.place(uniform)),
            lambda: load(X, self.place(uniform), self.condition(1, uniform)),
            lambda: self.load_inside(uniform),
        ]
        if self.locals:
            choices.append(lambda: load(self.random.choice(self.locals), self.place(uniform) & index(63)))
        if self.width and not self.masked:
            choices.append(lambda: lanes(self.random.choice(["add", "max", "min"]), self.float(depth - 1)))
        return self.random.choice(choices)()

    def condition(self, depth=1, uniform=False):
        op = self.random.choice(["lt", "le", "gt", "ge", "eq", "ne"])
        return self.one(
            lambda: binary(op, self.integer(depth, uniform), self.integer(depth, uniform)),
            lambda: binary(op, self.float(depth, uniform), self.float(depth, uniform)),
            lambda: binary(
                self.random.choice(["and", "or"]),
                equal(self.integer(depth, uniform), self.integer(depth, uniform)),
                binary("lt", self.integer(depth, uniform), self.integer(depth, uniform)),
            ),
        )

    def block(self, depth, length=4):
        saved = (list(self.integers), list(self.floats), list(self.registers), list(self.locals))
        body = []
        for _ in range(self.random.randint(1, length)):
            body += self.statement(depth)
        self.integers, self.floats, self.registers, self.locals = saved
        return tuple(body)

    def statement(self, depth):
        kinds = ["let", "let", "store", "store", "declare", "assign", "assign", "report"]
        if depth:
            kinds += ["for", "for", "if", "if", "if"] + ([] if self.width or self.masked else ["vector"] * 4)
            kinds += [] if self.width else ["alloc"]
        return getattr(self, "make_" + self.random.choice(kinds))(depth)

    def make_let(self, depth):
        varying = self.width > 0
        if self.random.random() < 0.5:
            name, e = self.unused(I64), self.integer()
            self.integers.append((name, varying))
        else:
            name, e = self.unused(F32), self.float()
            self.floats.append((name, varying))
        return [Let(name, e)]

    def unused(self, dtype):
        taken = {e for e, _ in self.integers + self.floats}
        while (name := self.fresh(dtype)) in taken:
            pass
        return name

    def make_store(self, depth):
        if self.random.random() < 0.3:
            return [Store(Z, self.place(), self.integer())]
        if self.locals and self.random.random() < 0.4:
            return [Store(self.random.choice(self.locals), self.place() & index(63), self.float())]
        return [Store(Y, self.place(), self.float())]

    def make_declare(self, depth):
        dtype = self.random.choice([I64, F32])
        name = self.unused(dtype)
        init = self.integer() if dtype is I64 else self.float()
        (self.integers if dtype is I64 else self.floats).append((name, self.width > 0))
        self.registers.append((name, self.width > 0))
        return [Declare(name, init)]

    def make_assign(self, depth):
        free = [r for r, varying in self.registers if varying or not self.masked]
        if not free:
            return []
        name = self.random.choice(free)
        uniform = not {id(r): v for r, v in self.registers}[id(name)]
        return [Assign(name, self.integer(2, uniform) if name.dtype is I64 else self.float(2, uniform))]

    def make_report(self, depth):
        return [Report(binary("gt", self.integer(), index(400)), self.random.randint(1, 9), self.integer())]

    def make_alloc(self, depth):
        self.names += 1
        buffer = Buffer(f"local{self.names}", F32, "local")
        i = self.unused(I64)
        self.locals.append(buffer)
        fill = For(i, index(0), index(64), (Store(buffer, i, cast(i, F32)),), index(1))
        return [Alloc(buffer, 64), fill]

    def make_for(self, depth):
        v = self.unused(I64)
        unroll = self.random.random() < 0.3
        start = index(self.random.randint(0, 2))
        stop = index(self.random.randint(0, 4)) if unroll else binary("and", self.integer(1, True), index(3))
        self.integers.append((v, False))
        body = self.block(depth - 1)
        self.integers.pop()
        return [For(v, start, stop, body, index(self.random.choice([1, 1, 2])), unroll)]

    def make_if(self, depth):
        uniform = not self.width or self.random.random() < 0.3
        lane = var("lane")
        if uniform:
            cond = self.condition(1, True)
        else:
            cond = self.one(self.condition, lambda: binary("lt", lane + self.integer(1, True), self.integer(1, True)))
        outer = self.masked
        self.masked = outer or not uniform
        then = self.block(depth - 1)
        other = self.block(depth - 1) if self.random.random() < 0.5 else ()
        self.masked = outer
        return [If(cond, then, other)]

    def make_vector(self, depth):
        self.width = self.random.choice([4, 16, 32])
        self.integers.append((var("lane"), True))
        body = self.block(depth - 1, 6)
        self.integers.pop()
        width, self.width = self.width, 0
        return [Vector(var("lane"), width, body)]


def random_kernel(seed: int) -> Kernel:
    maker = Maker(seed)
    i = var("i")
    maker.integers.append((i, False))
    body = maker.block(4, 6)
    return Kernel(
        "k", (X, D, Y, Z), ("n", "m"), var("n"), var("n"), (For(i, var("begin"), var("end"), body, index(1)),)
    )


def check(seed: int) -> None:
    rng = np.random.default_rng(seed)
    run = random_kernel(seed)
    arrays = {
        X: rng.standard_normal(SIZE).astype(np.float32),
        D: rng.integers(-20, 500, SIZE),
        Y: rng.standard_normal(SIZE).astype(np.float32),
        Z: np.zeros(SIZE, np.int64),
    }
    try:
        assert_same(run, arrays, EXTENTS, 0, 3, TARGETS)
    except AssertionError as error:
        raise AssertionError(f"seed {seed}: {error}\n{print_kernel(run)}") from None


@pytest.mark.parametrize("first", range(0, 200, 20))
def test_random_kernels(first):
    for seed in range(first, first + 20):
        check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 9000, 500))
def test_many_random_kernels(first):
    for seed in range(first, first + 500):
        check(seed)
