"""The stage between fusion and schedules: each group as the naive loops that define it.

A nest says what is computed at every position, in mathematical order, without vectors, tiles,
packing or threads. The scheduled kernels compute the same bits.
"""

from __future__ import annotations

from collections.abc import Callable

from graphc.codegen.expr import Expr, index, show, var
from graphc.codegen.fuse import ALONE, CONTRACT, REDUCE
from graphc.codegen.lower.index import Position, dim_expr
from graphc.codegen.lower.nest import group_buffers
from graphc.codegen.lower.pull import Pull
from graphc.ir.function import Function, Operation, Value
from graphc.ir.types import I64, Dim, Shape


def _coords(shape: Shape, stem: str) -> tuple[Expr, ...]:
    return tuple(var(f"{stem}{d}", I64) for d in range(len(shape)))


def _loops(coords: tuple[Expr, ...], shape: Shape) -> str:
    return ", ".join(f"{show(c)} < {n}" for c, n in zip(coords, shape, strict=True)) or "once"


def _named(stem: str, value: Value, number: int) -> Callable[[Position], Expr]:
    def at(position: Position) -> Expr:
        inside = ", ".join(show(c) for c in position.coords)
        return var(f"{stem}{number}[{inside}]", value.type.dtype)

    return at


def print_nest(group: Function) -> str:
    """The naive loops of a (canonical) group function, as text."""
    params, results = group_buffers(group)
    pull = Pull(group, dict(zip(group.params, params, strict=True)))
    head = ", ".join(f"{b.name}: {p.type}" for b, p in zip(params, group.params, strict=True))
    tail = ", ".join(f"{b.name}: {r.type}" for b, r in zip(results, group.results, strict=True))
    lines = [f"nest @{group.name}({head}) -> ({tail}) {{"]
    count = 0
    for op in group.ops:
        if op.name not in REDUCE | CONTRACT | ALONE:
            continue
        describe = _CONTRACT.get(op.name, _reduce if op.name in REDUCE else _alone)
        lines += [f"  {line}" for line in describe(pull, op, count)]
        for i, r in enumerate(op.results):
            pull.bind(r, _named("r" if i == 0 else f"r{i}_", r, count))
        count += 1
    for r, b in zip(group.results, results, strict=True):
        coords = _coords(r.type.shape, "i")
        at = Position(r.type.shape, coords)
        lines.append(f"  for {_loops(coords, r.type.shape)}: {b.name}[{show(at.flat)}] = {show(pull.at(r, at))}")
    return "\n".join([*lines, "}"])


def _reduce(pull: Pull, op: Operation, number: int) -> list[str]:
    source = op.operands[0]
    axes = op.attrs["axes"] if "axes" in op.attrs else (op.attrs["axis"],)
    coords = tuple(
        var(f"k{d}" if d in axes else f"i{d}", I64) for d in range(source.type.rank)
    )
    kept = [d for d in range(source.type.rank) if d not in axes]
    outer = _loops(tuple(coords[d] for d in kept), tuple(source.type.shape[d] for d in kept))
    inner = _loops(tuple(coords[a] for a in axes), tuple(source.type.shape[a] for a in axes))
    element = show(pull.at(source, Position(source.type.shape, coords)))
    target = ", ".join(show(coords[d]) for d in kept)
    return [f"for {outer}: r{number}[{target}] = {op.name}({inner}: {element})"]


