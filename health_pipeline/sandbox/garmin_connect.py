"""Garmin Connect's own API as libraries keep its answers, and the zip of an account export with its FIT files.

Epoch milliseconds named `Local` are the wall clock as if it were UTC. The export has other units than the API:
centimetres, milliseconds, and calories that are 4.19 to the kilocalorie.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

import orjson

from health_pipeline.sandbox import body
from health_pipeline.sandbox.archives import pack
from health_pipeline.sandbox.fit import workout_fit
from health_pipeline.sandbox.life import Workout
from health_pipeline.sandbox.night import AWAKE, DEEP, LIGHT, REM, Night
from health_pipeline.sandbox.recorded import Recorded, stage_runs

_LEVELS = {DEEP: 0, LIGHT: 1, REM: 2, AWAKE: 3}
_USER = 81_234_567


def heart_rate_of_day(seen: Recorded, date: dt.date) -> dict[str, Any]:
    """`wellness-service/wellness/dailyHeartRate`: a day's samples, and null where the watch found none."""
    first, last = seen.midnight(date), seen.midnight(date + dt.timedelta(days=1))
    of_day = (seen.pulse_at >= first) & (seen.pulse_at < last)
    values: list[list[int | None]] = [
        [1000 * at, bpm]
        for at, bpm in zip(seen.pulse_at[of_day].tolist(), seen.pulse[of_day].tolist(), strict=True)
    ]
    return {
        "userProfilePK": _USER,
        "calendarDate": str(date),
        **_edges(seen, first, last),
        "maxHeartRate": max((bpm for _, bpm in values if bpm is not None), default=None),
        "minHeartRate": min((bpm for _, bpm in values if bpm is not None), default=None),
        "restingHeartRate": seen.resting_pulse(date),
        "lastSevenDaysAvgRestingHeartRate": 50,
        "heartRateValueDescriptors": [{"key": "timestamp", "index": 0}, {"key": "heartrate", "index": 1}],
        "heartRateValues": [*values, [1000 * last - 120_000, None]],
    }


def _edges(seen: Recorded, first: int, last: int) -> dict[str, str]:
    return {
        f"{edge}Timestamp{clock}": moment.strftime("%Y-%m-%dT%H:%M:%S.0")
        for edge, instant in (("start", first), ("end", last))
        for clock, moment in (
            ("GMT", dt.datetime.fromtimestamp(instant, dt.UTC)),
            ("Local", seen.local(instant)),
        )
    }


def sleep_of_day(seen: Recorded, night: Night) -> dict[str, Any]:
    """`wellness-service/wellness/dailySleepData`."""
    return {
        "dailySleepDTO": {
            "id": 1000 * night.bed,
            "userProfilePK": _USER,
            "calendarDate": str(seen.local(night.wake).date()),
            "sleepTimeSeconds": night.total_sleep,
            "napTimeSeconds": 0,
            "sleepWindowConfirmed": True,
            "sleepWindowConfirmationType": "enhanced_confirmed_final",
            **{
                f"sleep{edge}Timestamp{clock}": 1000 * (instant + shift)
                for edge, instant in (("Start", night.bed), ("End", night.wake))
                for clock, shift in (("GMT", 0), ("Local", 60 * seen.offset_minutes(instant)))
            },
            "unmeasurableSleepSeconds": 0,
            **_stage_seconds(night),
            "deviceRemCapable": True,
            "retro": False,
            "sleepFromDevice": True,
            "averageRespirationValue": round(night.breath),
        },
        "sleepMovement": [],
        "remSleepData": True,
        "sleepLevels": [
            {
                "startGMT": _gmt(night.bed + after),
                "endGMT": _gmt(night.bed + after + seconds),
                "activityLevel": float(_LEVELS[stage]),
            }
            for after, seconds, stage in stage_runs(night)
        ],
    }


def _stage_seconds(night: Night) -> dict[str, int]:
    return {
        f"{name}SleepSeconds": night.seconds_of(stage)
        for name, stage in (("deep", DEEP), ("light", LIGHT), ("rem", REM), ("awake", AWAKE))
    }


