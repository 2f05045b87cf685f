"""The command line: what each command prints and writes, and the exact text of every error."""

from __future__ import annotations

import ctypes
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphc.cli import main
from graphc.codegen.aot import c_compiler
from graphc.ir.text import parse_function, parse_module

MODEL = '''"""Things to compile."""
import graphc as gc

net = gc.nn.Sequential(
    gc.nn.Conv2d(1, 4, 3, padding=1), gc.nn.BatchNorm2d(4), gc.nn.ReLU(), gc.nn.Flatten(), gc.nn.Linear(256, 10)
)
offset = gc.asarray([1.0, 2.0])


class Linear(gc.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = gc.nn.Linear(3, 2)

    def forward(self, x):
        return self.linear(x)


class Sized(gc.nn.Module):
    def __init__(self, size):
        super().__init__()


def shift(x):
    return x + offset


def product(x, y):
    return x @ y


def changes(x):
    global offset
    offset += x
    return x


def nothing(x):
    return None


def decides(x):
    if x.sum() > 0:
        return x
    return -x


def divides(x):
    return 1 / 0


optimizer = gc.optim.Adam(net.parameters(), lr=0.01)


def step(images, labels):
    loss = gc.nn.functional.cross_entropy(net(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss
'''
SQUARES = """func @squares(%x: f32[B, 2]) -> (f32[B, 2], f32[B]) {
  %0: f32[B, 2] = mul %x, %x
  %1: f32[B, 2] = mul %x, %x
  %2: f32[B] = sum %1 {axes=[1]}
  return %0, %2
}
"""


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    path = list(sys.path)
    Path("model.py").write_text(MODEL)
    Path("squares.gir").write_text(SQUARES)
    yield tmp_path
    sys.path[:] = path
    sys.modules.pop("model", None)


def run(capsys: Any, *arguments: str) -> str:
    """Standard output of a command that succeeds."""
    code = main(arguments)
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    return str(out)


def fails(capsys: Any, *arguments: str) -> str:
    """Standard error of a command that its input makes fail."""
    try:
        code: Any = main(arguments)
    except SystemExit as leave:
        code = leave.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    return str(err)


# compile


def load(path: str) -> Any:
    return ctypes.CDLL(str(Path(path).resolve()))


def pointer(array: np.ndarray[Any, Any]) -> Any:
    return array.ctypes.data_as(ctypes.c_void_p)


@pytest.mark.skipif(c_compiler() is None, reason="needs a C compiler")
def test_compiled_module_equals_the_eager_one(capsys):
    out = run(capsys, "compile", "model.py:net", "--input", "f32[B,1,8,8]", "-o", "build/net")
    net = sys.modules["model"].net
    assert sorted(os.listdir("build")) == ["net.h", "net.o", "net.so"]
    library = load("build/net.so")
    for batch in (1, 3, 64):
        images = np.random.default_rng(batch).standard_normal((batch, 1, 8, 8)).astype(np.float32)
        scores = np.empty((batch, 10), np.float32)
        library.net_workspace.restype = ctypes.c_int64
        space = np.empty(library.net_workspace(ctypes.c_int64(batch)) + 64, np.uint8)
        assert library.net(ctypes.c_int64(batch), pointer(images), pointer(scores), pointer(space)) == 0
        assert scores.tobytes() == net(sys.modules["model"].gc.asarray(images)).detach().numpy().tobytes()
    assert re.search(r"build/net\.o +│ +[\d,]+ │", out) and "build/net.h" in out and "build/net.so" in out
    assert re.search(r"^inputs +x: f32\[B, 1, 8, 8\]\s*$", out, re.M)
    assert re.search(r"^outputs +f32\[B, 10\]\s*$", out, re.M)
    assert re.search(r"^kernels +\d, called \d times\s*$", out, re.M)
    assert re.search(r"^constants +10,\d+ bytes, 2,6\d\d elements\s*$", out, re.M)
    assert re.search(r"^workspace +\d+\*B .*bytes\s*$", out, re.M)


def test_compile_a_class_and_name_the_function(capsys):
    run(capsys, "compile", "model.py:Linear", "--input", "f32[3]", "-o", "l.o", "--name", "linear", "--no-shared")
    assert "int64_t linear(const float *x, float *out, void *workspace);" in Path("l.h").read_text()
    assert sorted(p for p in os.listdir() if p.startswith("l.")) == ["l.h", "l.o"]


