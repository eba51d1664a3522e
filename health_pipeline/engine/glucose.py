"""Statistics of continuous glucose monitoring, as the consensus and the literature define them.

`readings`, the frame that goes in, has one row a sensor reading: user_id, recorded_at (UTC), local_date,
utc_offset_minutes, source, source_device, glucose_mg_dl, source_value and source_unit (as written), censored
(`low` or `high` where the sensor says only that it is beyond its range, else null). Readings of one person
at one instant count once.

**Bands** (Battelino et al. 2019 and 2023; pregnancy 63-140). The limits are pairs, 70 mg/dL and 3.9 mmol/L:
10.0 mmol/L times 18.0156 would leave the range that 10.0 belongs to. So a reading is classified by the number
and in the unit it was written in.

**Time.** A share of readings is a share of time only if all stand for the same time. Each stands for the
usual interval (1, 5 or 15 minutes) of its device on its day, which leaves a trace of one sensor unweighted.
Percent active is the time stood for in the *fixed* window of local days, whose 23 or 25 hours at a clock
change show in the offsets. Low and High are kept, as 39 and 401, and counted: with any of them mean, spread
and what is made of these are bounds.

Formulas: GMI (Bergenstal et al. 2018), LBGI and HBGI (Kovatchev et al. 2006), GRI (Klonoff et al. 2022), MODD
(Molnar et al. 1972), CONGA (McDonnell et al. 2005), MAGE (Service et al. 1970; turning points between
crossings of a short and a long moving average after Fernandes et al. 2022, each stretch without a gap of over
3 hours by itself; variant `avg`, the mean of the rising and the falling one), episodes by the consensus' 15 minutes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from health_pipeline.engine.frames import (
    BoolArray,
    FloatArray,
    IntArray,
    dates,
    day_numbers,
    floats,
    lexical_order,
    names_of,
    positions,
    require_columns,
    starts,
    text,
    user_ids,
)

READING_COLUMNS = (
    "user_id",
    "recorded_at",
    "local_date",
    "utc_offset_minutes",
    "source",
    "source_device",
    "glucose_mg_dl",
    "source_value",
    "source_unit",
    "censored",
)
#: Limits between the seven bands, in both units; see `_bands` for which side a limit belongs to.
LIMITS_MG_DL = (54.0, 63.0, 70.0, 140.0, 180.0, 250.0)
LIMITS_MMOL_L = (3.0, 3.5, 3.9, 7.8, 10.0, 13.9)
_BELOW_LIMITS = 3
#: Usual intervals of sensors, minutes.
INTERVALS = (1.0, 5.0, 15.0)
ASSUMED_INTERVAL = 5.0
PERIODS = (14, 90)
SUFFICIENT_DAYS = 14
SUFFICIENT_PERCENT = 70.0
#: Days with readings under which no GMI is given.
MIN_GMI_DAYS = 10
GRI_ZONES = ("A", "B", "C", "D", "E")
#: Longest gap that a moving average or an episode reaches over, minutes.
MAX_BRIDGED_MINUTES = 45
EPISODE_MINUTES = 15
EXTENDED_MINUTES = 120
MAGE_GRID_MINUTES = 5
MAGE_SPLIT_MINUTES = 180
MAGE_SHORT, MAGE_LONG = 5, 32
MIN_MAGE_HOURS = 24
AGP_BIN_MINUTES = 15
AGP_PERCENTILES = (5, 25, 50, 75, 95)
AGP_MIN_DAYS = 5
_AGP_SMOOTHING = (1.0, 2.0, 3.0, 2.0, 1.0)
_DAY_MINUTES = 1440
_FAR = 1 << 40


@dataclass(frozen=True, slots=True)
class Readings:
    """Sorted by user and time, one a person and instant; times in seconds since 1970. `band` counts the seven bands
    from the lowest, `censored` is 0 for low, 1 for high, else -1, `minutes` is the time each stands for."""

    user_id: IntArray
    second: IntArray
    day: IntArray
    offset: IntArray
    value: FloatArray
    band: IntArray
    censored: IntArray
    minutes: FloatArray
    #: The same number for readings of one source and device.
    device: IntArray

    def take(self, rows: BoolArray) -> Readings:
        return Readings(*(getattr(self, name)[rows] for name in self.__slots__))


def glucose_daily(readings: pd.DataFrame) -> pd.DataFrame:
    """Statistics of each person's local day. Grain: user_id, local_date; sorted so.

    Episodes belong to the day they start on; `modd` compares with the day before, so that `readings` must
    hold it. Columns: those of `_statistics`, and `modd`.
    """
    tidy = tidy_readings(readings)
    first = starts(tidy.user_id, tidy.day)
    group = np.cumsum(first) - 1
    head = np.flatnonzero(first)
    frame = pd.DataFrame({"user_id": tidy.user_id[head], "local_date": dates(tidy.day[head])})
    tail = _ends(head, len(group))
    expected = _DAY_MINUTES - (tidy.offset[tail] - tidy.offset[head])
    for name, column in _statistics(tidy, group, len(head), expected.astype(np.float64)).items():
        frame[name] = column
    frame["modd"] = _mean(np.abs(_difference(tidy, 24)), group, len(head))
    return frame


def glucose_periods(readings: pd.DataFrame) -> pd.DataFrame:
    """Statistics of the 14 and the 90 days that end on each person's last day. Grain: user_id, period_days.

    Columns: `as_of_date`, `start_date`, `n_days` (with a reading), those of `_statistics`, `modd`,
    `conga_1h`, `mage` (null under 24 hours of readings), `mage_excursions`, `mage_variant`, `gmi_percent`
    (null under 10 days), `sufficient` (14 days or more, 70 % active or more).
    """
    tidy = tidy_readings(readings)
    parts = [_period(tidy, days) for days in PERIODS]
    return pd.concat(parts, ignore_index=True).sort_values(["user_id", "period_days"], ignore_index=True)


def _period(tidy: Readings, days: int) -> pd.DataFrame:
    inside = tidy.take(tidy.day > _last_day(tidy) - days)
    first = starts(inside.user_id)
    group, head = np.cumsum(first) - 1, np.flatnonzero(first)
    tail = _ends(head, len(group))
    as_of, count = inside.day[tail], len(head)
    expected = days * _DAY_MINUTES - (inside.offset[tail] - inside.offset[head])
    frame = pd.DataFrame(
        {
            "user_id": inside.user_id[head],
            "period_days": np.full(count, days, dtype=np.int64),
            "as_of_date": dates(as_of),
            "start_date": dates(as_of - (days - 1)),
            "n_days": np.bincount(group, starts(inside.user_id, inside.day), count).astype(np.int64),
        }
    )
    for name, column in _statistics(inside, group, count, expected.astype(np.float64)).items():
        frame[name] = column
    frame["modd"] = _mean(np.abs(_difference(inside, 24)), group, count)
    hourly = _difference(inside, 1)
    frame["conga_1h"] = _deviation(hourly, ~np.isnan(hourly) * 1.0, group, count)
    frame["mage"], frame["mage_excursions"] = _mage(inside, group, count)
    frame["mage_variant"] = text(np.full(count, "avg", dtype=object))
    gmi = 3.31 + 0.02392 * frame["mean_mg_dl"]
    frame["gmi_percent"] = gmi.where(frame["n_days"] >= MIN_GMI_DAYS)
    frame["sufficient"] = (frame["percent_active"] >= SUFFICIENT_PERCENT) & (days >= SUFFICIENT_DAYS)
    return frame


def agp(readings: pd.DataFrame) -> pd.DataFrame:
    """Ambulatory glucose profile of the last 14 days. Grain: user_id, minute_of_day (every 15); sorted so.

    Percentiles of the readings of each quarter of an hour by the local clock, smoothed over five quarters
    around midnight as around any other time. A quarter with readings of under 5 days is null. All percentiles
    are smoothed alike, so that they never cross.

    Columns: `as_of_date`, `p05`, `p25`, `p50`, `p75`, `p95` (mg/dL), `n_days`.
    """
    tidy = tidy_readings(readings)
    tidy = tidy.take(tidy.day > _last_day(tidy) - SUFFICIENT_DAYS)
    users, person = np.unique(tidy.user_id, return_inverse=True)
    bins = _DAY_MINUTES // AGP_BIN_MINUTES
    minute = (tidy.second // 60 + tidy.offset) % _DAY_MINUTES
    cell = person.astype(np.int64) * bins + minute // AGP_BIN_MINUTES
    cells = len(users) * bins

    by_day = lexical_order(cell, tidy.day)
    n_days = np.bincount(cell[by_day], starts(cell[by_day], tidy.day[by_day]), cells).astype(np.int64)
    raw = _percentiles(tidy, cell, cells).reshape(len(AGP_PERCENTILES), len(users), bins)
    n_days = n_days.reshape(len(users), bins)
    smooth = _smoothed(np.where(n_days >= AGP_MIN_DAYS, raw, np.nan))
    last_day = np.zeros(len(users), dtype=np.int64)
    np.maximum.at(last_day, person, tidy.day)
    frame = {
        "user_id": np.repeat(users, bins),
        "minute_of_day": np.tile(np.arange(bins, dtype=np.int64) * AGP_BIN_MINUTES, len(users)),
        "as_of_date": dates(np.repeat(last_day, bins)),
    }
    for percentile, values in zip(AGP_PERCENTILES, smooth, strict=True):
        frame[f"p{percentile:02d}"] = values.ravel()
    frame["n_days"] = n_days.ravel()
    return pd.DataFrame(frame)


def tidy_readings(readings: pd.DataFrame) -> Readings:
    """The frame as arrays, checked and sorted. Raises `ValueError` where a column is missing or a day is no day."""
    require_columns(readings, "readings", READING_COLUMNS)
    value = floats(readings, "glucose_mg_dl")
    frame = readings.loc[np.isfinite(value)]
    value = value[np.isfinite(value)]
    user, day = user_ids(frame, "readings"), day_numbers(frame, "readings")
    instants = pd.to_datetime(frame["recorded_at"], utc=True).dt.tz_localize(None)
    second = instants.to_numpy().astype("datetime64[s]").astype(np.int64)
    device = pd.Categorical(frame["source_device"].fillna("")).codes.astype(np.int64)
    source = pd.Categorical(frame["source"]).codes.astype(np.int64)
    written, unit = floats(frame, "source_value"), positions(frame["source_unit"], ["mmol/L"])
    censored = positions(frame["censored"], ["low", "high"])
    offset = frame["utc_offset_minutes"].to_numpy(dtype=np.int64)

    order = lexical_order(user, second, source, device)
    order = order[starts(user[order], second[order])]
    order_of_device = order[
        lexical_order(user[order], source[order], device[order], day[order], second[order])
    ]
    minutes = np.empty(len(value))
    minutes[order_of_device] = _intervals(
        second[order_of_device],
        starts(*(key[order_of_device] for key in (user, source, device, day))),
    )
    band = _bands(value, written, unit == 0)
    return Readings(
        user[order],
        second[order],
        day[order],
        offset[order],
        value[order],
        band[order],
        censored[order],
        minutes[order],
        (source * (int(device.max(initial=0)) + 1) + device)[order],
    )


def _intervals(second: IntArray, first: BoolArray) -> FloatArray:
    """The usual interval of each reading's device on its day: the median gap, as one of `INTERVALS`."""
    group = np.cumsum(first) - 1
    gap = np.diff(second, prepend=second[:1]) / 60.0
    gap[first] = np.inf
    order = lexical_order(group, np.rint(np.minimum(gap, 1e6) * 60.0).astype(np.int64))
    head = np.flatnonzero(first)
    count = np.diff(np.append(head, len(second))) - 1  # gaps; the infinite one comes last
    median = gap[order][head + np.maximum(count - 1, 0) // 2] if len(head) else gap
    nearest = np.abs(np.minimum(median, 1e6)[:, None] - np.array(INTERVALS)).argmin(axis=1)
    usual = np.where(count > 0, np.array(INTERVALS)[nearest], ASSUMED_INTERVAL)
    return np.asarray(usual[group], dtype=np.float64)


def _bands(value: FloatArray, written: FloatArray, in_mmol: BoolArray) -> IntArray:
    """0 to 6: under 54, to 63, to 70, to 140, to 180, to 250, over. A low limit belongs to the band above it, a
    high one to the band below it."""
    native = in_mmol & np.isfinite(written)
    band = np.zeros(len(value), dtype=np.int64)
    for number, (mg_dl, mmol_l) in enumerate(zip(LIMITS_MG_DL, LIMITS_MMOL_L, strict=True)):
        at, limit = np.where(native, written, value), np.where(native, mmol_l, mg_dl)
        # What was written as 3.9 is 3.9, however its digits came through floating point.
        band += (at >= limit - 1e-9) if number < _BELOW_LIMITS else (at > limit + 1e-9)
    return band


def _ends(head: IntArray, n: int) -> IntArray:
    """The last row of each group of sorted rows, from the first of each."""
    return np.append(head[1:], n) - 1 if len(head) else head


def _statistics(
    tidy: Readings, group: IntArray, groups: int, expected: FloatArray
) -> dict[str, pd.Series | IntArray | FloatArray]:
    """Columns of a day or a period: `n_readings`, `percent_active`, `mean_mg_dl`, `sd_mg_dl`, `cv_percent`,
    `percent_below_54`, `percent_54_69`, `percent_in_range` (70-180), `percent_in_tight_range` (70-140),
    `percent_181_250`, `percent_above_250`, `percent_in_pregnancy_range` (63-140),
    `percent_below_pregnancy_range` (under 63), `percent_above_pregnancy_range` (over 140), `gri`, `gri_zone`,
    `lbgi`, `hbgi`, `n_censored_low`, `n_censored_high`, `hypo_episodes`, `hypo_episodes_level_2`,
    `extended_hypo_episodes`, `hyper_episodes`, `hyper_episodes_level_2`.
    """
    weight = tidy.minutes
    time = np.bincount(group, weight, groups)
    per_band = np.bincount(group * 7 + tidy.band, weight, groups * 7).reshape(groups, 7)
    percent = 100.0 * per_band / time[:, None]
    mean = np.bincount(group, weight * tidy.value, groups) / time
    sd = _deviation(tidy.value, weight, group, groups)
    risk = 1.509 * (np.log(tidy.value) ** 1.084 - 5.381)
    low, high = (10.0 * side(risk, 0.0) ** 2 for side in (np.minimum, np.maximum))
    below_54, l1 = percent[:, 0], percent[:, 1] + percent[:, 2]
    gri = np.minimum(3.0 * below_54 + 2.4 * l1 + 0.8 * percent[:, 5] + 1.6 * percent[:, 6], 100.0)
    zone = np.clip(np.ceil(gri / 20.0) - 1, 0, 4).astype(np.int64)
    columns: dict[str, pd.Series | IntArray | FloatArray] = {
        "n_readings": np.bincount(group, minlength=groups).astype(np.int64),
        "percent_active": np.minimum(100.0 * time / expected, 100.0),
        "mean_mg_dl": mean,
        "sd_mg_dl": sd,
        "cv_percent": 100.0 * sd / mean,
        "percent_below_54": below_54,
        "percent_54_69": l1,
        "percent_in_range": percent[:, 3] + percent[:, 4],
        "percent_in_tight_range": percent[:, 3],
        "percent_181_250": percent[:, 5],
        "percent_above_250": percent[:, 6],
        "percent_in_pregnancy_range": percent[:, 2] + percent[:, 3],
        "percent_below_pregnancy_range": percent[:, 0] + percent[:, 1],
        "percent_above_pregnancy_range": percent[:, 4] + percent[:, 5] + percent[:, 6],
        "gri": gri,
        "gri_zone": text(names_of(GRI_ZONES, zone)),
        "lbgi": np.bincount(group, weight * low, groups) / time,
        "hbgi": np.bincount(group, weight * high, groups) / time,
        "n_censored_low": np.bincount(group, tidy.censored == 0, groups).astype(np.int64),
        "n_censored_high": np.bincount(group, tidy.censored == 1, groups).astype(np.int64),
    }
    for name, beyond, longer_than in (
        ("hypo_episodes", tidy.band <= 2, 0),
        ("hypo_episodes_level_2", tidy.band == 0, 0),
        ("extended_hypo_episodes", tidy.band <= 2, EXTENDED_MINUTES),
        ("hyper_episodes", tidy.band >= 5, 0),
        ("hyper_episodes_level_2", tidy.band == 6, 0),
    ):
        start, last, _ = episodes(tidy, beyond)
        lasted = (tidy.second[last] - tidy.second[start]) / 60.0 + tidy.minutes[last]
        counted = start[lasted > longer_than]
        columns[name] = np.bincount(group[counted], minlength=groups).astype(np.int64)
    return columns


def _deviation(value: FloatArray, weight: FloatArray, group: IntArray, groups: int) -> FloatArray:
    """Standard deviation of each group, n - 1; NaN under two values. Values of weight 0 are left out."""
    kept = weight > 0
    value, weight, group = value[kept], weight[kept], group[kept]
    n = np.bincount(group, minlength=groups)
    time = np.bincount(group, weight, groups)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(group, weight * value, groups) / time
        squares = np.bincount(group, weight * (value - mean[group]) ** 2, groups) / time
        deviation = np.sqrt(squares * n / (n - 1.0))
    return np.where(n > 1, deviation, np.nan)


def _mean(value: FloatArray, group: IntArray, groups: int) -> FloatArray:
    """Mean of each group's known values, NaN where there is none."""
    known = ~np.isnan(value)
    n = np.bincount(group[known], minlength=groups)
    total = np.bincount(group[known], value[known], groups)
    return np.where(n > 0, total / np.maximum(n, 1), np.nan)


def _difference(tidy: Readings, hours: int) -> FloatArray:
    """Each reading minus the one nearest to so many hours before it, NaN where none is within half an interval."""
    if not len(tidy.user_id):
        return np.empty(0)
    people = np.cumsum(starts(tidy.user_id)) - 1
    key = people * _FAR + tidy.second
    wanted = key - hours * 3600
    after = np.minimum(np.searchsorted(key, wanted), max(len(key) - 1, 0))
    before = np.maximum(after - 1, 0)
    nearest = np.where(np.abs(key[after] - wanted) <= np.abs(key[before] - wanted), after, before)
    close = np.abs(key[nearest] - wanted) <= tidy.minutes * 30.0
    return np.where(close, tidy.value - tidy.value[nearest], np.nan)


def episodes(
    tidy: Readings, beyond: BoolArray, minutes: float = EPISODE_MINUTES
) -> tuple[IntArray, IntArray, BoolArray]:
    """First and last reading of each episode beyond a limit, and whether it is over.

    It starts with so many `minutes` beyond the limit, of two readings or more (with 0, of one), and ends with
    15 minutes within it. A gap of over 45 minutes ends it too: nobody knows what was in it.
    """
    n = len(beyond)
    if not n:
        nothing = np.empty(0, dtype=np.int64)
        return nothing, nothing, nothing.astype(bool)
    gap = np.diff(tidy.second, prepend=tidy.second[:1]) > MAX_BRIDGED_MINUTES * 60
    stretch = np.cumsum(starts(tidy.user_id) | gap).astype(np.int64)
    head = np.flatnonzero(starts(stretch, beyond.astype(np.int64)))
    tail = _ends(head, n)
    length = (tidy.second[tail] - tidy.second[head]) / 60.0 + tidy.minutes[tail]
    # Readings come some seconds early or late.
    lasts = (length >= EPISODE_MINUTES - 1.0) & (tail > head)
    begins = (length >= minutes - 1.0) & ((tail > head) | (minutes == 0))
    state = np.where(beyond[head], np.where(begins, 1, -1), np.where(lasts, 0, -1))
    state[starts(stretch[head]) & (state < 0)] = 0
    known = np.maximum.accumulate(np.where(state >= 0, np.arange(len(head)), 0))
    inside = state[known] == 1
    new = inside & np.append(True, ~inside[:-1] | (stretch[head][1:] != stretch[head][:-1]))
    first = np.flatnonzero(new)
    last = np.zeros(len(first), dtype=np.int64)
    np.maximum.at(last, (np.cumsum(new) - 1)[inside], np.flatnonzero(inside))
    after = np.minimum(last + 1, len(head) - 1)
    over = (after > last) & (tidy.user_id[head[after]] == tidy.user_id[head[last]])
    # The short time within the limit that an episode may end on is none of it.
    last -= ~beyond[head[last]]
    return head[first], tail[last], over


def _mage(tidy: Readings, group: IntArray, groups: int) -> tuple[FloatArray, IntArray]:
    """MAGE of each group and the excursions it is the mean of.

    As the paper of the moving-average algorithm has it (Fernandes 2022): each stretch without a gap of over 3 hours is
    judged by its own SD and has its own MAGE; a group's is their mean, weighted by how long they are."""
    new = starts(group) | (np.diff(tidy.second, prepend=tidy.second[:1]) > MAGE_SPLIT_MINUTES * 60)
    head = np.flatnonzero(new)
    number, pieces = np.cumsum(new) - 1, len(head)
    value, piece = _grid(tidy, head)
    sd = _deviation(tidy.value, tidy.minutes, number, pieces)
    height, rising, of_piece = _excursions(value, piece, sd)
    sides = [_mean(height[side], of_piece[side], pieces) for side in (rising, ~rising)]
    both = np.where(
        np.isnan(sides[0]), sides[1], np.where(np.isnan(sides[1]), sides[0], (sides[0] + sides[1]) / 2)
    )
    swings = ~np.isnan(both)
    length = (tidy.second[_ends(head, len(number))] - tidy.second[head])[swings]
    of_group = group[head][swings]
    weight = np.bincount(of_group, length, groups)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(of_group, length * both[swings], groups) / weight
    hours = np.bincount(group, tidy.minutes, groups) / 60.0
    count = np.bincount(group[head][of_piece], minlength=groups)
    return np.where(hours >= MIN_MAGE_HOURS, mean, np.nan), count


def _grid(tidy: Readings, head: IntArray) -> tuple[FloatArray, IntArray]:
    """Values every 5 minutes of the pieces that begin at `head`, linear between readings at most 45 minutes apart and
    NaN between others; the piece each belongs to."""
    n = len(tidy.second)
    if not n:
        return np.empty(0), head
    tail = _ends(head, n)
    step = MAGE_GRID_MINUTES * 60
    length = (tidy.second[tail] - tidy.second[head]) // step + 1
    piece = np.repeat(np.arange(len(head)), length)
    at = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
    second = tidy.second[head][piece] + at * step
    key = np.repeat(np.arange(len(head)), tail - head + 1) * _FAR + tidy.second
    right = np.searchsorted(key, piece * _FAR + second)
    exact = key[np.minimum(right, n - 1)] == piece * _FAR + second
    left = np.where(exact, right, right - 1)
    right = np.where(exact, right, np.minimum(right, tail[piece]))
    span = np.maximum(tidy.second[right] - tidy.second[left], 1)
    share = (second - tidy.second[left]) / span
    value = tidy.value[left] + share * (tidy.value[right] - tidy.value[left])
    value[span > MAX_BRIDGED_MINUTES * 60] = np.nan
    return value, piece


def _excursions(value: FloatArray, piece: IntArray, sd: FloatArray) -> tuple[FloatArray, BoolArray, IntArray]:
    """Height, direction and piece of each swing of over one SD of its piece between turning points."""
    known = ~np.isnan(value)
    value, piece = value[known], piece[known]
    if not len(value):
        return np.empty(0), np.empty(0, dtype=bool), np.empty(0, dtype=np.int64)
    short, of_short = _moving_sum(value, piece, MAGE_SHORT)
    long, of_long = _moving_sum(value, piece, MAGE_LONG)
    above = short * of_long > long * of_short
    head = np.flatnonzero(starts(piece, above.astype(np.int64)))
    top, bottom = np.maximum.reduceat(value, head), np.minimum.reduceat(value, head)
    turn = np.where(above[head], top, bottom)
    part = piece[head]
    # Swings that do not count are taken out, the smallest among neighbours first, until all that are left do.
    while True:
        swing = np.abs(np.diff(turn))
        swing[part[1:] != part[:-1]] = np.inf
        small = swing <= sd[part[1:]]
        before = np.append(np.inf, swing[:-1])
        after = np.append(swing[1:], np.inf)
        drop = small & (swing <= np.where(np.isinf(before), np.inf, before)) & (swing < after)
        drop |= small & np.isinf(before) & np.isinf(after)
        if not drop.any():
            break
        out = np.zeros(len(turn), dtype=bool)
        first = np.append(True, part[1:] != part[:-1])
        last = np.append(part[1:] != part[:-1], True)
        out[:-1] |= drop & ~(last[1:] & ~first[:-1])
        out[1:] |= drop & ~(first[:-1] & ~last[1:])
        turn, part = turn[~out], part[~out]
    change = np.diff(turn)
    counted = (part[1:] == part[:-1]) & (np.abs(change) > sd[part[1:]])
    return np.abs(change)[counted], (change > 0)[counted], part[1:][counted]


def _moving_sum(value: FloatArray, piece: IntArray, width: int) -> tuple[IntArray, IntArray]:
    """Sum of so many grid values around each, in whole micrograms a dL so that it is exact, and their number: fewer
    at the ends of a piece."""
    first = starts(piece)
    number = np.cumsum(first) - 1
    head = np.flatnonzero(first)[number]
    tail = np.append(np.flatnonzero(first)[1:], len(value))[number]
    at = np.arange(len(value))
    low = np.maximum(at - width // 2, head)
    high = np.minimum(at - width // 2 + width, tail)
    total = np.append(0, np.cumsum(np.rint(value * 1000.0).astype(np.int64)))
    return total[high] - total[low], high - low


def _last_day(tidy: Readings) -> IntArray:
    """The last day of each reading's person."""
    person = np.cumsum(starts(tidy.user_id)) - 1 if len(tidy.user_id) else tidy.user_id
    last = np.zeros(len(person), dtype=np.int64)
    np.maximum.at(last, person, tidy.day)
    found: IntArray = last[person]
    return found


def _percentiles(tidy: Readings, cell: IntArray, cells: int) -> FloatArray:
    """Weighted percentiles of each cell, NaN where it is empty; with equal weights, linear between ranks."""
    order = lexical_order(cell, np.rint(tidy.value * 1e6).astype(np.int64))
    cell, value, weight = cell[order], tidy.value[order], tidy.minutes[order]
    head = np.flatnonzero(starts(cell))
    tail = _ends(head, len(cell))
    here = cell[head]
    # Minutes are whole numbers, so these sums are exact.
    below = np.cumsum(weight) - weight
    below -= np.repeat(below[head], tail - head + 1)
    whole = below[tail]
    found = np.full((len(AGP_PERCENTILES), cells), np.nan)
    if not len(head):
        return found
    key = np.repeat(np.arange(len(head)), tail - head + 1) * float(1 << 24) + below
    for row, percentile in enumerate(AGP_PERCENTILES):
        at = percentile / 100.0 * whole
        left = np.searchsorted(key, np.arange(len(head)) * float(1 << 24) + at, side="right") - 1
        right = np.minimum(left + 1, tail)
        span = np.where(right > left, below[right] - below[left], 1.0)
        found[row, here] = value[left] + (at - below[left]) / span * (value[right] - value[left])
    return found


def _smoothed(values: FloatArray) -> FloatArray:
    """Weighted mean over neighbouring bins around the clock, of those that are known; NaN stays NaN."""
    known = ~np.isnan(values)
    total, weight = np.zeros(values.shape), np.zeros(values.shape)
    for shift, share in enumerate(_AGP_SMOOTHING, start=-(len(_AGP_SMOOTHING) // 2)):
        total += share * np.roll(np.where(known, values, 0.0), shift, axis=-1)
        weight += share * np.roll(known, shift, axis=-1)
    return np.where(known, total / np.maximum(weight, 1.0), np.nan)
