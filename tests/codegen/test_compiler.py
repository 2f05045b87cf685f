"""CUDA C to cubins: both compilers give code for the exact architecture, say what kernels use, and fail with the lines."""

from __future__ import annotations

import functools
import re
import struct

import pytest
from graphc.codegen.c.prelude import functions, header_functions, sections
from graphc.codegen.cuda import compiler
from graphc.codegen.cuda.compiler import (
    CompileError,
    CompilerMissing,
    Usage,
    compile_cubin,
    excerpt,
    parse_report,
)
from graphc.codegen.cuda.target import AMPERE, HOPPER, Target

KERNEL = """
extern "C" __global__ void __launch_bounds__(128) scale(const float *a, float *c, long long n, long long *error, int launch) {
    __shared__ float s[128];
    const long long i = blockIdx.x * 128ll + threadIdx.x;
    s[threadIdx.x] = i < n ? half_to_float(float_to_half(a[i])) * 2.0f + 1.0f : 0.0f;
    __syncthreads();
    if (i < n) c[i] = s[127 - threadIdx.x];
    if (i == n) report_error(error, launch, 1, n);
}
"""
TEXT = functions(["half_to_float", "float_to_half", "report_error"], "cuda") + KERNEL


@functools.cache
def present(using: str) -> bool:
    return (compiler.nvrtc() if using == "nvrtc" else compiler.find_nvcc()) is not None


@pytest.fixture(params=["nvrtc", "nvcc"])
def using(request):
    if not present(request.param):
        pytest.skip(f"{request.param} is not installed")
    return request.param


@pytest.fixture
def any_compiler():
    if compiler.available().startswith("none"):
        pytest.skip("there is no CUDA compiler")


def architecture(cubin: bytes) -> int:
    """The SM version in the ELF header of a cubin."""
    assert cubin[:4] == b"\x7fELF"
    (flags,) = struct.unpack_from("<I", cubin, 48)
    return (flags >> 8 if flags & 0xFF == 0x02 or cubin[8] == 8 else flags) & 0xFF


def test_cubin(using):
    check_cubin(HOPPER, using)


@pytest.mark.parametrize("target", [Target(75), AMPERE], ids=lambda t: t.arch)
def test_older_architectures(any_compiler, target):
    check_cubin(target, None)


def check_cubin(target, using):
    cubin = compile_cubin(TEXT, target, using=using)
    assert architecture(cubin.data) == target.capability
    assert set(cubin.report) == {"scale"} and b"scale" in cubin.data
    usage = cubin.report["scale"]
    assert usage.shared == 512 and 4 <= usage.registers <= 64 and usage.spill_stores == usage.spill_loads == 0


def test_no_contraction(any_compiler):
    """a * b + c stays two operations; fmaf is one: FFMA appears in the second kernel only."""
    one = 'extern "C" __global__ void k(float *a) { a[0] = %s; }\n'
    plain = compile_cubin(one % "a[1] * a[2] + a[3]", HOPPER).data
    fused = compile_cubin(one % "fmaf(a[1], a[2], a[3])", HOPPER).data
    mul, add, ffma = 0x220, 0x221, 0x223  # the opcodes of FMUL, FADD, FFMA from sm_70 on
    assert opcodes(fused) & {ffma} and not opcodes(plain) & {ffma} and opcodes(plain) >= {mul, add}


def opcodes(cubin: bytes) -> set[int]:
    """The opcodes (low 12 bits of each 16 bytes) of the text section of a cubin's only kernel."""
    (table,) = struct.unpack_from("<Q", cubin, 40)
    size, count, names = struct.unpack_from("<HHH", cubin, 58)
    headers = [struct.unpack_from("<IIQQQQ", cubin, table + i * size) for i in range(count)]
    for name, _, _, _, offset, length in headers:
        start = headers[names][4] + name
        if cubin[start:].startswith(b".text."):
            return {struct.unpack_from("<H", cubin, at)[0] & 0xFFF for at in range(offset, offset + length, 16)}
    raise AssertionError("the cubin has no code")


