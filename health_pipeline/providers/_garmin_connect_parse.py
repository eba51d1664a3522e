"""Answers of Garmin Connect's own API, and the files of an account export, recognised by what is in them.

`…GMT` is UTC, as epoch milliseconds or as a clock without an offset; `…Local` is the wall clock beside it, written
as if it were UTC. `calendarDate` is a local day. Weights are grams. In an account export an activity's distance
and climb are centimetres, its durations milliseconds, and its calories 4.19 to the kilocalorie.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from health_pipeline.providers._export_records import (
    Collector,
    Fields,
    Found,
    Refused,
    Row,
    Skipped,
    are_plausible,
    iso_time,
    measured,
    offset_between,
    samples,
    seconds_of,
)

_CALORIES_PER_KCAL = 4.19
_SLEEP_LEVELS = {0: "deep", 1: "light", 2: "rem", 3: "awake"}
_MINUTE = 60_000_000


def read_body(collector: Collector, body: Any, place: str = "$") -> None:
    """All records of an answer or of an export's file."""
    if isinstance(body, dict) and body.keys() == {"path", "body"}:
        # An answer kept with the path it was asked for.
        body = body["body"]
        place = f"{place}.body"
    if isinstance(body, list):
        if body and all(isinstance(each, dict) and "summarizedActivitiesExport" in each for each in body):
            for index, each in enumerate(body):
                _read_list(collector, each["summarizedActivitiesExport"], f"{place}[{index}]", "activity")
            return
        collector.take(body, place, lambda record: _item(collector, record))
        return
    for name in ("hrvSummaries", "dateWeightList", "dailyWeightSummaries", "summarizedActivitiesExport"):
        if isinstance(body, dict) and name in body:
            _read_list(collector, body[name], f"{place}.{name}", name)
            return
    if isinstance(body, dict) and any("TrainingStatus" in name for name in body):
        _training_status(collector, body, place)
        return
    collector.take_one(body, place, lambda record: _item(collector, record))


def _read_list(collector: Collector, found: Any, place: str, name: str) -> None:
    if not isinstance(found, list):
        collector.take_one(found, place, _wrong)
    elif name == "dailyWeightSummaries":
        for index, day in enumerate(found):
            weighings = day.get("allWeightMetrics") if isinstance(day, dict) else None
            _read_list(collector, weighings, f"{place}[{index}].allWeightMetrics", "dateWeightList")
    elif name == "dateWeightList":
        collector.take(found, place, _weighing)
    elif name == "hrvSummaries":
        collector.take(found, place, lambda record: _hrv_of_day(collector, Fields.of(record)))
    else:
        collector.take(found, place, lambda record: _exported_activity(collector, Fields.of(record)))


def _wrong(_: Any) -> Found:
    raise Refused("wrong_type")


def _item(collector: Collector, record: Any) -> Found:
    """One object, by the names it has."""
    said = Fields.of(record)
    for names, read in _SHAPES:
        if said.has(*names):
            return read(collector, said)
    raise Refused("unknown_shape")


def _moment(said: Fields, name: str) -> int | None:
    """An instant, or a wall clock, as microseconds: epoch milliseconds, or a text without an offset."""
    if isinstance(said.values.get(name), str):
        return said.time(name)
    return said.millis(name)


def _night_of_api(collector: Collector, said: Fields) -> Found:
    night = said.object("dailySleepDTO")
    yield from _night(night, said)
    yield from collector.of_day(
        "resting_heart_rate", night.needed_day("calendarDate"), _positive(said, "restingHeartRate"), "/min"
    )


def _exported_night(collector: Collector, said: Fields) -> Found:
    yield from _night(said, said)


