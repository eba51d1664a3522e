"""What goes with what in one person's days: rank correlations, with what keeps them honest.

Two series that both drift, or both follow the week, correlate without having to do with each other. So each
metric is freed of its straight trend and of its weekdays' means before Spearman's correlation of the ranks, on
the same day and with the first metric 1 to 3 days ahead. Days resemble the days before, so n pairs say less
than n: n (1 - r1 r2) / (1 + r1 r2) with the lag-1 autocorrelations (Bartlett 1935). Of many pairs tried some
correlate by chance: the false discovery rate over all pairs and lags of a person is held at 10 % (Benjamini &
Hochberg 1995). The interval is a bootstrap of blocks of 7 days, for those that pass alone.

Pairs that share data by construction are not tried. The words are "associated with": days were observed, nothing
was tried out.
"""

from __future__ import annotations

import datetime as dt

import numpy as np
import pandas as pd

from health_pipeline.engine.frames import (
    BoolArray,
    FloatArray,
    IntArray,
    dates,
    day_number,
    names_of,
    text,
    tidy_daily,
)
from health_pipeline.engine.wording import DISPLAYS, PLURAL

WINDOW_DAYS = 90
MIN_PAIRS = 20
LAGS = (0, 1, 2, 3)
FALSE_DISCOVERY_RATE = 0.10
BLOCK_DAYS = 7
RESAMPLES = 500
#: What may come first, and what may follow it.
FIRST = ("calories_burned", "carbohydrates", "glucose", "sleep_duration", "sleep_efficiency", "steps")
THEN = (
    "glucose",
    "heart_rate_variability",
    "resting_heart_rate",
    "sleep_duration",
    "sleep_efficiency",
    "stress_score",
)
#: Groups of metrics made of the same measurements.
SHARED = (
    {"calories_burned", "steps"},
    {"sleep_duration", "sleep_efficiency"},
    {"heart_rate_variability", "resting_heart_rate", "stress_score"},
)
METRICS = tuple(sorted({*FIRST, *THEN}))
PAIRS = tuple(
    (first, then)
    for first in FIRST
    for then in THEN
    if first != then and not any({first, then} <= group for group in SHARED)
)