def test_compile_with_weights(capsys):
    import graphc as gc

    saved = {"linear.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "linear.bias": np.ones(2, np.float32)}
    gc.save(saved, "w.safetensors")
    arguments = ("--input", "f32[3]", "--no-shared", "--weights", "w.safetensors")
    run(capsys, "compile", "model.py:Linear", "-o", "net", *arguments)
    # As they are or turned, whichever the product reads.
    held, weight = Path("net.o").read_bytes(), saved["linear.weight"]
    assert weight.tobytes() in held or weight.T.tobytes() in held
    gc.save({"linear.weight": saved["linear.weight"]}, "w.safetensors")
    text = fails(capsys, "compile", "model.py:Linear", "-o", "net", *arguments)
    assert text.startswith("graphc compile: Linear.load_state_dict") and "missing: linear.bias" in text


def test_a_function_captures_constants(capsys):
    run(capsys, "compile", "model.py:shift", "--input", "f32[N,2]", "-o", "shift", "--no-shared")
    assert "const float *x, float *out" in Path("shift.h").read_text()
    assert np.array([1, 2], np.float32).tobytes() in Path("shift.o").read_bytes()


@pytest.mark.skipif(c_compiler() is None, reason="needs a C compiler")
def test_a_training_step_without_python_equals_python(capsys):
    out = run(
        capsys, "compile", "model.py:step", "--train", "--input", "f32[8,1,8,8]", "--input", "i64[8]", "-o", "step"
    )
    assert re.search(r"^state +[\d,]+ bytes, \d+ tensors\s*$", out, re.M)
    library, model = load("step.so"), sys.modules["model"]
    library.step_state.restype = ctypes.c_int64
    state, loss = np.empty(library.step_state(), np.uint8), np.empty((), np.float32)
    space = np.empty(library.step_workspace() + 64, np.uint8)
    library.step_init(pointer(state))
    rng = np.random.default_rng(0)
    for _ in range(4):
        images, labels = rng.standard_normal((8, 1, 8, 8)).astype(np.float32), rng.integers(0, 10, 8)
        assert library.step(*map(pointer, (images, labels, loss, state, space))) == 0
        expected = model.step(model.gc.asarray(images), model.gc.asarray(labels)).numpy()
        assert loss.tobytes() == expected.tobytes()
    offsets = dict(re.findall(r"at (\d+): (\w+)", Path("step.h").read_text()))
    held = {name: int(at) for at, name in offsets.items()}
    assert {"net_4_weight", "net_1_running_mean", "optimizer_lr", "optimizer_0_step"} <= held.keys()
    for name, t in (*model.net.named_parameters(), *model.net.named_buffers()):
        expected = t.detach().numpy()
        at = held[f"net_{name.replace('.', '_')}"]
        assert state[at : at + expected.nbytes].tobytes() == expected.tobytes(), name
    labels[0] = 10
    before = state.tobytes()
    library.step_error.restype = ctypes.c_char_p
    code = library.step(*map(pointer, (images, labels, loss, state, space)))
    assert b"at model.py:56: an index is out of range for a dimension of size 10" in library.step_error(code)
    assert state.tobytes() == before


COMPILE_ERRORS = {
    "model.py": "'model.py' names no function; write FILE.py:NAME, such as model.py:net",
    "other.py:net": "there is no file other.py",
    "model.py:nett": "model.py has no function or module 'nett'; did you mean net?",
    "model.py:zzz": "model.py has no function or module 'zzz'; it has net, Linear, Sized, shift, product, changes, "
    "nothing, decides, divides, step",
    "model.py:offset": "model.py:offset is a Tensor, not a function or an nn.Module",
    "model.py:Sized": "model.py:Sized is a class that needs arguments (size); name an instance of it, made in the file",
    "model.py:product": "1 --input is given, but product(x, y) needs one for each argument: "
    "missing a required argument: 'y'",
    "model.py:changes": "changes changes tensors from outside (p1), which a compiled function cannot; "
    "return their new values instead, or make them state with --train",
    "model.py:nothing": "nothing returns no tensor, so there is nothing to compile",
    "model.py:divides": "tracing divides failed: ZeroDivisionError: division by zero\n"
    "  at model.py:49: return 1 / 0",
}


@pytest.mark.parametrize("source", COMPILE_ERRORS)
def test_errors_of_compile(capsys, source):
    text = fails(capsys, "compile", source, "--input", "f32[2]", "-o", "net", "--no-shared")
    assert text == f"graphc compile: {COMPILE_ERRORS[source]}\n"
    assert not Path("net.o").exists()


def test_a_branch_on_a_value_is_refused_with_its_line(capsys):
    text = fails(capsys, "compile", "model.py:decides", "--input", "f32[2]", "-o", "net")
    assert text.startswith("graphc compile: tracing decides failed: AbstractValueError: the value of a tensor")
    assert "\n  at model.py:43: if x.sum() > 0:\n" in text


INPUT_ERRORS = {
    "f32": "--input 'f32': 'f32' is not a type; write for example \"f32[B, 1, 8, 8]\"",
    "f33[2]": "--input 'f33[2]': 'f33' is not an element type of graphc; it has bool, int8, int16, int32, int64, uint8, "
    "uint16, uint32, uint64, float16, bfloat16, float32, float64",
    "f32[-1]": "--input 'f32[-1]': '-1' is not a name for a dimension",
}


@pytest.mark.parametrize("text", INPUT_ERRORS)
def test_errors_of_input_types(capsys, text):
    assert fails(capsys, "ir", "model.py:shift", "--input", text) == f"graphc ir: {INPUT_ERRORS[text]}\n"


def test_more_errors_of_compile(capsys):
    shift = ("compile", "model.py:shift", "--input", "f32[2]", "--no-shared")
    assert fails(capsys, *shift, "-o", "my-net") == (
        "graphc compile: 'my-net' is not a C identifier, so it cannot name the compiled function; "
        "give another with --name\n"
    )
    assert fails(capsys, *shift, "-o", "net", "--weights", "w.safetensors") == (
        "graphc compile: --weights needs an nn.Module to load them into, and shift is a function\n"
    )
    linear = ("compile", "model.py:Linear", "--input", "f32[3]", "--no-shared", "-o", "net")
    assert fails(capsys, *linear, "--weights", "w.safetensors") == (
        "graphc compile: cannot read w.safetensors: no such file or directory\n"
    )
    Path("w.safetensors").write_bytes(b"abc")
    assert fails(capsys, *linear, "--weights", "w.safetensors") == (
        "graphc compile: 'w.safetensors' is not a valid safetensors file: Error while deserializing: header too small; "
        "3 bytes are there: if they should be more, copy it again\n"
    )
    Path("file").write_text("")
    assert fails(capsys, *shift, "-o", "file/net") in (
        "graphc compile: cannot write file/net.o: file exists\n",
        "graphc compile: cannot write file/net.o: not a directory\n",
    )
    assert fails(capsys, "compile", "model.py:shift") == (
        "graphc compile: the following arguments are required: -o/--output (graphc compile --help tells more)\n"
    )


def test_errors_of_the_users_file(capsys):
    Path("bad.py").write_text("x = 1\ny = x.missing\n")
    assert fails(capsys, "ir", "bad.py:f") == (
        "graphc ir: running bad.py failed: AttributeError: 'int' object has no attribute 'missing'\n"
        "  at bad.py:2: y = x.missing\n"
    )
    Path("worse.py").write_text("x = 1\ndef f(:\n")
    assert fails(capsys, "ir", "worse.py:f") == "graphc ir: worse.py:2: SyntaxError: invalid syntax\n"


def test_traceback_shows_pythons_own(capsys):
    with pytest.raises(Exception, match=r"^there is no file other\.py$"):
        main(["ir", "other.py:f", "--traceback"])


# ir

NET = ("ir", "model.py:net", "--input", "f32[B,1,8,8]")


def test_the_trace_has_composites_and_lines(capsys):
    text = run(capsys, *NET)
    f = parse_function(text)
    assert f.name == "net" and f.param_names[0] == "x"
    assert any(op.name == "call" for op in f.ops)
    assert {str(op.loc) for op in f.ops} == {'"model.py":4'}


def test_lines_are_those_of_the_user(capsys):
    text = run(capsys, "ir", "model.py:product", "--input", "f32[M,K]", "--input", "f32[K,N]")
    assert {str(op.loc) for op in parse_function(text).ops} == {'"model.py":29'}
    text = run(capsys, "ir", "model.py:Linear", "--input", "f32[B,3]")
    assert {str(op.loc) for op in parse_function(text).ops} == {'"model.py":16'}


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("optimized", r"func @net\(.*\n  %0: f32\[B, 4, 8, 8\] = conv "),
        ("fused", r"func @net\(.*\n  %0: .* = call .*\{function=@group0\}"),
        ("loops", r"; group0 \[e0=\d.*\nnest @kernel\("),
        ("scheduled", r"; group0 .*\nkernel @\w+\("),
        ("llvm", r"; group0 .*\ntarget datalayout(.|\n)*define void @"),
        ("asm", r"; group0 .*\n\s+\.(file|text)"),
        ("plan", r"plan @net: \d launches of \d kernels, workspace \d+\*B.*\n  0: group0 net_kernel0\("),
    ],
)
def test_stages(capsys, stage, expected):
    assert re.match(expected, run(capsys, *NET, "--stage", stage))