def _night(night: Fields, body: Fields) -> Found:
    date = night.needed_day("calendarDate")
    start, end = (_moment(night, f"sleep{edge}TimestampGMT") for edge in ("Start", "End"))
    if start is None or end is None:
        raise Skipped("night_without_sleep")
    if end <= start:
        raise Refused("ends_before_start", "sleepEndTimestampGMT")
    parts = {
        stage: seconds_of(night.number(f"{stage}SleepSeconds"), f"{stage}SleepSeconds")
        for stage in ("deep", "light", "rem", "awake")
    }
    staged = [parts[stage] for stage in ("deep", "light", "rem")]
    asleep = seconds_of(night.number("sleepTimeSeconds"), "sleepTimeSeconds")
    if asleep is None and any(part is not None for part in staged):
        asleep = sum(part or 0 for part in staged)
    in_bed = seconds_of((end - start) / 1e6, "sleepEndTimestampGMT")
    assert in_bed is not None
    oxygen, scores = body.object("wellnessSpO2SleepSummaryDTO"), night.object("sleepScores")
    stages = _stages(body, start, in_bed)
    yield (
        "sleep_sessions",
        {
            "sleep_id": f"night of {date}",
            "started_at": start,
            "ended_at": end,
            "utc_offset_minutes": offset_between(start, _moment(night, "sleepStartTimestampLocal")),
            "end_utc_offset_minutes": offset_between(end, _moment(night, "sleepEndTimestampLocal")),
            "local_date": date,
            "sleep_type": (night.text("sleepWindowConfirmationType") or "").lower() or None,
            "is_main_sleep": True,
            "time_in_bed_seconds": in_bed,
            "sleep_seconds": asleep,
            "deep_sleep_seconds": parts["deep"],
            "light_sleep_seconds": parts["light"],
            "rem_sleep_seconds": parts["rem"],
            "awake_seconds": parts["awake"],
            "efficiency_percent": None if asleep is None else min(100.0 * asleep / in_bed, 100.0),
            "sleep_score": _first(
                scores.object("overall").number("value") if "overall" in scores.values else None,
                _positive(scores, "overallScore"),
            ),
            "average_spo2_percent": _first(
                _positive(night, "averageSpO2Value"),
                _positive(oxygen, "averageSPO2"),
                _positive(night.object("spo2SleepSummary"), "averageSPO2"),
            ),
            "average_breath_per_minute": _first(
                _positive(night, "averageRespirationValue"), _positive(night, "averageRespiration")
            ),
            "stages": stages,
        },
    )


def _stages(body: Fields, start: int, length: int) -> str | None:
    """Levels within the night, as JSON; a level outside it is a mistake of the answer, and no stage."""
    stages = []
    for each in body.array("sleepLevels"):
        level = Fields.of(each)
        first, last = level.time("startGMT"), level.time("endGMT")
        stage = _SLEEP_LEVELS.get(round(level.number("activityLevel") or 0))
        if first is None or last is None or stage is None:
            continue
        begin, until = (first - start) // 1_000_000, (last - start) // 1_000_000
        if 0 <= begin < until <= length:
            stages.append({"stage": stage, "start": begin, "seconds": until - begin})
    return orjson.dumps(stages).decode() if stages else None


def _heart_rate_day(collector: Collector, said: Fields) -> Found:
    date = said.needed_day("calendarDate")
    yield _series(said, "heartRateValues", "heart_rate", "/min", 1, least=1)
    for name, metric in (("restingHeartRate", "resting_heart_rate"), ("maxHeartRate", "max_heart_rate")):
        yield from collector.of_day(metric, date, _positive(said, name), "/min")


def _stress_day(collector: Collector, said: Fields) -> Found:
    date = said.needed_day("calendarDate")
    battery = said.array("bodyBatteryValuesArray")
    place = 2 if battery and isinstance(battery[0], list) and len(battery[0]) > 2 else 1
    yield _series(said, "bodyBatteryValuesArray", "energy_score", "{score}", place, least=0)
    yield from collector.of_day("stress_score", date, _positive(said, "avgStressLevel"), "{score}")


