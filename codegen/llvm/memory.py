"""Loads and stores: contiguous, reversed, uniform, or gathered, each with or without a mask."""

from __future__ import annotations

from graphc.codegen.llvm.masks import any_lane, both, mask_literal, reversed_lanes, spread
from graphc.codegen.llvm.pattern import chunks, expand
from graphc.codegen.llvm.scope import MEMORY, Value, Writer
from graphc.codegen.loops import Buffer
from graphc.ir.types import BOOL, I64

STREAM = 999_999  # the number of the metadata that marks streaming stores


def _address(w: Writer, buffer: Buffer, index: Value, depth: int, shift: int = 0) -> str:
    """The address of the element at an affine index in lane `shift` lanes to the left of lane 0."""
    element, pointer = MEMORY[buffer.dtype.short], w.pointers[buffer]
    known = w.scopes[depth].addresses
    if index.base:
        key = (pointer, index.base)
        started = known.get(key)
        if started is None:
            started = known[key] = w.put(depth, f"getelementptr {element}, ptr {pointer}, i64 {index.base}")
        pointer = started
    offset = index.offset - shift
    if offset:
        return w.put(depth, f"getelementptr {element}, ptr {pointer}, i64 {offset}")
    return pointer


def prefetch(w: Writer, buffer: Buffer, index: Value, write: bool) -> None:
    """Ask for the line of the element at a uniform index, for all levels of the cache."""
    address = _address(w, buffer, index, max(index.depth, w.scopes[-1].pure_floor))
    w.line(f"call void @llvm.prefetch.p0(ptr {address}, i32 {int(write)}, i32 3, i32 1)")


def _pointers(w: Writer, buffer: Buffer, index: Value, depth: int) -> str:
    """One address for each lane."""
    element = MEMORY[buffer.dtype.short]
    t = w.vector_types["i64"]
    return w.put(depth, f"getelementptr {element}, ptr {w.pointers[buffer]}, {t} {w.vector(index)}")


def load(w: Writer, buffer: Buffer, index: Value) -> Value:
    """The element(s) at `index`. Under a mask, lanes that do not take part read nothing and hold zero."""
    scope = w.scopes[-1]
    deps = index.deps
    if buffer in w.written:
        depth = len(w.scopes) - 1
        deps |= w.bit(buffer)
    else:
        depth = max(index.depth, scope.load_floor)
    short, size, tag = buffer.dtype.short, buffer.dtype.itemsize, w.tags[buffer]
    mask = w.mask
    if mask is not None:
        depth = max(depth, mask.depth)
    if index.coef == 0:
        t = MEMORY[short]
        # Addresses are pure: they may stand further out than the load.
        address = _address(w, buffer, index, max(index.depth, scope.pure_floor))
        if mask is None:
            text = w.put(depth, f"load {t}, ptr {address}, align {size}{tag}")
        else:
            one = w.put(depth, f"insertelement <1 x i1> poison, i1 {any_lane(w, mask, depth)}, i64 0")
            got = w.put(
                depth,
                f"call <1 x {t}> @llvm.masked.load(ptr align {size} {address}, <1 x i1> {one}, "
                f"<1 x {t}> zeroinitializer){tag}",
            )
            text = w.put(depth, f"extractelement <1 x {t}> {got}, i64 0")
        if buffer.dtype is BOOL:
            text = w.put(depth, f"icmp ne i8 {text}, 0")
        return Value(buffer.dtype, depth, deps, text, base=text if buffer.dtype is I64 else "")
    t = f"<{w.width} x {MEMORY[short]}>"
    lanes = "" if mask is None else w.vector(mask)
    if index.coef in (1, -1):
        back = w.width - 1 if index.coef == -1 else 0
        address = _address(w, buffer, index, max(index.depth, scope.pure_floor), back)
        if mask is not None and back:
            lanes = reversed_lanes(w, depth, f"<{w.width} x i1>", lanes)
        if mask is None:
            text = w.put(depth, f"load {t}, ptr {address}, align {size}{tag}")
        else:
            text = w.put(
                depth,
                f"call {t} @llvm.masked.load(ptr align {size} {address}, <{w.width} x i1> {lanes}, "
                f"{t} zeroinitializer){tag}",
            )
        if back:
            text = reversed_lanes(w, depth, t, text)
    elif (found := _load_pattern(w, buffer, index, lanes, depth)) is not None:
        text = found
    else:
        pointers = _pointers(w, buffer, index, max(index.depth, scope.pure_floor))
        lanes = lanes or "splat (i1 true)"
        text = w.put(
            depth,
            f"call {t} @llvm.masked.gather(<{w.width} x ptr> align {size} {pointers}, "
            f"<{w.width} x i1> {lanes}, {t} zeroinitializer){tag}",
        )
    if buffer.dtype is BOOL:
        text = w.put(depth, f"icmp ne {t} {text}, zeroinitializer")
    return Value(buffer.dtype, depth, deps, None, text, w.width, None)


