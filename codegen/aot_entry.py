"""The entry of a function compiled ahead of time, as LLVM text.

Three functions: the entry `NAME(dimensions, inputs, outputs, state, workspace)`, which checks the sizes and calls the
kernels in order; `NAME_workspace(dimensions)`; `NAME_error(code)`. Where there is state, also `NAME_state()`, its size,
and `NAME_init(state)`. Kernels run in the IEEE default mode
(to nearest, subnormals kept) whatever mode the caller is in. Names that C must not see begin with a
dot, so that no name of a compiled function can meet them.
"""

from __future__ import annotations

from graphc.codegen.aot_plan import AheadLaunch, AheadPlan, Place, padded
from graphc.codegen.expr import Expr, children_first
from graphc.codegen.llvm.runner import float_mode
from graphc.codegen.llvm.target import Target
from graphc.codegen.lower.index import dim_expr
from graphc.codegen.plan import ALIGN
from graphc.ir.types import Dim

# Division and remainder of dimensions round down; a divisor that is an empty extent stands for 1 (the launch
# has no iterations then).
_SIZE_OPS = {
    "add": ("add i64 {0}, {1}",),
    "sub": ("sub i64 {0}, {1}",),
    "mul": ("mul i64 {0}, {1}",),
    "idiv": (
        "call i64 @llvm.smax.i64(i64 {1}, i64 1)",
        "sdiv i64 {0}, {t0}",
        "srem i64 {0}, {t0}",
        "ashr i64 {t2}, 63",
        "add i64 {t1}, {t3}",
    ),
    "irem": ("call i64 @llvm.smax.i64(i64 {1}, i64 1)", "srem i64 {0}, {t0}"),
    "lt": ("icmp slt i64 {0}, {1}",),
    "le": ("icmp sle i64 {0}, {1}",),
    "gt": ("icmp sgt i64 {0}, {1}",),
    "ge": ("icmp sge i64 {0}, {1}",),
    "eq": ("icmp eq i64 {0}, {1}",),
    "ne": ("icmp ne i64 {0}, {1}",),
    "select": ("select i1 {0}, i64 {1}, i64 {2}",),
}


def messages(plan: AheadPlan) -> list[str]:
    """The text of every return code: code 0, the failed checks, then the sites of each launch."""
    texts = ["ok", *(text for _, text in plan.checks)]
    for launch in plan.launches:
        texts += [site.message() for site in launch.sites]
    return texts


def entry_text(plan: AheadPlan, target: Target) -> str:
    """The LLVM module of the entry, with the constants; the kernels are declared, not defined."""
    name = plan.name
    dims = [f"i64 %dim.{s}" for s in plan.symbols]
    pointers = [f"ptr %in{i}" for i in range(len(plan.inputs))]
    pointers += [f"ptr %out{i}" for i in range(len(plan.outputs))]
    pointers += ["ptr %state"] * bool(plan.state)
    sizes = _Sizes()
    total = sizes.of_dim(plan.workspace)
    return "\n".join(
        [
            f'target datalayout = "{target.data_layout}"',
            f'target triple = "{target.triple}"',
            "declare i64 @llvm.smax.i64(i64, i64)",
            float_mode(target).replace("@float_", "@.float_"),
            *_constants(plan),
            *(f"declare void @{kernel.name}(ptr, i64, i64, ptr)" for kernel in plan.kernels),
            f"define i64 @{name}({', '.join([*dims, *pointers, 'ptr %workspace'])}) nounwind {{",
            "entry:",
            *_body(plan),
            "}",
            f"define i64 @{name}_workspace({', '.join(dims)}) nounwind {{",
            *sizes.lines,
            f"  ret i64 {total}",
            "}",
            *_error_function(plan),
            *_state_functions(plan),
            "",
        ]
    )


