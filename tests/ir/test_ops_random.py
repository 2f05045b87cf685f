"""Random bits: Random123's known answers, positions, halves, streams, messages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphc.ir.autodiff import vjp
from graphc.ir.function import Builder
from graphc.ir.interpret import interpret
from graphc.ir.ops.random import philox
from graphc.ir.registry import IRTypeError
from graphc.ir.types import F32, U32, U64, TensorType, symbol

from tests.ir.one_op import function_of, infer, run

# counter, key, output: philox4x32 with 10 rounds, from the file kat_vectors of Random123.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[Any]:
    return [np.uint64(int(w, 16)) for w in text.split()]


def bits(key: int, offset: int, shape: Any, dtype: Any = U32) -> np.ndarray[Any, Any]:
    got = run("random_bits", np.uint64(key), np.uint64(offset), shape=shape, dtype=dtype)
    assert isinstance(got, np.ndarray)
    return got


@pytest.mark.parametrize("counter, key, output", KNOWN_ANSWERS)
def test_known_answers(counter: str, key: str, output: str) -> None:
    assert [int(v) for v in philox(words(counter), words(key))] == [int(w) for w in words(output)]


def test_the_first_block_of_key_0_is_the_known_answer() -> None:
    want = [int(w) for w in words(KNOWN_ANSWERS[0][2])]
    assert bits(0, 0, (4,)).tolist() == want
    assert bits(0, 0, (2,), U64).tolist() == [want[0] | want[1] << 32, want[2] | want[3] << 32]


@pytest.mark.parametrize("position", [0, 5, 2**33 + 1, 2**64 - 3])
def test_a_position_is_a_word_of_a_block(position: int) -> None:
    key = 0x299F31D0A4093822
    got = bits(key, position, (7,))
    for i in range(7):
        j = (position + i) % 2**64
        counter = [np.uint64(j // 4 % 2**32), np.uint64(j // 4 // 2**32), np.uint64(0), np.uint64(0)]
        assert got[i] == philox(counter, words("a4093822 299f31d0"))[j % 4]


@pytest.mark.parametrize("position", [0, 3, 2**33 + 1, 2**64 - 3])
def test_a_u64_is_two_words_of_a_block(position: int) -> None:
    got = bits(77, position, (5,), U64)
    for i in range(5):
        j = (position + i) % 2**64
        counter = [np.uint64(j // 2 % 2**32), np.uint64(j // 2 // 2**32), np.uint64(0), np.uint64(0)]
        out = [int(v) for v in philox(counter, [np.uint64(77), np.uint64(0)])]
        assert int(got[i]) == out[2 * (j % 2)] | out[2 * (j % 2) + 1] << 32


def test_bits_depend_on_the_position_alone() -> None:
    whole = bits(3, 10, (4, 5))
    assert whole.dtype == np.uint32
    assert np.array_equal(whole.reshape(-1)[7:], bits(3, 17, (13,)))
    assert not np.array_equal(whole, bits(4, 10, (4, 5)))


@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 0, 3), (1, 1)])
def test_small_and_empty_shapes(shape: tuple[int, ...]) -> None:
    for dtype in (U32, U64):
        got = bits(1, 2, shape, dtype)
        assert got.shape == shape and got.dtype == dtype.numpy
        assert got.size == 0 or got.reshape(-1)[0] == bits(1, 2, (9,), dtype)[0]


def test_every_bit_is_set_half_the_time() -> None:
    got = bits(12345, 0, (20000,), U64)
    share = [(got >> np.uint64(i) & np.uint64(1)).mean() for i in range(64)]
    # Five standard deviations of the mean of 20000 fair coins.
    assert max(abs(s - 0.5) for s in share) < 5 * 0.5 / 20000**0.5


def test_a_symbolic_shape() -> None:
    n = symbol("N")
    assert infer("random_bits", "u64[]", "u64[]", shape=(n, 2), dtype=U32) == "u32[N, 2]"
    f = function_of("random_bits", "u64[]", "u64[]", shape=(n, 2), dtype=U32)
    (got,) = interpret(f, [np.uint64(3), np.uint64(4)], {"N": 3})
    assert np.array_equal(got, bits(3, 4, (3, 2)))


def test_bits_are_constants_to_differentiation() -> None:
    b = Builder("f")
    x, key = b.param(TensorType.parse("f64[3]")), b.param(TensorType(U64))
    noise = b.cast(b.random_bits(key, key, shape=(3,), dtype=U32), dtype=x.type.dtype)
    f = vjp(b.build([b.mul(x, noise)]))
    _, dx = interpret(f, [np.ones(3), np.uint64(5), np.ones(3)])
    assert np.array_equal(dx, bits(5, 5, (3,)).astype(np.float64))


@pytest.mark.parametrize(
    "types, attrs, message",
    [
        (
            ("i64[]", "u64[]"),
            {"shape": (2,), "dtype": U32},
            r"random_bits\(i64\[\], u64\[\]\): the key must be u64\[\], not i64\[\]; cast",
        ),
        (("u64[]", "u64[1]"), {"shape": (2,), "dtype": U32}, r"the offset must be u64\[\], not u64\[1\]"),
        (
            ("u64[]", "u64[]"),
            {"shape": (2,), "dtype": F32},
            "random bits are u32 or u64, not f32; cast or bitcast them",
        ),
        (("u64[]", "u64[]"), {"shape": (-2,), "dtype": U32}, "shape must be a tuple of dimensions"),
        (("u64[]", "u64[]"), {"shape": (2,)}, "random_bits needs the attribute 'dtype'"),
        (("u64[]",), {"shape": (2,), "dtype": U32}, "takes 2 operands, not 1"),
    ],
)
def test_messages(types: tuple[str, ...], attrs: dict[str, Any], message: str) -> None:
    with pytest.raises(IRTypeError, match=message):
        function_of("random_bits", *types, **attrs)
