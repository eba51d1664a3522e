"""What is usual for a person: a robust centre and spread a metric and source, from the 60 days before.

The window ends the day *before* the day it is for, so a day never pulls its own yardstick. Median and median
absolute deviation (MAD) withstand a minority of ill or travelling days; 1.4826 x MAD estimates the standard
deviation of a normal distribution (Rousseeuw & Croux 1993). Heart rate variability is right-skewed and is
taken as its natural logarithm (Plews et al. 2013). A baseline belongs to one source: devices differ by more
than people do from day to day, so a new device starts a new one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from health_pipeline.engine.frames import (
    DailyRows,
    DayRange,
    FloatArray,
    IntArray,
    dates,
    day_range,
    lexical_order,
    names_of,
    starts,
    text,
    tidy_daily,
)

WINDOW_DAYS = 60
MIN_DAYS = 14
RECENT_DAYS = 7
MIN_RECENT_DAYS = 3
#: Standard deviations of a normal distribution in one median absolute deviation.
MAD_TO_SD = 1.4826
_CELLS_AT_ONCE = 32_768


@dataclass(frozen=True, slots=True)
class Metric:
    """How a metric is compared with itself.

    `floor` is the smallest spread believed, in the transformed unit: about what a device resolves. Without
    it a person whose nights are all alike would be many deviations off at the first ordinary change.
    """

    floor: float
    transform: Literal["identity", "ln"] = "identity"


#: Metrics that have baselines, in their canonical units (durations in seconds, percentages 0-100).
METRICS: dict[str, Metric] = {
    "body_fat": Metric(0.5),
    "body_temperature": Metric(0.1),
    "body_temperature_deviation": Metric(0.1),
    "calories_burned": Metric(50.0),
    "deep_sleep": Metric(600.0),
    "distance": Metric(500.0),
    "glucose": Metric(5.0),
    "heart_rate": Metric(1.0),
    "heart_rate_variability": Metric(0.05, "ln"),
    "heart_rate_variability_sdnn": Metric(0.05, "ln"),
    "rem_sleep": Metric(600.0),
    "respiratory_rate": Metric(0.3),
    "resting_heart_rate": Metric(1.0),
    "sleep_duration": Metric(900.0),
    "sleep_efficiency": Metric(1.0),
    "sleep_latency": Metric(300.0),
    "spo2": Metric(0.5),
    "steps": Metric(500.0),
    "stress_score": Metric(3.0),
    "training_load": Metric(5.0),
    "weight": Metric(0.3),
}


def baselines(daily: pd.DataFrame, days: DayRange) -> pd.DataFrame:
    """The baseline of every user, metric and source on each of `days`. Grain: user_id, local_date,
    metric_type, source; sorted so.

    A row is there where the 60 days before `local_date` hold at least 14 days with a value. `daily` must
    reach back 60 days before the first of `days`; what is older is ignored. Metrics without an entry in
    `METRICS` are ignored. Values that cannot be transformed (a heart rate variability of zero) count as
    absent.

    Columns: `baseline_center`, `baseline_scale` (median and max(1.4826 x MAD, floor), in the transformed
    unit), `center_value` (the centre in the metric's unit), `n_days`, `first_day`, `last_day`,
    `staleness_days` (from `last_day` to `local_date`, at least 1), `transform` (`identity` or `ln`), and the
    7 days that end *on* `local_date`: `recent_mean` (transformed unit; null under 3 days) and
    `recent_n_days`.
    """
    start, end = day_range(days)
    oldest = start - WINDOW_DAYS
    rows = _transformed(tidy_daily(daily, METRICS))
    rows = rows.take((rows.day >= oldest) & (rows.day <= end))
    rows = rows.take(lexical_order(rows.user_id, rows.metric, rows.source, rows.day))

    first = np.flatnonzero(starts(rows.user_id, rows.metric, rows.source))
    series_of_row = np.cumsum(starts(rows.user_id, rows.metric, rows.source)) - 1
    # One sorted number a row, so that a window of days is a slice found by bisection.
    span = end - oldest + 2
    keys = series_of_row * span + (rows.day - oldest)
    asked = np.arange(start, end + 1, dtype=np.int64)
    series = np.repeat(np.arange(len(first), dtype=np.int64), len(asked))
    day = np.tile(asked, len(first))
    at = series * span + (day - oldest)
    low = np.searchsorted(keys, at - WINDOW_DAYS)
    high = np.searchsorted(keys, at)

    kept = high - low >= MIN_DAYS
    series, day, at, low, high = series[kept], day[kept], at[kept], low[kept], high[kept]
    head = first[series]
    order = lexical_order(rows.user_id[head], day, rows.metric[head], rows.source[head])
    day, at, low, high, head = day[order], at[order], low[order], high[order], head[order]

    center, deviation = _median_and_mad(rows.value, low, high)
    metric = rows.metric[head]
    specs = [METRICS[name] for name in rows.metrics]
    floor = np.array([spec.floor for spec in specs])[metric]
    logarithmic = np.array([spec.transform == "ln" for spec in specs])[metric]
    center_value = center.copy()
    center_value[logarithmic] = np.exp(center[logarithmic])
    recent_mean, recent_n_days = _recent(rows.value, keys, at)
    return pd.DataFrame(
        {
            "user_id": rows.user_id[head],
            "local_date": dates(day),
            "metric_type": text(names_of(rows.metrics, metric)),
            "source": text(names_of(rows.sources, rows.source[head])),
            "baseline_center": center,
            "baseline_scale": np.maximum(MAD_TO_SD * deviation, floor),
            "center_value": center_value,
            "n_days": (high - low).astype(np.int64),
            "first_day": dates(rows.day[low]),
            "last_day": dates(rows.day[high - 1]),
            "staleness_days": day - rows.day[high - 1],
            "transform": text(np.where(logarithmic, "ln", "identity").astype(object)),
            "recent_mean": recent_mean,
            "recent_n_days": recent_n_days,
        }
    )


def _transformed(rows: DailyRows) -> DailyRows:
    """The rows with values in the unit their baselines are kept in."""
    logarithmic = np.array([METRICS[name].transform == "ln" for name in rows.metrics])[rows.metric]
    rows = rows.take(~logarithmic | (rows.value > 0))
    logarithmic = np.array([METRICS[name].transform == "ln" for name in rows.metrics])[rows.metric]
    rows.value[logarithmic] = np.log(rows.value[logarithmic])
    return rows


def _median_and_mad(values: FloatArray, low: IntArray, high: IntArray) -> tuple[FloatArray, FloatArray]:
    """Median and MAD of `values[low:high]` for each pair, 14 to 60 values each.

    Windows of one length make a matrix without gaps; there are at most 47 lengths.
    """
    center = np.empty(len(low))
    deviation = np.empty(len(low))
    counts = high - low
    for n in np.unique(counts).tolist():
        cells = np.flatnonzero(counts == n)
        for part in range(0, len(cells), _CELLS_AT_ONCE):
            chosen = cells[part : part + _CELLS_AT_ONCE]
            window = values[low[chosen, None] + np.arange(n)]
            center[chosen] = _middle(window)
            deviation[chosen] = _middle(np.abs(window - center[chosen, None]))
    return center, deviation


def _middle(window: FloatArray) -> FloatArray:
    """The median of each row. Sorts `window` in place."""
    window.sort(axis=1)
    n = window.shape[1]
    middle: FloatArray = 0.5 * (window[:, (n - 1) // 2] + window[:, n // 2])
    return middle


def _recent(values: FloatArray, keys: IntArray, at: IntArray) -> tuple[FloatArray, IntArray]:
    """Mean and count of the days that end on each asked day, oldest added first."""
    low = np.searchsorted(keys, at - (RECENT_DAYS - 1))
    high = np.searchsorted(keys, at, side="right")
    total = np.zeros(len(at))
    for step in range(RECENT_DAYS):
        position = low + step
        inside = position < high
        total[inside] += values[position[inside]]
    count = (high - low).astype(np.int64)
    enough = count >= MIN_RECENT_DAYS
    mean = np.full(len(at), np.nan)
    mean[enough] = total[enough] / count[enough]
    return mean, count
