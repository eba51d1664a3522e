"""Random numbers that are a function of (key, index): no state, no order of drawing, no library version.

A draw depends on nothing but its key and its index, so any day can be computed alone and gives the same
value whichever range was asked for. Only integer arithmetic and exact float operations are used, so that the
committed samples come out the same on every machine (numpy promises that for its bit streams, not for its
distributions).
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def key(*parts: object) -> int:
    """A 64-bit key from any printable parts."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _bits(stream: int, start: int, count: int) -> npt.NDArray[np.uint64]:
    """Words `start` to `start + count` of the SplitMix64 sequence seeded with `stream`."""
    with np.errstate(over="ignore"):
        index = np.arange(start, start + count).astype(np.uint64)
        z = np.uint64(stream) + (index + np.uint64(1)) * _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * _MIX_1
        z = (z ^ (z >> np.uint64(27))) * _MIX_2
        return z ^ (z >> np.uint64(31))


def uniform(stream: int, start: int, count: int) -> Floats:
    """Uniform on [0, 1)."""
    return (_bits(stream, start, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normal(stream: int, start: int, count: int) -> Floats:
    """Nearly normal, mean 0 and deviation 1: the sum of four uniforms, so never beyond 3.47."""
    words = _bits(stream, start, count)
    low = np.uint64(0xFFFF)
    total = np.zeros(count, dtype=np.int64)
    for shift in (0, 16, 32, 48):
        total += ((words >> np.uint64(shift)) & low).astype(np.int64)
    return np.asarray((total.astype(np.float64) / 65536.0 - 2.0 + 2.0 / 65536.0) * 3.0**0.5)


def smooth(stream: int, start: int, count: int, memory: float, *, rounded: bool = False) -> Floats:
    """Autocorrelated noise, deviation 1: white noise under an exponential kernel of `memory` steps.

    `rounded` starts the kernel from zero, for a curve without corners. It is a function of the index too:
    neighbouring ranges join without a seam.
    """
    length = int((6 if rounded else 4) * memory)
    steps = np.arange(length, dtype=np.float64)
    weights = np.exp(-steps / memory) * (steps if rounded else 1.0)
    weights /= float(np.sqrt((weights**2).sum()))
    return np.convolve(normal(stream, start - length + 1, count + length - 1), weights, mode="valid")
