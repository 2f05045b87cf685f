"""Counter-based random bits: `random_bits` is a pure function of a key and a position.

Philox4x32-10: Salmon, Moraes, Dror, Shaw, Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011;
constants and known answers from the Random123 library.

Element i (row-major) of a result has the position j = offset + i, modulo 2**64. As u32 it is word
j mod 4 of the block with the counter j div 4. As u64 it is made of words 2 (j mod 2) and 2 (j mod 2) + 1
(low half, high half) of the block with the counter j div 2. A counter fills the low two words of the
cipher's four, the others are 0; the key's low half is the cipher's first key word.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from graphc.ir.function import Attrs
from graphc.ir.ops.rules import check_count, check_shape, type_error
from graphc.ir.registry import REQUIRED, Array, OpDef, register
from graphc.ir.types import U32, U64, TensorType

Types = tuple[TensorType, ...]

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox(counter: Sequence[Array], key: Sequence[Array]) -> tuple[Array, Array, Array, Array]:
    """The four output words of Philox4x32-10.

    counter: four arrays, key: two arrays, of u64 with values below 2**32, which broadcast together. So
    are the results.
    """
    c0, c1, c2, c3 = (np.asarray(c, np.uint64) for c in counter)
    k0, k1 = (np.asarray(k, np.uint64) for k in key)
    m0, m1 = map(np.uint64, MULTIPLIERS)
    w0, w1 = map(np.uint64, WEYL)
    for _ in range(ROUNDS):
        p0, p1 = c0 * m0, c2 * m1
        c0, c1, c2, c3 = (p1 >> _HALF) ^ c1 ^ k0, p1 & _LOW, (p0 >> _HALF) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + w0) & _LOW, (k1 + w1) & _LOW
    return c0, c1, c2, c3


def _infer(types: Types, attrs: Attrs) -> Types:
    check_count("random_bits", types, 2)
    for what, t in zip(("key", "offset"), types):
        if t != TensorType(U64):
            raise type_error(
                "random_bits", types, f"the {what} must be u64[], not {t}", "cast it, reshape it to []"
            )
    if attrs["dtype"] not in (U32, U64):
        raise type_error(
            "random_bits", types, f"random bits are u32 or u64, not {attrs['dtype']}", "cast or bitcast them"
        )
    return (TensorType(attrs["dtype"], check_shape("random_bits", types, "shape", attrs["shape"])),)


def _eval(args: Sequence[Array], attrs: Attrs, types: Types) -> Sequence[Array]:
    key, offset = (a.reshape(1) for a in args)
    shape = [int(d) for d in types[0].shape]
    position: Array = offset + np.arange(int(np.prod(shape, dtype=np.int64)), dtype=np.uint64)
    words = 4 if types[0].dtype is U32 else 2
    block, word = position // np.uint64(words), position % np.uint64(words)
    zero: Array = np.zeros_like(block)
    out = philox((block & _LOW, block >> _HALF, zero, zero), (key & _LOW, key >> _HALF))
    if words == 4:
        return (np.choose(word.astype(np.intp), out).astype(np.uint32).reshape(shape),)
    low, high = (np.where(word == 0, out[i], out[i + 2]) for i in (0, 1))
    return ((low | high << _HALF).reshape(shape),)


register(
    OpDef(
        "random_bits",
        "random",
        _infer,
        _eval,
        "Random bits of the stream `key` from position `offset` on, u32 or u64: Philox4x32-10 (Salmon et al. 2011).",
        None,
        {"shape": REQUIRED, "dtype": REQUIRED},
        reads=(),
        no_gradient="bits are not a differentiable function of key and offset",
    )
)