def correlations(daily: pd.DataFrame, as_of: dt.date | None = None) -> pd.DataFrame:
    """Correlations of every person's 90 days up to `as_of`, or to their own last day. Grain: user_id,
    first_metric, then_metric, lag_days; sorted so.

    A row is there where 20 pairs of days or more are. Columns: `as_of_date`, `n_pairs`, `effective_n`, `rho`,
    `p_value`, `q_value` (Benjamini-Hochberg), `associated` (q at most 0.1), `rho_low`, `rho_high` (90 %; null
    where not associated), `sentence` (null likewise).
    """
    rows = tidy_daily(daily, METRICS)
    if as_of is not None:
        rows = rows.take(rows.day <= day_number(as_of))
    users, person = np.unique(rows.user_id, return_inverse=True)
    last = np.zeros(len(users), dtype=np.int64)
    np.maximum.at(last, person, rows.day)
    if as_of is not None:
        last[:] = day_number(as_of)
    back = last[person] - rows.day
    inside = back < WINDOW_DAYS
    values = np.full((WINDOW_DAYS, len(users), len(METRICS)), np.nan)
    values[WINDOW_DAYS - 1 - back[inside], person[inside], rows.metric[inside]] = rows.value[inside]
    # Day 0 of the week is the same for everybody.
    weekday = (last[None, :] - np.arange(WINDOW_DAYS - 1, -1, -1)[:, None]) % 7
    free = _freed(values, weekday)
    lag_1 = _autocorrelation(free)

    found = []
    for number, (first, then) in enumerate(PAIRS):
        a, b = METRICS.index(first), METRICS.index(then)
        for lag in LAGS:
            x = np.full((WINDOW_DAYS, len(users)), np.nan)
            x[lag:] = free[: WINDOW_DAYS - lag, :, a]
            strength, number_of_pairs = spearman(x, free[:, :, b])
            alike = np.clip(lag_1[:, a] * lag_1[:, b], -0.9, 0.9)
            worth = number_of_pairs * (1 - alike) / (1 + alike)
            found.append(
                (np.full(len(users), number), np.full(len(users), lag), number_of_pairs, worth, strength)
            )
    pair, lags, n, effective, rho = (np.concatenate([each[part] for each in found]) for part in range(5))
    who = np.tile(np.arange(len(users)), len(PAIRS) * len(LAGS))
    kept = (n >= MIN_PAIRS) & ~np.isnan(rho)
    who, pair, lags, n = who[kept], pair[kept], lags[kept], n[kept]
    effective, rho = effective[kept], rho[kept]
    p_value = _p_value(rho, effective)
    q_value = _benjamini_hochberg(p_value, who)
    associated = q_value <= FALSE_DISCOVERY_RATE
    low, high = np.full(len(rho), np.nan), np.full(len(rho), np.nan)
    firsts, thens = (
        np.array([METRICS.index(each[side]) for each in PAIRS], dtype=np.int64)[pair] for side in (0, 1)
    )
    for row in np.flatnonzero(associated).tolist():  # few: what passed
        earlier = np.full(WINDOW_DAYS, np.nan)
        earlier[lags[row] :] = free[: WINDOW_DAYS - lags[row], who[row], firsts[row]]
        low[row], high[row] = _interval(earlier, free[:, who[row], thens[row]])
    frame = pd.DataFrame(
        {
            "user_id": users[who],
            "first_metric": text(names_of(METRICS, firsts)),
            "then_metric": text(names_of(METRICS, thens)),
            "lag_days": lags,
            "as_of_date": dates(last[who]),
            "n_pairs": n,
            "effective_n": effective,
            "rho": rho,
            "p_value": p_value,
            "q_value": q_value,
            "associated": associated,
            "rho_low": low,
            "rho_high": high,
        }
    )
    facts = zip(
        *(frame[name].tolist() for name in ("first_metric", "then_metric", "lag_days", "rho", "associated")),
        strict=True,
    )
    frame["sentence"] = text(np.array([_sentence(*fact) for fact in facts], dtype=object))
    return frame.sort_values(["user_id", "first_metric", "then_metric", "lag_days"], ignore_index=True)


def spearman(x: FloatArray, y: FloatArray) -> tuple[FloatArray, IntArray]:
    """Rank correlation of each column's pairs, ties at their mean rank, and their number; NaN for a constant."""
    from scipy.stats import rankdata

    both = ~np.isnan(x) & ~np.isnan(y)
    n = both.sum(axis=0).astype(np.int64)
    ranks = []
    for part in (x, y):
        rank = rankdata(np.where(both, part, np.inf), axis=0)
        ranks.append(np.where(both, rank - (n + 1) / 2, 0.0))
    products = [np.zeros(x.shape[1]) for _ in range(3)]
    for row in range(len(x)):
        a, b = ranks[0][row], ranks[1][row]
        for total, part in zip(products, (a * b, a * a, b * b), strict=True):
            total += part
    varied = (products[1] > 0) & (products[2] > 0)
    size = np.sqrt(np.where(varied, products[1] * products[2], 1.0))
    return np.where(varied, products[0] / size, np.nan), n


def _freed(values: FloatArray, weekday: IntArray) -> FloatArray:
    """Without the straight trend and the weekdays' means, which are fitted together by two rounds of both."""
    free = values.copy()
    day = np.arange(WINDOW_DAYS, dtype=np.float64)[:, None, None]
    here = ~np.isnan(values)
    for _ in range(2):
        mean_day, mean = _mean(np.where(here, day, 0.0), here), _mean(np.where(here, free, 0.0), here)
        across = np.where(here, day - mean_day, 0.0)
        spread = _sum(across**2)
        slope = _sum(across * np.where(here, free - mean, 0.0)) / np.where(spread > 0, spread, 1.0)
        free = free - mean - slope * (day - mean_day)
        for each in range(7):
            mine = here & (weekday == each)[:, :, None]
            free = np.where(mine, free - _mean(np.where(mine, free, 0.0), mine), free)
    return free