def _series(said: Fields, name: str, metric: str, unit: str, place: int, *, least: float) -> pa.Table:
    """`[[epoch milliseconds, …, value], …]`; null and what is below the least are no values."""
    pairs = [pair for pair in said.array(name) if not (isinstance(pair, list) and _blank(pair, place))]
    try:
        times = pa.array([pair[0] for pair in pairs], pa.float64())
        values = pa.array([pair[place] for pair in pairs], pa.float64())
    except (pa.ArrowException, TypeError, LookupError, OverflowError):
        raise Refused("wrong_type", name) from None
    times, values = times.to_numpy(), values.to_numpy()
    if not np.isfinite(times).all() or (np.abs(times) > 1e14).any():
        raise Refused("implausible_time", name)
    us = np.rint(times).astype(np.int64) * 1000
    kept = are_plausible(us) & (values >= least)
    start = said.time("startTimestampGMT")
    offset = offset_between(start, said.time("startTimestampLocal"))
    return samples(metric, unit, us[kept], values[kept], name, offset=offset)


def _blank(pair: list[Any], place: int) -> bool:
    return len(pair) > place and (pair[place] is None or pair[0] is None)


def _hrv_night(collector: Collector, said: Fields) -> Found:
    yield from _hrv_of_day(collector, said.object("hrvSummary"))
    readings = [Fields.of(each) for each in said.array("hrvReadings")]
    taken = [
        (at, value, offset_between(at, each.time("readingTimeLocal")))
        for each in readings
        if (at := each.time("readingTimeGMT")) is not None and (value := each.number("hrvValue")) is not None
    ]
    for at, value, offset in taken:
        yield from measured("heart_rate_variability_sample", value, "ms", at, offset=offset)


def _hrv_of_day(collector: Collector, said: Fields) -> Found:
    date = said.needed_day("calendarDate")
    yield from collector.of_day("heart_rate_variability", date, _positive(said, "lastNightAvg"), "ms")


def _summary(collector: Collector, said: Fields) -> Found:
    """Sums of a day, of the API and of an account export alike."""
    date = said.needed_day("calendarDate")
    if said.values.get("includesWellnessData") is False:
        raise Skipped("day_without_the_watch")
    active = [said.number(f"{name}IntensityMinutes") for name in ("moderate", "vigorous")]
    total = next(
        (
            each
            for each in said.object("allDayStress").array("aggregatorList")
            if isinstance(each, dict) and each.get("type") == "TOTAL"
        ),
        {},
    )
    stress = _first(said.number("averageStressLevel"), Fields.of(total).number("averageStressLevel"))
    values: dict[str, tuple[float | None, str]] = {
        "steps": (said.number("totalSteps"), "{steps}"),
        "distance": (said.number("totalDistanceMeters"), "m"),
        "total_calories": (said.number("totalKilocalories"), "kcal"),
        "calories_burned": (said.number("activeKilocalories"), "kcal"),
        "basal_calories": (said.number("bmrKilocalories"), "kcal"),
        "floors": (said.number("floorsAscended"), "{floors}"),
        "active_minutes": (sum(active) if None not in active else None, "min"),  # type: ignore[arg-type]
        "sedentary_time": (said.number("sedentarySeconds"), "s"),
        # Where both are, the other is the mean of a week.
        "resting_heart_rate": (
            _first(_positive(said, "currentDayRestingHeartRate"), _positive(said, "restingHeartRate")),
            "/min",
        ),
        "max_heart_rate": (_positive(said, "maxHeartRate"), "/min"),
        "stress_score": (stress if stress is not None and stress > 0 else None, "{score}"),
        "stress_high_time": (said.number("highStressDuration"), "s"),
    }
    for metric, (value, unit) in values.items():
        yield from collector.of_day(metric, date, value, unit)


def _values_of_day(collector: Collector, said: Fields) -> Found:
    """`values` of a day; of a week they are sums and means of days that other answers have."""
    date, values = said.needed_day("calendarDate"), said.object("values")
    if not values.has("overallStressLevel"):
        raise Skipped("mean_of_a_week")
    stress = _positive(values, "overallStressLevel")
    yield from collector.of_day("stress_score", date, stress, "{score}")
    yield from collector.of_day("stress_high_time", date, values.number("highStressDuration"), "s")


def _steps_of_day(collector: Collector, said: Fields) -> Found:
    date = said.needed_day("calendarDate")
    yield from collector.of_day("steps", date, said.number("totalSteps"), "{steps}")
    yield from collector.of_day("distance", date, said.number("totalDistance"), "m")


