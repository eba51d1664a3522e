"""WHOOP records of one person, by day, in the shapes the vendor sends.

A cycle of a date begins with the main sleep that ended on it and lasts until the next one begins.
"""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from health_pipeline.sandbox import body, noise
from health_pipeline.sandbox.activity import activity, heart_rate
from health_pipeline.sandbox.life import Day, Life, Workout
from health_pipeline.sandbox.night import DEEP, LIGHT, REM, Night, nights
from health_pipeline.sandbox.people import EPOCH

#: Seconds from waking, or from the end of a workout, to the record, and on to its score.
SYNC_DELAY = 600
SCORE_DELAY = 1800

KILOJOULES = 4.184
#: Wearers of a strap without the sensors for oxygen and temperature.
OLD_STRAPS = frozenset({"eli"})

_SPORTS = {"strength_training": "weightlifting", "hiking": "hiking-rucking"}
_ZONES = ("zero", "one", "two", "three", "four", "five")


@dataclass(frozen=True, slots=True)
class Record:
    """A record and the span that queries compare (epoch seconds)."""

    start: float
    end: float
    payload: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Strain:
    """What a cycle came to, as far as the strap saw it."""

    strain: float
    kcal: float
    average_heart_rate: int
    max_heart_rate: int


class Documents:
    """Everything the strap of one person says. `edits` (with when they were made) and `deleted` are revisions
    of the main sleep, by day.
    """

    def __init__(self, life: Life) -> None:
        self.life = life
        self.person = life.person
        self.edits: dict[dt.date, tuple[int, float]] = {}
        self.deleted: set[dt.date] = set()
        self.user_id = 10_000 + self._number("user", 9_000_000)
        self._first_cycle = 100_000 * (1000 + self._number("cycle", 9000))

    def _number(self, topic: str, below: int) -> int:
        return noise.key(self.person.seed, self.person.handle, "whoop", topic) % below

    def uuid(self, kind: str, day: dt.date, part: object = 0) -> str:
        return self.person.uuid("whoop", kind, day.isoformat(), part)

    def cycle_id(self, day: Day) -> int:
        return self._first_cycle + day.index

    def date_of_cycle(self, cycle_id: int) -> dt.date | None:
        index = cycle_id - self._first_cycle
        return EPOCH + dt.timedelta(days=index) if 0 <= index < 100_000 else None

    def main_sleep(self, day: Day) -> Night | None:
        """The day's main sleep as it now stands; None where the strap was off or its owner deleted it."""
        if not day.night_worn or day.date in self.deleted:
            return None
        main = next(night for night in nights(self.life, day) if night.kind == "main")
        return main.edited(25 * self.edits.get(day.date, (0, 0.0))[0])

    @staticmethod
    def scorable(day: Day) -> bool:
        """Whether the strap saw enough of the night to score it."""
        return day.index % 43 != 7

    @property
    def has_oxygen(self) -> bool:
        return self.person.handle not in OLD_STRAPS

    # Records of a date, newest first; `now` is in epoch seconds

    def sleeps(self, date: dt.date, now: float) -> list[Record]:
        day = self.life.day(date)
        if day is None:
            return []
        main = self.main_sleep(day)
        found = [] if main is None else [self._sleep(day, main, "main", now)]
        found += [
            self._sleep(day, night, night.kind, now)
            for night in nights(self.life, day)
            if night.kind in ("nap", "flight") and not _covered(day, night)
        ]
        return [record for record in reversed(found) if record.end + SYNC_DELAY <= now]

    def recoveries(self, date: dt.date, now: float) -> list[Record]:
        day = self.life.day(date)
        night = self.main_sleep(day) if day is not None else None
        if day is None or night is None or night.wake + SCORE_DELAY > now:
            return []
        payload = {
            "cycle_id": self.cycle_id(day),
            "sleep_id": self.uuid("sleep", date, "main"),
            "user_id": self.user_id,
            "created_at": _text(night.wake + SCORE_DELAY),
            "updated_at": _text(max(night.wake + SCORE_DELAY, self.edits.get(date, (0, 0.0))[1])),
        }
        if self.scorable(day):
            payload |= {"score_state": "SCORED", "score": self._recovery_score(day, night)}
        else:
            payload["score_state"] = "UNSCORABLE"
        return [Record(night.bed, night.wake, payload)]

    def cycles(self, date: dt.date, now: float) -> list[Record]:
        day = self.life.day(date)
        if day is None or day.wake + SYNC_DELAY > now:
            return []
        ends = self.cycle_end(day, now)
        payload: dict[str, Any] = {
            "id": self.cycle_id(day),
            "user_id": self.user_id,
            "created_at": _text(day.wake + SYNC_DELAY),
            "updated_at": _text(self._cycle_told(day, ends, now)),
            "start": _text(day.bed),
            "timezone_offset": self._offset(day.wake),
        }
        if ends is not None:
            payload["end"] = _text(ends)
        strain = self.strain(day, now)
        if day.wake + SCORE_DELAY > now:
            payload["score_state"] = "PENDING_SCORE"
        elif strain is None:
            payload["score_state"] = "UNSCORABLE"
        else:
            payload["score_state"] = "SCORED"
            payload["score"] = {
                "strain": round(strain.strain, 5),
                "kilojoule": round(strain.kcal * KILOJOULES, 3),
                "average_heart_rate": strain.average_heart_rate,
                "max_heart_rate": strain.max_heart_rate,
            }
        return [Record(day.bed, now if ends is None else ends, payload)]

    def workouts(self, date: dt.date, now: float) -> list[Record]:
        day = self.life.day(date)
        if day is None:
            return []
        return [
            self._workout(day, number, done, now)
            for number, done in reversed(list(enumerate(day.workouts)))
            if done.end + SYNC_DELAY <= now
        ]

    def body_measurement(self, date: dt.date) -> dict[str, Any]:
        return {
            "height_meter": self.person.height_m,
            "weight_kilogram": self.person.weight_kg,
            "max_heart_rate": self._highest_heart_rate(date),
        }

    # Values

    def cycle_end(self, day: Day, now: float) -> int | None:
        """When the cycle ended; None as long as no sleep after it has been seen."""
        following = self.life.next(day)
        return following.bed if following.wake + SYNC_DELAY <= now else None

    def _cycle_told(self, day: Day, ends: int | None, now: float) -> int:
        """When the cycle was last changed: its end is known once the sleep after it is."""
        if ends is not None:
            return self.life.next(day).wake + SYNC_DELAY
        return day.wake + (SCORE_DELAY if day.wake + SCORE_DELAY <= now else SYNC_DELAY)

    def strain(self, day: Day, now: float) -> Strain | None:
        """What the cycle has come to by now; None where the strap was never on."""
        samples = heart_rate(self.life, day)
        until = min(now, self.life.next(day).bed)
        bpm = samples.bpm[samples.time < until]
        if not bpm.size:
            return None
        lived = activity(self.life, day)
        minutes = slice(0, max(0, int(until - lived.start) // 60))
        worn = lived.worn[minutes]
        load = float(np.maximum(lived.met[minutes] - 1.5, 0.0)[worn].sum()) / 4.5
        rest = body.basal_kcal(self.person, day.date) * (until - day.bed) / 86_400
        return Strain(
            strain=21 * (1 - math.exp(-load / 110)),
            kcal=rest + float(body.active_kcal(self.person, lived)[minutes][worn].sum()),
            average_heart_rate=round(float(bpm.mean())),
            max_heart_rate=int(bpm.max()),
        )

    def recovery_percent(self, day: Day) -> float:
        hrv = math.log(day.hrv / self.person.hrv_ms)
        heart = day.resting_heart_rate - self.person.resting_heart_rate
        return float(max(1, min(99, round(62 + 70 * hrv - 2.2 * heart))))

    def skin_temperature(self, day: Day) -> float:
        return round(33.6 + self._number("skin", 10) / 10 + day.temperature, 3)

    def _recovery_score(self, day: Day, night: Night) -> dict[str, Any]:
        score = {
            "user_calibrating": day.index < 4,
            "recovery_score": self.recovery_percent(day),
            "resting_heart_rate": float(night.lowest_heart_rate),
            "hrv_rmssd_milli": round(float(np.nanmean(night.hrv)), 6),
        }
        if self.has_oxygen:
            score["spo2_percentage"] = round(body.spo2(self.life, day), 4)
            score["skin_temp_celsius"] = self.skin_temperature(day)
        return score

    def _sleep(self, day: Day, night: Night, part: str, now: float) -> Record:
        main = part == "main"
        edited_at = self.edits.get(day.date, (0, 0.0))[1] if main else 0.0
        scored = night.wake + SCORE_DELAY <= now
        payload: dict[str, Any] = {
            "id": self.uuid("sleep", day.date, part),
            "cycle_id": self.cycle_id(day),
            "user_id": self.user_id,
            "created_at": _text(night.wake + SYNC_DELAY),
            "updated_at": _text(max(night.wake + (SCORE_DELAY if scored else SYNC_DELAY), edited_at)),
            "start": _text(night.bed),
            "end": _text(night.wake),
            "timezone_offset": self._offset(night.wake),
            "nap": not main,
        }
        if not scored:
            payload["score_state"] = "PENDING_SCORE"
        elif main and not self.scorable(day):
            payload["score_state"] = "UNSCORABLE"
        else:
            payload |= {"score_state": "SCORED", "score": self._sleep_score(day, night)}
        return Record(night.bed, night.wake, payload)

    def _sleep_score(self, day: Day, night: Night) -> dict[str, Any]:
        debt = 60_000 * (day.index % 45)
        strained = int(12_000 * day.load)
        needed = 27_120_740 + debt + strained
        return {
            "stage_summary": {
                "total_in_bed_time_milli": 1000 * night.time_in_bed,
                "total_awake_time_milli": 1000 * night.awake_time,
                "total_no_data_time_milli": 0,
                "total_light_sleep_time_milli": 1000 * night.seconds_of(LIGHT),
                "total_slow_wave_sleep_time_milli": 1000 * night.seconds_of(DEEP),
                "total_rem_sleep_time_milli": 1000 * night.seconds_of(REM),
                "sleep_cycle_count": max(1, night.time_in_bed // 5700),
                "disturbance_count": int((night.movement > 2).sum()) // 8,
            },
            "sleep_needed": {
                "baseline_milli": 27_120_740,
                "need_from_sleep_debt_milli": debt,
                "need_from_recent_strain_milli": strained,
                "need_from_recent_nap_milli": 0,
            },
            "respiratory_rate": night.breath,
            "sleep_performance_percentage": float(min(100, round(100_000 * night.total_sleep / needed))),
            "sleep_consistency_percentage": float(60 + (7 * day.index) % 35),
            "sleep_efficiency_percentage": round(100 * night.total_sleep / night.time_in_bed, 5),
        }

    def _workout(self, day: Day, number: int, done: Workout, now: float) -> Record:
        samples = heart_rate(self.life, day)
        bpm = samples.bpm[(samples.time >= done.start) & (samples.time < done.end)]
        payload: dict[str, Any] = {
            "id": self.uuid("workout", day.date, number),
            "user_id": self.user_id,
            "created_at": _text(done.end + SYNC_DELAY),
            "updated_at": _text(done.end + SYNC_DELAY),
            "start": _text(done.start),
            "end": _text(done.end),
            "timezone_offset": self._offset(done.end),
            "sport_name": _SPORTS.get(done.activity, done.activity),
        }
        if done.end + SCORE_DELAY > now:
            payload["score_state"] = "PENDING_SCORE"
        elif not bpm.size:
            payload["score_state"] = "UNSCORABLE"
        else:
            distance = body.workout_distance(done)
            shares = np.clip(bpm * 10 // self._highest_heart_rate(day.date) - 4, 0, 5)
            length = 1000 * (done.end - done.start)
            payload["score_state"] = "SCORED"
            payload["score"] = {
                "strain": round(21 * (1 - math.exp(-done.load / 110)), 4),
                "average_heart_rate": round(float(bpm.mean())),
                "max_heart_rate": int(bpm.max()),
                "kilojoule": round(body.workout_kcal(self.person, done) * KILOJOULES, 3),
                "percent_recorded": round(min(1.0, bpm.size / done.minutes), 4),
                **({} if distance is None else {"distance_meter": round(distance, 3)}),
                "zone_durations": {
                    f"zone_{name}_milli": int(length * float((shares == zone).mean()))
                    for zone, name in enumerate(_ZONES)
                },
            }
        return Record(done.start, done.end, payload)

    def _highest_heart_rate(self, date: dt.date) -> int:
        return round(208 - 0.7 * self.person.age(date))

    def _offset(self, instant: float) -> str:
        minutes = self.life.timeline.offset_seconds(instant) // 60
        if minutes == 0:
            return "Z"
        return f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}"


def _covered(day: Day, night: Night) -> bool:
    return any(begin < night.wake and end > night.bed for begin, end in day.off)


def _text(instant: float) -> str:
    moment = dt.datetime.fromtimestamp(instant, dt.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03}Z"
