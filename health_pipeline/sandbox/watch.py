"""A watch on the wrist: the minutes of a calendar day as it saw them, and its pulse outside training and sleep."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from health_pipeline.sandbox import body
from health_pipeline.sandbox.activity import SOURCES, Flags, HeartRate, Ints, activity
from health_pipeline.sandbox.life import Life
from health_pipeline.sandbox.noise import Floats
from health_pipeline.sandbox.people import EPOCH

_ONE_DAY = dt.timedelta(days=1)
_WORKOUT, _SLEEP = SOURCES.index("workout"), SOURCES.index("sleep")


@dataclass(frozen=True, slots=True)
class Watched:
    """The minutes whose wall clock shows one date, as the watch saw them: `time` in epoch seconds.

    `clock` is what it showed, in seconds since 1970. What was off the wrist counts as nothing.
    """

    time: Ints
    clock: Ints
    worn: Flags
    steps: Ints
    kcal: Floats
    moving: Flags

    @property
    def total_steps(self) -> int:
        return int(self.steps.sum())

    @property
    def end(self) -> int:
        return int(self.time[-1]) + 60


@lru_cache(maxsize=512)
def calendar_day(life: Life, date: dt.date) -> Watched:
    """From midnight to midnight of the wall clock; a person's own days run from 04:00 to 04:00."""
    parts = []
    for day in life.days(max(EPOCH, date - 2 * _ONE_DAY), date + _ONE_DAY):
        lived = activity(life, day)
        time = day.start + 60 * np.arange(lived.met.size, dtype=np.int64)
        # The offset changes at full quarters of an hour.
        quarters, of_minute = np.unique(time // 900, return_inverse=True)
        offsets = np.array([life.timeline.offset_seconds(900 * int(quarter)) for quarter in quarters])
        moving = lived.worn & (lived.met >= 1.5) & ~lived.asleep & ~lived.lying
        kcal = np.where(lived.worn, body.active_kcal(life.person, lived), 0.0)
        steps = np.where(lived.worn, lived.steps, 0)
        parts.append((time, time + offsets[of_minute], lived.worn, steps, kcal, moving))
    time, clock, worn, steps, kcal, moving = (np.concatenate(column) for column in zip(*parts, strict=True))
    shown = clock // 86_400 == (date - dt.date(1970, 1, 1)).days
    return Watched(time[shown], clock[shown], worn[shown], steps[shown], kcal[shown], moving[shown])


def pulses_awake(samples: HeartRate) -> list[tuple[int, int]]:
    """The samples of neither training nor sleep, which have routes of their own."""
    keep = (samples.source != _WORKOUT) & (samples.source != _SLEEP)
    return list(zip(samples.time[keep].tolist(), samples.bpm[keep].tolist(), strict=True))