class _Sizes:
    """Instructions that compute dimensions, each expression once."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._values: dict[Expr, str] = {}
        self._count = 0

    def _put(self, instruction: str) -> str:
        self._count += 1
        self.lines.append(f"  %v{self._count} = {instruction}")
        return f"%v{self._count}"

    def of_dim(self, d: Dim) -> str:
        return self.of(dim_expr(d))

    def of(self, e: Expr) -> str:
        """The LLVM operand that holds an I64 expression over dimensions."""
        for node in children_first((e,)):
            if node in self._values:
                continue
            if node.op == "const":
                self._values[node] = str(int(node.data))
            elif node.op == "var":
                self._values[node] = f"%dim.{node.data}"
            else:
                operands = [self._values[a] for a in node.args]
                made: dict[str, str] = {}
                for i, step in enumerate(_SIZE_OPS[node.op]):
                    made[f"t{i}"] = self._put(step.format(*operands, **made))
                self._values[node] = made[f"t{len(made) - 1}"]
        return self._values[e]


def _body(plan: AheadPlan) -> list[str]:
    sizes = _Sizes()
    checked = [sizes.of_dim(d) for d, _ in plan.checks]
    offsets = [sizes.of_dim(d) for d in plan.offsets]
    values = [[sizes.of_dim(d) for d in launch.extents] for launch in plan.launches]
    parallel = [sizes.of(launch.parallel) for launch in plan.launches]
    results = [sizes.of_dim(launch.size) for launch in plan.launches]
    # Kernels take their arguments to be invariant, so every launch has words of its own.
    words = sum(len(launch.places) + len(launch.extents) for launch in plan.launches)
    lines = [
        f"  %args = alloca [{max(1, words)} x i64], align 8",
        "  %error = alloca [4 x i64], align 8",
        "  store [4 x i64] zeroinitializer, ptr %error",
        "  %mode = call i64 @.float_enter()",
        *sizes.lines,
        *(f"  %slot{i} = getelementptr i8, ptr %workspace, i64 {offset}" for i, offset in enumerate(offsets)),
        *(f"  %state{i} = getelementptr i8, ptr %state, i64 {s.offset}" for i, s in enumerate(plan.state)),
    ]
    leave: list[tuple[str, str]] = []
    for i, value in enumerate(checked):
        lines += [
            f"  %negative{i} = icmp slt i64 {value}, 0",
            f"  br i1 %negative{i}, label %refuse{i}, label %accept{i}",
            f"refuse{i}:",
            "  br label %leave",
            f"accept{i}:",
        ]
        leave.append((str(i + 1), f"refuse{i}"))
    code, word = len(checked), 0
    for i, launch in enumerate(plan.launches):
        call = _launch(i, launch, word, values[i], parallel[i])
        if isinstance(launch.size, int):
            lines += call
        else:
            # Kernels divide by extents, so none runs for results without an element.
            lines += [
                f"  %some{i} = icmp ne i64 {results[i]}, 0",
                f"  br i1 %some{i}, label %run{i}, label %ran{i}",
                f"run{i}:",
                *call,
                f"  br label %ran{i}",
                f"ran{i}:",
            ]
        word += len(launch.places) + len(launch.extents)
        if launch.sites:
            lines += [
                f"  %site{i} = load i64, ptr %error, align 8",
                f"  %bad{i} = icmp ne i64 %site{i}, 0",
                f"  br i1 %bad{i}, label %fail{i}, label %next{i}",
                f"fail{i}:",
                f"  %code{i} = add i64 %site{i}, {code}",
                "  br label %leave",
                f"next{i}:",
            ]
            leave.append((f"%code{i}", f"fail{i}"))
            code += len(launch.sites)
    for i, s in enumerate(plan.state):
        if s.slot is None:
            continue
        lines.append(f"  call void @.copy(ptr %state{i}, ptr %slot{s.slot}, i64 {padded(s.initial.nbytes)})")
    lines += ["  br label %done", "done:", "  br label %leave", "leave:"]
    ways = ", ".join(f"[ {value}, %{block} ]" for value, block in [*leave, ("0", "done")])
    return [*lines, f"  %code = phi i64 {ways}", "  call void @.float_leave(i64 %mode)", "  ret i64 %code"]


def _launch(number: int, launch: AheadLaunch, word: int, sizes: list[str], parallel: str) -> list[str]:
    lines = [f"  %args{number} = getelementptr i64, ptr %args, i64 {word}"]
    held = [*(("ptr", _operand(p)) for p in launch.places), *(("i64", s) for s in sizes)]
    for k, (type, value) in enumerate(held):
        lines.append(f"  %a{number}.{k} = getelementptr i64, ptr %args{number}, i64 {k}")
        lines.append(f"  store {type} {value}, ptr %a{number}.{k}, align 8")
    return [*lines, f"  call void @{launch.kernel.name}(ptr %args{number}, i64 0, i64 {parallel}, ptr %error)"]


def _operand(place: Place) -> str:
    kind, i = place
    return f"@.constant{i}" if kind == "constant" else f"%{kind}{i}"


def _constants(plan: AheadPlan) -> list[str]:
    lines = []
    for i, array in plan.constants.items():
        data = array.tobytes() or b"\0"
        lines.append(f"@.constant{i} = internal constant [{len(data)} x i8] {_literal(data)}, align {ALIGN}")
    return lines


def _error_function(plan: AheadPlan) -> list[str]:
    texts = [*messages(plan), f"{plan.name} has no such return code"]
    lines = []
    for i, text in enumerate(texts):
        data = text.encode() + b"\0"
        lines.append(f"@.message{i} = internal constant [{len(data)} x i8] {_literal(data)}")
    known = len(texts) - 1
    cases = " ".join(f"i64 {i}, label %case{i}" for i in range(known))
    lines += [
        f"define ptr @{plan.name}_error(i64 %code) nounwind {{",
        f"  switch i64 %code, label %case{known} [ {cases} ]",
    ]
    for i in range(known + 1):
        lines += [f"case{i}:", f"  ret ptr @.message{i}"]
    return [*lines, "}"]


# Whole alignments of bytes; neither range begins inside the other.
_COPY = f"""define internal void @.copy(ptr %to, ptr %from, i64 %bytes) nounwind {{
entry:
  br label %head
head:
  %i = phi i64 [ 0, %entry ], [ %next, %body ]
  %more = icmp slt i64 %i, %bytes
  br i1 %more, label %body, label %end
body:
  %source = getelementptr i8, ptr %from, i64 %i
  %target = getelementptr i8, ptr %to, i64 %i
  %block = load <{ALIGN // 8} x i64>, ptr %source, align 8
  store <{ALIGN // 8} x i64> %block, ptr %target, align 8
  %next = add i64 %i, {ALIGN}
  br label %head
end:
  ret void
}}"""


def _state_functions(plan: AheadPlan) -> list[str]:
    if not plan.state:
        return []
    lines = [_COPY, f"define i64 @{plan.name}_state() nounwind {{", f"  ret i64 {plan.state_bytes}", "}"]
    body = []
    for i, s in enumerate(plan.state):
        size = padded(s.initial.nbytes)
        data = s.initial.tobytes().ljust(size, b"\0")
        if size:
            lines.append(f"@.initial{i} = internal constant [{size} x i8] {_literal(data)}, align {ALIGN}")
            body.append(f"  %state{i} = getelementptr i8, ptr %state, i64 {s.offset}")
            body.append(f"  call void @.copy(ptr %state{i}, ptr @.initial{i}, i64 {size})")
    return [*lines, f"define void @{plan.name}_init(ptr %state) nounwind {{", *body, "  ret void", "}"]


def _literal(data: bytes) -> str:
    return 'c"\\' + data.hex("\\") + '"'
