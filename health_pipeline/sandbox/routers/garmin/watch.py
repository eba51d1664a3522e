"""What a person's watch sees and when it is synced: stretches of local days, minutes, pulse, stress."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from health_pipeline.sandbox import body, noise
from health_pipeline.sandbox.activity import Flags, Ints, activity, heart_rate
from health_pipeline.sandbox.life import Day, Life
from health_pipeline.sandbox.people import EPOCH

EPOCH_LENGTH = 900
STRESS_STEP = 180
ONE_DAY = dt.timedelta(days=1)

SEDENTARY, WALKING = 0, 1
TYPES = (
    "SEDENTARY",
    "WALKING",
    "RUNNING",
    "CYCLING",
    "LAP_SWIMMING",
    "HIKING",
    "STRENGTH_TRAINING",
    "YOGA",
    "BADMINTON",
)
TYPE_OF = {name.lower(): number for number, name in enumerate(TYPES)} | {"swimming": 4}


@dataclass(frozen=True, slots=True)
class Stretch:
    """Instants in which the wall clock shows one date, from `start` to `end` (epoch seconds).

    A date has two where the date line is crossed.
    """

    date: dt.date
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Minutes:
    """What the watch saw, an item a minute from `start`; nothing is seen where it is not `worn`."""

    start: int
    steps: Ints
    met: noise.Floats
    kcal: noise.Floats
    worn: Flags
    asleep: Flags
    kind: Ints

    def part(self, start: int, end: int) -> slice:
        return slice((start - self.start) // 60, (end - self.start) // 60)


class Watch:
    """The watch of one person. Instants are epoch seconds."""

    def __init__(self, life: Life) -> None:
        self.life = life
        self.person = life.person
        self.user_id = self.person.uuid("garmin", "user")
        self._stretches: dict[int, Stretch] = {}

    def offset(self, instant: int) -> int:
        return self.life.timeline.offset_seconds(instant)

    def date(self, instant: int) -> dt.date:
        return self.life.timeline.local(instant).date()

    def stretch(self, instant: int) -> Stretch:
        """The stretch of one local date that an instant lies in."""
        slot = instant // EPOCH_LENGTH
        if slot not in self._stretches:
            date = self.date(slot * EPOCH_LENGTH)
            first, last = slot, slot + 1
            while self.date((first - 1) * EPOCH_LENGTH) == date:
                first -= 1
            while self.date(last * EPOCH_LENGTH) == date:
                last += 1
            self._stretches[slot] = Stretch(date, first * EPOCH_LENGTH, last * EPOCH_LENGTH)
        return self._stretches[slot]

    def stretches(self, start: int, end: int) -> Iterator[Stretch]:
        """Those that have a part between two instants."""
        while start < end:
            found = self.stretch(start)
            yield found
            start = found.end

    def syncs(self, start: int, end: int) -> list[tuple[int, int]]:
        """(sync, the sync before it) for each sync from `start` on and before `end`, in epoch seconds."""
        first = max(EPOCH + ONE_DAY, self._utc_date(start) - 5 * ONE_DAY)
        times = [
            moment
            for day in self.life.days(first, self._utc_date(end) + 2 * ONE_DAY)
            if day.index % 9 != 4  # the phone stayed at home
            for moment in (day.wake + 600, day.start + 17 * 3600)
        ]
        times.sort()
        pairs = zip(times[1:], times, strict=False)
        return [(moment, before) for moment, before in pairs if start <= moment < end]

    def synced(self, instant: int) -> int:
        """When what ended at an instant is uploaded: the first sync after it."""
        return self.syncs(instant, instant + 5 * 86_400)[0][0]

    @staticmethod
    def _utc_date(instant: int) -> dt.date:
        return dt.datetime.fromtimestamp(instant, dt.UTC).date()

    def days(self, start: int, end: int) -> list[Day]:
        """Lived days that have a part between two instants, and the one before."""
        first = max(EPOCH, self._utc_date(start) - 2 * ONE_DAY)
        found = self.life.days(first, self._utc_date(end) + ONE_DAY)
        return [day for day in found if day.end > start - 86_400 and day.start < end]

    def minutes(self, start: int, end: int) -> Minutes:
        """Whole lived days around two instants, minute by minute."""
        days = [day for day in self.days(start, end) if day.end > start]
        parts = []
        for day in days:
            lived = activity(self.life, day)
            kind = np.where(lived.steps > 0, WALKING, SEDENTARY)
            for done in day.workouts:
                at = slice((done.start - day.start) // 60, (done.end - day.start) // 60)
                kind[at] = TYPE_OF[done.activity]
            kcal = body.active_kcal(self.person, lived)
            parts.append((lived.steps, lived.met, kcal, lived.worn, lived.asleep, kind))
        return Minutes(days[0].start, *(np.concatenate(column) for column in zip(*parts, strict=True)))

    def pulse(self, start: int, end: int) -> list[tuple[int, int]]:
        """Heart rate between two instants, at most one value a second."""
        values: dict[int, int] = {}
        for day in self.days(start, end):
            samples = heart_rate(self.life, day)
            chosen = (samples.time >= start) & (samples.time < end)
            values |= dict(zip(samples.time[chosen].tolist(), samples.bpm[chosen].tolist(), strict=True))
        return sorted(values.items())

    def stress(self, start: int, end: int) -> Ints:
        """Stress of each 3 minutes: 1 to 100, -1 where the watch was off, -2 in movement."""
        seen = self.minutes(start, end)
        part = seen.part(start, end)
        whole = (part.stop - part.start) // 3 * 3
        met, worn, asleep = (
            column[part][:whole].reshape(-1, 3).mean(axis=1) for column in (seen.met, seen.worn, seen.asleep)
        )
        key = noise.key(self.person.seed, self.person.handle, "garmin stress")
        wander = noise.smooth(key, start // STRESS_STEP, met.size, 15)
        level: noise.Floats = (
            np.where(asleep > 0.5, 14.0, 34.0) + 9.0 * wander + 8.0 * np.clip(met - 1.0, 0, 2)
        )
        level = np.clip(np.rint(level), 1, 100)
        level[met >= 3.0] = -2
        level[worn < 1.0] = -1
        return np.asarray(level, dtype=np.int64)

    def battery(self, instant: int) -> int:
        """Body battery: filled by the night, emptied by the day."""
        day = next(day for day in reversed(self.days(instant, instant + 1)) if day.bed <= instant)
        asleep = min(instant, day.wake) - day.bed
        awake = max(0, instant - day.wake)
        full = 88 - 30 * day.illness
        low = 22 + 0.02 * self.life.person.vo2_max
        filled = low + (full - low) * asleep / (day.wake - day.bed)
        return max(5, min(100, round(filled - (full - low) * awake / (17.5 * 3600))))
