"""What Withings says of one person: scale, cuff and thermometer at home, a watch on the wrist.

Times are epoch seconds. The account's zone is that of the person's home; days, nights and workouts name the
zone the watch was in.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from health_pipeline.sandbox import body
from health_pipeline.sandbox.activity import SOURCES, HeartRate, activity, heart_rate
from health_pipeline.sandbox.life import Day, Life, Workout
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
from health_pipeline.sandbox.people import EPOCH

#: Seconds until the phone has sent what the watch recorded.
SYNC_DELAY = 600

_ONE_DAY = dt.timedelta(days=1)
_SLEEP = SOURCES.index("sleep")
_STATES = {AWAKE: 0, LIGHT: 1, DEEP: 2, REM: 3}
_SCALE, _CUFF, _WATCH, _THERMOMETER = (
    ("Body Comp", 18),
    ("BPM Connect", 45),
    ("ScanWatch", 93),
    ("Thermo", 70),
)
_CATEGORIES = {
    "walking": 1,
    "running": 2,
    "hiking": 3,
    "cycling": 6,
    "swimming": 7,
    "badminton": 15,
    "strength_training": 16,
    "yoga": 28,
}
_SPEED = {"running": 0.29, "walking": 0.36, "cycling": 0.62, "hiking": 0.22}
#: Climbed floors for a thousand steps.
_FLOORS = 1.2


@dataclass(frozen=True, slots=True)
class Row:
    """A row of an answer, the day and the instant queries compare, and when it came to be and last changed."""

    date: dt.date
    instant: int
    modified: int
    payload: dict[str, Any]


class Documents:
    """Everything Withings has of one person; `edits` holds how often the night of a day was edited."""

    def __init__(self, life: Life) -> None:
        self.life = life
        self.person = life.person
        self.edits: dict[dt.date, tuple[int, int]] = {}

    def number(self, *parts: object) -> int:
        """An id of the kind the vendor uses."""
        return int(self.person.uuid("withings", *parts).replace("-", "")[:9], 16)

    def device(self, name: str) -> str:
        return (self.person.uuid("withings", name) + self.person.uuid(name)).replace("-", "")[:40]

    def _zone(self, instant: float) -> str:
        return self.life.timeline.zone_at(instant).key

    def _local_date(self, instant: float) -> dt.date:
        return self.life.timeline.local(instant).date()

    # Measures

    def measures(self, day: Day) -> list[Row]:
        """The groups of a day, in order of time."""
        rows = [*self._signed_up(day), *self._morning(day)]
        return sorted(rows, key=lambda row: row.instant)

    def _group(
        self,
        day: Day,
        name: str,
        instant: int,
        device: tuple[str, int],
        measures: Sequence[tuple[int, float, int]],
        attrib: int = 0,
    ) -> Row:
        # Every eleventh day the phone stays away from the network until the next one.
        created = instant + (86_400 if day.index % 11 == 4 else 60)
        model, model_id = device
        payload = {
            "grpid": self.number("measure", day.date, name),
            "attrib": attrib,
            "date": instant,
            "created": created,
            "modified": created,
            "category": 1,
            "deviceid": self.device(model),
            "hash_deviceid": self.device(model),
            "measures": [
                {"value": round(value * 10**-unit), "type": kind, "unit": unit, "algo": 0, "fm": 3}
                for kind, value, unit in measures
            ],
            "modelid": model_id,
            "model": model,
        }
        return Row(day.date, instant, created, payload)

    def _signed_up(self, day: Day) -> list[Row]:
        if day.date != EPOCH:
            return []
        return [
            self._group(day, "height", day.wake + 3600, _SCALE, [(4, self.person.height_m, -2)], attrib=4)
        ]

    def _morning(self, day: Day) -> Iterator[Row]:
        if day.night_worn:
            measured = [(54, round(body.spo2(self.life, day), 1), -1)]
            yield self._group(day, "spo2", day.wake + 300, _WATCH, measured)
        if day.illness > 0.3:
            yield self._group(day, "temperature", day.wake + 600, _THERMOMETER, [(71, warmth(day), -2)])
        found = body.weigh_in(self.life, day)
        if found is None:
            return
        age = body.vascular_age(self.life, day)
        composition = [
            (1, found.weight, -3),
            (5, round(found.weight - found.fat, 2), -2),
            (6, found.fat_percent, -1),
            (8, found.fat, -2),
            (76, found.muscle, -2),
            (77, found.water, -2),
            (88, found.bone, -2),
            (91, body.pulse_wave_velocity(age), -3),
            (155, age, 0),
        ]
        scale = self._group(day, "scale", found.instant, _SCALE, composition)
        yield scale
        if day.index % 5 == 2:
            # The vendor gives some groups a second time, with another word for "sure".
            yield Row(scale.date, scale.instant, scale.modified, {**scale.payload, "attrib": 8})
        if day.index % 9 == 3:
            # A guest on the scale, who may be anybody.
            guest = [(1, found.weight + 21.5, -3)]
            yield self._group(day, "guest", found.instant + 300, _SCALE, guest, attrib=1)
        pressure = [(9, found.diastolic, 0), (10, found.systolic, 0), (11, found.pulse, 0)]
        yield self._group(day, "cuff", found.instant + 120, _CUFF, pressure)

    # Days

    def activity(self, day: Day) -> Row | None:
        """The day's sums, once it is over."""
        lived = activity(self.life, day)
        if not lived.worn.any():
            return None
        seen = effort(self.life, day)
        pulse = heart_rate(self.life, day).bpm
        met, resting = lived.met, lived.asleep | lived.lying
        modified = day.end + SYNC_DELAY
        payload = {
            "date": day.date.isoformat(),
            "timezone": self._zone(day.start),
            "deviceid": self.device("ScanWatch"),
            "hash_deviceid": self.device("ScanWatch"),
            "brand": 1,
            "is_tracker": True,
            "modified": modified,
            "model": "ScanWatch",
            "modelid": 93,
            "steps": lived.recorded_steps,
            "distance": seen["distance"],
            "elevation": seen["floors"],
            "soft": 60 * int((lived.worn & ~resting & (met >= 1.5) & (met < 3.0)).sum()),
            "moderate": 60 * int((lived.worn & (met >= 3.0) & (met < 6.0)).sum()),
            "intense": 60 * int((lived.worn & (met >= 6.0)).sum()),
            "active": 60 * int((lived.worn & (met >= 3.0)).sum()),
            "calories": seen["active"],
            "totalcalories": seen["total"],
        }
        if pulse.size:
            ceiling = 208 - 0.7 * self.person.age(day.date)
            bounds = (pulse[:, None] >= ceiling * np.array([0.5, 0.7, 0.9])).sum(axis=1)
            payload |= {
                "hr_average": round(float(pulse.mean())),
                "hr_min": int(pulse.min()),
                "hr_max": int(pulse.max()),
                **{f"hr_zone_{zone}": 60 * int((bounds == zone).sum()) for zone in range(4)},
            }
        return Row(day.date, day.start, modified, payload)

    def intraday(self, first: int, last: int) -> dict[int, dict[str, Any]]:
        """What the watch recorded from `first` to `last`, both included, by epoch second; not the nights."""
        found: dict[int, dict[str, Any]] = {}
        device = {
            "deviceid": self.device("ScanWatch"),
            "hash_deviceid": self.device("ScanWatch"),
            "model": "ScanWatch",
            "model_id": 93,
        }
        length = body.step_length(self.person)
        for day in self._days_around(first, last):
            lived = activity(self.life, day)
            walked = np.flatnonzero(lived.worn & (lived.steps > 0))
            for minute, steps in zip(walked.tolist(), lived.steps[walked].tolist(), strict=True):
                moved = {"steps": steps, "distance": round(steps * length, 2), "duration": 60}
                found[day.start + 60 * minute] = device | moved
            samples = heart_rate(self.life, day)
            for awake, time, bpm in zip(
                samples.source != _SLEEP, samples.time.tolist(), samples.bpm.tolist(), strict=True
            ):
                if awake:
                    found[time] = found.get(time, device) | {"heart_rate": bpm}
        return {time: found[time] for time in sorted(found) if first <= time <= last}

    def _days_around(self, first: int, last: int) -> list[Day]:
        start, end = (self._local_date(instant) for instant in (first, last))
        return self.life.days(max(EPOCH, start - 2 * _ONE_DAY), end + 2 * _ONE_DAY)

    # Workouts

    def workouts(self, day: Day) -> list[Row]:
        return [self._workout(day, number, done) for number, done in enumerate(day.workouts)]

    def _workout(self, day: Day, number: int, done: Workout) -> Row:
        date = self._local_date(done.start)
        speed = _SPEED.get(done.activity)
        lived = activity(self.life, day)
        part = slice((done.start - day.start) // 60, (done.end - day.start) // 60)
        values: dict[str, Any] = {
            "calories": round(done.met * self.person.weight_kg * done.minutes / 60),
            "intensity": 30 if done.met < 4 else 50 if done.met < 8 else 80,
            "manual_distance": 0,
            "manual_calories": 0,
            "pause_duration": 0,
            "steps": int(lived.steps[part].sum()),
        }
        if speed is not None:
            values["distance"] = round(speed * done.met * done.minutes * 60)
        samples = heart_rate(self.life, day)
        pulse = samples.bpm[(samples.time >= done.start) & (samples.time < done.end)]
        if pulse.size:
            values |= {
                "hr_average": round(float(pulse.mean())),
                "hr_min": int(pulse.min()),
                "hr_max": int(pulse.max()),
            }
        modified = done.end + SYNC_DELAY
        payload = {
            "id": self.number("workout", day.date, number),
            "category": _CATEGORIES[done.activity],
            "timezone": self._zone(done.start),
            "model": 93,
            "attrib": 7 if day.index % 7 == 3 else 0,
            "startdate": done.start,
            "enddate": done.end,
            "date": date.isoformat(),
            "modified": modified,
            "deviceid": self.device("ScanWatch"),
            "data": values,
        }
        return Row(date, done.start, modified, payload)

    # Sleep

    def seen_sleeps(self, day: Day) -> list[Night]:
        """The sleeps that the watch recorded, as they now stand."""
        found = []
        for night in nights(self.life, day):
            if night.kind == "main" and day.night_worn:
                found.append(night.edited(25 * self.edits.get(day.date, (0, 0))[0]))
            elif night.kind in ("nap", "flight") and not _covered(day, night):
                found.append(night)
        return found

    def sleeps(self, day: Day) -> list[Row]:
        """A summary for each sleep; its date is the one on the wall where the person woke up."""
        return [self._summary(day, night) for night in self.seen_sleeps(day)]

    def _summary(self, day: Day, night: Night) -> Row:
        pulse = night.heart_rate[~np.isnan(night.heart_rate)]
        hrv = night.hrv[~np.isnan(night.hrv)]
        asleep = night.total_sleep
        after = night.awake_time - night.latency
        last = int(np.flatnonzero(night.stages != AWAKE)[-1]) + 1
        in_bed_after = max(0, night.wake - night.bed - EPOCH_SECONDS * last)
        episodes = np.diff(np.concatenate([[0], (night.stages == REM).astype(np.int8)]))
        created = night.wake + SYNC_DELAY
        modified = max(created, self.edits.get(day.date, (0, 0))[1]) if night.kind == "main" else created
        half = hrv.size // 2
        date = self._local_date(night.wake)
        payload = {
            "id": self.number("sleep", day.date, night.kind),
            "timezone": self._zone(night.wake),
            "model": 16,
            "model_id": 93,
            "hash_deviceid": self.device("ScanWatch"),
            "startdate": night.bed,
            "enddate": night.wake,
            "date": date.isoformat(),
            "completed": True,
            "created": created,
            "modified": modified,
            "data": {
                "total_timeinbed": night.time_in_bed,
                "total_sleep_time": asleep,
                "lightsleepduration": night.seconds_of(LIGHT),
                "deepsleepduration": night.seconds_of(DEEP),
                "remsleepduration": night.seconds_of(REM),
                "wakeupduration": night.awake_time,
                "sleep_efficiency": round(asleep / night.time_in_bed, 3),
                "sleep_latency": night.latency,
                "wakeup_latency": in_bed_after,
                "waso": max(0, after - in_bed_after),
                "durationtosleep": night.latency,
                "durationtowakeup": in_bed_after,
                "wakeupcount": max(0, int((np.diff((night.stages == AWAKE).astype(np.int8)) == 1).sum()) - 1),
                "nb_rem_episodes": int((episodes == 1).sum()),
                "out_of_bed_count": 0,
                "hr_average": round(float(pulse.mean())),
                "hr_min": night.lowest_heart_rate,
                "hr_max": int(pulse.max()),
                "rr_average": round(night.breath),
                "rr_min": round(night.breath) - 2,
                "rr_max": round(night.breath) + 3,
                "snoring": 0,
                "snoringepisodecount": 0,
                "sleep_score": score(night),
                "rmssd_start_avg": round(float(hrv[:half].mean()), 1),
                "rmssd_end_avg": round(float(hrv[half:].mean()), 1),
            },
        }
        return Row(date, night.bed, modified, payload)

    def parts(self, first: int, last: int, until: int) -> list[dict[str, Any]]:
        """The parts of the sleeps known by `until` that begin from `first` to `last`."""
        found = [
            part
            for day in self._days_around(first, last)
            for night in self.seen_sleeps(day)
            if night.wake + SYNC_DELAY <= until and night.bed <= last and night.wake > first
            for part in self._parts(night)
        ]
        return [part for part in found if first <= part["startdate"] < last]

    def _parts(self, night: Night) -> Iterator[dict[str, Any]]:
        edges = np.concatenate([[0], np.flatnonzero(np.diff(night.stages)) + 1, [night.stages.size]])
        for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            start = night.bed + EPOCH_SECONDS * begin
            stop = min(night.bed + EPOCH_SECONDS * end, night.wake)
            if stop <= start:
                continue
            part: dict[str, Any] = {
                "startdate": start,
                "enddate": stop,
                "state": _STATES[int(night.stages[begin])],
                "model": "ScanWatch",
                "model_id": 93,
                "hash_deviceid": self.device("ScanWatch"),
            }
            for name, series in (("hr", night.heart_rate), ("rmssd", night.hrv)):
                part[name] = _samples(night.bed, series, start, stop)
            yield part


def effort(life: Life, day: Day) -> dict[str, float]:
    """Distance (m), floors, active and total energy (kcal) of a day, as far as the watch was worn."""
    lived = activity(life, day)
    active = round(float(body.active_kcal(life.person, lived)[lived.worn].sum()), 3)
    basal = body.basal_kcal(life.person, day.date) * lived.met.size / 1440
    return {
        "distance": round(lived.recorded_steps * body.step_length(life.person), 3),
        "floors": int(lived.recorded_steps * _FLOORS / 1000),
        "active": active,
        "total": round(active + basal, 3),
    }


def warmth(day: Day) -> float:
    """Body temperature of a morning with fever, °C."""
    return round(36.6 + day.temperature, 2)


def awake_pulse(samples: HeartRate) -> HeartRate:
    """The samples that do not belong to a sleep."""
    keep = samples.source != _SLEEP
    return HeartRate(samples.time[keep], samples.bpm[keep], samples.source[keep])


def score(night: Night) -> int:
    """More for long sleep with few wakings; the vendor's formula is its own."""
    length = min(1.0, night.total_sleep / (7.5 * 3600))
    return max(1, min(100, round(60 * length + 0.4 * night.efficiency)))


def _samples(bed: int, series: np.ndarray, start: int, stop: int) -> dict[str, int]:
    """The samples of a night that lie in a part of it, by epoch second."""
    times = bed + SAMPLE_SECONDS * np.arange(series.size)
    chosen = (times >= start) & (times < stop) & ~np.isnan(series)
    pairs = zip(times[chosen].tolist(), series[chosen].tolist(), strict=True)
    return {str(time): int(value) for time, value in pairs}


def _covered(day: Day, night: Night) -> bool:
    return any(begin < night.wake and end > night.bed for begin, end in day.off)
