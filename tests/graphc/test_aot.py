"""Ahead-of-time compilation: the same bits as just in time for every size, a C interface that a strict compiler takes."""

from __future__ import annotations

import ctypes
import re
import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphc.codegen.aot import c_compiler, compile_ahead, plan_function, write_files
from graphc.codegen.aot_plan import never_negative
from graphc.codegen.llvm.jit import compile_text, load_all
from graphc.codegen.llvm.target import host_target
from graphc.ir.function import Builder, Function, Loc, Value
from graphc.ir.types import Dim, TensorType, symbol

from tests.codegen.compiled import difference, run
from tests.equality.programs import Generator
from tests.graphc.ahead import Entry, assert_same_bits, just_in_time, random_args

BATCHES = [{"B": b} for b in (0, 1, 2, 5, 64, 131)]


def param(b: Builder, text: str, name: str | None = None) -> Value:
    return b.param(TensorType.parse(text), name)


def wide(b: Builder, v: Value, shape: tuple[Dim, ...], *axes: int) -> Any:
    return b.broadcast(v, shape=shape, axes=axes)


def scalar(b: Builder, value: float, dtype: str = "float32") -> Any:
    return b.constant(value=np.array(value, dtype))


def softmax(b: Builder, x: Value) -> Any:
    e = b.exp(b.sub(x, wide(b, b.max(x, axes=(1,)), x.type.shape, 0)))
    return b.div(e, wide(b, b.sum(e, axes=(1,)), x.type.shape, 0))


def convolutional() -> Function:
    """A network for digits: conv, pool, linear, softmax; weights are the parameters 1 to 4."""
    b = Builder("digits")
    x = param(b, "f32[B, 1, 8, 8]", "images")
    w, bias = param(b, "f32[6, 1, 3, 3]", "conv_weight"), param(b, "f32[6]", "conv_bias")
    v, last = param(b, "f32[10, 96]", "weight"), param(b, "f32[10]", "bias")
    y = b.conv(x, w, strides=(1, 1), padding=((1, 1), (1, 1)), lhs_dilation=(1, 1), rhs_dilation=(1, 1))
    y = b.add(y, wide(b, bias, y.type.shape, 1))
    y = b.maximum(y, wide(b, scalar(b, 0), y.type.shape))
    y, _ = b.max_pool(y, window=(2, 2), strides=(2, 2), padding=((0, 0), (0, 0)), dilation=(1, 1))
    y = b.reshape(y, shape=(x.type.shape[0], 96))
    z = b.dot(y, v, lhs_batch=(), rhs_batch=(), lhs_contract=(1,), rhs_contract=(1,))
    z = b.add(z, wide(b, last, z.type.shape, 1))
    return b.build([softmax(b, z), b.argmax(z, axis=1)])


def rows() -> Function:
    """Softmax and layer norm of rows; three results, one of them the input itself."""
    b = Builder("rows")
    x = param(b, "f32[B, 33]", "x")
    n = scalar(b, 33)
    mean = b.div(b.sum(x, axes=(1,)), wide(b, n, x.type.shape[:1]))
    centred = b.sub(x, wide(b, mean, x.type.shape, 0))
    variance = b.div(b.sum(b.mul(centred, centred), axes=(1,)), wide(b, n, x.type.shape[:1]))
    scale = b.sqrt(b.add(variance, wide(b, scalar(b, 1e-5), x.type.shape[:1])))
    return b.build([softmax(b, x), b.div(centred, wide(b, scale, x.type.shape, 0)), x])


def lookup() -> Function:
    """Rows of a table: an index that is out of range is an error."""
    b = Builder("lookup")
    table, index = param(b, "f32[T, 8]", "table"), param(b, "i64[N]", "index")
    b.loc = Loc("model.py", 12)
    y = b.gather(table, index, axis=0)
    b.loc = Loc("model.py", 13)
    return b.build([b.sum(b.mul(y, y), axes=(1,))])


def test_convolutional_network_for_every_batch():
    entry = assert_same_bits(convolutional(), BATCHES, held=(1, 2, 3, 4))
    assert entry.plan.symbols == ("B",)


