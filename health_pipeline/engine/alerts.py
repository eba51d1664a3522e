"""What a person should be told of soon: glucose that moves fast, is very low or stays high; a heart or a temperature
off its own baseline; a measurement that has stopped. Once an episode.

**Rapid change.** The slope is that of least squares over the readings of the last 15 minutes, three at the
least: the difference of two readings 5 minutes apart is 1 to 2 mg/dL a minute by sensor noise alone. An
episode begins where the slope is 2 mg/dL a minute or more and ends, and may be followed by another, after the
slope was under 1 either way for 15 minutes, or after a gap of 45 minutes. Sensors that report every 15
minutes have too few readings for it.

For 12 hours after a sensor may have been changed (another device, or two hours without readings) rapid change
is mostly the sensor settling: those alerts are kept and marked `suppressed`. A low is never suppressed.

**Urgent low** is one reading under 54 mg/dL (3.0 mmol/L), until 15 minutes at or above. **Prolonged high** is two
hours over 250 mg/dL (13.9 mmol/L), told of when they are over.

**Off baseline**: a day's resting heart rate or body temperature 3 or more of the person's own robust standard
deviations over its baseline, the first day of days in a row; it begins anew after a day under 2.

**Missing data**: a measurement that came on 10 of 14 days and then not for 3 in a row, although others came: told on
the third of them. Where nothing comes at all there is no day to tell it on: the account's check says that.
"""

from __future__ import annotations

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
    tidy_daily,
    user_ids,
)
from health_pipeline.engine.glucose import Readings, episodes, tidy_readings

SLOPE_MINUTES = 15
#: Readings come some seconds early or late.
_SLACK_SECONDS = 30
MIN_SLOPE_SPAN_MINUTES = 9.5
RAPID = 2.0
VERY_RAPID = 3.0
REARM_BELOW = 1.0
REARM_MINUTES = 15
REARM_GAP_MINUTES = 45
PROLONGED_MINUTES = 120
SENSOR_GAP_MINUTES = 120
SENSOR_START_HOURS = 12
OFF_BASELINE_Z = 3.0
BACK_ON_BASELINE_Z = 2.0
EXPECTED = ("glucose", "resting_heart_rate", "sleep_duration", "steps")
MISSING_DAYS = 3
EXPECTED_DAYS = 14
MIN_EXPECTED_DAYS = 10
KINDS = (
    "missing_data",
    "prolonged_high",
    "rapid_fall",
    "rapid_rise",
    "urgent_low",
    "body_temperature_high",
    "resting_heart_rate_high",
)
#: Metric, and the kind of alert that it may give.
OFF_BASELINE = {
    "body_temperature": "body_temperature_high",
    "body_temperature_deviation": "body_temperature_high",
    "resting_heart_rate": "resting_heart_rate_high",
}
BASELINE_COLUMNS = (
    "user_id",
    "local_date",
    "metric_type",
    "source",
    "baseline_center",
    "baseline_scale",
)
COLUMNS = (
    "user_id",
    "local_date",
    "kind",
    "episode",
    "detected_at",
    "ended_at",
    "value",
    "severity",
    "suppressed",
    "sentence",
)


def alerts(readings: pd.DataFrame, daily: pd.DataFrame, baselines: pd.DataFrame) -> pd.DataFrame:
    """Alerts of every person. Grain: user_id, local_date, kind, episode (1, 2, ... of the day); sorted so.

    `readings` as `engine.glucose` takes them, `daily` of the metrics in `OFF_BASELINE` and `EXPECTED`, `baselines` of
    the former. The first day of an episode of days in a row is known only if the day before is there, that something
    is missing only if the 17 days up to it are.

    Columns: `detected_at` (UTC instant of the reading that told; null for a day's value), `ended_at` (null
    while it lasts, and for a day's value), `value` (mg/dL a minute, mg/dL, robust standard deviations, or days),
    `severity` (`urgent` or `warning`), `suppressed`, `sentence`.
    """
    tidy = tidy_readings(readings)
    parts = [
        _rapid(tidy, "rapid_fall", -1.0),
        _rapid(tidy, "rapid_rise", 1.0),
        _urgent_low(tidy),
        _prolonged_high(tidy),
        _off_baseline(daily, baselines),
        _missing(daily),
    ]
    frame = pd.concat(parts, ignore_index=True)
    frame = frame.sort_values(["user_id", "local_date", "kind", "detected_at", "sentence"], ignore_index=True)
    frame["episode"] = frame.groupby(["user_id", "local_date", "kind"]).cumcount().astype("int64") + 1
    return frame[list(COLUMNS)]