def _load_pattern(w: Writer, buffer: Buffer, index: Value, mask: str, depth: int) -> str | None:
    """Elements at literal distances from each other: contiguous loads, then shuffles; None where that is no help."""
    if index.coef is None or w.width < 4:
        return None
    width = w.width
    lanes = expand(index.coef, width)
    count = chunks(lanes, width)
    if not count or (mask and len(set(lanes)) < width):
        return None
    low = min(lanes)
    size = 0 if mask or index.base else w.sizes.get(buffer, 0)
    if size:
        # A thread's own array is read in whole vectors, as it was written: only those come straight from the stores.
        low -= (index.offset + low) % width
        count = chunks((low, *lanes), width)
        if not count:
            return None
    wanted = [x - low for x in lanes]
    t, align, tag = f"<{width} x {MEMORY[buffer.dtype.short]}>", buffer.dtype.itemsize, w.tags[buffer]
    flags = f"<{width} x i1>"
    pure = max(index.depth, w.scopes[-1].pure_floor)
    text = ""
    for k in range(count):
        inside = range(k * width, (k + 1) * width)
        here = [lane for lane, x in enumerate(wanted) if x in inside]
        if not here:
            continue
        address = _address(w, buffer, index, pure, -low - k * width)
        read = {wanted[lane] - k * width for lane in here}
        inside_own = size and index.offset + low + (k + 1) * width <= size
        if inside_own or (not mask and len(read) == width):
            part = w.put(depth, f"load {t}, ptr {address}, align {align}{tag}")
        else:
            # Elements that no lane wants are not read: they may lie outside the buffer.
            if mask:
                source = {wanted[lane] - k * width: lane for lane in here}
                take = spread(w, depth, mask, [source.get(e, width) for e in range(width)])
            else:
                first, last = min(read), max(read)
                take = "<" + ", ".join([f"i1 {'true' if first <= e <= last else 'false'}" for e in range(width)]) + ">"
            part = w.put(
                depth,
                f"call {t} @llvm.masked.load(ptr align {align} {address}, {flags} {take}, {t} zeroinitializer){tag}",
            )
        chosen = {lane: wanted[lane] - k * width for lane in here}
        if not text:
            order = ", ".join([f"i32 {chosen[lane]}" if lane in chosen else "i32 poison" for lane in range(width)])
            text = w.put(depth, f"shufflevector {t} {part}, {t} poison, <{width} x i32> <{order}>")
        else:
            order = ", ".join([f"i32 {width + chosen[lane]}" if lane in chosen else f"i32 {lane}" for lane in range(width)])
            text = w.put(depth, f"shufflevector {t} {text}, {t} {part}, <{width} x i32> <{order}>")
    return text


def load_where(w: Writer, buffer: Buffer, index: Value, cond: Value) -> Value:
    """The element(s) at `index` where `cond` holds; zero, and nothing read, elsewhere."""
    depth = max(cond.depth, w.scopes[-1].pure_floor)
    outer = w.mask
    t = w.vector_types["bool"] if w.width else "i1"
    mask = cond
    if outer is not None:
        mask = both(w, outer, cond)
    if mask.coef == 0 and index.coef == 0:
        return _load_if(w, buffer, index, mask)
    w.mask = mask
    found = load(w, buffer, index)
    w.mask = outer
    deps = found.deps | cond.deps
    if index.coef != 0:
        return found.with_deps(deps)
    # One element, for the lanes of the mask.
    depth = max(found.depth, mask.depth)
    zero = "zeroinitializer"
    vector = w.vector_types[buffer.dtype.short]
    text = w.put(depth, f"select {t} {w.vector(mask)}, {vector} {w.vector(found)}, {vector} {zero}")
    return Value(buffer.dtype, depth, deps, None, text, w.width, None)