def test_weights_as_arguments():
    entry = assert_same_bits(convolutional(), BATCHES[:3])
    assert len(entry.plan.inputs) == 5


def test_rows_with_several_results():
    assert_same_bits(rows(), BATCHES)


def test_another_cpu_gives_the_same_bits():
    cpu = {"x86_64": "x86-64-v3", "aarch64": "generic"}[host_target().architecture]
    assert_same_bits(rows(), BATCHES[3:], cpu=cpu)
    assert_same_bits(convolutional(), BATCHES[3:4], held=(1, 2, 3, 4), cpu=cpu)


@pytest.mark.parametrize("short", ["f32", "f64", "f16", "bf16", "i8", "i64", "u16", "bool"])
def test_dtypes(short):
    b = Builder("f")
    x, y = param(b, f"{short}[B, 7]"), param(b, f"{short}[B, 7]")
    both = b.xor(x, y) if short == "bool" else b.add(b.mul(x, y), x)
    total = b.any(both, axes=(0,)) if short == "bool" else b.sum(both, axes=(0,))
    assert_same_bits(b.build([both, total, b.lt(x, y) if short != "bool" else b.not_(x)]), BATCHES)


def test_two_symbols_and_their_products():
    b = Builder("f")
    x = param(b, "f32[N, M]")
    n, m = symbol("N"), symbol("M")
    flat = b.reshape(x, shape=(n * m,))
    turned = b.reshape(b.permute(x, axes=(1, 0)), shape=(m * n,))
    f = b.build([b.sum(b.mul(flat, turned), axes=(0,)), b.concat(flat, turned, axis=0)])
    sizes = [{"N": n, "M": m} for n, m in ((0, 3), (3, 0), (1, 1), (5, 7), (64, 100))]
    assert assert_same_bits(f, sizes).plan.symbols == ("N", "M")


def test_intermediate_values_share_the_workspace():
    b = Builder("f")
    x = param(b, "f32[B, 16]")
    y = x
    for _ in range(6):  # sums over all rows keep the operations apart
        y = b.sub(y, wide(b, b.sum(y, axes=(0,)), x.type.shape, 1))
        y = b.exp(b.neg(b.abs(y)))
    entry = assert_same_bits(b.build([y]), BATCHES)
    assert len(entry.plan.offsets) < len(entry.plan.launches)


def test_error_code_names_operation_and_line():
    f = lookup()
    entry = Entry(compile_ahead(f, "lookup"))
    table = np.arange(40, dtype=np.float32).reshape(5, 8)
    sizes = {"T": 5, "N": 3}
    code, (good,) = entry.run(sizes, [table, np.array([4, -5, 0])])
    assert code == 0 and not difference(just_in_time(f, sizes, [table, np.array([4, -5, 0])])[0], good)
    for index in ([0, 5, 1], [0, -6, 1]):
        code, _ = entry.run(sizes, [table, np.array(index)])
        assert entry.error(code) == (
            b"gather at model.py:12: an index is out of range for axis 0 of size T; it must be in [-T, T)"
        )
    assert entry.error(0) == b"ok"
    assert entry.error(99) == b"lookup has no such return code"


def test_every_group_has_error_codes_of_its_own():
    b = Builder("f")
    table, index = param(b, "f32[5, 8]"), param(b, "i64[3]")
    b.loc = Loc("a.py", 1)
    first = b.sum(b.gather(table, index, axis=0), axes=(0,))
    b.loc = Loc("a.py", 2)
    second = b.sum(b.gather(table, b.add(index, wide(b, scalar(b, 1, "int64"), (3,))), axis=0), axes=(0,))
    entry = Entry(compile_ahead(b.build([first, second]), "f"))
    words = [entry.error(entry.run({}, [np.zeros((5, 8), np.float32), np.array([0, i, 0])])[0]) for i in (1, 4, 5)]
    assert [w.split(b":")[1][:1] for w in words[1:]] == [b"2", b"1"] and words[0] == b"ok"


