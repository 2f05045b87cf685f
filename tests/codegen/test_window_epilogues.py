"""What follows the sums of a convolution over windows: in registers where it is short and there is one block of k, else from a tile in memory."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from graphc.codegen.loops import print_kernel
from graphc.codegen.lower.windows.lower import candidate
from graphc.ir.function import Builder, Value

from tests.codegen.contractions import Epilogue, biased, check, check_by_oracle, conv_group

SAME = ((1, 1), (1, 1))


def long_chain(b: Builder, root: Value) -> Sequence[Value]:
    """Too long to be written out for every sum of a tile."""
    y = root
    for _ in range(15):
        y = b.emit("sqrt", b.emit("abs", b.emit("sub", y, b.emit("square", y))))
    return [y]


@pytest.mark.parametrize(
    ("channels", "image", "outputs", "epilogue", "registers"),
    [
        (1, (8, 8), 16, biased(1), True),
        (3, (7, 5), 7, biased(1), True),  # strips and vectors that are not full
        (2, (4, 4), 33, None, True),
        (28, (4, 4), 5, biased(1), True),  # 252 terms
        (29, (4, 4), 5, biased(1), False),  # two blocks
        (2, (9, 9), 16, long_chain, False),
    ],
)
@pytest.mark.parametrize("dtype", ["f32", "f64", "i16"])
def test_sums_are_finished(
    channels: int, image: tuple[int, int], outputs: int, epilogue: Epilogue | None, registers: bool, dtype: str
) -> None:
    if dtype == "i16" and epilogue is long_chain:
        epilogue, registers = None, True  # square roots are for floats
    h, w = image
    f = conv_group(f"{dtype}[e0, {channels}, {h}, {w}]", f"{dtype}[{outputs}, {channels}, 3, 3]", epilogue, padding=SAME)
    for examples in (1, 7):
        extents = {"e0": examples}
        found = candidate(f, extents, 512)
        assert found is not None
        lowered = check(f, extents, schedule=found[1])
        assert ("tile" not in print_kernel(lowered.kernels[-1])) == registers


def test_every_index_is_inside() -> None:
    f = conv_group("f32[e0, 2, 5, 5]", "f32[7, 2, 3, 3]", biased(1), padding=SAME)
    found = candidate(f, {"e0": 9}, 512)
    assert found is not None
    for examples in (1, 9):
        check_by_oracle(f, {"e0": examples}, found[1])
