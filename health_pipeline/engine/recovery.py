"""The recovery score: how ready a body is today, 0 to 100, from four components with fixed weights.

Stress 0.25, sleep 0.30, heart rate 0.20, training load 0.25, re-normalised over the components present. A
missing component is never filled in, and without 0.55 of the weight there is no score.

Two methods stand side by side in the result, one row each.

`seed`, the plain form:

- stress: 100 - stress score;
- sleep: hours slept / 8 x 100, at most 100;
- heart rate: 50 at the usual resting heart rate, 100 at 10 % under it or less, 0 at 10 % over it or more;
- load: 50 when acute and chronic load are alike, 100 when the acute load is half the chronic load less than
  it, 0 when it is half the chronic load more.

`calibrated`, each component 100 x Phi(0.67 - z), with z robust standard deviations in the bad direction from
the person's own baseline, held within 4. An ordinary day, z = 0 in all, is then 75, and no step or cliff is
anywhere (docs/validity.md measures what ordinary days come to):

- stress: the vendor's stress score against its baseline, else ln of heart rate variability, low being bad;
- sleep: 0.70 of duration, 0.15 of regularity and 0.15 of efficiency, re-normalised over what is known of the
  night; never without duration. Duration counts z = 0 between 7 and 9 hours, one for each hour short and half a one
  for each hour over. Regularity is the distance of the middle of the sleep, by the local clock, from
  the circular mean of the 28 nights before (7 at the least), in their circular standard deviations, which are held
  within 30 and 60 minutes: who goes to bed at all hours is not excused by it. Half of a normal distribution is
  farther away than 0.67, so that much is taken off. Efficiency counts against its baseline;
- heart rate: resting heart rate against its baseline;
- load: (acute - chronic) / (0.25 x chronic). When a person trains in the same way all the time and daily
  load varies about as much as its mean, the difference of the averages has a standard deviation of 0.22 of
  that mean. Below z = -1 freshness turns into detraining, and z rises again by a quarter.

Load is that of the evening before, so that today's session does not lower the score it is done on. Who
trains very little is judged as if the chronic load were 100 a day (20 moderate minutes), lest one walk count
as overload. There is no load component before 14 days with data, after 7 days in a row without, or with a
chronic load near 0, which means that no sessions reach us rather than that none are done.

The range holds the score with a probability of 80 %, as far as the error lies in the baselines:
se(z) = 1.25 x sqrt(1/n + z^2 / (2(n - 1))), where 1.25 stands for the lower efficiency of median and MAD. The
sensors' own errors are not in it. Stress and heart rate come from the same heart in the same night, so their
errors are added as if fully correlated; the others as independent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from health_pipeline.engine.baselines import MIN_DAYS, WINDOW_DAYS
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
    label,
    lexical_order,
    positions,
    require_columns,
    starts,
    text,
    tidy_daily,
    user_ids,
    whole,
)

#: Percent, so that sums are exact.
WEIGHTS = {"stress": 25, "sleep": 30, "heart_rate": 20, "load": 25}
MIN_PRESENT_WEIGHT = 55
METHODS = ("calibrated", "seed")
METRICS = (
    "heart_rate_variability",
    "resting_heart_rate",
    "sleep_duration",
    "sleep_efficiency",
    "stress_score",
)

TARGET_SLEEP_HOURS = 8.0
PLATEAU_HOURS = (7.0, 9.0)
#: What the parts of a night weigh.
SLEEP_SHARES = {"duration": 0.70, "regularity": 0.15, "efficiency": 0.15}
REGULARITY_NIGHTS = 28
MIN_REGULARITY_NIGHTS = 7
REGULARITY_SPREAD_MINUTES = (30.0, 60.0)
NIGHT_COLUMNS = ("user_id", "local_date", "midpoint_minute")
MAX_Z = 4.0
ORDINARY_DAY = 0.67
#: 90th percentile of the standard normal distribution: half of an 80 % range in standard deviations.
Z_80 = 1.2815515655446004
MEDIAN_MAD_INEFFICIENCY = 1.25
LOAD_SPREAD = 0.25
MIN_CHRONIC_LOAD = 1.0
CHRONIC_LOAD_FLOOR = 100.0
MAX_MISSING_LOAD_DAYS = 7

BASELINE_COLUMNS = (
    "user_id",
    "local_date",
    "metric_type",
    "source",
    "baseline_center",
    "baseline_scale",
    "center_value",
    "n_days",
    "transform",
)
LOAD_COLUMNS = ("user_id", "local_date", "acute_load", "chronic_load", "days_of_history", "missing_days")
_TITLES = {"stress": "stress", "sleep": "sleep", "heart_rate": "resting heart rate", "load": "training load"}


@dataclass(frozen=True, slots=True)
class _Measured:
    """One metric a user and day, NaN where absent, with the baseline of the same source."""

    value: FloatArray
    z: FloatArray
    usual: FloatArray
    scale: FloatArray
    n: FloatArray


@dataclass(frozen=True, slots=True)
class _Inputs:
    user_id: IntArray
    day: IntArray
    measured: dict[str, _Measured]
    #: Deviation of the middle of the sleep in the bad direction, NaN where unknown, and the nights behind it.
    regularity_z: FloatArray
    regularity_nights: FloatArray
    #: (acute - chronic) / chronic of the evening before, NaN where there is no load component.
    excess_load: FloatArray
    load_history: FloatArray


@dataclass(frozen=True, slots=True)
class _Component:
    """Marks 0-100 and the 80 % range of each, NaN where absent; `n` days of its baseline, NaN if none."""

    marks: FloatArray
    low: FloatArray
    high: FloatArray
    n: FloatArray


def recovery_scores(
    daily: pd.DataFrame,
    baselines: pd.DataFrame,
    loads: pd.DataFrame,
    days: DayRange,
    nights: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Recovery of every user on each of `days`, by both methods. Grain: user_id, local_date, method; sorted
    so (`calibrated` before `seed`).

    `baselines` and `loads` are the results of those functions; `baselines` for `days`, `loads` also for the day before
    the first of them. `nights` has the middle of each main sleep (user_id, local_date, minute of the local clock),
    also of the 28 days before; without it regularity is unknown. A day's value is compared with the baseline of its
    own source only.

    There is no row where the components present weigh less than 0.55, or where none of them has a baseline,
    which needs 14 days, on that day.

    Columns: `recovery_score`, `score_low`, `score_high` (80 % range), `stress_component`, `sleep_component`,
    `heart_rate_component`, `load_component` (0-100, null where absent), `weight_stress`, `weight_sleep`,
    `weight_heart_rate`, `weight_load` (as used, sum 1, absent 0), `present_weight` (before
    re-normalisation), `baseline_days` (days in the shortest baseline behind the score), `explanation`.
    """
    inputs = _inputs(daily, baselines, loads, day_range(days), nights)
    stress_words = {
        "seed": _seed_stress_words(inputs),
        "calibrated": _calibrated_stress_words(inputs),
    }
    components = {"seed": _seed(inputs), "calibrated": _calibrated(inputs)}
    result = pd.concat(
        [_scores(inputs, method, components[method], stress_words[method]) for method in METHODS],
        ignore_index=True,
    )
    return result.sort_values(["user_id", "local_date", "method"], ignore_index=True)