def _dot(pull: Pull, op: Operation, number: int) -> list[str]:
    lhs, rhs = op.operands
    a = op.attrs
    place: list[list[Expr | None]] = [[None] * lhs.type.rank, [None] * rhs.type.rank]
    out = _coords(op.result.type.shape, "i")
    for i, (p, q) in enumerate(zip(a["lhs_batch"], a["rhs_batch"], strict=True)):
        place[0][p] = place[1][q] = out[i]
    ks: list[Expr] = []
    sizes: list[Dim] = []
    for i, (p, q) in enumerate(zip(a["lhs_contract"], a["rhs_contract"], strict=True)):
        k = var(f"k{i}", I64)
        place[0][p] = place[1][q] = k
        ks.append(k)
        sizes.append(lhs.type.shape[p])
    free = iter(out[len(a["lhs_batch"]) :])
    for side in place:
        for d, c in enumerate(side):
            if c is None:
                side[d] = next(free)
    left, right = (
        show(pull.at(v, Position(v.type.shape, [c for c in side if c is not None])))
        for v, side in zip(op.operands, place, strict=True)
    )
    target = ", ".join(map(show, out))
    inner = _loops(tuple(ks), tuple(sizes))
    return [
        f"for {_loops(out, op.result.type.shape)}: r{number}[{target}] = "
        f"contract({inner} in blocks of 256: {left} * {right})"
    ]


def _conv(pull: Pull, op: Operation, number: int) -> list[str]:
    x, w = op.operands
    out = _coords(op.result.type.shape, "i")
    kernel = _coords(w.type.shape, "k")
    target = ", ".join(map(show, out))
    inner = _loops(kernel[1:], w.type.shape[1:])
    position = ", ".join(
        f"(i{d + 2}*{s} + k{d + 2}*{rd} - {lo})/{ld}"
        for d, (s, rd, ld, (lo, _)) in enumerate(
            zip(op.attrs["strides"], op.attrs["rhs_dilation"], op.attrs["lhs_dilation"], op.attrs["padding"], strict=True)
        )
    )
    weight = show(pull.at(w, Position(w.type.shape, (out[1], *kernel[1:]))))
    name = pull.buffers[x].name if x in pull.buffers else "x"
    return [
        f"for {_loops(out, op.result.type.shape)}: r{number}[{target}] = contract({inner} in blocks of 256: "
        f"{name}[i0, k1, {position}] * {weight})"
    ]


def _alone(pull: Pull, op: Operation, number: int) -> list[str]:
    coords = _coords(op.operands[-1].type.shape, "u")
    values = [
        show(pull.at(v, Position(v.type.shape, coords))) if v.type.shape == op.operands[-1].type.shape else str(v.type)
        for v in op.operands[1:]
    ]
    return [f"r{number} = {op.name}(for {_loops(coords, op.operands[-1].type.shape)}: {', '.join(values)})"]


def _attention(pull: Pull, op: Operation, number: int) -> list[str]:
    q, k, v, scale, *rest = op.operands
    b, h, i = _coords(q.type.shape[:3], "i")
    heads, key_heads = (dim_expr(x.type.shape[1]) for x in (q, k))
    kh = h if heads is key_heads else h // (heads // key_heads)
    j, d, e = var("j"), var("d"), var("e")

    def at(x: Value, *coords: Expr) -> str:
        return show(pull.at(x, Position(x.type.shape, [index(0) if n == 1 else c for n, c in zip(x.type.shape, coords)])))

    score = f"sum(d < {q.type.shape[3]}: {at(q, b, h, i, d)} * {at(k, b, kh, j, d)}) * {at(scale)}"
    mask = rest[3:] if op.name == "attention_grad" else rest
    if mask:
        score += f", mask {at(mask[0], b, h, i, j)}"
    keys = f"j < {k.type.shape[2]} in blocks of 64" + (", j <= i2" if op.attrs["causal"] else "")
    value = at(v, b, kh, j, e)
    if op.name == "attention_grad":
        lse, delta, dout = rest[:3]
        value += f", {at(lse, b, h, i)}, {at(delta, b, h, i)}, {at(dout, b, h, i, e)}"
    names = ", ".join(f"r{number}" if n == 0 else f"r{n}_{number}" for n in range(len(op.results)))
    return [f"for {_loops((b, h, i), q.type.shape[:3])}: {names} = {op.name}({keys}: {score}; e < {v.type.shape[3]}: {value})"]


_CONTRACT = {"dot": _dot, "conv": _conv, "attention": _attention, "attention_grad": _attention}