def test_gradient_of_one_parameter(capsys):
    product = ("ir", "model.py:product", "--input", "f32[M,K]", "--input", "f32[K,N]")
    every = parse_function(run(capsys, *product, "--stage", "grad"))
    assert [str(t) for t in every.result_types] == ["f32[M, N]", "f32[M, K]", "f32[K, N]"]
    one = parse_function(run(capsys, *product, "--stage", "optimized", "--wrt", "y"))
    assert [str(t) for t in one.result_types] == ["f32[M, N]", "f32[K, N]"]
    assert fails(capsys, *product, "--wrt", "z") == "graphc ir: @product has no parameter 'z'; it has x, y\n"
    assert fails(capsys, *product, "--stage", "optimised") == (
        "graphc ir: graphc ir has no stage 'optimised'; did you mean optimized?\n"
    )


def test_training_mode_traces_what_changes(capsys):
    net = ("ir", "model.py:net", "--input", "f32[8,1,8,8]")
    evaluated, training = (parse_function(run(capsys, *net, *more)) for more in ((), ("--training",)))
    assert len(training.results) > len(evaluated.results) == 1
    assert fails(capsys, *NET, "--training") == (
        "graphc ir: tracing net failed: TypeError: the dimension 64*B is symbolic and has no value to divide by or into "
        "while tracing; trace with a concrete size\n"
        "  at model.py:4: net = gc.nn.Sequential(\n"
    )


