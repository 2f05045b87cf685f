"""A libcuda.so.1 that runs kernels on the CPU, so that pycuda and graphc's own driver code run end to end without a GPU.

`build` compiles libcuda.cpp; a child process finds the result by LD_LIBRARY_PATH, with `plugin` loaded by pytest or imported first.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from graphc.runtime.cuda import library

SOURCE = Path(__file__).with_name("libcuda.cpp")


def missing(pycuda: bool = True) -> str:
    """Why there can be no fake driver here; "" if there can. pycuda: whether it is to run below pycuda."""
    if sys.platform != "linux":
        return "the fake driver is for Linux"
    if pycuda and importlib.util.find_spec("pycuda") is None:
        return "pycuda is not installed"
    for tool in (os.environ.get("CXX", "g++"), "nm"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    return ""


def _wanted() -> set[str]:
    """The driver's functions that graphc calls, and those that pycuda is linked to, where it is installed."""
    spec = importlib.util.find_spec("pycuda")
    if spec is None or spec.origin is None:
        return set(library._FUNCTIONS)
    (module,) = Path(spec.origin).parent.glob("_driver*.so")
    shown = subprocess.run(["nm", "-D", "--undefined-only", str(module)], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"\bcu[A-Z]\w+", shown)) | set(library._FUNCTIONS)


def build(folder: Path) -> Path:
    """The folder with libcuda.so.1, compiled unless it is there."""
    text = SOURCE.read_text()
    missing_here = sorted(_wanted() - set(re.findall(r"^API (cu\w+)", text, re.MULTILINE)))
    text += "\n/* ---- not supported ---- */\n"
    text += "".join(
        f'API {name}() {{ return fprintf(stderr, "fake driver: {name} is not supported\\n"), NOT_SUPPORTED; }}\n'
        for name in missing_here
    )
    folder = folder / f"fake-driver-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    made = folder / "libcuda.so.1"
    if not made.exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "libcuda.cpp").write_text(text)
        compiler = os.environ.get("CXX", "g++")
        command = [compiler, "-std=c++20", "-O0", "-Wall", "-Wextra", "-Werror", "-Wno-missing-field-initializers", "-shared", "-fPIC"]
        command += ["-Wl,-soname,libcuda.so.1", "libcuda.cpp", "-o", f"{made}.{os.getpid()}", "-ldl"]
        subprocess.run(command, cwd=folder, check=True)
        os.replace(f"{made}.{os.getpid()}", made)
    return folder


def environment(folder: Path, **settings: str) -> dict[str, str]:
    """The environment of a child that finds the fake driver in `folder`. settings: FAKE_CUDA_... without the prefix."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("GRAPHC_CUDA", "GRAPHC_BACKEND", "FAKE_CUDA"))}
    env["LD_LIBRARY_PATH"] = ":".join(filter(None, [str(folder), env.get("LD_LIBRARY_PATH")]))
    return env | {f"FAKE_CUDA_{k}": v for k, v in settings.items()}