def _scores(
    inputs: _Inputs, method: str, components: dict[str, _Component], stress_words: TextArray
) -> pd.DataFrame:
    present = {name: ~np.isnan(component.marks) for name, component in components.items()}
    percent = np.zeros(len(inputs.day), dtype=np.int64)
    shortest = np.full(len(inputs.day), np.nan)
    for name, component in components.items():
        percent += WEIGHTS[name] * present[name]
        shortest = np.fmin(shortest, np.where(present[name], component.n, np.nan))
    scored = (percent >= MIN_PRESENT_WEIGHT) & (shortest >= MIN_DAYS)

    total = percent[scored]
    weight = {name: WEIGHTS[name] * present[name][scored] / total for name in WEIGHTS}
    score = np.zeros(len(total))
    below = {}
    above = {}
    for name, component in components.items():
        marks = component.marks[scored]
        here = present[name][scored]
        score += np.where(here, weight[name] * marks, 0.0)
        below[name] = np.where(here, weight[name] * (marks - component.low[scored]), 0.0)
        above[name] = np.where(here, weight[name] * (component.high[scored] - marks), 0.0)
    frame = {
        "user_id": inputs.user_id[scored],
        "local_date": dates(inputs.day[scored]),
        "method": text(np.full(len(total), method, dtype=object)),
        "recovery_score": np.clip(score, 0.0, 100.0),
        "score_low": np.clip(score - _together(below), 0.0, 100.0),
        "score_high": np.clip(score + _together(above), 0.0, 100.0),
        **{f"{name}_component": component.marks[scored] for name, component in components.items()},
        **{f"weight_{name}": weight[name] for name in WEIGHTS},
        "present_weight": total / 100,
        "baseline_days": shortest[scored].astype(np.int64),
        "explanation": text(_explanations(inputs, score, scored, present, stress_words)),
    }
    return pd.DataFrame(frame)


