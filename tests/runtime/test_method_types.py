"""What type checkers are told of `Tensor` is what is attached to it."""

from __future__ import annotations

import ast
from pathlib import Path

from graphc.runtime import tensor


def test_stub_has_every_attached_name():
    stub = Path(tensor.__file__).with_name("methods.pyi")
    tree = ast.parse(stub.read_text(encoding="utf-8"))
    (methods,) = (n for n in tree.body if isinstance(n, ast.ClassDef))
    declared = {n.name for n in methods.body if isinstance(n, ast.FunctionDef)}
    assert declared == {*tensor._METHODS, *tensor._PROPERTIES, "__new__"}