def test_sizes_that_do_not_fit_are_refused():
    b = Builder("f")
    x = param(b, "f32[H]", "signal")
    h = symbol("H")
    b.loc = Loc("model.py", 3)
    f = b.build([b.neg(b.slice(x, start=(3,), limit=(h,), stride=(1,)))])
    entry = Entry(compile_ahead(f, "f"))
    pointers = [0, 0, 0]
    assert entry.error(entry.call(2, *pointers)) == b"slice at model.py:3: the dimension H - 3 of its result is negative"
    assert entry.error(entry.call(-1, *pointers)) == b"the dimension H of signal: f32[H] is negative"
    assert entry.call(3, *pointers) == 0


def test_slices_outside_their_operand_are_refused():
    b = Builder("f")
    x = param(b, "f32[N]")
    b.loc = Loc("model.py", 7)
    f = b.build([b.neg(b.slice(x, start=(1,), limit=(5,), stride=(1,)))])
    entry = Entry(compile_ahead(f, "f"))
    for n in (0, 1, 4):
        code, _ = entry.run({"N": n}, [np.zeros(n, np.float32)])
        assert entry.error(code) == b"slice at model.py:7: [1:5] is out of range for dimension 0 of size N"
    assert_same_bits(f, [{"N": 5}, {"N": 9}])


@pytest.mark.parametrize("dims", ["B, T, 4", "T, T, 4"])
def test_slices_of_constants_by_a_symbolic_size(dims):
    """A table of positions, of which a sequence of any length reads its part."""
    b = Builder("f")
    x, table = param(b, f"f32[{dims}]"), param(b, "f32[1, 10, 4]")
    part = b.slice(table, start=(0, 0, 0), limit=(1, symbol("T"), 4), stride=(1, 1, 1))
    f = b.build([b.add(x, b.broadcast(part, axes=(0, 1, 2), shape=x.type.shape))])
    entry = assert_same_bits(f, [{"B": 2, "T": t} for t in (0, 1, 7, 10)], held=[1])
    long = {"B": 1, "T": 11}
    code, _ = entry.run(long, random_args(f, long)[:1])
    assert entry.error(code) == b"slice: [0:T] is out of range for dimension 1 of size 10"


def test_slices_that_begin_at_a_symbolic_size():
    b = Builder("f")
    x, y = param(b, "f32[N]"), param(b, "f32[T]")
    n, t = symbol("N"), symbol("T")
    rest = b.slice(x, start=(t,), limit=(n,), stride=(1,))
    first = b.slice(x, start=(0,), limit=(t,), stride=(1,))
    f = b.build([b.exp(rest), b.mul(first, y)])
    entry = assert_same_bits(f, [{"N": 7, "T": 3}, {"N": 7, "T": 7}, {"N": 7, "T": 0}])
    assert entry.run({"N": 3, "T": 4}, [np.zeros(3, np.float32), np.zeros(4, np.float32)])[0] != 0


def descent() -> Function:
    """One step of gradient descent: the weights are parameter 2, their new values result 1."""
    b = Builder("descent")
    x, y, w = param(b, "f32[N, 3]", "x"), param(b, "f32[N]", "y"), param(b, "f32[3]", "weight")
    rows, columns = ({"lhs_batch": (), "rhs_batch": (), "lhs_contract": (i,), "rhs_contract": (0,)} for i in (1, 0))
    error = b.sub(b.dot(x, w, **rows), y)
    gradient = b.dot(x, error, **columns)
    step = b.mul(gradient, wide(b, scalar(b, 0.01), (3,)))
    return b.build([b.sum(b.mul(error, error), axes=(0,)), b.sub(w, step), w])