def _together(errors: dict[str, FloatArray]) -> FloatArray:
    """One half-width from those of the components: stress and heart rate move together."""
    heart = errors["stress"] + errors["heart_rate"]
    spread: FloatArray = np.sqrt(heart**2 + errors["sleep"] ** 2 + errors["load"] ** 2)
    return spread


def _seed(inputs: _Inputs) -> dict[str, _Component]:
    stress = inputs.measured["stress_score"]
    sleep = inputs.measured["sleep_duration"]
    heart = inputs.measured["resting_heart_rate"]
    stress_marks = np.clip(100.0 - stress.value, 0.0, 100.0)
    sleep_marks = np.clip(sleep.value / (TARGET_SLEEP_HOURS * 3600.0), 0.0, 1.0) * 100.0

    excess = heart.value / heart.usual - 1.0
    excess_error = Z_80 * _standard_error(heart.z, heart.n) * heart.scale / heart.usual
    load_error = Z_80 * LOAD_SPREAD * _standard_error(inputs.excess_load / LOAD_SPREAD, inputs.load_history)
    return {
        "stress": _Component(stress_marks, stress_marks, stress_marks, stress.n),
        "sleep": _Component(sleep_marks, sleep_marks, sleep_marks, sleep.n),
        "heart_rate": _linear(excess, excess_error, 500.0, heart.n),
        "load": _linear(inputs.excess_load, load_error, 100.0, np.full(len(inputs.day), np.nan)),
    }


def _linear(excess: FloatArray, error: FloatArray, slope: float, n: FloatArray) -> _Component:
    """50 at no excess over the usual, falling by `slope` a unit of it, within 0 and 100."""

    def marks(over: FloatArray) -> FloatArray:
        return np.clip(50.0 - slope * over, 0.0, 100.0)

    return _Component(marks(excess), marks(excess + error), marks(excess - error), n)


def _calibrated(inputs: _Inputs) -> dict[str, _Component]:
    stress, variability = inputs.measured["stress_score"], inputs.measured["heart_rate_variability"]
    heart = inputs.measured["resting_heart_rate"]
    by_vendor = _has_vendor_stress(inputs)
    stress_z = np.where(by_vendor, stress.z, -variability.z)
    stress_n = np.where(by_vendor, stress.n, variability.n)
    load_z = np.clip(inputs.excess_load / LOAD_SPREAD, -MAX_Z, MAX_Z)
    load_error = _standard_error(load_z, inputs.load_history)
    nothing = np.full(len(inputs.day), np.nan)
    return {
        "stress": _component(stress_z, _standard_error(stress_z, stress_n), stress_n),
        "sleep": _sleep(inputs),
        "heart_rate": _component(heart.z, _standard_error(heart.z, heart.n), heart.n),
        "load": _component(
            np.where(load_z < -1.0, -1.0 + 0.25 * (-1.0 - load_z), load_z), load_error, nothing
        ),
    }


