"""Answers of Fitbit's old Web API as people kept them (a day, its minutes, nights, weighings), and research exports.

Times are the wall clock of where the person then was, without an offset; distances are km and weights kg. Each
function gives the answer of one request for local days that are over.
"""

from __future__ import annotations

import datetime as dt
import itertools
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from health_pipeline.sandbox import body
from health_pipeline.sandbox.activity import Flags, Ints, activity, heart_rate
from health_pipeline.sandbox.life import Life, Workout
from health_pipeline.sandbox.night import AWAKE, DEEP, EPOCH_SECONDS, LIGHT, REM, Night, nights
from health_pipeline.sandbox.noise import Floats

_ONE_DAY = dt.timedelta(days=1)
_LEVELS = {AWAKE: "wake", REM: "rem", LIGHT: "light", DEEP: "deep"}
#: Awakenings that are this short lie over the stage they interrupt, seconds.
_SHORT_SECONDS = 180
_PARTICIPANT = 1234567890


@dataclass(frozen=True, slots=True)
class _Minutes:
    """The minutes whose wall clock shows one date; what was off the wrist counts as nothing."""

    clock: list[dt.datetime]
    steps: Ints
    met: Floats
    kcal: Floats
    worn: Flags


def _minutes(life: Life, date: dt.date) -> _Minutes:
    clock: list[dt.datetime] = []
    parts = []
    for day in life.days(date - 2 * _ONE_DAY, date + _ONE_DAY):
        lived = activity(life, day)
        times = [life.timeline.local(day.start + 60 * minute) for minute in range(lived.met.size)]
        shown = np.array([time.date() == date for time in times])
        clock += [time for time in times if time.date() == date]
        steps = np.where(lived.worn, lived.steps, 0)
        kcal = np.where(lived.worn, body.active_kcal(life.person, lived), 0.0)
        parts.append([column[shown] for column in (steps, lived.met, kcal, lived.worn)])
    return _Minutes(clock, *(np.concatenate(column) for column in zip(*parts, strict=True)))


def _log_id(life: Life, *parts: object) -> int:
    return 10_000_000_000 + zlib.crc32(life.person.uuid("fitbit", *parts).encode())


def _local(life: Life, instant: int) -> dt.datetime:
    return life.timeline.local(instant).replace(tzinfo=None)


def _workouts(life: Life, date: dt.date) -> list[Workout]:
    days = life.days(date - _ONE_DAY, date)
    return [done for day in days for done in day.workouts if _local(life, done.start).date() == date]


def day_of_activities(life: Life, date: dt.date) -> dict[str, Any]:
    """`activities/date/{date}`: the workouts of a day and its sums. The sums do not say the day."""
    minutes = _minutes(life, date)
    moving = minutes.worn & (minutes.met >= 1.5)
    levels = [
        moving & (minutes.met >= low) & (minutes.met < high) for low, high in ((1.5, 3), (3, 6), (6, 99))
    ]
    lightly, fairly, very = (int(level.sum()) for level in levels)
    kcal, basal = round(float(minutes.kcal.sum())), round(body.basal_kcal(life.person, date))
    distance = round(int(minutes.steps.sum()) * body.step_length(life.person) / 1000, 2)
    resting = life.day(date)
    return {
        "activities": [_workout(life, done) for done in _workouts(life, date)],
        "goals": {"activeMinutes": 30, "caloriesOut": 2500, "distance": 8.05, "steps": 10_000},
        "summary": {
            "activeScore": -1,
            "activityCalories": round(1.3 * kcal),
            "caloriesBMR": basal,
            "caloriesOut": basal + kcal,
            "distances": [
                {"activity": "total", "distance": distance},
                {"activity": "tracker", "distance": distance},
            ],
            "fairlyActiveMinutes": fairly,
            "lightlyActiveMinutes": lightly,
            "marginalCalories": kcal,
            "restingHeartRate": round(resting.resting_heart_rate) if resting else None,
            "sedentaryMinutes": len(minutes.clock) - lightly - fairly - very,
            "steps": int(minutes.steps.sum()),
            "veryActiveMinutes": very,
        },
    }


