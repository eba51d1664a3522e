"""Interstitial glucose of the two people who wear a sensor, every five minutes."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import numpy as np

from health_pipeline.sandbox import noise
from health_pipeline.sandbox.activity import Flags, Ints
from health_pipeline.sandbox.life import Day, Life, life_of
from health_pipeline.sandbox.people import Person

#: Seconds between readings.
STEP = 300

#: What a sensor can say (mg/dL); beyond it, it says Low or High.
LOWEST, HIGHEST = 40, 400


@dataclass(frozen=True, slots=True)
class Meal:
    """Carbohydrates eaten (g) and, for type 1, the rapid insulin taken for them (units)."""

    time: int
    carbs: int
    insulin: float
    #: Insulin taken over insulin needed.
    dose: float


@dataclass(frozen=True, slots=True)
class Readings:
    """Sensor readings in order of time: epoch seconds, and whole mg/dL before the sensor's limits apply."""

    time: Ints
    mg_dl: Ints

    @property
    def low(self) -> Flags:
        return self.mg_dl < LOWEST

    @property
    def high(self) -> Flags:
        return self.mg_dl > HIGHEST


def _key(life: Life, *topic: object) -> int:
    return noise.key(life.person.seed, life.person.handle, "glucose", *topic)


def meals(life: Life, day: Day) -> list[Meal]:
    """What was eaten from 04:00 to 04:00, in order of time."""
    when = noise.normal(_key(life, day.date, "meal times"), 0, 5).tolist()
    size = noise.normal(_key(life, day.date, "meal sizes"), 0, 5).tolist()
    dose = noise.normal(_key(life, day.date, "doses"), 0, 5).tolist()
    luck = noise.uniform(_key(life, day.date, "snacks"), 0, 2).tolist()
    forgotten = noise.uniform(_key(life, day.date, "forgotten"), 0, 5).tolist()
    appetite = 1 - 0.4 * min(day.illness, 1.0)
    noon = day.start + 8 * 3600
    wanted = [
        (day.wake + 50 * 60, 42.0, 1.0),
        (noon + 45 * 60, 58.0, 1.0),
        (noon + 3 * 3600 + 50 * 60, 22.0, luck[0] < 0.55),
        (noon + 7 * 3600, 68.0, 1.0),
        (noon + 9 * 3600 + 1800, 18.0, luck[1] < (0.45 if day.date.weekday() in (4, 5) else 0.2)),
    ]
    eaten: list[Meal] = []
    for n, (time, carbs, eats) in enumerate(wanted):
        if not eats:
            continue
        grams = max(8, round(carbs * appetite * (1 + 0.25 * size[n])))
        forgot = forgotten[n] < 0.03
        taken = 0.25 if forgot else max(0.35, 0.96 + 0.4 * dose[n])
        eaten.append(
            Meal(
                time=int(time + 60 * 18 * when[n]),
                carbs=grams,
                insulin=round(2 * grams * taken / 9) / 2 if life.person.cgm == "type_1" else 0.0,
                dose=taken,
            )
        )
    return eaten


def _rise(minutes: noise.Floats, peak: float) -> noise.Floats:
    """Shape of a meal's rise: 0 before it, 1 at `peak` minutes, nothing again after about five times that."""
    x = np.maximum(minutes, 0.0) / peak
    return np.asarray(x**1.6 * np.exp(1.6 * (1.0 - x)))


