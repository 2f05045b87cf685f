"""Conversions between element types, each rounded once, as written at the head of codegen/expr.py.

bfloat16 is converted by integer arithmetic: the hardware instruction flushes subnormals. Where LLVM
would go through an intermediate float type or call a library, the intermediate value is rounded to
odd, after which the last rounding is as if done once (Boldo and Melquiond, "Emulation of FMA and
correctly rounded sums: proved algorithms using rounding to odd", 2008).
"""

from __future__ import annotations

import struct

from graphc.codegen.llvm.scope import REGISTER, Writer
from graphc.ir.types import BF16, BOOL, F16, F32, F64, I32, I64, U64, DType


class _Converter:
    """Writes instructions at one depth, on scalars or on vectors of one width."""

    def __init__(self, w: Writer, depth: int, width: int) -> None:
        self.w, self.depth, self.width = w, depth, width

    def type(self, scalar: str) -> str:
        return f"<{self.width} x {scalar}>" if self.width else scalar

    def number(self, scalar: str, value: int | str) -> str:
        return f"splat ({scalar} {value})" if self.width else str(value)

    def put(self, text: str) -> str:
        return self.w.put(self.depth, text)

    def change(self, instruction: str, x: str, source: str, target: str) -> str:
        return self.put(f"{instruction} {self.type(source)} {x} to {self.type(target)}")

    def integer(self, instruction: str, scalar: str, x: str, y: str | int) -> str:
        right = self.number(scalar, y) if isinstance(y, int) else y
        return self.put(f"{instruction} {self.type(scalar)} {x}, {right}")

    def choose(self, cond: str, scalar: str, x: str, y: str | int) -> str:
        t, right = self.type(scalar), self.number(scalar, y) if isinstance(y, int) else y
        return self.put(f"select {self.type('i1')} {cond}, {t} {x}, {t} {right}")

    def absolute(self, scalar: str, x: str) -> str:
        t = self.type(scalar)
        return self.put(f"call {t} @llvm.fabs({t} {x})")

    def double_to_float_odd(self, x: str) -> str:
        """f64 to f32, toward zero, with the last bit set where inexact."""
        near = self.change("fptrunc", x, "double", "float")
        back = self.change("fpext", near, "float", "double")
        inexact = self.integer("fcmp one", "double", back, x)
        above = self.integer("fcmp ogt", "double", self.absolute("double", back), self.absolute("double", x))
        bits = self.change("bitcast", near, "float", "i32")
        bits = self.integer("sub", "i32", bits, self.change("zext", above, "i1", "i32"))
        bits = self.integer("or", "i32", bits, self.change("zext", inexact, "i1", "i32"))
        return self.change("bitcast", bits, "i32", "float")

    def long_to_double_odd(self, x: str, signed: bool) -> str:
        """A 64-bit integer to f64, the bits that do not fit folded into the last one: exact after that."""
        low = self.integer("and", "i64", x, 0xFFF)
        sticky = self.choose(self.integer("icmp ne", "i64", low, 0), "i64", self.number("i64", 0x800), 0)
        folded = self.integer("or", "i64", self.integer("and", "i64", x, -0x1000), sticky)
        if signed:
            shifted = self.integer("add", "i64", x, 1 << 52)
            small = self.integer("icmp ult", "i64", shifted, 1 << 53)
        else:
            small = self.integer("icmp ult", "i64", x, 1 << 53)
        exact = self.choose(small, "i64", x, folded)
        return self.change("sitofp" if signed else "uitofp", exact, "i64", "double")

    def float_to_bfloat(self, x: str) -> str:
        """To nearest, ties to even; NaN stays NaN."""
        bits = self.change("bitcast", x, "float", "i32")
        upper = self.integer("lshr", "i32", bits, 16)
        odd = self.integer("and", "i32", upper, 1)
        carried = self.integer("add", "i32", self.integer("add", "i32", bits, 0x7FFF), odd)
        rounded = self.integer("lshr", "i32", carried, 16)
        nan = self.integer("fcmp uno", "float", x, x)
        chosen = self.choose(nan, "i32", self.integer("or", "i32", upper, 0x40), rounded)
        return self.change("trunc", chosen, "i32", "i16")

    def widen(self, x: str, source: DType) -> str:
        """float16 or bfloat16 to f32, exactly."""
        if source is F16:
            return self.change("fpext", self.change("bitcast", x, "i16", "half"), "half", "float")
        wide = self.integer("shl", "i32", self.change("zext", x, "i16", "i32"), 16)
        return self.change("bitcast", wide, "i32", "float")

    def narrow(self, x: str, target: DType) -> str:
        """f32 to float16 or bfloat16."""
        if target is F16:
            return self.change("bitcast", self.change("fptrunc", x, "float", "half"), "half", "i16")
        return self.float_to_bfloat(x)

    def saturated(self, x: str, scalar: str, target: DType) -> str:
        """A float to an integer: truncated, saturated, NaN gives 0. LLVM's own such conversion goes lane by lane."""
        signed, register = target.kind == "i", max(32, target.bits)
        bits = target.bits - signed
        digits = 24 if scalar == "float" else 53
        # The largest float within range; where that is not the largest integer, floats beyond are replaced afterwards.
        most = ((1 << min(bits, digits)) - 1) << max(0, bits - digits)
        least = -(1 << bits) if signed else 0

        def number(value: int) -> str:
            literal = "0x" + struct.pack(">d", float(value)).hex().upper()
            return self.number(scalar, literal)

        def bounded(test: str, y: str, bound: int) -> str:
            return self.choose(self.integer(f"fcmp {test}", scalar, y, number(bound)), scalar, number(bound), y)

        y = self.choose(self.integer("fcmp uno", scalar, x, x), scalar, number(0), x)
        y = bounded("ogt", bounded("olt", y, least), most)
        y = self.change("fptosi" if signed else "fptoui", y, scalar, f"i{register}")
        if bits > digits:
            beyond = self.integer("fcmp ogt", scalar, x, number(most))
            y = self.choose(beyond, f"i{register}", self.number(f"i{register}", (1 << bits) - 1 if signed else -1), y)
        return self.change("trunc", y, f"i{register}", REGISTER[target.short]) if target.bits < register else y

    def from_integer(self, x: str, source: DType, target: DType) -> str:
        scalar, signed = REGISTER[source.short], source.kind == "i"
        if target is BF16 and source.bits >= 32:
            if source in (I64, U64):
                return self.float_to_bfloat(self.double_to_float_odd(self.long_to_double_odd(x, signed)))
            exact = self.change("sitofp" if signed else "uitofp", x, scalar, "double")
            return self.float_to_bfloat(self.double_to_float_odd(exact))
        # Any integer that f32 cannot hold overflows float16, so two roundings do no harm there.
        through = "double" if target is F64 else "float"
        y = self.change("sitofp" if signed else "uitofp", x, scalar, through)
        return self.narrow(y, target) if target in (F16, BF16) else y


