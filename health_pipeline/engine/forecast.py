"""Where a metric is heading: a line through the last 30 days, how sure it is, and when it meets a goal.

The line is ordinary least squares of the daily values on the day; Theil and Sen's median of slopes stands
beside it, which a minority of odd days does not move. The slope's intervals are those of the textbook (Draper
& Smith 1998, ch. 1; Sen 1968), widened by sqrt((1 + r) / (1 - r)) with r the lag-1 autocorrelation of the
residuals, because one day's value resembles the day before's and the textbook assumes it does not. Estimated
from n residuals of a fitted trend, r comes out too low by (2 + 4r) / n to first order; that is put back, r is
averaged over the 30-day windows of the last 180 days that have the values, and held within 0 and 0.9. There
is a trend only where both intervals exclude 0.

What is forecast is the candidate that a back-test on the person's own history favours (see `backtest`), with
the interval of its own past errors. Without the 101 days this takes, it is the line, with the textbook's
interval: its part for where the line is widened as above, its part for the value about the line by what a fitted
line hides of r.

R squared is stored as a description of the fit and is never evidence of a trend: strongly autocorrelated
values without any trend reach 0.4 as easily as not.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd

from health_pipeline.engine import backtest, wording
from health_pipeline.engine.backtest import (
    FLAT,
    HISTORY_DAYS,
    HORIZONS,
    LEVEL,
    MIN_DAYS,
    WINDOW_DAYS,
    Backtest,
    median_of_sorted,
    pairwise_slopes,
)
from health_pipeline.engine.baselines import METRICS
from health_pipeline.engine.frames import (
    BoolArray,
    DailyRows,
    FloatArray,
    IntArray,
    TextArray,
    dates,
    day_number,
    floats,
    lexical_order,
    names_of,
    positions,
    require_columns,
    starts,
    text,
    tidy_daily,
    user_ids,
)

#: A date is not given further off than this many times the days the line was seen on,
MAX_DATE_OF_HISTORY = 2
#: nor where the later end of its 80 % range is more days off.
MAX_DATE_DAYS = 180
RECENT_DAYS = 7
MIN_RECENT_DAYS = 3
MAX_AUTOCORRELATION = 0.9
_PATHS = 199
#: Forecast for everybody who has them; other metrics only where there is a goal.
DEFAULT_METRICS = (
    "glucose",
    "heart_rate_variability",
    "resting_heart_rate",
    "sleep_duration",
    "steps",
    "weight",
)
#: Which way is better, where it is the same for everybody: a goal is reached at or beyond the target.
BETTER = {
    "calories_burned": 1,
    "distance": 1,
    "heart_rate_variability": 1,
    "resting_heart_rate": -1,
    "sleep_duration": 1,
    "sleep_efficiency": 1,
    "steps": 1,
    "stress_score": -1,
}
GOAL_COLUMNS = ("user_id", "metric_type", "target_value", "target_date")


@dataclass(frozen=True, slots=True)
class _Series:
    """One forecast each: the last 180 days of one user's metric, oldest first, NaN where there is no value.

    `history` is 180 x series; the last row is `as_of`.
    """

    user_id: IntArray
    metric: IntArray
    source: IntArray
    as_of: IntArray
    history: FloatArray
    rows: DailyRows

    @property
    def values(self) -> FloatArray:
        """The window: the last 30 days."""
        return self.history[-WINDOW_DAYS:]


@dataclass(frozen=True, slots=True)
class _Line:
    """A fitted line a series, day 0 being `as_of`; NaN where there are too few days."""

    n: IntArray
    first: IntArray
    slope: FloatArray
    level: FloatArray
    mean_day: FloatArray
    sxx: FloatArray
    r_squared: FloatArray
    residual_sd: FloatArray
    autocorrelation: FloatArray
    #: Value minus line, days x series.
    residual: FloatArray

    def take(self, series: IntArray) -> _Line:
        """The lines of some series."""
        return _Line(*(getattr(self, each.name)[..., series] for each in fields(self)))

    @property
    def widening(self) -> FloatArray:
        wider: FloatArray = np.sqrt((1.0 + self.autocorrelation) / (1.0 - self.autocorrelation))
        return wider

    def slope_half_width(self) -> FloatArray:
        """Half of the widened 95 % interval of the slope."""
        width: FloatArray = _t_quantile(self.n, 0.975) * self.widening * self.residual_sd / np.sqrt(self.sxx)
        return width

    def half_width(self, day: float) -> FloatArray:
        """Half of the 90 % interval of a value on `day`: where the line is there, widened, and the value about it.

        A line follows likeness, so that residuals are too small: n of them tell of n - 2 (1 + r) / (1 - r).
        """
        n, wider = np.maximum(self.n, 1), self.widening**2
        leverage = 1.0 / n + (day - self.mean_day) ** 2 / self.sxx
        about = self.residual_sd**2 * (n - 2.0) / np.maximum(n - 2.0 * wider, n / 4.0)
        width: FloatArray = _t_quantile(self.n, 0.5 + LEVEL / 2) * np.sqrt(about * (1.0 + wider * leverage))
        return width


def forecasts(
    daily: pd.DataFrame,
    goals: pd.DataFrame,
    as_of: dt.date | None = None,
    valid_ranges: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Forecasts of every user's goals and of `DEFAULT_METRICS`. Grain: user_id, metric_type, as_of_date;
    sorted so.

    The window is the 30 days that end on `as_of`, or without it on the last day each user has a value of that
    metric; only days measured by the source of the latest value count, since a new device is a step and not
    a trend. A goal whose metric has no value at all gives a row only if `as_of` is given, as the row has no
    date otherwise. With fewer than 14 days the row says so and its numbers are null.

    `goals` has one row a user and metric: user_id, metric_type, target_value (canonical unit), target_date
    (or null). `valid_ranges` (metric_type, low, high) bounds predictions to what a body can do.

    Columns: `source`, `n_days`, `window_start`, `window_end` (the first and last day of the window),
    `slope_per_day`, `slope_low`, `slope_high` (95 %), `theil_sen_slope`, `theil_sen_low`, `theil_sen_high`
    (95 %), `intercept_value` (the line's value on `as_of_date`), `r_squared` (null for a constant series),
    `residual_sd`, `autocorrelation`, `method` (the winning candidate; `ols` without a back-test),
    `interval_method` (`conformal`, `student_t` where the errors are too few for a quantile, `regression`
    without a back-test), `predicted_7d`, `low_7d`, `high_7d` (90 %), `mase_naive_7d`, `mase_drift_7d` (the
    winner's mean absolute error over that of the last value and of drift), `coverage_7d` (share of the newer
    half of the errors within the interval of the older half), `n_origins_7d` (errors) and the same for 14 and
    30 days, `target_value`, `target_date`, `projected_date`, `projected_date_low`, `projected_date_high`
    (80 %), `projected_reason`, `sentence`.

    `projected_reason` is, in this order: `too_few_days`; `no_goal`; `reached` (the median of the last 7 days,
    of at least 3, is at or beyond the target; where it depends on the person which way is better, it has
    crossed the target since the window began or is within the metric's resolution of it);
    `slope_not_different_from_zero`; `wrong_direction`; `no_better_than_average` (a candidate without a trend
    won the back-test); `too_far` (later than twice the span of days the line was fitted to, or too unsure for
    a last day); `on_course`, the only one with a date: the median and the middle 80 % of the days on which
    lines drawn from the uncertainty of the fitted one meet the target.

    Raises `ValueError` where a column is missing, a user has two goals for one metric, or `daily` contradicts
    itself.
    """
    targets = _targets(goals)
    series = _series(daily, targets, as_of)
    names = names_of(series.rows.metrics, series.metric)
    autocorrelation = _autocorrelation(series.history)
    line = _fit(series.values, autocorrelation)
    robust = _theil_sen(series.values, line)
    past = backtest.backtest(series.history, autocorrelation)
    tested = np.array([winner is not None for winner in past.winner], dtype=bool) & (line.n >= MIN_DAYS)
    target, target_day = _of_series(series, names, targets)
    half = line.slope_half_width()
    has_trend = (np.abs(line.slope) > half) & (robust[1] * robust[2] > 0)
    flat = tested & np.isin(past.winner.astype(str), FLAT)
    reason, projected = _projection(series, names, line, target, has_trend, flat)
    method, interval_method = _methods(tested, line.n >= MIN_DAYS, past)
    frame: dict[str, Any] = {
        "user_id": series.user_id,
        "metric_type": text(names),
        "as_of_date": dates(series.as_of),
        "source": text(names_of(series.rows.sources, series.source)),
        "n_days": line.n,
        "window_start": dates(series.as_of - (WINDOW_DAYS - 1)),
        "window_end": dates(series.as_of),
        "slope_per_day": line.slope,
        "slope_low": line.slope - half,
        "slope_high": line.slope + half,
        "theil_sen_slope": robust[0],
        "theil_sen_low": robust[1],
        "theil_sen_high": robust[2],
        "intercept_value": line.level,
        "r_squared": line.r_squared,
        "residual_sd": line.residual_sd,
        "autocorrelation": line.autocorrelation,
        "method": text(method),
        "interval_method": text(interval_method),
    }
    low, high = _bounds(names, valid_ranges)
    for at, horizon in enumerate(HORIZONS):
        middle = np.where(tested, past.predicted[at], line.level + line.slope * horizon)
        width = np.where(tested, past.half_width[at], line.half_width(horizon))
        frame[f"predicted_{horizon}d"] = np.clip(middle, low, high)
        frame[f"low_{horizon}d"] = np.clip(middle - width, low, high)
        frame[f"high_{horizon}d"] = np.clip(middle + width, low, high)
        frame[f"mase_naive_{horizon}d"] = np.where(tested, past.mase_naive[at], np.nan)
        frame[f"mase_drift_{horizon}d"] = np.where(tested, past.mase_drift[at], np.nan)
        frame[f"coverage_{horizon}d"] = np.where(tested, past.coverage[at], np.nan)
        frame[f"n_origins_{horizon}d"] = past.n_origins[at]
    result = pd.DataFrame(frame)
    result["target_value"] = target
    result["target_date"] = target_day
    for column, days in zip(
        ("projected_date", "projected_date_low", "projected_date_high"), projected, strict=True
    ):
        result[column] = _optional_dates(days)
    result["projected_reason"] = text(reason)
    result["sentence"] = text(
        np.array(_sentences(result, has_trend, _recent_median(series.values)), dtype=object)
    )
    return result