def _intensity_of_day(collector: Collector, said: Fields) -> Found:
    minutes = said.needed("moderateValue") + said.needed("vigorousValue")
    yield from collector.of_day("active_minutes", said.needed_day("calendarDate"), minutes, "min")


def _hydration_of_day(collector: Collector, said: Fields) -> Found:
    yield from collector.of_day("hydration", said.needed_day("calendarDate"), said.number("valueInML"), "mL")


def _readiness(_: Collector, said: Fields) -> Found:
    at = said.time("timestamp")
    if at is None:
        raise Refused("missing_field", "timestamp")
    offset = offset_between(at, said.time("timestampLocal"))
    yield from measured("readiness_score", said.number("score"), "{score}", at, offset=offset)


def _weighing(record: Any) -> Found:
    said = Fields.of(record)
    at = said.millis("timestampGMT", required=True)
    assert at is not None
    yield from _weight(said, at, offset_between(at, said.millis("date")), said.text("sourceType"))


def _weight(said: Fields, at: int, offset: int | None, device: str | None) -> Found:
    weight, water = said.needed("weight"), said.number("bodyWater")
    for metric, value, unit in (
        ("weight", weight, "g"),
        ("bmi", said.number("bmi"), "kg/m2"),
        ("body_fat", said.number("bodyFat"), "%"),
        ("muscle_mass", said.number("muscleMass"), "g"),
        ("bone_mass", said.number("boneMass"), "g"),
        ("body_water", None if water is None else weight * water / 100, "g"),
        ("visceral_fat", said.number("visceralFat"), "{score}"),
    ):
        yield from measured(metric, value, unit, at, offset=offset, device=device)


def _biometrics(collector: Collector, said: Fields) -> Found:
    """A change of the profile; a weighing where it has a weight, in local time."""
    if not isinstance(said.values.get("weight"), dict):
        raise Skipped("profile_without_a_weight")
    weight, meta = said.object("weight"), said.object("metaData")
    local, own = iso_time(meta.text("calendarDate", required=True), "metaData.calendarDate")
    at, offset = (local - own * _MINUTE, own) if own is not None else collector.local(local)
    for name, row in _weight(weight, at, offset, weight.text("sourceType")):
        yield name, {**row, "utc_offset_source": "upload_zone" if own is None else "record"}


def _activity(collector: Collector, said: Fields) -> Found:
    start = said.time("startTimeGMT")
    if start is None:
        raise Refused("missing_field", "startTimeGMT")
    _no_parent(said)
    duration = said.needed("duration")
    yield workout(
        start,
        duration,
        elapsed=said.number("elapsedDuration"),
        offset=offset_between(start, said.time("startTimeLocal")),
        activity=said.object("activityType").text("typeKey"),
        calories_kcal=said.number("calories"),
        distance_m=said.number("distance"),
        average_heart_rate_bpm=_positive(said, "averageHR"),
        max_heart_rate_bpm=_positive(said, "maxHR"),
        elevation_gain_m=said.number("elevationGain"),
    )


def _exported_activity(collector: Collector, said: Fields) -> Found:
    start = _first_int(_moment(said, "startTimeGmt"), said.millis("beginTimestamp"))
    if start is None:
        raise Refused("missing_field", "startTimeGmt")
    _no_parent(said)
    kind = said.values.get("activityType")
    yield workout(
        start,
        said.needed("duration") / 1000,
        elapsed=_scaled(said.number("elapsedDuration"), 1 / 1000),
        offset=offset_between(start, _moment(said, "startTimeLocal")),
        activity=said.object("activityType").text("typeKey")
        if isinstance(kind, dict)
        else said.text("activityType"),
        calories_kcal=_scaled(said.number("calories"), 1 / _CALORIES_PER_KCAL),
        distance_m=_scaled(said.number("distance"), 1 / 100),
        average_heart_rate_bpm=_positive(said, "avgHr"),
        max_heart_rate_bpm=_positive(said, "maxHr"),
        elevation_gain_m=_scaled(said.number("elevationGain"), 1 / 100),
    )


def _no_parent(said: Fields) -> None:
    """A parent is its parts once more."""
    if said.values.get("parent") is True:
        raise Skipped("sum_of_other_activities")


