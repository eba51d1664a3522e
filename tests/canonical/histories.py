"""Random histories of what a provider sends: documents, revisions, deletions, overlaps, and late arrivals."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from canonical_lab import Lab, glucose_file, hours, page

FIRST_DAY = dt.date(2026, 2, 26)
DAYS = 4
ENTITIES = ("sleep", "daily_activity", "daily_spo2", "workout", "heartrate", "readings")
_ZONES = ("Europe/Berlin", "America/New_York", "Pacific/Auckland", None)


@dataclass(frozen=True)
class Sending:
    """One answer of the provider (or one file), and the run in which it reaches staging."""

    person: int
    entity: str
    content: Any
    received_hour: float
    days: tuple[dt.date, dt.date]
    run: int


@dataclass
class Person:
    """What the provider holds of a person at a moment; it changes with every call of `change`."""

    number: int
    rng: random.Random
    nights: dict[str, dict[str, Any]] = field(default_factory=dict)
    activities: dict[str, dict[str, Any]] = field(default_factory=dict)
    oxygen: dict[str, dict[str, Any]] = field(default_factory=dict)
    workouts: dict[str, dict[str, Any]] = field(default_factory=dict)
    pulse: dict[str, int] = field(default_factory=dict)
    glucose: dict[str, str] = field(default_factory=dict)

    def change(self) -> None:
        for _ in range(self.rng.randint(1, 4)):
            self.rng.choice(
                (
                    self._night,
                    self._night,
                    self._activity,
                    self._oxygen,
                    self._workout,
                    self._pulse,
                    self._glucose,
                )
            )()

    def page(self) -> tuple[str, Any, tuple[dt.date, dt.date]]:
        """An answer for a window of days: look-backs overlap, and a document may be in several pages."""
        first = FIRST_DAY + dt.timedelta(days=self.rng.randrange(DAYS))
        last = first + dt.timedelta(days=self.rng.randrange(3))
        entity = self.rng.choice(("sleep", "heartrate", *ENTITIES))
        return entity, self.held(entity, first - dt.timedelta(days=1), last), (first, last)

    def held(self, entity: str, first: dt.date, last: dt.date) -> Any:
        """What the provider holds for these days: documents or samples, or the text of a glucose file."""
        days = {str(first + dt.timedelta(days=count)) for count in range((last - first).days + 1)}
        if entity == "heartrate":
            samples = [
                {"timestamp": at, "bpm": bpm, "source": source}
                for at, bpm in self.pulse.items()
                if at[:10] in days
                # Two samples of one instant, as the vendor sends where states overlap.
                for source, bpm in ((("awake", bpm), ("rest", bpm + 1)) if bpm % 5 == 0 else (("rest", bpm),))
            ]
            self.rng.shuffle(samples)
            return samples
        if entity == "readings":
            lines = [f"{at},{value}" for at, value in self.glucose.items() if at[:10] in days]
            return "\n".join(["timestamp,glucose (mg/dL)", *lines, ""]) if lines else ""
        held = {
            "sleep": self.nights,
            "daily_activity": self.activities,
            "daily_spo2": self.oxygen,
            "workout": self.workouts,
        }[entity]
        return [document for document in held.values() if document["day"] in days]

    def _day(self) -> dt.date:
        return FIRST_DAY + dt.timedelta(days=self.rng.randrange(DAYS))

    def _night(self) -> None:
        rng = self.rng
        # A new id may take over the bedtime of an old document.
        name = f"night-{self.number}-{rng.randrange(4)}-{rng.choice('aab')}"
        start = dt.datetime.combine(self._day(), dt.time(rng.choice((20, 22, 23))))
        if name in self.nights and rng.random() < 0.6:
            start = dt.datetime.fromisoformat(self.nights[name]["bedtime_start"]).replace(tzinfo=None)
        end = start + dt.timedelta(hours=rng.choice((1, 7, 8)))
        offset = rng.choice(("+01:00", "-05:00"))
        document = {
            "id": name,
            "day": str(end.date()),
            "bedtime_start": f"{start.isoformat()}{offset}",
            "bedtime_end": f"{end.isoformat()}{rng.choice((offset, '+03:00'))}",
            "type": rng.choice(("long_sleep",) * 5 + ("late_nap", "deleted", None)),
            "total_sleep_duration": rng.choice((20000, 24000, None)),
            "lowest_heart_rate": rng.choice((48, 50, 5, None)),
            "efficiency": rng.choice((88, 101)),
        }
        if rng.random() < 0.5:
            items = [rng.choice((30.0, 40.0, None)) for _ in range(rng.randint(1, 3))]
            document["hrv"] = {"timestamp": document["bedtime_start"], "interval": 300.0, "items": items}
        self.nights[name] = document

    def _activity(self) -> None:
        day = self._day()
        self.activities[str(day)] = {
            "id": f"activity-{self.number}-{day}",
            "day": str(day),
            "timestamp": f"{day}T04:00:00{self.rng.choice(('+01:00', '+01:00', '+02:00'))}",
            "steps": self.rng.choice((0, 4000, 8000, 900000, None)),
            "score": self.rng.choice((70, None)),
        }

    def _oxygen(self) -> None:
        day = self._day()
        self.oxygen[str(day)] = {
            "id": f"oxygen-{self.number}-{day}",
            "day": str(day),
            "spo2_percentage": {"average": self.rng.choice((97.0, 95.5, 20.0, None))},
        }

    def _workout(self) -> None:
        name = f"workout-{self.number}-{self.rng.randrange(3)}"
        day = self._day()
        self.workouts[name] = {
            "id": name,
            "day": str(day),
            "start_datetime": f"{day}T{self.rng.choice((1, 18, 23)):02}:00:00+01:00",
            "end_datetime": f"{day}T23:30:00+01:00",
            "activity": self.rng.choice(("running", "cycling")),
            "calories": self.rng.choice((300.0, None)),
        }

    def _pulse(self) -> None:
        for _ in range(3):
            at = f"{self._day()}T{self.rng.choice((0, 3, 12, 23)):02}:00:00.000Z"
            self.pulse[at] = self.rng.choice((55, 61, 62, 5))

    def _glucose(self) -> None:
        for _ in range(3):
            at = f"{self._day()}T{self.rng.choice((0, 3, 12, 23)):02}:05:00Z"
            self.glucose[at] = self.rng.choice(("90", "110", "Low", "9", "1200"))


@dataclass
class History:
    """Sendings of several people over `runs` runs; some reach staging in a later run than others sent after."""

    seed: int
    people: int
    steps: int
    runs: int

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.providers_hold = [
            Person(number, random.Random(f"{self.seed}-{number}")) for number in range(self.people)
        ]
        self.sendings: list[Sending] = []
        hour = 0.0
        for step in range(self.steps):
            for person in self.providers_hold:
                if self.rng.random() < 0.7:
                    person.change()
                entity, content, days = person.page()
                hour += 0.1
                due = step * self.runs // self.steps
                run = self.rng.randint(due, self.runs - 1) if self.rng.random() < 0.35 else due
                if content or entity != "readings":
                    self.sendings.append(Sending(person.number, entity, content, hour, days, run))

    def users(self, lab: Lab) -> list[int]:
        return [lab.user(f"person-{number}", _ZONES[number % len(_ZONES)]) for number in range(self.people)]

    def send(self, lab: Lab, run: int) -> None:
        """Receive what reaches staging in this run, in no particular order."""
        due = [sending for sending in self.sendings if sending.run == run]
        self.rng.shuffle(due)
        self.receive(lab, due)

    def receive(self, lab: Lab, sendings: Iterable[Sending]) -> None:
        users = self.users(lab)
        lab.receive(
            *(
                glucose_file(user, each.content, at)
                if each.entity == "readings"
                else page(user, each.entity, each.content, at, each.days)
                for each in sendings
                for user, at in [(users[each.person], hours(24 + each.received_hour))]
            )
        )
