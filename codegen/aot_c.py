"""A function compiled ahead of time as C99: one file with the kernels, the constants and the entry of aot_entry.py.

It needs a C compiler and libm; with -ffp-contract=off the results are the bits that Python gives. One thread.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from graphc.codegen.aot_entry import messages
from graphc.codegen.aot_header import Names, check_name, declaration, entry_arguments, header, names_of
from graphc.codegen.aot_plan import AheadLaunch, AheadPlan, Place
from graphc.codegen.c import c99
from graphc.codegen.c.dialect import C99, float_literal, literal
from graphc.codegen.expr import Expr, children_first
from graphc.codegen.llvm.target import host_target, make_target
from graphc.codegen.lower.index import dim_expr
from graphc.ir.function import Function
from graphc.ir.types import BOOL, Dim, DType, dtype

# Operations on dimensions, as in aot_entry.py; all in parentheses.
_SIZE_OPS = {
    "add": "({0} + {1})",
    "sub": "({0} - {1})",
    "mul": "{0} * {1}",
    "idiv": "graphc_quotient({0}, {1})",
    "irem": "graphc_rest({0}, {1})",
    "lt": "({0} < {1})",
    "le": "({0} <= {1})",
    "gt": "({0} > {1})",
    "ge": "({0} >= {1})",
    "eq": "({0} == {1})",
    "ne": "({0} != {1})",
    "select": "({0} ? {1} : {2})",
}
# Quotients of dimensions round down; a divisor that is an empty extent stands for 1 (nothing is launched then).
_SIZE_FUNCTIONS = {
    "graphc_quotient": """static int64_t graphc_quotient(int64_t a, int64_t b) {
    const int64_t d = b > 1 ? b : 1;
    return a / d - (a % d < 0);
}
""",
    "graphc_rest": """static int64_t graphc_rest(int64_t a, int64_t b) {
    return a % (b > 1 ? b : 1);
}
""",
}
_LINE = 100


@dataclass(frozen=True)
class AheadOfTimeC:
    """A function as C: the text of the `source`, which includes `name`.h, the text of the `header`, the `plan`."""

    name: str
    source: str = field(repr=False)
    header: str = field(repr=False)
    plan: AheadPlan = field(repr=False)


def compile_ahead_c(
    f: Function,
    name: str,
    constants: Mapping[int, Any] | None = None,
    cpu: str = "",
    state: Mapping[int, int | None] | None = None,
) -> AheadOfTimeC:
    """Write `f` as C under the C name `name`. Arguments and errors are those of `compile_ahead`.

    cpu: whose vector widths and caches the loops are laid out for; the text runs everywhere, with the same bits.
    """
    from graphc.codegen.aot import plan_function

    check_name(name)
    plan = plan_function(f, name, constants, make_target(cpu) if cpu else host_target(), state)
    return AheadOfTimeC(name, source_text(plan), header(plan, None), plan)


def source_text(plan: AheadPlan) -> str:
    """The whole C file of a plan."""
    names = names_of(plan)
    kernels = [c99.emit_kernel(k, storage="static ") for k in plan.kernels]
    entry = [*_constants(plan), _entry(plan, names), _workspace(plan, names), _errors(plan), *_state_functions(plan)]
    body = c99.translation_unit([*kernels, *entry])
    functions = [text for word, text in _SIZE_FUNCTIONS.items() if any(f"{word}(" in e for e in entry)]
    includes = f'#include <string.h>\n\n#include "{plan.name}.h"\n'
    first, _, rest = body.partition("\n\n")
    return "\n".join([first, includes, *functions, rest])


def _size(d: Dim | Expr, names: Names) -> str:
    """The C text of a dimension or of an expression over dimensions."""
    e = d if isinstance(d, Expr) else dim_expr(d)
    texts: dict[Expr, str] = {}
    for n in children_first((e,)):
        if n.op == "const":
            texts[n] = literal(C99, n.dtype, n.data).text
        elif n.op == "var":
            texts[n] = names.dims[n.data]
        else:
            texts[n] = _SIZE_OPS[n.op].format(*(texts[a] for a in n.args))
    text = texts[e]
    return text[1:-1] if text.startswith("(") and text.endswith(")") and text.count("(") == 1 else text


def _entry(plan: AheadPlan, names: Names) -> str:
    lines = [declaration(f"int64_t {plan.name}", entry_arguments(plan, names)).rstrip(";") + " {"]
    if plan.launches:
        lines.append("    int64_t error[3] = {0, 0, 0};")
    for i, (d, _) in enumerate(plan.checks, 1):
        lines.append(f"    if ({_size(d, names)} < 0) return {i};")
    code = len(plan.checks)
    for launch in plan.launches:
        lines += _launch(plan, launch, names)
        if launch.sites:
            after = f"error[0] + {code}" if code else "error[0]"
            lines.append(f"    if (error[0] != 0) return {after};")
            code += len(launch.sites)
    for s in plan.state:
        if s.slot is not None and s.initial.nbytes:
            lines.append(f"    memcpy((char *)state + {s.offset}, slots + {_size(plan.offsets[s.slot], names)}, {s.initial.nbytes});")
    if any("(slots" in x or " slots" in x for x in lines):
        lines.insert(1, "    char *const slots = (char *)workspace;")
    return "\n".join([*lines, "    return 0;", "}\n"])


def _launch(plan: AheadPlan, launch: AheadLaunch, names: Names) -> list[str]:
    words = [f"(int64_t)(intptr_t){_address(plan, p, names)}" for p in launch.places]
    words += [_size(d, names) for d in launch.extents]
    where = f" at {launch.loc}" if launch.loc else ""
    head = "" if isinstance(launch.size, int) else f"if ({_size(launch.size, names)} != 0) "
    return [
        f"    /* {launch.group}{where.replace('*/', '* /')} */",
        f"    {head}{{",
        f"        const int64_t args[] = {{{', '.join(words) or '0'}}};",
        f"        {launch.kernel.name}(args, 0, {_size(launch.parallel, names)}, error);",
        "    }",
    ]


def _address(plan: AheadPlan, place: Place, names: Names) -> str:
    kind, i = place
    if kind == "in":
        return names.inputs[i][0]
    if kind == "out":
        return names.outputs[i][0]
    if kind == "constant":
        return f"constant{i}"
    if kind == "state":
        return f"((char *)state + {plan.state[i].offset})"
    return f"(slots + {_size(plan.offsets[i], names)})"


def _workspace(plan: AheadPlan, names: Names) -> str:
    arguments = [f"int64_t {d}" for d in names.dims.values()] or ["void"]
    unused = [f"    (void){d};" for d in names.dims.values()]
    head = declaration(f"int64_t {plan.name}_workspace", arguments).rstrip(";")
    return "\n".join([head + " {", *unused, f"    return {_size(plan.workspace, names)};", "}\n"])


def _errors(plan: AheadPlan) -> str:
    lines = [f"const char *{plan.name}_error(int64_t code) {{", "    switch (code) {"]
    for i, text in enumerate(messages(plan)):
        lines.append(f"    case {i}: return {_string(text)};")
    lines += [f"    default: return {_string(f'{plan.name} has no such return code')};", "    }", "}\n"]
    return "\n".join(lines)


def _string(text: str) -> str:
    """A C string; strings end up in pieces, since C99 need not take long ones, nor others than ASCII."""
    out = []
    for byte in text.encode():
        c = chr(byte)
        out.append(f"\\{c}" if c in '"\\' else c if 32 <= byte < 127 and c != "?" else f"\\{byte:03o}")
    return '"' + "".join(out) + '"'


def _constants(plan: AheadPlan) -> list[str]:
    return [_array(f"constant{i}", a) for i, a in plan.constants.items()]


def _array(name: str, a: np.ndarray[Any, Any]) -> str:
    d = dtype(a.dtype)
    values = [_number(d, x) for x in (a.view(np.uint16) if d.bits == 16 and d.is_float else a).ravel().tolist()] or ["0"]
    lines = [f"static const {C99.element(d)} {name}[{len(values)}] = {{"]
    line = "   "
    for v in values:
        if len(line) + len(v) + 2 > _LINE:
            lines.append(line)
            line = "   "
        line += f" {v},"
    return "\n".join([*lines, line, "};\n"])


def _number(d: DType, x: Any) -> str:
    if d is BOOL:
        return str(int(x))
    if not d.is_float or d.bits == 16:
        return literal(C99, d, x).text if not d.is_float else f"0x{x:04x}"
    if math.isnan(x):
        return "NAN"
    if math.isinf(x):
        return "INFINITY" if x > 0 else "-INFINITY"
    kind = np.float32 if d.bits == 32 else np.float64
    return float_literal(d, int(np.array(x, kind).view(f"u{d.itemsize}"))).text


def _state_functions(plan: AheadPlan) -> list[str]:
    if not plan.state:
        return []
    arrays, body = [], []
    for i, s in enumerate(plan.state):
        if s.initial.nbytes:
            arrays.append(_array(f"initial{i}", s.initial))
            body.append(f"    memcpy((char *)state + {s.offset}, initial{i}, sizeof initial{i});")
    size = f"int64_t {plan.name}_state(void) {{\n    return {plan.state_bytes};\n}}\n"
    init = "\n".join([f"void {plan.name}_init(void *state) {{", *(body or ["    (void)state;"]), "}\n"])
    return [*arrays, size, init]


def write_c_files(compiled: AheadOfTimeC, output: str | Path) -> list[Path]:
    """Write `output`.c and `output`.h, each whole or not at all. Returns the paths. Raises `OSError` where that fails."""
    base = Path(output)
    base.parent.mkdir(parents=True, exist_ok=True)
    # The source includes its header by the name of the function.
    source = compiled.source.replace(f'#include "{compiled.name}.h"', f'#include "{base.name}.h"')
    written = []
    with tempfile.TemporaryDirectory(dir=base.parent, prefix=f".{base.name}.") as folder:
        for suffix, text in ((".c", source), (".h", compiled.header)):
            Path(folder, f"part{suffix}").write_text(text)
        for suffix in (".c", ".h"):
            path = base.with_name(base.name + suffix)
            os.replace(Path(folder, f"part{suffix}"), path)
            written.append(path)
    return written
