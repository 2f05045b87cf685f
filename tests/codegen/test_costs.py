"""The cost model: defaults, measured costs and where they are kept. What it says never changes a bit."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from graphc.codegen import cache, costs, measure
from graphc.codegen.costs import DEFAULT, Costs
from graphc.codegen.lower.work import operations_of, work_of
from graphc.ir.function import Builder
from graphc.ir.types import TensorType

from tests.codegen.test_plan import chain


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("GRAPHC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("GRAPHC_COSTS", raising=False)
    monkeypatch.setattr(costs, "_settled", [])
    monkeypatch.setattr(costs, "_first", [])
    cache.forget()
    costs.costs.cache_clear()
    yield
    cache.forget()
    costs.costs.cache_clear()


def test_kinds_of_kernels_are_comparable() -> None:
    """Microseconds of operations, of bytes, of operations that wait for each other."""
    assert DEFAULT.microseconds("map_1", 0, 0) == costs.LATENCY
    times = [DEFAULT.microseconds(f"{kind}_1", 10**6, 0) for kind in ("contract", "map", "scatter", "scan")]
    assert times == sorted(times) and times[0] == pytest.approx(costs.LATENCY + 1000 / costs.RATES["contract"])
    # A map of few operations is bound by memory, and packing by what it moves whatever the product's operations.
    assert DEFAULT.microseconds("map_1", 1000, 10**6) == pytest.approx(20.1)
    assert DEFAULT.microseconds("map_1", 1000, 10**8) == pytest.approx(4000.1)
    assert DEFAULT.microseconds("pack_1", 10**9, 10**6) == pytest.approx(20.1)
    assert Costs(speed=2.0).microseconds("map_1", 10**6, 0) < DEFAULT.microseconds("map_1", 10**6, 0)


def test_costs_are_measured_once_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert costs.costs() == DEFAULT
    assert costs.state().startswith("those of a usual machine; measured once a process has compiled for some seconds: speed 1, ")
    found = costs.measured()
    for value, (low, high) in ((found.speed, measure.SPEED), (found.bandwidth, measure.BANDWIDTH), (found.part, measure.PART)):
        assert low <= value <= high
    assert costs.costs() == found
    costs.costs.cache_clear()  # as in another process
    monkeypatch.setattr(measure, "measure", lambda: pytest.fail("measured again"))
    assert costs.costs() == found
    assert costs.state().startswith("measured on this machine: ")


def test_measuring_takes_little_time() -> None:
    measure.measure()  # compiles its kernels
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        measure.measure()
        taken.append(time.perf_counter() - start)
    assert min(taken) < 0.2  # 0.03 on an idle machine


def test_nobody_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first programs of a process are compiled with what there is; one that comes much later measures, once."""
    asked = []
    monkeypatch.setattr(costs, "measured", lambda: asked.append(1))
    for _ in range(3):
        costs.measure_in_time()
    assert not asked
    monkeypatch.setattr(costs, "PATIENCE", 0.0)
    for _ in range(3):
        costs.measure_in_time()
    assert asked == [1]


def test_the_environment_can_turn_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    costs.measured()
    monkeypatch.setenv("GRAPHC_COSTS", "default")
    costs.costs.cache_clear()
    assert costs.costs() == DEFAULT and costs.measured() == DEFAULT
    assert costs.state().startswith("the same on every machine, by GRAPHC_COSTS: ")
    monkeypatch.setenv("GRAPHC_COSTS", "fast")
    costs.costs.cache_clear()
    message = r"GRAPHC_COSTS=fast: it may be 'default' \(the same costs on every machine\); unset it to use measured ones"
    with pytest.raises(ValueError, match=message):
        costs.costs()


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"speed": 1}', b'{"speed": null}', b"\xff"])
def test_what_was_kept_is_damaged(data: bytes) -> None:
    cache.put(costs._name(), data)
    assert costs.costs() == DEFAULT


def test_costs_change_the_items_of_a_program_only() -> None:
    from graphc.codegen.items import make_items
    from graphc.codegen.program import compile_function

    program = compile_function(chain(3, 200))
    slow, fast = (make_items(program.plan, Costs(speed=s)) for s in (0.25, 4.0))
    assert max(i.worth for i in slow.items) > max(i.worth for i in fast.items)
    assert [k for i in slow.items for k in i.launches] == [k for i in fast.items for k in i.launches]


def test_operations_are_counted_by_what_they_take() -> None:
    """An exponential is many additions, a division several; float64 takes twice the lanes."""

    def count(name: str, operands: int, dtype: str = "f32") -> int:
        b = Builder("one")
        f = b.build([b.emit(name, *[b.param(TensorType.parse(f"{dtype}[8]")) for _ in range(operands)])])
        return operations_of(f.ops[0])

    assert count("add", 2) == count("mul", 2) == count("fma", 3) == 1
    assert count("div", 2) == 8 and count("exp", 1) > 20 and count("pow", 2) > 3 * count("exp", 1)
    assert count("add", 2, "f64") == 2 and count("exp", 1, "f64") > count("exp", 1)
    b = Builder("others")
    x, i = b.param(TensorType.parse("f32[8, 8]")), b.param(TensorType.parse("i64[4]"))
    b.gather(x, i, axis=0)
    b.sum_pool(x, window=(3, 3), strides=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1))
    b.permute(x, axes=(1, 0))
    f = b.build([])
    assert [operations_of(op) for op in f.ops] == [8, 18, 0]
    assert work_of(f) == 1 + 2 + 8 + 18


def test_what_is_computed_once_does_not_count() -> None:
    b = Builder("update")
    p, g, rate, steps = (b.param(TensorType.parse(t)) for t in ("f32[100]", "f32[100]", "f32[]", "f32[]"))
    scale = b.div(rate, b.pow(rate, steps))
    f = b.build([b.sub(p, b.mul(g, b.broadcast(scale, shape=(100,), axes=())))])
    assert work_of(f) == 1 + 2 + 1 + 1
    b = Builder("rows")
    x = b.param(TensorType.parse("f32[64, 100]"))
    f = b.build([b.exp(b.log(b.sum(b.square(x), axes=(1,))))])
    assert work_of(f) == 1 + 1 + 1 + 1
    b = Builder("one")
    x = b.param(TensorType.parse("f32[]"))
    assert work_of(b.build([b.exp(x)])) == 1
