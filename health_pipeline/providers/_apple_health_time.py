"""When the elements of an Apple Health export were recorded, by which device, and in which zone.

Times are printed with the offset of the phone at the export. A zone that the element itself names stands before the
zone that was said at the upload, and that before the printed offset.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from health_pipeline.providers._apple_health_xml import Element, Records
from health_pipeline.providers._arrow import flag_column, number_column, text_column
from health_pipeline.providers._local_time import load_zone, offsets_at
from health_pipeline.providers.base import UnreadableFileError

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.object_]

_UTC = pa.timestamp("us", "UTC")
#: The columns that tables of elements have in common.
WHEN_FIELDS = [
    pa.field("recorded_at", _UTC, nullable=False),
    pa.field("ended_at", _UTC),
    pa.field("device", pa.string(), nullable=False),
    pa.field("utc_offset_minutes", pa.int16(), nullable=False),
    pa.field("utc_offset_source", pa.string(), nullable=False),
    pa.field("line", pa.int32(), nullable=False),
]
ZONES_SCHEMA = pa.schema(
    [
        pa.field("recorded_at", _UTC, nullable=False),
        pa.field("time_zone", pa.string(), nullable=False),
        pa.field("is_home", pa.bool_(), nullable=False),
    ]
)
_HARDWARE = re.compile(
    r"hardware:(.*?)(?:, (?:software|firmware|model|manufacturer|name|localIdentifier):|>?$)"
)
_FIRST_YEAR, _LAST_YEAR = 1900, 2199


class When:
    """When and by what the elements were recorded, and where that cannot be told."""

    def __init__(
        self,
        start: Sequence[str | None],
        end: Sequence[str | None],
        device: list[str],
        line: Sequence[int],
        zone_names: Mapping[int, str],
        zone: ZoneInfo | None,
    ) -> None:
        """`zone_names` are those that the elements themselves name, by row."""
        self.start, printed, self.reason = _times(start)
        self.end, _, end_reason = _times(end)
        for row in np.flatnonzero(np.not_equal(end_reason, "")).tolist():
            # Without an end it is of an instant.
            if end_reason[row] == "missing_time":
                self.end[row] = self.start[row]
            elif not self.reason[row]:
                self.reason[row] = end_reason[row]
        backwards = (self.end < self.start) & (self.reason == "")
        self.reason[backwards] = "ends_before_start"
        self.device = device
        self.line = np.array(line, dtype=np.int32)
        self.offset, self.end_offset = printed, printed.copy()
        self.source = words_of(len(line), "export")
        if zone is not None and len(line):
            self.offset, self.end_offset = (
                offsets_at(each, zone).astype(np.int64) for each in (self.start, self.end)
            )
            self.source.fill("upload_zone")
        by_zone: dict[str, list[int]] = {}
        for row, name in zone_names.items():
            by_zone.setdefault(name, []).append(row)
        self.zones: dict[str, Ints] = {}
        for name, rows in by_zone.items():
            if (own := _zone(name)) is not None:
                where = np.array(rows)
                self.offset[where] = offsets_at(self.start[where], own)
                self.end_offset[where] = offsets_at(self.end[where], own)
                self.source[where] = "record"
                self.zones[name] = where

    @classmethod
    def of_records(cls, records: Records, zone: ZoneInfo | None) -> When:
        device = [device_of(*said) for said in zip(records.source_name, records.details, strict=True)]
        zone_names = {
            row: said["HKTimeZone"] for row, said in records.metadata.items() if "HKTimeZone" in said
        }
        return cls(records.start, records.end, device, records.line, zone_names, zone)

    @classmethod
    def of_workouts(cls, workouts: Sequence[Element], zone: ZoneInfo | None) -> When:
        return cls(
            [each.get("startDate") for each in workouts],
            [each.get("endDate") for each in workouts],
            [device_of(each.get("sourceName"), each.get("device")) for each in workouts],
            [each["line"] for each in workouts],
            {row: each["HKTimeZone"] for row, each in enumerate(workouts) if "HKTimeZone" in each},
            zone,
        )

    def columns(self, rows: Ints) -> dict[str, Any]:
        """The columns that all tables have, of these rows."""
        start, end = self.start[rows], self.end[rows]
        return {
            "recorded_at": number_column(start, _UTC),
            "ended_at": number_column(end, _UTC, end != start),
            "device": text_column([self.device[row] for row in rows.tolist()]),
            "utc_offset_minutes": number_column(self.offset[rows].astype(np.int16), pa.int16()),
            "utc_offset_source": text_column(self.source[rows].tolist()),
            "line": number_column(self.line[rows], pa.int32()),
        }


def _times(texts: Sequence[str | None]) -> tuple[Ints, Ints, Words]:
    """`2026-11-20 09:00:00 +0100` as microseconds of UTC and minutes of offset; else a reason why not."""
    count = len(texts)
    reason = words_of(count, "")
    width = [text if text is not None and len(text) == 25 and text.isascii() else _NO_TIME for text in texts]
    cells = np.frombuffer("".join(width).encode(), np.uint8).reshape(count, 25).astype(np.int16)
    digits = cells[:, _DIGITS] - 48
    good = ((digits >= 0) & (digits <= 9)).all(axis=1)
    good &= (cells[:, _MARKS] == _MARK_BYTES).all(axis=1) & np.isin(cells[:, 20], (43, 45))
    digits[~good] = 0
    tens = digits[:, 0::2] * 10 + digits[:, 1::2]
    year = tens[:, 0].astype(np.int64) * 100 + tens[:, 1]
    month, day, hour, minute, second, zone_hour, zone_minute = (
        tens[:, i].astype(np.int64) for i in range(2, 9)
    )
    months = (year - 1970) * 12 + np.clip(month, 1, 12) - 1
    first = months.astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)
    length = (months + 1).astype("datetime64[M]").astype("datetime64[D]").astype(np.int64) - first
    valid = (month >= 1) & (month <= 12) & (day >= 1) & (day <= length) & (hour < 24) & (minute < 60)
    valid &= (second < 60) & (zone_minute < 60) & (zone_hour <= 14)
    plausible = (year >= _FIRST_YEAR) & (year <= _LAST_YEAR)
    reason[~(good & valid)] = "unparsable_time"
    reason[good & valid & ~plausible] = "implausible_time"
    if not all(texts):
        reason[np.array([not text for text in texts], dtype=np.bool_)] = "missing_time"
    offset = (zone_hour * 60 + zone_minute) * np.where(cells[:, 20] == 45, -1, 1)
    seconds = ((first + day - 1) * 24 + hour) * 3600 + minute * 60 + second - offset * 60
    us = np.where(reason == "", seconds * 1_000_000, 0)
    return us, np.where(reason == "", offset, 0), reason


_NO_TIME = " " * 25
_DIGITS = [0, 1, 2, 3, 5, 6, 8, 9, 11, 12, 14, 15, 17, 18, 21, 22, 23, 24]
_MARKS = [4, 7, 10, 13, 16, 19]
_MARK_BYTES = np.frombuffer(b"-- :: ", dtype=np.uint8)


@lru_cache(maxsize=256)
def _zone(name: str) -> ZoneInfo | None:
    try:
        return load_zone(name)
    except UnreadableFileError:
        return None


@lru_cache(maxsize=4096)
def device_of(source_name: str | None, details: str | None) -> str:
    """A source's name with the hardware behind it: `Ada's Apple Watch (Watch6,2)`."""
    name = " ".join((source_name or "").split())
    found = _HARDWARE.search(details or "")
    hardware = found.group(1).strip() if found else ""
    return f"{name} ({hardware})" if hardware and name else name or hardware or "unknown"


def time_zones(whens: Sequence[When], home: ZoneInfo | None, home_name: str | None) -> pa.Table:
    """Which zones elements name, once an hour; `is_home` where its clock shows what that of `home` does."""
    found: dict[tuple[int, str], bool] = {}
    for when in whens:
        for name, rows in when.zones.items():
            good = rows[when.reason[rows] == ""]
            hours = np.unique(when.start[good] // 3_600_000_000)
            own = _zone(name)
            at_home = np.full(len(hours), name == home_name)
            if home is not None and own is not None and name != home_name:
                us = hours * 3_600_000_000
                at_home = offsets_at(us, home) == offsets_at(us, own)
            found |= {(hour, name): bool(same) for hour, same in zip(hours.tolist(), at_home, strict=True)}
    return pa.table(
        {
            "recorded_at": number_column(
                np.array([hour * 3_600_000_000 for hour, _ in found], np.int64), _UTC
            ),
            "time_zone": text_column([name for _, name in found]),
            "is_home": flag_column(np.fromiter(found.values(), np.bool_)),
        },
        schema=ZONES_SCHEMA,
    )


def words_of(count: int, word: str) -> Words:
    words = np.empty(count, dtype=object)
    words.fill(word)
    return words
