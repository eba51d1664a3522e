"""Dexcom's records of one person, in the shapes the vendor sends."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from health_pipeline.sandbox.activity import Flags, Ints
from health_pipeline.sandbox.glucose import HIGHEST, LOWEST, glucose, meals, midnight, sensor_life
from health_pipeline.sandbox.life import Day, Life
from health_pipeline.sandbox.noise import Floats
from health_pipeline.sandbox.people import EPOCH

Record = dict[str, Any]

#: How far the receiver's clock, which is set by hand, is ahead (seconds).
RECEIVER_CLOCK_ERROR = 130

_ONE_DAY = dt.timedelta(days=1)
_LOW_ALERT, _HIGH_ALERT = 70, 250
_TRENDS = (
    (-3.0, "doubleDown"),
    (-2.0, "singleDown"),
    (-1.0, "fortyFiveDown"),
    (1.0, "flat"),
    (2.0, "fortyFiveUp"),
    (3.0, "singleUp"),
)


@dataclass(frozen=True, slots=True)
class Series:
    """A day's sensor readings: epoch seconds, mg/dL as sent (39 and 401 beyond the range), when they came.

    `rate` is mg/dL a minute, NaN where the reading before is missing.
    """

    time: Ints
    value: Ints
    rate: Floats
    available_at: Ints


class Records:
    """Everything one person's sensor and apps say; `revisions` holds what they changed, by day."""

    def __init__(self, life: Life) -> None:
        self.life = life
        self.person = life.person
        self.revisions: dict[dt.date, Literal["edit", "delete"]] = {}
        # Data of people outside the United States is told two hours later still.
        self._delay = 3600 if self.person.zone.startswith("America/") else 3 * 3600

    def days(self, first: float, last: float) -> list[Day]:
        """The days that may hold something between two instants."""
        if self.person.cgm is None:
            return []
        start = max(self.life.timeline.local(first).date() - _ONE_DAY, EPOCH)
        end = self.life.timeline.local(last).date() + _ONE_DAY
        return self.life.days(start, end) if start <= end else []

    def on_receiver(self, day: Day) -> bool:
        """Whether the person left the phone at home; the receiver is read out at the end of the day."""
        return day.index % 9 == 4

    def series(self, day: Day) -> Series:
        seen = glucose(self.life, day)
        value = np.clip(seen.mg_dl, LOWEST - 1, HIGHEST + 1)
        rate = np.full(value.size, np.nan)
        if value.size > 1:
            apart = np.diff(seen.time)
            rate[1:] = np.where(apart < 900, np.diff(value) * 60 / apart, np.nan)
        uploaded = np.full(value.size, day.end) if self.on_receiver(day) else seen.time
        return Series(seen.time, value, np.round(rate, 1), uploaded + self._delay)

    def local_days(self, start: dt.date, end: dt.date, now: float) -> Iterator[tuple[dt.date, Ints]]:
        """The values told by `now`, by local date from midnight to midnight; dates without any are left out."""
        if self.person.cgm is None:
            return
        parts = [self.series(day) for day in self.life.days(start - _ONE_DAY, end + _ONE_DAY)]
        if not parts:
            return
        time = np.concatenate([part.time for part in parts])
        value = np.concatenate([part.value for part in parts])
        told = np.concatenate([part.available_at for part in parts]) <= now
        date = start
        while date <= end:
            first, last = midnight(self.life, date), midnight(self.life, date + _ONE_DAY)
            of_date = told & (time >= first) & (time < last)
            if of_date.any():
                yield date, value[of_date]
            date += _ONE_DAY

    def eaten(self, start: dt.date, end: dt.date, now: float) -> dict[dt.date, int]:
        """Grams of carbohydrates that were entered and are told by `now`, by local date from midnight to midnight."""
        grams: dict[dt.date, int] = {}
        if self.person.cgm is None:
            return grams
        for day in self.life.days(start - _ONE_DAY, end + _ONE_DAY):
            for _, available_at, record in self.events(day):
                date = dt.date.fromisoformat(record["displayTime"][:10])
                kept = record["eventType"] == "carbs" and record["eventStatus"] != "deleted"
                if kept and available_at <= now and start <= date <= end:
                    grams[date] = grams.get(date, 0) + int(record["value"])
        return grams

    # Records, each with the instant it is selected by and when it came to be

    def egvs(self, day: Day) -> Iterator[tuple[int, int, Record]]:
        series = self.series(day)
        device = self._device(day)
        columns = zip(
            *(part.tolist() for part in (series.time, series.value, series.rate, series.available_at)),
            strict=True,
        )
        for time, value, rate, available_at in columns:
            known = rate == rate
            yield (
                time,
                available_at,
                {
                    **self._times("egv", time, day),
                    "transmitterTicks": time - day.start + 7200,
                    "value": value,
                    "status": "low" if value < LOWEST else "high" if value > HIGHEST else None,
                    "trend": _trend(rate) if known else "none",
                    "trendRate": rate if known else None,
                    "unit": "mg/dL",
                    "rateUnit": "mg/dL/min",
                    **device,
                },
            )

    def calibrations(self, day: Day) -> Iterator[tuple[int, int, Record]]:
        if self.person.cgm != "type_1" or day.index % 5 != 2:
            return
        time = day.wake + 1000
        record = {
            **self._times("calibration", time, day),
            "transmitterTicks": time - day.start + 7200,
            "value": self._finger_stick(day),
            "unit": "mg/dL",
            **self._device(day),
        }
        yield time, time + self._delay, record

    def events(self, day: Day) -> Iterator[tuple[int, int, Record]]:
        entered: list[tuple[int, str, str | None, str, str]] = []
        for meal in meals(self.life, day):
            entered.append((meal.time, "carbs", None, str(meal.carbs), "grams"))
            if meal.insulin:
                entered.append((meal.time - 300, "insulin", "fastActing", f"{meal.insulin:g}", "units"))
        for workout in day.workouts:
            effort = "light" if workout.met < 4 else "medium" if workout.met < 8 else "heavy"
            entered.append((workout.start, "exercise", effort, str(workout.minutes), "minutes"))
        if day.index % (2 if self.person.cgm == "type_1" else 7) == 0:
            entered.append((day.wake + 900, "bloodGlucose", None, str(self._finger_stick(day)), "mg/dL"))
        entered.sort()
        kinds = [kind for _, kind, *_ in entered]
        revised = kinds.index("bloodGlucose") if "bloodGlucose" in kinds else 0
        revision = self.revisions.get(day.date)
        for number, (time, kind, detail, value, unit) in enumerate(entered):
            status = "created"
            if revision is not None and number == revised:
                status = "deleted" if revision == "delete" else "updated"
                value = value if revision == "delete" else str(int(float(value)) + 7)
            recorded = self._times("", time + 240, day)
            record = {
                **self._times("event", time, day, number),
                "recordedSystemTime": recorded["systemTime"],
                "recordedDisplayTime": recorded["displayTime"],
                "eventStatus": status,
                "eventType": kind,
                "eventSubType": detail,
                "value": value,
                "unit": unit,
                **self._device(day),
            }
            yield time, time + 240 + self._delay, record

    def alerts(self, day: Day) -> Iterator[tuple[int, int, Record]]:
        series = self.series(day)
        device = self._device(day)
        for name, on in (("low", series.value < _LOW_ALERT), ("high", series.value > _HIGH_ALERT)):
            for place in _changes(on):
                time = int(series.time[place])
                record = {
                    **self._times(f"alert {name}", time, day),
                    "alertName": name,
                    "alertState": "activeAlarming" if on[place] else "inactive",
                    **device,
                }
                yield time, int(series.available_at[place]), record

    def devices(self, now: float) -> list[Record]:
        """The phone, and the receiver since it was last read out."""
        found = []
        days = self.days(now - 20 * 86_400, now - self._delay)
        for receiver in (False, True):
            used = [
                day for day in days if self.on_receiver(day) is receiver and day.start + self._delay <= now
            ]
            if receiver:
                used = [day for day in used if day.end + self._delay <= now]
            if used:
                last = used[-1].end if receiver else int(now - self._delay)
                found.append(
                    {
                        "lastUploadDate": _utc(last),
                        **self._device(used[-1]),
                        "alertSchedules": [
                            {
                                "alertScheduleSettings": {
                                    "alertScheduleName": "Default Schedule",
                                    "isEnabled": True,
                                    "isDefaultSchedule": True,
                                    "startTime": "00:00",
                                    "endTime": "00:00",
                                    "daysOfWeek": ["sunday", "monday", "tuesday", "wednesday"],
                                },
                                "alertSettings": [
                                    {
                                        "alertName": "low",
                                        "value": _LOW_ALERT,
                                        "unit": "mg/dL",
                                        "snooze": 30,
                                        "enabled": True,
                                    }
                                ],
                            }
                        ],
                    }
                )
        return found

    def stamp(self, instant: int, *, receiver: bool = False) -> Record:
        """An instant as the device's clock in UTC and as what its display showed."""
        local = self.life.timeline.local(instant)
        if receiver:
            shown = local.replace(tzinfo=None) + dt.timedelta(seconds=RECEIVER_CLOCK_ERROR)
            return {"systemTime": _utc(instant), "displayTime": shown.isoformat()}
        return {"systemTime": _utc(instant), "displayTime": local.isoformat()}

    def _times(self, kind: str, instant: int, day: Day, part: object = 0) -> Record:
        stamp = self.stamp(instant, receiver=self.on_receiver(day))
        return {"recordId": self.person.uuid("dexcom", kind, instant, part), **stamp} if kind else stamp

    def _device(self, day: Day) -> Record:
        lasts, _ = sensor_life(self.person)
        sensor = self.person.uuid("dexcom", "sensor", (day.index + 3) // lasts)
        receiver = self.on_receiver(day)
        return {
            "transmitterId": hashlib.sha256(sensor.encode()).hexdigest(),
            "transmitterGeneration": "g7",
            "displayDevice": "receiver" if receiver else "iOS",
            "displayApp": None if receiver else "G7",
        }

    def _finger_stick(self, day: Day) -> int:
        seen = glucose(self.life, day, gaps=False)
        place = min(int(np.searchsorted(seen.time, day.wake + 900)), seen.time.size - 1)
        return int(np.clip(seen.mg_dl[place], LOWEST, HIGHEST)) + day.index % 9 - 4


def _utc(instant: int) -> str:
    return f"{dt.datetime.fromtimestamp(instant, dt.UTC):%Y-%m-%dT%H:%M:%SZ}"


def _trend(rate: float) -> str:
    for limit, word in _TRENDS:
        if rate <= limit:
            return word
    return "doubleUp"


def _changes(on: Flags) -> list[int]:
    """Places at which a flag begins or ends; a day begins without it."""
    before = np.concatenate([[False], on[:-1]])
    return [int(place) for place in np.flatnonzero(on != before)]
