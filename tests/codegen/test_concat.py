"""Joined tensors: any number of pieces of any size, along any axis, with operations before and after."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from graphc.codegen.fuse import fuse
from graphc.codegen.lower.pieces import joining
from graphc.codegen.prepare import MOST_JOINED, prepare
from graphc.ir.function import Builder, Function, Operation
from graphc.ir.passes import DEFAULT, run_pipeline
from graphc.ir.types import BF16, F32, I8, DType, TensorType

from tests.codegen.compiled import Array, assert_compiled
from tests.codegen.values import mixed


def joined(sizes: list[int], axis: int, dtype: DType = F32, before: bool = False, after: bool = False) -> tuple[Function, list[Array]]:
    """Pieces of shape (3, 20) but for `axis`, an axis of 1 in between."""
    b, args, values = Builder("joined"), [], []
    for i, size in enumerate(sizes):
        shape = [3, 1, 20]
        shape[axis] = size
        args.append(mixed(dtype, tuple(shape), i))
        x = b.param(TensorType(dtype, tuple(shape)))
        values.append(b.abs(x) if before and i % 2 else x)
    out = b.concat(*values, axis=axis)
    return b.build([b.mul(out, out), b.add(out, b.mul(out, out))] if after else [out]), args


SIZES = ([2, 3], [1, 0, 5], [1] * 7, [17, 40, 1, 16], [3] * 9, [1] * 70, [2, 1, 5] * 22)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("sizes", SIZES, ids=lambda s: f"{len(s)} pieces")
def test_pieces_of_any_size(sizes: list[int], axis: int) -> None:
    for i, (before, after) in enumerate(itertools.product((False, True), repeat=2)):
        if len(sizes) < 20 or i in (0, 3):
            dtype = (F32, BF16, I8)[(i + axis) % 3]
            assert_compiled(*joined(sizes, axis, dtype, before, after))


def test_long_pieces_are_cut_into_blocks() -> None:
    b = Builder("long")
    sizes = (5000, 1, 2047, 2048, 3)
    x = b.concat(*[b.param(TensorType(F32, (n,))) for n in sizes], axis=0)
    assert_compiled(b.build([x, b.exp(x)]), [mixed(F32, (n,), n) for n in sizes])


def test_a_concat_read_elsewhere_is_no_boundary() -> None:
    """Flipped, shifted and transposed reads look into any of the pieces."""
    b = Builder("moved")
    x, y = b.param(TensorType(F32, (4, 9))), b.param(TensorType(F32, (5, 9)))
    whole = b.concat(x, y, axis=0)
    square = b.add(whole, b.permute(whole, axes=(1, 0)))
    f = b.build([square, b.add(whole, b.flip(whole, axes=(0,))), b.sum(whole, axes=(1,))])
    args = [mixed(F32, (4, 9), 1), mixed(F32, (5, 9), 2)]
    assert_compiled(f, args)
    assert_compiled(f, args, fused=False)
    assert_compiled(b.build([b.concat(b.neg(whole), whole, axis=0), whole]), args)


def concats(f: Function) -> list[Operation]:
    return [op for op in f.ops if op.name == "concat"]


def test_which_groups_are_cut() -> None:
    def group(sizes: list[int], after: bool) -> list[Function]:
        module = fuse(prepare(run_pipeline(joined(sizes, 2, after=after)[0], DEFAULT))[0])
        return list(module)[1:]

    (few,) = group([3, 4], after=True)
    assert joining(few) is concats(few)[0]
    # What follows many pieces is not written out for each of them.
    assert [len(concats(g)) for g in group([3] * 20, after=True)] == [1, 0]
    b = Builder("flipped")
    x = b.param(TensorType(F32, (3, 4)))
    assert joining(b.build([b.flip(b.concat(x, x, axis=0), axes=(0,))])) is None


def test_very_many_pieces_are_joined_in_steps() -> None:
    f, args = joined([1] * 300, 0)
    prepared, _ = prepare(f)
    assert all(len(op.operands) <= MOST_JOINED for op in concats(prepared)) and len(concats(prepared)) == 6
    assert_compiled(f, args)


def test_stacked_scalars() -> None:
    b = Builder("stack")
    values = [b.reshape(b.param(TensorType(F32, ())), shape=(1,)) for _ in range(40)]
    assert_compiled(b.build([b.concat(*values, axis=0)]), [np.array(i, np.float32) for i in range(40)])
