"""What a person's body and days are like: the hidden truth, day after day, that every series is drawn from.

The state is carried from `EPOCH` on in blocks of fixed size, and each day's chance comes from `noise`, so a
date's `Day` depends on the person (and their seed) and the date alone.

The model is small, and every effect is one that the pipeline is asked to find again: training lowers the
next night's HRV and raises its heart rate; illness does so for days and raises temperature; late weekends,
jet lag, a training season and the menstrual cycle add to it.
"""

from __future__ import annotations

import datetime as dt
import math
import threading
from dataclasses import dataclass
from functools import lru_cache

from health_pipeline.sandbox import noise
from health_pipeline.sandbox.people import EPOCH, Person, Session
from health_pipeline.sandbox.timeline import Timeline

_BLOCK_DAYS = 128
_ILLNESS_COURSE = (0.35, 1.0, 0.95, 0.75, 0.5, 0.3, 0.15)
_WEEKDAY_STEPS = (1.0, 1.02, 1.0, 1.05, 0.98, 1.12, 0.78)
_LONGEST_AWAKE = 30 * 3600
_SHORTEST_AWAKE = int(11.5 * 3600)

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Workout:
    """A training session as it happened. Instants in epoch seconds, `met` the mean effort."""

    activity: str
    start: int
    end: int
    met: float

    @property
    def minutes(self) -> int:
        return (self.end - self.start) // 60

    @property
    def load(self) -> float:
        """Training impulse: about 110 for an hour's hard run."""
        return self.minutes * max(self.met - 1.5, 0.0) / 4.5


@dataclass(frozen=True, slots=True)
class Day:
    """One date in a person's life: the night that ended on it and what was done after it.

    Instants are epoch seconds. `bed` and `wake` are the main night, `flight_sleep` a second one in an
    aircraft. `resting_heart_rate` (bpm), `hrv` (ms) and `temperature` (°C from the person's own mean) are of
    the night. `off` are the spans without the ring, the night included when it was not worn.
    """

    date: dt.date
    index: int
    start: int
    end: int
    bed: int
    wake: int
    resting_heart_rate: float
    hrv: float
    temperature: float
    restlessness: float
    illness: float
    jet_lag_hours: float
    load: float
    steps_wanted: float
    workouts: tuple[Workout, ...]
    nap: Span | None
    rest: Span | None
    flight_sleep: Span | None
    night_worn: bool
    off: tuple[Span, ...]


@dataclass(slots=True)
class _Body:
    """What is carried from one day to the next."""

    load: float = 0.0
    fatigue: float = 0.0
    heart: float = 0.0
    variability: float = 0.0
    temperature: float = 0.0
    bed: float = 0.0
    wake: float = 0.0
    steps: float = 0.0
    jet: float = 0.0
    offset: int | None = None
    woke: int | None = None


