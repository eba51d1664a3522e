"""A sleep: stages, heart rate and HRV through it, as a ring records them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from health_pipeline.sandbox import noise
from health_pipeline.sandbox.life import Day, Life

DEEP, LIGHT, REM, AWAKE = 1, 2, 3, 4

#: Seconds of one stage epoch and of one heart-rate sample.
EPOCH_SECONDS = 30
SAMPLE_SECONDS = 300
_EPOCHS_PER_SAMPLE = SAMPLE_SECONDS // EPOCH_SECONDS

Kind = Literal["main", "flight", "nap", "rest"]
Bytes = npt.NDArray[np.uint8]

# Minutes of light, deep, light, REM in each successive cycle of a night.
_CYCLES = (
    (14, 34, 18, 9),
    (16, 26, 24, 18),
    (24, 13, 26, 25),
    (30, 4, 28, 30),
    (34, 0, 26, 33),
    (36, 0, 26, 33),
)


@dataclass(frozen=True, slots=True)
class Night:
    """One sleep. Instants in epoch seconds.

    `stages` has a digit an epoch of 30 s: 1 deep, 2 light, 3 REM, 4 awake; `movement` as many: 1 still to 4
    active. `heart_rate` (bpm) and `hrv` (ms, RMSSD) have a sample each five minutes from `bed`, NaN where the
    ring found none. A `rest` has neither.
    """

    kind: Kind
    bed: int
    wake: int
    stages: Bytes
    movement: Bytes
    heart_rate: noise.Floats
    hrv: noise.Floats
    lowest_heart_rate: int
    breath: float
    latency: int

    @property
    def time_in_bed(self) -> int:
        return self.wake - self.bed

    def seconds_of(self, stage: int) -> int:
        """Seconds spent in a stage other than awake."""
        return int((self.stages == stage).sum()) * EPOCH_SECONDS

    @property
    def total_sleep(self) -> int:
        """Seconds asleep."""
        return int((self.stages != AWAKE).sum()) * EPOCH_SECONDS

    @property
    def awake_time(self) -> int:
        return self.time_in_bed - self.total_sleep

    @property
    def efficiency(self) -> int:
        """Per cent of the time in bed asleep."""
        return max(1, round(100 * self.total_sleep / self.time_in_bed))

    @property
    def average_heart_rate(self) -> float | None:
        """bpm, in eighths as the ring rounds it."""
        return None if not self.heart_rate.size else round(float(np.nanmean(self.heart_rate)) * 8) / 8

    @property
    def average_hrv(self) -> int | None:
        """ms."""
        return None if not self.hrv.size else round(float(np.nanmean(self.hrv)))

    @property
    def stages_5_min(self) -> str:
        """The commonest stage of each five minutes."""
        padded = np.full(-(-self.stages.size // _EPOCHS_PER_SAMPLE) * _EPOCHS_PER_SAMPLE, 0, dtype=np.uint8)
        padded[: self.stages.size] = self.stages
        blocks = padded.reshape(-1, _EPOCHS_PER_SAMPLE)
        counts = np.stack([(blocks == stage).sum(axis=1) for stage in (DEEP, LIGHT, REM, AWAKE)])
        return digits((counts.argmax(axis=0) + 1).astype(np.uint8))

    def edited(self, minutes: int) -> Night:
        """The same night after its owner moved bedtime `minutes` later."""
        steps = min(minutes * 60 // SAMPLE_SECONDS, self.heart_rate.size - 12)
        if steps <= 0:
            return self
        epochs = steps * _EPOCHS_PER_SAMPLE
        stages = self.stages[epochs:]
        hrv = self.hrv[steps:]
        return replace(
            self,
            bed=self.bed + steps * SAMPLE_SECONDS,
            stages=stages,
            movement=self.movement[epochs:],
            heart_rate=self.heart_rate[steps:],
            hrv=hrv,
            latency=_latency(stages),
        )


def digits(values: Bytes) -> str:
    """Small numbers as a string of digits."""
    return (values + np.uint8(48)).tobytes().decode("ascii")


def _latency(stages: Bytes) -> int:
    asleep = np.flatnonzero(stages != AWAKE)
    return int(asleep[0]) * EPOCH_SECONDS if asleep.size else 0


@lru_cache(maxsize=1024)
def nights(life: Life, day: Day) -> tuple[Night, ...]:
    """All sleeps that end on a day, whether or not the ring was worn, in order of time."""
    found = [_sleep(life, day, "main", day.bed, day.wake)]
    if day.nap:
        found.append(_sleep(life, day, "nap", *day.nap))
    if day.flight_sleep:
        found.append(_sleep(life, day, "flight", *day.flight_sleep))
    if day.rest:
        found.append(_rest(life, day, *day.rest))
    return tuple(sorted(found, key=lambda night: night.bed))


def _key(life: Life, day: Day, kind: str, topic: str) -> int:
    return noise.key(life.person.seed, life.person.handle, day.date, kind, topic)


def _stages(life: Life, day: Day, kind: Kind, epochs: int) -> Bytes:
    draws = noise.normal(_key(life, day, kind, "cycles"), 0, 5 * len(_CYCLES) + 1).tolist()
    nap = kind == "nap"
    age = (day.date.year - life.person.birth_year - 35) / 100
    onset = max(1.0, 9 + 6 * draws[-1] + 60 * day.restlessness)
    lengths, kinds = [onset], [AWAKE]
    for n, cycle in enumerate(_CYCLES):
        for part, (stage, minutes) in enumerate(zip((LIGHT, DEEP, LIGHT, REM), cycle, strict=True)):
            if nap and stage == REM:
                continue
            scale = 1 + 0.22 * draws[5 * n + part]
            if stage == DEEP:
                scale *= 1 - age - 0.3 * day.illness
            lengths.append(max(0.0, minutes * scale))
            kinds.append(stage)
        lengths.append(max(0.0, 2 + 3 * draws[5 * n + 4]))
        kinds.append(AWAKE)
    counts = [round(2 * minutes) for minutes in lengths]
    stages = np.repeat(np.array(kinds, dtype=np.uint8), counts)[:epochs]
    if stages.size < epochs:
        stages = np.concatenate([stages, np.full(epochs - stages.size, LIGHT, dtype=np.uint8)])
    # Brief wakings last from half a minute to two and a half.
    waking = noise.uniform(_key(life, day, kind, "waking"), 0, epochs) < max(day.restlessness, 0.01) / 3
    for shift in range(4):
        stages[shift:][waking[: epochs - shift]] = AWAKE
    stages[-(3 + 2 * (day.index % 4)) :] = AWAKE
    return stages


def _sleep(life: Life, day: Day, kind: Kind, bed: int, wake: int) -> Night:
    epochs = -(-(wake - bed) // EPOCH_SECONDS)
    samples = (wake - bed) // SAMPLE_SECONDS
    stages = _stages(life, day, kind, epochs)
    lowest = day.resting_heart_rate + (7.0 if kind == "nap" else 0.0)

    by_sample = stages[: samples * _EPOCHS_PER_SAMPLE].reshape(samples, _EPOCHS_PER_SAMPLE)
    awake, deep, rem = ((by_sample == stage).mean(axis=1) for stage in (AWAKE, DEEP, REM))
    hours = np.arange(samples) / 12
    # A hard day or a fever keeps the heart fast through the first hours.
    settle = 9.0 * np.exp(-hours / (1.3 + 0.01 * day.resting_heart_rate))
    heart = settle + 2.5 * rem - 1.0 * deep + 7.0 * awake
    heart += 1.1 * noise.smooth(_key(life, day, kind, "heart"), 0, samples, 3)
    heart = np.round(heart - heart.min() + lowest + 1.0)

    variation = (
        0.12 * deep
        - 0.18 * rem
        - 0.3 * awake
        + 0.17 * noise.smooth(_key(life, day, kind, "variability"), 0, samples, 2)
    )
    hrv = np.exp(variation)
    wanted = day.hrv * (0.8 if kind == "nap" else 1.0)
    lost = noise.uniform(_key(life, day, kind, "lost"), 0, samples) < 0.03
    lost[0] = day.index % 3 == 0
    heart[lost] = np.nan
    hrv[lost] = np.nan
    hrv = np.round(hrv * (wanted / np.nanmean(hrv)))

    move = noise.uniform(_key(life, day, kind, "movement"), 0, epochs)
    still = np.where(
        stages == AWAKE, 0.55, np.where(stages == DEEP, 0.985, 0.93 - max(day.restlessness, 0.0))
    )
    movement = np.where(move < still, 1, np.where(move < still + 0.75 * (1 - still), 2, 3)).astype(np.uint8)
    breath = 13.0 + (life.person.resting_heart_rate - 45) / 12 + 1.8 * day.illness
    breath += 0.3 * math.sin(day.index * 1.7)
    return Night(
        kind=kind,
        bed=bed,
        wake=wake,
        stages=stages,
        movement=movement,
        heart_rate=heart,
        hrv=hrv,
        lowest_heart_rate=round(lowest),
        breath=round(breath * 8) / 8,
        latency=_latency(stages),
    )


def _rest(life: Life, day: Day, bed: int, wake: int) -> Night:
    epochs = -(-(wake - bed) // EPOCH_SECONDS)
    stages = np.full(epochs, AWAKE, dtype=np.uint8)
    stages[epochs // 2 : epochs // 2 + 1 + day.index % 3] = LIGHT
    move = noise.uniform(_key(life, day, "rest", "movement"), 0, epochs)
    nothing = np.zeros(0)
    return Night(
        kind="rest",
        bed=bed,
        wake=wake,
        stages=stages,
        movement=(1 + np.floor(3 * move)).astype(np.uint8),
        heart_rate=nothing,
        hrv=nothing,
        lowest_heart_rate=255,
        breath=round((life.person.resting_heart_rate / 4) * 8) / 8,
        latency=0,
    )
