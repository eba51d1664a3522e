"""The body beside night and effort: energy, distance, oxygen, fitness, and what a scale and a cuff would show."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import numpy as np

from health_pipeline.sandbox import noise
from health_pipeline.sandbox.activity import Activity
from health_pipeline.sandbox.life import Day, Life, Workout
from health_pipeline.sandbox.people import Person


@dataclass(frozen=True, slots=True)
class WeighIn:
    """A morning on the scale and at the cuff, at `instant` (epoch seconds).

    Weight, fat, muscle, bone and water in kg, fat also in per cent; blood pressure in mm[Hg], pulse in bpm.
    """

    instant: int
    weight: float
    fat_percent: float
    muscle: float
    bone: float
    water: float
    systolic: int
    diastolic: int
    pulse: int

    @property
    def fat(self) -> float:
        return round(self.weight * self.fat_percent / 100, 2)


def active_kcal(person: Person, lived: Activity) -> noise.Floats:
    """Energy above rest, kcal for each minute of the day as lived, worn or not."""
    moving = (lived.met >= 1.5) & ~(lived.asleep | lived.lying & (lived.met < 3.0))
    return np.where(moving, np.maximum(lived.met - 1.3, 0.0) * person.weight_kg / 60, 0.0)


def basal_kcal(person: Person, date: dt.date) -> float:
    """Basal metabolism, kcal a day (Mifflin-St Jeor)."""
    constant = 5 if person.sex == "male" else -161
    return 10 * person.weight_kg + 625 * person.height_m - 5 * person.age(date) + constant


def step_length(person: Person) -> float:
    """Metres a step."""
    return 0.42 * person.height_m


def workout_kcal(person: Person, done: Workout) -> float:
    """All energy of a workout."""
    return done.met * person.weight_kg * done.minutes / 60


def workout_distance(done: Workout) -> float | None:
    """Metres of a workout that leads anywhere, from its effort."""
    speed = {"running": 0.29, "walking": 0.36, "cycling": 0.62, "hiking": 0.22}.get(done.activity)
    return None if speed is None else speed * done.met * done.minutes * 60


def spo2(life: Life, day: Day) -> float:
    """Mean oxygen saturation of the night, per cent."""
    return min(
        97.6 - 0.015 * (life.person.age(day.date) - 35) - 0.9 * day.illness + 0.35 * wobble(life, day), 99.9
    )


def wobble(life: Life, day: Day) -> float:
    """How the night's breathing differs from the usual, in deviations."""
    return float(noise.normal(noise.key(life.person.seed, life.person.handle, "spo2"), day.index, 1)[0])


def fitness(life: Life, date: dt.date) -> float:
    """VO2 max (mL/kg/min): up when the training season has brought resting heart rate down."""
    return life.person.vo2_max - 0.45 * life.season(date)


def vascular_age(life: Life, day: Day) -> int:
    """Age of the arteries (years): below one's own with more fitness than most have."""
    years = life.person.age(day.date) + 0.8 * (40 - fitness(life, day.date)) / 2 + (day.index // 9) % 2
    return max(18, min(100, round(years)))


def pulse_wave_velocity(age: int) -> float:
    """Metres a second in arteries of an age."""
    return round(4.1 + 0.067 * age, 2)


def weigh_in(life: Life, day: Day) -> WeighIn | None:
    """What scale and cuff show a quarter of an hour after getting up; None on mornings without (two of seven)."""
    person = life.person
    key = noise.key(person.seed, person.handle, "scale")
    if float(noise.uniform(key, day.index, 1)[0]) < 2 / 7:
        return None
    drift = float(noise.smooth(noise.key(key, "weight"), day.index, 1, 20.0)[0])
    of_day = noise.normal(noise.key(key, "day"), day.index * 4, 4)
    weight = round(person.weight_kg + 1.1 * drift + 0.3 * float(of_day[0]), 2)
    fat = round((24.0 if person.sex == "female" else 17.0) + 0.8 * drift + 0.25 * float(of_day[1]), 1)
    lean = weight * (1 - fat / 100)
    age = person.age(day.date)
    systolic = round(108 + 0.35 * age + 3 * day.illness + 4 * float(of_day[2]))
    return WeighIn(
        instant=day.wake + 900,
        weight=weight,
        fat_percent=fat,
        muscle=round(lean * 0.95, 2),
        bone=round(lean * 0.05, 2),
        water=round(lean * 0.73, 2),
        systolic=systolic,
        diastolic=round(systolic * 0.64 + 1.5 * float(of_day[3])),
        pulse=round(day.resting_heart_rate) + 9,
    )
