"""`dot` kernels: every schedule, layout, dtype and size gives the bits of the interpreter."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from graphc.codegen.llvm.target import host_target, make_target
from graphc.codegen.loops import print_kernel
from graphc.codegen.lower.contract import lower_contraction, variant
from graphc.codegen.lower.tiles import LANES, ROWS, Schedule, registers, tile_fits
from graphc.ir.function import Builder
from graphc.ir.types import TensorType

from tests.codegen.contractions import arguments, biased, check, check_by_oracle, conv_group, dot_group
from tests.codegen.run_kernels import Native, evaluate

LAYOUTS = {
    "nn": ("[e0, e1]", "[e1, e2]", (1,), (0,)),
    "nt": ("[e0, e1]", "[e2, e1]", (1,), (1,)),
    "tn": ("[e1, e0]", "[e1, e2]", (0,), (0,)),
    "tt": ("[e1, e0]", "[e2, e1]", (0,), (1,)),
}
PLAIN = Schedule(
    swap=False, rows=4, lanes=16, row_mode="direct", lane_mode="direct", block=16, chunk=0, split=False, run=0,
    per_example=False, near=True,
)  # fmt: skip


def product(layout: str, dtype: str = "f32", bias: bool = True):
    lhs, rhs, left, right = LAYOUTS[layout]
    return dot_group(dtype + lhs, dtype + rhs, left, right, epilogue=biased(1) if bias else None)


def sizes(m: int, k: int, n: int) -> dict[str, int]:
    return {"e0": m, "e1": k, "e2": n}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "size", [(1, 1, 1), (3, 5, 7), (1, 600, 40), (70, 33, 1), (64, 300, 100), (33, 520, 10), (130, 64, 130)], ids=str
)
def test_layouts_and_sizes(layout: str, size: tuple[int, int, int]) -> None:
    check(product(layout), sizes(*size))


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f64", "i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64"])
@pytest.mark.parametrize("layout", ["nn", "nt"])
def test_dtypes(dtype: str, layout: str) -> None:
    check(product(layout, dtype), sizes(9, 300, 37))


SCHEDULES = {
    "direct": PLAIN,
    "packed": PLAIN._replace(row_mode="packed", lane_mode="packed", block=64),
    "direct deep": PLAIN._replace(chunk=512, block=32),
    "packed deep": PLAIN._replace(row_mode="packed", lane_mode="packed", block=64, chunk=256),
    "ahead": PLAIN._replace(rows=6, block=64, ahead=True),
    "ahead, turned results": PLAIN._replace(swap=True, rows=6, block=32, chunk=256, ahead=True),
    "local": PLAIN._replace(lane_mode="local", block=64, chunk=256),
    "local ahead": PLAIN._replace(lane_mode="local", block=64, chunk=256, ahead=True),
    "local deep": PLAIN._replace(lane_mode="local", block=32, chunk=512, run=16),
    "local run": PLAIN._replace(lane_mode="local", block=32, chunk=1024, run=32, row_mode="packed"),
    "split": PLAIN._replace(lane_mode="local", block=32, chunk=256, split=True, row_mode="packed"),
    "split packed": PLAIN._replace(lane_mode="packed", block=32, split=True, row_mode="packed"),
    "split direct": PLAIN._replace(block=32, split=True),
    "swapped": PLAIN._replace(swap=True, lane_mode="packed", row_mode="packed", rows=6, block=32),
    "swapped local": PLAIN._replace(swap=True, lane_mode="local", rows=3, lanes=8, block=8, chunk=256),
    "swapped split": PLAIN._replace(swap=True, lane_mode="local", rows=3, lanes=8, block=16, chunk=256, split=True),
    "one lane": PLAIN._replace(swap=True, rows=16, lanes=1, block=1),
    "one row": PLAIN._replace(rows=1, lanes=128, block=128, lane_mode="packed"),
    "wide": PLAIN._replace(rows=12, lanes=32, block=64, lane_mode="packed", row_mode="packed"),
    "tail": PLAIN._replace(rows=6, lanes=32, block=64, tail=4),
    "tail packed deep": PLAIN._replace(lane_mode="packed", block=64, chunk=256, tail=8),
    "tail local": PLAIN._replace(lane_mode="local", block=64, chunk=512, tail=4),
    "streamed": PLAIN._replace(rows=2, lanes=32, lane_mode="streamed", block=128, tail=16),
    "streamed one row": PLAIN._replace(rows=1, lane_mode="streamed", block=64),
    "streamed by vectors": PLAIN._replace(rows=2, lanes=16, lane_mode="streamed", block=32, tail=16),
    "tail swapped": PLAIN._replace(swap=True, lane_mode="packed", rows=9, lanes=32, block=32, tail=16),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_gives_the_same_bits(name: str) -> None:
    schedule = SCHEDULES[name]
    for layout in ("nn", "nt") if schedule.lane_mode != "direct" else ("nn",):
        layout = {"nn": "tn", "nt": "nn"}[layout] if schedule.swap and schedule.lanes > 1 else layout
        for size in ((37, 1030, 53), (5, 256, 16), (4, 1, 3), (64, 257, 64)):
            check(product(layout), sizes(*size), schedule=schedule)


TURNED = PLAIN._replace(lane_mode="turned", rows=4, lanes=16, block=16)


@pytest.mark.parametrize("dtype", ["f32", "f64", "f16", "bf16", "i8", "i32", "i64"])
@pytest.mark.parametrize("size", [(1, 1, 1), (5, 300, 37), (3, 31, 16), (4, 1040, 17), (2, 15, 40)], ids=str)
def test_lanes_turned_in_registers(dtype: str, size: tuple[int, int, int]) -> None:
    """Strips of rows become vectors of columns: sizes around the square, with what is left of k and of the lanes."""
    lanes = 8 if dtype in ("f64", "i64") else 16
    check(product("nt", dtype), sizes(*size), schedule=TURNED._replace(lanes=lanes, block=lanes))
    narrow = make_target("x86-64-v3") if host_target().architecture == "x86_64" else host_target()
    lanes //= 2
    check(product("nt", dtype), sizes(*size), schedule=TURNED._replace(rows=2, lanes=lanes, block=lanes), target=narrow)


def test_lanes_turned_in_registers_under_other_schedules() -> None:
    for more in (TURNED._replace(split=True), TURNED._replace(chunk=256, block=32), TURNED._replace(row_mode="packed", rows=1)):
        check(product("nt"), sizes(7, 530, 35), schedule=more)
    check(product("nn"), sizes(35, 530, 7), schedule=TURNED._replace(swap=True))
    check(dot_group("f32[e0, 3, e1]", "f32[e0, 9, e1]", (2,), (2,), batch=1), {"e0": 3, "e1": 50}, schedule=TURNED)
    check_by_oracle(product("nt"), sizes(2, 19, 5), TURNED)


def test_streams_under_other_layouts() -> None:
    schedule = SCHEDULES["streamed"]
    check(product("tn", "f16"), sizes(3, 257, 170), schedule=schedule)
    check(product("tn", "f64"), sizes(300, 517, 2), schedule=schedule._replace(swap=True))
    check(dot_group("f32[e0, 3, e1]", "f32[e0, e1, 70]", (2,), (1,), batch=1), {"e0": 3, "e1": 50}, schedule=schedule)
    # More lanes than a task keeps sums of.
    check(product("nn"), sizes(9, 20, 1203), schedule=schedule._replace(rows=8, lanes=16, block=64))
    assert variant(product("nn"), sizes(1, 2048, 2048)).lane_mode == "streamed"
    assert variant(product("nn"), sizes(512, 512, 512)).lane_mode != "streamed"


def test_few_rows_against_a_transposed_matrix_turn_lanes() -> None:
    assert variant(product("nt"), sizes(1, 1024, 1024)).lane_mode == "turned"
    assert variant(product("nn"), sizes(1024, 1024, 1)).lane_mode == "turned"
    assert variant(product("nt"), sizes(512, 1024, 1024)).lane_mode == "packed"


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_by_the_loop_language(name: str) -> None:
    schedule = SCHEDULES[name]._replace(rows=min(3, SCHEDULES[name].rows), lanes=min(4, SCHEDULES[name].lanes), block=8)
    schedule = schedule._replace(tail=min(2, schedule.tail))
    layout = "tn" if schedule.swap and schedule.lane_mode == "direct" and schedule.lanes > 1 else "nn"
    check_by_oracle(product(layout), sizes(5, 7, 11), schedule)
    check_by_oracle(product(layout), sizes(2, 259, 5), schedule)


@pytest.mark.parametrize("size", [(0, 5, 7), (5, 0, 7), (5, 7, 0), (0, 0, 0)], ids=str)
@pytest.mark.parametrize("name", ["direct", "packed", "local", "split", "swapped"])
def test_empty(name: str, size: tuple[int, int, int]) -> None:
    check(product("tn" if SCHEDULES[name].swap else "nn"), sizes(*size), schedule=SCHEDULES[name])


@pytest.mark.parametrize("k", [1, 255, 256, 257, 511, 512, 513, 1025])
def test_block_boundaries(k: int) -> None:
    """Blocks of 256 k are summed on their own: the results differ from one long chain."""
    check(product("nn"), sizes(6, k, 20))
    b = dot_group(f"f32[6, {k}]", f"f32[{k}, 20]", (1,), (0,))
    check(b)


def test_specials() -> None:
    f = product("nn", bias=False)
    rng = np.random.default_rng(1)
    pool = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-30, -1e-30, 1e30, 3.0], np.float32)
    x, y = rng.choice(pool, (9, 270)), rng.choice(pool, (270, 33), p=[0.3, 0.3, 0.002, 0.002, 0.001, 0.1, 0.1, 0.095, 0.1])
    check(f, sizes(9, 270, 33), [x, y])
    tiny = np.full((3, 4), 1e-30, np.float32)
    check(f, sizes(3, 4, 5), [tiny, np.full((4, 5), -1e-30, np.float32)])


def test_rows_do_not_depend_on_their_batch() -> None:
    """The same row alone, in a small and in a large batch: the same bits under schedules of their own."""
    f = product("nn", bias=False)
    big = arguments(f, sizes(100, 700, 50))
    results = []
    for m in (1, 7, 100):
        extents = sizes(m, 700, 50)
        lowered = lower_contraction(f, host_target(), extents)
        results.append(Native(lowered).run([big[0][:m], big[1]], f.result_types, extents)[0][0])
    assert results[0].tobytes() == results[1].tobytes() == results[2].tobytes()


@pytest.mark.parametrize("name", SCHEDULES)
def test_kernels_are_right_for_extents_beside_the_hint(name: str) -> None:
    schedule = SCHEDULES[name]
    f = product("tn" if schedule.swap and schedule.lane_mode == "direct" and schedule.lanes > 1 else "nn")
    for hint in (sizes(1, 8, 8), sizes(512, 4096, 512)):
        check(f, sizes(19, 1300, 21), schedule=schedule, hint=hint)


BATCHED = {
    "plain": ("f32[3, e0, 9]", "f32[3, 9, e1]", (2,), (1,), 1),
    "transposed": ("f32[3, e0, 9]", "f32[3, e1, 9]", (2,), (2,), 1),
    "two batches": ("f32[2, 3, e0, 9]", "f32[2, 3, 9, e1]", (3,), (2,), 2),
    "two contracted": ("f32[e0, 4, 9]", "f32[4, 9, e1]", (1, 2), (0, 1), 0),
    "two contracted, crossed": ("f32[e0, 4, 9]", "f32[9, e1, 4]", (1, 2), (2, 0), 0),
    "free dimensions": ("f32[2, e0, 9]", "f32[9, e1, 3]", (2,), (0,), 0),
    "outer product": ("f32[e0]", "f32[e1]", (), (), 0),
    "inner product": ("f32[e0]", "f32[e0]", (0,), (0,), 0),
    "matrix and vector": ("f32[e0, e1]", "f32[e1]", (1,), (0,), 0),
    "batch of inner products": ("f32[e0, e1]", "f32[e0, e1]", (1,), (1,), 1),
}


@pytest.mark.parametrize("name", BATCHED)
@pytest.mark.parametrize("size", [(5, 40), (66, 20)], ids=str)
def test_batches_and_many_dimensions(name: str, size: tuple[int, int]) -> None:
    check(dot_group(*BATCHED[name]), {"e0": size[0], "e1": size[1]} if "e1" in str(BATCHED[name]) else {"e0": size[0]})


@pytest.mark.parametrize("name", ["plain", "transposed", "two contracted", "free dimensions"])
@pytest.mark.parametrize("schedule", ["packed", "local", "split"])
def test_batches_under_schedules(name: str, schedule: str) -> None:
    check(dot_group(*BATCHED[name]), {"e0": 11, "e1": 21}, schedule=SCHEDULES[schedule])


def heads(literal: bool):
    """Heads of an attention side by side, times a matrix: rows are read in runs."""
    b = Builder("group")
    x = b.param(TensorType.parse("f32[3, 4, 5, 32]" if literal else "f32[e0, e1, e2, e3]"))
    examples, count, steps, size = x.type.shape
    w = b.param(TensorType(x.type.dtype, (count * size, *TensorType.parse("f32[e4]").shape)))
    rows = b.reshape(b.permute(x, axes=(0, 2, 1, 3)), shape=(examples, steps, count * size))
    return b.build([b.dot(rows, w, lhs_contract=(2,), rhs_contract=(0,))])


@pytest.mark.parametrize("name", ["direct", "direct deep", "packed deep", "local", "split", "tail"])
def test_rows_in_runs(name: str) -> None:
    schedule = SCHEDULES[name]._replace(row_mode="direct")
    check(heads(True), {"e4": 21}, schedule=schedule)
    for size in ((2, 4, 5, 32, 20), (2, 3, 7, 100, 9), (1, 1, 1, 1, 1), (2, 5, 3, 7, 17), (0, 2, 3, 4, 5), (2, 0, 3, 4, 5), (1, 2, 3, 300, 5)):
        check(heads(False), {f"e{i}": n for i, n in enumerate(size)}, schedule=schedule)


def test_runs_are_chosen() -> None:
    found = variant(heads(False), {"e0": 16, "e1": 4, "e2": 128, "e3": 32, "e4": 128})
    assert found.row_mode == "direct" and not found.swap


def heads_gradient(literal: bool):
    """The weight gradient of a layer whose result went to heads: the depth is steps of several examples."""
    b = Builder("group")
    x = b.param(TensorType.parse("f32[3, 4, 150, 32]" if literal else "f32[e0, e1, e2, e3]"))
    examples, count, steps, size = x.type.shape
    y = b.param(TensorType(x.type.dtype, (examples, steps, *TensorType.parse("f32[e4]").shape)))
    rows = b.reshape(b.permute(x, axes=(0, 2, 1, 3)), shape=(examples, steps, count * size))
    return b.build([b.dot(rows, y, lhs_contract=(0, 1), rhs_contract=(0, 1))])


@pytest.mark.parametrize("name", ["direct", "direct deep", "packed deep", "local", "split", "tail"])
def test_depth_in_runs_across_memory(name: str) -> None:
    schedule = SCHEDULES[name]._replace(row_mode="direct")
    check(heads_gradient(True), {"e4": 21}, schedule=schedule)
    for size in ((5, 4, 111, 32, 20), (2, 3, 7, 100, 9), (1, 1, 1, 1, 1), (2, 5, 3, 7, 17), (0, 2, 3, 4, 5), (2, 3, 0, 4, 5), (1, 2, 300, 3, 5)):
        check(heads_gradient(False), {f"e{i}": n for i, n in enumerate(size)}, schedule=schedule)


def test_memory_of_large_results_is_asked_for() -> None:
    f = dot_group("f32[e0, e1]", "f32[e1, e2]", (1,), (0,), epilogue=biased(1))
    target = host_target()
    for large, size in ((True, sizes(2048, 128, 512)), (False, sizes(128, 128, 128))):
        text = print_kernel(lower_contraction(f, target, size, variant(f, size)).kernels[-1])
        assert ("prefetch r0" in text) == large
        assert "prefetch p2" not in text  # the bias is the same for all rows


def test_weight_gradients_pack_nothing() -> None:
    """Both operands are read where they lie, few k at a time, so that the lines of all rows stay near."""
    tokens = {"e0": 16, "e1": 12, "e2": 128, "e3": 32, "e4": 128}
    for found in (variant(heads_gradient(False), tokens), variant(product("tn"), sizes(512, 2048, 128)), variant(product("tn"), sizes(128, 2048, 512))):
        assert (found.row_mode, found.lane_mode, found.chunk) == ("direct", "direct", 256)


def layout_group(kind: str):
    """A product whose operands come through layout operations."""
    b = Builder("group")
    x, y = b.param(TensorType.parse("f32[6, 4, 10]")), b.param(TensorType.parse("f32[10, 24]"))
    if kind == "permute":
        lhs = b.permute(x, axes=(1, 0, 2))
        rhs = b.permute(y, axes=(1, 0))
        root = b.dot(lhs, rhs, lhs_contract=(2,), rhs_contract=(1,))
    elif kind == "reshape":
        root = b.dot(b.reshape(x, shape=(24, 10)), y, lhs_contract=(1,), rhs_contract=(0,))
    elif kind == "flip":
        root = b.dot(b.flip(x, axes=(0, 2)), b.flip(y, axes=(1,)), lhs_contract=(2,), rhs_contract=(0,))
    elif kind == "slice":
        lhs = b.slice(x, start=(1, 0, 2), limit=(6, 4, 10), stride=(2, 3, 1))
        root = b.dot(lhs, b.slice(y, start=(0, 3), limit=(8, 24), stride=(1, 2)), lhs_contract=(2,), rhs_contract=(0,))
    elif kind == "broadcast":
        rhs = b.broadcast(b.param(TensorType.parse("f32[10]")), shape=(10, 7), axes=(0,))
        root = b.dot(x, rhs, lhs_contract=(2,), rhs_contract=(0,))
    elif kind == "pad":
        zero = b.param(TensorType.parse("f32[]"))
        rhs = b.pad(y, zero, low=(0, 2), high=(0, 1), interior=(0, 1))
        root = b.dot(x, rhs, lhs_contract=(2,), rhs_contract=(0,))
    else:
        rhs = b.gather(y, b.param(TensorType.parse("i64[5]")), axis=1)
        root = b.dot(x, rhs, lhs_contract=(2,), rhs_contract=(0,))
    return b.build([root])


@pytest.mark.parametrize("kind", ["permute", "reshape", "flip", "slice", "broadcast", "pad"])
def test_layout_operations_fold_into_the_reads(kind: str) -> None:
    check(layout_group(kind))
    check(layout_group(kind), schedule=PLAIN._replace(lane_mode="packed", row_mode="packed", block=32))
    check(layout_group(kind), schedule=PLAIN._replace(lane_mode="local", block=32, chunk=256))


def test_gathered_operands_are_checked() -> None:
    f = layout_group("gather")
    args = arguments(f, {})
    args[2] = np.array([3, -1, 23, 0, -24])
    lowered = check(f, args=args)
    args[2] = np.array([3, -1, 24, 0, 0])
    native = Native(lowered)
    _, memory = native.prepare(args, f.result_types, {})
    errors = [native.launch(k, memory, {}) for k in range(len(lowered.kernels))]
    assert (1, 24) in errors
    assert [op.name for op in lowered.sites] == ["gather"]


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_epilogues(dtype: str) -> None:
    """Residual, a reshaped, a permuted, and a mask result; the value before rounding is never seen."""
    t = TensorType.parse(f"{dtype}[12, 20]")

    def epilogue(b, root):
        residual = b.param(t)
        y = b.add(b.mul(root, root), residual)
        return [b.reshape(y, shape=(3, 4, 20)), b.permute(root, axes=(1, 0)), b.gt(y, residual), root]

    f = dot_group(f"{dtype}[12, 300]", f"{dtype}[300, 20]", (1,), (0,), epilogue=epilogue)
    for schedule in (None, SCHEDULES["packed"], SCHEDULES["split"], SCHEDULES["swapped"]):
        check(f, schedule=schedule)


@pytest.mark.parametrize("schedule", [None, "packed", "split", "swapped"])
def test_an_epilogue_that_is_turned_there_and_back(schedule: str | None) -> None:
    """What is computed between two permutations that undo each other reads the product where it is, not where its own elements are."""

    def epilogue(b, root):
        turned = b.permute(root, axes=(1, 0))
        scaled = b.mul(turned, b.permute(b.param(TensorType.parse("f32[12, 20]")), axes=(1, 0)))
        return [b.permute(scaled, axes=(1, 0)), b.permute(b.neg(b.mul(root, root)), axes=(1, 0))]

    f = dot_group("f32[12, 300]", "f32[300, 20]", (1,), (0,), epilogue=epilogue)
    check(f, schedule=SCHEDULES[schedule] if schedule else None)


def test_an_epilogue_of_windows_that_is_turned_there_and_back() -> None:
    def epilogue(b, root):
        last = b.permute(root, axes=(0, 2, 3, 1))
        bias = b.broadcast(b.param(TensorType.parse("f32[5]")), shape=last.type.shape, axes=(3,))
        return [b.permute(b.add(last, bias), axes=(0, 3, 1, 2))]

    check(conv_group("f32[2, 3, 9, 8]", "f32[5, 3, 3, 3]", epilogue))


def test_epilogue_of_a_reshaped_product() -> None:
    def epilogue(b, root):
        y = b.reshape(root, shape=(2, 3, 4, 5))
        bias = b.broadcast(b.param(TensorType.parse("f32[5]")), shape=(2, 3, 4, 5), axes=(3,))
        return [b.add(y, bias)]

    check(dot_group("f32[6, 30]", "f32[30, 20]", (1,), (0,), epilogue=epilogue))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_avx2(layout: str) -> None:
    target = make_target("x86-64-v3") if host_target().architecture == "x86_64" else host_target()
    for size in ((13, 300, 45), (1, 40, 70), (40, 12, 3)):
        check(product(layout), sizes(*size), target=target)
        check(product(layout, "f16"), sizes(*size), target=target)


def test_results_of_the_wrong_size_are_refused() -> None:
    def epilogue(b, root):
        return [b.slice(root, start=(0, 0), limit=(1, 4), stride=(1, 1))]

    with pytest.raises(ValueError, match="as many elements as the dot"):
        lower_contraction(dot_group("f32[3, 2]", "f32[2, 4]", (1,), (0,), epilogue=epilogue), host_target())


def test_a_group_has_one_contraction() -> None:
    b = Builder("group")
    x = b.param(TensorType.parse("f32[3, 3]"))
    y = b.dot(x, x, lhs_contract=(1,), rhs_contract=(0,))
    f = b.build([b.dot(y, x, lhs_contract=(1,), rhs_contract=(0,))])
    with pytest.raises(ValueError, match="one dot or conv, @group has 2"):
        lower_contraction(f, host_target())


def test_variants_are_few() -> None:
    """Sizes of every magnitude share a small number of schedules."""
    f = product("nn")
    seen = {variant(f, sizes(*s)) for s in itertools.product((1, 2, 3, 8, 31, 64, 300, 1024), (9, 64, 784, 1024), (1, 10, 64, 1024))}
    assert len(seen) < 96 // 2


def test_tiles_fit_the_registers() -> None:
    for bits in (256, 512):
        for rows, lanes in itertools.product(ROWS, LANES):
            if tile_fits(rows, lanes, bits // 32, bits):
                assert rows * -(-lanes // (bits // 32)) < registers(bits)
    f = product("nn")
    assert tile_fits(variant(f, sizes(1024, 1024, 1024)).rows, variant(f, sizes(1024, 1024, 1024)).lanes, 16, 512)


def test_large_products_have_many_tasks_and_small_ones_few() -> None:
    f = product("nn")
    tasks = {}
    for size in (8, 1024):
        extents = sizes(size, size, size)
        lowered = lower_contraction(f, host_target(), extents)
        tasks[size] = evaluate(lowered.kernels[-1].parallel, extents)
    assert tasks[8] <= 4
    assert tasks[1024] >= 256