def test_output_goes_to_a_file_that_is_complete(capsys, workplace):
    umask = os.umask(0)
    os.umask(umask)
    assert run(capsys, *NET, "-o", "out/net.gir") == ""
    assert Path("out/net.gir").read_text() == run(capsys, *NET)
    assert os.listdir("out") == ["net.gir"]
    assert stat.S_IMODE(os.stat("out/net.gir").st_mode) == 0o666 & ~umask
    Path("out/net.gir").write_text("old")
    fails(capsys, "ir", "model.py:divides", "--input", "f32[2]", "-o", "out/net.gir")
    assert Path("out/net.gir").read_text() == "old"


# opt


def test_opt_prints_what_it_reads(capsys):
    assert run(capsys, "opt", "squares.gir") == SQUARES


def test_opt_runs_passes(capsys):
    f = parse_function(run(capsys, "opt", "squares.gir", "--passes", "cse,dce", "--verify"))
    assert [op.name for op in f.ops] == ["mul", "sum"]
    assert run(capsys, "opt", "squares.gir", "--passes", "default") == run(capsys, "opt", "squares.gir", "--passes", "cse")


def test_opt_keeps_every_function(capsys):
    Path("two.gir").write_text(SQUARES + SQUARES.replace("@squares", "@again"))
    text = run(capsys, "opt", "two.gir", "--passes", "cse")
    assert [len(f.ops) for f in parse_module(text)] == [2, 2]


def test_opt_reads_standard_input_and_shows_stages(capsys, monkeypatch):
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO(SQUARES))
    assert run(capsys, "opt", "-", "--stage", "loops").startswith("; group0 [")


def test_opt_dumps_every_pass(capsys):
    text = run(capsys, "opt", "squares.gir", "--passes", "fold,cse", "--dump")
    assert re.search(r"^# fold: 3 -> 3 operations, [\d.]+ ms \(unchanged\)$", text, re.M)
    assert re.search(r"^# cse: 3 -> 2 operations, [\d.]+ ms$", text, re.M)


def test_errors_of_opt(capsys):
    assert fails(capsys, "opt", "none.gir") == "graphc opt: cannot read none.gir: no such file or directory\n"
    assert fails(capsys, "opt", "squares.gir", "--passes", "csee") == (
        "graphc opt: there is no pass 'csee'; the passes are inline, fold, simplify, cse, dce; did you mean cse?\n"
    )
    Path("bad.gir").write_text(SQUARES.replace("sum %1", "sum %7"))
    text = fails(capsys, "opt", "bad.gir")
    assert text.startswith("graphc opt: bad.gir:4:20: ")
    assert text.endswith("\n   4 |   %2: f32[B] = sum %7 {axes=[1]}\n     |                    ^^\n")
    Path("bytes.gir").write_bytes(b"func \xff")
    assert fails(capsys, "opt", "bytes.gir") == "graphc opt: cannot read bytes.gir: it is not UTF-8 text (byte 5)\n"