def _gmt(instant: int) -> str:
    return dt.datetime.fromtimestamp(instant, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.0")


def steps_of_days(seen: Recorded) -> list[dict[str, Any]]:
    """`usersummary-service/stats/steps/daily`."""
    steps = seen.steps_by_day()
    return [
        {
            "calendarDate": str(date),
            "totalSteps": steps.get(date, 0),
            "totalDistance": round(steps.get(date, 0) * body.step_length(seen.person)),
            "stepGoal": 8000,
        }
        for date in seen.dates
    ]


def activities(seen: Recorded) -> list[dict[str, Any]]:
    """`activitylist-service/activities/search/activities`: seconds, metres, kilocalories."""
    found = []
    for done in seen.workouts:
        pulse, distance = seen.pulse_of(done), body.workout_distance(done)
        found.append(
            {
                "activityId": 20_000_000_000 + done.start // 60,
                "activityName": done.activity.replace("_", " ").title(),
                "startTimeLocal": seen.local(done.start).strftime("%Y-%m-%d %H:%M:%S"),
                "startTimeGMT": dt.datetime.fromtimestamp(done.start, dt.UTC).strftime("%Y-%m-%d %H:%M:%S"),
                "activityType": {"typeId": 1, "typeKey": done.activity},
                "distance": distance,
                "duration": float(done.end - done.start),
                "elapsedDuration": float(done.end - done.start),
                "calories": seen.kcal(done),
                "averageHR": None if pulse is None else float(pulse[0]),
                "maxHR": None if pulse is None else float(pulse[1]),
                "parent": False,
            }
        )
    return found


def weighings(seen: Recorded) -> dict[str, Any]:
    """`weight-service/weight/range`: grams."""
    return {
        "dailyWeightSummaries": [
            {
                "summaryDate": str(seen.local(weighed.instant).date()),
                "numOfWeightEntries": 1,
                "allWeightMetrics": [
                    {
                        "samplePk": 1000 * weighed.instant + 7,
                        "date": 1000 * (weighed.instant + 60 * seen.offset_minutes(weighed.instant)),
                        "calendarDate": str(seen.local(weighed.instant).date()),
                        "weight": round(1000 * weighed.weight),
                        "bmi": round(weighed.weight / seen.person.height_m**2, 1),
                        "bodyFat": weighed.fat_percent,
                        "bodyWater": round(100 * weighed.water / weighed.weight, 1),
                        "boneMass": round(1000 * weighed.bone),
                        "muscleMass": round(1000 * weighed.muscle),
                        "sourceType": "INDEX_SCALE",
                        "timestampGMT": 1000 * weighed.instant,
                    }
                ],
            }
            for weighed in seen.weighings
        ]
    }


def account_export(seen: Recorded) -> bytes:
    """The zip that Garmin sends who asks for their data."""
    steps = seen.steps_by_day()
    days = [
        {
            "userProfilePK": _USER,
            "calendarDate": str(date),
            "uuid": seen.person.uuid("garmin_connect", date).replace("-", ""),
            "durationInMilliseconds": 86_400_000,
            "totalSteps": steps.get(date, 0),
            "totalDistanceMeters": round(steps.get(date, 0) * body.step_length(seen.person)),
            "restingHeartRate": 50,
            "currentDayRestingHeartRate": seen.resting_pulse(date),
            "includesWellnessData": True,
            "allDayStress": {"aggregatorList": [{"type": "TOTAL", "averageStressLevel": 31}]},
        }
        for date in seen.dates
    ]
    nights = [
        {
            "sleepStartTimestampGMT": _gmt(night.bed),
            "sleepEndTimestampGMT": _gmt(night.wake),
            "calendarDate": str(seen.local(night.wake).date()),
            "sleepWindowConfirmationType": "ENHANCED_CONFIRMED_FINAL",
            **_stage_seconds(night),
            "unmeasurableSeconds": 0,
            "averageRespiration": round(night.breath, 1),
        }
        for night in seen.nights
        if night.kind == "main"
    ]
    listed = [_exported(seen, done) for done in seen.workouts]
    bodies = [
        {
            "metaData": {
                "calendarDate": seen.local(weighed.instant).strftime("%Y-%m-%dT%H:%M:%S.0"),
                "sequence": number,
            },
            "version": 1000 * weighed.instant,
            "weight": {"weight": round(1000 * weighed.weight), "sourceType": "INDEX_SCALE"},
        }
        for number, weighed in enumerate(seen.weighings)
    ]
    first, last = seen.dates[0], seen.dates[-1]
    wellness = "DI_CONNECT/DI-Connect-Wellness"
    fits = {f"ben@example.com_{done.start}.fit": workout_fit(seen, done) for done in seen.workouts}
    return pack(
        {
            "DI_CONNECT/DI-Connect-User/user_profile.json": orjson.dumps({"locale": "en"}),
            f"DI_CONNECT/DI-Connect-Aggregator/UDSFile_{first}_{last}.json": orjson.dumps(days),
            f"{wellness}/{first}_{last}_{_USER}_sleepData.json": orjson.dumps(nights),
            f"{wellness}/{_USER}_userBioMetrics.json": orjson.dumps(bodies),
            "DI_CONNECT/DI-Connect-Fitness/ben_0_summarizedActivities.json": orjson.dumps(
                [{"summarizedActivitiesExport": listed}]
            ),
            "DI_CONNECT/DI-Connect-Uploaded-Files/UploadedFiles_0-_Part1.zip": pack(fits),
        }
    )


def _exported(seen: Recorded, done: Workout) -> dict[str, Any]:
    pulse, distance = seen.pulse_of(done), body.workout_distance(done)
    return {
        "activityId": 20_000_000_000 + done.start // 60,
        "name": done.activity.replace("_", " ").title(),
        "activityType": done.activity,
        "beginTimestamp": 1000 * done.start,
        "startTimeGmt": 1000.0 * done.start,
        "startTimeLocal": 1000.0 * (done.start + 60 * seen.offset_minutes(done.start)),
        "duration": 1000.0 * (done.end - done.start),
        "elapsedDuration": 1000.0 * (done.end - done.start),
        "distance": None if distance is None else 100 * distance,
        "calories": round(4.19 * seen.kcal(done), 2),
        "avgHr": None if pulse is None else float(pulse[0]),
        "maxHr": None if pulse is None else float(pulse[1]),
        "parent": False,
    }
