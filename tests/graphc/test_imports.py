"""Imports run downwards only, and `import graphc` is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLOORS = ["ir", "codegen", "runtime", "graphc"]
FILES = [(floor, path) for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))]


def floor_of(module: str) -> str | None:
    """The floor that a module of graphc belongs to."""
    parts = module.split(".")
    if parts[0] != "graphc":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in FLOORS[:3] else "graphc"


def imported(path: Path, package: str) -> list[tuple[int, str]]:
    """(line, module) of every import statement in a file, wherever it stands."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


@pytest.mark.parametrize(("floor", "path"), FILES, ids=[str(p.relative_to(ROOT)) for _, p in FILES])
def test_imports_run_downwards(floor: str, path: Path) -> None:
    above = FLOORS[FLOORS.index(floor) + 1 :]
    wrong = [f"{path}:{line}: {m}" for line, m in imported(path, floor) if floor_of(m) in above]
    # A tensor tells which module is its array API namespace: the face itself.
    allowed = [w for w in wrong if path.name == "tensor.py" and w.endswith(": graphc")]
    assert [w for w in wrong if w not in allowed] == []


def loaded_after(code: str) -> set[str]:
    program = f"import sys\n{code}\nprint('\\n'.join(sys.modules))"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(out.stdout.split())


def test_import_is_light() -> None:
    loaded = loaded_after("import graphc")
    assert not {"llvmlite", "lark", "rich", "numpy", "tempfile", "ml_dtypes"} & loaded


def test_making_tensors_loads_no_compiler() -> None:
    loaded = loaded_after("import graphc as gc; gc.nn.Module; gc.zeros(3); gc.tensor([1.0]).reshape(1, 1)")
    assert not {"llvmlite", "lark", "rich", "ml_dtypes"} & loaded


def test_computing_loads_only_what_it_needs() -> None:
    loaded = loaded_after("import graphc as gc; (gc.zeros(3) + 1).tolist()")
    assert "llvmlite" in loaded
    assert not {"lark", "rich", "ml_dtypes", "importlib.metadata"} & loaded


def test_public_modules_are_the_modules_of_the_runtime() -> None:
    import graphc
    import graphc.nn.functional as public
    import graphc.runtime.nn.functional as real

    assert public is real
    assert graphc.nn is sys.modules["graphc.runtime.nn"]
    assert real.__spec__ is not None and real.__spec__.name == "graphc.runtime.nn.functional"


def test_all_public_names_exist() -> None:
    import graphc

    for name in dir(graphc):
        getattr(graphc, name)


def test_unknown_name_suggests_close_ones() -> None:
    import graphc

    with pytest.raises(AttributeError, match="did you mean .*arange"):
        graphc.aragne  # noqa: B018


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("softmax", "it is graphc.nn.functional.softmax"),
        ("MSELoss", "it is graphc.nn.MSELoss"),
        ("masked_fill", "it is a method: x.masked_fill(...)"),
    ],
)
def test_a_name_that_is_elsewhere_says_where(name: str, cure: str) -> None:
    import graphc

    with pytest.raises(AttributeError) as caught:
        getattr(graphc, name)
    assert str(caught.value) == f"graphc has no attribute {name!r}; {cure}"


def test_schedules_are_imported_as_in_pytorch() -> None:
    import graphc
    from graphc.optim.lr_scheduler import StepLR

    assert StepLR is graphc.optim.StepLR
