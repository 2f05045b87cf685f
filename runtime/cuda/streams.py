"""Streams and events. Each thread has a current stream for each device; work of one stream runs in order."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any

from graphc.runtime.device import Device
from graphc.runtime.device import device as device_named


class Current(threading.local):
    """What a thread works on: its current device, and the current stream of each device that is not the default one."""

    def __init__(self) -> None:
        self.device = 0
        self.streams: dict[int, Stream] = {}
        self.entered: list[Stream] = []


current = Current()


def _context(device: Any) -> Any:
    return device_named("cuda" if device is None else device).context


class Stream:
    """Work that runs in order; work of other streams may run at the same time. A device has 32 besides the default one.

    Memory that a tensor got on one stream is used again on that stream; `x.record_stream(other)` says that another one
    uses it too.

    >>> import graphc as gc
    >>> gc.cuda.is_available() or gc.cuda.device_count() == 0
    True
    """

    def __init__(self, device: Any = None, *, raw: Any = None, context: Any = None) -> None:
        self.context = _context(device) if context is None else context
        self.raw = self.context.another_stream() if raw is None else raw

    @property
    def device(self) -> Device:
        """The device that the stream belongs to."""
        return self.context.device  # type: ignore[no-any-return]

    @property
    def cuda_stream(self) -> int:
        """The driver's handle."""
        return self.context.driver.handle(self.raw)  # type: ignore[no-any-return]

    def synchronize(self) -> None:
        """Wait for all work so far. Raises `IndexError` if a kernel met an index out of range."""
        self.context.driver.synchronize_stream(self.raw)
        self.context.check()

    def query(self) -> bool:
        """Whether all work so far is done."""
        return self.context.driver.stream_done(self.raw)  # type: ignore[no-any-return]

    def record_event(self, event: Event | None = None) -> Event:
        """An event that happens when all work so far is done."""
        made = Event() if event is None else event
        made.record(self)
        return made

    def wait_event(self, event: Event) -> None:
        """Later work of this stream starts after the event."""
        if event.raw is not None:
            self.context.driver.wait(self.raw, event.raw)

    def wait_stream(self, stream: Stream) -> None:
        """Later work of this stream starts after all work so far of another one."""
        self.wait_event(stream.record_event())

    def __enter__(self) -> Stream:
        """Within, this thread's work for the device goes here."""
        current.entered.append(current_stream(self.device))
        set_stream(self)
        return self

    def __exit__(self, *exc: object) -> None:
        set_stream(current.entered.pop())

    def __repr__(self) -> str:
        return f"<graphc.cuda.Stream on {self.device}>"


class Event:
    """A point in the work of a stream.

    enable_timing: whether `elapsed_time` may be asked.
    """

    def __init__(self, enable_timing: bool = False, blocking: bool = False) -> None:
        self.timing = enable_timing
        self.raw: Any = None
        self.context: Any = None

    def record(self, stream: Stream | None = None) -> None:
        """Happen when all work so far of `stream`, or of the current one, is done."""
        stream = current_stream() if stream is None else stream
        if self.context is not stream.context:
            self.context = stream.context
            self.raw = self.context.driver.new_event(self.timing)
        self.context.driver.record(self.raw, stream.raw)

    def wait(self, stream: Stream | None = None) -> None:
        """Later work of `stream`, or of the current one, starts after this."""
        (current_stream() if stream is None else stream).wait_event(self)

    def query(self) -> bool:
        """Whether it has happened; True if it was never recorded."""
        return self.raw is None or self.context.driver.event_done(self.raw)

    def synchronize(self) -> None:
        """Wait until it has happened. Raises `IndexError` if a kernel met an index out of range."""
        if self.raw is not None:
            self.context.driver.synchronize_event(self.raw)
            self.context.check()

    def elapsed_time(self, end: Event) -> float:
        """The milliseconds from this event to `end`. Both must have happened, and have `enable_timing`."""
        for event in (self, end):
            if not event.timing:
                raise ValueError("elapsed_time: the event has no time; make it with Event(enable_timing=True)")
            if event.raw is None or not event.query():
                raise RuntimeError("elapsed_time: an event has not happened yet; call end.synchronize() first")
        return self.context.driver.elapsed(self.raw, end.raw)  # type: ignore[no-any-return]


def current_stream(device: Any = None) -> Stream:
    """The stream on which this thread's work for a device goes."""
    context = _context(device)
    return current.streams.get(context.index, context.default_stream)


def default_stream(device: Any = None) -> Stream:
    """The stream that a thread works on unless told."""
    return _context(device).default_stream  # type: ignore[no-any-return]


def set_stream(stream: Stream) -> None:
    """Make `stream` the current one of this thread for its device."""
    if stream is stream.context.default_stream:
        current.streams.pop(stream.context.index, None)
    else:
        current.streams[stream.context.index] = stream


class stream:
    """`with graphc.cuda.stream(s):` work goes to `s`. None changes nothing."""

    def __init__(self, stream: Stream | None) -> None:
        self._stream = stream

    def __enter__(self) -> Stream | None:
        if self._stream is not None:
            self._before = current_stream(self._stream.device)
            set_stream(self._stream)
        return self._stream

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._stream is not None:
            set_stream(self._before)