# run


def test_run_prints_results(capsys):
    np.save("x.npy", np.array([[1, 2], [3, 4]], np.float32))
    expected = "result0: f32[2, 2]\n[[ 1.  4.]\n [ 9. 16.]]\nresult1: f32[2]\n[ 5. 25.]\n"
    assert run(capsys, "run", "squares.gir", "--input", "x.npy") == expected
    assert run(capsys, "run", "squares.gir", "--input", "x.npy", "--backend", "interpret") == expected


def test_run_writes_results(capsys):
    np.savez("in.npz", x=np.ones((3, 2), np.float32))
    assert run(capsys, "run", "squares.gir", "--input", "in.npz", "-o", "out.npz") == ""
    with np.load("out.npz") as out:
        assert out["result0"].shape == (3, 2) and out["result1"].tolist() == [2, 2, 2]


def test_run_on_random_numbers(capsys):
    arguments = ("run", "squares.gir", "--random", "1", "--size", "B=3")
    assert run(capsys, *arguments) == run(capsys, *arguments, "--backend", "interpret")
    assert run(capsys, *arguments) != run(capsys, "run", "squares.gir", "--random", "2", "--size", "B=3")


def test_bfloat16_goes_through_files(capsys):
    import ml_dtypes

    Path("f.gir").write_text("func @f(%x: bf16[3]) -> (bf16[3]) {\n  %0: bf16[3] = add %x, %x\n  return %0\n}\n")
    np.save("x.npy", np.array([1, 2, 3], ml_dtypes.bfloat16))
    run(capsys, "run", "f.gir", "--input", "x.npy", "-o", "y.npy")
    assert np.load("y.npy").view(ml_dtypes.bfloat16).tolist() == [2, 4, 6]


def test_errors_of_run(capsys):
    np.save("x.npy", np.ones((2, 2)))
    np.save("y.npy", np.ones((2, 3), np.float32))
    np.save("z.npy", np.ones((2, 2), np.float32))
    np.save("object.npy", np.array([None]), allow_pickle=True)
    np.savez("named.npz", y=np.ones(2))
    Path("text.npy").write_text("hello")
    squares = ("run", "squares.gir")
    for arguments, expected in {
        (): "@squares needs --input for x: f32[B, 2] (or --random SEED)",
        ("--input", "no.npy"): "cannot read no.npy: no such file or directory",
        ("--input", "text.npy"): "cannot read text.npy: it is no .npy or .npz file of numbers",
        ("--input", "object.npy"): "cannot read object.npy: it is no .npy or .npz file of numbers",
        ("--input", "named.npz"): "@squares has no parameter 'y'; it has x",
        ("--input", "x.npy"): "the array for x is float64, but its type is f32[B, 2]; convert it with .astype('float32')",
        ("--input", "y.npy"): "@squares: the argument for x has a dimension 3 where its type has 2",
        ("--input", "z.npy", "--input", "z.npy"): "z.npy is one input too many: @squares has 1 parameters",
        ("--input", "z.npy", "-o", "out.npy"): "a .npy file holds one array, and there are 2 results; name a .npz file",
        ("--input", "z.npy", "--backend", "gpu"): "graphc run has no backend 'gpu'; it has llvm, interpret",
        ("--random", "0"): "--random needs the sizes of x: f32[B, 2]; give them with --size NAME=N",
        ("--random", "0", "--size", "B"): "--size 'B' gives no size; write for example --size B=32",
    }.items():
        assert fails(capsys, *squares, *arguments) == f"graphc run: {expected}\n"


@pytest.mark.parametrize("backend", ["llvm", "interpret"])
def test_an_index_out_of_range_is_an_error_of_the_input(capsys, backend):
    Path("f.gir").write_text(
        'func @f(%x: f32[3], %i: i64[1]) -> (f32[1]) {\n  %0: f32[1] = gather %x, %i {axis=0} loc("a.py":7)\n  return %0\n}\n'
    )
    np.savez("in.npz", x=np.ones(3, np.float32), i=np.array([5]))
    text = fails(capsys, "run", "f.gir", "--input", "in.npz", "--backend", backend)
    assert text.startswith("graphc run: ") and "gather" in text and "a.py" in text and "5" in text