def test_both_agree():
    """The compilers' front ends differ; what they use and the arithmetic that they emit do not."""
    if not (present("nvrtc") and present("nvcc")):
        pytest.skip("needs NVRTC and nvcc")
    a, b = (compile_cubin(TEXT, AMPERE, using=using) for using in ("nvrtc", "nvcc"))
    assert a.report == b.report
    assert 0x221 in opcodes(a.data) & opcodes(b.data) and 0x223 not in opcodes(a.data) | opcodes(b.data)


SIGNATURE = re.compile(r"^(?:template <(.*)> )?INLINE ([\w ]+?) (\w+)\(([^)]*)\)", re.MULTILINE)
ARGUMENTS = {
    "float": "f[0]", "double": "d[0]", "int": "n", "unsigned": "u[0]", "long long": "l[0]", "unsigned long long": "w[0]",
    "unsigned short": "h[0]", "long long *": "l", "float *": "f", "unsigned *": "u", "const unsigned *": "u", "void *": "f",
    "const void *": "f", "unsigned long long *": "w",
}  # fmt: skip
TEMPLATES = (
    "f[1] = shuffle_down(f[0], n, 32);", "h[1] = shuffle_xor(h[0], n, 16);", "d[1] = shuffle_from(d[0], n, 8);",
    "store_wide(f, load_wide<4>(f + 4));", "store_wide(h, load_wide<8>(h + 8));",
)  # fmt: skip


def calls() -> dict[str, str]:
    """For each function of prelude.cuh a kernel that calls it, so that its PTX is assembled."""
    params = "float *f, double *d, int n, unsigned *u, long long *l, unsigned long long *w, unsigned short *h"
    kept = {"float": "f[9] = ", "unsigned short": "h[9] = ", "unsigned": "u[9] = ", "unsigned long long": "w[9] = "}
    bodies = {}
    for name, text in header_functions("prelude.cuh").items():
        found = SIGNATURE.search(text)
        if found and not found[1] and found[3] == name:
            types = [re.sub(r"\s*\b\w+$", "", a.strip()) for a in found[4].split(",") if a.strip()]
            bodies[name] = f"{kept.get(found[2], '')}{name}({', '.join(ARGUMENTS[t] for t in types)});"
    bodies["templates"] = " ".join(TEMPLATES)
    return {name: f'extern "C" __global__ void call_{name}({params}) {{ {body} }}' for name, body in bodies.items()}


# Of the prelude, what is no function that can be called on its own.
PARTS = {"DYNAMIC_SHARED", "wide", "members", "find_member"}


@pytest.mark.parametrize("target", [Target(75), AMPERE, HOPPER], ids=lambda t: t.arch)
def test_every_prelude_function_assembles(any_compiler, target):
    """Each function, called: its PTX is right for every architecture that graphc makes code for."""
    made = calls()
    left_out = header_functions("prelude.cuh").keys() - made.keys() - PARTS
    assert all(re.search(rf"\b{name}\b", made["templates"]) for name in left_out), left_out
    report = compile_cubin(functions(sections("cuda"), "cuda") + "\n".join(made.values()), target).report
    assert set(report) == {f"call_{name}" for name in made}


def test_lines(any_compiler):
    plain, lines = (compile_cubin(TEXT, AMPERE, lines).data for lines in (False, True))
    assert b".debug_line" in lines and b".debug_line" not in plain


def test_errors_show_the_line(using):
    text = 'extern "C" __global__ void k(float *a) {\n    a[0] = undeclared_name;\n    a[1] = 2 +;\n}\n'
    with pytest.raises(CompileError) as caught:
        compile_cubin(text, HOPPER, using=using)
    message = str(caught.value)
    assert "bug in graphc" in message and 'identifier "undeclared_name" is undefined' in message
    assert "    2 |     a[0] = undeclared_name;" in message and "    3 |     a[1] = 2 +;" in message


def test_an_architecture_that_the_compiler_does_not_know(using):
    with pytest.raises(CompilerMissing, match=r"7\.0|(sm|compute)_70"):
        compile_cubin(TEXT, Target(70), using=using)


