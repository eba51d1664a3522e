"""Stretches of sleep stages, as one device saw them, to nights: for files that know no nights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import orjson

from health_pipeline.providers._export_records import Row, seconds_by_stage

_SECOND = 1_000_000
#: So long without a stretch, and the next one is of another sleep.
_GAP = 2 * 3_600 * _SECOND
#: What is shorter, nobody means by a night.
_SHORTEST_NIGHT = 3 * 3_600 * _SECOND
_ASLEEP = ("asleep", "light", "deep", "rem")


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of one stage: deep, light, rem, awake, asleep or in_bed. Microseconds; minutes of UTC offset."""

    stage: str
    start: int
    end: int
    offset: int | None = None
    end_offset: int | None = None


def sessions_of(segments: Iterable[Segment]) -> list[list[Segment]]:
    """The segments of each sleep, in order."""
    found: list[list[Segment]] = []
    latest = 0
    for segment in sorted(segments, key=lambda each: (each.start, each.end, each.stage)):
        if not found or segment.start > latest + _GAP:
            found.append([])
            latest = segment.end
        found[-1].append(segment)
        latest = max(latest, segment.end)
    return found


def session_row(segments: Sequence[Segment]) -> Row:
    """Times, stages and seconds of a sleep. Who of a day's sleeps is the night: `mark_main`."""
    start, end = min(each.start for each in segments), max(each.end for each in segments)
    last = max(segments, key=lambda each: each.end)
    runs = [
        (each.stage, (each.start - start) // _SECOND, (each.end - each.start) // _SECOND)
        for each in segments
        if each.stage != "in_bed"
    ]
    total = seconds_by_stage(runs)
    staged = any(name in total for name in ("light", "deep", "rem"))
    asleep = sum(total.get(name, 0) for name in _ASLEEP)
    in_bed = (end - start) // _SECOND
    return {
        "started_at": start,
        "ended_at": end,
        "utc_offset_minutes": segments[0].offset,
        "end_utc_offset_minutes": last.end_offset if last.end_offset is not None else last.offset,
        "time_in_bed_seconds": in_bed,
        "sleep_seconds": asleep or None,
        "deep_sleep_seconds": total.get("deep", 0) if staged else None,
        "light_sleep_seconds": total.get("light", 0) if staged else None,
        "rem_sleep_seconds": total.get("rem", 0) if staged else None,
        "awake_seconds": total.get("awake"),
        "efficiency_percent": min(100.0 * asleep / in_bed, 100.0) if asleep and in_bed else None,
        "stages": orjson.dumps(
            [{"stage": stage, "start": after, "seconds": seconds} for stage, after, seconds in runs]
        ).decode()
        if runs
        else None,
    }


def mark_main(rows: list[Row]) -> None:
    """The longest sleep of a waking day is its night, if it has three hours; the others are naps."""
    longest: dict[int, int] = {}
    for row in rows:
        longest[_day(row)] = max(longest.get(_day(row), 0), row["ended_at"] - row["started_at"])
    for row in rows:
        length = row["ended_at"] - row["started_at"]
        row["is_main_sleep"] = length == longest[_day(row)] and length >= _SHORTEST_NIGHT
        row.setdefault("sleep_type", None if row["is_main_sleep"] else "nap")


def _day(row: Row) -> int:
    return int((row["ended_at"] + 60 * _SECOND * (row["end_utc_offset_minutes"] or 0)) // (86_400 * _SECOND))
