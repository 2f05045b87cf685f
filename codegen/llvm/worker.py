"""A process that makes machine code of LLVM text: `python -I -S worker.py DIRECTORY`, where llvmlite is in DIRECTORY.

It imports llvmlite only, so that it is ready soon. Messages on its standard input and output are eight bytes of
length, then as many bytes: first the target (triple, cpu, features, between zero bytes); then texts, each answered in
order by a zero byte, eight bytes of seconds as a float and an object, or by a one, the seconds and LLVM's complaint.
It ends with its input, or after `IDLE` seconds without a text: no parent that ends or is killed leaves it behind.

`machine`, `parse` and `without_strength_reduction` say how objects are made here and in the main process (jit.py) alike.
"""

from __future__ import annotations

import os
import queue
import struct
import sys
import threading
import time
from io import FileIO, RawIOBase
from typing import Any

IDLE = 20.0
HEAD = struct.Struct("<Q")
ANSWER = struct.Struct("<Bd")


def machine(llvm: Any, triple: str, cpu: str, features: str) -> Any:
    """LLVM's target machine for kernels. Position independent and small: constants are reached relative to the instruction pointer."""
    return llvm.Target.from_triple(triple).create_target_machine(
        cpu=cpu, features=features, opt=1, reloc="pic", codemodel="small"
    )


def parse(llvm: Any, text: str, context: Any = None) -> Any:
    """The module of a text, in a context of its own: types and constants go away with it. Raises `RuntimeError` on invalid text."""
    try:
        module = llvm.parse_assembly(text, context or llvm.create_context())
    except RuntimeError as error:
        raise RuntimeError(f"LLVM refused generated code: {error}") from None
    # It goes with its context. After an interrupt Python's collector finds both, and may finalise the context first.
    module._owned = True
    return module


def without_strength_reduction(llvm: Any, off: bool) -> None:
    """Leave out LLVM's loop strength reduction, a quarter of all the time it takes.

    Addresses come out of the emitter hoisted, as a base with an index that the machine's addressing modes cover, so
    it finds next to nothing. Nor are instructions reordered before registers are given out: kernels keep as many values
    alive as there are registers, in an order made for that, and the scheduler moves all loads of a turn to its front.
    Both can only be switched off for a whole process.
    """
    llvm.set_option("graphc", f"-disable-lsr={'true' if off else 'false'}")
    llvm.set_option("graphc", f"-enable-misched={'false' if off else 'true'}")


def read(source: RawIOBase) -> bytes | None:
    """The next message; None where there is none any more."""
    head = _exactly(source, HEAD.size)
    return None if head is None else _exactly(source, HEAD.unpack(head)[0])


def _exactly(source: RawIOBase, count: int) -> bytes | None:
    parts = []
    while count:
        part = source.read(count)
        if not part:
            return None
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def write(sink: RawIOBase, data: bytes) -> None:
    """Send a message."""
    rest = memoryview(HEAD.pack(len(data)) + data)
    while rest:
        rest = rest[sink.write(rest) or 0 :]


def main() -> None:
    # Not `sys.stdin`: its lock would be held by the thread that reads, when this process ends.
    source, sink = FileIO(0), FileIO(1, "wb")
    texts: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def listen() -> None:
        # Reads while LLVM works, so that neither side ever waits for the other to read.
        while True:
            texts.put(message := read(source))
            if message is None:
                return

    threading.Thread(target=listen, daemon=True).start()
    import llvmlite.binding as llvm  # type: ignore[import-untyped]

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    without_strength_reduction(llvm, True)
    target = texts.get()
    made = None
    while target is not None:
        try:
            text = texts.get(timeout=IDLE)
        except queue.Empty:
            break
        if text is None:
            break
        made = made or machine(llvm, *(part.decode() for part in target.split(b"\0")))
        begin = time.perf_counter()
        try:
            status, data = 0, bytes(made.emit_object(parse(llvm, text.decode())))
        except RuntimeError as error:
            status, data = 1, str(error).encode()
        write(sink, ANSWER.pack(status, time.perf_counter() - begin) + data)


if __name__ == "__main__":
    sys.path.append(sys.argv[1])
    main()
    os._exit(0)
