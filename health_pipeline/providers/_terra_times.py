"""Terra's timestamps: ISO 8601 with an offset where the device's maker gave one, else the person's wall clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from health_pipeline.providers._json import UTC_TIMESTAMP
from health_pipeline.providers._local_time import NO_OFFSET, load_zone, localise

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

_MINUTE = 60_000_000
_FIRST_YEAR, _LAST_YEAR = 1900, 2199
_ISO = (
    r"^(?P<clock>\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(?::\d{2})?)(?P<fraction>\.\d+)?"
    r"(?:(?P<utc>[Zz])|(?P<sign>[+-])(?P<hours>\d{2}):?(?P<minutes>\d{2})?)?$"
)
#: `timestamp_localization`: 0 says that times are printed in UTC, whatever the person's clock showed.
PRINTED_IN_UTC = 0


@dataclass(frozen=True, slots=True)
class Instants:
    """Microseconds of UTC; minutes of offset as printed (NO_OFFSET where that is unknown); what has no instant."""

    us: Ints
    offset: Ints
    unknown: Flags

    def times(self) -> pa.Array:
        return pa.array(self.us).cast(UTC_TIMESTAMP)

    def offsets(self) -> pa.Array:
        return pa.array(self.offset.astype(np.int16), mask=self.offset == NO_OFFSET)


def time_texts(values: Sequence[Any]) -> pa.Array:
    """Timestamps as the texts they are, for a column's `convert`. Raises ValueError for what is no time."""
    texts = pa.array(values, pa.string())
    years = pc.min_max(pc.year(pa.array(_clock(texts)[0]).cast(pa.timestamp("us")))).as_py()
    if years["min"] is not None and not _FIRST_YEAR <= years["min"] <= years["max"] <= _LAST_YEAR:
        raise ValueError("not a time anybody measured at")
    return texts


def resolve(
    texts: pa.Array | pa.ChunkedArray,
    localization: Ints,
    zone: str | None,
    fallback: Ints | None = None,
) -> Instants:
    """The instants of valid `time_texts`, none of them null.

    `localization` is the record's `timestamp_localization`, -1 where it says none. A time without an offset
    is taken with `fallback` (the offset its record is printed with), else as wall-clock time of `zone`.
    """
    us, offset = _clock(texts)
    in_utc = localization == PRINTED_IN_UTC
    bare = offset == NO_OFFSET
    if fallback is not None:
        offset = np.where(bare & ~in_utc, fallback, offset)
    local = (offset == NO_OFFSET) & ~in_utc
    us = us - np.where(offset == NO_OFFSET, 0, offset) * _MINUTE
    if local.any() and zone is not None:
        us[local] = localise(us[local], load_zone(zone)).us
    return Instants(
        us=us,
        offset=np.where(in_utc, NO_OFFSET, offset),
        unknown=local if zone is None else np.zeros(len(us), dtype=np.bool_),
    )


def _clock(texts: pa.Array | pa.ChunkedArray) -> tuple[Ints, Ints]:
    """Microseconds of the wall clock as printed and minutes of offset; nulls are 1970. Raises ValueError."""
    if isinstance(texts, pa.ChunkedArray):
        texts = texts.combine_chunks()
    texts = pc.fill_null(texts, "1970-01-01T00:00:00")
    found = pc.extract_regex(texts, _ISO)
    if found.null_count:
        raise ValueError("not an ISO 8601 time")
    part = {field.name: found.field(index) for index, field in enumerate(found.type)}
    seconds = pc.replace_substring(part["clock"], "T", " ").cast(pa.timestamp("s")).cast(pa.int64())
    fraction = _numbers(part["fraction"], pa.float64())
    us = seconds.to_numpy(zero_copy_only=False) * 1_000_000 + np.rint(fraction * 1e6).astype(np.int64)
    minutes = _numbers(part["hours"], pa.int64()) * 60 + _numbers(part["minutes"], pa.int64())
    signed = np.where(_equal(part["sign"], "-"), -minutes, minutes)
    known = ~_equal(part["sign"], "") | ~_equal(part["utc"], "")
    if (minutes > 18 * 60).any():
        raise ValueError("no clock is that far from UTC")
    return us, np.where(known, signed, NO_OFFSET)


def _numbers(texts: pa.Array, type_: pa.DataType) -> Any:
    filled = pc.if_else(pc.equal(texts, ""), "0", texts)
    return filled.cast(type_).to_numpy(zero_copy_only=False)


def _equal(texts: pa.Array, text: str) -> Flags:
    flags: Flags = pc.equal(texts, text).to_numpy(zero_copy_only=False)
    return flags
