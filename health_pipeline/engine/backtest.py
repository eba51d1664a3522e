"""Which way of forecasting a person's own history favours, and how far off it was: a rolling-origin back-test.

On every past day that has the values for it (the origin) each candidate forecasts from the 30 days up to that
day, as it would have then, and is compared with what came. Candidates compete on the same origins and days;
the one wins whose mean absolute error is least, taken relative to that of the naive forecast (the last value)
and averaged over the horizons. The interval is made of the winner's own errors (split conformal prediction):
their quantile of rank ceil((n + 1) x level) by size.

Errors of neighbouring origins are alike, so n of them say less than n. With lag-1 autocorrelation r of the
values, that of the errors' sizes is near r squared (that of squares of normal values is exactly), and some
n (1 - r^2) / (1 + r^2) independent errors stand behind the n: that number ranks the quantile. Under 9 of them
no 90 % quantile exists; the interval is then Student's t with as many degrees of freedom times the root mean
square of the errors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from health_pipeline.engine.frames import BoolArray, FloatArray, IntArray, TextArray

WINDOW_DAYS = 30
MIN_DAYS = 14
#: The days whose errors count, up to and with the last.
HISTORY_DAYS = 180
HORIZONS = (7, 14, 30)
LEVEL = 0.90
#: Of so many independent errors the largest is a 90 % quantile.
MIN_EFFECTIVE = 9.0
#: At each horizon, however alike they are; fewer leave the 30-day interval too narrow.
MIN_ORIGINS = 42
DAMPING = 0.9
MAX_AUTOCORRELATION = 0.9
#: In the order in which they win among equals.
CANDIDATES = ("mean_30", "mean_7", "last_value", "damped_trend", "ols", "theil_sen", "drift")
#: The future is like the past: where one of these wins there is no trend worth using.
FLAT = ("mean_30", "mean_7", "last_value")
_NAIVE, _DRIFT = CANDIDATES.index("last_value"), CANDIDATES.index("drift")
#: So many series are tested at once, whose windows are some tens of megabytes,
_SERIES_AT_ONCE = 256
#: and so many windows' slopes are laid out, which a core's own cache holds.
_WINDOWS_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Backtest:
    """One entry a series; in two dimensions, horizons come first. NaN, and None for `winner`, without one."""

    winner: TextArray
    #: The winner's forecast from the last day.
    predicted: FloatArray
    half_width: FloatArray
    #: Where the errors are too few for a quantile at some horizon.
    by_t: BoolArray
    #: Errors at each horizon.
    n_origins: IntArray
    mase_naive: FloatArray
    mase_drift: FloatArray
    #: Share of the later half of the errors within the interval that the earlier half gives.
    coverage: FloatArray


def total(rows: int, shape: int | tuple[int, ...], each: Callable[[int], Any]) -> FloatArray:
    """Sum over rows, one after the other: a column's sum does not depend on how many stand beside it."""
    result = np.zeros(shape)
    for row in range(rows):
        result += each(row)
    return result


def pairwise_slopes(windows: FloatArray) -> FloatArray:
    """Slopes through every two days of each window, sorted, NaN last."""
    earlier, later = np.triu_indices(len(windows), 1)
    slopes: FloatArray = (windows[later] - windows[earlier]) / (later - earlier)[:, None]
    slopes.sort(axis=0)
    return slopes


def median_of_sorted(ordered: FloatArray) -> FloatArray:
    """Median of each sorted column, NaN being last; NaN for a column without a value."""
    n = (~np.isnan(ordered)).sum(axis=0)
    column = np.arange(ordered.shape[1])
    low, high = np.maximum(n - 1, 0) // 2, np.minimum(n // 2, len(ordered) - 1)
    found: FloatArray = 0.5 * (ordered[low, column] + ordered[high, column])
    return found