def test_state_is_updated_in_place_of_results():
    f = descent()
    initial = np.array([1, 2, 3], np.float32)
    compiled = compile_ahead(f, "descent", {2: initial}, state={2: 1})
    entry = Entry(compiled)
    assert entry.state.tobytes()[:12] == initial.tobytes() and entry.state.nbytes == 64
    weights = initial
    for n in (5, 1, 0, 7):
        args = random_args(f, {"N": n}, seed=n)[:2]
        code, (loss, before) = entry.run({"N": n}, args)
        expected = just_in_time(f, {"N": n}, [*args, weights])
        assert code == 0 and before.tobytes() == weights.tobytes()
        assert loss.tobytes() == expected[0].tobytes()
        weights = expected[1]
        assert entry.state.tobytes()[:12] == weights.tobytes()
    declared = compiled.header.replace("\n    ", " ")
    assert "int64_t N, const float *x, const float *y, float *out0, float *out1, void *state, void *workspace" in declared
    assert " *   at 0: weight f32[3], contiguous, 12 bytes\n" in compiled.header
    assert str(compiled.plan).endswith("\n  state+0 = workspace+0: f32[3]")


def test_an_error_leaves_the_state_as_it_was():
    b = Builder("f")
    index, w = param(b, "i64[2]"), param(b, "f32[4]")
    row = b.gather(w, index, axis=0)
    f = b.build([row, b.add(w, w)])
    entry = Entry(compile_ahead(f, "f", {1: np.ones(4, np.float32)}, state={1: 1}))
    assert entry.run({}, [np.array([0, 9])])[0] == 1
    assert entry.state.tobytes()[:16] == np.ones(4, np.float32).tobytes()
    assert entry.run({}, [np.array([0, 3])])[0] == 0
    assert entry.state.tobytes()[:16] == np.full(4, 2, np.float32).tobytes()


def test_a_maximum_of_no_elements_is_refused():
    b = Builder("f")
    x = param(b, "f32[B, T]")
    b.loc = Loc("model.py", 5)
    entry = Entry(compile_ahead(b.build([b.max(x, axes=(1,))]), "f"))
    code, _ = entry.run({"B": 2, "T": 0}, [np.zeros((2, 0), np.float32)])
    assert entry.error(code) == b"max at model.py:5: the dimension T is 0, and max of no elements has no value"
    assert entry.run({"B": 0, "T": 1}, [np.zeros((0, 1), np.float32)])[0] == 0


def test_a_function_without_work():
    b = Builder("f")
    assert_same_bits(b.build([b.constant(value=np.arange(6, dtype=np.float64).reshape(2, 3))]), [{}])


# Architecture: the bits that flush subnormals, LLVM text that reads the mode, and that writes it.
MODES = {
    "x86_64": (
        0x9FC0,
        """call void @llvm.x86.sse.stmxcsr(ptr %p)
  %word = load i32, ptr %p
  %old = zext i32 %word to i64""",
        """%low = trunc i64 %new to i32
  store i32 %low, ptr %p
  call void @llvm.x86.sse.ldmxcsr(ptr %p)""",
    ),
    "aarch64": (1 << 24, "%old = call i64 @llvm.aarch64.get.fpcr()", "call void @llvm.aarch64.set.fpcr(i64 %new)"),
}
MODE_TEXT = """
declare void @llvm.x86.sse.stmxcsr(ptr)
declare void @llvm.x86.sse.ldmxcsr(ptr)
declare i64 @llvm.aarch64.get.fpcr()
declare void @llvm.aarch64.set.fpcr(i64)
define i64 @swap(i64 %new) {{
  %p = alloca i32
  {0}
  {1}
  ret i64 %old
}}
"""


def test_subnormals_survive_a_caller_that_flushes_them():
    b = Builder("f")
    x = param(b, "f32[4]")
    entry = Entry(compile_ahead(b.build([b.mul(x, x)]), "f"))
    target = host_target()
    flush, read, write = MODES[target.architecture]
    at = load_all(compile_text(f'target triple = "{target.triple}"\n{MODE_TEXT.format(read, write)}', target), ("swap",))
    swap = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(at["swap"])
    values = np.full(4, 1e-20, np.float32)
    expected = values * values
    assert (expected != 0).all()
    out = np.zeros(4, np.float32)
    before = swap(flush)
    entry.call(values.ctypes.data, out.ctypes.data, 0)
    after = swap(before)
    assert out.tobytes() == expected.tobytes()
    assert after & flush == flush


