"""Training load a day, and its short and long exponentially weighted averages.

A session's load is found in the first of these ways that its data allow; `load_method` names it:

- `banister`: the training impulse of its heart rate reserve r = (heart rate - rest) / (max - rest), minute by
  minute from the samples: r x 0.64 e^(1.92 r) for men, r x 0.86 e^(1.67 r) for women (Banister 1991). It is
  convex, so the session's mean heart rate would understate intervals;
- `edwards`: 1 to 5 a minute by zones of 50, 60, 70, 80 and 90 % of the highest heart rate, where the sex or the
  resting heart rate is not known;
- `session_rpe`: minutes times the person's own rating on the CR-10 scale (Foster et al. 2001);
- `duration_intensity`: minutes times a factor for the source's word, standing in for that rating.

Loads are in the units of the rating, so that a person's averages do not jump when the way changes: a minute at
60 % of the heart rate reserve, where moderate effort turns vigorous (ACSM), counts 5, and so does a minute in
the third of Edwards' zones. `banister_trimp` and `edwards_trimp` hold both sums as their authors define them.

The highest heart rate is the one the person gave, else 208 - 0.7 x age (Tanaka et al. 2001); without a birth year
there is none and heart rate is not used. The resting one is the newest daily value of the last 60 days. A sample
stands for up to five minutes; a session needs samples for half of it, and the rest counts like the mean of that.

The averages follow L(t) = L(t-1) + (load(t) - L(t-1)) / tau with tau 7 days (acute) and 42 days (chronic), as
in the impulse-response tradition; that is not the smoothing by 2 / (N + 1) of Williams et al. (2017). Over a
person's first 14 days with data both are the plain mean so far, so that neither starts from a zero that
nobody trained.

Rest and missing differ. A day without a session is a rest day, load 0, if the person wore something that day
(steps, or a metric that needs the heart); without such evidence its load is unknown and both averages stand
still. `missing_days` says for how long they have.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from health_pipeline.engine.frames import (
    BoolArray,
    DayRange,
    FloatArray,
    IntArray,
    TextArray,
    dates,
    day_numbers,
    day_range,
    floats,
    lexical_order,
    positions,
    require_columns,
    starts,
    text,
    tidy_daily,
    user_ids,
)

ACUTE_DAYS = 7
CHRONIC_DAYS = 42
#: The 7 days of the uncoupled ratio and the 21 before them.
UNCOUPLED_DAYS = 28
#: Mean daily load under which a ratio to it says nothing.
MIN_USUAL_LOAD = 1.0
#: Days with data whose mean both averages start from.
WARM_UP_DAYS = 14
#: Arbitrary units a minute; near the CR-10 words "moderate", "hard" and "very hard" to "maximal".
INTENSITY_FACTORS = {"easy": 3.0, "moderate": 5.0, "hard": 8.0}
#: What a session of unknown intensity is taken for; its day is flagged `intensity_assumed`.
ASSUMED_INTENSITY = "moderate"
#: Two records are one session when they share more than this part of the shorter one.
SAME_SESSION_OVERLAP = 0.5
#: Metrics that exist only if something was worn (steps count when above zero).
WEAR_METRICS = (
    "heart_rate",
    "heart_rate_variability",
    "heart_rate_variability_sdnn",
    "respiratory_rate",
    "resting_heart_rate",
    "spo2",
    "steps",
    "stress_score",
)
#: How a minute's impulse grows with the heart rate reserve: factor and exponent.
BANISTER = {"male": (0.64, 1.92), "female": (0.86, 1.67)}
#: Share of the highest heart rate from which a minute is in zones 1 to 5.
EDWARDS_ZONES = (0.5, 0.6, 0.7, 0.8, 0.9)
#: What a minute at this share of the heart rate reserve counts by every method, in units of the rating.
REFERENCE_RESERVE = 0.6
REFERENCE_LOAD = 5.0
#: The zone of Edwards' that counts as much.
REFERENCE_ZONE = 3
#: A heart rate stands for the minutes after it until the next, at most so many.
SAMPLE_MINUTES = 5
#: Share of a session that its samples have to stand for.
MIN_HEART_RATE_SHARE = 0.5
MAX_RESTING_AGE_DAYS = 60
#: Longer records are forgotten stop buttons: only their first hours are looked at minute by minute.
_LONGEST_MINUTES = 1440
METHODS = ("banister", "edwards", "session_rpe", "duration_intensity")
WORKOUT_COLUMNS = (
    "user_id",
    "local_date",
    "started_at",
    "ended_at",
    "activity",
    "intensity",
    "perceived_exertion",
    "source",
)
HEART_RATE_COLUMNS = ("user_id", "minute", "source", "bpm")
PROFILE_COLUMNS = ("user_id", "sex", "birth_year", "max_heart_rate")
STATE_COLUMNS = (
    "user_id",
    "local_date",
    "acute_load",
    "chronic_load",
    "days_of_history",
    "missing_days",
)


@dataclass(frozen=True, slots=True)
class _Sessions:
    """Every session once. `method` is a position in `METHODS`; the sums of heart rate are NaN without it."""

    user_id: IntArray
    day: IntArray
    minutes: FloatArray
    load: FloatArray
    method: IntArray
    assumed: BoolArray
    banister: FloatArray
    edwards: FloatArray


@dataclass(slots=True)
class _State:
    """Both averages of every user after some day. `history` counts days with a load."""

    acute: FloatArray
    chronic: FloatArray
    history: IntArray
    missing: IntArray

    def advance(self, load: FloatArray) -> None:
        """One day on; NaN is a day without data."""
        seen = ~np.isnan(load)
        self.history = self.history + seen
        self.missing = np.where(seen, 0, self.missing + 1)
        warm_up = self.history <= WARM_UP_DAYS
        count = np.maximum(self.history, 1)
        for average, tau in ((self.acute, ACUTE_DAYS), (self.chronic, CHRONIC_DAYS)):
            step = (load - average) / np.where(warm_up, count, tau)
            average += np.where(seen, step, 0.0)


def training_loads(
    workouts: pd.DataFrame,
    daily: pd.DataFrame,
    days: DayRange,
    previous: pd.DataFrame | None = None,
    recent: pd.DataFrame | None = None,
    heart_rate: pd.DataFrame | None = None,
    profiles: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Load and averages of every user on each of `days`. Grain: user_id, local_date; sorted so.

    A user's rows begin on the first day with a session or wear evidence, and then no day is left out.

    `previous` holds rows of this function's result for the day before the first of `days`; the users in it
    continue from there, and what `workouts` and `daily` hold of them before `days` is only used to tell
    sessions recorded twice. For users not in it, both frames must hold everything from the first day on.
    Give the workouts of the day before and the day after `days` too, since two records of one session may
    lie on both sides of midnight.

    `recent` holds their rows (user_id, local_date, load) of the 27 days before the first of `days`, as far as
    there are any.

    `heart_rate` (user_id, minute in UTC, source, bpm) holds the minutes of the sessions, `profiles` (user_id, sex,
    birth_year, max_heart_rate; nulls where not said) the people; without them no load is of the heart. A session's
    samples are those of its own source, else of the one with the most. `daily` holds the resting heart rates of
    the 60 days before.

    Columns: `load` (units of the rating; null on a day without data), `load_method` (one of `METHODS`, `mixed`
    where a day's sessions differ in it, `none` on a rest day, null without data), `banister_trimp` and
    `edwards_trimp` (of the day's sessions with a heart rate; null without one), `heart_rate_share` (share of the
    sessions' minutes in them), `intensity_assumed` (some session's intensity was unknown), `workout_count`,
    `worn`, `acute_load`, `chronic_load`, `stress_balance` (chronic minus acute of the day
    before; null until the averages stand on 14 days), `days_of_history` (days with a load so far),
    `missing_days` (days without data in a row, 0 where there is data), `acute_chronic_ratio` (mean load of the
    last 7 days over that of the 21 before them, which do not overlap; null before 28 days with data, where
    under 4 of the 7 or 14 of the 21 are known, and where the 21 have next to no load). The ratio describes;
    whether it foretells injuries is disputed (Impellizzeri et al. 2020), so nothing is made of it.

    Sessions without a positive duration count for nothing. Raises `ValueError` where a column is missing, an
    intensity is not one of `INTENSITY_FACTORS`, or `previous` is not of the day before.
    """
    start, end = day_range(days)
    sessions = _sessions(workouts, _Pulse.of(heart_rate, profiles, daily))
    worn = _worn(daily)
    before = _previous(previous, start)
    users = np.unique(np.concatenate([sessions.user_id, worn[0], before["user_id"].to_numpy(dtype=np.int64)]))
    known = np.isin(users, before["user_id"].to_numpy(dtype=np.int64))

    first_day = _first_days(users, known, start, end, sessions, worn)
    axis_start = min(start, int(first_day.min())) if len(users) else start
    width = end - axis_start + 1
    grid = _Grid(users, axis_start, width)
    counts = grid.total(sessions.user_id, sessions.day, None)
    is_worn = grid.total(*worn, None) > 0
    load = grid.total(sessions.user_id, sessions.day, sessions.load)
    load[(counts == 0) & ~is_worn] = np.nan
    assumed = grid.total(sessions.user_id[sessions.assumed], sessions.day[sessions.assumed], None) > 0

    method = _methods(load, counts, grid, sessions)
    minutes = grid.total(sessions.user_id, sessions.day, sessions.minutes)
    trimps, shares = {}, np.full((len(users), width), np.nan)
    for name, values in (("banister_trimp", sessions.banister), ("edwards_trimp", sessions.edwards)):
        known_values = ~np.isnan(values)
        whose = (sessions.user_id[known_values], sessions.day[known_values])
        total = grid.total(*whose, values[known_values])
        total[grid.total(*whose, None) == 0] = np.nan
        trimps[name] = total
        if name == "edwards_trimp":  # known wherever there is a heart rate
            beaten = grid.total(*whose, sessions.minutes[known_values])
            shares = np.where(counts > 0, beaten / np.where(minutes > 0, minutes, 1.0), np.nan)

    offset = start - axis_start
    asked = width - offset
    shape = (len(users), asked)
    acute, chronic, balance = np.empty(shape), np.empty(shape), np.full(shape, np.nan)
    history, missing = np.empty(shape, dtype=np.int64), np.empty(shape, dtype=np.int64)
    state = _State(*(np.zeros(len(users), dtype=kind) for kind in (float, float, np.int64, np.int64)))
    for column in range(width):
        at = column - offset
        if at == 0:
            state.acute[known] = floats(before, "acute_load")
            state.chronic[known] = floats(before, "chronic_load")
            state.history[known] = before["days_of_history"].to_numpy(dtype=np.int64)
            state.missing[known] = before["missing_days"].to_numpy(dtype=np.int64)
        if at >= 0:
            settled = state.history >= WARM_UP_DAYS
            balance[settled, at] = (state.chronic - state.acute)[settled]
        state.advance(load[:, column])
        if at >= 0:
            acute[:, at], chronic[:, at] = state.acute, state.chronic
            history[:, at], missing[:, at] = state.history, state.missing

    day = np.arange(start, end + 1, dtype=np.int64)
    begun = day >= first_day[:, None]
    ratio = _acute_chronic_ratio(_with_recent(load, offset, grid, known, recent, start), asked)
    ratio[history < UNCOUPLED_DAYS] = np.nan
    load, counts = load[:, offset:], counts[:, offset:]
    assumed, is_worn = assumed[:, offset:], is_worn[:, offset:]
    return pd.DataFrame(
        {
            "user_id": np.broadcast_to(users[:, None], shape)[begun],
            "local_date": dates(np.broadcast_to(day, shape)[begun]),
            "load": load[begun],
            "load_method": text(method[:, offset:][begun]),
            **{name: values[:, offset:][begun] for name, values in trimps.items()},
            "heart_rate_share": shares[:, offset:][begun],
            "intensity_assumed": assumed[begun],
            "workout_count": counts[begun].astype(np.int64),
            "worn": is_worn[begun],
            "acute_load": acute[begun],
            "chronic_load": chronic[begun],
            "stress_balance": balance[begun],
            "days_of_history": history[begun],
            "missing_days": missing[begun],
            "acute_chronic_ratio": ratio[begun],
        }
    )