def test_spills_are_reported(any_compiler):
    """A kernel held to few registers spills, and the report says so."""
    body = "".join(f"    x[{i}] = a[{i}];\n" for i in range(200)) + "    __syncthreads();\n"
    body += "".join(f"    a[{i}] = x[{i}] * x[{(7 * i + 3) % 200}];\n" for i in range(200))
    text = f'extern "C" __global__ void __launch_bounds__(1024, 2) k(float *a) {{\n    float x[200];\n{body}}}\n'
    usage = compile_cubin(text, HOPPER).report["k"]
    assert usage.registers <= 32 and usage.spill_stores > 0 and usage.spill_loads > 0


def test_usage_of_several(monkeypatch):
    """Both ways to the table of usages agree."""
    if not present("nvcc"):
        pytest.skip("nvcc is not installed")
    texts = [TEXT, TEXT.replace("scale", "other")]
    found = compiler.usage_with_nvcc(texts, ("sm_80", "sm_90a"))
    assert set(found) == {(k, a) for k in ("scale", "other") for a in ("sm_80", "sm_90a")}
    assert compiler.usage(texts, ("sm_80", "sm_90a")) == found


def test_no_compiler(monkeypatch):
    monkeypatch.setattr(compiler, "nvrtc", lambda: None)
    monkeypatch.setattr(compiler, "find_nvcc", lambda: None)
    assert compiler.available().startswith("none; pip install 'graphc[cuda]'")
    for using in (None, "nvrtc"):
        with pytest.raises(CompilerMissing, match=r"pip install 'graphc\[cuda\]'"):
            compile_cubin(TEXT, HOPPER, using=using)
    with pytest.raises(CompilerMissing, match="nvcc was not found.*CUDA tool kit"):
        compiler.usage(["x"], ("sm_80",))
    with pytest.raises(ValueError, match="'clang'"):
        compile_cubin(TEXT, HOPPER, using="clang")


def test_where_compilers_are_looked_for(monkeypatch, tmp_path):
    """CUDA_HOME comes before PATH; a root without nvcc is passed over."""
    (tmp_path / "bin").mkdir()
    nvcc = tmp_path / "bin" / "nvcc"
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert compiler.find_nvcc() != str(nvcc)
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.4, V12.4.1'\n")
    nvcc.chmod(0o755)
    assert compiler.find_nvcc() == str(nvcc) and compiler.nvcc_version(str(nvcc)) == "12.4"
    assert next(iter(compiler._nvrtc_folders())) == tmp_path / "lib64"


def test_a_damaged_nvrtc_is_passed_over(monkeypatch, tmp_path):
    (tmp_path / "libnvrtc.so.13").write_bytes(b"not a library")
    monkeypatch.setattr(compiler, "_nvrtc_folders", lambda: iter([tmp_path]))
    opened = compiler._open_nvrtc()
    assert opened is None or str(tmp_path) not in opened[1]


def test_available(any_compiler):
    assert compiler.available().startswith("NVRTC 1" if present("nvrtc") else "nvcc 1")


LOG = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'first' for 'sm_90a'
ptxas info    : Function properties for first
    32 bytes stack frame, 24 bytes spill stores, 28 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 49152 bytes smem, 400 bytes cmem[0]
ptxas info    : Compiling entry function 'second' for 'sm_80'
ptxas info    : Function properties for second
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, 360 bytes cmem[0]
"""


def test_report():
    assert parse_report(LOG) == {("first", "sm_90a"): Usage(255, 24, 28, 49152), ("second", "sm_80"): Usage(8, 0, 0, 0)}
    assert parse_report("") == {}
    with pytest.raises(ValueError, match="report on k is not understood"):
        parse_report("Compiling entry function 'k' for 'sm_80'\nnonsense")


def test_excerpt():
    log = "kernels.cu(2): error: first\nkernels.cu(99): error: far\nkernels.cu(1): warning: no\n"
    assert excerpt("one\ntwo\n", log) == "kernels.cu(2): error: first\n    2 | two\nkernels.cu(99): error: far"
    assert excerpt("", "something else") == "something else"
