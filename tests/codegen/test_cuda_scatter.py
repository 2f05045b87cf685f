"""Device scatters, in simulation: both forms, many equal indices, and the order of float sums."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from graphc.codegen.c.cuda import emit_kernel
from graphc.codegen.canonical import canonicalise
from graphc.codegen.cuda.choice import Choice
from graphc.codegen.cuda.indexing import scatter
from graphc.codegen.cuda.lower import choose
from graphc.codegen.cuda.target import HOPPER
from graphc.codegen.loops import print_kernel
from graphc.ir.function import Builder
from graphc.ir.types import BF16, BOOL, F16, F32, F64, I8, I32, I64, DType, TensorType, dtype

from tests.codegen.device import Case, Reported, check_compiles, check_groups, cuda_text, prepare, run_group
from tests.codegen.operation_cases import accepted
from tests.codegen.test_cuda_map import function_of
from tests.codegen.values import plain

OPERATIONS = ("scatter_add", "scatter", "put_along_add", "put_along")


def case(
    op: str, shape: tuple[int, ...], axis: int, picked: tuple[int, ...], d: DType = F32, index: DType = I64, most: int = 0
) -> Case:
    """Indices below `most` (the size of the axis if 0), negative ones among them."""
    rng = np.random.default_rng([*shape, axis, *picked])
    size = shape[axis]
    indices = rng.integers(0, min(most or size, size), picked).astype(index.numpy)
    if index.is_signed and size < 100:
        indices = np.where(rng.random(picked) < 0.3, indices - size, indices).astype(index.numpy)
    updates = picked if op.startswith("put_along") else (*shape[:axis], *picked, *shape[axis + 1 :])
    arrays = [plain(d, shape, 0), indices, plain(d, updates, 1)]
    b = Builder(op)
    params = [b.param(TensorType(dtype(a.dtype), a.shape)) for a in arrays]
    return Case(b.build([b.emit(op, *params, axis=axis)]), arrays)


def chosen(c: Case) -> Choice:
    canonical = canonicalise(c.group)
    return choose(canonical.function, {n: int(d) for n, d in canonical.extents}, HOPPER)


def sorting(c: Case, monkeypatch: pytest.MonkeyPatch) -> Case:
    """The case in the form for many updates."""
    with monkeypatch.context() as m:
        m.setattr(scatter, "FEW", -1)
        m.setattr(scatter, "MOST_LOOKS", -1)
        return replace(c, choice=chosen(c))


def both(cases: list[Case], monkeypatch: pytest.MonkeyPatch) -> list[Case]:
    return [*cases, *(sorting(c, monkeypatch) for c in cases)]


@pytest.mark.parametrize("op", OPERATIONS)
def test_cases_of_the_operation(op: str) -> None:
    found = accepted(op)
    cases = [function_of(op, c) for roles, listed in found for c in (listed if roles == (F32, I64) else listed[1:2] if roles[0] in (F16, BOOL, I8) else [])]
    check_groups([c for c in cases if c is not None], seeds=(0,))


@pytest.mark.parametrize("op", OPERATIONS)
def test_both_forms(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    along = op.startswith("put_along")
    if along:
        cases = [
            case(op, (7,), 0, (40,)),
            case(op, (40, 3), 0, (300, 3), most=5),
            case(op, (5, 33), 1, (5, 70), BF16, I32),
            case(op, (2, 17, 5), 1, (2, 99, 5), F64, I8),
            case(op, (3, 4), 1, (3, 1), F16),
        ]
    else:
        cases = [
            case(op, (7,), 0, (40,)),
            case(op, (40, 8), 0, (9, 33), most=5),
            case(op, (5, 33), 1, (70,), BF16, I32),
            case(op, (3, 17, 6), 1, (99,), F64, I8),
            case(op, (3, 4), 0, (), F16),
            case(op, (1, 12), 0, (50,)),
        ]
    cases.append(case(op, (20,), 0, (60,), I8) if op.endswith("_add") else case(op, (20,), 0, (60,), BOOL))
    # The sums of one operation and the writes of the other are enough of the form for many.
    forced = both(cases, monkeypatch) if op in ("scatter_add", "put_along") else cases
    check_groups(forced, seeds=(len(op),))


def test_several_chunks_and_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """More updates than a block sorts, more rows than a digit has values; one row takes nearly all."""
    cases = [
        case("scatter_add", (300,), 0, (4500,)),
        case("scatter_add", (257, 4), 0, (2049,), F16),
        case("scatter_add", (1000, 3), 0, (2048,), most=2),
        case("scatter", (70000,), 0, (2500,), I32),
        case("put_along_add", (2, 400), 1, (2, 1500)),
        case("scatter_add", (2, 600, 2), 1, (30, 70)),
    ]
    forced = [sorting(c, monkeypatch) for c in cases]
    assert [c.choice.number("passes") for c in forced if c.choice] == [2, 2, 2, 3, 2, 2]
    check_groups([*forced, replace(forced[1], choice=replace(forced[1].choice or Choice(""), narrow=False))], seeds=(1,))


def test_sums_round_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float sums whose value depends on the order."""
    x, indices = np.zeros(3, np.float32), np.array([1] * 6 + [0, 1, 2, 1])
    updates = np.array([1e8, 1, -1e8, 1, 1e-3, 3e7, 5, -3e7, 7, 1], np.float32)
    b = Builder("order")
    params = [b.param(TensorType(dtype(a.dtype), a.shape)) for a in (x, indices, updates)]
    c = Case(b.build([b.emit("scatter_add", *params, axis=0)]), [x, indices, updates])
    check_groups(both([c], monkeypatch), seeds=(0, 1, 2))


