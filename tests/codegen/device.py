"""Device kernels on the CPU, on NumPy arrays: lowered, written as CUDA C, simulated, compared with what they mean.

Memory is what a device gives and less: every buffer ends (but for its last 15 bytes) at a page that must not be touched,
parameters cannot be written, and nothing is zero to begin with. Libraries are kept in pytest's cache, under the hash of their text.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphc.codegen.canonical import canonicalise
from graphc.codegen.cuda import simulate, tensormap
from graphc.codegen.cuda.choice import Choice
from graphc.codegen.cuda.lower import choose, lower
from graphc.codegen.cuda.target import HOPPER, Target
from graphc.codegen.donation import InPlace
from graphc.codegen.kernels import evaluate_size, rename, size_text
from graphc.codegen.loops import Buffer, Kernel, TensorMap
from graphc.codegen.lower.lowered import Lowered
from graphc.ir.function import Function, Operation
from graphc.ir.text import print_function
from graphc.ir.types import substitute

from tests.codegen.compiled import difference
from tests.equality.oracle import exact_interpret

Array = np.ndarray[Any, Any]
Compare = Callable[[Array, Array], str]

_PAGE = mmap.PAGESIZE
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.mmap.restype = ctypes.c_void_p
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_FREE = 0xA5
_KEPT_LIBRARIES = 1000


class Reported(AssertionError):
    """A kernel reported a run-time error: `site` (1 is the first), `value`, and the operation behind it."""

    def __init__(self, site: int, value: int, operation: Operation | None) -> None:
        super().__init__(f"site {site} reports {value}: {operation}")
        self.site, self.value, self.operation = site, value, operation


class Memory:
    """Bytes between two pages that must not be touched; ending at the second, starting at a multiple of 16.

    array: what it holds; contents beside it are watched by `check`.
    """

    def __init__(self, shape: Sequence[int], dtype: Any, contents: Array | None = None, writable: bool = True) -> None:
        dtype = np.dtype(dtype)
        count = int(np.prod(shape, dtype=np.int64))
        self.size = count * dtype.itemsize
        room = (self.size + 15) // 16 * 16
        inner = max(_PAGE, (room + _PAGE - 1) // _PAGE * _PAGE)
        self.total = inner + 2 * _PAGE
        start = _libc.mmap(None, self.total, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        if start in (None, ctypes.c_void_p(-1).value):
            raise MemoryError(f"no memory for {self.size} bytes between guard pages")
        self.start: int | None = start
        self.address = start + _PAGE + inner - room
        self.inner = np.frombuffer((ctypes.c_uint8 * inner).from_address(start + _PAGE), np.uint8)
        self.before = inner - room
        self.inner.fill(_FREE)
        held = self.inner[self.before : self.before + self.size]
        held.fill(0xFF if dtype.itemsize > 1 else 1)
        self.array = held.view(dtype).reshape(shape)
        if contents is not None:
            self.array[...] = contents
        _libc.mprotect(start, _PAGE, 0)
        _libc.mprotect(start + _PAGE + inner, _PAGE, 0)
        if not writable:
            _libc.mprotect(start + _PAGE, inner, mmap.PROT_READ)

    def check(self) -> bool:
        """Whether nothing was written beside the array."""
        after = self.inner[self.before + self.size :]
        return bool((self.inner[: self.before] == _FREE).all() and (after == _FREE).all())

    def free(self) -> None:
        """The array must not be used any more."""
        if self.start is not None:
            _libc.munmap(self.start, self.total)
            self.start = None


@contextlib.contextmanager
def _allocation() -> Iterator[list[Memory]]:
    held: list[Memory] = []
    try:
        yield held
    finally:
        for m in held:
            m.free()


def cache_folder() -> Path:
    """Where libraries are kept from one run of the tests to the next."""
    folder = Path(__file__).parents[2] / ".pytest_cache" / "d" / "simulation"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.gettempdir()) / "graphc-simulation"
    return folder


_libraries: dict[str, simulate.Library] = {}


def library(text: str) -> simulate.Library:
    """The library of a CUDA C text, in one call of the C++ compiler or from the cache."""
    if text not in _libraries:
        folder = cache_folder()
        built = _libraries[text] = simulate.library(text, folder)
        with contextlib.suppress(OSError):
            os.utime(built.path)
        _prune(folder)
    return _libraries[text]


def _prune(folder: Path) -> None:
    """Keep what was used last; other processes may do the same at the same time."""
    with contextlib.suppress(OSError):
        files = sorted(os.scandir(folder), key=lambda f: f.stat().st_mtime if f.name.endswith(".so") else math.inf)
        for old in files[:-_KEPT_LIBRARIES]:
            if old.name.endswith(".so"):
                os.unlink(old.path)


def cuda_text(kernels: Sequence[Kernel], target: Target = HOPPER) -> str:
    from graphc.codegen.c.cuda import emit_kernels

    return emit_kernels(kernels, target)


def _map_argument(m: TensorMap, address: int, extents: Mapping[str, int]) -> Any:
    data = tensormap.simulated(address, tensormap.encoding_of(m, extents))
    room = bytearray(len(data) + tensormap.ALIGNMENT)
    start = -ctypes.addressof((ctypes.c_uint8 * 1).from_buffer(room)) % tensormap.ALIGNMENT
    room[start : start + len(data)] = data
    return (ctypes.c_uint8 * len(data)).from_buffer(room, start)


def launch(
    built: simulate.Library, kernel: Kernel, memory: Mapping[Buffer, Memory], extents: Mapping[str, int], seed: int,
    number: int = 1,
) -> tuple[int, int]:
    """Run one kernel in place; the site and value of the first error, or (0, 0)."""
    from graphc.codegen.c.cuda import shared_bytes

    assert kernel.grid is not None
    blocks = evaluate_size(size_text(kernel.grid.blocks), extents)
    if blocks == 0:
        return 0, 0
    error = (ctypes.c_longlong * 3)()
    arguments: list[Any] = [_map_argument(m, memory[m.buffer].address, extents) for m in kernel.grid.maps]
    arguments += [ctypes.c_void_p(memory[b].address) for b in kernel.buffers]
    integer = ctypes.c_int if kernel.grid.narrow else ctypes.c_longlong
    arguments += [integer(extents[name]) for name in kernel.extents]
    arguments += [ctypes.c_void_p(ctypes.addressof(error)), ctypes.c_int(number)]
    built.launch(kernel.name, arguments, blocks, kernel.grid.threads, shared_bytes(kernel)[1], seed)
    assert error[0] == 0 or error[2] == number, "an error was reported for another launch"
    return error[0], error[1]


def run(
    kernels: Sequence[Kernel], arrays: Mapping[Buffer, Array], extents: Mapping[str, int], seed: int = 0,
    target: Target = HOPPER,
) -> tuple[dict[Buffer, Array], tuple[int, int]]:
    """Kernels in order on copies of `arrays` (one-dimensional); gives (arrays after, (site, value) of the first error)."""
    built = library(cuda_text(kernels, target))
    first = (0, 0)
    with _allocation() as held:
        memory: dict[Buffer, Memory] = {}
        for buffer, a in arrays.items():
            memory[buffer] = Memory(a.shape, a.dtype, a, buffer.kind != "in")
            held.append(memory[buffer])
        for i, kernel in enumerate(kernels):
            error = launch(built, kernel, memory, extents, seed, i + 1)
            first = first if first[0] else error
        for buffer, m in memory.items():
            assert m.check(), f"a kernel wrote beside {buffer}"
        return {b: m.array.copy() for b, m in memory.items()}, first


@dataclass(frozen=True, eq=False)
class Case:
    """A group with its inputs, and how it is to run.

    choice: of the canonical group; None lets `choose` decide. compare(expected, got) gives "" or what differs; None compares
    to the bit. expected: results, where the interpreter does not define them.
    """

    group: Function
    inputs: Sequence[Array]
    choice: Choice | None = None
    target: Target = HOPPER
    in_place: InPlace = ()
    expected: Sequence[Array] | None = None
    compare: Compare | None = None


@dataclass
class Prepared:
    """A case, lowered, with kernels under names of their own."""

    case: Case
    canonical: Function
    sizes: dict[str, int]
    choice: Choice
    lowered: Lowered
    kernels: tuple[Kernel, ...]
    text: str = field(default="", repr=False)


def prepare(case: Case, number: int = 0) -> Prepared:
    """Canonical, scheduled and lowered, as codegen/cuda/kernels.py does it."""
    canonical = canonicalise(case.group)
    sizes = {name: int(d) for name, d in canonical.extents}
    choice = case.choice or choose(canonical.function, sizes, case.target)
    lowered = lower(canonical.function, choice, case.target, case.in_place)
    return Prepared(case, canonical.function, sizes, choice, lowered, rename(lowered.kernels, f"case{number}"))


def run_prepared(p: Prepared, built: simulate.Library, seed: int = 0) -> list[Array]:
    """The results of a prepared case. Raises Reported, SimulationError, AssertionError."""
    group, donors = p.case.group, {result: param for param, result in p.case.in_place}
    with _allocation() as held:

        def new(*args: Any) -> Memory:
            held.append(Memory(*args))
            return held[-1]

        memory: dict[Buffer, Memory] = {}
        for i, (buffer, a) in enumerate(zip(p.lowered.params, p.case.inputs, strict=True)):
            assert tuple(a.shape) == tuple(int(d) for d in group.params[i].type.shape), f"input {i} has the wrong shape"
            memory.setdefault(buffer, new(a.shape, a.dtype, a, i in donors.values()))
        results = []
        for i, (buffer, value) in enumerate(zip(p.lowered.results, group.results, strict=True)):
            shape = [int(d) for d in value.type.shape]
            if i in donors:
                memory[buffer] = memory[p.lowered.params[donors[i]]]
            elif buffer not in memory:
                memory[buffer] = new(shape, value.type.dtype.numpy)
            results.append((memory[buffer], shape))
        for s in p.lowered.scratch:
            size = substitute(s.size, p.sizes)
            assert isinstance(size, int)
            memory[s.buffer] = new([size], s.dtype.numpy)
        for i, kernel in enumerate(p.kernels):
            site, value = launch(built, kernel, memory, p.sizes, seed, i + 1)
            if site:
                sites = p.lowered.sites
                raise Reported(site, value, sites[site - 1] if site <= len(sites) else None)
        for buffer, m in memory.items():
            assert m.check(), f"a kernel wrote beside {buffer}"
        return [m.array.reshape(shape).copy() for m, shape in results]


def run_group(
    group: Function, inputs: Sequence[Array], choice: Choice | None = None, target: Target = HOPPER,
    seeds: Sequence[int] = (0, 1), in_place: InPlace = (),
) -> list[Array]:
    """The results of one group; every seed must give the same bits."""
    p = prepare(Case(group, inputs, choice, target, in_place))
    built = library(cuda_text(p.kernels, target))
    runs = [run_prepared(p, built, seed) for seed in seeds]
    for seed, other in zip(seeds[1:], runs[1:]):
        for i, (a, b) in enumerate(zip(runs[0], other, strict=True)):
            assert not (found := difference(a, b)), f"result {i} depends on the order of threads (seed {seed}): {found}"
    return runs[0]


def check_groups(
    cases: Sequence[Case | tuple[Function, Sequence[Array]]], seeds: Sequence[int] = (0, 1)
) -> list[Prepared]:
    """Every case on the device, in simulation, gives the interpreter's bits (any NaN is any other), for every seed.

    All kernels are built by one call of the compiler for each target. On failure the group's text and its kernels' text are shown.
    """
    prepared = [
        prepare(c if isinstance(c, Case) else Case(*c), i) for i, c in enumerate(cases)
    ]
    for target in {p.case.target: None for p in prepared}:
        kernels = [k for p in prepared if p.case.target == target for k in p.kernels]
        built = library(cuda_text(kernels, target)) if kernels else None
        for p in prepared:
            if p.case.target == target:
                _check(p, built, seeds)
    return prepared


def _check(p: Prepared, built: simulate.Library | None, seeds: Sequence[int]) -> None:
    expected = p.case.expected
    if expected is None:
        expected = exact_interpret(p.case.group, list(p.case.inputs))
    compare = p.case.compare or difference
    for seed in seeds:
        try:
            if built is None:
                got = [np.empty([int(d) for d in r.type.shape], r.type.dtype.numpy) for r in p.case.group.results]
            else:
                got = run_prepared(p, built, seed)
            found = [
                f"result {i}: {text}"
                for i, (a, b) in enumerate(zip(expected, got, strict=True))
                if (text := compare(np.asarray(a), b))
            ]
        except (simulate.SimulationError, AssertionError) as error:
            found = [f"{type(error).__name__}: {error}"]
        if found:
            pytest.fail("\n".join([*found, f"seed {seed}", explain(p)]), pytrace=False)


def explain(p: Prepared) -> str:
    """What a failing case is: its group, its sizes, its schedule, its kernels."""
    text = cuda_text(p.kernels, p.case.target) if p.kernels else "(no kernels)"
    return "\n".join([print_function(p.case.group), f"choice: {p.choice}", f"sizes: {p.sizes}", text])


def check_compiles(
    texts: Mapping[str, str] | Sequence[str], archs: Sequence[str] = ("sm_80", "sm_90a"), hot: Collection[str] = ()
) -> dict[str, Any]:
    """The CUDA compiler takes every text; the kernels whose names start with one of `hot` spill no register.

    Gives {(kernel, arch): Usage}. Skips, visibly, where there is no compiler.
    """
    from graphc.codegen.cuda.compiler import CompilerMissing, usage

    listed = list(texts.values()) if isinstance(texts, Mapping) else list(texts)
    try:
        found = usage(listed, archs)
    except CompilerMissing as missing:
        pytest.skip(f"CUDA C is not compiled here: {missing}")
    for (kernel, arch), u in found.items():
        if any(kernel.startswith(h) for h in hot):
            assert u.spill_stores == 0 and u.spill_loads == 0, f"{kernel} spills registers on {arch}: {u}"
    return found