@pytest.mark.parametrize("seed", range(12))
def test_random_functions(seed):
    generator = Generator(1000 + seed)
    f = generator.function()
    args = random_args(f, {})
    code, got = Entry(compile_ahead(f, "f")).run({}, args)
    assert code == 0
    for e, g in zip(run(f, *args), got, strict=True):
        assert not difference(e, g), f"{difference(e, g)}\n{f}"


def test_calls_at_the_same_time():
    entry = assert_same_bits(rows(), BATCHES[4:5])
    f = rows()
    jobs = [random_args(f, {"B": 64}, seed) for seed in range(8)]
    expected = [just_in_time(f, {"B": 64}, job) for job in jobs]
    wrong: list[str] = []

    def work(k: int) -> None:
        for _ in range(20):
            _, got = entry.run({"B": 64}, jobs[k])
            wrong.extend(d for e, g in zip(expected[k], got, strict=True) if (d := difference(e, g)))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(jobs))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_compiling_twice_gives_the_same_bytes():
    first, second = (compile_ahead(convolutional(), "net") for _ in range(2))
    assert first.object == second.object and first.header == second.header


@pytest.mark.parametrize("name", ["2fast", "a-b", "", "int", "class", "é"])
def test_names_that_c_cannot_have(name):
    with pytest.raises(ValueError, match=re.escape(repr(name))):
        compile_ahead(rows(), name)


def test_a_constant_of_another_type_is_refused():
    with pytest.raises(ValueError, match=r"the constant for bias is float64\[10\], but the parameter is f32\[10\]"):
        compile_ahead(convolutional(), "net", {4: np.zeros(10)})


def test_the_plan_prints_symbolic_sizes():
    text = str(plan_function(convolutional(), "net"))
    assert re.match(r"plan @net: \d+ launches of \d+ kernels, workspace \d+\*B .*bytes, constants 0 bytes\n", text)
    assert re.search(r"\n  0: group0 net_kernel0\(in\d.*e0=.* parallel=", text)


