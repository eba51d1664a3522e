"""Bodies of providers' answers over many synthetic people, made whole days at a time: a load, not a life.

A day of a person is the same whenever it is made, whatever is made beside it. Numbers are of the sizes, spreads and
rhythms that people's are, but nothing hangs together as it does in the sandbox's people: a bad night raises no pulse.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import orjson

ZONES = ("Europe/Berlin", "America/New_York", "UTC", "Asia/Tokyo")
_NAMESPACE = uuid.UUID("0c8f3a52-6f0e-4c43-9c0b-31f2f5d3c6b1")
_DAY_SECONDS = 86_400
_GLUCOSE_SECONDS = 300
#: Share of the day on which a ring is charged or loses the pulse.
_PULSE_LOST = 0.06


class Body(NamedTuple):
    """One answer: `rows` is how many records, samples or documents, are in it."""

    provider: str
    entity: str
    content: bytes
    rows: int


@dataclass(frozen=True, slots=True)
class Shape:
    """What a load is made of: seconds between two heart rates, and the share of people with a glucose sensor."""

    heart_rate_seconds: int = 300
    glucose_share: float = 0.1

    def has_glucose(self, person: int) -> bool:
        """Whether the person has a glucose sensor: every tenth for a share of 0.1."""
        return int((person + 1) * self.glucose_share) > int(person * self.glucose_share)


def zone_of(person: int) -> str:
    return ZONES[person % len(ZONES)]


def bodies(person: int, first: dt.date, days: int, shape: Shape) -> Iterator[Body]:
    """The answers of a person's providers for so many days from `first` on, one an entity."""
    records: dict[str, list[Any]] = {
        "heartrate": [],
        "sleep": [],
        "daily_activity": [],
        "daily_spo2": [],
        "workout": [],
    }
    readings: list[Any] = []
    for number in range(days):
        day = first + dt.timedelta(days=number)
        rng = np.random.default_rng([person, day.toordinal()])
        records["heartrate"] += _heart_rates(person, day, shape.heart_rate_seconds, rng)
        for entity, document in _documents(person, day, rng):
            records[entity].append(document)
        if shape.has_glucose(person):
            readings += _glucose(person, day, rng)
    for entity, found in records.items():
        yield Body("oura", entity, orjson.dumps({"data": found, "next_token": None}), len(found))
    if readings:
        envelope = {"recordType": "egv", "recordVersion": "3.0", "userId": str(_id(person, "dexcom", first))}
        # Dexcom says the newest first.
        content = orjson.dumps({**envelope, "records": readings[::-1]})
        yield Body("dexcom", "egvs", content, len(readings))


def _resting(person: int) -> float:
    return 48.0 + person * 7 % 23