def _sleep(inputs: _Inputs) -> _Component:
    duration, efficiency = inputs.measured["sleep_duration"], inputs.measured["sleep_efficiency"]
    hours = duration.value / 3600.0
    short = np.maximum(PLATEAU_HOURS[0] - hours, 0.0)
    over = np.maximum(hours - PLATEAU_HOURS[1], 0.0)
    deviations = {
        "duration": np.minimum(short + 0.5 * over, MAX_Z),
        "regularity": inputs.regularity_z,
        "efficiency": -efficiency.z,
    }
    # Marks for duration are the same for everybody: only the others have something usual to be wrong about.
    errors = {
        "duration": np.zeros(len(hours)),
        "regularity": _standard_error(inputs.regularity_z, inputs.regularity_nights),
        "efficiency": _standard_error(efficiency.z, efficiency.n),
    }
    z, variance, total = (np.zeros(len(hours)) for _ in range(3))
    for part, share in SLEEP_SHARES.items():
        known = ~np.isnan(deviations[part]) if part != "duration" else np.ones(len(hours), dtype=bool)
        z += np.where(known, share * deviations[part], 0.0)
        variance += np.where(known, (share * errors[part]) ** 2, 0.0)
        total += share * known
    return _component(z / total, np.sqrt(variance) / total, np.fmin(duration.n, efficiency.n))


def _regularity(
    user_id: IntArray, day: IntArray, nights: pd.DataFrame | None
) -> tuple[FloatArray, FloatArray]:
    """How far the middle of each night lies from the usual, in the bad direction, and the nights that say so."""
    nothing = np.full(len(day), np.nan)
    if nights is None or not len(nights) or not len(day):
        return nothing, nothing
    require_columns(nights, "nights", NIGHT_COLUMNS)
    whose, when = user_ids(nights, "nights"), day_numbers(nights, "nights")
    users, start = np.unique(np.concatenate([user_id, whose])), int(min(when.min(), day.min()))
    width = int(max(when.max(), day.max())) - start + 1
    angle = np.full((len(users), width), np.nan)
    angle[np.searchsorted(users, whose), when - start] = floats(nights, "midpoint_minute") * (np.pi / 720.0)
    sums = [
        np.cumsum(np.hstack([np.zeros((len(users), 1)), np.nan_to_num(part)]), axis=1)
        for part in (np.cos(angle), np.sin(angle), (~np.isnan(angle)).astype(float))
    ]
    row, at = np.searchsorted(users, user_id), day - start
    before = np.maximum(at - REGULARITY_NIGHTS, 0)
    cosine, sine, count = (part[row, at] - part[row, before] for part in sums)
    length = np.hypot(cosine, sine) / np.maximum(count, 1.0)
    spread = np.sqrt(-2.0 * np.log(np.clip(length, 1e-9, 1.0))) * (720.0 / np.pi)
    apart = np.abs((angle[row, at] - np.arctan2(sine, cosine) + np.pi) % (2 * np.pi) - np.pi) * (
        720.0 / np.pi
    )
    z = np.clip(apart / np.clip(spread, *REGULARITY_SPREAD_MINUTES) - ORDINARY_DAY, -MAX_Z, MAX_Z)
    enough = count >= MIN_REGULARITY_NIGHTS
    return np.where(enough, z, np.nan), np.where(enough, count, np.nan)


def _component(z: FloatArray, error: FloatArray, n: FloatArray) -> _Component:
    """Marks of a deviation in the bad direction with its standard error."""
    from scipy.special import ndtr

    def marks(deviation: FloatArray) -> FloatArray:
        return np.asarray(100.0 * ndtr(ORDINARY_DAY - deviation), dtype=np.float64)

    return _Component(marks(z), marks(z + Z_80 * error), marks(z - Z_80 * error), n)


def _standard_error(z: FloatArray, n: FloatArray) -> FloatArray:
    held = np.clip(z, -MAX_Z, MAX_Z)
    error: FloatArray = MEDIAN_MAD_INEFFICIENCY * np.sqrt(1.0 / n + held**2 / (2.0 * (n - 1.0)))
    return error