@pytest.mark.parametrize(
    ("dim", "sure"),
    [
        (3, True),
        (-1, False),
        (symbol("B") * 4 + 3, True),
        (symbol("B") - 1, False),
        (symbol("B") * symbol("N"), True),
        ((symbol("B") + 1) // 2, True),
        ((symbol("B") - 3) // 2 + 1, False),
    ],
)
def test_what_is_never_negative(dim, sure):
    assert never_negative(dim) is sure


# The C side

COMPILER = c_compiler()
needs_c = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")
STRICT = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"]
MAIN = r"""
#include <stdio.h>
#include <stdlib.h>
#include "digits.h"

int main(int argc, char **argv) {
    int64_t batch = argc > 1 ? atoll(argv[1]) : 0;
    size_t count = batch > 0 ? (size_t)batch : 0, bytes = (size_t)digits_workspace((int64_t)count);
    float *images = malloc(count * 64 * sizeof *images + 1);
    float *chances = malloc(count * 10 * sizeof *chances + 1);
    int64_t *labels = malloc(count * sizeof *labels + 1), code;
    void *workspace = malloc(bytes + 1);
    if (fread(images, 64 * sizeof *images, count, stdin) != count) return 2;
    code = digits(batch, images, chances, labels, workspace);
    if (code) {
        fprintf(stderr, "%s\n", digits_error(code));
        return 1;
    }
    fwrite(chances, 10 * sizeof *chances, count, stdout);
    fwrite(labels, sizeof *labels, count, stdout);
    free(images), free(chances), free(labels), free(workspace);
    return 0;
}
"""


def held_weights(f: Function) -> dict[int, Any]:
    return {i: a for i, a in enumerate(random_args(f, {"B": 1}, seed=1)) if i}


@needs_c
def test_a_c_program_gives_the_same_bits(tmp_path):
    f = convolutional()
    weights = held_weights(f)
    written = write_files(compile_ahead(f, "digits", weights), tmp_path / "build" / "digits")
    assert sorted(p.name for p in (tmp_path / "build").iterdir()) == sorted(p.name for p in written)
    (tmp_path / "main.c").write_text(MAIN)
    program = tmp_path / "main"
    command = [COMPILER, *STRICT, "-I", str(tmp_path / "build"), str(tmp_path / "main.c"), str(written[0])]
    subprocess.run([*command, "-o", str(program)], check=True)
    for batch in (0, 1, 7, 64):
        images = random_args(f, {"B": batch}, seed=batch)[0]
        done = subprocess.run([program, str(batch)], input=images.tobytes(), capture_output=True, check=True)
        expected = just_in_time(f, {"B": batch}, [images, *weights.values()])
        assert done.stdout == b"".join(e.tobytes() for e in expected)
    done = subprocess.run([program, "-1"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "the dimension B of images: f32[B, 1, 8, 8] is negative\n")


@needs_c
def test_the_shared_library(tmp_path):
    f = lookup()
    compiled = compile_ahead(f, "lookup")
    library = write_files(compiled, tmp_path / "lookup")[-1]
    entry = Entry(compiled, str(library))
    sizes = {"T": 9, "N": 4}
    args = [random_args(f, sizes)[0], np.array([0, 8, -9, 3])]
    code, got = entry.run(sizes, args)
    assert code == 0
    assert not difference(just_in_time(f, sizes, args)[0], got[0])


@needs_c
@pytest.mark.parametrize("standard", [["-xc", *STRICT], ["-xc++", "-Wall", "-Wextra", "-Werror", "-pedantic"]])
def test_headers_are_strict_c_and_cpp(tmp_path, standard):
    b = Builder("f")
    names = ["class", "2x", "B", "ok", "f_error", "workspace", "p3"]
    values = [param(b, t, n) for t, n in zip(("f16[B]", "bf16[B]", "bool[B]", "u8[]", "i32[B, 2]", "f64[0]", "f32[1]"), names)]
    compiled = compile_ahead(b.build(values), "f")
    (tmp_path / "f.h").write_text(compiled.header)
    source = '#include "f.h"\nint main(void) { return f_workspace(3) != 0; }\n'
    subprocess.run([str(COMPILER), *standard, "-fsyntax-only", "-I", str(tmp_path), "-"], input=source, text=True, check=True)


def test_header_documents_every_argument():
    text = compile_ahead(convolutional(), "digits", held_weights(convolutional())).header
    assert (
        "int64_t digits(int64_t B, const float *images, float *out0, int64_t *out1, void *workspace);\n" in text
    )
    for line in (
        " * B: the size of a dimension, 0 or more\n",
        " * images: input f32[B, 1, 8, 8], row-major, 256*B bytes\n",
        " * out0: output f32[B, 10], row-major, 40*B bytes\n",
        " * out1: output i64[B], contiguous, 8*B bytes\n",
    ):
        assert line in text
    assert re.search(r" \* workspace: digits_workspace\(B\) bytes \(\d+\*B .*\), best aligned to 64", text)
    assert " *   1: the dimension B of images: f32[B, 1, 8, 8] is negative\n" in text


def undefined_symbols(path: Path) -> list[str]:
    done = subprocess.run(["nm", "-u", str(path)], capture_output=True, text=True, check=True)
    return done.stdout.split()


@needs_c
@pytest.mark.parametrize("make", [convolutional, rows, lookup])
def test_the_object_needs_nothing(tmp_path, make):
    path = write_files(compile_ahead(make(), "net"), tmp_path / "net", shared=False)[0]
    assert undefined_symbols(path) == []


def test_a_failed_write_leaves_the_old_files(tmp_path, monkeypatch):
    compiled = compile_ahead(lookup(), "net")
    written = write_files(compiled, tmp_path / "net", shared=False)
    before = [p.read_bytes() for p in written]
    monkeypatch.setattr("graphc.codegen.aot.c_compiler", lambda: "false")
    with pytest.raises(RuntimeError, match=r"^false could not link a shared library \(exit code 1\)"):
        write_files(compile_ahead(rows(), "net"), tmp_path / "net")
    assert [p.read_bytes() for p in written] == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.h", "net.o"]
