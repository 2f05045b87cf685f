"""Device schedules of a group with attention or attention_grad.

Which arithmetic it gets follows from the element type, the attribute `precision` and the target alone; sizes choose among tiles of one
arithmetic, which give the same bits.

| form | file | |
| --- | --- | --- |
| fma | attention/fma.py | the definition to the bit: float32 (of precision "tf32" too), float64, precision "exact", and devices without tensor cores |
| wgmma | attention/wgmma.py, attention/wgmma_grad.py | the same on sm_90a; gradients of heads of more than 128 elements are by mma |
| mma | attention/mma.py, attention/mma_grad.py | float16, bfloat16, and float32 of precision "bf16", on tensor cores; where tiles of large heads do not fit into shared memory, by fma |
"""

from __future__ import annotations

from collections.abc import Mapping

from graphc.codegen.cuda.attention.fma import SIDE, STRIDE, FmaAttention
from graphc.codegen.cuda.attention.fma import padded as fma_padded
from graphc.codegen.cuda.attention.mma import WARPS, MmaAttention, padded
from graphc.codegen.cuda.attention.mma_grad import MmaGradient, together
from graphc.codegen.cuda.attention.parts import KEYS, Parts
from graphc.codegen.cuda.attention.wgmma import WgmmaAttention, block_of, lines, view_of
from graphc.codegen.cuda.attention.wgmma_grad import WgmmaGradient, takes
from graphc.codegen.cuda.choice import Choice, divisors, is_narrow
from graphc.codegen.cuda.target import Target
from graphc.codegen.loops import Kernel
from graphc.codegen.lower.attention import attention_of
from graphc.codegen.lower.lowered import Lowered
from graphc.ir.function import Function, Operation
from graphc.ir.types import BF16, F16, F32, F64, Dim, substitute

Sizes = Mapping[str, int]


def choose(group: Function, sizes: Sizes, target: Target) -> Choice:
    """The schedule for a launch of these sizes."""
    op = attention_of(group)
    assert op is not None
    divides, narrow = divisors(group, sizes), is_narrow(group, sizes)
    if on_tensor_cores(op, target):
        depth, width = (v.type.shape[3] for v in op.operands[1:3])
        assert isinstance(depth, int) and isinstance(width, int)
        if target.tensor_cores == "wgmma" and (op.name == "attention" or takes(depth, width)):
            return wgmma_choice(group, op, sizes, target, divides, narrow)
        if mma_bytes(op, 16, 1) <= target.shared:
            return mma_choice(op, sizes, target, divides, narrow)
    return fma_choice(op, sizes, target, divides, narrow)


def on_tensor_cores(op: Operation, target: Target) -> bool:
    """Which arithmetic an operation gets: never a question of sizes."""
    dtype, precision = op.operands[0].type.dtype, op.attrs["precision"]
    if dtype is F32:
        return bool(target.tensor_cores) and precision == "bf16"
    return bool(target.tensor_cores) and dtype in (F16, BF16) and precision != "exact"