def _workout(life: Life, done: Workout) -> dict[str, Any]:
    start, name = _local(life, done.start), done.activity.replace("_", " ").title()
    said: dict[str, Any] = {
        "activityId": 90_009,
        "activityParentId": 90_009,
        "activityParentName": name,
        "calories": round(body.workout_kcal(life.person, done)),
        "description": "",
        "duration": 1000 * (done.end - done.start),
        "hasStartTime": True,
        "isFavorite": False,
        "logId": _log_id(life, "workout", done.start),
        "name": name,
        "startDate": str(start.date()),
        "startTime": start.strftime("%H:%M"),
    }
    distance = body.workout_distance(done)
    return said if distance is None else said | {"distance": round(distance / 1000, 2)}


def steps_of_day(life: Life, date: dt.date, minutes: int) -> dict[str, Any]:
    """`activities/steps/date/{date}/1d/{minutes}min`: a total as text, and its parts."""
    seen = _minutes(life, date)
    parts: dict[str, int] = {}
    for clock, steps in zip(seen.clock, seen.steps.tolist(), strict=True):
        part = _part(clock, minutes)
        parts[part] = parts.get(part, 0) + steps
    return {
        "activities-steps": [{"dateTime": str(date), "value": str(int(seen.steps.sum()))}],
        "activities-steps-intraday": _dataset(parts, minutes),
    }


def heart_of_day(life: Life, date: dt.date, minutes: int) -> dict[str, Any]:
    """`activities/heart/date/{date}/1d/{minutes}min`: the pulse at rest, and the mean of each part with one."""
    pulses: dict[str, list[int]] = {}
    for day in life.days(date - _ONE_DAY, date + _ONE_DAY):
        samples = heart_rate(life, day)
        for time, bpm in zip(samples.time.tolist(), samples.bpm.tolist(), strict=True):
            local = _local(life, time)
            if local.date() == date:
                pulses.setdefault(_part(local, minutes), []).append(bpm)
    means = {part: round(sum(found) / len(found)) for part, found in sorted(pulses.items())}
    resting = life.day(date)
    value: dict[str, Any] = {"customHeartRateZones": [], "heartRateZones": []}
    return {
        "activities-heart": [
            {
                "dateTime": str(date),
                "value": value | ({"restingHeartRate": round(resting.resting_heart_rate)} if resting else {}),
            }
        ],
        "activities-heart-intraday": _dataset(means, minutes),
    }


def _part(clock: dt.datetime, minutes: int) -> str:
    return f"{clock.hour:02}:{clock.minute // minutes * minutes:02}:00"


def _dataset(parts: Mapping[str, int], minutes: int) -> dict[str, Any]:
    return {
        "dataset": [{"time": time, "value": value} for time, value in parts.items()],
        "datasetInterval": minutes,
        "datasetType": "minute",
    }


def sleeps(life: Life, start: dt.date, end: dt.date) -> dict[str, Any]:
    """`sleep/date/{start}/{end}` (version 1.2), the newest first."""
    found = [
        _sleep(life, night)
        for day in life.days(start, end)
        if day.night_worn
        for night in nights(life, day)
        if night.kind in ("main", "nap")
    ]
    return {"sleep": found[::-1]}


def _sleep(life: Life, night: Night) -> dict[str, Any]:
    edges = np.concatenate([[0], np.flatnonzero(np.diff(night.stages)) + 1, [night.stages.size]])
    runs = [
        (EPOCH_SECONDS * int(first), EPOCH_SECONDS * int(last - first), int(night.stages[first]))
        for first, last in itertools.pairwise(edges)
    ]

    def entry(after: int, seconds: int, level: str) -> dict[str, Any]:
        return {"dateTime": _time(life, night.bed + after), "level": level, "seconds": seconds}

    data: list[dict[str, Any]] = []
    short = []
    for after, seconds, stage in runs:
        level = _LEVELS[stage]
        if stage == AWAKE and seconds <= _SHORT_SECONDS and data:
            short.append(entry(after, seconds, level))
            level = data[-1]["level"]
        if data and data[-1]["level"] == level:
            data[-1]["seconds"] += seconds
        else:
            data.append(entry(after, seconds, level))
    asleep, awake = night.total_sleep // 60, night.awake_time // 60
    return {
        "dateOfSleep": str(_local(life, night.wake).date()),
        "duration": 1000 * (night.wake - night.bed),
        "efficiency": night.efficiency,
        "endTime": _time(life, night.wake),
        "infoCode": 0,
        "isMainSleep": night.kind == "main",
        "levels": {
            "data": data,
            "shortData": short,
            "summary": {
                name: {
                    "count": sum(run[2] == stage for run in runs),
                    "minutes": night.seconds_of(stage) // 60,
                    "thirtyDayAvgMinutes": 0,
                }
                for stage, name in _LEVELS.items()
            },
        },
        "logId": _log_id(life, "sleep", night.bed),
        "minutesAfterWakeup": 0,
        "minutesAsleep": asleep,
        "minutesAwake": awake,
        "minutesToFallAsleep": 0,
        "startTime": _time(life, night.bed),
        "timeInBed": asleep + awake,
        "type": "stages",
    }


