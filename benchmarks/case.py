"""What is measured: a `Row` of the table makes a `Case`, which makes one piece of work for each peer.

A row is a function of the sizes it is given, so that the same code runs at full size and, for the tests, at
toy size. Peers are made in the process that measures them; one whose library is missing is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Union

ALL = 0  # threads: all that the process may use
PEERS = ("graphc", "numpy", "torch", "torch.compile", "jax", "onnxruntime")


@dataclass(frozen=True)
class Statement:
    """Python text to time, without the cost of a function call around it."""

    text: str
    names: Mapping[str, Any]


@dataclass(frozen=True)
class Clocked:
    """Work that measures itself: `run()` gives seconds. It is called once a round."""

    run: Callable[[], float]


Work = Union[Callable[[], Any], Statement, Clocked]


@dataclass(frozen=True)
class Case:
    """One row ready to be made.

    peers: name -> maker of its work. flops, bytes: what one call does at least; 0 where that says nothing.
    limit: which limit of the machine bounds it, "fma", "memory" or, for what only reads, "read"; or "". tolerance: how far, relative to the largest
    element, a peer's result may be from graphc's; None where there is no result to compare.
    """

    peers: Mapping[str, Callable[[], Work]]
    flops: float = 0.0
    bytes: float = 0.0
    limit: str = ""
    tolerance: float | None = 1e-4


@dataclass(frozen=True)
class Figure:
    """A figure to reach: in seconds, as a multiple of the limit's time, or faster than some peers; `share` of
    their speed is enough."""

    text: str
    seconds: float = 0.0
    of_limit: float = 0.0
    faster_than: tuple[str, ...] = ()
    above: str = ""  # `seconds` counts on top of this peer's time
    share: float = 1.0


@dataclass(frozen=True)
class Row:
    """One line of the table. make(size): `size(full, toy)` chooses. rounds: at most so many, for slow work."""

    name: str
    family: str
    make: Callable[[Size], Case]
    threads: int = ALL
    figure: Figure | None = None
    rounds: int = 99


Size = Callable[[Any, Any], Any]


def full(large: Any, toy: Any) -> Any:
    """The size that the table is about."""
    return large


def toy(large: Any, toy: Any) -> Any:
    """A size that checks that a row works."""
    return toy


@dataclass
class Registry:
    """All rows in the order of their modules."""

    rows: dict[str, Row] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        if row.name in self.rows:
            raise ValueError(f"two rows are called {row.name!r}")
        self.rows[row.name] = row

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows.values())


registry = Registry()


def row(
    name: str, family: str, threads: int = ALL, figure: Figure | None = None, rounds: int = 99
) -> Callable[[Callable[[Size], Case]], Callable[[Size], Case]]:
    """Register a function `Size -> Case` as a row."""

    def register(make: Callable[[Size], Case]) -> Callable[[Size], Case]:
        registry.add(Row(name, family, make, threads, figure, rounds))
        return make

    return register


def all_rows() -> Registry:
    """The registry, with every module of rows loaded."""
    from benchmarks import rows

    rows.load()
    return registry
