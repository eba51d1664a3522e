"""Who lives in the sandbox: five people whose data every provider of the sandbox serves."""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import dataclass
from typing import Literal

#: The first day anybody wore anything. Nothing exists before it.
EPOCH = dt.date(2024, 1, 1)

#: The seed used wherever none is given.
DEFAULT_SEED = 20240101

_NAMESPACE = uuid.UUID("5b1f6f0e-6d0c-5a7e-9f3d-0d7a8c1e2b46")

CgmKind = Literal["healthy", "type_1"]


@dataclass(frozen=True, slots=True)
class Session:
    """A planned training session: local start (minutes after midnight), duration, mean effort in METs."""

    activity: str
    start_minute: int
    minutes: int
    met: float
    probability: float = 0.85


@dataclass(frozen=True, slots=True)
class Travel:
    """A journey made again and again: `days` away in `zone`, about every `every_days` days.

    `date_line` journeys leave the local date standing still on the way out and skip one on the way home.
    """

    zone: str
    every_days: int
    days: int
    date_line: bool = False


@dataclass(frozen=True, slots=True)
class Person:
    """One synthetic person. `seed` is part of who they are: another seed is another life.

    Clock times are minutes: `bed_minute` before 04:00 on the day of waking, `wake_minute` after it. `season`
    is how far (bpm) resting heart rate falls in the ten training months from March, to come back in the two
    after them. `plan` has the sessions of each weekday, Monday first.
    """

    handle: str
    name: str
    seed: int
    zone: str
    sex: Literal["female", "male"]
    birth_year: int
    height_m: float
    weight_kg: float
    resting_heart_rate: float
    hrv_ms: float
    vo2_max: float
    bed_minute: int
    wake_minute: int
    daily_steps: int
    plan: tuple[tuple[Session, ...], ...]
    season: float = 0.0
    nap_probability: float = 0.0
    rest_probability: float = 0.04
    missing_night_probability: float = 0.045
    illness_every_days: int = 84
    travel: Travel | None = None
    cgm: CgmKind | None = None

    @property
    def email(self) -> str:
        return f"{self.handle}@sandbox.example"

    def uuid(self, *parts: object) -> str:
        """A UUID that belongs to this person and these parts, the same at every run."""
        name = "/".join(str(part) for part in (self.seed, self.handle, *parts))
        return str(uuid.uuid5(_NAMESPACE, name))

    def age(self, on: dt.date) -> int:
        """Whole years, as if born on 1 July."""
        return on.year - self.birth_year - ((on.month, on.day) < (7, 1))


def _run(minute: int, minutes: int, met: float, probability: float = 0.85) -> Session:
    return Session("running", minute, minutes, met, probability)


_REST: tuple[Session, ...] = ()


def population(seed: int = DEFAULT_SEED) -> list[Person]:
    """The five people, in a fixed order."""
    return [
        Person(
            handle="ada",
            name="Ada Okafor",
            seed=seed,
            zone="Europe/London",
            sex="female",
            birth_year=1991,
            height_m=1.68,
            weight_kg=61.5,
            resting_heart_rate=58.0,
            hrv_ms=52.0,
            vo2_max=42.0,
            bed_minute=325,
            wake_minute=150,
            daily_steps=9200,
            plan=(
                _REST,
                (_run(7 * 60, 50, 10.0),),
                (Session("strength_training", 18 * 60, 45, 5.0, 0.6),),
                (_run(7 * 60, 55, 11.0),),
                _REST,
                (_run(9 * 60, 90, 9.5),),
                (Session("yoga", 10 * 60, 50, 3.0, 0.6),),
            ),
            season=8.0,
            cgm="healthy",
        ),
        Person(
            handle="ben",
            name="Ben Hartmann",
            seed=seed,
            zone="Europe/Berlin",
            sex="male",
            birth_year=1984,
            height_m=1.83,
            weight_kg=84.0,
            resting_heart_rate=56.0,
            hrv_ms=44.0,
            vo2_max=41.0,
            bed_minute=255,
            wake_minute=200,
            daily_steps=7600,
            plan=(
                _REST,
                (Session("cycling", 18 * 60 + 30, 60, 8.5),),
                _REST,
                (_run(18 * 60 + 30, 45, 10.0, 0.7),),
                _REST,
                (Session("cycling", 10 * 60 + 30, 120, 8.0),),
                (Session("walking", 15 * 60, 70, 3.8, 0.7),),
            ),
            rest_probability=0.12,
            travel=Travel("America/New_York", every_days=56, days=6),
        ),
        Person(
            handle="chen",
            name="Chen Wei",
            seed=seed,
            zone="Pacific/Auckland",
            sex="male",
            birth_year=1979,
            height_m=1.75,
            weight_kg=67.0,
            resting_heart_rate=45.0,
            hrv_ms=68.0,
            vo2_max=55.0,
            bed_minute=345,
            wake_minute=110,
            daily_steps=11800,
            plan=(
                (Session("swimming", 6 * 60 + 30, 45, 8.0),),
                (_run(6 * 60 + 30, 70, 12.0),),
                _REST,
                (_run(6 * 60 + 30, 60, 13.0),),
                _REST,
                (Session("cycling", 8 * 60, 150, 9.0),),
                (_run(8 * 60, 80, 10.5, 0.75),),
            ),
            travel=Travel("America/Los_Angeles", every_days=168, days=8, date_line=True),
        ),
        Person(
            handle="dana",
            name="Dana Whitfield",
            seed=seed,
            zone="America/Chicago",
            sex="female",
            birth_year=1996,
            height_m=1.64,
            weight_kg=66.0,
            resting_heart_rate=63.0,
            hrv_ms=41.0,
            vo2_max=36.0,
            bed_minute=270,
            wake_minute=190,
            daily_steps=6900,
            plan=(
                (Session("strength_training", 17 * 60 + 30, 50, 5.0, 0.7),),
                _REST,
                (_run(17 * 60 + 45, 40, 9.0, 0.8),),
                _REST,
                _REST,
                (Session("hiking", 11 * 60, 110, 5.5, 0.6),),
                _REST,
            ),
            missing_night_probability=0.06,
            cgm="type_1",
        ),
        Person(
            handle="eli",
            name="Eli Menon",
            seed=seed,
            zone="Asia/Kolkata",
            sex="male",
            birth_year=1958,
            height_m=1.71,
            weight_kg=78.0,
            resting_heart_rate=66.0,
            hrv_ms=26.0,
            vo2_max=29.0,
            bed_minute=350,
            wake_minute=100,
            daily_steps=5600,
            plan=(
                (Session("walking", 6 * 60 + 30, 45, 3.8),),
                (Session("walking", 6 * 60 + 30, 45, 3.8),),
                (Session("yoga", 6 * 60 + 30, 40, 2.8),),
                (Session("walking", 6 * 60 + 30, 45, 3.8),),
                _REST,
                (Session("badminton", 7 * 60, 75, 6.5, 0.7),),
                _REST,
            ),
            nap_probability=0.45,
            rest_probability=0.10,
            missing_night_probability=0.10,
            illness_every_days=72,
        ),
    ]


def person(handle: str, seed: int = DEFAULT_SEED) -> Person:
    """The person of that handle.

    Raises:
        KeyError: nobody has it; the message names those who live here.
    """
    everybody = population(seed)
    for candidate in everybody:
        if candidate.handle == handle:
            return candidate
    raise KeyError(f"nobody in the sandbox is called {handle!r}; there are {[p.handle for p in everybody]}")