def _time(life: Life, instant: int) -> str:
    return _local(life, instant).strftime("%Y-%m-%dT%H:%M:%S.000")


def weighings(life: Life, start: dt.date, end: dt.date) -> dict[str, Any]:
    """`body/log/weight/date/{start}/{end}`, kg."""
    found = []
    for day in life.days(start, end):
        weighed = body.weigh_in(life, day)
        if weighed is None:
            continue
        local = _local(life, weighed.instant)
        found.append(
            {
                "bmi": round(weighed.weight / life.person.height_m**2, 2),
                "date": str(local.date()),
                "fat": round(weighed.fat_percent, 1),
                "logId": 1000 * weighed.instant,
                "source": "Aria",
                "time": local.strftime("%H:%M:%S"),
                "weight": round(weighed.weight, 1),
            }
        )
    return {"weight": found}


def fitabase_daily(life: Life, start: dt.date, end: dt.date) -> str:
    """A research export's `dailyActivity`: the days of one person, month first."""
    lines = [
        "Id,ActivityDate,TotalSteps,TotalDistance,TrackerDistance,VeryActiveMinutes,FairlyActiveMinutes,"
        "LightlyActiveMinutes,SedentaryMinutes,Calories"
    ]
    for date in _dates(start, end):
        said = day_of_activities(life, date)["summary"]
        distance = said["distances"][0]["distance"]
        minutes = (
            said[f"{level}Minutes"] for level in ("veryActive", "fairlyActive", "lightlyActive", "sedentary")
        )
        values = (said["steps"], distance, distance, *minutes, said["caloriesOut"])
        lines.append(",".join(map(str, (_PARTICIPANT, f"{date.month}/{date.day}/{date.year}", *values))))
    return "\n".join(lines) + "\n"


def fitabase_hourly_steps(life: Life, start: dt.date, end: dt.date) -> str:
    """Its `hourlySteps`: hours of local days, 12-hour clock."""
    lines = ["Id,ActivityHour,StepTotal"]
    for date in _dates(start, end):
        for part in steps_of_day(life, date, 60)["activities-steps-intraday"]["dataset"]:
            hour = int(part["time"][:2])
            clock = f"{(hour + 11) % 12 + 1}:00:00 {'AM' if hour < 12 else 'PM'}"
            lines.append(f"{_PARTICIPANT},{date.month}/{date.day}/{date.year} {clock},{part['value']}")
    return "\n".join(lines) + "\n"


def fitabase_sleep(life: Life, start: dt.date, end: dt.date) -> str:
    """Its `sleepDay`: minutes asleep and in bed of the sleeps that ended on a day."""
    lines = ["Id,SleepDay,TotalSleepRecords,TotalMinutesAsleep,TotalTimeInBed"]
    for date in _dates(start, end):
        found = [one for one in sleeps(life, date, date)["sleep"] if one["dateOfSleep"] == str(date)]
        if found:
            sums = (
                len(found),
                sum(one["minutesAsleep"] for one in found),
                sum(one["timeInBed"] for one in found),
            )
            day = f"{date.month}/{date.day}/{date.year} 12:00:00 AM"
            lines.append(",".join(map(str, (_PARTICIPANT, day, *sums))))
    return "\n".join(lines) + "\n"


def _dates(start: dt.date, end: dt.date) -> list[dt.date]:
    return [start + dt.timedelta(days=number) for number in range((end - start).days + 1)]