def _day_values(life: Life, day: Day, ticks: Ints) -> noise.Floats:
    type_1 = life.person.cgm == "type_1"
    first = int(ticks[0]) // STEP
    wander = noise.smooth(_key(life, "wander"), first, ticks.size, 15 if type_1 else 6, rounded=True)
    jitter = noise.smooth(_key(life, "jitter"), first, ticks.size, 1.5)
    base, spread = (152.0, 42.0) if type_1 else (92.0, 4.0)
    passed = (ticks - day.start) / (day.end - day.start)
    illness = day.illness + (life.illness(day.index + 1) - day.illness) * passed
    value = base + spread * wander + 1.6 * jitter + (22.0 if type_1 else 4.0) * illness
    yesterday = [] if (before := life.day(day.date - dt.timedelta(days=1))) is None else meals(life, before)
    for meal in (*yesterday, *meals(life, day)):
        since = (ticks - meal.time) / 60
        if type_1:
            value += 2.6 * meal.carbs * _rise(since - 5, 70)
            value -= 2.5 * meal.carbs * meal.dose * _rise(since - 20, 98) * 0.62
        else:
            value += 0.72 * meal.carbs * _rise(since - 6, 42)
            value -= 0.12 * meal.carbs * _rise(since - 40, 80)
    for workout in day.workouts:
        since = (ticks - workout.start) / 60
        depth = (0.42 if type_1 else 0.07) * workout.load
        value -= depth * _rise(since, workout.minutes + 25.0)
    hours = (ticks - day.wake) / 3600
    value += (22.0 if type_1 else 5.0) * np.exp(-(((hours + 0.3) / 1.4) ** 2))
    # Counter-regulation: what would fall further falls more slowly.
    floor, depth = (70.0, 36.0) if type_1 else (78.0, 14.0)
    return np.where(value < floor, floor - depth * np.tanh(0.7 * (floor - value) / depth), value)


def sensor_life(person: Person) -> tuple[int, int]:
    """(days a sensor lasts, hours it warms up before the first reading)."""
    return (10, 2) if person.cgm == "type_1" else (14, 1)


def glucose(life: Life, day: Day, *, gaps: bool = True) -> Readings:
    """Readings from 04:00 to 04:00 local; without sensor changes and lost signal if `gaps` is false.

    Raises:
        ValueError: the person wears no sensor.
    """
    person = life.person
    if person.cgm is None:
        raise ValueError(f"{person.handle} wears no glucose sensor")
    # The transmitter has its own beat, which is not that of the wall clock.
    beat = _key(life, "beat") % STEP
    ticks = (
        np.arange(-((beat - day.start) // STEP), -((beat - day.end) // STEP), dtype=np.int64) * STEP + beat
    )
    values = np.rint(_day_values(life, day, ticks)).astype(np.int64)
    if gaps:
        keep = ~_lost(life, day, ticks)
        ticks, values = ticks[keep], values[keep]
    return Readings(ticks, values)


def _lost(life: Life, day: Day, ticks: Ints) -> Flags:
    luck, when, length = noise.uniform(_key(life, day.date, "signal"), 0, 3).tolist()
    lost = np.zeros(ticks.size, dtype=np.bool_)
    if luck < 0.2:
        begin = day.start + when * (day.end - day.start)
        lost |= (ticks >= begin) & (ticks < begin + (25 + 100 * length) * 60)
    days, warm_up = sensor_life(life.person)
    if (day.index + 3) % days == 0:
        begin = day.start + 14 * 3600  # at six in the evening
        lost |= (ticks >= begin) & (ticks < begin + warm_up * 3600)
    return lost


def readings(
    person: Person, start: dt.date, end: dt.date, *, until: dt.datetime | None = None, gaps: bool = True
) -> Readings:
    """Readings from `start` to `end`, both included, local midnight to midnight; none after `until`."""
    life = life_of(person)
    days = life.days(start - dt.timedelta(days=1), end + dt.timedelta(days=1))
    parts = [glucose(life, day, gaps=gaps) for day in days]
    time = np.concatenate([part.time for part in parts] or [np.zeros(0, dtype=np.int64)])
    value = np.concatenate([part.mg_dl for part in parts] or [np.zeros(0, dtype=np.int64)])
    first, last = midnight(life, start), midnight(life, end + dt.timedelta(days=1))
    keep = (time >= first) & (time < last)
    if until is not None:
        keep &= time <= until.timestamp()
    return Readings(time[keep], value[keep])


def midnight(life: Life, date: dt.date) -> int:
    """When the local date begins, in epoch seconds, by the clock the person reads at home."""
    naive = dt.datetime.combine(date, dt.time())
    guess = naive.replace(tzinfo=dt.UTC).timestamp()
    for _ in range(2):
        guess = naive.replace(tzinfo=dt.UTC).timestamp() - life.timeline.offset_seconds(guess)
    return int(guess)
