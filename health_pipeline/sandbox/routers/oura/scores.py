"""Scores and contributors as a ring's app makes them: whole numbers from 1 to 100, higher is better.

The vendor's formulas are not public. These have the right direction, range and parts, no more.
"""

from __future__ import annotations

import datetime as dt
import math
from statistics import fmean, pstdev
from typing import Any

import numpy as np

from health_pipeline.sandbox.activity import Activity
from health_pipeline.sandbox.life import Day, Life
from health_pipeline.sandbox.night import DEEP, REM, SAMPLE_SECONDS, Night

Contributors = dict[str, int]


def _points(value: float) -> int:
    return max(1, min(100, round(value)))


def _weighted(contributors: Contributors, weights: dict[str, float]) -> int:
    total = sum(weights.values())
    return _points(sum(contributors[name] * weight for name, weight in weights.items()) / total)


def _before(life: Life, day: Day, days: int) -> list[Day]:
    one = dt.timedelta(days=1)
    return life.days(day.date - days * one, day.date - one)


def sleep(life: Life, night: Night) -> tuple[int, Contributors]:
    """Score of a main night and its seven contributors."""
    middle = life.timeline.local((night.bed + night.wake) / 2)
    hours = (middle.hour + middle.minute / 60 + 12) % 24 - 12
    restless = float((night.movement > 1).mean())
    contributors = {
        "deep_sleep": _points(100 * night.seconds_of(DEEP) / 5400),
        "efficiency": _points(2.6 * (night.efficiency - 58)),
        "latency": _points(100 - abs(night.latency / 60 - 12) * 1.4),
        "rem_sleep": _points(100 * night.seconds_of(REM) / 7000),
        "restfulness": _points(100 - 260 * restless),
        "timing": _points(100 - 14 * max(0.0, abs(hours - 2.5) - 0.5)),
        "total_sleep": _points(100 * night.total_sleep / 28_000),
    }
    weights = {
        "total_sleep": 0.35,
        "efficiency": 0.1,
        "restfulness": 0.15,
        "rem_sleep": 0.1,
        "deep_sleep": 0.1,
        "latency": 0.1,
        "timing": 0.1,
    }
    return _weighted(contributors, weights), contributors


def temperature_trend(life: Life, day: Day) -> float:
    """Mean deviation of the last three nights (°C)."""
    return round(fmean(d.temperature for d in [*_before(life, day, 2), day]), 2)


def readiness(life: Life, day: Day, night: Night) -> tuple[int, Contributors]:
    """Readiness of the morning and its nine contributors."""
    month = _before(life, day, 14) or [day]
    week = [*month[-4:], day]
    yesterday = month[-1]
    heart = day.resting_heart_rate - fmean(d.resting_heart_rate for d in month)
    hrv = math.log(fmean(d.hrv for d in week)) - math.log(fmean(d.hrv for d in month))
    load = fmean(d.load for d in month)
    beds = [(d.start - d.bed) / 60 for d in [*month, day]]
    found = night.heart_rate
    settled = (found.size - int(np.nanargmin(found))) * SAMPLE_SECONDS / 3600 if found.size else 0.0
    contributors = {
        "activity_balance": _points(94 - 0.4 * max(0.0, fmean(d.load for d in month[-5:]) - load)),
        "body_temperature": _points(99 - 75 * max(0.0, abs(day.temperature) - 0.2)),
        "hrv_balance": _points(84 + 110 * hrv),
        "previous_day_activity": _points(98 - 0.25 * abs(yesterday.load - load)),
        "previous_night": sleep(life, night)[0],
        "recovery_index": _points(40 + 14 * settled),
        "resting_heart_rate": _points(92 - 8 * heart),
        "sleep_balance": _points(100 * fmean(d.wake - d.bed for d in month) / 29_500),
        "sleep_regularity": _points(112 - 0.6 * pstdev(beds)),
    }
    return _weighted(
        contributors, dict.fromkeys(contributors, 1.0) | {"resting_heart_rate": 2.0}
    ), contributors


def activity(life: Life, day: Day, lived: Activity, high: int, medium: int) -> tuple[int, Contributors]:
    """Activity score and its six contributors, from seconds of high and medium effort."""
    week = [*_before(life, day, 6), day]
    training = [d.load for d in week]
    steps = lived.recorded_steps / life.person.daily_steps
    contributors = {
        "meet_daily_targets": _points(100 * min(1.0, 0.3 + 0.7 * steps)),
        "move_every_hour": _points(100 - 25 * day.illness - 3 * (day.index % 5)),
        "recovery_time": _points(100 if min(training) < 40 else 82 - 0.1 * min(training)),
        "stay_active": _points(40 + (high + medium) / 130),
        "training_frequency": _points(22 * sum(load > 20 for load in training) + 20),
        "training_volume": _points(30 + sum(training) / 5),
    }
    return _weighted(contributors, dict.fromkeys(contributors, 1.0) | {"stay_active": 2.0}), contributors


def resilience(life: Life, day: Day) -> tuple[str, dict[str, float]]:
    """Long-term level and its contributors (0 to 100)."""
    month = [*_before(life, day, 14), day]
    hrv = fmean(d.hrv for d in month) / life.person.hrv_ms
    rested = fmean(d.wake - d.bed for d in month) / 29_500
    sick = fmean(d.illness for d in month)
    contributors = {
        "sleep_recovery": round(max(0.0, min(100.0, 70 * rested * hrv)), 1),
        "daytime_recovery": round(max(0.0, min(100.0, 62 * hrv - 30 * sick)), 1),
        "stress": round(max(0.0, min(100.0, 66 * hrv - 25 * sick)), 1),
    }
    levels = ("limited", "adequate", "solid", "strong", "exceptional")
    return levels[max(0, min(4, int((fmean(contributors.values()) - 22) // 13)))], contributors


def stress(day: Day, lived: Activity) -> dict[str, Any]:
    """Seconds of high stress and high recovery, in quarters of an hour, and the word for the day."""
    busy = day.date.weekday() < 5
    strain = 3 + 4 * busy + 9 * day.illness + abs(day.jet_lag_hours) + 3 * ((day.index * 7919) % 10) / 10
    ease = 9 - 4 * busy - 7 * day.illness + day.load / 60 + 4 * ((day.index * 104_729) % 10) / 10
    worn = float(lived.worn.mean())
    high, low = (900 * max(0, round(quarters * worn)) for quarters in (strain, ease))
    summary = "stressful" if high > 3 * low + 3600 else "restored" if low > 1.5 * high else "normal"
    return {"stress_high": high, "recovery_high": low, "day_summary": summary}
