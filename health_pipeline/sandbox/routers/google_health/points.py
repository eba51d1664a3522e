"""Google Health data points of one person, by data type, in the shapes the vendor sends."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from health_pipeline.sandbox import body, noise
from health_pipeline.sandbox.activity import Flags, Ints, activity, heart_rate
from health_pipeline.sandbox.life import Day, Life, Workout
from health_pipeline.sandbox.night import AWAKE, DEEP, LIGHT, REM, SAMPLE_SECONDS, Night, nights

#: Seconds from a measurement to the cloud: the phone syncs.
SYNC_DELAY = 600
#: Seconds from waking until the stages of the night are worked out.
PROCESSING = 3600

_ONE_DAY = dt.timedelta(days=1)
_EPOCH_DAY = dt.date(1970, 1, 1)
_STAGES = {DEEP: "DEEP", LIGHT: "LIGHT", REM: "REM", AWAKE: "AWAKE"}
_EXERCISES = {
    "running": ("RUNNING", "Run"),
    "walking": ("WALKING", "Walk"),
    "hiking": ("HIKING", "Hike"),
    "cycling": ("BIKING", "Bike"),
    "swimming": ("SWIMMING_POOL", "Swim"),
    "strength_training": ("STRENGTH_TRAINING", "Strength training"),
    "yoga": ("YOGA", "Yoga"),
    "badminton": ("BADMINTON", "Badminton"),
}
#: Metres a second and MET, where the way was measured.
_SPEEDS = {"running": 0.29, "walking": 0.36, "cycling": 0.62, "hiking": 0.22}

_WATCH = {
    "recordingMethod": "PASSIVELY_MEASURED",
    "device": {"formFactor": "WATCH", "manufacturer": "Google", "displayName": "Pixel Watch"},
    "platform": "FITBIT",
}
_SCALE = {
    "recordingMethod": "ACTIVELY_MEASURED",
    "device": {"formFactor": "SCALE", "manufacturer": "Fitbit", "displayName": "Aria"},
    "platform": "FITBIT",
}
_DERIVED = {"recordingMethod": "DERIVED", "platform": "FITBIT"}


@dataclass(frozen=True, slots=True)
class Batch:
    """Points of one data type and one of the person's days, in order of time.

    `start` orders pages. Filters compare `physical` (epoch seconds) or `civil` (the wall clock, as if it were
    UTC). `available` is when a point came to be. `payload(i)` is the point without its source and name.
    """

    start: Ints
    physical: Ints
    civil: Ints
    available: Ints
    payload: Callable[[int], dict[str, Any]]
    source: dict[str, Any]
    names: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Minutes:
    """The minutes of a civil day as the watch saw them: what was off the wrist counts as nothing.

    `energy` is active kcal, `distance` mm.
    """

    time: Ints
    met: noise.Floats
    worn: Flags
    steps: Ints
    distance: Ints
    energy: noise.Floats

    def zones(self) -> tuple[int, int, int]:
        """Minutes in the fat burn, cardio and peak zones."""
        edges = ((3.0, 6.0), (6.0, 10.0), (10.0, np.inf))
        burn, cardio, peak = (int(((self.met >= a) & (self.met < b) & self.worn).sum()) for a, b in edges)
        return burn, cardio, peak

    def levels(self) -> tuple[int, int, int]:
        """Minutes of light, moderate and vigorous activity."""
        edges = ((1.5, 3.0), (3.0, 6.0), (6.0, np.inf))
        light, moderate, vigorous = (
            int(((self.met >= a) & (self.met < b) & self.worn).sum()) for a, b in edges
        )
        return light, moderate, vigorous

    @property
    def floors(self) -> int:
        return int(self.steps.sum()) // 1000


def iso(instant: float) -> str:
    return dt.datetime.fromtimestamp(instant, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def date_object(date: dt.date) -> dict[str, int]:
    return {"year": date.year, "month": date.month, "day": date.day}


def day_seconds(date: dt.date) -> int:
    return (date - _EPOCH_DAY).days * 86_400


def civil_object(local_seconds: int) -> dict[str, Any]:
    """A wall-clock time; parts that are 0 are left out."""
    local = dt.datetime.fromtimestamp(local_seconds, dt.UTC)
    parts = {"hours": local.hour, "minutes": local.minute, "seconds": local.second}
    return {"date": date_object(local.date()), "time": {name: part for name, part in parts.items() if part}}


class Points:
    """Everything one person's account says; `edits` and `deleted` hold revisions of nights by day."""

    def __init__(self, life: Life) -> None:
        self.life = life
        self.person = life.person
        self.edits: dict[dt.date, int] = {}
        self.deleted: set[dt.date] = set()

    # Time

    def offset(self, instant: float) -> int:
        return self.life.timeline.offset_seconds(instant)

    def offsets(self, times: Ints) -> Ints:
        """Seconds east of UTC at each time; clocks change at quarters of an hour."""
        quarters, place = np.unique(times // 900, return_inverse=True)
        return np.array([self.offset(int(q) * 900) for q in quarters], dtype=np.int64)[place]

    def interval(self, start: int, end: int) -> dict[str, Any]:
        at, until = self.offset(start), self.offset(end)
        return {
            "startTime": iso(start),
            "startUtcOffset": f"{at}s",
            "endTime": iso(end),
            "endUtcOffset": f"{until}s",
            "civilStartTime": civil_object(start + at),
            "civilEndTime": civil_object(end + until),
        }

    def sample_time(self, instant: int) -> dict[str, Any]:
        at = self.offset(instant)
        return {
            "physicalTime": iso(instant),
            "utcOffset": f"{at}s",
            "civilTime": civil_object(instant + at),
        }

    # Minutes

    def minutes(self, date: dt.date) -> Minutes:
        """The minutes whose local date is `date`."""
        return _minutes(self.life, date)

    # Batches

    def batch(self, kind: str, date: dt.date, now: float) -> Batch | None:
        """The points of the person's day `date` (04:00 to 04:00, with the night before); None without any."""
        day = self.life.day(date)
        if day is None:
            return None
        found: Batch | None = getattr(self, f"_{kind.replace('-', '_')}")(day, now)
        return found

    def _series(
        self, times: Ints, seconds: int, payload: Callable[[int], dict[str, Any]], source: dict[str, Any]
    ) -> Batch:
        return Batch(times, times, times + self.offsets(times), times + seconds + SYNC_DELAY, payload, source)

    def _samples(
        self,
        message: str,
        times: Ints,
        values: Sequence[dict[str, Any]],
        source: dict[str, Any],
        names: Sequence[str] = (),
    ) -> Batch | None:
        if not times.size:
            return None

        def payload(place: int) -> dict[str, Any]:
            return {message: {"sampleTime": self.sample_time(int(times[place])), **values[place]}}

        return replace(self._series(times, 0, payload, source), names=names)

    def _intervals(self, message: str, field: str, day: Day, values: Ints | noise.Floats) -> Batch | None:
        """A point a minute with anything in it."""
        moved = np.flatnonzero(values)
        if not moved.size:
            return None
        times = day.start + 60 * moved.astype(np.int64)

        def payload(place: int) -> dict[str, Any]:
            value = values[moved[place]].item()
            start = int(times[place])
            said = str(value) if isinstance(value, int) else value
            return {message: {"interval": self.interval(start, start + 60), field: said}}

        return self._series(times, 60, payload, _WATCH)

    def _steps(self, day: Day, _now: float) -> Batch | None:
        return self._intervals("steps", "count", day, _of_day(self.life, day).steps)

    def _distance(self, day: Day, _now: float) -> Batch | None:
        return self._intervals("distance", "millimeters", day, _of_day(self.life, day).distance)

    def _active_energy_burned(self, day: Day, _now: float) -> Batch | None:
        return self._intervals("activeEnergyBurned", "kcal", day, _of_day(self.life, day).energy)

    def _heart_rate(self, day: Day, _now: float) -> Batch | None:
        found = heart_rate(self.life, day)
        values = [
            {
                "beatsPerMinute": str(bpm),
                "metadata": {"motionContext": "ACTIVE" if source == 1 else "SEDENTARY"},
            }
            for bpm, source in zip(found.bpm.tolist(), found.source.tolist(), strict=True)
        ]
        return self._samples("heartRate", found.time, values, _WATCH)

    def _heart_rate_variability(self, day: Day, _now: float) -> Batch | None:
        night = self.night(day)
        if night is None:
            return None
        found = np.flatnonzero(~np.isnan(night.hrv))
        values = [
            {"rootMeanSquareOfSuccessiveDifferencesMilliseconds": value}
            for value in night.hrv[found].tolist()
        ]
        return self._samples("heartRateVariability", night.bed + SAMPLE_SECONDS * found, values, _WATCH)

    def _oxygen_saturation(self, day: Day, _now: float) -> Batch | None:
        night = self.night(day)
        if night is None:
            return None
        count = night.time_in_bed // SAMPLE_SECONDS
        swing = np.where(np.arange(count) % 2 == 0, 0.4, -0.4)
        values = [{"percentage": round(value, 1)} for value in (body.spo2(self.life, day) + swing).tolist()]
        return self._samples(
            "oxygenSaturation", night.bed + SAMPLE_SECONDS * np.arange(count), values, _WATCH
        )

    def _on_the_scale(
        self, day: Day, kind: str, message: str, value: Callable[[body.WeighIn], Any]
    ) -> Batch | None:
        seen = body.weigh_in(self.life, day)
        if seen is None:
            return None
        name = self.person.uuid("google_health", kind, day.date)
        return self._samples(
            message, np.array([seen.instant], dtype=np.int64), [value(seen)], _SCALE, (name,)
        )

    def _weight(self, day: Day, _now: float) -> Batch | None:
        return self._on_the_scale(
            day, "weight", "weight", lambda seen: {"weightGrams": round(1000 * seen.weight, 1)}
        )

    def _body_fat(self, day: Day, _now: float) -> Batch | None:
        return self._on_the_scale(day, "body-fat", "bodyFat", lambda seen: {"percentage": seen.fat_percent})

    def _height(self, day: Day, _now: float) -> Batch | None:
        if day.index != 0:
            return None
        value = {"heightMillimeters": str(round(1000 * self.person.height_m))}
        return self._samples(
            "height",
            np.array([day.wake + 7200], dtype=np.int64),
            [value],
            {"recordingMethod": "MANUAL", "platform": "FITBIT"},
            (self.person.uuid("google_health", "height"),),
        )

    def _core_body_temperature(self, _day: Day, _now: float) -> Batch | None:
        return None

    # Days

    def _daily(self, message: str, day: Day, value: Callable[[Night], dict[str, Any]]) -> Batch | None:
        night = self.night(day)
        if night is None:
            return None
        date = self.date_of(night)
        at = np.array([day_seconds(date)], dtype=np.int64)
        available = np.array([night.wake + PROCESSING], dtype=np.int64)
        payload = {message: {"date": date_object(date), **value(night)}}
        return Batch(at, at, at, available, lambda _place: payload, _DERIVED)

    def _daily_resting_heart_rate(self, day: Day, _now: float) -> Batch | None:
        return self._daily(
            "dailyRestingHeartRate",
            day,
            lambda night: {
                "beatsPerMinute": str(night.lowest_heart_rate),
                "dailyRestingHeartRateMetadata": {"calculationMethod": "WITH_SLEEP"},
            },
        )

    def _daily_heart_rate_variability(self, day: Day, _now: float) -> Batch | None:
        return self._daily(
            "dailyHeartRateVariability",
            day,
            lambda night: {
                "averageHeartRateVariabilityMilliseconds": float(night.average_hrv or 0),
                "nonRemHeartRateBeatsPerMinute": str(round(night.average_heart_rate or 0)),
                "entropy": 2.6,
            },
        )

    def _daily_oxygen_saturation(self, day: Day, _now: float) -> Batch | None:
        average = round(body.spo2(self.life, day), 1)
        value = {
            "averagePercentage": average,
            "lowerBoundPercentage": round(average - 1.5, 1),
            "upperBoundPercentage": min(100.0, round(average + 1.5, 1)),
        }
        return self._daily("dailyOxygenSaturation", day, lambda _night: value)

    def _daily_respiratory_rate(self, day: Day, _now: float) -> Batch | None:
        return self._daily("dailyRespiratoryRate", day, lambda night: {"breathsPerMinute": night.breath})

    def _daily_sleep_temperature_derivations(self, day: Day, _now: float) -> Batch | None:
        baseline = self.skin_temperature
        value = {
            "nightlyTemperatureCelsius": round(baseline + day.temperature, 2),
            "baselineTemperatureCelsius": baseline,
            "relativeNightlyStddev30dCelsius": 0.31,
        }
        return self._daily("dailySleepTemperatureDerivations", day, lambda _night: value)

    def _daily_vo2_max(self, day: Day, _now: float) -> Batch | None:
        value = {"vo2Max": round(body.fitness(self.life, day.date), 1), "cardioFitnessLevel": "GOOD"}
        return self._daily("dailyVo2Max", day, lambda _night: value)

    @property
    def skin_temperature(self) -> float:
        """The person's usual skin temperature asleep, °C."""
        return round(33.2 + (self.person.birth_year % 10) / 10, 1)

    # Sessions

    def night(self, day: Day) -> Night | None:
        """The day's main night as it now stands, if the watch was worn; it stays when its record is deleted."""
        if not day.night_worn:
            return None
        main = next(night for night in nights(self.life, day) if night.kind == "main")
        return main.edited(25 * self.edits.get(day.date, 0))

    def date_of(self, night: Night) -> dt.date:
        return self.life.timeline.local(night.wake).date()

    def sleeps(self, day: Day) -> list[Night]:
        """The sleeps that have a record: the main night, and those in the day with the watch on."""
        found = []
        for night in nights(self.life, day):
            if night.kind == "main":
                seen = self.night(day)
                if seen is not None and day.date not in self.deleted:
                    found.append(seen)
            elif night.kind != "rest" and not any(a < night.wake and b > night.bed for a, b in day.off):
                found.append(night)
        return found

    def sleep_name(self, day: Day, night: Night) -> str:
        return self.person.uuid("google_health", "sleep", day.date, night.kind)

    def _sleep(self, day: Day, now: float) -> Batch | None:
        found = self.sleeps(day)
        if not found:
            return None
        payloads = [{"sleep": self._sleep_payload(day, night, now)} for night in found]
        ends = np.array([night.wake for night in found], dtype=np.int64)
        return Batch(
            np.array([night.bed for night in found], dtype=np.int64),
            ends,
            ends + self.offsets(ends),
            ends + SYNC_DELAY,
            payloads.__getitem__,
            _DERIVED,
            [self.sleep_name(day, night) for night in found],
        )

    def _sleep_payload(self, day: Day, night: Night, now: float) -> dict[str, Any]:
        classic = night.kind == "nap"
        processed = now >= night.wake + PROCESSING
        edits = self.edits.get(day.date, 0) if night.kind == "main" else 0
        changed = PROCESSING + 60 * edits if processed else SYNC_DELAY
        flags = {
            "mainSleep": night.kind == "main",
            "nap": classic,
            "processed": processed,
            "manuallyEdited": edits > 0,
        }
        metadata: dict[str, Any] = {name: True for name, flag in flags.items() if flag}
        if processed:
            metadata["stagesStatus"] = "REJECTED_NAP" if classic else "SUCCEEDED"
        return {
            "interval": self.interval(night.bed, night.wake),
            "type": "CLASSIC" if classic else "STAGES",
            **self._stages(night, classic=classic, processed=processed),
            "metadata": metadata,
            "createTime": iso(night.wake + SYNC_DELAY),
            "updateTime": iso(night.wake + changed),
        }

    def _stages(self, night: Night, *, classic: bool, processed: bool) -> dict[str, Any]:
        if not processed:
            return {"summary": {"minutesInSleepPeriod": _minute_text(night.time_in_bed)}}
        stages = night.stages
        edges = np.flatnonzero(np.diff(np.where(stages == AWAKE, AWAKE, LIGHT) if classic else stages)) + 1
        starts = [0, *edges.tolist()]
        ends = [*edges.tolist(), stages.size]
        runs = [
            (
                "ASLEEP" if classic and stages[a] != AWAKE else _STAGES[int(stages[a])],
                night.bed + 30 * a,
                min(night.bed + 30 * b, night.wake),
            )
            for a, b in zip(starts, ends, strict=True)
        ]
        kinds = sorted({kind for kind, _, _ in runs})
        return {
            "stages": [
                {
                    "startTime": iso(start),
                    "startUtcOffset": f"{self.offset(start)}s",
                    "endTime": iso(end),
                    "endUtcOffset": f"{self.offset(end)}s",
                    "type": kind,
                    "createTime": iso(night.wake + PROCESSING),
                    "updateTime": iso(night.wake + PROCESSING),
                }
                for kind, start, end in runs
            ],
            "summary": {
                "minutesInSleepPeriod": _minute_text(night.time_in_bed),
                "minutesAsleep": _minute_text(night.total_sleep),
                "minutesAwake": _minute_text(night.awake_time),
                "minutesToFallAsleep": _minute_text(night.latency),
                "minutesAfterWakeUp": "0",
                "stagesSummary": [
                    {
                        "type": kind,
                        "minutes": _minute_text(
                            sum(end - start for name, start, end in runs if name == kind)
                        ),
                        "count": str(sum(name == kind for name, _, _ in runs)),
                    }
                    for kind in kinds
                ],
            },
        }

    def _exercise(self, day: Day, _now: float) -> Batch | None:
        if not day.workouts:
            return None
        starts = np.array([done.start for done in day.workouts], dtype=np.int64)
        ends = np.array([done.end for done in day.workouts], dtype=np.int64)
        payloads = [{"exercise": self._exercise_payload(day, done)} for done in day.workouts]
        names = [
            self.person.uuid("google_health", "exercise", day.date, number)
            for number in range(len(day.workouts))
        ]
        return Batch(
            starts,
            starts,
            starts + self.offsets(starts),
            ends + SYNC_DELAY,
            payloads.__getitem__,
            {**_WATCH, "recordingMethod": "ACTIVELY_MEASURED"},
            names,
        )

    def _exercise_payload(self, day: Day, done: Workout) -> dict[str, Any]:
        lived = _of_day(self.life, day)
        part = slice((done.start - day.start) // 60, (done.end - day.start) // 60)
        pulse = heart_rate(self.life, day)
        beats = pulse.bpm[(pulse.time >= done.start) & (pulse.time < done.end)]
        metrics: dict[str, Any] = {
            "caloriesKcal": round(done.met * self.person.weight_kg * done.minutes / 60, 3),
            "activeZoneMinutes": str(done.minutes * (2 if done.met >= 6 else 1)),
        }
        if done.activity in _SPEEDS:
            way = _SPEEDS[done.activity] * done.met * done.minutes * 60
            metrics["distanceMillimeters"] = round(1000 * way)
            metrics["averageSpeedMillimetersPerSecond"] = round(1000 * way / (done.end - done.start), 1)
        if steps := int(lived.steps[part].sum()):
            metrics["steps"] = str(steps)
        if beats.size:
            metrics["averageHeartRateBeatsPerMinute"] = str(round(float(beats.mean())))
        kind, name = _EXERCISES[done.activity]
        return {
            "interval": self.interval(done.start, done.end),
            "exerciseType": kind,
            "displayName": name,
            "activeDuration": f"{done.end - done.start}s",
            "metricsSummary": metrics,
            "createTime": iso(done.end + SYNC_DELAY),
            "updateTime": iso(done.end + SYNC_DELAY),
        }

    # Rollups

    def roll_up(self, kind: str, date: dt.date, now: float) -> dict[str, Any] | None:
        """The sum of a civil day as known by now; numbers that are 0 are left out. None without any data."""
        seen = self.minutes(date)
        known = seen.time + 60 + SYNC_DELAY <= now
        if not known.any() or not seen.worn[known].any():
            return None
        part = Minutes(*(getattr(seen, name)[known] for name in seen.__slots__))
        burn, cardio, peak = part.zones()
        values: dict[str, tuple[str, dict[str, Any]]] = {
            "steps": ("steps", {"countSum": int(part.steps.sum())}),
            "distance": ("distance", {"millimetersSum": int(part.distance.sum())}),
            "active-energy-burned": ("activeEnergyBurned", {"kcalSum": round(float(part.energy.sum()), 3)}),
            "floors": ("floors", {"countSum": part.floors}),
            "total-calories": ("totalCalories", {"kcalSum": self.total_energy(date, part)}),
            "active-zone-minutes": (
                "activeZoneMinutes",
                {
                    "sumInFatBurnHeartZone": burn,
                    "sumInCardioHeartZone": 2 * cardio,
                    "sumInPeakHeartZone": 2 * peak,
                },
            ),
        }
        if kind == "active-minutes":
            levels = zip(("LIGHT", "MODERATE", "VIGOROUS"), part.levels(), strict=True)
            items = [
                {"activityLevel": level, "activeMinutesSum": str(count)} for level, count in levels if count
            ]
            return {"activeMinutes": {"activeMinutesRollupByActivityLevel": items} if items else {}}
        message, sums = values[kind]
        said = {
            name: str(value) if isinstance(value, int) else value for name, value in sums.items() if value
        }
        return {message: said}

    def total_energy(self, date: dt.date, part: Minutes) -> float:
        """kcal of rest, worn or not, and of activity as seen."""
        resting = body.basal_kcal(self.person, date) * part.time.size / 1440
        return round(resting + float(part.energy.sum()), 2)


def _minute_text(seconds: int) -> str:
    return str(round(seconds / 60))


@lru_cache(maxsize=512)
def _of_day(life: Life, day: Day) -> Minutes:
    """The minutes of the person's own day, 04:00 to 04:00."""
    lived = activity(life, day)
    steps = np.where(lived.worn, lived.steps, 0)
    return Minutes(
        time=day.start + 60 * np.arange(lived.met.size, dtype=np.int64),
        met=lived.met,
        worn=lived.worn,
        steps=steps,
        distance=np.rint(1000 * body.step_length(life.person) * steps).astype(np.int64),
        energy=np.where(lived.worn, np.round(body.active_kcal(life.person, lived), 3), 0.0),
    )


@lru_cache(maxsize=512)
def _minutes(life: Life, date: dt.date) -> Minutes:
    days = [_of_day(life, day) for day in life.days(date - 2 * _ONE_DAY, date + _ONE_DAY)]
    if not days:
        return Minutes(
            *(np.zeros(0, dtype) for dtype in (np.int64, float, np.bool_, np.int64, np.int64, float))
        )
    whole = Minutes(*(np.concatenate([getattr(day, name) for day in days]) for name in Minutes.__slots__))
    offsets = Points(life).offsets(whole.time)
    chosen = (whole.time + offsets) // 86_400 == day_seconds(date) // 86_400
    return Minutes(*(getattr(whole, name)[chosen] for name in whole.__slots__))