class Life:
    """The days of one person, computed as they are asked for and kept."""

    def __init__(self, person: Person) -> None:
        self.person = person
        self.timeline = Timeline(person)
        self._lock = threading.Lock()
        self._days: dict[dt.date, Day] = {}
        self._blocks = 0
        self._body = _Body()

    def day(self, date: dt.date) -> Day | None:
        """The day of that date, None before `EPOCH` and for a date skipped over the date line."""
        index = (date - EPOCH).days
        if index < 0:
            return None
        with self._lock:
            while index >= self._blocks * _BLOCK_DAYS:
                self._live_block()
            return self._days.get(date)

    def days(self, start: dt.date, end: dt.date) -> list[Day]:
        """The days from `start` to `end`, both included, that were lived."""
        dates = (start + dt.timedelta(days=n) for n in range((end - start).days + 1))
        return [day for date in dates if (day := self.day(date)) is not None]

    def next(self, day: Day) -> Day:
        """The day after this one."""
        for ahead in (1, 2, 3):
            following = self.day(day.date + dt.timedelta(days=ahead))
            if following is not None:
                return following
        raise AssertionError("no flight skips three dates")

    def _key(self, topic: str) -> int:
        return noise.key(self.person.seed, self.person.handle, "life", topic)

    def _normal(self, topic: str, start: int, count: int = _BLOCK_DAYS) -> list[float]:
        draws: list[float] = noise.normal(self._key(topic), start, count).tolist()
        return draws

    def _uniform(self, topic: str, start: int, count: int = _BLOCK_DAYS) -> list[float]:
        draws: list[float] = noise.uniform(self._key(topic), start, count).tolist()
        return draws

    def illness(self, index: int) -> float:
        """Severity, 0 to about 1.1, on the day `index` after `EPOCH`."""
        every = self.person.illness_every_days
        severity = 0.0
        for episode in (index // every - 1, index // every):
            if episode < 0:
                continue
            when, how = noise.uniform(self._key("illness"), 2 * episode, 2).tolist()
            onset = episode * every + 12 + int(when * (every - 30))
            day = index - onset
            length = 4 + int(how * 4)
            if 0 <= day < length:
                severity = (0.75 + 0.35 * how) * _ILLNESS_COURSE[day]
        return severity

    def season(self, date: dt.date) -> float:
        """What the training season adds to resting heart rate (bpm)."""
        if not self.person.season:
            return 0.0
        spring = dt.date(date.year if date >= dt.date(date.year, 3, 1) else date.year - 1, 3, 1)
        day = (date - spring).days
        return self.person.season * (0.5 - day / 305 if day < 305 else -0.5 + (day - 305) / 61)

    def _cycle(self, index: int) -> float:
        """Temperature of the menstrual cycle (°C): higher in its second half."""
        if self.person.sex != "female" or self.person.birth_year < 1975:
            return 0.0
        return 0.16 if (index + self._key("cycle") % 28) % 28 >= 14 else -0.16

    def _live_block(self) -> None:
        first = self._blocks * _BLOCK_DAYS
        topics = ("heart", "variability", "temperature", "bed", "wake", "steps", "restless")
        normals = zip(*(self._normal(topic, first) for topic in topics), strict=True)
        for n, draws in enumerate(normals):
            date = EPOCH + dt.timedelta(days=first + n)
            start = self.timeline.start(date)
            if start is not None:
                day = self._live(date, first + n, start, dict(zip(topics, draws, strict=True)))
                self._days[date] = day
        self._blocks += 1

    def _live(self, date: dt.date, index: int, start: int, draw: dict[str, float]) -> Day:
        person, body = self.person, self._body
        end = self.timeline.end(date)
        illness = self.illness(index)
        self._travel(start)

        body.heart = 0.7 * body.heart + 0.8 * draw["heart"]
        body.variability = 0.5 * body.variability + 0.075 * draw["variability"]
        body.temperature = 0.5 * body.temperature + 0.09 * draw["temperature"]
        body.steps = 0.3 * body.steps + 0.2 * draw["steps"]
        body.fatigue = 0.6 * body.fatigue + body.load
        late = 1.0 if date.weekday() >= 5 else 0.0

        bed, wake = self._night(date, index, start, draw, late)
        season = self.season(date)
        jet = abs(body.jet)
        heart = (
            person.resting_heart_rate
            + season
            + 0.026 * body.load
            + 0.006 * body.fatigue
            + 9.0 * illness
            + 1.2 * late
            + 0.35 * jet
            + body.heart
        )
        log_hrv = (
            math.log(person.hrv_ms)
            - 0.02 * season
            - 0.0022 * body.load
            - 0.0005 * body.fatigue
            - 0.45 * illness
            - 0.04 * late
            - 0.015 * jet
            + body.variability
        )
        wear = self._wear(index, start, end, bed, wake)
        workouts = self._workouts(date, index, start, end, wake, illness)
        load = sum(workout.load for workout in workouts)
        day = Day(
            date=date,
            index=index,
            start=start,
            end=end,
            bed=bed,
            wake=wake,
            resting_heart_rate=heart,
            hrv=math.exp(log_hrv),
            temperature=body.temperature + 0.85 * illness + self._cycle(index),
            restlessness=0.04 + 0.012 * draw["restless"] + 0.03 * illness + 0.008 * jet,
            illness=illness,
            jet_lag_hours=body.jet,
            load=load,
            steps_wanted=(
                person.daily_steps
                * _WEEKDAY_STEPS[date.weekday()]
                * math.exp(body.steps)
                * (1 - 0.65 * illness)
            ),
            workouts=workouts,
            nap=self._nap(index, start, end, illness),
            rest=self._rest(index, end),
            flight_sleep=(wake + 17 * 3600, wake + 22 * 3600 + 600)
            if end - wake > _LONGEST_AWAKE + 4 * 3600
            else None,
            night_worn=wear[0],
            off=wear[1],
        )
        body.load, body.woke = load, wake
        return day

    def _travel(self, start: int) -> None:
        body = self._body
        offset = self.timeline.offset_seconds(start)
        moved = 0.0 if body.offset is None else (body.offset - offset) / 3600
        if abs(moved) > 1:  # one hour is a change to or from summer time
            body.jet += (moved + 12) % 24 - 12
        else:
            body.jet *= 0.65
        body.offset = offset

    def _night(
        self, date: dt.date, index: int, start: int, draw: dict[str, float], late: float
    ) -> tuple[int, int]:
        person, body = self.person, self._body
        body.bed = 0.35 * body.bed + 22 * draw["bed"]
        body.wake = 0.35 * body.wake + 16 * draw["wake"]
        jet = max(-100.0, min(100.0, -20.0 * body.jet))
        bed_minutes = person.bed_minute - 50 * late - body.bed - 0.6 * jet
        wake_minutes = person.wake_minute + 60 * late + body.wake + jet
        bed = start - int(60 * bed_minutes) + index % 60
        wake = start + int(60 * max(wake_minutes, 20)) + (7 * index) % 60
        if body.woke is not None and bed - body.woke < _SHORTEST_AWAKE:
            # The short day of an eastward flight: to sleep in the aircraft, when tired enough.
            bed = min(body.woke + 14 * 3600, wake - 4 * 3600)
        return bed, wake

    def _workouts(
        self, date: dt.date, index: int, start: int, end: int, wake: int, illness: float
    ) -> tuple[Workout, ...]:
        away = self._body.jet > 1 or self._body.jet < -1
        chance = max(0.0, 1 - 2.5 * illness) * (0.4 if away else 1.0)
        draws = self._uniform("training", 4 * index, 4)
        effort, length = self._normal("effort", 2 * index, 2)
        plan: tuple[Session, ...] = self.person.plan[date.weekday()]
        done: list[Workout] = []
        for session, luck in zip(plan, draws, strict=False):
            if luck >= session.probability * chance:
                continue
            minutes = max(15, round(session.minutes * (1 + 0.12 * length)))
            begin = start + 60 * (session.start_minute - 240 + round(20 * draws[3]))
            begin = max(begin, (wake // 60 + 30) * 60)
            if begin + 60 * minutes < end - 7 * 3600:
                met = round(session.met * (1 + 0.08 * effort), 2)
                done.append(Workout(session.activity, begin, begin + 60 * minutes, met))
        return tuple(done)

    def _nap(self, index: int, start: int, end: int, illness: float) -> Span | None:
        luck, when, length = self._uniform("nap", 3 * index, 3)
        if luck >= self.person.nap_probability + 0.6 * illness or end - start < 23 * 3600:
            return None
        begin = start + int((9.4 + 1.6 * when) * 3600)  # 13:24 to 15:00
        return begin, begin + int((35 + 50 * length) * 60)

    def _rest(self, index: int, end: int) -> Span | None:
        """Lying still in the evening, which a ring takes for a try at sleeping."""
        luck, when, length = self._uniform("rest", 3 * index, 3)
        if luck >= self.person.rest_probability:
            return None
        begin = end - int((7.9 + 0.4 * when) * 3600)  # about 20:00
        return begin, begin + int((16 + 18 * length) * 60)

    def _wear(self, index: int, start: int, end: int, bed: int, wake: int) -> tuple[bool, tuple[Span, ...]]:
        night, charge, charge_length, long, long_start, long_length = self._uniform("wear", 6 * index, 6)
        # A forgotten charger costs two days and a half.
        forgotten = min(self._uniform("forgotten", index, 3)) < 0.0035
        worn = night >= self.person.missing_night_probability and not forgotten
        off: list[Span] = []
        if not worn:
            off.append((bed - 5400, wake + 1800))
        if forgotten:
            off.append((wake, end))
        if charge < 0.7:
            begin = wake + 1200
            off.append((begin, begin + int((20 + 50 * charge_length) * 60)))
        if long < 0.06:
            begin = start + int((5 + 6 * long_start) * 3600)
            off.append((begin, begin + int((3 + 4 * long_length) * 3600)))
        return worn, tuple((max(a, start - 8 * 3600), min(b, end)) for a, b in off)


@lru_cache(maxsize=256)
def life_of(person: Person) -> Life:
    """The one `Life` of a person in this process."""
    return Life(person)
