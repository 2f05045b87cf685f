"""The C header of a function compiled ahead of time."""

from __future__ import annotations

import re
from dataclasses import dataclass

from graphc.codegen.aot_entry import messages
from graphc.codegen.aot_plan import AheadPlan
from graphc.codegen.llvm.target import Target
from graphc.codegen.plan import ALIGN
from graphc.ir.types import Dim, TensorType, dim_symbols

C_TYPES = {
    "bool": "uint8_t", "i8": "int8_t", "i16": "int16_t", "i32": "int32_t", "i64": "int64_t",
    "u8": "uint8_t", "u16": "uint16_t", "u32": "uint32_t", "u64": "uint64_t",
    "f16": "uint16_t", "bf16": "uint16_t", "f32": "float", "f64": "double",
}  # fmt: skip
_NOTES = {
    "bool": "each element 0 or 1",
    "f16": "each element the bits of a float16 (IEEE binary16)",
    "bf16": "each element the bits of a bfloat16 (upper half of a float32)",
}
# C11 and C++20: no argument may have one of these names.
_RESERVED = frozenset(
    """alignas alignof and and_eq asm auto bitand bitor bool break case catch char class co_await co_return co_yield
    compl concept const const_cast consteval constexpr constinit continue decltype default delete do double
    dynamic_cast else enum explicit export extern false float for friend goto if inline int long mutable namespace
    new noexcept not not_eq nullptr operator or or_eq private protected public register reinterpret_cast requires
    restrict return short signed sizeof static static_assert static_cast struct switch template this thread_local
    throw true try typedef typeid typename union unsigned using virtual void volatile wchar_t while xor xor_eq
    workspace""".split()
)
_WIDTH = 100


def check_name(name: str) -> None:
    """Raise `ValueError` if C cannot have a function of that name."""
    if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
        raise ValueError(f"{name!r} is not a C identifier, so it cannot name the compiled function")
    if name in _RESERVED:
        raise ValueError(f"{name!r} is a word of C or C++, so it cannot name the compiled function")


@dataclass(frozen=True)
class Names:
    """The names of an entry's arguments in C: of symbols, and of inputs and outputs with their types."""

    dims: dict[str, str]
    inputs: list[tuple[str, TensorType]]
    outputs: list[tuple[str, TensorType]]


def names_of(plan: AheadPlan) -> Names:
    n = plan.name
    taken: set[str] = {n, *(f"{n}_{part}" for part in ("workspace", "error", "state", "init"))}
    dims = {s: _unique(s, f"d{i}", taken) for i, s in enumerate(plan.symbols)}
    ins = [
        (_unique(_given(plan.entry.param_names[i]), f"x{k}", taken), plan.entry.params[i].type)
        for k, i in enumerate(plan.inputs)
    ]
    count = len(plan.outputs)
    outs = [
        (_unique("", "out" if count == 1 else f"out{k}", taken), plan.entry.results[i].type)
        for k, i in enumerate(plan.outputs)
    ]
    return Names(dims, ins, outs)


def entry_arguments(plan: AheadPlan, names: Names) -> list[str]:
    """The declarations of the entry's arguments, in order."""
    return [
        *(f"int64_t {d}" for d in names.dims.values()),
        *(f"const {C_TYPES[t.dtype.short]} *{a}" for a, t in names.inputs),
        *(f"{C_TYPES[t.dtype.short]} *{a}" for a, t in names.outputs),
        *(["void *state"] if plan.state else []),
        "void *workspace",
    ]


