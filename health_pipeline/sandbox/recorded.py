"""What a tracker on the wrist recorded of a person's local days, for the files that apps and makers export of it."""

from __future__ import annotations

import datetime as dt
import itertools
from dataclasses import dataclass

import numpy as np

from health_pipeline.sandbox import body
from health_pipeline.sandbox.activity import Ints, activity, heart_rate
from health_pipeline.sandbox.body import WeighIn
from health_pipeline.sandbox.life import Life, Workout, life_of
from health_pipeline.sandbox.night import EPOCH_SECONDS, Night, nights
from health_pipeline.sandbox.people import Person


@dataclass(frozen=True, slots=True)
class Recorded:
    """The days from `start` to `end`, both included, by the clock where the person was. Instants in epoch seconds.

    `minutes` are those with steps (`steps`); `pulse_at` and `pulse` the samples of heart rate. A night belongs to
    the day of waking; naps are nights of their own kind.
    """

    person: Person
    life: Life
    dates: tuple[dt.date, ...]
    minutes: Ints
    steps: Ints
    pulse_at: Ints
    pulse: Ints
    nights: tuple[Night, ...]
    weighings: tuple[WeighIn, ...]
    workouts: tuple[Workout, ...]

    def local(self, instant: float) -> dt.datetime:
        """The wall clock, with its offset."""
        return self.life.timeline.local(instant)

    def offset_minutes(self, instant: float) -> int:
        return self.life.timeline.offset_seconds(instant) // 60

    def midnight(self, date: dt.date) -> int:
        """The first instant of a local day."""
        zone = self.life.timeline.zone_at(
            dt.datetime(date.year, date.month, date.day, 12, tzinfo=dt.UTC).timestamp()
        )
        return round(dt.datetime(date.year, date.month, date.day, tzinfo=zone).timestamp())

    def steps_by_day(self) -> dict[dt.date, int]:
        """Days without a step are left out."""
        found: dict[dt.date, int] = {}
        for at, steps in zip(self.minutes.tolist(), self.steps.tolist(), strict=True):
            date = self.local(at).date()
            found[date] = found.get(date, 0) + steps
        return found

    def asleep_by_day(self) -> dict[dt.date, int]:
        """Seconds asleep in the main night, by the day of waking."""
        return {
            self.local(night.wake).date(): night.total_sleep for night in self.nights if night.kind == "main"
        }

    def resting_pulse(self, date: dt.date) -> int | None:
        day = self.life.day(date)
        return None if day is None else round(day.resting_heart_rate)

    def kcal(self, done: Workout) -> float:
        return round(body.workout_kcal(self.person, done), 1)

    def pulse_of(self, done: Workout) -> tuple[int, int] | None:
        """Mean and highest pulse of a workout."""
        of_it = self.pulse[(self.pulse_at >= done.start) & (self.pulse_at < done.end)]
        return (round(float(of_it.mean())), int(of_it.max())) if of_it.size else None


def recorded(person: Person, start: dt.date, end: dt.date) -> Recorded:
    """The tracker's memory of these days."""
    life = life_of(person)
    around = life.days(start - dt.timedelta(days=2), end + dt.timedelta(days=1))

    def within(instant: float) -> bool:
        return start <= life.timeline.local(instant).date() <= end

    minutes, steps, times, pulses = [], [], [], []
    for day in around:
        lived = activity(life, day)
        walked = np.flatnonzero(np.where(lived.worn, lived.steps, 0))
        at = day.start + 60 * walked
        kept = np.array([within(each) for each in at.tolist()], dtype=np.bool_)
        minutes.append(at[kept])
        steps.append(lived.steps[walked][kept])
        samples = heart_rate(life, day)
        kept = np.array([within(each) for each in samples.time.tolist()], dtype=np.bool_)
        times.append(samples.time[kept])
        pulses.append(samples.bpm[kept])
    return Recorded(
        person,
        life,
        tuple(start + dt.timedelta(days=number) for number in range((end - start).days + 1)),
        np.concatenate(minutes).astype(np.int64),
        np.concatenate(steps).astype(np.int64),
        np.concatenate(times).astype(np.int64),
        np.concatenate(pulses).astype(np.int64),
        tuple(
            night
            for day in around
            for night in nights(life, day)
            if night.kind in ("main", "nap")
            and (night.kind == "nap" or day.night_worn)
            and within(night.wake)
        ),
        tuple(
            weighed
            for day in around
            if (weighed := body.weigh_in(life, day)) is not None and within(weighed.instant)
        ),
        tuple(done for day in around for done in day.workouts if within(done.start)),
    )


def stage_runs(night: Night) -> list[tuple[int, int, int]]:
    """(seconds after going to bed, seconds, stage) of the stretches of one stage, up to getting up."""
    edges = np.concatenate([[0], np.flatnonzero(np.diff(night.stages)) + 1, [night.stages.size]])
    runs = []
    for first, last in itertools.pairwise((EPOCH_SECONDS * edges).tolist()):
        until = min(last, night.wake - night.bed)
        runs.append((first, until - first, int(night.stages[first // EPOCH_SECONDS])))
    return runs
