"""What Health Auto Export, the iOS app, writes of somebody's Apple Health: as measured, or summed up by the day.

Units are as the person has set them (pounds, kilometres, kilojoules); times have the offset of where the phone was.
"""

from __future__ import annotations

from typing import Any

from health_pipeline.sandbox import body
from health_pipeline.sandbox.life import Workout
from health_pipeline.sandbox.night import AWAKE, DEEP, LIGHT, REM, Night
from health_pipeline.sandbox.recorded import Recorded, stage_runs

_STAGES = {DEEP: "Deep", LIGHT: "Core", REM: "REM", AWAKE: "Awake"}
_POUNDS_PER_KG = 1 / 0.45359237
_WATCH = "Ben\u2019s Apple\u00a0Watch"


def export(seen: Recorded, *, by_day: bool) -> dict[str, Any]:
    """Steps, pulse, weight, sleep and workouts."""
    metrics = [
        _metric("step_count", "count", _steps(seen, by_day=by_day)),
        _metric("heart_rate", "count/min", _pulse(seen, by_day=by_day)),
        _metric(
            "resting_heart_rate",
            "count/min",
            [
                {"date": _time(seen, seen.midnight(date)), "qty": value, "source": _WATCH}
                for date in seen.dates
                if (value := seen.resting_pulse(date)) is not None
            ],
        ),
        _metric(
            "weight_body_mass",
            "lb",
            [
                {
                    "date": _time(seen, weighed.instant),
                    "qty": round(weighed.weight * _POUNDS_PER_KG, 4),
                    "source": "Scale",
                }
                for weighed in seen.weighings
            ],
        ),
        _metric(
            "body_fat_percentage",
            "%",
            [
                {"date": _time(seen, weighed.instant), "qty": weighed.fat_percent, "source": "Scale"}
                for weighed in seen.weighings
            ],
        ),
        _metric(
            "blood_pressure",
            "mmHg",
            [
                {
                    "date": _time(seen, weighed.instant),
                    "systolic": weighed.systolic,
                    "diastolic": weighed.diastolic,
                    "source": "Cuff",
                }
                for weighed in seen.weighings
            ],
        ),
        _metric(
            "sleep_analysis",
            "hr",
            [_night(seen, night) for night in seen.nights]
            if by_day
            else [segment for night in seen.nights for segment in _segments(seen, night)],
        ),
        _metric("walking_speed", "km/hr", [{"date": _time(seen, seen.midnight(seen.dates[0])), "qty": 4.8}]),
    ]
    return {"data": {"metrics": metrics, "workouts": [_workout(seen, done) for done in seen.workouts]}}


def _metric(name: str, units: str, data: list[dict[str, Any]]) -> dict[str, Any]:
    return {"name": name, "units": units, "data": data}


def _time(seen: Recorded, instant: int) -> str:
    return seen.local(instant).strftime("%Y-%m-%d %H:%M:%S %z")


def _steps(seen: Recorded, *, by_day: bool) -> list[dict[str, Any]]:
    if by_day:
        return [
            {"date": _time(seen, seen.midnight(date)), "qty": steps, "source": _WATCH}
            for date, steps in sorted(seen.steps_by_day().items())
        ]
    return [
        # The app has a sum of each minute.
        {"date": _time(seen, at - at % 60), "qty": steps, "source": _WATCH}
        for at, steps in zip(seen.minutes.tolist(), seen.steps.tolist(), strict=True)
    ]


def _pulse(seen: Recorded, *, by_day: bool) -> list[dict[str, Any]]:
    if not by_day:
        return [
            {"date": _time(seen, at), "Min": bpm, "Avg": bpm, "Max": bpm, "source": _WATCH}
            for at, bpm in zip(seen.pulse_at.tolist(), seen.pulse.tolist(), strict=True)
        ]
    found: dict[int, list[int]] = {}
    for at, bpm in zip(seen.pulse_at.tolist(), seen.pulse.tolist(), strict=True):
        found.setdefault(seen.midnight(seen.local(at).date()), []).append(bpm)
    return [
        {
            "date": _time(seen, day),
            "Min": min(pulses),
            "Avg": round(sum(pulses) / len(pulses), 3),
            "Max": max(pulses),
            "source": _WATCH,
        }
        for day, pulses in found.items()
    ]


def _segments(seen: Recorded, night: Night) -> list[dict[str, Any]]:
    return [
        {
            "startDate": _time(seen, night.bed + after),
            "endDate": _time(seen, night.bed + after + seconds),
            "qty": round(seconds / 3600, 6),
            "value": _STAGES[stage],
            "source": _WATCH,
        }
        for after, seconds, stage in stage_runs(night)
    ]


def _night(seen: Recorded, night: Night) -> dict[str, Any]:
    hours = {
        name: night.seconds_of(stage) / 3600
        for name, stage in (("deep", DEEP), ("core", LIGHT), ("rem", REM), ("awake", AWAKE))
    }
    return {
        "date": str(seen.local(night.wake).date()),
        "totalSleep": night.total_sleep / 3600,
        "asleep": 0,
        **hours,
        "sleepStart": _time(seen, night.bed),
        "sleepEnd": _time(seen, night.wake),
        "inBed": (night.wake - night.bed) / 3600,
        "inBedStart": _time(seen, night.bed),
        "inBedEnd": _time(seen, night.wake),
        "source": _WATCH,
    }


def _workout(seen: Recorded, done: Workout) -> dict[str, Any]:
    pulse, distance = seen.pulse_of(done), body.workout_distance(done)
    said: dict[str, Any] = {
        "id": seen.person.uuid("health_auto_export", done.start).upper(),
        "name": done.activity.replace("_", " ").title(),
        "start": _time(seen, done.start),
        "end": _time(seen, done.end),
        "duration": float(done.end - done.start),
        "activeEnergyBurned": {"qty": round(4.184 * seen.kcal(done), 3), "units": "kJ"},
    }
    if distance is not None:
        said["distance"] = {"qty": distance / 1000, "units": "km"}
    if pulse is not None:
        said["avgHeartRate"] = {"qty": pulse[0], "units": "bpm"}
        said["maxHeartRate"] = {"qty": pulse[1], "units": "bpm"}
    return said
