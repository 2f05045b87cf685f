"""Products whose results go past the caches: the same bits, whole vectors at multiples of 64 bytes only."""

from __future__ import annotations

import numpy as np
import pytest
from graphc.codegen.kernels import bind_group
from graphc.codegen.llvm.target import host_target, make_target
from graphc.codegen.lower.lower import variant
from graphc.codegen.lower.tiles import Schedule
from graphc.codegen.program import compile_function
from graphc.ir.function import Builder, Function, Value
from graphc.ir.interpret import interpret
from graphc.ir.types import TensorType

from tests.codegen.contractions import arguments, biased, check, check_by_oracle, conv_group, dot_group
from tests.codegen.kernel_oracle import same_bits
from tests.codegen.run_kernels import Native, poisoned

PAST = Schedule(
    swap=False, rows=6, lanes=64, row_mode="direct", lane_mode="packed", block=128, chunk=0, split=False, run=0,
    per_example=False, near=True, ahead=True, past=True,
)  # fmt: skip
SCHEDULES = {
    "packed": PAST,
    "one vector": PAST._replace(lanes=16, block=16, lane_mode="direct"),
    "tail": PAST._replace(lane_mode="direct", tail=16),
    "narrow tail": PAST._replace(lane_mode="direct", lanes=32, block=32, tail=8),
    "local": PAST._replace(lane_mode="local", chunk=256),
    "deep": PAST._replace(chunk=256),
    "split": PAST._replace(split=True, lane_mode="direct"),
}


def product(dtype: str = "f32") -> Function:
    return dot_group(f"{dtype}[e0, e1]", f"{dtype}[e1, e2]", (1,), (0,), epilogue=biased(1))


def sizes(m: int, k: int, n: int) -> dict[str, int]:
    return {"e0": m, "e1": k, "e2": n}


@pytest.mark.parametrize("name", SCHEDULES)
def test_bits(name: str) -> None:
    for size in ((13, 300, 64), (7, 20, 192), (6, 1, 80), (5, 9, 48), (5, 9, 53), (3, 257, 131), (2, 3, 1)):
        check(product(), sizes(*size), schedule=SCHEDULES[name])
    check_by_oracle(product(), sizes(4, 3, 32), SCHEDULES[name]._replace(rows=2, lanes=16, block=32, tail=0))


@pytest.mark.parametrize("dtype", ["f64", "i32", "u64"])
def test_other_element_types(dtype: str) -> None:
    check(product(dtype), sizes(9, 31, 96), schedule=PAST)
    check(dot_group(f"{dtype}[3, 5, e1]", f"{dtype}[3, e1, 32]", (2,), (1,), batch=1), {"e1": 7}, schedule=PAST)


def test_stores_of_whole_vectors_only_go_past_the_caches() -> None:
    text = "".join(Native(check(product(), sizes(9, 31, 96), schedule=PAST)).texts)
    assert text.count("!nontemporal") == 2  # two results
    assert "nontemporal" not in "".join(Native(check(product(), sizes(9, 31, 96), schedule=PAST._replace(past=False))).texts)
    narrow = make_target("x86-64-v3") if host_target().architecture == "x86_64" else host_target()
    check(product(), sizes(9, 31, 96), schedule=PAST._replace(rows=2, lanes=32, block=32), target=narrow)


def test_memory_around_is_left_alone() -> None:
    f = product()
    lowered = check(f, sizes(7, 5, 80), schedule=PAST)
    native, at, args = Native(lowered), sizes(7, 5, 80), arguments(f, sizes(7, 5, 80))
    _, memory = native.prepare(args, f.result_types, at)
    for b in lowered.results:
        memory[b] = poisoned([7 * 80 + 64], np.float32)
    for k in range(len(lowered.kernels)):
        native.launch(k, memory, at)
    for b, want in zip(lowered.results, interpret(f, args, symbols=at), strict=True):
        assert same_bits(memory[b][: 7 * 80].reshape(7, 80), want)
        assert (memory[b][7 * 80 :].view(np.uint8) == 0xFF).all()


def chosen(f: Function, extents: dict[str, int], stream: bool = True) -> bool:
    return "past=True" in variant(f, host_target(), extents, stream)


def test_what_goes_past_the_caches() -> None:
    large = sizes(2048, 64, 1024)
    assert chosen(product(), large)
    assert not chosen(product(), large, stream=False)
    assert not chosen(product(), sizes(1024, 64, 512))  # stays in a cache
    assert not chosen(product(), sizes(2048, 64, 1027))  # rows begin anywhere
    assert not chosen(product("f16"), large)
    assert not chosen(product(), sizes(1, 1024, 1 << 22))

    def turned(b: Builder, root: Value) -> list[Value]:
        return [b.emit("permute", root, axes=(1, 0))]

    assert not chosen(dot_group("f32[e0, e1]", "f32[e1, e2]", (1,), (0,), epilogue=turned), large)
    assert not chosen(conv_group("f32[64, 64, 32, 32]", "f32[64, 64, 1, 1]"), {})


def test_programs_without_aligned_outputs_get_other_kernels() -> None:
    b = Builder("main")
    x, y = b.param(TensorType.parse("f32[2048, 2]")), b.param(TensorType.parse("f32[2, 1024]"))
    f = b.build([b.emit("dot", x, y, lhs_batch=(), rhs_batch=(), lhs_contract=(1,), rhs_contract=(0,))])
    assert bind_group(f).compiled.streams and not bind_group(f, stream=False).compiled.streams
    program = compile_function(f)
    args = arguments(f, {})
    (want,) = interpret(f, args)
    block = poisoned([2048 * 1024 + 16], np.float32)
    for offset in (0, 1):
        got = block[offset : offset + 2048 * 1024].reshape(2048, 1024)
        program.run([a.ctypes.data for a in args], [got.ctypes.data])
        assert same_bits(got, want)