def _heart_rates(person: int, day: dt.date, seconds: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    at = np.arange(0, _DAY_SECONDS, seconds)
    awake = 0.5 - 0.5 * np.cos(2 * np.pi * (at / _DAY_SECONDS - 4 / 24))
    bpm = np.rint(_resting(person) + 22 * awake + rng.normal(0, 5, len(at))).astype(int).clip(35, 200)
    kept = rng.random(len(at)) >= _PULSE_LOST
    moments = np.datetime_as_string((np.datetime64(day, "s") + at.astype("timedelta64[s]"))[kept])
    words = np.where(awake[kept] > 0.5, "awake", "rest")
    return [
        {"bpm": value, "source": word, "timestamp": f"{moment}+00:00"}
        for value, word, moment in zip(bpm[kept].tolist(), words.tolist(), moments.tolist(), strict=True)
    ]


def _documents(person: int, day: dt.date, rng: np.random.Generator) -> Iterator[tuple[str, dict[str, Any]]]:
    zone = ZoneInfo(zone_of(person))
    up = dt.datetime.combine(day, dt.time(6, 45), zone) + dt.timedelta(seconds=int(rng.normal(0, 1800)))
    lying = dt.timedelta(seconds=int(rng.normal(28_800, 2400)))
    bed = (up.astimezone(dt.UTC) - lying).astimezone(zone)
    asleep = int(lying.total_seconds() * rng.uniform(0.82, 0.96))
    deep, rem = int(asleep * rng.uniform(0.12, 0.22)), int(asleep * rng.uniform(0.18, 0.26))
    lowest = int(_resting(person) + rng.normal(0, 2))
    yield (
        "sleep",
        {
            "id": _id(person, "sleep", day),
            "day": str(day),
            "bedtime_start": bed.isoformat(),
            "bedtime_end": up.isoformat(),
            "type": "long_sleep",
            "period": 0,
            "time_in_bed": int(lying.total_seconds()),
            "total_sleep_duration": asleep,
            "deep_sleep_duration": deep,
            "rem_sleep_duration": rem,
            "light_sleep_duration": asleep - deep - rem,
            "awake_time": int(lying.total_seconds()) - asleep,
            "latency": int(rng.integers(120, 1500)),
            "efficiency": int(100 * asleep / lying.total_seconds()),
            "average_breath": round(float(rng.normal(15, 0.6)), 3),
            "average_heart_rate": float(lowest + 6),
            "lowest_heart_rate": lowest,
            "average_hrv": int(np.clip(rng.normal(62 - person % 30, 8), 8, 180)),
        },
    )
    midnight = dt.datetime.combine(day, dt.time(), zone)
    steps = int(np.clip(rng.normal(8200, 2800), 300, 40_000))
    yield (
        "daily_activity",
        {
            "id": _id(person, "daily_activity", day),
            "day": str(day),
            "timestamp": midnight.isoformat(),
            "score": int(np.clip(rng.normal(78, 9), 1, 100)),
            "steps": steps,
            "equivalent_walking_distance": int(steps * 0.76),
            "active_calories": int(steps * 0.045),
            "total_calories": 1700 + int(steps * 0.045),
            "high_activity_time": int(rng.integers(0, 2400)),
            "medium_activity_time": int(rng.integers(600, 4200)),
            "low_activity_time": int(rng.integers(7200, 18_000)),
            "sedentary_time": int(rng.integers(18_000, 36_000)),
        },
    )
    yield (
        "daily_spo2",
        {
            "id": _id(person, "daily_spo2", day),
            "day": str(day),
            "spo2_percentage": {"average": round(float(np.clip(rng.normal(97, 0.6), 88, 100)), 3)},
        },
    )
    if (day.toordinal() + person) % 3 == 0:
        start = dt.datetime.combine(day, dt.time(17, 30), zone)
        end = start + dt.timedelta(seconds=int(rng.integers(1200, 5400)))
        yield (
            "workout",
            {
                "id": _id(person, "workout", day),
                "day": str(day),
                "activity": ("running", "cycling", "walking")[person % 3],
                "intensity": ("easy", "moderate", "hard")[int(rng.integers(0, 3))],
                "source": "confirmed",
                "start_datetime": start.isoformat(),
                "end_datetime": end.isoformat(),
                "calories": round(float(rng.normal(420, 90)), 3),
                "distance": round(float(rng.normal(6500, 1200)), 3),
            },
        )


def _glucose(person: int, day: dt.date, rng: np.random.Generator) -> list[dict[str, Any]]:
    """A day every five minutes: three meals over a level of one's own."""
    zone = ZoneInfo(zone_of(person))
    at = np.arange(0, _DAY_SECONDS, _GLUCOSE_SECONDS)
    value = np.full(len(at), 96.0 + person % 40) + np.cumsum(rng.normal(0, 1.2, len(at)))
    for hour in (7.5, 12.5, 19.0):
        since = np.maximum(at / 3600 - hour, 0.0)
        value += rng.uniform(25, 80) * since * np.exp(1 - since)
    midnight = dt.datetime.combine(day, dt.time(), dt.UTC)
    records = []
    for second, glucose in zip(at.tolist(), np.rint(value).clip(45, 390).tolist(), strict=True):
        moment = midnight + dt.timedelta(seconds=second)
        records.append(
            {
                "recordId": _id(person, f"egv {second}", day),
                "systemTime": f"{moment:%Y-%m-%dT%H:%M:%S}Z",
                "displayTime": moment.astimezone(zone).isoformat(),
                "transmitterTicks": second,
                "value": int(glucose),
                "status": None,
                "trend": "flat",
                "trendRate": 0.0,
                "unit": "mg/dL",
                "rateUnit": "mg/dL/min",
                "transmitterId": f"{person:064x}",
                "transmitterGeneration": "g7",
                "displayDevice": "iOS",
                "displayApp": "G7",
            }
        )
    return records


def _id(person: int, kind: str, day: dt.date) -> str:
    return str(uuid.uuid5(_NAMESPACE, f"{person} {kind} {day}"))