def _with_recent(
    load: FloatArray, offset: int, grid: _Grid, known: BoolArray, recent: pd.DataFrame | None, start: int
) -> FloatArray:
    """Loads from 27 days before the first asked day on: from `recent` for users who continue."""
    before = np.full((len(known), UNCOUPLED_DAYS - 1), np.nan)
    own = load[:, max(offset - before.shape[1], 0) : offset]
    if own.shape[1]:
        before[:, -own.shape[1] :] = own
    before[known] = np.nan
    if recent is not None:
        require_columns(recent, "recent", ("user_id", "local_date", "load"))
        user, at = user_ids(recent, "recent"), day_numbers(recent, "recent") - (start - before.shape[1])
        row = np.minimum(np.searchsorted(grid.users, user), max(len(known) - 1, 0))
        inside = (at >= 0) & (at < before.shape[1]) & np.isin(user, grid.users[known])
        before[row[inside], at[inside]] = floats(recent, "load")[inside]
    return np.hstack([before, load[:, offset:]])


def _acute_chronic_ratio(load: FloatArray, asked: int) -> FloatArray:
    """Uncoupled ratio on each of the last `asked` days; `load` reaches 27 days further back."""
    means = []
    for first, last, least in ((0, ACUTE_DAYS, 4), (ACUTE_DAYS, UNCOUPLED_DAYS, 14)):
        total, count = np.zeros((len(load), asked)), np.zeros((len(load), asked))
        for back in range(first, last):
            part = load[:, UNCOUPLED_DAYS - 1 - back : UNCOUPLED_DAYS - 1 - back + asked]
            total += np.nan_to_num(part)
            count += ~np.isnan(part)
        means.append(np.where(count >= least, total / np.maximum(count, 1.0), np.nan))
    trained = means[1] >= MIN_USUAL_LOAD
    ratio: FloatArray = np.where(trained, means[0] / np.where(trained, means[1], 1.0), np.nan)
    return ratio