def _methods(tested: BoolArray, enough: BoolArray, past: Backtest) -> tuple[TextArray, TextArray]:
    """Which candidate forecasts, and where its interval is from; None under 14 days."""
    method, interval = np.full(len(tested), None, dtype=object), np.full(len(tested), None, dtype=object)
    method[enough], interval[enough] = "ols", "regression"
    method[tested] = past.winner[tested]
    interval[tested] = "conformal"
    interval[tested & past.by_t] = "student_t"
    return method, interval


def _targets(goals: pd.DataFrame) -> pd.DataFrame:
    """Goals with a target, sorted."""
    require_columns(goals, "goals", GOAL_COLUMNS)
    chosen = goals.loc[np.isfinite(floats(goals, "target_value"))]
    targets = pd.DataFrame(
        {
            "user_id": user_ids(chosen, "goals"),
            "metric_type": text(chosen["metric_type"].to_numpy(dtype=object)),
            "target_value": floats(chosen, "target_value"),
            "target_date": pd.to_datetime(chosen["target_date"]).to_numpy().astype("datetime64[us]"),
        }
    )
    repeated = int(targets.duplicated(["user_id", "metric_type"]).sum())
    if repeated:
        raise ValueError(f"goals has {repeated} rows with the user and metric of another")
    return targets.sort_values(["user_id", "metric_type"], ignore_index=True)