def workout(
    start: int,
    duration: float,
    *,
    elapsed: float | None = None,
    offset: int | None = None,
    activity: str | None = None,
    **values: float | None,
) -> tuple[str, Row]:
    """A workout's row. Garmin has it in several files, and no id in some: it is known by its first second."""
    length = seconds_of(duration if elapsed is None else elapsed, "duration")
    seconds_of(duration, "duration")
    assert length is not None
    return (
        "workouts",
        {
            "workout_id": f"started {start // 1_000_000}",
            "started_at": start,
            "ended_at": start + length * 1_000_000,
            "utc_offset_minutes": offset,
            "activity": activity or "other",
            "duration_seconds": duration,
            **values,
        },
    )


def _training_status(collector: Collector, body: Mapping[str, Any], place: str) -> None:
    """VO2max by day; the training status itself is Garmin's own scale."""
    for name, part in body.items():
        payload = part.get("payload") if isinstance(part, dict) else None
        if not isinstance(payload, dict):
            collector.take_one(part, f"{place}.{name}", _wrong)
            continue
        reports = payload.get("reportData")
        for device in reports.values() if isinstance(reports, dict) else ():
            collector.skip("training_status", len(device) if isinstance(device, list) else 1)
        metrics = payload.get("allMetrics")
        maps = metrics.get("metricsMap") if isinstance(metrics, dict) else None
        for kind, values in maps.items() if isinstance(maps, dict) else ():
            where = f"{place}.{name}.payload.allMetrics.metricsMap.{kind}"
            if not isinstance(values, list):
                collector.take_one(values, where, _wrong)
            elif kind == "ACTIVITY_VO2_MAX":
                collector.take(values, where, lambda record: _vo2_max(collector, Fields.of(record)))
            else:
                collector.skip("metric_of_garmins_own", len(values))


def _vo2_max(collector: Collector, said: Fields) -> Found:
    if said.has("startDateOfWeek"):
        raise Skipped("mean_of_a_week")
    date = said.needed_day("calendarDate")
    yield from collector.of_day("vo2_max", date, said.number("value"), "mL/(kg.min)")


def _nothing(reason: str) -> Callable[[Collector, Fields], Found]:
    def read(_: Collector, __: Fields) -> Found:
        raise Skipped(reason)

    return read


def _positive(said: Fields, name: str) -> float | None:
    """Garmin's 0, and less, stand for nothing measured."""
    value = said.number(name)
    return value if value is not None and value > 0 else None


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


def _first_int(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


#: By the names that an object has; the first that fits.
_SHAPES: tuple[tuple[tuple[str, ...], Callable[[Collector, Fields], Found]], ...] = (
    (("dailySleepDTO",), _night_of_api),
    (("hrvSummary",), _hrv_night),
    (("heartRateValues",), _heart_rate_day),
    (("stressValuesArray",), _stress_day),
    (("sleepStartTimestampGMT", "calendarDate"), _exported_night),
    (("sleepWindowConfirmationType", "calendarDate"), _exported_night),
    (("activityId", "startTimeGMT"), _activity),
    (("activityId", "beginTimestamp"), _exported_activity),
    (("activityId", "startLocal"), _nothing("activity_without_its_duration")),
    (("metaData", "version"), _biometrics),
    (("metaData", "weight"), _biometrics),
    (("calendarDate", "totalKilocalories"), _summary),
    (("calendarDate", "userProfilePK", "totalSteps"), _summary),
    (("calendarDate", "wellnessStartTimeGmt"), _summary),
    (("calendarDate", "totalSteps"), _steps_of_day),
    (("calendarDate", "values"), _values_of_day),
    (("calendarDate", "moderateValue", "vigorousValue"), _intensity_of_day),
    (("calendarDate", "valueInML"), _hydration_of_day),
    (("calendarDate", "score", "level"), _readiness),
    (("calendarDate", "overallScore", "classification"), _nothing("metric_of_garmins_own")),
    (("calendarDate", "lastNightAvg"), _hrv_of_day),
    (("calendarDate", "value"), _nothing("mean_of_a_week")),
)
