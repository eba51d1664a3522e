"""Oura documents of one person, by day, in the shapes the vendor sends."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from health_pipeline.sandbox import body, noise
from health_pipeline.sandbox.activity import SOURCES, HeartRate, activity, heart_rate
from health_pipeline.sandbox.life import Day, Life
from health_pipeline.sandbox.night import DEEP, LIGHT, REM, Night, digits, nights
from health_pipeline.sandbox.routers.oura import scores

#: Seconds from waking, or from the end of a workout, to the document: the phone syncs.
SYNC_DELAY = 600

_FOUR = dt.time(4)
_TYPES = {"main": "long_sleep", "flight": "long_sleep", "rest": "rest"}


@dataclass(frozen=True, slots=True)
class Document:
    """A document, the wall-clock time that queries compare, and when it came to be (epoch seconds)."""

    stamp: dt.datetime
    available_at: float
    payload: dict[str, Any]


class Documents:
    """Everything the ring of one person says; `edits` and `deleted` hold revisions by day."""

    def __init__(self, life: Life) -> None:
        self.life = life
        self.person = life.person
        self.edits: dict[dt.date, int] = {}
        self.deleted: set[dt.date] = set()

    def document_id(self, kind: str, day: dt.date, part: object = 0) -> str:
        return self.person.uuid("oura", kind, day.isoformat(), part)

    def _iso(self, instant: float) -> str:
        return self.life.timeline.local(instant).isoformat()

    def _daily(self, kind: str, day: Day, available_at: float, payload: dict[str, Any]) -> list[Document]:
        identity = {"id": self.document_id(kind, day.date)}
        return [Document(dt.datetime.combine(day.date, _FOUR), available_at, identity | payload)]

    def _seen_night(self, date: dt.date) -> tuple[Day, Night] | None:
        """The day's main night as it now stands, if the ring was worn."""
        day = self.life.day(date)
        if day is None or not day.night_worn:
            return None
        main = next(night for night in nights(self.life, day) if night.kind == "main")
        return day, main.edited(25 * self.edits.get(date, 0))

    # Sleep

    def _sleep_day(self, night: Night) -> dt.date:
        """A sleep that ends after 18:00 counts for the next day."""
        return (self.life.timeline.local(night.wake) + dt.timedelta(hours=6)).date()

    def sleep(self, date: dt.date) -> list[Document]:
        """Sleep documents whose `day` is `date`, in order of time."""
        found: list[tuple[Day, Night]] = []
        for back in (1, 0):
            day = self.life.day(date - dt.timedelta(days=back))
            for night in nights(self.life, day) if day else ():
                assert day is not None
                seen = day.night_worn if night.kind == "main" else not _covered(day, night)
                if seen and self._sleep_day(night) == date:
                    edits = self.edits.get(date, 0) if night.kind == "main" else 0
                    found.append((day, night.edited(25 * edits)))
        return [self._sleep(date, period, day, night) for period, (day, night) in enumerate(found)]

    def _sleep(self, date: dt.date, period: int, day: Day, night: Night) -> Document:
        main = night.kind == "main"
        deleted = main and date in self.deleted
        edited = main and self.edits.get(date, 0) > 0
        bed = self.life.timeline.local(night.bed)
        kind = _TYPES.get(night.kind) or ("late_nap" if bed.hour * 60 + bed.minute >= 870 else "sleep")
        phases = night.stages_5_min
        payload = {
            "id": self.document_id("sleep", date, night.kind),
            "average_breath": night.breath,
            "average_heart_rate": night.average_heart_rate or float(self.person.resting_heart_rate + 14),
            "average_hrv": night.average_hrv,
            "awake_time": night.awake_time,
            "bedtime_end": self._iso(night.wake),
            "bedtime_start": bed.isoformat(),
            "day": date.isoformat(),
            "deep_sleep_duration": night.seconds_of(DEEP),
            "efficiency": night.efficiency,
            "heart_rate": _sample(300.0, night.heart_rate, bed),
            "hrv": _sample(300.0, night.hrv, bed),
            "latency": night.latency,
            "light_sleep_duration": night.seconds_of(LIGHT),
            "low_battery_alert": day.index % 17 == 0,
            "lowest_heart_rate": night.lowest_heart_rate,
            "movement_30_sec": digits(night.movement),
            "period": period,
            "readiness": self._readiness(day, night) if main and not deleted else None,
            "readiness_score_delta": 0 if main else None,
            "rem_sleep_duration": night.seconds_of(REM),
            "restless_periods": int((night.movement > 1).sum()),
            "sleep_algorithm_version": "v2",
            "sleep_analysis_reason": "bedtime_edit" if edited else "foreground_sleep_analysis",
            "sleep_phase_30_sec": digits(night.stages),
            "sleep_phase_5_min": phases,
            "sleep_score_delta": 0 if main else None,
            "time_in_bed": night.time_in_bed,
            "total_sleep_duration": night.total_sleep,
            "type": "deleted" if deleted else kind,
            "ring_id": self.person.uuid("oura", "ring"),
            "app_sleep_phase_5_min": phases,
        }
        return Document(dt.datetime.combine(date, _FOUR), night.wake + SYNC_DELAY, payload)

    def daily_sleep(self, date: dt.date) -> list[Document]:
        seen = self._seen_night(date)
        if seen is None:
            return []
        day, night = seen
        score, contributors = scores.sleep(self.life, night)
        gone = date in self.deleted
        return self._daily(
            "daily_sleep",
            day,
            night.wake + SYNC_DELAY,
            {
                "contributors": dict.fromkeys(contributors) if gone else contributors,
                "day": date.isoformat(),
                "score": None if gone else score,
                # Of these two kinds the vendor sends midnight UTC, not 04:00 local.
                "timestamp": f"{date.isoformat()}T00:00:00+00:00",
            },
        )

    def _readiness(self, day: Day, night: Night) -> dict[str, Any]:
        score, contributors = scores.readiness(self.life, day, night)
        return {
            "contributors": contributors,
            "score": score,
            "temperature_deviation": round(day.temperature, 2),
            "temperature_trend_deviation": scores.temperature_trend(self.life, day),
        }

    def daily_readiness(self, date: dt.date) -> list[Document]:
        seen = self._seen_night(date)
        if seen is None:
            return []
        day, night = seen
        morning = self._readiness(day, night)
        if date in self.deleted:
            morning = dict.fromkeys(morning) | {"contributors": dict.fromkeys(morning["contributors"])}
        payload = {"contributors": morning.pop("contributors"), "day": date.isoformat(), **morning}
        payload["timestamp"] = f"{date.isoformat()}T00:00:00+00:00"
        return self._daily("daily_readiness", day, night.wake + SYNC_DELAY, payload)

    def daily_spo2(self, date: dt.date) -> list[Document]:
        seen = self._seen_night(date)
        if seen is None:
            return []
        day, night = seen
        wobble = body.wobble(self.life, day)
        return self._daily(
            "daily_spo2",
            day,
            night.wake + SYNC_DELAY,
            {
                "day": date.isoformat(),
                "spo2_percentage": {"average": round(body.spo2(self.life, day), 3)},
                "breathing_disturbance_index": max(0, round(6 - 2 * wobble + self.person.age(date) / 12)),
            },
        )

    # Days

    def daily_activity(self, date: dt.date) -> list[Document]:
        day = self.life.day(date)
        lived = activity(self.life, day) if day else None
        if day is None or lived is None or not lived.worn.any():
            return []
        met, worn = lived.met, lived.worn
        resting = worn & (lived.asleep | lived.lying)
        high = worn & (met >= 6.0)
        medium = worn & (met >= 3.0) & ~high
        low = worn & (met >= 1.5) & ~high & ~medium & ~resting
        sedentary = worn & ~(resting | high | medium | low)
        seconds = {
            name: int(part.sum()) * 60
            for name, part in (
                ("high", high),
                ("medium", medium),
                ("low", low),
                ("sedentary", sedentary),
                ("rest", resting),
            )
        }
        weight = self.person.weight_kg
        active = round(float(np.maximum(met - 1.3, 0.0)[high | medium | low].sum()) * weight / 60)
        score, contributors = scores.activity(self.life, day, lived, seconds["high"], seconds["medium"])
        walked = round(lived.recorded_steps * body.step_length(self.person) + 8 * active)
        target = round(100 * (4.3 + self.person.daily_steps / 2500))
        start = self.life.timeline.local(day.start)
        return self._daily(
            "daily_activity",
            day,
            day.end,
            {
                "class_5_min": _classes(met, worn, resting),
                "score": score,
                "active_calories": active,
                "average_met_minutes": round(float(met[worn].mean()) * 16) / 16,
                "contributors": contributors,
                "equivalent_walking_distance": walked,
                "high_activity_met_minutes": round(float((met - 1)[high].sum())),
                "high_activity_time": seconds["high"],
                "inactivity_alerts": day.index % 4,
                "low_activity_met_minutes": round(float((met - 1)[low].sum())),
                "low_activity_time": seconds["low"],
                "medium_activity_met_minutes": round(float((met - 1)[medium].sum())),
                "medium_activity_time": seconds["medium"],
                "met": _sample(60.0, np.where(worn, met, 0.1), start),
                "meters_to_target": 20 * target - walked,
                "non_wear_time": int((~worn).sum()) * 60,
                "resting_time": seconds["rest"],
                "sedentary_met_minutes": round(float((met - 1)[sedentary].sum() / 8)),
                "sedentary_time": seconds["sedentary"],
                "steps": lived.recorded_steps,
                "target_calories": target,
                "target_meters": 20 * target,
                "total_calories": active + round(body.basal_kcal(self.person, date) * met.size / 1440),
                "day": date.isoformat(),
                "timestamp": start.isoformat(),
            },
        )

    def daily_stress(self, date: dt.date) -> list[Document]:
        day = self.life.day(date)
        if day is None or (lived := activity(self.life, day)).worn.mean() < 0.4:
            return []
        payload = {"day": date.isoformat(), **scores.stress(day, lived)}
        return self._daily("daily_stress", day, day.end, payload)

    def daily_resilience(self, date: dt.date) -> list[Document]:
        day = self.life.day(date)
        if day is None or day.index < 14 or not day.night_worn:
            return []
        level, contributors = scores.resilience(self.life, day)
        payload = {"day": date.isoformat(), "contributors": contributors, "level": level}
        return self._daily("daily_resilience", day, day.end, payload)

    def daily_cardiovascular_age(self, date: dt.date) -> list[Document]:
        day = self.life.day(date)
        if day is None or day.index < 14 or not day.night_worn:
            return []
        age = body.vascular_age(self.life, day)
        payload = {
            "day": date.isoformat(),
            "pulse_wave_velocity": body.pulse_wave_velocity(age),
            "vascular_age": age,
        }
        return self._daily("daily_cardiovascular_age", day, day.end, payload)

    def vo2_max(self, date: dt.date) -> list[Document]:
        """An estimate after a run or a walk, at most one in five days."""
        day = self.life.day(date)
        outings = [w for w in day.workouts if w.activity in ("running", "walking")] if day else []
        if day is None or day.index % 5 not in (0, 1) or not outings:
            return []
        end = outings[-1].end
        payload = {
            "id": self.document_id("vO2_max", date),
            "day": date.isoformat(),
            "timestamp": self._iso(end),
            "vo2_max": round(body.fitness(self.life, day.date)),
        }
        return [Document(self.life.timeline.local(end).replace(tzinfo=None), end + SYNC_DELAY, payload)]

    def workout(self, date: dt.date) -> list[Document]:
        day = self.life.day(date)
        found: list[Document] = []
        for number, done in enumerate(day.workouts if day else ()):
            assert day is not None
            distance = body.workout_distance(done)
            start = self.life.timeline.local(done.start)
            payload = {
                "id": self.document_id("workout", date, number),
                "activity": done.activity,
                "calories": round(body.workout_kcal(self.person, done), 3),
                "day": start.date().isoformat(),
                "distance": None if distance is None else round(distance, 3),
                "end_datetime": self._iso(done.end),
                "intensity": "easy" if done.met < 4 else "moderate" if done.met < 8 else "hard",
                "label": "long one" if done.minutes > 85 else None,
                "source": "manual" if day.index % 7 == 3 else "confirmed",
                "start_datetime": start.isoformat(),
            }
            if payload["source"] == "manual":
                # What was typed in comes back in UTC.
                payload["start_datetime"] = start.astimezone(dt.UTC).isoformat()
                payload["end_datetime"] = dt.datetime.fromtimestamp(done.end, dt.UTC).isoformat()
            found.append(Document(start.replace(tzinfo=None), done.end + SYNC_DELAY, payload))
        return found

    def heart_rate(self, date: dt.date) -> HeartRate | None:
        """Samples from the night that ended on the date to the end of the day awake."""
        day = self.life.day(date)
        return heart_rate(self.life, day) if day else None

    def kinds(self) -> dict[str, Callable[[dt.date], list[Document]]]:
        """The documents of a day, by the name of their route."""
        return {
            "daily_activity": self.daily_activity,
            "daily_cardiovascular_age": self.daily_cardiovascular_age,
            "daily_readiness": self.daily_readiness,
            "daily_resilience": self.daily_resilience,
            "daily_sleep": self.daily_sleep,
            "daily_spo2": self.daily_spo2,
            "daily_stress": self.daily_stress,
            "sleep": self.sleep,
            "vO2_max": self.vo2_max,
            "workout": self.workout,
        }