@pytest.mark.parametrize("op", OPERATIONS)
def test_index_out_of_range(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    along = op.startswith("put_along")
    good = case(op, (6, 5), 0, (9, 5) if along else (9,))
    choices = (None, sorting(good, monkeypatch).choice) if op.endswith("_add") else (None,)
    for bad in (6, -7, 2**33):
        arrays = [*good.inputs]
        arrays[1] = arrays[1].copy()
        arrays[1][(4, 2) if along else 4] = bad
        for choice in choices:
            with pytest.raises(Reported) as caught:
                run_group(good.group, arrays, choice, seeds=(0,))
            assert caught.value.value == bad
            assert caught.value.operation is not None and caught.value.operation.name == op


def test_choices() -> None:
    assert str(chosen(case("scatter_add", (1000, 64), 0, (64,)))).startswith("scatter look")
    assert str(chosen(case("scatter_add", (50000, 64), 0, (4096,)))) == "scatter sort passes=2 width=4 e1%4 narrow"
    assert str(chosen(case("put_along", (1, 300000), 1, (1, 300000)))) == "scatter sort passes=3 width=1 narrow"
    assert str(chosen(case("put_along_add", (4096, 1000), 1, (4096, 1)))).startswith("scatter look")


def test_text() -> None:
    assert print_kernel(prepare(case("scatter_add", (9,), 0, (5,))).lowered.kernels[0]).endswith("""\
    var h2: f32 = x0[p0]
    for u3 = 0 .. e1 {
      report 1 if and(or(lt(select(lt(x1[u3], 0), (x1[u3] + e0), x1[u3]), 0), ge(select(lt(x1[u3], 0), (x1[u3] + e0), x1[u3]), e0)), eq(p0, 0)): x1[u3]
      let row4 = select(or(lt(select(lt(x1[u3], 0), (x1[u3] + e0), x1[u3]), 0), ge(select(lt(x1[u3], 0), (x1[u3] + e0), x1[u3]), e0)), 0, select(lt(x1[u3], 0), (x1[u3] + e0), x1[u3]))
      if eq(row4, p0) {
        h2 := add(h2, x2[u3])
      }
    }
    y0[p0] = h2
  }
}""")


def test_cuda_text() -> None:
    assert emit_kernel(prepare(case("scatter_add", (9,), 0, (5,))).lowered.kernels[0]) == """\
extern "C" __global__ void __launch_bounds__(256) scatter_look(const float *__restrict__ x0, const long long *__restrict__ x1, const float *__restrict__ x2, float *__restrict__ y0, int e0, int e1, long long *error, int launch) {
    const int block = blockIdx.x;
    const int blocks = gridDim.x;
    const int thread = threadIdx.x;
    for (int p0 = block * 256 + thread; p0 < e0; p0 += blocks * 256) {
        float h2 = x0[p0];
        for (int u3 = 0; u3 < e1; ++u3) {
            const long long t0 = x1[u3];
            const long long t1 = t0 < 0 ? add_i64(t0, e0) : t0;
            const bool t2 = t1 < 0 || t1 >= e0;
            if (t2 && p0 == 0) report_error(error, launch, 1, t0);
            const long long row4 = t2 ? 0 : t1;
            if (row4 == p0) {
                h2 = h2 + x2[u3];
            }
        }
        y0[p0] = h2;
    }
}
"""


def test_compiled_by_nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = both([case("scatter_add", (999, 64), 0, (400,), BF16)], monkeypatch)
    cases += both([case("put_along", (33, 64), 1, (33, 7))], monkeypatch)
    kernels = [k for i, c in enumerate(cases) for k in prepare(c, i).kernels]
    check_compiles([cuda_text(kernels)], hot=("scatter", "sort"))