def mma_choice(op: Operation, sizes: Sizes, target: Target, divides: tuple[tuple[str, int], ...], narrow: bool) -> Choice:
    """tall: rows of a warp; stages: blocks on their way or in use."""
    depth, width = (v.type.shape[3] for v in op.operands[1:3])
    assert isinstance(depth, int) and isinstance(width, int)
    batch, heads, queries = (size_in(d, sizes) for d in op.operands[0].type.shape[:3])
    gradient = op.name == "attention_grad"
    # Two tiles of 16 rows a warp where registers hold their sums, and the device has work enough.
    many = batch * heads * -(-queries // 128) >= target.multiprocessors
    masked = len(op.operands) > (7 if gradient else 4)
    tall = 32 if not gradient and max(depth, width) <= (64 if masked else 96) and many else 16
    stages = 2 if mma_bytes(op, tall, 2) <= target.shared else 1
    return Choice("attention mma", (("tall", tall), ("stages", stages)), divides, narrow)


def mma_bytes(op: Operation, tall: int, stages: int) -> int:
    """The most shared memory that a block of the kernels asks for."""
    depth, width = (v.type.shape[3] for v in op.operands[1:3])
    assert isinstance(depth, int) and isinstance(width, int)
    row = (padded(depth) + padded(width) + 16) * 2
    if op.name == "attention":
        return WARPS * tall * (padded(depth) + 8) * 2 + stages * KEYS * row
    # By keys, what is known of each query passes by too.
    return WARPS * tall * row + stages * KEYS * (row + 8)


def size_in(d: Dim, sizes: Sizes) -> int:
    found = substitute(d, dict(sizes))
    assert isinstance(found, int)
    return found


def wgmma_choice(
    group: Function, op: Operation, sizes: Sizes, target: Target, divides: tuple[tuple[str, int], ...], narrow: bool
) -> Choice:
    """consumers: warpgroups of 64 queries; stages: blocks on their way or in use; viewed: by the copy engine."""
    parts = Parts(group, op, Choice("attention wgmma", (), divides, narrow))
    batch, heads, queries = (size_in(d, sizes) for d in op.operands[0].type.shape[:3])
    gradient = op.name == "attention_grad"
    operands = (parts.q, parts.k, parts.v, *((op.operands[6],) if gradient else ()))
    viewed = all(view_of(parts, x) is not None for x in operands)
    # Gathering for two consumers of large heads takes more registers than the producers have.
    room = viewed or max(parts.depth, parts.width) <= 64
    consumers = 2 if room and batch * heads * -(-queries // 128) >= target.multiprocessors else 1
    row = (lines(parts.depth) + lines(parts.width)) * 128
    held = row if gradient else lines(parts.depth) * 128
    block = KEYS if gradient else block_of(parts.depth, parts.width)
    stages = max(2, min(4, (target.shared - consumers * 64 * held - 5120) // (block * row)))
    numbers = (("consumers", consumers), ("stages", stages), ("viewed", int(viewed)))
    return Choice("attention wgmma", numbers, divides, narrow)


def fma_choice(op: Operation, sizes: Sizes, target: Target, divides: tuple[tuple[str, int], ...], narrow: bool) -> Choice:
    """Rows of a tile: as many as registers and shared memory take, not more than there are."""
    queries, keys = (size_in(v.type.shape[2], sizes) for v in op.operands[:2])
    return Choice(
        "attention fma",
        (("queries", _rows(op, queries, target)), ("keys", _rows(op, keys, target))),
        divides,
        narrow,
    )


def _rows(op: Operation, count: int, target: Target) -> int:
    depth, width = (v.type.shape[3] for v in op.operands[1:3])
    assert isinstance(depth, int) and isinstance(width, int)
    itemsize = 8 if op.operands[0].type.dtype is F64 else 4
    gradient = op.name == "attention_grad"
    held = (fma_padded(depth) + 4 + (fma_padded(width) + 4 if gradient else 0) + STRIDE) * itemsize
    # Sums that a thread keeps for each of its rows: 4 of every 64 elements.
    sums = (-(-depth // 64) + -(-width // 64) if gradient else -(-width // 64)) * itemsize
    rows = 64
    while rows > SIDE and (
        rows // 2 >= count or rows // SIDE * sums > 64 or rows * held + KEYS * STRIDE * itemsize > target.shared
    ):
        rows //= 2
    return rows


def lower(group: Function, choice: Choice, target: Target) -> Lowered:
    """The kernels of a schedule."""
    op = attention_of(group)
    assert op is not None
    kernels = []
    parts = Parts(group, op, choice)
    if choice.form == "attention mma":
        kernels += _on_tensor_cores(parts, choice)
    elif choice.form == "attention wgmma":
        kernels += _by_wgmma(parts, choice)
    elif op.name == "attention":
        kernels.append(FmaAttention(parts, choice.number("queries")).forward())
    else:
        dq, *others = op.results
        if dq in parts.targets:
            kernels.append(FmaAttention(parts, choice.number("queries")).by_queries())
        if any(r in parts.targets for r in others):
            kernels.append(FmaAttention(parts, choice.number("keys")).by_keys())
    return Lowered(tuple(kernels), parts.params, parts.results, sites=tuple(parts.pull.sites))


def _by_wgmma(parts: Parts, choice: Choice) -> list[Kernel]:
    consumers, stages, viewed = choice.number("consumers"), choice.number("stages"), bool(choice.number("viewed"))
    if parts.op.name == "attention":
        return [WgmmaAttention(parts, consumers, stages, viewed).forward()]
    dq, *others = parts.op.results
    wanted = tuple(r for r in others if r in parts.targets)
    kernels = [WgmmaGradient(parts, consumers, stages, viewed).by_queries()] if dq in parts.targets else []
    return [*kernels, *([WgmmaGradient(parts, consumers, stages, viewed).by_keys(wanted)] if wanted else [])]


def _on_tensor_cores(parts: Parts, choice: Choice) -> list[Kernel]:
    op = parts.op
    tall, stages = choice.number("tall"), choice.number("stages")
    if op.name == "attention":
        return [MmaAttention(parts, tall, stages).forward()]
    dq, *others = op.results
    wanted = tuple(r for r in others if r in parts.targets)
    kernels = [MmaGradient(parts, tall, stages).by_queries()] if dq in parts.targets else []
    for results in [wanted] if together(parts.depth, parts.width) else [(r,) for r in wanted]:
        if results:
            kernels.append(MmaGradient(parts, tall, stages).by_keys(results))
    return kernels


__all__ = ["choose", "lower"]