def _has_vendor_stress(inputs: _Inputs) -> BoolArray:
    return ~np.isnan(inputs.measured["stress_score"].z)


def _inputs(
    daily: pd.DataFrame,
    baselines: pd.DataFrame,
    loads: pd.DataFrame,
    days: tuple[int, int],
    nights: pd.DataFrame | None,
) -> _Inputs:
    start, end = days
    rows = tidy_daily(daily, METRICS)
    rows = rows.take((rows.day >= start) & (rows.day <= end))
    by_day = lexical_order(rows.user_id, rows.day)
    begins = starts(rows.user_id[by_day], rows.day[by_day])
    position = np.empty(len(by_day), dtype=np.int64)
    position[by_day] = np.cumsum(begins) - 1
    first = by_day[begins]
    user_id, day = rows.user_id[first], rows.day[first]

    require_columns(baselines, "baselines", BASELINE_COLUMNS)
    comparable = baselines["metric_type"].isin(METRICS) & baselines["source"].isin(rows.sources)
    chosen = baselines.loc[comparable.to_numpy(dtype=bool), list(BASELINE_COLUMNS)]
    left = pd.DataFrame(
        {"user_id": rows.user_id, "day": rows.day, "metric": rows.metric, "source": rows.source}
    )
    right = pd.DataFrame(
        {
            "user_id": user_ids(chosen, "baselines"),
            "day": day_numbers(chosen, "baselines"),
            "metric": positions(chosen["metric_type"], rows.metrics),
            "source": positions(chosen["source"], rows.sources),
        }
    )
    found = _find(left, right, "baselines")
    return _Inputs(
        user_id,
        day,
        {
            name: _measured(rows.metric == code, position, rows.value, found, chosen, len(first))
            for code, name in enumerate(rows.metrics)
        },
        *_regularity(user_id, day, nights),
        *_load_before(user_id, day, loads),
    )


def _measured(
    of_metric: BoolArray,
    position: IntArray,
    values: FloatArray,
    found: IntArray,
    baselines: pd.DataFrame,
    n_days: int,
) -> _Measured:
    """One metric's values and baselines laid out by user and day; `found` is -1 without a baseline."""
    value, z, usual, scale, n = (np.full(n_days, np.nan) for _ in range(5))
    value[position[of_metric]] = values[of_metric]
    based = of_metric & (found >= 0)
    at, baseline = position[based], found[based]
    logarithmic = (baselines["transform"] == "ln").to_numpy(dtype=bool)[baseline]
    transformed = values[based]
    usable = ~logarithmic | (transformed > 0)
    at, baseline, logarithmic = at[usable], baseline[usable], logarithmic[usable]
    transformed = transformed[usable]
    transformed[logarithmic] = np.log(transformed[logarithmic])
    center = floats(baselines, "baseline_center")[baseline]
    scale[at] = floats(baselines, "baseline_scale")[baseline]
    z[at] = np.clip((transformed - center) / scale[at], -MAX_Z, MAX_Z)
    usual[at] = floats(baselines, "center_value")[baseline]
    n[at] = floats(baselines, "n_days")[baseline]
    return _Measured(value, z, usual, scale, n)


def _load_before(user_id: IntArray, day: IntArray, loads: pd.DataFrame) -> tuple[FloatArray, FloatArray]:
    """Relative excess of acute over chronic load on the evening before, and the days it stands on."""
    require_columns(loads, "loads", LOAD_COLUMNS)
    found = _find(
        pd.DataFrame({"user_id": user_id, "day": day - 1}),
        pd.DataFrame({"user_id": user_ids(loads, "loads"), "day": day_numbers(loads, "loads")}),
        "loads",
    )
    acute, chronic, history, missing = (
        np.append(floats(loads, column), np.nan)[found] for column in LOAD_COLUMNS[2:]
    )
    usable = (
        (history >= MIN_DAYS) & (missing <= MAX_MISSING_LOAD_DAYS) & (chronic >= MIN_CHRONIC_LOAD)
    )  # comparisons with NaN are False
    excess = np.where(usable, (acute - chronic) / np.maximum(chronic, CHRONIC_LOAD_FLOOR), np.nan)
    return excess, np.where(usable, np.minimum(history, WINDOW_DAYS), np.nan)


