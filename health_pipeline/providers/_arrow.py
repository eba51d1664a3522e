"""Arrow columns from numpy and Python values, and back, by their buffers.

`pa.array` and `pa.scalar` import pandas where it is installed, which takes more memory than all that a reader in parts
holds; so do `to_numpy`, `as_py` of instants, and what makes a scalar of a Python value (`pc.fill_null`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Flags = npt.NDArray[np.bool_]

_MOST_BYTES = 2**31 - 1


def number_column(values: npt.NDArray[Any], kind: pa.DataType, valid: Flags | None = None) -> pa.Array:
    """Numbers, which have the width of `kind`, as a column of it; null where they are not `valid`."""
    return _array(kind, len(values), [pa.py_buffer(np.ascontiguousarray(values))], valid)


def flag_column(values: Flags) -> pa.Array:
    return _array(pa.bool_(), len(values), [_bits(values)], None)


def text_column(values: Sequence[str | None]) -> pa.Array:
    """Texts, and None as null. Raises OverflowError for 2 GiB and more of them."""
    content = [b"" if value is None else value.encode() for value in values]
    ends = np.zeros(len(content) + 1, dtype=np.int64)
    np.cumsum(np.fromiter(map(len, content), np.int64, len(content)), out=ends[1:])
    if ends[-1] > _MOST_BYTES:
        raise OverflowError("more text than a column holds")
    valid = np.array([value is not None for value in values], dtype=np.bool_) if None in values else None
    return _array(
        pa.string(),
        len(content),
        [pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(b"".join(content))],
        valid,
    )


def numbers(column: pa.Array, kind: type[np.number[Any]]) -> npt.NDArray[Any]:
    """A column of numbers of the width of `kind`, where nulls are anything, as numpy has it: read-only."""
    if not len(column):
        return np.zeros(0, dtype=kind)
    return np.frombuffer(column.buffers()[1], kind)[column.offset : column.offset + len(column)]


def flags(column: pa.Array) -> Flags:
    """A column of booleans without nulls, as numpy has it."""
    if not len(column):
        return np.zeros(0, dtype=np.bool_)
    end = column.offset + len(column)
    bits = np.unpackbits(np.frombuffer(column.buffers()[1], np.uint8), count=end, bitorder="little")
    return bits[column.offset :].view(np.bool_)


def _array(kind: pa.DataType, count: int, buffers: list[pa.Buffer], valid: Flags | None) -> pa.Array:
    if valid is None or valid.all():
        return pa.Array.from_buffers(kind, count, [None, *buffers], 0)
    return pa.Array.from_buffers(kind, count, [_bits(valid), *buffers])


def _bits(values: Flags) -> pa.Buffer:
    return pa.py_buffer(np.packbits(values, bitorder="little"))
