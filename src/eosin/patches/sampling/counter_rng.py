"""Counter-based random numbers: a pure function of what they are for, without generator, state or order.

A draw is a 64-bit hash of (seed, stream, step, sample index, draw number): the splitmix64 sequence
(Steele, Lea and Flood 2014) begun at a key that is hashed in the same way. Any worker can compute any
draw, alone or in a batch, and gets the same bits.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Uint64 = npt.NDArray[np.uint64]
Float64 = npt.NDArray[np.float64]

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_TO_UNIT = 2.0**-53


def uniforms(seed: int, stream: str, step: int, indices: Sequence[int], num_draws: int) -> Float64:
    """Float64 [n, num_draws] in [0, 1): row i depends on (seed, stream, step, indices[i]) alone.

    `stream` keeps the draws of different uses apart ("augment", "visit"…).
    """
    key = _absorb(_key(seed, stream), step)
    keys = np.array([index & _MASK for index in indices], dtype=np.uint64) ^ np.uint64(key)
    keys = _mix(keys + np.uint64(_GOLDEN))
    counters = np.arange(1, num_draws + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    return (_mix(keys[:, None] + counters) >> np.uint64(11)).astype(np.float64) * _TO_UNIT


def normals(first: Float64, second: Float64) -> Float64:
    """Standard normal numbers from two uniform ones (Box and Muller 1958)."""
    return np.sqrt(-2.0 * np.log1p(-first)) * np.cos(2.0 * np.pi * second)


@lru_cache(maxsize=256)
def _key(seed: int, stream: str) -> int:
    name = hashlib.blake2b(stream.encode(), digest_size=8).digest()
    return _absorb(_mix_one(seed & _MASK), int.from_bytes(name, "little"))


def _absorb(key: int, word: int) -> int:
    return _mix_one(((key ^ (word & _MASK)) + _GOLDEN) & _MASK)


def _mix(z: Uint64) -> Uint64:
    """The splitmix64 finaliser: a bijection in which every input bit moves every output bit."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _mix_one(z: int) -> int:
    """As `_mix`, of one number, for a tenth of the time."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK
    return z ^ (z >> 31)
