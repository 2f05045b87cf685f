"""CUDA devices, with PyTorch's names: what there is, memory and its statistics, streams, events.

Importing this loads no driver; `is_available()` looks for one. Where there is none, asking for a device says what
is missing and how to get it.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

from graphc.runtime.cuda import driver as _drivers
from graphc.runtime.cuda.driver import Properties
from graphc.runtime.cuda.streams import Event, Stream, current_stream, default_stream, set_stream, stream
from graphc.runtime.cuda.streams import current as _current
from graphc.runtime.device import Device
from graphc.runtime.device import device as _named
from graphc.runtime.errors import OutOfMemoryError
from graphc.runtime.memory import show_size


def is_available() -> bool:
    """Whether there is a CUDA device that graphc can use."""
    return device_count() > 0


def device_count() -> int:
    """The number of CUDA devices; 0 where there is no driver."""
    try:
        return _drivers.driver().count()
    except RuntimeError:
        return 0


def why_unavailable() -> str | None:
    """What is missing for CUDA and how to get it, or None."""
    try:
        _named("cuda")
    except RuntimeError as error:
        return str(error)
    return None


def current_device() -> int:
    """The number of the device that "cuda" stands for in this thread."""
    _named("cuda")
    return _current.device


def set_device(device: Any) -> None:
    """Let "cuda" stand for this device in this thread."""
    index = _named(device).index
    if index is None:
        raise ValueError(f'set_device needs a CUDA device, such as "cuda:1" or 1, not {device!r}')
    _current.device = index


class device:
    """`with graphc.cuda.device(1):` "cuda" stands for this device. (`graphc.device` makes device objects.)"""

    def __init__(self, device: Any) -> None:
        self._device = device

    def __enter__(self) -> Device:
        self._before = _current.device
        set_device(self._device)
        return _named("cuda")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        _current.device = self._before


def _context(device: Any = None) -> Any:
    found = _named("cuda" if device is None else device)
    if found.context is None:
        raise ValueError(f"{found} is not a CUDA device")
    return found.context


def get_device_properties(device: Any = None) -> Properties:
    """Name, compute capability (major, minor), total_memory in bytes, multi_processor_count and more."""
    return _context(device).properties  # type: ignore[no-any-return]


def get_device_name(device: Any = None) -> str:
    """What the driver calls the device."""
    return get_device_properties(device).name


def get_device_capability(device: Any = None) -> tuple[int, int]:
    """The compute capability (major, minor)."""
    return get_device_properties(device)[1:3]


def synchronize(device: Any = None) -> None:
    """Wait for all work of a device. Raises `IndexError` if a kernel met an index out of range."""
    _context(device).synchronize()


def memory_allocated(device: Any = None) -> int:
    """Bytes that tensors hold."""
    allocator = _context(device).allocator
    allocator.settle()
    return allocator.live  # type: ignore[no-any-return]


def max_memory_allocated(device: Any = None) -> int:
    """The most bytes that tensors held since the start or `reset_peak_memory_stats`."""
    return _context(device).allocator.peak_live  # type: ignore[no-any-return]


def memory_reserved(device: Any = None) -> int:
    """Bytes obtained from the driver: what tensors hold and what is kept for reuse."""
    return _context(device).allocator.reserved  # type: ignore[no-any-return]


def max_memory_reserved(device: Any = None) -> int:
    """The most bytes obtained from the driver since the start or `reset_peak_memory_stats`."""
    return _context(device).allocator.peak_reserved  # type: ignore[no-any-return]


def reset_peak_memory_stats(device: Any = None) -> None:
    """Let the peaks start anew from what is held now."""
    _context(device).allocator.reset_peaks()


def memory_stats(device: Any = None) -> dict[str, int]:
    """Bytes and numbers of blocks: held, kept for reuse, obtained from the driver, with peaks, retries and failures."""
    a = _context(device).allocator
    a.settle()
    return {
        "allocated_bytes": a.live,
        "allocated_blocks": a.live_blocks,
        "allocated_bytes_peak": a.peak_live,
        "cached_bytes": a.cached(),
        "reserved_bytes": a.reserved,
        "reserved_bytes_peak": a.peak_reserved,
        "device_allocations": a.allocations,
        "retries": a.retries,
        "out_of_memory": a.failures,
    }


def memory_summary(device: Any = None) -> str:
    """The statistics of a device's memory as text."""
    found = _context(device)
    free, total = found.driver.memory_info()
    rows = [(name.replace("_", " "), show_size(n) if "bytes" in name else str(n)) for name, n in memory_stats(device).items()]
    rows += [("free on the device", show_size(free)), ("total", show_size(total))]
    width = max(len(name) for name, _ in rows)
    return "\n".join([f"memory of {found.device}, {found.properties.name}", *(f"  {name:<{width}}  {n}" for name, n in rows)])


def mem_get_info(device: Any = None) -> tuple[int, int]:
    """Free and total bytes of the device."""
    return _context(device).driver.memory_info()  # type: ignore[no-any-return]


def empty_cache(device: Any = None) -> None:
    """Give the memory that no tensor holds back to the driver."""
    if device is not None or is_available():
        _context(device).allocator.empty_cache()


def set_per_process_memory_fraction(fraction: float, device: Any = None) -> None:
    """Let tensors have at most this part of the device's memory; more raises `graphc.OutOfMemoryError`."""
    if not 0 < fraction <= 1:
        raise ValueError(f"set_per_process_memory_fraction: the fraction is above 0 and at most 1, not {fraction}")
    found = _context(device)
    found.allocator.limit = None if fraction == 1 else int(fraction * found.properties.total_memory)


def manual_seed(seed: int) -> None:
    """Seed the default generator of the current device."""
    from graphc.runtime.random import generator_of

    generator_of(_named("cuda")).manual_seed(seed)


def manual_seed_all(seed: int) -> None:
    """Seed the default generators of all CUDA devices."""
    from graphc.runtime.random import generator_of

    for index in range(device_count()):
        generator_of(_named(index)).manual_seed(seed)


__all__ = [
    "Event",
    "OutOfMemoryError",
    "Stream",
    "current_device",
    "current_stream",
    "default_stream",
    "device",
    "device_count",
    "empty_cache",
    "get_device_capability",
    "get_device_name",
    "get_device_properties",
    "is_available",
    "manual_seed",
    "manual_seed_all",
    "max_memory_allocated",
    "max_memory_reserved",
    "mem_get_info",
    "memory_allocated",
    "memory_reserved",
    "memory_stats",
    "memory_summary",
    "reset_peak_memory_stats",
    "set_device",
    "set_per_process_memory_fraction",
    "set_stream",
    "stream",
    "synchronize",
    "why_unavailable",
]


def __dir__() -> list[str]:
    return __all__
