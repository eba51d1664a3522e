"""FIT files, as Garmin's and others' devices write them: workouts and the pulse in them.

Times are UTC; an activity says what the clock on the wrist showed beside it. Source: Garmin's FIT protocol,
read by fitdecode.
"""

from __future__ import annotations

import datetime as dt
import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from health_pipeline.providers._export_records import (
    Collector,
    Found,
    Refused,
    are_plausible,
    number,
    offset_between,
    plausible,
    samples,
)
from health_pipeline.providers._garmin_connect_parse import workout

#: The first instant of FIT's clock, in epoch seconds.
_EPOCH = 631_065_600
_LOW_BITS = 0xFFFF


def is_fit(head: bytes) -> bool:
    """Whether a file that starts so is a FIT file."""
    return head[8:12] == b".FIT"


def read_fit(collector: Collector, content: bytes, place: str, *, with_sessions: bool = True) -> None:
    """Sessions as workouts, samples of the pulse as values. What a file that is cut off holds is kept.

    In an account export the list of activities has the sessions, and says more: then they are skipped.
    """
    import fitdecode

    found = _Contents()
    try:
        with fitdecode.FitReader(
            io.BytesIO(content),
            check_crc=fitdecode.CrcCheck.DISABLED,
            error_handling=fitdecode.ErrorHandling.IGNORE,
        ) as reader:
            for message in reader:
                if isinstance(message, fitdecode.FitDataMessage):
                    found.add(
                        message.name,
                        {each.name: each.value for each in message.fields if each.value is not None},
                    )
    except Exception:
        # Of damaged bytes the decoder raises errors of many kinds.
        collector.refuse("truncated_file", place, "{}")
        collector.notes.add(f"{place} is cut off or damaged: what it holds before that is loaded")
    us = np.array([_us(at) for at in found.times], dtype=np.int64)
    kept = are_plausible(us)
    pulses = np.array(found.pulses, dtype=np.float64)
    collector.add(
        samples("heart_rate", "/min", us[kept], pulses[kept], f"{place}: pulse", offset=found.offset)
    )
    for reason, count in (
        ("time_before_the_clock_was_set", int(len(us) - kept.sum())),
        ("sample_without_a_pulse", found.without),
        ("in_the_list_of_activities", 0 if with_sessions else len(found.sessions)),
    ):
        if count:
            collector.skip(reason, count)
    if with_sessions:
        collector.take(found.sessions, f"{place}: session", lambda said: _session(said, found.offset))


@dataclass(slots=True)
class _Contents:
    """What a file's messages come to. Times in epoch seconds."""

    sessions: list[dict[str, Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    pulses: list[float] = field(default_factory=list)
    without: int = 0
    offset: int | None = None
    clock: int = 0

    def add(self, kind: str, said: dict[str, Any]) -> None:
        at = _seconds(said.get("timestamp"))
        self.clock = round(at) if at is not None else self.clock
        if kind == "session":
            self.sessions.append(said)
        elif kind == "activity" and at is not None:
            local = _seconds(said.get("local_timestamp"))
            self.offset = None if local is None else offset_between(_us(at), _us(local))
        elif kind in ("record", "monitoring"):
            at = at if at is not None else _short_time(self.clock, said.get("timestamp_16"))
            pulse = said.get("heart_rate")
            if at is None or isinstance(pulse, bool) or not isinstance(pulse, int | float) or not pulse:
                self.without += 1
            else:
                self.times.append(at)
                self.pulses.append(float(pulse))


def _session(said: dict[str, Any], offset: int | None) -> Found:
    start = _seconds(said.get("start_time"))
    if start is None:
        raise Refused("missing_field", "start_time")
    values = {
        name: number(said.get(name), name)
        for name in (
            *("total_timer_time", "total_elapsed_time", "total_calories", "total_distance"),
            *("avg_heart_rate", "max_heart_rate", "total_ascent"),
        )
    }
    duration = values["total_timer_time"]
    if duration is None:
        duration = values["total_elapsed_time"]
    if duration is None:
        raise Refused("missing_field", "total_timer_time")
    detail = said.get("sub_sport")
    sport = said.get("sport") if detail in (None, "generic", "all") else detail
    yield workout(
        plausible(_us(start), "start_time"),
        duration,
        elapsed=values["total_elapsed_time"],
        offset=offset,
        activity=sport if isinstance(sport, str) else None,
        calories_kcal=values["total_calories"],
        distance_m=values["total_distance"],
        average_heart_rate_bpm=values["avg_heart_rate"],
        max_heart_rate_bpm=values["max_heart_rate"],
        elevation_gain_m=values["total_ascent"],
    )


def _seconds(value: Any) -> float | None:
    """Epoch seconds of a date-time; the wall clock of one without a zone. Less than a date is no time."""
    if not isinstance(value, dt.datetime):
        return None
    return (value if value.tzinfo is not None else value.replace(tzinfo=dt.UTC)).timestamp()


def _us(seconds: float | None) -> int:
    return round((seconds or 0) * 1_000_000)


def _short_time(clock: int, low: Any) -> float | None:
    """A time of which only the low 16 bits are written, after the last one that was written in full."""
    if not clock or not isinstance(low, int):
        return None
    fit = clock - _EPOCH
    return float(clock + ((low - (fit & _LOW_BITS)) & _LOW_BITS))