def slopes(tidy: Readings) -> FloatArray:
    """Least-squares slope over the last 15 minutes at each reading, mg/dL a minute; NaN where they are too few."""
    n = len(tidy.second)
    sums = np.zeros((5, n))
    oldest = np.zeros(n)
    row = np.arange(n)
    for back in range(SLOPE_MINUTES + 1):  # a reading a minute at the most
        other = row - back
        inside = other >= 0
        other = np.maximum(other, 0)
        age = (tidy.second - tidy.second[other]) / 60.0
        inside &= (tidy.user_id[other] == tidy.user_id) & (age <= SLOPE_MINUTES + _SLACK_SECONDS / 60.0)
        if not inside.any():
            break
        change = tidy.value[other] - tidy.value
        parts: list[FloatArray] = [np.ones(n), age, age**2, change, age * change]
        sums += np.where(inside, parts, 0.0)
        oldest = np.where(inside, age, oldest)
    usable = (sums[0] >= 3) & (oldest >= MIN_SLOPE_SPAN_MINUTES)
    spread = np.where(usable, sums[0] * sums[2] - sums[1] ** 2, 1.0)
    found: FloatArray = np.where(usable, (sums[1] * sums[3] - sums[0] * sums[4]) / spread, np.nan)
    return found


def _rapid(tidy: Readings, kind: str, direction: float) -> pd.DataFrame:
    n = len(tidy.second)
    slope = slopes(tidy)
    new = _breaks(tidy, REARM_GAP_MINUTES)
    row = np.arange(n)
    moving = ~(np.abs(slope) < REARM_BELOW)
    last_moving = np.maximum.accumulate(np.where(moving | new, row, 0)) if n else row
    calm = ~moving & (tidy.second - tidy.second[last_moving] >= REARM_MINUTES * 60)
    rearmed = calm | new
    # Not known is not calm, but neither is it a rapid change.
    fires = direction * np.nan_to_num(slope) >= RAPID
    last_rearmed = np.maximum.accumulate(np.where(rearmed, row, -1)) if n else row
    last_fired = np.maximum.accumulate(np.where(fires, row, -1)) if n else row
    before = np.append(-1, last_fired[:-1]) if n else row
    at = np.flatnonzero(fires & (before < last_rearmed))
    end = _next_within(np.flatnonzero(rearmed), at, tidy.user_id)
    settling = _since_sensor_start(tidy)[at] < SENSOR_START_HOURS * 3600
    size = np.abs(slope[at])
    words = "fell" if direction < 0 else "rose"
    sentence = [
        f"Glucose {words} by {rate:.1f} mg/dL a minute over the last 15 minutes, to {value:.0f} mg/dL."
        for rate, value in zip(size.tolist(), tidy.value[at].tolist(), strict=True)
    ]
    return _frame(tidy, kind, at, end, slope[at], size >= VERY_RAPID, settling, sentence)


def _urgent_low(tidy: Readings) -> pd.DataFrame:
    first, last, closed = episodes(tidy, tidy.band == 0, minutes=0.0)
    end = np.where(closed, last, -1)
    sentence = [f"Glucose is {value:.0f} mg/dL, under 54." for value in tidy.value[first].tolist()]
    everything = np.ones(len(first), dtype=bool)
    return _frame(tidy, "urgent_low", first, end, tidy.value[first], everything, ~everything, sentence)