@dataclass(frozen=True, slots=True)
class _Grid:
    """Users by days."""

    users: IntArray
    start: int
    width: int

    def total(self, user_id: IntArray, day: IntArray, weight: FloatArray | None) -> FloatArray:
        """Sums (or counts) per user and day, added in the order of the rows; rows off the grid are left."""
        inside = (day >= self.start) & (day < self.start + self.width)
        cell = np.searchsorted(self.users, user_id[inside]) * self.width + (day[inside] - self.start)
        sums = np.bincount(
            cell, None if weight is None else weight[inside], minlength=len(self.users) * self.width
        )
        return sums.astype(np.float64).reshape(len(self.users), self.width)


def _first_days(
    users: IntArray,
    known: BoolArray,
    start: int,
    end: int,
    sessions: _Sessions,
    worn: tuple[IntArray, IntArray],
) -> IntArray:
    """Each user's first day with data, the first asked day for users with a state; after `end` if none."""
    first = np.full(len(users), end + 1, dtype=np.int64)
    for user_id, day in ((sessions.user_id, sessions.day), worn):
        np.minimum.at(first, np.searchsorted(users, user_id), day)
    first[known] = start
    return first


def _methods(load: FloatArray, counts: FloatArray, grid: _Grid, sessions: _Sessions) -> TextArray:
    methods = np.full(load.shape, "none", dtype=object)
    ways = np.zeros(load.shape, dtype=np.int64)
    for code, name in enumerate(METHODS):
        of = sessions.method == code
        here = grid.total(sessions.user_id[of], sessions.day[of], None) > 0
        methods[here] = name
        ways += here
    methods[ways > 1] = "mixed"
    methods[np.isnan(load)] = None
    return methods


