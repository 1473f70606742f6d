"""Counter-based random numbers: a pure function of what they are for, without generator, state or order.

A draw is a 64-bit hash of (seed, stream, step, sample index, draw number): the splitmix64 sequence
(Steele, Lea and Flood 2014) begun at a key that is hashed in the same way. Any worker can compute any
draw, alone or in a batch, and gets the same bits.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Uint64 = npt.NDArray[np.uint64]
Float64 = npt.NDArray[np.float64]

_MASK = (1 << 64) - 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_TO_UNIT = 2.0**-53


def uniforms(seed: int, stream: str, step: int, indices: Sequence[int], num_draws: int) -> Float64:
    """Float64 [n, num_draws] in [0, 1): row i depends on (seed, stream, step, indices[i]) alone.

    `stream` keeps the draws of different uses apart ("augment", "visit"…).
    """
    key = _mix(_word(seed))
    name = hashlib.blake2b(stream.encode(), digest_size=8).digest()
    for part in (int.from_bytes(name, "little"), step):
        key = _absorb(key, _word(part))
    keys = _absorb(key, np.array([index & _MASK for index in indices], dtype=np.uint64))
    counters = np.arange(1, num_draws + 1, dtype=np.uint64) * _GOLDEN
    return (_mix(keys[:, None] + counters[None, :]) >> np.uint64(11)).astype(np.float64) * _TO_UNIT


def normals(first: Float64, second: Float64) -> Float64:
    """Standard normal numbers from two uniform ones (Box and Muller 1958)."""
    return np.sqrt(-2.0 * np.log1p(-first)) * np.cos(2.0 * np.pi * second)


def _word(value: int) -> Uint64:
    return np.array([value & _MASK], dtype=np.uint64)


def _absorb(key: Uint64, word: Uint64) -> Uint64:
    return _mix((key ^ word) + _GOLDEN)


def _mix(z: Uint64) -> Uint64:
    """The splitmix64 finaliser: a bijection in which every input bit moves every output bit."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