def header(plan: AheadPlan, target: Target | None) -> str:
    """The text of the header: what every argument is, in bytes and order, and every return code.

    target: of the object; None where the code is C.
    """
    n = plan.name
    names = names_of(plan)
    dims, ins, outs = names.dims, names.inputs, names.outputs
    sizes = [f"int64_t {d}" for d in dims.values()]
    arguments = entry_arguments(plan, names)
    about = [
        *(f"{c}: the size of a dimension, 0 or more" for c in dims.values()),
        *(f"{a}: input {_described(t, dims)}" for a, t in ins),
        *(f"{a}: output {_described(t, dims)}" for a, t in outs),
        *_about_state(plan),
        f"workspace: {n}_workspace({', '.join(dims.values())}) bytes ({_written(plan.workspace, dims)}), best aligned to "
        f"{ALIGN}, at least to 8; may be NULL if that is 0",
    ]
    own = "state and workspace" if plan.state else "workspace"
    guard = f"{n.upper()}_H"
    return "\n".join(
        [
            *_origin(plan, target),
            " *",
            f" * {'It needs libm only' if target is None else 'Link with the object or the library of the same name; nothing else is needed'}. {n} allocates nothing,",
            f" * starts no threads and has no hidden state: calls may run at the same time, each with its own {own}.",
            f" * Outputs, {own} must not overlap anything else. Results are the same bits as in Python.",
            " *",
            *(f" * {line}" for line in about),
            " *",
            " * Returns 0, or one of these codes, and then the outputs hold nothing of use"
            + (" and the state is as before:" if plan.state else ":"),
            *(f" *   {i}: {_comment(text)}" for i, text in enumerate(messages(plan)) if i),
            *([] if len(messages(plan)) > 1 else [" *   (none: it cannot fail)"]),
            " */",
            f"#ifndef {guard}",
            f"#define {guard}",
            "",
            "#include <stdint.h>",
            "",
            "#ifdef __cplusplus",
            'extern "C" {',
            "#endif",
            "",
            declaration(f"int64_t {n}", arguments),
            "",
            *_state_declarations(plan),
            f"/* The bytes of workspace that {n} needs for these sizes. */",
            declaration(f"int64_t {n}_workspace", sizes or ["void"]),
            "",
            f"/* What a return code of {n} means, in English. The text must not be freed. */",
            f"const char *{n}_error(int64_t code);",
            "",
            "#ifdef __cplusplus",
            "}",
            "#endif",
            "",
            "#endif",
            "",
        ]
    )


def _origin(plan: AheadPlan, target: Target | None) -> list[str]:
    if target is not None:
        return [f"/* {plan.name}, compiled by graphc for {target.triple}, CPU {target.cpu}."]
    return [
        f"/* {plan.name}, written by graphc as C99.",
        " *",
        " * Compile with -ffp-contract=off, and without options that change floating-point results (such as -ffast-math);",
        " * call it in the default mode of rounding, with subnormals kept.",
    ]


def _about_state(plan: AheadPlan) -> list[str]:
    if not plan.state:
        return []
    n = plan.name
    lines = [f"state: {n}_state() bytes ({plan.state_bytes}), best aligned to {ALIGN}, at least to 8; {n}_init fills it, {n} updates it:"]
    for s in plan.state:
        name = plan.entry.param_names[s.param]
        lines.append(f"  at {s.offset}: {name} {_described(plan.entry.params[s.param].type, {})}")
    return lines


def _state_declarations(plan: AheadPlan) -> list[str]:
    if not plan.state:
        return []
    n = plan.name
    return [
        "/* The bytes of state. */",
        f"int64_t {n}_state(void);",
        "",
        "/* Gives the state the values that it had in Python. */",
        f"void {n}_init(void *state);",
        "",
    ]


def _given(name: str) -> str:
    """A parameter's name if the program gave it one."""
    return "" if re.fullmatch(r"p\d+", name) else name


def _unique(name: str, otherwise: str, taken: set[str]) -> str:
    """`name` if C can have it here, else `otherwise`, with underscores until it is new."""
    if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII) or name in _RESERVED:
        name = otherwise
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _written(d: Dim, names: dict[str, str]) -> str:
    """A dimension with the symbols under their names in C."""
    if all(names.get(s, s) == s for s in dim_symbols(d)):
        return str(d)
    return re.sub(r"[A-Za-z_]\w*", lambda m: names.get(m[0], m[0]), str(d))


def _described(t: TensorType, names: dict[str, str]) -> str:
    shape = ", ".join(_written(d, names) for d in t.shape)
    note = _NOTES.get(t.dtype.short)
    layout = "row-major" if t.rank > 1 else ("contiguous" if t.rank else "one element")
    return f"{t.dtype.short}[{shape}], {layout}, {_written(t.nbytes, names)} bytes" + (f"; {note}" if note else "")


def _comment(text: str) -> str:
    return text.replace("*/", "* /").replace("/*", "/ *")


def declaration(head: str, arguments: list[str]) -> str:
    """A prototype, on several lines if it is long."""
    line = f"{head}({', '.join(arguments)});"
    return line if len(line) <= _WIDTH else f"{head}(\n    " + ",\n    ".join(arguments) + ");"