def _worn(daily: pd.DataFrame) -> tuple[IntArray, IntArray]:
    """Users and days with wear evidence."""
    rows = tidy_daily(daily, WEAR_METRICS)
    rows = rows.take((rows.metric != rows.metrics.index("steps")) | (rows.value > 0))
    return rows.user_id, rows.day


def _previous(previous: pd.DataFrame | None, start: int) -> pd.DataFrame:
    """The states to continue from, sorted by user."""
    if previous is None:
        return pd.DataFrame({column: np.empty(0, dtype=np.int64) for column in STATE_COLUMNS})
    require_columns(previous, "previous", STATE_COLUMNS)
    off = day_numbers(previous, "previous") != start - 1
    if off.any():
        raise ValueError(
            f"previous has {int(off.sum())} rows of other days than the one before the first asked day "
            f"({dates(np.array([start - 1]))[0].astype('datetime64[D]')})"
        )
    if previous["user_id"].duplicated().any():
        raise ValueError("previous has several rows of one user")
    return previous.sort_values("user_id")


def _sessions(workouts: pd.DataFrame, pulse: _Pulse) -> _Sessions:
    """Every session once, with its load, sorted by user, day and start."""
    require_columns(workouts, "workouts", WORKOUT_COLUMNS)
    start, end = _instants(workouts["started_at"]), _instants(workouts["ended_at"])
    timed = ~np.isnat(start) & ~np.isnat(end) & (start < end)
    chosen = workouts.loc[timed]
    begin, finish = start[timed].astype(np.int64), end[timed].astype(np.int64)
    user, day = user_ids(chosen, "workouts"), day_numbers(chosen, "workouts")
    intensity = _intensities(chosen)

    # Longest first; then one that knows its intensity; the rest only makes the choice the same every time.
    source = pd.Categorical(chosen["source"]).codes.astype(np.int64)
    activity = pd.Categorical(chosen["activity"]).codes.astype(np.int64)
    preference = lexical_order(begin - finish, np.isnan(intensity).astype(np.int64), source, activity, begin)
    rank = np.empty(len(preference), dtype=np.int64)
    rank[preference] = np.arange(len(preference))

    better, worse = _same_sessions(user, begin, finish, rank)
    kept = _without_repeats(better, worse, len(chosen))
    said = floats(chosen, "perceived_exertion")
    rating: FloatArray = np.where((said > 0) & (said <= 10), said, np.nan)
    for known in (intensity, rating):
        _lend(known, better, worse, kept, rank)

    order = lexical_order(user, day, begin, rank)
    order = order[kept[order]]
    user, day, begin, finish = user[order], day[order], begin[order], finish[order]
    intensity, rating = intensity[order], rating[order]
    minutes = (finish - begin) / 60_000_000
    names = chosen["source"].to_numpy(dtype=object)[order]
    banister, edwards, unit = pulse.impulses(user, day, begin, finish, names)
    factor = np.where(np.isnan(intensity), INTENSITY_FACTORS[ASSUMED_INTENSITY], intensity)
    ways = np.stack(
        [banister * unit, edwards * (REFERENCE_LOAD / REFERENCE_ZONE), minutes * rating, minutes * factor]
    )
    method = np.argmax(~np.isnan(ways), axis=0)
    load = ways[method, np.arange(len(method))]
    assumed = np.isnan(intensity) & (method == METHODS.index("duration_intensity"))
    return _Sessions(user, day, minutes, load, method, assumed, banister, edwards)


