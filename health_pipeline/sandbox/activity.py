"""A day awake, minute by minute: effort, steps and heart rate."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from health_pipeline.sandbox import noise
from health_pipeline.sandbox.life import Day, Life, Span
from health_pipeline.sandbox.night import SAMPLE_SECONDS, Night, nights

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

#: Heart-rate sources, by the number used in `HeartRate.source`.
SOURCES = ("awake", "workout", "rest", "sleep")
_AWAKE, _WORKOUT, _REST, _SLEEP = range(4)

_STEPS_A_MINUTE = {
    "running": 164,
    "walking": 112,
    "hiking": 104,
    "badminton": 60,
    "strength_training": 12,
    "yoga": 2,
}


@dataclass(frozen=True, slots=True)
class Activity:
    """One day from 04:00 to 04:00 local, an item a minute from `start`.

    `met` is effort, `steps` what the legs did; `worn` says where the ring could see it, `asleep` and `lying`
    what the person did.
    """

    start: int
    met: noise.Floats
    steps: Ints
    worn: Flags
    asleep: Flags
    lying: Flags
    training: Flags

    @property
    def recorded_steps(self) -> int:
        return int(self.steps[self.worn].sum())


@dataclass(frozen=True, slots=True)
class HeartRate:
    """Samples in order of time: epoch seconds, whole beats a minute, and an index of `SOURCES`."""

    time: Ints
    bpm: Ints
    source: Ints


def _mark(flags: Flags, start: int, spans: Iterable[Span]) -> None:
    for begin, end in spans:
        flags[max(0, (begin - start) // 60) : max(0, -(-(end - start) // 60))] = True


def _key(life: Life, day: Day, topic: str) -> int:
    return noise.key(life.person.seed, life.person.handle, day.date, "activity", topic)


@lru_cache(maxsize=1024)
def activity(life: Life, day: Day) -> Activity:
    """Every minute of the day."""
    minutes = (day.end - day.start) // 60
    following = life.next(day)
    sleeps = [(night.bed, night.wake) for night in nights(life, day) if night.kind != "rest"]
    sleeps.append((following.bed, following.wake))
    asleep, lying, training, off = (np.zeros(minutes, dtype=np.bool_) for _ in range(4))
    _mark(asleep, day.start, sleeps)
    _mark(lying, day.start, [(following.bed - 2400, following.bed)] + ([day.rest] if day.rest else []))
    _mark(training, day.start, [(w.start, w.end) for w in day.workouts])
    _mark(off, day.start, (*day.off, *following.off[:1]) if not following.night_worn else day.off)
    lying &= ~asleep

    jitter = noise.uniform(_key(life, day, "met"), 0, minutes)
    met = np.where(asleep, 0.9, np.where(lying, 1.05, 1.25)) + np.round(jitter * 3) / 10 * ~asleep
    met[asleep & (jitter > 0.93)] = 1.1

    free = ~(asleep | lying | training)
    walking = _walks(life, day, minutes) & free
    pace = noise.smooth(_key(life, day, "pace"), 0, minutes, 6)
    met = np.where(walking, 2.6 + 0.45 * pace + 0.8 * jitter, met)
    steps = np.where(walking, 96 + 7 * pace, 0.0)
    steps = np.where(free & ~walking & (jitter > 0.75), 9 + 25 * (jitter - 0.75), steps)
    for workout in day.workouts:
        part = slice((workout.start - day.start) // 60, (workout.end - day.start) // 60)
        met[part] = workout.met * (1 + 0.08 * pace[part])
        steps[part] = _STEPS_A_MINUTE.get(workout.activity, 0) * (1 + 0.03 * pace[part])
    return Activity(
        start=day.start,
        met=np.round(np.clip(met, 0.9, 18.0), 1).astype(np.float64),
        steps=np.rint(np.maximum(steps, 0.0)).astype(np.int64),
        worn=~off,
        asleep=asleep,
        lying=lying,
        training=training,
    )


def _walks(life: Life, day: Day, minutes: int) -> Flags:
    """Walking bouts, enough of them for about the steps wanted without the training."""
    trained = sum(_STEPS_A_MINUTE.get(w.activity, 0) * w.minutes for w in day.workouts)
    wanted = max(800.0, day.steps_wanted - trained - 3000) / 96
    bouts = 28
    when, length = noise.uniform(_key(life, day, "walks"), 0, 2 * bouts).reshape(2, bouts)
    spans = 3 + np.rint(17 * length**2).astype(np.int64)
    if day.date.weekday() < 5 and day.illness < 0.3:
        spans[:2], when[0], when[1] = 14, 0.07, 0.68  # to work and back
    spans = spans[: int(np.searchsorted(np.cumsum(spans), wanted)) + 1]
    first = (day.wake - day.start) // 60 + 15
    begins = (first + when[: spans.size] * (15 * 60)).astype(np.int64)
    edges = np.zeros(minutes + 1, dtype=np.int64)
    np.add.at(edges, np.minimum(begins, minutes), 1)
    np.add.at(edges, np.minimum(begins + spans, minutes), -1)
    return np.asarray(np.cumsum(edges)[:minutes] > 0)


@lru_cache(maxsize=1024)
def heart_rate(life: Life, day: Day) -> HeartRate:
    """What the ring measured from the main night of the day to the end of the day awake.

    Every five minutes at rest, every minute in training, less often in other movement; asleep, the samples
    are those of the sleep itself. Nothing where the ring was off.
    """
    sleeps = [night for night in nights(life, day) if night.kind != "rest"]
    parts = [_asleep(day, night) for night in sleeps if night.kind != "main" or day.night_worn]
    parts.append(_awake(life, day, activity(life, day)))
    time, bpm, source = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(time, kind="stable")
    return HeartRate(time[order], bpm[order], source[order])


def _asleep(day: Day, night: Night) -> tuple[Ints, Ints, Ints]:
    found = ~np.isnan(night.heart_rate)
    times = night.bed + SAMPLE_SECONDS * np.flatnonzero(found)
    if night.kind != "main":
        for begin, end in day.off:
            keep = (times < begin) | (times >= end)
            found[np.flatnonzero(found)[~keep]] = False
            times = times[keep]
    bpm = night.heart_rate[found].astype(np.int64)
    return times.astype(np.int64), bpm, np.full(times.size, _SLEEP, dtype=np.int64)


def _awake(life: Life, day: Day, lived: Activity) -> tuple[Ints, Ints, Ints]:
    minutes = lived.met.size
    age = life.person.age(day.date)
    wander = noise.smooth(_key(life, day, "heart"), 0, minutes, 20)
    # The heart follows effort with a delay of a few minutes.
    lag = np.exp(-np.arange(8) / 2.5)
    effort = np.convolve(np.concatenate([np.full(7, lived.met[0]), lived.met]), lag / lag.sum(), mode="valid")
    ceiling = 0.97 * (208 - 0.7 * age)
    reserve = ceiling - day.resting_heart_rate
    heart = (
        day.resting_heart_rate
        + 6
        + 4 * day.illness
        + reserve * np.clip((effort - 0.95) / (0.29 * life.person.vo2_max * 1.05), 0, 1)
        + 4.0 * wander
    )
    heart = np.clip(heart, day.resting_heart_rate + 2, ceiling)

    minute = np.arange(minutes)
    luck = noise.uniform(_key(life, day, "luck"), 0, minutes)
    moving = (lived.met >= 2.0) & ~lived.training
    every_five = minute % 5 == day.index % 5
    take = (
        lived.worn
        & ~lived.asleep
        & ((lived.training & (luck > 0.05)) | (every_five & (luck > 0.55 * moving)))
    )
    # The night before belongs to the sleeps of this day; after the next bedtime the next day takes over.
    take &= minute >= (day.wake - day.start) // 60 + 1
    chosen = np.flatnonzero(take)
    source = np.where(lived.training[chosen], _WORKOUT, np.where(lived.lying[chosen], _REST, _AWAKE))
    times = day.start + 60 * chosen + (17 * day.index) % 60
    return times.astype(np.int64), np.rint(heart[chosen]).astype(np.int64), source.astype(np.int64)