def heart_rate_rows(samples: HeartRate, chosen: slice) -> list[dict[str, Any]]:
    """Rows of the heart-rate series, times in UTC."""
    time = samples.time[chosen]
    text = np.datetime_as_string(time.astype("datetime64[s]")).tolist()
    columns = zip(
        samples.bpm[chosen].tolist(), samples.source[chosen].tolist(), text, time.tolist(), strict=True
    )
    return [
        {"bpm": bpm, "source": SOURCES[source], "timestamp": f"{iso}+00:00", "timestamp_unix": 1000 * second}
        for bpm, source, iso, second in columns
    ]


def _covered(day: Day, night: Night) -> bool:
    return any(begin < night.wake and end > night.bed for begin, end in day.off)


def _sample(interval: float, values: noise.Floats, start: dt.datetime) -> dict[str, Any] | None:
    if not values.size:
        return None
    items = [None if value != value else value for value in values.tolist()]
    return {"interval": interval, "items": items, "timestamp": start.isoformat(timespec="milliseconds")}


def _classes(met: noise.Floats, worn: np.ndarray, resting: np.ndarray) -> str:
    """A digit for each five minutes: 0 off, 1 rest, 2 inactive, 3 low, 4 medium, 5 high."""
    whole = met.size // 5 * 5
    mean = met[:whole].reshape(-1, 5).mean(axis=1)
    classes = np.select([mean >= 6.0, mean >= 3.0, mean >= 1.5], [5, 4, 3], 2)
    classes[resting[:whole].reshape(-1, 5).sum(axis=1) >= 3] = 1
    classes[worn[:whole].reshape(-1, 5).sum(axis=1) < 3] = 0
    return digits(classes.astype(np.uint8))
