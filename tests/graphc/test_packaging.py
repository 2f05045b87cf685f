"""The package as it is built: every folder and file is in the wheel, every import has its dependency."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import graphc

ROOT = Path(__file__).resolve().parents[2]
FLOORS = ("graphc", "runtime", "codegen", "ir")


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def sources() -> Iterator[tuple[str, Path]]:
    """Every Python file of the package, with its floor."""
    for floor in FLOORS:
        for path in sorted((ROOT / floor).rglob("*.py")):
            yield floor, path


def package_of(folder: Path) -> str:
    """The name under which a folder of the repository is imported."""
    parts = folder.relative_to(ROOT).parts
    return ".".join(parts if parts[0] == "graphc" else ("graphc", *parts))


def imports(path: Path) -> Iterator[str]:
    """The names of modules that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            module = node.module or ""
            yield from (f"{module}.{alias.name}" for alias in node.names)


def test_every_package_is_listed():
    there = {package_of(p.parent) for _, p in sources() if p.name == "__init__.py"}
    assert sorted(project()["tool"]["setuptools"]["packages"]) == sorted(there)


def test_every_folder_with_code_is_a_package():
    bare = {str(p.parent) for _, p in sources() if not (p.parent / "__init__.py").exists()}
    assert not bare


def test_every_data_file_is_shipped():
    patterns = project()["tool"]["setuptools"]["package-data"]
    for floor in FLOORS:
        for path in (ROOT / floor).rglob("*"):
            if path.is_dir() or path.suffix in (".py", ".pyc", ".pyo") or "__pycache__" in path.parts:
                continue
            given = patterns.get(package_of(path.parent), [])
            assert any(fnmatch(path.name, pattern) for pattern in given), f"{path} is in no package-data pattern"


def test_every_import_has_its_dependency():
    declared = {re.split(r"[<>=\[;]", d)[0].strip() for d in project()["project"]["dependencies"]}
    extra = {re.split(r"[<>=\[;]", d)[0] for group in project()["project"]["optional-dependencies"].values() for d in group}
    known = set(sys.stdlib_module_names) | {"graphc", "__future__"}
    used = {name.partition(".")[0] for _, path in sources() for name in imports(path)} - known
    assert used - extra <= declared, "imported, but not declared"
    assert declared <= used, "declared, but never imported"


def test_one_version():
    assert graphc.__version__ == importlib.metadata.version("graphc") == project()["project"]["version"]
    assert f"## {graphc.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_command_is_installed():
    (script,) = (e for e in importlib.metadata.entry_points(group="console_scripts") if e.name == "graphc")
    assert script.value == "graphc.cli:main"
    assert callable(script.load())
