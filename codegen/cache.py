"""Compiled code remembered: in memory for this process, on disk for all.

Invariants: an entry is found under the hash of all that decides its bytes (its text, the target, the version of
LLVM, graphc's own back-end sources), so it never has to be invalidated. On disk an entry is one file
{magic, length, sha256, payload} that appears by an atomic rename: a reader sees all of it or none, and what
is damaged all the same is recognised, deleted and compiled again. No failure of the cache is an error of
the program; what the user can mend is said once, as a warning.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import os
import struct
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

from graphc.codegen.forks import free_in_child

MAGIC = b"graphc1\n"
_HEADER = struct.Struct("<8sQ32s")
SUFFIX = ".kernel"
DEFAULT_LIMIT_MIB = 1024
_STALE_SECONDS = 3600.0
_TOUCH_SECONDS = 3600.0


@dataclass
class Statistics:
    """What the cache did in this process. `bytes_*` count payloads on disk."""

    memory_hits: int = 0
    disk_hits: int = 0
    misses: int = 0
    stored: int = 0
    damaged: int = 0
    evicted: int = 0
    bytes_read: int = 0
    bytes_written: int = 0


@functools.cache
def _compiler() -> bytes:
    """What, besides text and target, decides the bytes of an object."""
    import llvmlite  # type: ignore[import-untyped]

    head = f"llvmlite {llvmlite.__version__}\n"
    root = Path(__file__).parent
    files = sorted(sources(str(root)))
    # Reading the sources takes longer than the rest of a warm start; those of equal size and time were read before.
    known = hashlib.sha256(f"{head}{root}\n{files}".encode()).hexdigest()
    found = get(known)
    if found is not None and len(found) == hashlib.sha256().digest_size:
        return found
    global _first
    _first = True
    digest = hashlib.sha256(head.encode())
    for path, _, _ in files:
        digest.update(f"{path}\n".encode())
        digest.update((root / path).read_bytes())
    put(known, digest.digest())
    return digest.digest()


_first = False


def is_new() -> bool:
    """Whether nothing on disk was made by this version before this process: it is the first here to use it."""
    _compiler()
    return _first


def sources(folder: str, prefix: str = "") -> Iterator[tuple[str, int, int]]:
    """(path, size, time of the last change) of every source file in a folder and below."""
    with os.scandir(folder) as found:
        for entry in found:
            if entry.name.endswith((".py", ".ll", ".h", ".cuh")):
                info = entry.stat()
                yield f"{prefix}{entry.name}", info.st_size, info.st_mtime_ns
            elif entry.name != "__pycache__" and entry.is_dir():
                yield from sources(entry.path, f"{prefix}{entry.name}/")


def key(text: str, target: str) -> str:
    """The name of the entry for a canonical text compiled for a target (`Target.key()`)."""
    digest = hashlib.sha256(_compiler())
    for part in (target, text):
        data = part.encode()
        digest.update(struct.pack("<Q", len(data)))
        digest.update(data)
    return digest.hexdigest()


@dataclass
class Disk:
    """Entries in one directory, shared by any number of processes."""

    path: Path
    limit: int
    statistics: Statistics
    usable: bool | None = None
    writes: Iterator[int] = field(default_factory=itertools.count)

    def get(self, name: str) -> bytes | None:
        file = self.path / (name + SUFFIX)
        if self.usable is None and self.path.exists():
            self._open()
        if self.usable is False:
            return None
        try:
            data = file.read_bytes()
        except OSError:
            return None
        payload = _payload(data)
        if payload is None:
            self.statistics.damaged += 1
            import logging

            logger = logging.getLogger("graphc.cache")
            logger.debug("the cache entry %s is damaged (%d bytes); it is deleted and compiled again", file, len(data))
            _unlink(file)
            return None
        self._touch(file)
        self.statistics.bytes_read += len(payload)
        return payload

    def put(self, name: str, payload: bytes) -> None:
        if self.usable is None or (self.usable and not self.path.exists()):
            self._open()
        if not self.usable:
            return
        number = next(self.writes)
        temporary = self.path / f".{name}.{os.getpid()}.{threading.get_ident()}.{number}.tmp"
        header = _HEADER.pack(MAGIC, len(payload), hashlib.sha256(payload).digest())
        try:
            with open(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as out:
                out.write(header)
                out.write(payload)
            os.replace(temporary, self.path / (name + SUFFIX))
        except OSError as error:
            _unlink(temporary)
            self._give_up(error.strerror or str(error))
            return
        self.statistics.stored += 1
        self.statistics.bytes_written += len(payload)
        if number % 128 == 0:
            self.evict()

    def drop(self, name: str) -> None:
        _unlink(self.path / (name + SUFFIX))

    def evict(self) -> None:
        """Delete the entries used longest ago until a fifth of the limit is free; only if the limit is passed."""
        now, total = time.time(), 0
        entries: list[tuple[float, int, str]] = []
        try:
            with os.scandir(self.path) as found:
                for entry in found:
                    info = entry.stat()
                    if entry.name.endswith(".tmp"):
                        # Left by a process that was killed while it wrote.
                        if now - info.st_mtime > _STALE_SECONDS:
                            _unlink(Path(entry.path))
                    elif entry.name.endswith(SUFFIX):
                        entries.append((info.st_mtime, info.st_size, entry.path))
                        total += info.st_size
        except OSError:
            return
        if total <= self.limit:
            return
        for _, size, path in sorted(entries):
            if total <= self.limit * 4 // 5:
                break
            _unlink(Path(path))
            self.statistics.evicted += 1
            total -= size

    def contents(self) -> tuple[int, int]:
        """(number of entries, their bytes)."""
        try:
            sizes = [f.stat().st_size for f in self.path.iterdir() if f.name.endswith(SUFFIX)]
        except OSError:
            return 0, 0
        return len(sizes), sum(sizes)

    def _open(self) -> None:
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            info = self.path.stat()
        except OSError as error:
            self._give_up(error.strerror or str(error))
            return
        if hasattr(os, "geteuid"):
            if info.st_uid != os.geteuid():
                self._give_up("it belongs to another user, who could put code there for you to run")
                return
            if info.st_mode & 0o022:
                self._give_up(
                    f"others may write to it (mode {info.st_mode & 0o777:o}) and could put code there for you to "
                    f"run; `chmod 700 {self.path}` mends that"
                )
                return
        self.usable = True

    def _give_up(self, reason: str) -> None:
        self.usable = False
        warnings.warn(
            f"graphc does not keep compiled kernels in {self.path}: {reason}. "
            "They will be compiled again in each process. To mend it, set GRAPHC_CACHE_DIR to a directory of "
            "your own that you can write to; GRAPHC_CACHE=0 turns the cache on disk off",
            RuntimeWarning,
            stacklevel=2,
        )

    def _touch(self, file: Path) -> None:
        """Note the use, for the eviction, without a write for every read."""
        with contextlib.suppress(OSError):
            if time.time() - file.stat().st_mtime > _TOUCH_SECONDS:
                os.utime(file)


def _payload(data: bytes) -> bytes | None:
    """The payload of a file, None where anything about it is wrong."""
    if len(data) < _HEADER.size:
        return None
    magic, length, digest = _HEADER.unpack_from(data)
    payload = data[_HEADER.size :]
    if magic != MAGIC or length != len(payload) or hashlib.sha256(payload).digest() != digest:
        return None
    return payload


def _unlink(file: Path) -> None:
    with contextlib.suppress(OSError):
        file.unlink()


@dataclass
class _Memory:
    """The entries used last, up to `limit` bytes: what is loaded needs them no more, and others are read again from disk."""

    limit: int = 64 << 20
    held: dict[str, bytes] = field(default_factory=dict)
    size: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, name: str) -> bytes | None:
        with self.lock:
            data = self.held.pop(name, None)
            if data is not None:
                self.held[name] = data
            return data

    def put(self, name: str, data: bytes) -> None:
        with self.lock:
            self.size += len(data) - len(self.held.pop(name, b""))
            self.held[name] = data
            while self.size > self.limit and len(self.held) > 1:
                self.size -= len(self.held.pop(next(iter(self.held))))

    def drop(self, name: str) -> None:
        with self.lock:
            self.size -= len(self.held.pop(name, b""))

    def clear(self) -> None:
        with self.lock:
            self.held.clear()
            self.size = 0


_statistics = Statistics()
_memory = _Memory()
free_in_child(_memory.lock)
_disks: dict[tuple[str, str, str], Disk | None] = {}


def disk() -> Disk | None:
    """The cache on disk that the environment asks for; None where GRAPHC_CACHE=0.

    Raises `ValueError` where GRAPHC_CACHE or GRAPHC_CACHE_LIMIT_MIB has no meaning.
    """
    environment = os.environ
    asked = (
        environment.get("GRAPHC_CACHE", ""),
        environment.get("GRAPHC_CACHE_DIR", ""),
        environment.get("GRAPHC_CACHE_LIMIT_MIB", ""),
    )
    if asked in _disks:
        return _disks[asked]
    used, place, limit = asked
    if used not in ("", "0", "1"):
        raise ValueError(f"GRAPHC_CACHE={used}: it is 0 (nothing is kept on disk) or 1; unset it to keep compiled code on disk")
    if limit and not (limit.isascii() and limit.isdigit()):
        raise ValueError(
            f"GRAPHC_CACHE_LIMIT_MIB={limit}: it is the most MiB that the cache on disk may hold, such as 1024; "
            f"unset it for {DEFAULT_LIMIT_MIB}"
        )
    found = None
    if used != "0":
        if place:
            path = Path(place)
        else:
            import platformdirs

            path = Path(platformdirs.user_cache_dir("graphc"))
        found = Disk(path, (int(limit) if limit else DEFAULT_LIMIT_MIB) << 20, _statistics)
    _disks[asked] = found
    return found


def get(name: str) -> bytes | None:
    """The entry of that name, from memory or disk; None if there is none."""
    data = _memory.get(name)
    if data is not None:
        _statistics.memory_hits += 1
        return data
    store = disk()
    data = store.get(name) if store is not None else None
    if data is None:
        _statistics.misses += 1
        return None
    _statistics.disk_hits += 1
    _memory.put(name, data)
    return data


def put(name: str, data: bytes) -> None:
    """Remember an entry. Two processes that write the same name write the same bytes."""
    _memory.put(name, data)
    store = disk()
    if store is not None:
        store.put(name, data)


def drop(name: str) -> None:
    """Delete an entry that turned out to be of no use."""
    _memory.drop(name)
    store = disk()
    if store is not None:
        store.drop(name)


def forget() -> None:
    """Empty the cache in memory, and look at the directory on disk afresh."""
    _memory.clear()
    _disks.clear()


def statistics() -> Statistics:
    """A copy of the counts so far."""
    return Statistics(**{f.name: getattr(_statistics, f.name) for f in fields(_statistics)})