def _sum(values: FloatArray) -> FloatArray:
    total = np.zeros(values.shape[1:])
    for row in values:
        total += row
    return total


def _mean(values: FloatArray, here: BoolArray) -> FloatArray:
    mean: FloatArray = _sum(values) / np.maximum(here.sum(axis=0), 1)
    return mean


def _autocorrelation(free: FloatArray) -> FloatArray:
    """Lag-1 autocorrelation of each person's metric, from days in a row; 0 where there are none."""
    known = ~np.isnan(free)
    filled = np.where(known, free, 0.0)
    pairs = (known[1:] & known[:-1]).sum(axis=0)
    variance = _sum(filled**2) / np.maximum(known.sum(axis=0), 1)
    shared = _sum(filled[1:] * filled[:-1]) / np.maximum(pairs, 1)
    return np.where((pairs > 0) & (variance > 0), shared / np.where(variance > 0, variance, 1.0), 0.0)


def _p_value(rho: FloatArray, effective: FloatArray) -> FloatArray:
    from scipy.special import stdtr

    freedom = np.maximum(effective - 2.0, 1.0)
    t = np.abs(rho) * np.sqrt(freedom / np.maximum(1.0 - rho**2, 1e-12))
    return np.asarray(2.0 * stdtr(freedom, -t), dtype=np.float64)


def _benjamini_hochberg(p_value: FloatArray, who: IntArray) -> FloatArray:
    """The least false discovery rate at which each would pass, among those of its person."""
    order = np.lexsort((p_value, who))
    group = who[order]
    first = np.flatnonzero(np.append(True, group[1:] != group[:-1])) if len(group) else group
    size = np.diff(np.append(first, len(group)))
    rank = np.arange(len(group)) - np.repeat(first, size) + 1
    raw = p_value[order] * np.repeat(size, size) / rank
    people = np.repeat(np.arange(len(first)), size)
    stepped = raw.copy()
    for back in range(1, int(size.max(initial=1))):
        inside = np.append(people[back:] == people[:-back], np.zeros(back, dtype=bool))
        larger = np.append(raw[back:], np.full(back, np.inf))
        stepped = np.where(inside, np.minimum(stepped, larger), stepped)
    result = np.empty(len(p_value))
    result[order] = np.minimum(stepped, 1.0)
    return result


def _interval(x: FloatArray, y: FloatArray) -> tuple[float, float]:
    """5 and 95 % of the correlation over samples of blocks of days, drawn around the end; the same draws each time."""
    rng = np.random.default_rng(0)
    blocks = -(-WINDOW_DAYS // BLOCK_DAYS)
    start = rng.integers(0, WINDOW_DAYS, (blocks, RESAMPLES))
    day = (start[:, None, :] + np.arange(BLOCK_DAYS)[None, :, None]).reshape(-1, RESAMPLES)[:WINDOW_DAYS]
    rho, _ = spearman(x[day % WINDOW_DAYS], y[day % WINDOW_DAYS])
    low, high = np.quantile(rho[~np.isnan(rho)], [0.05, 0.95]).tolist()
    return low, high


def _sentence(first: str, then: str, lag: int, rho: float, associated: bool) -> str | None:
    if not associated:
        return None
    before, after = DISPLAYS[first].label, DISPLAYS[then].label
    when = {0: "on the same day", 1: "on the day after"}.get(lag, f"{lag} days later")
    way = "higher" if rho > 0 else "lower"
    before = before[0].lower() + before[1:]
    more = f"More {before} are" if first in PLURAL else f"Higher {before} is"
    return f"{more} associated with {way} {after[0].lower() + after[1:]} {when}."