def _series(daily: pd.DataFrame, targets: pd.DataFrame, as_of: dt.date | None) -> _Series:
    """What is to be forecast, and its window."""
    metrics = {*DEFAULT_METRICS, *targets["metric_type"].tolist()}
    rows = tidy_daily(daily, metrics)
    goal_user = targets["user_id"].to_numpy(dtype=np.int64)
    goal_metric = positions(targets["metric_type"], rows.metrics)
    if as_of is not None:
        end = day_number(as_of)
        rows = rows.take((rows.day <= end) & (rows.day > end - HISTORY_DAYS))
        recent = rows.take(rows.day > end - WINDOW_DAYS)
        rows = rows.take(_is_pair(rows.user_id, rows.metric, recent.user_id, recent.metric))

    wanted = np.isin(rows.metric, [rows.metrics.index(name) for name in DEFAULT_METRICS])
    wanted |= _is_pair(rows.user_id, rows.metric, goal_user, goal_metric)
    rows = rows.take(wanted)
    begins = starts(rows.user_id, rows.metric)
    last = np.flatnonzero(np.append(begins[1:], True)) if len(begins) else np.empty(0, dtype=np.int64)
    user_id, metric, source = rows.user_id[last], rows.metric[last], rows.source[last]
    series_as_of = rows.day[last] if as_of is None else np.full(len(last), day_number(as_of))

    of_row = np.cumsum(begins) - 1
    back = series_as_of[of_row] - rows.day
    used = (back < HISTORY_DAYS) & (rows.source == source[of_row])
    values = np.full((HISTORY_DAYS, len(last)), np.nan)
    values[HISTORY_DAYS - 1 - back[used], of_row[used]] = rows.value[used]
    if as_of is None:
        return _Series(user_id, metric, source, series_as_of, values, rows)

    silent = ~_is_pair(goal_user, goal_metric, user_id, metric)
    user_id, metric = np.append(user_id, goal_user[silent]), np.append(metric, goal_metric[silent])
    order = lexical_order(user_id, metric)
    values = np.hstack([values, np.full((HISTORY_DAYS, int(silent.sum())), np.nan)])
    return _Series(
        user_id[order],
        metric[order],
        np.append(source, np.full(int(silent.sum()), -1))[order],
        np.full(len(order), day_number(as_of)),
        values[:, order],
        rows,
    )