# doctor, cache, and the whole


def test_doctor(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("GRAPHC_CACHE_DIR", str(tmp_path / "cache"))
    from graphc.codegen.llvm.target import host_target

    text = run(capsys, "doctor")
    for row in (
        r"Python +│ 3\.\d+\.\d+ ",
        r"numpy +│ \d",
        r"llvmlite +│ \d",
        r"pycuda +│ (\d|not installed)",
        rf"CPU +│ {host_target().cpu} ",
        rf"vectors +│ {host_target().vector_bits} bits",
        r"threads +│ \d+ ",
        r"costs +│ (those of a usual machine|measured on this machine|the same on every machine)",
        r"device cpu +│ ready",
        r"C compiler +│ \S+",
        rf"cache +│ {re.escape(str(tmp_path))}/cache ",
        r"cache state +│ not made yet",
        r"cache holds +│ 0 kernels, 0 bytes of at most 1,073,741,824",
    ):
        assert re.search(rf"│ {row}", text), (row, text)
    (tmp_path / "cache").mkdir(mode=0o700, exist_ok=True)
    (tmp_path / "cache").chmod(0o777)
    assert "not used: others may write to it (mode 777); chmod 700 mends that" in run(capsys, "doctor")
    monkeypatch.setenv("GRAPHC_CACHE", "0")
    assert "turned off on disk by GRAPHC_CACHE=0" in run(capsys, "doctor")
    monkeypatch.setenv("GRAPHC_COSTS", "fast")
    assert "cannot be used: GRAPHC_COSTS=fast: it may be 'default'" in " ".join(run(capsys, "doctor").split())
    monkeypatch.setenv("GRAPHC_CUDA", "simulate")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert re.search(r"C\+\+ compiler +│ none: .* 'no-such-compiler'", run(capsys, "doctor"))


def test_cache_clear(capsys, monkeypatch, tmp_path):
    from graphc.codegen import cache

    monkeypatch.setenv("GRAPHC_CACHE_DIR", str(tmp_path / "cache"))
    cache.put("0" * 64, b"some code")
    kept = tmp_path / "cache" / "notes.txt"
    kept.write_text("mine")
    size = next((tmp_path / "cache").glob("*.kernel")).stat().st_size
    assert run(capsys, "cache", "clear") == f"1 kernels of {size} bytes deleted from {tmp_path}/cache\n"
    assert os.listdir(tmp_path / "cache") == ["notes.txt"]
    cache.forget()
    monkeypatch.setenv("GRAPHC_CACHE", "0")
    assert fails(capsys, "cache", "clear") == "graphc cache: the cache on disk is turned off (GRAPHC_CACHE=0)\n"


def test_errors_of_the_command_itself(capsys):
    assert fails(capsys, "frobnicate").startswith("graphc: argument COMMAND: invalid choice: 'frobnicate' (choose from ")
    assert fails(capsys) == "graphc: the following arguments are required: COMMAND (graphc --help tells more)\n"


def test_a_fault_of_graphc_says_so(capsys, monkeypatch):
    monkeypatch.setattr("graphc.codegen.cache.disk", lambda: 1 / 0)
    assert main(["cache", "clear"]) == 1
    assert capsys.readouterr().err == (
        "graphc cache: ZeroDivisionError: division by zero\n"
        "This is a fault of graphc. Please report it with the output of the same command and --traceback\n"
    )


def python(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def test_version():
    import importlib.metadata

    assert python("-m", "graphc.cli", "--version") == f"graphc {importlib.metadata.version('graphc')}\n"


def test_help_names_every_command_and_loads_nothing_heavy():
    text = python("-X", "importtime", "-m", "graphc.cli", "--help")
    for command in ("compile", "ir", "opt", "run", "doctor", "cache"):
        assert re.search(rf"^    {command} ", text, re.M)
    code = "import sys\nfrom graphc.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\nprint(sorted(sys.modules))"
    loaded = set(eval(python("-c", code).splitlines()[-1]))
    assert not loaded & {"llvmlite", "lark", "numpy", "rich"}


def test_a_closed_pipe_is_no_fault():
    command = f"{sys.executable} -m graphc.cli ir model.py:net --input 'f32[B,1,8,8]' --stage asm | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout.startswith("; group0") and done.stderr == ""