def theil_sen(windows: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Median slope of each window, and the level of its line on the last day (Sen 1968); NaN under two values."""
    days, columns = windows.shape
    earlier, later = np.triu_indices(days, 1)
    apart = (later - earlier).astype(np.float64)
    back = np.arange(days - 1.0, -1.0, -1.0)
    slope, level = np.full(columns, np.nan), np.full(columns, np.nan)
    count = (~np.isnan(windows)).sum(axis=0)
    # The median is at the same place in all windows of as many values: nothing has to be sorted to find it.
    for n in np.unique(count[count > 1]).tolist():
        of = np.flatnonzero(count == n)
        for part in range(0, len(of), _WINDOWS_AT_ONCE):
            chosen = of[part : part + _WINDOWS_AT_ONCE]
            values = np.ascontiguousarray(windows[:, chosen].T)
            slopes = np.take(values, later, axis=1)
            slopes -= np.take(values, earlier, axis=1)
            slopes /= apart
            slope[chosen] = _middle(slopes, n * (n - 1) // 2)
            values += slope[chosen, None] * back
            level[chosen] = _middle(values, n)
    return slope, level


def _middle(rows: FloatArray, n: int) -> FloatArray:
    """Median of each row, which has `n` values and otherwise NaN. Reorders `rows`."""
    low, high = (n - 1) // 2, n // 2
    rows.partition((low, high) if low < high else low, axis=1)
    middle: FloatArray = 0.5 * (rows[:, low] + rows[:, high])
    return middle


def candidate_forecasts(windows: FloatArray) -> FloatArray:
    """What each candidate says of each horizon: candidates x horizons x windows (of 30 days, oldest first).

    NaN where the window has under 14 values.
    """
    days, columns = windows.shape
    here = ~np.isnan(windows)
    n = here.sum(axis=0)
    result = np.full((len(CANDIDATES), len(HORIZONS), columns), np.nan)
    usable = np.flatnonzero(n >= MIN_DAYS)
    if len(usable) == columns:
        return _forecasts(windows, here, n, days)
    result[:, :, usable] = _forecasts(windows[:, usable], here[:, usable], n[usable], days)
    return result


def _forecasts(values: FloatArray, here: BoolArray, n: IntArray, days: int) -> FloatArray:
    columns = len(n)
    at = np.arange(columns)
    day = np.arange(-(days - 1.0), 1.0)
    filled = np.where(here, values, 0.0)
    mean = total(days, columns, lambda row: filled[row]) / n
    mean_day = total(days, columns, lambda row: here[row] * day[row]) / n
    sxx = total(days, columns, lambda row: here[row] * (day[row] - mean_day) ** 2)
    sxy = total(days, columns, lambda row: here[row] * (day[row] - mean_day) * (filled[row] - mean))
    slope = sxy / sxx
    level = mean - slope * mean_day

    first, last = np.argmax(here, axis=0), days - 1 - np.argmax(here[::-1], axis=0)
    last_value = values[last, at]
    drift = (last_value - values[first, at]) / (last - first)
    week = here[-7:].sum(axis=0)
    mean_7 = np.where(
        week > 0,
        total(7, columns, lambda row: filled[days - 7 + row]) / np.maximum(week, 1),
        last_value,
    )
    robust_slope, robust_level = theil_sen(values)
    said = np.empty((len(CANDIDATES), len(HORIZONS), columns))
    for position, ahead in enumerate(HORIZONS):
        damped = DAMPING * (1.0 - DAMPING**ahead) / (1.0 - DAMPING)
        said[:, position] = (
            mean,
            mean_7,
            last_value,
            level + slope * damped,
            level + slope * ahead,
            robust_level + robust_slope * ahead,
            last_value + drift * (ahead + days - 1 - last),
        )
    return said


def backtest(history: FloatArray, autocorrelation: FloatArray) -> Backtest:
    """Back-test of each series. `history` is days x series, oldest first, NaN where there is no value;
    `autocorrelation` is the lag-1 autocorrelation of each.
    """
    parts = [
        _backtest(
            history[:, start : start + _SERIES_AT_ONCE], autocorrelation[start : start + _SERIES_AT_ONCE]
        )
        for start in range(0, max(history.shape[1], 1), _SERIES_AT_ONCE)
    ]
    columns = ([getattr(part, each.name) for part in parts] for each in fields(Backtest))
    return Backtest(*(np.concatenate(each, axis=-1) for each in columns))


def _backtest(history: FloatArray, autocorrelation: FloatArray) -> Backtest:
    days, series = history.shape
    origins = max(days - WINDOW_DAYS + 1, 0)
    windows = np.lib.stride_tricks.sliding_window_view(history, WINDOW_DAYS, axis=0)
    # 30 x (origins x series)
    columns = np.moveaxis(windows, 2, 0).reshape(WINDOW_DAYS, origins * series)
    said = candidate_forecasts(columns).reshape(len(CANDIDATES), len(HORIZONS), origins, series)

    error = np.full(said.shape, np.nan)
    for position, ahead in enumerate(HORIZONS):
        known = max(origins - ahead, 0)
        actual = history[WINDOW_DAYS - 1 + ahead :]
        error[:, position, :known] = actual[None] - said[:, position, :known]
    size = np.abs(error)
    n = (~np.isnan(size[0])).sum(axis=1).astype(np.int64)
    known_size = np.nan_to_num(size)
    mae = total(origins, (*size.shape[:2], series), lambda origin: known_size[:, :, origin])
    mae /= np.where(n > 0, n, np.nan)

    tested = (n >= MIN_ORIGINS).all(axis=0)
    naive = mae[_NAIVE]
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = np.where(naive > 0, mae / naive, np.where(mae > 0, np.inf, 1.0)).mean(axis=1)
        best = np.argmin(np.where(tested, relative, 0.0), axis=0)
        at = np.arange(series)
        own = mae[best, :, at].T
        mase_naive, mase_drift = own / naive, own / mae[_DRIFT]
    chosen = np.moveaxis(size[best, :, :, at], 0, 2)  # horizons x origins x series
    alike = autocorrelation**2
    effective = n * (1.0 - alike) / (1.0 + alike)
    half = _half_width(chosen, effective)
    half[:, ~tested] = np.nan
    mase_naive[:, ~tested] = np.nan
    mase_drift[:, ~tested] = np.nan
    winner = np.array(CANDIDATES, dtype=object)[best]
    winner[~tested] = None
    return Backtest(
        winner,
        np.where(tested, said[best, :, -1, at].T if origins else np.nan, np.nan),
        half,
        (effective < MIN_EFFECTIVE).any(axis=0),
        n,
        mase_naive,
        mase_drift,
        _coverage(chosen, effective, tested),
    )


def _half_width(size: FloatArray, effective: FloatArray) -> FloatArray:
    """Half of the 90 % interval from errors' sizes (horizons x origins x series)."""
    from scipy.special import stdtrit

    ordered = np.sort(size, axis=1)
    n = (~np.isnan(ordered)).sum(axis=1)
    rank = LEVEL * (1.0 + 1.0 / np.maximum(effective, 1.0)) * n
    position = np.clip(np.ceil(rank) - 1, 0, np.maximum(n - 1, 0)).astype(np.int64)
    quantile = np.take_along_axis(ordered, position[:, None], axis=1)[:, 0]
    square = np.nan_to_num(size) ** 2
    squares = total(size.shape[1], n.shape, lambda origin: square[:, origin])
    spread = np.sqrt(squares / np.maximum(n, 1))
    by_t = np.asarray(stdtrit(np.maximum(effective, 1.0), 0.5 + LEVEL / 2)) * spread
    half: FloatArray = np.where(effective >= MIN_EFFECTIVE, quantile, by_t)
    return half


def _coverage(size: FloatArray, effective: FloatArray, tested: BoolArray) -> FloatArray:
    """Share of the newer half of the errors that the interval from the older half held."""
    split = size.shape[1] // 2
    half = _half_width(size[:, :split], effective / 2)
    newer = size[:, split:]
    known = (~np.isnan(newer)).sum(axis=1)
    held = (newer <= half[:, None]).sum(axis=1)
    with np.errstate(invalid="ignore"):
        share = np.where((known > 0) & ~np.isnan(half), held / np.maximum(known, 1), np.nan)
    share[:, ~tested] = np.nan
    return share
