"""What a watch and a glucose sensor tell Terra of a person's days, as Terra's records."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from health_pipeline.sandbox import body
from health_pipeline.sandbox.activity import Flags, Ints, activity, heart_rate
from health_pipeline.sandbox.glucose import HIGHEST, LOWEST, readings
from health_pipeline.sandbox.life import Day, Life
from health_pipeline.sandbox.night import (
    AWAKE,
    DEEP,
    EPOCH_SECONDS,
    LIGHT,
    REM,
    SAMPLE_SECONDS,
    Night,
    nights,
)
from health_pipeline.sandbox.noise import Floats

#: From the device to Terra, seconds.
SYNC_DELAY = 1200

Record = dict[str, Any]

_ONE_DAY = dt.timedelta(days=1)
_QUARTER = 900
#: `ActivityType` and metres a second and MET.
_ACTIVITIES = {
    "running": (8, 0.29),
    "walking": (7, 0.36),
    "cycling": (1, 0.62),
    "hiking": (35, 0.22),
    "swimming": (82, 0.09),
    "yoga": (100, None),
    "strength_training": (80, None),
    "badminton": (10, None),
}
_LEVELS = {AWAKE: 1, LIGHT: 4, DEEP: 5, REM: 6}
_DEVICES = {
    "GARMIN": {"name": "Forerunner 255", "manufacturer": "GARMIN", "serial_number": None},
    "FREESTYLELIBRE": {"name": "FreeStyle Libre 3", "manufacturer": "ABBOTT", "serial_number": None},
}


@dataclass(frozen=True, slots=True)
class Calendar:
    """The minutes of a local date, from midnight to midnight on the clock where the person was."""

    instant: Ints
    steps: Ints
    met: Floats
    active_kcal: Floats
    basal_kcal: Floats
    worn: Flags
    start: dt.datetime
    end: dt.datetime


def _dates(life: Life, instants: Ints) -> Ints:
    """Local dates of instants, in days since 1970. No clock changes within a quarter of an hour."""
    quarters, place = np.unique(instants // _QUARTER, return_inverse=True)
    offsets = np.array([life.timeline.offset_seconds(q * _QUARTER) for q in quarters.tolist()], np.int64)
    dates: Ints = (instants + offsets[place]) // 86_400
    return dates


def _number(date: dt.date) -> int:
    return (date - dt.date(1970, 1, 1)).days


@lru_cache(maxsize=512)
def calendar(life: Life, date: dt.date) -> Calendar | None:
    """None for a date that the person never lived."""
    parts = []
    for day in life.days(date - _ONE_DAY, date + _ONE_DAY):
        lived = activity(life, day)
        instants = day.start + 60 * np.arange(lived.met.size, dtype=np.int64)
        mine = _dates(life, instants) == _number(date)
        basal = np.full(lived.met.size, body.basal_kcal(life.person, date) / 1440)
        series = (instants, lived.steps, lived.met, body.active_kcal(life.person, lived), basal, lived.worn)
        parts.append([column[mine] for column in series])
    if not parts or not sum(part[0].size for part in parts):
        return None
    instant, steps, met, active, basal, worn = (np.concatenate(column) for column in zip(*parts, strict=True))
    zones = [life.timeline.local(int(at)).tzinfo for at in (instant[0], instant[-1])]
    start, end = (
        dt.datetime.combine(day, dt.time(), zone)
        for day, zone in zip((date, date + _ONE_DAY), zones, strict=True)
    )
    return Calendar(instant, steps, met, active, basal, worn, start, end)


def heart_samples(life: Life, date: dt.date, now: float) -> tuple[Ints, Ints]:
    """Times and beats a minute of a local date, no later than `now`."""
    parts = [heart_rate(life, day) for day in life.days(date - _ONE_DAY, date + _ONE_DAY)]
    if not parts:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    time = np.concatenate([part.time for part in parts])
    bpm = np.concatenate([part.bpm for part in parts])
    mine = (_dates(life, time) == _number(date)) & (time <= now)
    return time[mine], bpm[mine]


@dataclass(slots=True)
class Documents:
    """The records of one person, by the local date that they begin on."""

    life: Life
    #: How often the night that ended on a date was edited, and the dates whose workouts were deleted.
    edits: dict[dt.date, int] = field(default_factory=dict)
    deleted: set[dt.date] = field(default_factory=set)

    def of(self, resource: str, kind: str, date: dt.date, now: float, samples: bool) -> list[Record]:
        """What Terra has by now of a kind (`daily`, `sleep`, `activity`, `body`) that begins on a date."""
        device = _DEVICES[resource]
        if resource == "FREESTYLELIBRE":
            found = self._glucose(date, now, samples) if kind == "body" else []
        elif kind == "daily":
            found = self._daily(date, now, samples)
        elif kind == "sleep":
            found = self._sleeps(date, now, samples)
        elif kind == "activity":
            found = self._activities(date, now, samples)
        else:
            found = self._body(date, now)
        return [{"device_data": device, **record} for record in found]

    def _time(self, instant: float) -> str:
        return self.life.timeline.local(instant).isoformat(timespec="microseconds")

    def _series(self, times: Ints, values: Any, name: str) -> list[Record]:
        return [
            {"timestamp": self._time(time), name: value}
            for time, value in zip(times.tolist(), values.tolist(), strict=True)
        ]

    def slept(self, date: dt.date, now: float) -> list[Night]:
        """The sleeps, naps too, that ended on a local date and were seen and told by now."""
        found = []
        for day in self.life.days(date - _ONE_DAY, date + _ONE_DAY):
            for night in nights(self.life, day):
                if night.kind == "rest" or (night.kind == "main" and not day.night_worn):
                    continue
                if night.kind == "nap" and _off(day, night):
                    continue
                ended = self.life.timeline.local(night.wake).date()
                if ended == date and night.wake + SYNC_DELAY <= now:
                    found.append(
                        night.edited(25 * self.edits.get(date, 0)) if night.kind == "main" else night
                    )
        return found

    def nights(self, date: dt.date, now: float) -> list[Night]:
        return [night for night in self.slept(date, now) if night.kind != "nap"]

    # Days

    def _daily(self, date: dt.date, now: float, samples: bool) -> list[Record]:
        lived = calendar(self.life, date)
        if lived is None:
            return []
        passed = lived.instant + 60 <= now
        seen = lived.worn & passed
        if not seen.any():
            return []
        time, bpm = heart_samples(self.life, date, now)
        steps = int(lived.steps[seen].sum())
        active = float(lived.active_kcal[seen].sum())
        basal = float(lived.basal_kcal[passed].sum())
        slept = self.nights(date, now)
        moderate, vigorous = seen & (lived.met >= 3) & (lived.met < 6), seen & (lived.met >= 6)
        low = seen & (lived.met >= 1.5) & (lived.met < 3)
        hours = lived.instant[seen][::60]
        level = np.clip(90 - 4 * np.arange(hours.size) + np.arange(hours.size) ** 2 // 9, 5, 100)
        summary = {
            "avg_hr_bpm": round(float(bpm.mean()), 1) if bpm.size else None,
            "max_hr_bpm": int(bpm.max()) if bpm.size else None,
            "min_hr_bpm": int(bpm.min()) if bpm.size else None,
            "resting_hr_bpm": min(night.lowest_heart_rate for night in slept) if slept else None,
            "avg_hrv_rmssd": None,
            "avg_hrv_sdnn": None,
        }
        detailed = {"hr_samples": self._series(time, bpm, "bpm")} if samples else None
        return [
            {
                "metadata": {
                    "start_time": lived.start.isoformat(timespec="microseconds"),
                    "end_time": lived.end.isoformat(timespec="microseconds"),
                    "upload_type": 1,
                    "timestamp_localization": 1,
                },
                "distance_data": {
                    "steps": steps,
                    "distance_meters": round(steps * body.step_length(self.life.person), 1),
                    "floors_climbed": None,
                },
                "calories_data": {
                    "net_activity_calories": round(active, 1),
                    "BMR_calories": round(basal, 1),
                    "total_burned_calories": round(active + basal, 1),
                },
                "active_durations_data": {
                    "activity_seconds": 60 * int((low | moderate | vigorous).sum()),
                    "low_intensity_seconds": 60 * int(low.sum()),
                    "moderate_intensity_seconds": 60 * int(moderate.sum()),
                    "vigorous_intensity_seconds": 60 * int(vigorous.sum()),
                },
                "heart_rate_data": {"summary": summary, "detailed": detailed},
                "stress_data": {
                    "avg_stress_level": 20 + date.toordinal() * 7919 % 30,
                    "high_stress_duration_seconds": 60 * int(vigorous.sum() // 2),
                    "body_battery_samples": self._series(hours, level, "level") if samples else None,
                },
            }
        ]

    # Sleeps

    def _sleeps(self, date: dt.date, now: float, samples: bool) -> list[Record]:
        found = []
        for ended in (date, date + _ONE_DAY):
            spo2 = self._spo2(ended)
            found += [
                self._sleep(night, ended, spo2, samples)
                for night in self.slept(ended, now)
                if self.life.timeline.local(night.bed).date() == date
            ]
        return found

    def _spo2(self, date: dt.date) -> float | None:
        day = self.life.day(date)
        return None if day is None else round(body.spo2(self.life, day), 1)

    def _sleep(self, night: Night, ended: dt.date, spo2: float | None, samples: bool) -> Record:
        nap = night.kind == "nap"
        time = night.bed + SAMPLE_SECONDS * np.arange(night.hrv.size, dtype=np.int64)
        found = ~np.isnan(night.hrv)
        changes = np.flatnonzero(np.diff(night.stages.astype(np.int64), prepend=-1))
        detailed = None
        if samples:
            detailed = {
                "hr_samples": self._series(*self._heart(night.bed, night.wake), "bpm"),
                "hrv_samples_rmssd": self._series(time[found], night.hrv[found], "hrv_rmssd"),
                "hrv_samples_sdnn": None,
            }
        return {
            "metadata": {
                "start_time": self._time(night.bed),
                "end_time": self._time(night.wake),
                "is_nap": nap,
                # A nap has no id at its maker.
                "summary_id": None if nap else self.life.person.uuid("terra", "sleep", ended, night.kind),
                "upload_type": 1 if ended in self.edits and night.kind == "main" else 2,
                "timestamp_localization": 1,
            },
            "sleep_durations_data": {
                "asleep": {
                    "duration_asleep_state_seconds": night.total_sleep,
                    "duration_deep_sleep_state_seconds": night.seconds_of(DEEP),
                    "duration_light_sleep_state_seconds": night.seconds_of(LIGHT),
                    "duration_REM_sleep_state_seconds": night.seconds_of(REM),
                },
                "awake": {
                    "duration_awake_state_seconds": night.awake_time,
                    "sleep_latency_seconds": night.latency,
                },
                "other": {"duration_in_bed_seconds": night.time_in_bed},
                "sleep_efficiency": night.efficiency,
                "hypnogram_samples": [
                    {
                        "timestamp": self._time(night.bed + EPOCH_SECONDS * place),
                        "level": _LEVELS[int(night.stages[place])],
                    }
                    for place in changes.tolist()
                ]
                if samples
                else None,
            },
            "heart_rate_data": {
                "summary": {
                    "avg_hr_bpm": night.average_heart_rate,
                    "min_hr_bpm": night.lowest_heart_rate,
                    "max_hr_bpm": None,
                    "resting_hr_bpm": None if nap else night.lowest_heart_rate,
                    "avg_hrv_rmssd": night.average_hrv,
                    "avg_hrv_sdnn": None,
                },
                "detailed": detailed,
            },
            "respiration_data": {
                "breaths_data": {"avg_breaths_per_min": night.breath},
                "oxygen_saturation_data": {"avg_saturation_percentage": None if nap else spo2},
            },
        }

    def _heart(self, first: int, last: int) -> tuple[Ints, Ints]:
        """Samples from one instant until before another."""
        begin, end = (self.life.timeline.local(instant).date() for instant in (first, last))
        parts = [heart_rate(self.life, day) for day in self.life.days(begin - _ONE_DAY, end + _ONE_DAY)]
        time, bpm = (np.concatenate([getattr(part, name) for part in parts]) for name in ("time", "bpm"))
        mine = (time >= first) & (time < last)
        return time[mine], bpm[mine]

    # Workouts

    def _activities(self, date: dt.date, now: float, samples: bool) -> list[Record]:
        day = self.life.day(date)
        found = []
        for number, done in enumerate(day.workouts if day else ()):
            if done.end + SYNC_DELAY > now:
                continue
            kind, speed = _ACTIVITIES[done.activity]
            time, bpm = self._heart(done.start, done.end)
            seconds = done.end - done.start
            found.append(
                {
                    "metadata": {
                        "name": done.activity.replace("_", " "),
                        "summary_id": self.life.person.uuid("terra", "activity", date, number),
                        "start_time": self._time(done.start),
                        "end_time": self._time(done.end),
                        "type": kind,
                        "upload_type": 4 if date in self.deleted else 1,
                        "timestamp_localization": 1,
                    },
                    "calories_data": {
                        "net_activity_calories": round(
                            done.met * self.life.person.weight_kg * done.minutes / 60, 1
                        ),
                        "total_burned_calories": None,
                    },
                    "distance_data": {
                        "summary": {
                            "distance_meters": None if speed is None else round(speed * done.met * seconds, 1)
                        }
                    },
                    "heart_rate_data": {
                        "summary": {
                            "avg_hr_bpm": round(float(bpm.mean()), 1) if bpm.size else None,
                            "max_hr_bpm": int(bpm.max()) if bpm.size else None,
                        },
                        "detailed": {"hr_samples": self._series(time, bpm, "bpm")} if samples else None,
                    },
                }
            )
        return found

    # Bodies

    def _frame(self, date: dt.date) -> Record | None:
        lived = calendar(self.life, date)
        if lived is None:
            return None
        return {
            "start_time": lived.start.isoformat(timespec="microseconds"),
            "end_time": lived.end.isoformat(timespec="microseconds"),
            "timestamp_localization": 1,
        }

    def weighed(self, date: dt.date, now: float) -> body.WeighIn | None:
        """The weigh-in of a local date, if there is one and it was told by now."""
        for day in self.life.days(date - _ONE_DAY, date + _ONE_DAY):
            weighed = body.weigh_in(self.life, day)
            if weighed is not None and self.life.timeline.local(weighed.instant).date() == date:
                return weighed if weighed.instant + SYNC_DELAY <= now else None
        return None

    def _body(self, date: dt.date, now: float) -> Iterator[Record]:
        weighed, frame = self.weighed(date, now), self._frame(date)
        if weighed is None or frame is None:
            return
        time = self._time(weighed.instant)
        height = self.life.person.height_m
        yield {
            "metadata": frame,
            "measurements_data": {
                "measurements": [
                    {
                        "measurement_time": time,
                        "weight_kg": weighed.weight,
                        "BMI": round(weighed.weight / height**2, 2),
                        "bodyfat_percentage": weighed.fat_percent,
                        "bone_mass_g": round(1000 * weighed.bone),
                        "muscle_mass_g": round(1000 * weighed.muscle),
                        "water_percentage": round(100 * weighed.water / weighed.weight, 1),
                    }
                ]
            },
            "blood_pressure_data": {
                "blood_pressure_samples": [
                    {"timestamp": time, "systolic_bp": weighed.systolic, "diastolic_bp": weighed.diastolic}
                ]
            },
            "oxygen_data": {"vo2max_ml_per_min_per_kg": round(body.fitness(self.life, date), 1)},
        }

    def _glucose(self, date: dt.date, now: float, samples: bool) -> Iterator[Record]:
        until = dt.datetime.fromtimestamp(now - SYNC_DELAY, dt.UTC)
        seen, frame = readings(self.life.person, date, date, until=until), self._frame(date)
        if not seen.time.size or frame is None:
            return
        values = np.clip(seen.mg_dl, LOWEST, HIGHEST)
        rise = np.diff(values, prepend=values[0])
        arrows = np.select([rise < -10, rise < -5, rise <= 5, rise <= 10], [1, 2, 3, 4], 5)
        flags = np.select([values < 70, values > 180], [2, 1], 0)
        rows = [
            {
                "timestamp": self._time(time),
                "blood_glucose_mg_per_dL": float(value),
                "glucose_level_flag": flag,
                "trend_arrow": arrow,
            }
            for time, value, flag, arrow in zip(
                seen.time.tolist(), values.tolist(), flags.tolist(), arrows.tolist(), strict=True
            )
        ]
        yield {
            "metadata": frame,
            "glucose_data": {
                "day_avg_blood_glucose_mg_per_dL": round(float(values.mean()), 1),
                # One reading in fifteen minutes, and all there are.
                "blood_glucose_samples": rows[::3] if samples else None,
                "detailed_blood_glucose_samples": rows if samples else None,
                "sensor_usage": len(rows),
            },
        }


def _off(day: Day, night: Night) -> bool:
    return any(begin < night.wake and end > night.bed for begin, end in day.off)
