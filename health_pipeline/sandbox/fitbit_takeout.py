"""Fitbit's part of a Google Takeout: JSON of the older kind, and CSV of the newer kind for the last days.

The JSON's series are by the clock of UTC, a file of heart rate holding one local day, and do not say so; its sleeps
and weighings are by the clock on the wall, its weights in pounds.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import orjson

from health_pipeline.sandbox import fitbit
from health_pipeline.sandbox.activity import Ints
from health_pipeline.sandbox.archives import pack
from health_pipeline.sandbox.night import AWAKE, DEEP, LIGHT, REM
from health_pipeline.sandbox.recorded import Recorded, stage_runs

_POUNDS_PER_KG = 1 / 0.45359237
_STAGES = {DEEP: "DEEP", LIGHT: "LIGHT", REM: "REM", AWAKE: "AWAKE"}
_ROOT = "Takeout/Fitbit"


def heart_rate_of_day(seen: Recorded, date: dt.date) -> list[dict[str, Any]]:
    """`heart_rate-YYYY-MM-DD.json`."""
    rows = _of_day(seen, seen.pulse_at, date)
    return [
        {"dateTime": _us(at), "value": {"bpm": bpm, "confidence": 3}}
        for at, bpm in zip(seen.pulse_at[rows].tolist(), seen.pulse[rows].tolist(), strict=True)
    ]


def steps(seen: Recorded) -> list[dict[str, Any]]:
    """`steps-YYYY-MM-DD.json`: minutes, those of nothing among them."""
    found = [
        {"dateTime": _us(at), "value": str(count)}
        for at, count in zip(seen.minutes.tolist(), seen.steps.tolist(), strict=True)
    ]
    return [*found, {"dateTime": _us(seen.midnight(seen.dates[0]) + 60), "value": "0"}]


def resting_heart_rate(seen: Recorded) -> list[dict[str, Any]]:
    """`resting_heart_rate-YYYY-MM-DD.json`; a day without has a value of 0 and no date."""
    found: list[dict[str, Any]] = []
    for date in seen.dates:
        value = seen.resting_pulse(date)
        said = None if value is None else f"{date:%m/%d/%y}"
        found.append(
            {
                "dateTime": f"{date:%m/%d/%y} 00:00:00",
                "value": {"date": said, "value": float(value or 0), "error": 6.8},
            }
        )
    return [*found, {"dateTime": "01/01/20 00:00:00", "value": {"date": None, "value": 0.0, "error": 0.0}}]


def sleeps(seen: Recorded) -> list[dict[str, Any]]:
    """`sleep-YYYY-MM-DD.json`: as the old Web API, but for one name."""
    found = fitbit.sleeps(seen.life, seen.dates[0], seen.dates[-1])["sleep"]
    kept = [
        each
        for each in found
        if seen.dates[0] <= dt.date.fromisoformat(each["dateOfSleep"]) <= seen.dates[-1]
    ]
    return [
        {("mainSleep" if name == "isMainSleep" else name): value for name, value in each.items()}
        for each in kept
    ]


def weights(seen: Recorded) -> list[dict[str, Any]]:
    """`weight-YYYY-MM-DD.json`, pounds."""
    return [
        {
            "logId": 1000 * weighed.instant,
            "weight": round(weighed.weight * _POUNDS_PER_KG, 1),
            "bmi": round(weighed.weight / seen.person.height_m**2, 2),
            "fat": weighed.fat_percent,
            "date": f"{seen.local(weighed.instant):%m/%d/%y}",
            "time": f"{seen.local(weighed.instant):%H:%M:%S}",
            "source": "Aria",
        }
        for weighed in seen.weighings
    ]


def exercises(seen: Recorded) -> list[dict[str, Any]]:
    """`exercise-N.json`."""
    return [
        {
            "logId": 50_000_000_000 + done.start // 60,
            "activityName": done.activity.replace("_", " ").title(),
            "calories": round(seen.kcal(done)),
            "duration": 1000 * (done.end - done.start),
            "activeDuration": 1000 * (done.end - done.start),
            "startTime": _us(done.start),
        }
        for done in seen.workouts
    ]


def archive(seen: Recorded, csv_from: dt.date) -> bytes:
    """The zip, with CSV of the days from `csv_from` on beside the JSON of all."""
    export, google = f"{_ROOT}/Global Export Data", f"{_ROOT}/Physical Activity_GoogleData"
    health = f"{_ROOT}/Health Fitness Data_GoogleData"
    first = seen.dates[0]
    members = {
        "Takeout/archive_browser.html": b"<html></html>",
        **{
            f"{export}/heart_rate-{date}.json": orjson.dumps(heart_rate_of_day(seen, date))
            for date in seen.dates
        },
        f"{export}/steps-{first}.json": orjson.dumps(steps(seen)),
        f"{export}/resting_heart_rate-{first}.json": orjson.dumps(resting_heart_rate(seen)),
        f"{export}/sleep-{first}.json": orjson.dumps(sleeps(seen)),
        f"{export}/weight-{first}.json": orjson.dumps(weights(seen)),
        f"{export}/exercise-0.json": orjson.dumps(exercises(seen)),
    }
    # Files of the newer kind are cut at midnight in UTC.
    since = round(dt.datetime(csv_from.year, csv_from.month, csv_from.day, tzinfo=dt.UTC).timestamp())
    late = seen.minutes >= since
    members[f"{google}/steps_{csv_from}.csv"] = _csv(
        "timestamp,steps,data source",
        [
            f"{_iso(at)},{count},Fitbit"
            for at, count in zip(seen.minutes[late].tolist(), seen.steps[late].tolist(), strict=True)
        ],
    )
    late = seen.pulse_at >= since
    members[f"{google}/heart_rate_{csv_from}.csv"] = _csv(
        "timestamp,beats per minute,data source",
        [
            f"{_iso(at)},{bpm}.0,Fitbit"
            for at, bpm in zip(seen.pulse_at[late].tolist(), seen.pulse[late].tolist(), strict=True)
        ],
    )
    nights = [night for night in seen.nights if seen.local(night.wake).date() >= csv_from]
    members[f"{health}/UserSleepStages_{csv_from}.csv"] = _csv(
        "sleep_id,sleep_stage_id,sleep_stage_type,start_utc_offset,sleep_stage_start,end_utc_offset,sleep_stage_end",
        [
            f"{night.bed},{number},{_STAGES[stage]},{_offset(seen, night.bed)},{_iso(night.bed + after)},"
            f"{_offset(seen, night.bed)},{_iso(night.bed + after + seconds)}"
            for night in nights
            for number, (after, seconds, stage) in enumerate(stage_runs(night))
        ],
    )
    members[f"{health}/UserSleeps_{csv_from}.csv"] = _csv(
        "sleep_id,sleep_type,minutes_in_sleep_period,minutes_to_fall_asleep,minutes_asleep,minutes_awake,"
        "start_utc_offset,sleep_start,end_utc_offset,sleep_end,data_source",
        [
            f"{night.bed},STAGES,{(night.wake - night.bed) // 60},{night.latency // 60},{night.total_sleep / 60},"
            f"{night.awake_time / 60},{_offset(seen, night.bed)},{_iso(night.bed)},{_offset(seen, night.wake)},"
            f"{_iso(night.wake)},PASSIVELY_MEASURED"
            for night in nights
        ],
    )
    return pack(members)


def _of_day(seen: Recorded, times: Ints, date: dt.date) -> np.ndarray[Any, np.dtype[np.bool_]]:
    within: np.ndarray[Any, np.dtype[np.bool_]] = (times >= seen.midnight(date)) & (
        times < seen.midnight(date + dt.timedelta(days=1))
    )
    return within


def _us(at: int) -> str:
    return dt.datetime.fromtimestamp(at, dt.UTC).strftime("%m/%d/%y %H:%M:%S")


def _iso(at: int) -> str:
    return dt.datetime.fromtimestamp(at, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _offset(seen: Recorded, at: int) -> str:
    minutes = seen.offset_minutes(at)
    return f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}"


def _csv(header: str, rows: list[str]) -> bytes:
    return "\n".join([header, *rows, ""]).encode()