def _find(left: pd.DataFrame, right: pd.DataFrame, name: str) -> IntArray:
    """Position in `right` of each row of `left`, -1 where it is not there."""
    keys = list(left.columns)
    repeated = int(right.duplicated().sum())
    if repeated:
        raise ValueError(f"{name} has {repeated} rows with the {', '.join(keys)} of another")
    right = right.assign(position=np.arange(len(right), dtype=np.int64))
    joined = left.merge(right, how="left", on=keys)
    return joined["position"].fillna(-1).to_numpy(dtype=np.int64)


def _explanations(
    inputs: _Inputs,
    score: FloatArray,
    scored: BoolArray,
    present: dict[str, BoolArray],
    stress_words: TextArray,
) -> TextArray:
    """One sentence a row: the score, what it was made from, and what was not known."""
    words = {
        "sleep": label(whole(inputs.measured["sleep_duration"].value / 60.0), _slept),
        "heart_rate": _heart_rate_words(inputs.measured["resting_heart_rate"]),
        "stress": stress_words,
        "load": label(_load_level(inputs.excess_load), _load_words),
    }
    shown = [np.where(present[name], words[name], "")[scored] for name in words]
    absent = [np.where(present[name], "", _TITLES[name])[scored] for name in words]
    unknown = [", ".join(filter(None, names)) for names in zip(*absent, strict=True)]
    sentences = [
        f"{mark:.0f}: {'; '.join(filter(None, parts))}{f' (not known: {names})' if names else ''}."
        for mark, names, *parts in zip(whole(score).tolist(), unknown, *shown, strict=True)
    ]
    return np.array(sentences, dtype=object)


def _slept(minutes: float) -> str:
    hours, rest = divmod(int(minutes), 60)
    return f"slept {hours} h {rest} min"


def _heart_rate_words(heart: _Measured) -> TextArray:
    difference = whole(heart.value - heart.usual)
    usual = np.where(np.isnan(difference), np.nan, whole(heart.usual))
    words: TextArray = label(
        difference, lambda bpm: f"resting heart rate {_off(bpm, ' bpm')} your usual "
    ) + label(usual, lambda bpm: f"{bpm:.0f}")
    return words


def _seed_stress_words(inputs: _Inputs) -> TextArray:
    return label(whole(inputs.measured["stress_score"].value), lambda score: f"stress {score:.0f} of 100")


def _calibrated_stress_words(inputs: _Inputs) -> TextArray:
    stress, variability = inputs.measured["stress_score"], inputs.measured["heart_rate_variability"]
    by_vendor = _has_vendor_stress(inputs)
    # The metric that is not used is NaN here and gives the empty string.
    difference = np.where(by_vendor, whole(stress.value - stress.usual), np.nan)
    percent = np.where(by_vendor, np.nan, whole(100.0 * (variability.value / variability.usual - 1.0)))
    words: TextArray = (
        label(difference, lambda points: f"stress {_off(points, '')} your usual ")
        + label(np.where(by_vendor, whole(stress.usual), np.nan), lambda usual: f"{usual:.0f}")
        + label(percent, lambda part: f"heart rate variability {_off(part, ' %')} your usual ")
        + label(np.where(np.isnan(percent), np.nan, whole(variability.usual)), lambda ms: f"{ms:.0f} ms")
    )
    return words


def _off(difference: float, unit: str) -> str:
    if difference == 0:
        return "at"
    return f"{abs(difference):.0f}{unit} {'above' if difference > 0 else 'under'}"


def _load_level(excess: FloatArray) -> FloatArray:
    """-1, 0 or 1: below, near or above the usual, by half a standard deviation."""
    level = np.sign(excess) * (np.abs(excess) > LOAD_SPREAD / 2)
    return level + 0.0


def _load_words(level: float) -> str:
    return f"training load {('below', 'near', 'above')[int(level) + 1]} your usual"
