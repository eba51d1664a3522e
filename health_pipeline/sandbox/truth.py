"""What each person really did, to hold the pipeline's answers against."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np

from health_pipeline.sandbox.activity import activity
from health_pipeline.sandbox.glucose import meals, readings
from health_pipeline.sandbox.life import Day, Life, life_of
from health_pipeline.sandbox.night import AWAKE, DEEP, LIGHT, REM, nights
from health_pipeline.sandbox.people import Person


def truth(person: Person, start: dt.date, end: dt.date) -> list[dict[str, Any]]:
    """One record a lived day from `start` to `end`, both included, whether or not a device saw it.

    `date` is the day's local date: effort, steps and workouts from 04:00 to 04:00, the night that ended on
    it, glucose from midnight to midnight. Durations in seconds, heart rates in bpm, HRV (RMSSD) in ms,
    temperature as °C from the person's own mean, glucose in mg/dL. `steps_recorded` and `night_worn` are what
    the ring could see. Instants are ISO 8601 with the offset then in force.
    """
    life = life_of(person)
    return [_record(life, day) for day in life.days(start, end)]


def _record(life: Life, day: Day) -> dict[str, Any]:
    local = life.timeline.local
    lived = activity(life, day)
    slept = nights(life, day)
    main = next(night for night in slept if night.kind == "main")
    zone = life.timeline.zone_at(day.start)
    record: dict[str, Any] = {
        "date": day.date.isoformat(),
        "zone": zone.key,
        "utc_offset_seconds": life.timeline.offset_seconds(day.start),
        "day_seconds": day.end - day.start,
        "steps": int(lived.steps.sum()),
        "steps_recorded": lived.recorded_steps,
        "wear_seconds": int(lived.worn.sum()) * 60,
        "training_load": round(day.load, 2),
        "workouts": [
            {
                "activity": workout.activity,
                "start": local(workout.start).isoformat(),
                "end": local(workout.end).isoformat(),
                "met": workout.met,
            }
            for workout in day.workouts
        ],
        "illness": round(day.illness, 3),
        "jet_lag_hours": round(day.jet_lag_hours, 2),
        "night_worn": day.night_worn,
        "bedtime_start": local(main.bed).isoformat(),
        "bedtime_end": local(main.wake).isoformat(),
        "time_in_bed_seconds": main.time_in_bed,
        "sleep_seconds": main.total_sleep,
        "deep_sleep_seconds": main.seconds_of(DEEP),
        "light_sleep_seconds": main.seconds_of(LIGHT),
        "rem_sleep_seconds": main.seconds_of(REM),
        "awake_seconds": main.awake_time,
        "nap_seconds": sum(int((n.stages != AWAKE).sum()) * 30 for n in slept if n.kind in ("nap", "flight")),
        "resting_heart_rate": main.lowest_heart_rate,
        "sleep_heart_rate": main.average_heart_rate,
        "hrv": main.average_hrv,
        "respiratory_rate": main.breath,
        "temperature_deviation": round(day.temperature, 2),
    }
    if life.person.cgm is not None:
        record |= _glucose(life, day)
    return record


def _glucose(life: Life, day: Day) -> dict[str, Any]:
    seen = readings(life.person, day.date, day.date)
    values = np.clip(seen.mg_dl, 39, 401)
    return {
        "glucose_readings": int(values.size),
        "glucose_mean_mg_dl": round(float(values.mean()), 2) if values.size else None,
        "glucose_min_mg_dl": int(values.min()) if values.size else None,
        "glucose_max_mg_dl": int(values.max()) if values.size else None,
        "carbs_g": sum(meal.carbs for meal in meals(life, day)),
    }