@dataclass(frozen=True, slots=True)
class _Pulse:
    """Heart rates a minute, in groups of a user and source, and whose they are. All sorted; minutes since 1970."""

    group_user: IntArray
    group_source: TextArray
    group: IntArray
    minute: IntArray
    bpm: FloatArray
    profiles: pd.DataFrame
    resting: pd.DataFrame

    @classmethod
    def of(
        cls, heart_rate: pd.DataFrame | None, profiles: pd.DataFrame | None, daily: pd.DataFrame
    ) -> _Pulse:
        if heart_rate is None or profiles is None:
            nothing = np.empty(0, dtype=np.int64)
            empty = pd.DataFrame()
            return cls(nothing, nothing.astype(object), nothing, nothing, np.empty(0), empty, empty)
        require_columns(heart_rate, "heart_rate", HEART_RATE_COLUMNS)
        require_columns(profiles, "profiles", PROFILE_COLUMNS)
        sources = pd.Categorical(heart_rate["source"])
        user, source = user_ids(heart_rate, "heart_rate"), sources.codes.astype(np.int64)
        minute = _instants(heart_rate["minute"]).astype(np.int64) // 60_000_000
        order = lexical_order(user, source, minute)
        user, source, minute = user[order], source[order], minute[order]
        new = starts(user, source)
        rows = tidy_daily(daily, ("resting_heart_rate",))
        return cls(
            user[new],
            sources.categories.to_numpy(dtype=object)[source[new]],
            np.cumsum(new) - 1,
            minute,
            floats(heart_rate, "bpm")[order],
            profiles.drop_duplicates("user_id").set_index("user_id"),
            pd.DataFrame({"user_id": rows.user_id, "day": rows.day, "rest": rows.value}),
        )

    def impulses(
        self, user: IntArray, day: IntArray, begin: IntArray, finish: IntArray, source: TextArray
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Of each session both impulses, NaN where there are none, and what one of Banister's is in load."""
        highest, rest, sex = self._people(user, day)
        weight, exponent = (
            np.array([BANISTER.get(each or "", (np.nan, np.nan))[part] for each in sex]) for part in (0, 1)
        )
        unit = REFERENCE_LOAD / (REFERENCE_RESERVE * weight * np.exp(exponent * REFERENCE_RESERVE))
        banister, edwards = np.full(len(user), np.nan), np.full(len(user), np.nan)
        session, bpm, share = self._minutes(user, begin, finish, source, np.flatnonzero(highest > 0))
        if not len(session):
            return banister, edwards, unit
        minutes = (finish - begin) / 60_000_000
        count = np.bincount(session, minlength=len(user))
        whole = np.where(share >= MIN_HEART_RATE_SHARE, minutes / np.maximum(count, 1), np.nan)
        reserve = np.clip((bpm - rest[session]) / (highest - rest)[session], 0.0, 1.0)
        impulse = reserve * weight[session] * np.exp(exponent[session] * reserve)
        zone = np.searchsorted(EDWARDS_ZONES, bpm / highest[session], side="right").astype(float)
        banister = np.where(rest < highest, np.bincount(session, impulse, len(user)) * whole, np.nan)
        edwards = np.asarray(np.bincount(session, zone, len(user)) * whole, dtype=np.float64)
        return banister, edwards, unit

    def _people(self, user: IntArray, day: IntArray) -> tuple[FloatArray, FloatArray, list[str | None]]:
        """Highest and resting heart rate, NaN where unknown, and sex, of each session's person on its day."""
        if self.profiles.empty:
            nothing = np.full(len(user), np.nan)
            return nothing, nothing, [None] * len(user)
        whose = self.profiles.reindex(user)
        age = (
            day.astype("datetime64[D]").astype("datetime64[Y]").astype(np.int64)
            + 1970
            - floats(whose, "birth_year")
        )
        given = floats(whose, "max_heart_rate")
        highest = np.where(np.isnan(given), 208.0 - 0.7 * age, given)
        asked = pd.DataFrame({"user_id": user, "day": day, "place": np.arange(len(user))})
        found = pd.merge_asof(
            asked.sort_values("day", kind="stable"),
            self.resting.sort_values("day", kind="stable"),
            on="day",
            by="user_id",
            tolerance=MAX_RESTING_AGE_DAYS,
        ).sort_values("place")
        sex = [word if isinstance(word, str) else None for word in whose["sex"].tolist()]
        return highest, floats(found, "rest"), sex

    def _minutes(
        self, user: IntArray, begin: IntArray, finish: IntArray, source: TextArray, of: IntArray
    ) -> tuple[IntArray, FloatArray, FloatArray]:
        """The sessions' minutes with a heart rate: session and bpm of each; of each session the share of them."""
        first = np.searchsorted(self.group_user, user[of])
        number = np.searchsorted(self.group_user, user[of], side="right") - first
        session = np.repeat(of, number)
        group = np.repeat(first, number) + _counting(number)
        start = begin[session] // 60_000_000
        length = np.minimum(-(-finish[session] // 60_000_000) - start, _LONGEST_MINUTES)
        pair = np.repeat(np.arange(len(session)), length)
        minute = start[pair] + _counting(length)
        key = self.group * (1 << 40) + self.minute
        at = np.searchsorted(key, group[pair] * (1 << 40) + minute, side="right") - 1
        near = np.maximum(at, 0)
        known = at >= 0
        if len(key):
            known &= (self.group[near] == group[pair]) & (minute - self.minute[near] < SAMPLE_MINUTES)
        covered = np.bincount(pair[known], minlength=len(session)) / np.maximum(length, 1)
        # The session's own source, if it has enough; else the one with the most.
        own = (self.group_source[group] == source[session]) & (covered >= MIN_HEART_RATE_SHARE)
        order = lexical_order(session, ~own * 1, -np.rint(covered * 1e6).astype(np.int64), group)
        best = order[starts(session[order])] if len(order) else order
        chosen = np.zeros(len(session), dtype=bool)
        chosen[best] = True
        share = np.zeros(len(user))
        share[session[best]] = covered[best]
        take = known & chosen[pair]
        return session[pair[take]], self.bpm[near[take]], share


def _counting(lengths: IntArray) -> IntArray:
    """0, 1, ... below each length, one after the other."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    counted: IntArray = np.arange(total) - np.repeat(ends - lengths, lengths)
    return counted


def _instants(times: pd.Series) -> np.ndarray[tuple[int], np.dtype[np.datetime64]]:
    """UTC instants in microseconds; without a zone they are taken for UTC, as the contract says."""
    naive = pd.to_datetime(times, utc=True).dt.tz_localize(None)
    return np.asarray(naive.to_numpy().astype("datetime64[us]"))


def _intensities(workouts: pd.DataFrame) -> FloatArray:
    """Factor of each session, NaN where the intensity is unknown."""
    words = workouts["intensity"]
    known = words.notna().to_numpy(dtype=bool)
    unknown = sorted({str(word) for word in words[known].unique()} - INTENSITY_FACTORS.keys())
    if unknown:
        raise ValueError(
            f"workouts.intensity has {', '.join(map(repr, unknown))}; "
            f"known are {', '.join(INTENSITY_FACTORS)} and null"
        )
    codes = positions(words, list(INTENSITY_FACTORS))
    factors: FloatArray = np.array([*INTENSITY_FACTORS.values(), np.nan])[codes]
    return factors


def _same_sessions(
    user: IntArray, begin: IntArray, finish: IntArray, rank: IntArray
) -> tuple[IntArray, IntArray]:
    """Pairs of records of one session, the preferred one first.

    A body does one session at a time, so sport and source do not matter, only the time shared.
    """
    order = lexical_order(user, begin, rank)
    firsts, seconds = [], []
    for step in range(1, len(order)):
        one, other = order[:-step], order[step:]
        shared = np.minimum(finish[one], finish[other]) - begin[other]
        meet = (user[one] == user[other]) & (shared > 0)
        if not meet.any():  # sorted by start: what does not meet the next does not meet the one after it
            break
        shorter = np.minimum(finish[one] - begin[one], finish[other] - begin[other])
        same = meet & (shared > SAME_SESSION_OVERLAP * shorter)
        firsts.append(one[same])
        seconds.append(other[same])
    a = np.concatenate([np.empty(0, dtype=np.int64), *firsts])
    b = np.concatenate([np.empty(0, dtype=np.int64), *seconds])
    swap = rank[a] > rank[b]
    return np.where(swap, b, a), np.where(swap, a, b)


def _without_repeats(better: IntArray, worse: IntArray, n: int) -> BoolArray:
    """Keep a record unless a *kept* preferred one is the same session: greedy, in whole-array rounds."""
    kept = np.ones(n, dtype=bool)
    while True:
        open_pairs = kept[better] & kept[worse]
        if not open_pairs.any():
            return kept
        beaten = np.zeros(n, dtype=bool)
        beaten[worse[open_pairs]] = True
        kept[worse[open_pairs & ~beaten[better]]] = False


def _lend(known: FloatArray, better: IntArray, worse: IntArray, kept: BoolArray, rank: IntArray) -> None:
    """Give a kept record that does not know something that of its most preferred repeat which does."""
    lends = kept[better] & np.isnan(known[better]) & ~np.isnan(known[worse])
    borrower, lender = better[lends], worse[lends]
    last_wins = np.argsort(-rank[lender], kind="stable")
    known[borrower[last_wins]] = known[lender[last_wins]]