def convert(
    w: Writer, depth: int, varying: bool, x: str, source: DType, target: DType, width: int | None = None
) -> str:
    """The operand text of x converted from `source` to `target`; `width` if not that of the region."""
    if source is target:
        return x
    c = _Converter(w, depth, (w.width if width is None else width) if varying else 0)
    a, b = REGISTER[source.short], REGISTER[target.short]
    if target is BOOL:
        if source.kind != "f":
            return c.integer("icmp ne", a, x, 0)
        if source.bits == 16:
            x, a = c.widen(x, source), "float"
        return c.put(f"fcmp une {c.type(a)} {x}, zeroinitializer")
    if source is BOOL:
        if target.kind != "f":
            return c.change("zext", x, a, b)
        x, source, a = c.change("zext", x, a, "i32"), I32, "i32"
    if source.kind in "iu":
        if target.kind == "f":
            return c.from_integer(x, source, target)
        if source.bits == target.bits:
            return x
        widening = "sext" if source.kind == "i" else "zext"
        return c.change("trunc" if target.bits < source.bits else widening, x, a, b)
    if source.bits == 16:
        return convert(w, depth, varying, c.widen(x, source), F32, target, width)
    if target.kind == "f":
        if target.bits == 16:
            return c.narrow(c.double_to_float_odd(x) if source is F64 else x, target)
        return c.change("fpext" if target is F64 else "fptrunc", x, a, b)
    return c.saturated(x, a, target)
