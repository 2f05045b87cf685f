"""The verifier: the rules of SSA form and the operations' type rules, run again over a finished function.

Invariant of what passes: every operand is defined before its use, every value is defined once, every
operation is registered and has all its attributes, and every stated type is the inferred one.
"""

from __future__ import annotations

from graphc.ir.function import Function, Operation, Value
from graphc.ir.registry import IRTypeError, lookup
from graphc.ir.text.printer import function_lines, functions_of

# A longer function is shown around the mistake only.
_SHOWN_LINES = 60
_CONTEXT_LINES = 8


class VerifyError(ValueError):
    """A function that breaks a rule of the language; the message shows it with the rule under the place.

    `function` is the function (perhaps one that the verified function calls), `operation` the place, or
    None for its head or its return.
    """

    def __init__(self, rule: str, drawing: str, function: Function, operation: Operation | None) -> None:
        super().__init__(f"@{function.name} is not well formed: {rule}\n{drawing}")
        self.rule = rule
        self.function = function
        self.operation = operation


def verify(function: Function) -> None:
    """Check `function` and every function that its attributes hold. Raises `VerifyError`.

    Linear in the number of operations; each distinct `Function` object is checked once.
    """
    _verify(function, set())


def _verify(function: Function, seen: set[int]) -> None:
    if id(function) in seen:
        return
    seen.add(id(function))

    defined: set[Value] = set()
    for value in function.params:
        if value in defined:
            raise _error(function, "one value stands twice among the parameters", None, head=True)
        defined.add(value)
    if len(function.param_names) != len(function.params):
        count = f"{len(function.params)} parameters have {len(function.param_names)} names"
        raise _error(function, count, None, head=True)

    for op in function.ops:
        for number, value in enumerate(op.operands):
            if value not in defined:
                late = any(value in later.results for later in function.ops)
                how = "before its definition" if late else "but defined nowhere in the function"
                raise _error(function, f"operand {number} of {op.name} is used {how}", op)
        rule = _broken_rule(op)
        if rule:
            raise _error(function, rule, op)
        for value in op.results:
            if value in defined:
                raise _error(function, f"a result of {op.name} is defined a second time", op)
            defined.add(value)
        for inner in functions_of(op):
            _verify(inner, seen)

    for number, value in enumerate(function.results):
        if value not in defined:
            raise _error(function, f"result {number} is not defined in the function", None)


def _broken_rule(op: Operation) -> str:
    """What is wrong with an operation whose operands are defined, or "" for nothing."""
    try:
        definition = lookup(op.name)
    except KeyError as error:
        return str(error.args[0])
    try:
        complete = definition.complete(dict(op.attrs))
    except TypeError as error:
        return str(error)
    missing = [k for k in complete if k not in op.attrs]
    if missing:
        return f"{op.name} lacks the attribute {missing[0]} (default {complete[missing[0]]!r})"
    operands = tuple(v.type for v in op.operands)
    try:
        inferred = tuple(definition.infer(operands, op.attrs))
    except IRTypeError as error:
        return str(error)
    except Exception as error:  # a type rule may trip over what it does not expect
        return f"{op.name}({', '.join(map(str, operands))}) breaks its type rule: {error}"
    if len(inferred) != len(op.results):
        return f"{op.name} has {len(inferred)} results, {len(op.results)} are stated"
    for number, (value, type) in enumerate(zip(op.results, inferred)):
        if value.type != type:
            return f"result {number} of {op.name} is {type}, {value.type} is stated"
    return ""


def _error(function: Function, rule: str, op: Operation | None, head: bool = False) -> VerifyError:
    lines = function_lines(function)
    if op is None:
        index = 0 if head else len(lines) - 2
        column = len("func ") if head else 2
    else:
        index = 1 + next(i for i, other in enumerate(function.ops) if other is op)
        assigned = lines[index].find(" = ") if op.results else -1
        column = assigned + len(" = ") if assigned >= 0 else 2
    mark = f"{' ' * column}^^^ here: {rule}"
    first, last = 0, len(lines)
    if len(lines) > _SHOWN_LINES:
        first, last = max(0, index - _CONTEXT_LINES), min(len(lines), index + _CONTEXT_LINES)
    drawn = [*lines[first : index + 1], mark, *lines[index + 1 : last]]
    if first > 0:
        drawn = [lines[0], f"  ... ({first - 1} lines)", *drawn]
    if last < len(lines):
        drawn.append(f"  ... ({len(lines) - last} lines)")
    return VerifyError(rule, "\n".join(drawn), function, op)