def _prolonged_high(tidy: Readings) -> pd.DataFrame:
    first, last, closed = episodes(tidy, tidy.band == 6)
    long = tidy.second[last] - tidy.second[first] >= PROLONGED_MINUTES * 60
    first, last, closed = first[long], last[long], closed[long]
    # Told of by the reading that makes it two hours.
    people = np.cumsum(starts(tidy.user_id)) - 1 if len(tidy.user_id) else tidy.user_id
    key = people * (1 << 40) + tidy.second
    told = np.searchsorted(key, key[first] + PROLONGED_MINUTES * 60)
    end = np.where(closed, last, -1)
    sentence = [
        f"Glucose has been over 250 mg/dL for two hours and is {value:.0f} mg/dL."
        for value in tidy.value[told].tolist()
    ]
    nothing = np.zeros(len(first), dtype=bool)
    return _frame(tidy, "prolonged_high", told, end, tidy.value[told], nothing, nothing, sentence)


def _off_baseline(daily: pd.DataFrame, baselines: pd.DataFrame) -> pd.DataFrame:
    require_columns(baselines, "baselines", BASELINE_COLUMNS)
    rows = tidy_daily(daily, OFF_BASELINE)
    value = pd.DataFrame(
        {
            "user_id": rows.user_id,
            "day": rows.day,
            "metric": rows.metric,
            "source": text(names_of(rows.sources, rows.source)),
            "value": rows.value,
        }
    )
    usual = pd.DataFrame(
        {
            "user_id": user_ids(baselines, "baselines"),
            "day": day_numbers(baselines, "baselines"),
            "metric": positions(baselines["metric_type"], rows.metrics),
            "source": text(baselines["source"].to_numpy(dtype=object)),
            "center": floats(baselines, "baseline_center"),
            "scale": floats(baselines, "baseline_scale"),
        }
    )
    joined = value.merge(usual, on=["user_id", "day", "metric", "source"])
    user, metric = joined["user_id"].to_numpy(np.int64), joined["metric"].to_numpy(np.int64)
    day = joined["day"].to_numpy(np.int64)
    order = lexical_order(user, metric, day)
    user, metric, day = user[order], metric[order], day[order]
    z = ((floats(joined, "value") - floats(joined, "center")) / floats(joined, "scale"))[order]
    row = np.arange(len(z))
    calm = (z < BACK_ON_BASELINE_Z) | starts(user, metric)
    calm[1:] |= np.diff(day) > 1
    off = z >= OFF_BASELINE_Z
    last_calm = np.maximum.accumulate(np.where(calm, row, -1)) if len(row) else row
    last_off = np.maximum.accumulate(np.where(off, row, -1)) if len(row) else row
    before = np.append(-1, last_off[:-1]) if len(row) else row
    # A first or lonely day is calm and off at once.
    at = np.flatnonzero(off & (before < last_calm))
    kind = [OFF_BASELINE[rows.metrics[code]] for code in metric[at].tolist()]
    names = {"body_temperature_high": "Body temperature", "resting_heart_rate_high": "Resting heart rate"}
    sentence = [
        f"{names[each]} is {high:.1f} times its usual day-to-day spread above usual."
        for each, high in zip(kind, z[at].tolist(), strict=True)
    ]
    frame = _days_frame(user[at], day[at], kind, z[at], sentence)
    # Two metrics of temperature give one alert a day.
    return frame.drop_duplicates(["user_id", "local_date", "kind"])


def _missing(daily: pd.DataFrame) -> pd.DataFrame:
    """Measurements that have stopped, on the third day without them."""
    rows = tidy_daily(daily, EXPECTED)
    if not len(rows.day):
        nothing = np.empty(0, dtype=np.int64)
        return _days_frame(nothing, nothing, [], np.empty(0), [])
    # Before anybody's first day there is nothing: it decides like any other whose days before are known.
    users, start = np.unique(rows.user_id), int(rows.day.min()) - (EXPECTED_DAYS + MISSING_DAYS - 1)
    width = int(rows.day.max()) - start + 1
    here = np.zeros((len(users), len(rows.metrics), width), dtype=bool)
    here[np.searchsorted(users, rows.user_id), rows.metric, rows.day - start] = True
    count = np.cumsum(np.concatenate([np.zeros((*here.shape[:2], 1)), here], axis=2), axis=2)
    told = np.arange(EXPECTED_DAYS + MISSING_DAYS - 1, width)
    gone = count[..., told + 1] - count[..., told + 1 - MISSING_DAYS] == 0
    came = count[..., told + 1 - MISSING_DAYS] - count[..., told + 1 - MISSING_DAYS - EXPECTED_DAYS]
    last_before = here[..., told - MISSING_DAYS]
    fires = gone & last_before & (came >= MIN_EXPECTED_DAYS) & here[..., told].any(axis=1, keepdims=True)
    user, metric, at = np.nonzero(fires)
    names = {name: name.replace("_", " ") for name in rows.metrics}
    known = came[user, metric, at].tolist()
    sentence = [
        f"There is no {names[rows.metrics[code]]} of the last {MISSING_DAYS} days, although it came on {number:.0f} of "
        f"the {EXPECTED_DAYS} before."
        for code, number in zip(metric.tolist(), known, strict=True)
    ]
    kind = ["missing_data"] * len(user)
    days = start + told[at]
    return _days_frame(users[user], days, kind, np.full(len(user), float(MISSING_DAYS)), sentence)