def _is_pair(user: IntArray, metric: IntArray, of_user: IntArray, of_metric: IntArray) -> BoolArray:
    """Whether each (user, metric) is among the others."""
    pairs = pd.MultiIndex.from_arrays([user, metric])
    return np.asarray(pairs.isin(pd.MultiIndex.from_arrays([of_user, of_metric])), dtype=bool)


def _fit(values: FloatArray, autocorrelation: FloatArray) -> _Line:
    """Least squares a series of 30 days. Sums run over the days one after the other, so that a series' result
    does not depend on how many stand beside it."""
    day = np.arange(-(WINDOW_DAYS - 1), 1, dtype=np.float64)
    here = ~np.isnan(values)
    n = here.sum(axis=0).astype(np.int64)
    enough = n >= MIN_DAYS
    first = np.where(n > 0, np.argmax(here, axis=0), 0)

    def total(each: Callable[[int], Any]) -> FloatArray:
        result = np.zeros(values.shape[1])
        for row in range(WINDOW_DAYS):
            result += np.where(here[row], each(row), 0.0)
        return result

    count = np.where(enough, n, np.nan)
    mean_day = total(lambda row: day[row]) / count
    mean = total(lambda row: values[row]) / count
    # The mean of equal values may miss them by a rounding, which must not become a slope.
    lowest = np.min(np.where(here, values, np.inf), axis=0, initial=np.inf)
    highest = np.max(np.where(here, values, -np.inf), axis=0, initial=-np.inf)
    constant = enough & (highest == lowest)
    mean = np.where(constant, lowest, mean)
    sxx = np.where(enough, total(lambda row: (day[row] - mean_day) ** 2), np.nan)
    sxy = total(lambda row: (day[row] - mean_day) * (values[row] - mean))
    syy = total(lambda row: (values[row] - mean) ** 2)
    slope = sxy / sxx
    residual = values - (mean + slope * (day[:, None] - mean_day))
    sse = total(lambda row: residual[row] ** 2)
    varied = enough & ~constant
    r_squared = np.full(values.shape[1], np.nan)
    r_squared[varied] = 1.0 - sse[varied] / syy[varied]
    return _Line(
        n,
        first.astype(np.int64),
        slope,
        mean - slope * mean_day,
        mean_day,
        sxx,
        r_squared,
        np.sqrt(sse / (count - 2.0)),
        np.where(enough, autocorrelation, np.nan),
        residual,
    )


def _autocorrelation(history: FloatArray) -> FloatArray:
    """Lag-1 autocorrelation about a line, the mean over the windows of 30 days, within 0 and 0.9; 0 where no
    window has the values. A line a window, so that a change of course long ago does not count as likeness."""
    series = history.shape[1]
    summed = np.zeros(series)
    windows = np.zeros(series, dtype=np.int64)
    for end in range(len(history), WINDOW_DAYS - 1, -WINDOW_DAYS):
        found = _window_autocorrelation(_fit(history[end - WINDOW_DAYS : end], np.zeros(series)))
        summed += np.nan_to_num(found)
        windows += ~np.isnan(found)
    return np.clip(summed / np.maximum(windows, 1), 0.0, MAX_AUTOCORRELATION)


