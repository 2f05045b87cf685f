"""Positions in values: two forms of one position."""

from __future__ import annotations

from graphc.codegen.expr import var
from graphc.codegen.lower.index import Position


def test_key_is_that_of_the_form_it_was_made_in() -> None:
    i, j = var("i"), var("j")
    flat = Position((3, 4), flat=i)
    before = flat.key()
    assert len(flat.coords) == 2
    assert flat.key() == before == Position((3, 4), flat=i).key()
    coords = Position((3, 4), (i, j))
    before = coords.key()
    assert coords.flat is Position((3, 4), (i, j)).flat
    assert coords.key() == before != flat.key()