def _load_if(w: Writer, buffer: Buffer, index: Value, cond: Value) -> Value:
    """One element for all lanes, if a uniform condition holds."""
    scope = w.scopes[-1]
    deps = index.deps | cond.deps
    depth = max(index.depth, cond.depth, scope.load_floor)
    if buffer in w.written:
        depth = len(w.scopes) - 1
        deps |= w.bit(buffer)
    short, size, tag = buffer.dtype.short, buffer.dtype.itemsize, w.tags[buffer]
    t = MEMORY[short]
    address = _address(w, buffer, index, max(index.depth, scope.pure_floor))
    one = w.put(depth, f"insertelement <1 x i1> poison, i1 {w.scalar(cond)}, i64 0")
    got = w.put(
        depth,
        f"call <1 x {t}> @llvm.masked.load(ptr align {size} {address}, <1 x i1> {one}, "
        f"<1 x {t}> zeroinitializer){tag}",
    )
    text = w.put(depth, f"extractelement <1 x {t}> {got}, i64 0")
    if buffer.dtype is BOOL:
        text = w.put(depth, f"icmp ne i8 {text}, 0")
    return Value(buffer.dtype, depth, deps, text, base=text if buffer.dtype is I64 else "")


STREAM_ALIGN = 64  # bytes; what a streaming store of any target needs at most


def store(w: Writer, buffer: Buffer, index: Value, v: Value, stream: bool = False) -> None:
    """Write v at `index`; where lanes agree on a place the last of them wins."""
    depth = len(w.scopes) - 1
    short, size, tag = buffer.dtype.short, buffer.dtype.itemsize, w.tags[buffer]
    mask = w.mask
    varying = index.coef != 0 or v.coef != 0
    text = w.operand(v, varying)
    t = f"<{w.width} x {MEMORY[short]}>" if varying else MEMORY[short]
    if buffer.dtype is BOOL:
        text = w.put(depth, f"zext {w.typed(short, varying)} {text} to {t}")
    pure = w.scopes[-1].pure_floor
    if not varying:
        address = _address(w, buffer, index, max(index.depth, pure))
        if mask is None:
            w.line(f"store {t} {text}, ptr {address}, align {size}{tag}")
            return
        one = w.put(depth, f"insertelement <1 x i1> poison, i1 {any_lane(w, mask, depth)}, i64 0")
        data = w.put(depth, f"insertelement <1 x {t}> poison, {t} {text}, i64 0")
        w.line(f"call void @llvm.masked.store(<1 x {t}> {data}, ptr align {size} {address}, <1 x i1> {one}){tag}")
        return
    lanes = "" if mask is None else w.vector(mask)
    taking = [lane for lane, x in enumerate(mask_literal(mask) or ()) if x] if mask is not None else []
    if len(taking) == 1 and isinstance(index.coef, int):
        # LLVM 22 makes one store of such a masked store, of four bytes where the value was narrowed before.
        only = w.put(depth, f"extractelement {t} {text}, i64 {taking[0]}")
        address = _address(w, buffer, index, max(index.depth, pure), -index.coef * taking[0])
        w.line(f"store {MEMORY[short]} {only}, ptr {address}, align {size}{tag}")
        return
    if index.coef in (1, -1):
        back = w.width - 1 if index.coef == -1 else 0
        address = _address(w, buffer, index, max(index.depth, pure), back)
        if back:
            text = reversed_lanes(w, depth, t, text)
            lanes = lanes and reversed_lanes(w, depth, f"<{w.width} x i1>", lanes)
        if mask is None:
            past = stream and not back and w.width * size % STREAM_ALIGN == 0
            how = f"align {STREAM_ALIGN}, !nontemporal !{STREAM}" if past else f"align {size}"
            w.line(f"store {t} {text}, ptr {address}, {how}{tag}")
        else:
            w.line(
                f"call void @llvm.masked.store({t} {text}, ptr align {size} {address}, "
                f"<{w.width} x i1> {lanes}){tag}"
            )
        return
    pointers = _pointers(w, buffer, index, max(index.depth, pure))
    lanes = lanes or "splat (i1 true)"
    w.line(
        f"call void @llvm.masked.scatter({t} {text}, <{w.width} x ptr> align {size} {pointers}, "
        f"<{w.width} x i1> {lanes}){tag}"
    )


def element_type(buffer: Buffer) -> str:
    """The type of an element in memory."""
    return MEMORY[buffer.dtype.short]


__all__ = ["element_type", "load", "load_where", "store"]