def _window_autocorrelation(line: _Line) -> FloatArray:
    """From pairs of days in a row, corrected for the fitted line; NaN where there are none."""
    residual, n = line.residual, line.n
    shared, sse = np.zeros(residual.shape[1]), np.zeros(residual.shape[1])
    pairs = np.zeros(residual.shape[1], dtype=np.int64)
    for row in range(WINDOW_DAYS):
        sse += np.nan_to_num(residual[row]) ** 2
        if row:
            products = residual[row] * residual[row - 1]
            shared += np.nan_to_num(products)
            pairs += ~np.isnan(products)
    r = np.full(residual.shape[1], np.nan)
    usable = (n >= MIN_DAYS) & (pairs > 0) & (sse > 0)
    r[usable] = (shared[usable] / pairs[usable]) / (sse[usable] / n[usable])
    corrected: FloatArray = (n * r + 2.0) / np.maximum(n - 4.0, 1.0)
    return corrected


def _theil_sen(values: FloatArray, line: _Line) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Median slope of each window and its 95 % interval (Sen 1968), the variance of Kendall's S widened for
    autocorrelation. Where so few slopes carry no such interval, its ends are infinite: anything may be."""
    ordered = pairwise_slopes(values)
    slope = median_of_sorted(ordered)
    count = (~np.isnan(ordered)).sum(axis=0)
    n = line.n.astype(np.float64)
    reach = 1.959963984540054 * line.widening * np.sqrt(n * (n - 1.0) * (2.0 * n + 5.0) / 18.0)
    enough = line.n >= MIN_DAYS
    below = np.where(enough, np.floor((count - reach) / 2.0) - 1.0, -1.0)
    above = np.where(enough, np.ceil((count + reach) / 2.0), np.inf)
    column = np.arange(len(n))
    low = np.where(below >= 0, ordered[np.maximum(below, 0).astype(np.int64), column], -np.inf)
    last = np.maximum(count - 1, 0)
    high = np.where(above <= last, ordered[np.minimum(above, last).astype(np.int64), column], np.inf)
    return tuple(np.where(enough, part, np.nan) for part in (slope, low, high))  # type: ignore[return-value]


def _t_quantile(n: IntArray, probability: float | FloatArray) -> FloatArray:
    """Student's t for a line through `n` points, NaN for fewer than 14."""
    from scipy.special import stdtrit

    freedom = np.where(n >= MIN_DAYS, n - 2.0, np.nan)
    return np.asarray(stdtrit(freedom, probability), dtype=np.float64)