def _days_frame(
    user: IntArray, day: IntArray, kind: list[str], value: FloatArray, sentence: list[str]
) -> pd.DataFrame:
    """Alerts that a day's values tell: warnings without an instant."""
    never = np.full(len(user), np.datetime64("NaT"), dtype="datetime64[us]")
    frame = pd.DataFrame(
        {
            "user_id": user,
            "local_date": dates(day),
            "kind": text(np.array(kind, dtype=object)),
            "detected_at": never,
            "ended_at": never,
            "value": value,
            "severity": text(np.full(len(user), "warning", dtype=object)),
            "suppressed": np.zeros(len(user), dtype=bool),
            "sentence": text(np.array(sentence, dtype=object)),
        }
    )
    frame["detected_at"] = frame["detected_at"].dt.tz_localize("UTC")
    frame["ended_at"] = frame["ended_at"].dt.tz_localize("UTC")
    return frame


def _breaks(tidy: Readings, gap_minutes: int) -> BoolArray:
    """True at a person's first reading and after gaps of so many minutes or more."""
    new = starts(tidy.user_id)
    new[1:] |= np.diff(tidy.second) >= gap_minutes * 60
    return new


def _since_sensor_start(tidy: Readings) -> IntArray:
    """Seconds since the person's sensor may last have been changed."""
    new = _breaks(tidy, SENSOR_GAP_MINUTES) | starts(tidy.user_id, tidy.device)
    row = np.arange(len(new))
    last = np.maximum.accumulate(np.where(new, row, 0)) if len(row) else row
    since: IntArray = tidy.second - tidy.second[last]
    return since


def _next_within(ends: IntArray, at: IntArray, user: IntArray) -> IntArray:
    """The first of `ends` after each of `at` of the same person, -1 for none."""
    if not len(ends):
        return np.full(len(at), -1, dtype=np.int64)
    place = np.searchsorted(ends, at, side="right")
    found = ends[np.minimum(place, len(ends) - 1)]
    return np.where((place < len(ends)) & (user[found] == user[at]), found, -1)


def _frame(
    tidy: Readings,
    kind: str,
    at: IntArray,
    end: IntArray,
    value: FloatArray,
    urgent: BoolArray,
    suppressed: BoolArray,
    sentence: list[str],
) -> pd.DataFrame:
    ended = tidy.second[np.maximum(end, 0)].astype("datetime64[s]").astype("datetime64[us]")
    ended[end < 0] = np.datetime64("NaT")
    detected = tidy.second[at].astype("datetime64[s]").astype("datetime64[us]")
    frame = pd.DataFrame(
        {
            "user_id": tidy.user_id[at],
            "local_date": dates(tidy.day[at]),
            "kind": text(np.full(len(at), kind, dtype=object)),
            "detected_at": detected,
            "ended_at": ended,
            "value": value,
            "severity": text(np.where(urgent, "urgent", "warning").astype(object)),
            "suppressed": suppressed,
            "sentence": text(np.array(sentence, dtype=object)),
        }
    )
    frame["detected_at"] = frame["detected_at"].dt.tz_localize("UTC")
    frame["ended_at"] = frame["ended_at"].dt.tz_localize("UTC")
    return frame