def _recent_median(values: FloatArray) -> FloatArray:
    """Median of the last 7 days a series, NaN under 3 values."""
    recent = np.sort(values[-RECENT_DAYS:], axis=0)
    n = (~np.isnan(recent)).sum(axis=0)
    series = np.arange(values.shape[1])
    middle = 0.5 * (recent[np.maximum(n - 1, 0) // 2, series] + recent[np.minimum(n // 2, 6), series])
    return np.where(n >= MIN_RECENT_DAYS, middle, np.nan)


def _of_series(
    series: _Series, names: TextArray, targets: pd.DataFrame
) -> tuple[FloatArray, np.ndarray[Any, np.dtype[np.datetime64]]]:
    """Target and its date of each series, NaN and NaT without a goal."""
    keys = pd.DataFrame({"user_id": series.user_id, "metric_type": text(names)})
    joined = keys.merge(targets, how="left", on=["user_id", "metric_type"])
    return floats(joined, "target_value"), joined["target_date"].to_numpy().astype("datetime64[us]")


def _projection(
    series: _Series,
    names: TextArray,
    line: _Line,
    target: FloatArray,
    has_trend: BoolArray,
    flat: BoolArray,
) -> tuple[TextArray, tuple[IntArray, IntArray, IntArray]]:
    """Why there is or is no date; the day numbers of the date and of both ends of its range (-1 for none)."""
    recent = _recent_median(series.values)
    started = line.level + line.slope * (line.first - (WINDOW_DAYS - 1.0))
    better = np.array([BETTER.get(name, 0) for name in names], dtype=np.float64)
    resolution = np.array([METRICS[name].floor if name in METRICS else 0.0 for name in names])
    beyond = better * (recent - target) >= 0
    crossed = np.sign(started - target) * np.sign(recent - target) < 0
    reached = np.where(better != 0, beyond, crossed | (np.abs(recent - target) <= resolution))

    current = np.where(np.isnan(recent), line.level, recent)
    right_way = np.sign(line.slope) == np.sign(target - current)
    steps = np.full((3, len(names)), np.nan)
    asked = np.flatnonzero(~np.isnan(target) & (line.n >= MIN_DAYS))
    steps[:, asked] = _days_to_target(line.take(asked), target[asked])
    limit = np.minimum(MAX_DATE_OF_HISTORY * (WINDOW_DAYS - line.first), MAX_DATE_DAYS)

    reason = np.select(
        [
            line.n < MIN_DAYS,
            np.isnan(target),
            reached,
            ~has_trend,
            ~right_way,
            flat,
            (steps[0] > limit) | (steps[2] > MAX_DATE_DAYS),
        ],
        [
            "too_few_days",
            "no_goal",
            "reached",
            "slope_not_different_from_zero",
            "wrong_direction",
            "no_better_than_average",
            "too_far",
        ],
        "on_course",
    ).astype(object)
    on_course = reason == "on_course"
    projected = np.full((3, len(names)), -1, dtype=np.int64)
    projected[:, on_course] = series.as_of[on_course] + steps[:, on_course].astype(np.int64)
    return reason, (projected[0], projected[1], projected[2])


def _days_to_target(line: _Line, target: FloatArray) -> FloatArray:
    """Days until lines as the fitted one may be meet the target: median, 10 and 90 % of them; 3 x series.

    The lines are drawn through the two independent errors of a regression, that of the mean and that of the
    slope, at the points of a lattice (Roberts' R2) instead of by chance. A line that goes the other way
    never arrives.
    """
    point = np.arange(1.0, _PATHS + 1.0)[:, None]
    lengths, which = np.unique(line.n, return_inverse=True)
    draws: list[FloatArray] = [
        _t_quantile(lengths, (0.5 + step * point) % 1.0)[:, which]
        for step in (0.7548776662466927, 0.5698402909980532)
    ]
    spread = line.widening * line.residual_sd
    mean = line.level + line.slope * line.mean_day + draws[0] * spread / np.sqrt(line.n)
    slope = line.slope + draws[1] * spread / np.sqrt(line.sxx)
    with np.errstate(divide="ignore", invalid="ignore"):
        arrival = line.mean_day + (target - mean) / slope
    # Rounding must not cost a day. A line may already be past a target that the recent median has not met:
    # then tomorrow at the earliest.
    arrival = np.maximum(np.ceil(arrival - 1e-6), 1.0)
    same_way = np.sign(slope) == np.sign(line.slope)
    arrival = np.sort(np.where(same_way & ~np.isnan(arrival), arrival, np.inf), axis=0)
    found: FloatArray = arrival[[_PATHS // 2, _PATHS // 10, _PATHS - 1 - _PATHS // 10]]
    return found


def _optional_dates(days: IntArray) -> np.ndarray[Any, np.dtype[np.datetime64]]:
    found = dates(days)
    found[days < 0] = np.datetime64("NaT")
    return found


def _bounds(names: TextArray, valid_ranges: pd.DataFrame | None) -> tuple[FloatArray, FloatArray]:
    """Lowest and highest value of each series' metric, infinite where none is given."""
    low, high = np.full(len(names), -np.inf), np.full(len(names), np.inf)
    if valid_ranges is None:
        return low, high
    require_columns(valid_ranges, "valid_ranges", ("metric_type", "low", "high"))
    limits = zip(
        valid_ranges["metric_type"], floats(valid_ranges, "low"), floats(valid_ranges, "high"), strict=True
    )
    for metric, lowest, highest in limits:  # a dozen metrics, not rows of people
        mine = names == metric
        low[mine] = lowest if np.isfinite(lowest) else -np.inf
        high[mine] = highest if np.isfinite(highest) else np.inf
    return low, high


def _sentences(result: pd.DataFrame, has_trend: BoolArray, recent: FloatArray) -> list[str]:
    """A sentence a row. R squared is left out on purpose."""
    facts = zip(
        result["metric_type"].tolist(),
        result["projected_reason"].tolist(),
        result["n_days"].tolist(),
        result["slope_per_day"].tolist(),
        has_trend.tolist(),
        result["target_value"].tolist(),
        recent.tolist(),
        result["predicted_30d"].tolist(),
        result["low_30d"].tolist(),
        result["high_30d"].tolist(),
        result["projected_date"].dt.date.tolist(),
        result["projected_date_low"].dt.date.tolist(),
        result["projected_date_high"].dt.date.tolist(),
        result["target_date"].dt.date.tolist(),
        strict=True,
    )
    return [wording.forecast_sentence(*fact) for fact in facts]
