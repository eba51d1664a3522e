"""What the engine's functions share: reading their input frames, and days as whole numbers."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
#: Text; missing is None.
TextArray = npt.NDArray[np.object_]

#: First and last local day, both included.
DayRange = tuple[dt.date, dt.date]

DAILY_COLUMNS = ("user_id", "local_date", "metric_type", "value", "source")
_EPOCH_ORDINAL = dt.date(1970, 1, 1).toordinal()


@dataclass(frozen=True, slots=True)
class DailyRows:
    """`daily` as arrays, sorted by user, metric and day, one row each; only finite values.

    `metric` and `source` are positions in `metrics` and `sources`, which are sorted by name; `day` counts
    from 1970-01-01.
    """

    user_id: IntArray
    metric: IntArray
    day: IntArray
    source: IntArray
    value: FloatArray
    metrics: tuple[str, ...]
    sources: tuple[str, ...]

    def take(self, rows: BoolArray | IntArray) -> DailyRows:
        """The rows chosen by a mask or by positions."""
        return DailyRows(
            self.user_id[rows],
            self.metric[rows],
            self.day[rows],
            self.source[rows],
            self.value[rows],
            self.metrics,
            self.sources,
        )


def require_columns(frame: pd.DataFrame, name: str, columns: Iterable[str]) -> None:
    """Raise `ValueError` naming the columns that `frame` lacks."""
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise ValueError(f"{name} lacks {', '.join(missing)}; it has {', '.join(map(str, frame.columns))}")


def day_number(day: dt.date) -> int:
    """Days since 1970-01-01."""
    return day.toordinal() - _EPOCH_ORDINAL


def day_range(days: DayRange) -> tuple[int, int]:
    """Both ends as day numbers. Raises `ValueError` where the range ends before it starts."""
    start, end = day_number(days[0]), day_number(days[1])
    if end < start:
        raise ValueError(f"the range of days ends ({days[1]}) before it starts ({days[0]})")
    return start, end


def day_numbers(frame: pd.DataFrame, name: str, column: str = "local_date") -> IntArray:
    """A column of local days as days since 1970-01-01.

    Raises `ValueError` where a day is null, has a time zone or a time of day: an instant taken for a local
    day would move what happened near midnight to the wrong day.
    """
    dates = frame[column]
    if dates.dtype.kind != "M":
        dates = pd.to_datetime(dates)
    if isinstance(dates.dtype, pd.DatetimeTZDtype):
        raise ValueError(f"{name}.{column} has a time zone; it must hold local days, without one")
    values = dates.to_numpy()
    days = values.astype("datetime64[D]")
    if np.isnat(days).any():
        raise ValueError(f"{name}.{column} is null in {int(np.isnat(days).sum())} rows")
    if (days != values).any():
        raise ValueError(f"{name}.{column} has a time of day in {int((days != values).sum())} rows")
    return days.astype(np.int64)


def dates(days: IntArray) -> npt.NDArray[np.datetime64]:
    """Day numbers as dates of microsecond resolution, whatever the resolution of the input."""
    return days.astype("datetime64[D]").astype("datetime64[us]")


def floats(frame: pd.DataFrame, column: str) -> FloatArray:
    """A column as floats, null as NaN."""
    return np.asarray(frame[column].to_numpy(dtype="float64", na_value=np.nan), dtype=np.float64)


def user_ids(frame: pd.DataFrame, name: str) -> IntArray:
    """The user_id column. Raises `ValueError` where it is null."""
    nulls = int(frame["user_id"].isna().sum())
    if nulls:
        raise ValueError(f"{name}.user_id is null in {nulls} rows")
    return np.asarray(frame["user_id"].to_numpy(dtype="int64"), dtype=np.int64)


def tidy_daily(daily: pd.DataFrame, metrics: Iterable[str]) -> DailyRows:
    """The rows of `metrics`, checked and sorted. Raises `ValueError` as the package's docstring says."""
    require_columns(daily, "daily", DAILY_COLUMNS)
    names = tuple(sorted(metrics))
    metric = positions(daily["metric_type"], names)
    keep = (metric >= 0) & np.isfinite(floats(daily, "value"))
    chosen = daily.loc[keep, list(DAILY_COLUMNS)]
    metric = metric[keep]
    user = user_ids(chosen, "daily")
    day = day_numbers(chosen, "daily")
    sources = _sorted_categories(chosen["source"])
    if (sources.codes < 0).any():
        raise ValueError(f"daily.source is null in {int((sources.codes < 0).sum())} rows")
    order = lexical_order(user, metric, day)
    rows = DailyRows(
        user[order],
        metric[order],
        day[order],
        sources.codes.astype(np.int64)[order],
        # Adding zero turns -0.0 into 0.0, which sort and print alike.
        floats(chosen, "value")[order] + 0.0,
        names,
        tuple(str(name) for name in sources.categories),
    )
    again = np.zeros(len(order), dtype=bool)
    again[1:] = ~starts(rows.user_id, rows.metric, rows.day)[1:]
    differs = np.zeros_like(again)
    differs[1:] = (rows.value[1:] != rows.value[:-1]) | (rows.source[1:] != rows.source[:-1])
    conflicts = again & differs
    if conflicts.any():
        named = sorted({names[code] for code in np.unique(rows.metric[conflicts])})
        raise ValueError(
            f"daily has {int(conflicts.sum())} rows that contradict another of the same user, day and metric "
            f"({', '.join(named)}); elect one source a day first"
        )
    return rows.take(~again) if again.any() else rows


def _sorted_categories(words: pd.Series) -> pd.Categorical:
    """The words as positions among those that there are, sorted by name."""
    if isinstance(words.dtype, pd.CategoricalDtype):
        used = words.cat.remove_unused_categories().cat
        return pd.Categorical(used.set_categories(sorted(used.categories)))
    return pd.Categorical(words)


def lexical_order(*keys: IntArray) -> IntArray:
    """Positions that sort by the first key, then the next; rows equal in all keep their order."""
    combined = np.zeros(len(keys[0]), dtype=np.int64)
    width = 1
    for key in keys:
        ranks, codes = _codes(key)
        width *= max(ranks, 1)
        if width > np.iinfo(np.int64).max:  # too many combinations for one integer
            return np.lexsort(keys[::-1]).astype(np.int64)
        combined = combined * max(ranks, 1) + codes
    return np.argsort(combined, kind="stable").astype(np.int64)


def _codes(key: IntArray) -> tuple[int, IntArray]:
    """How many values a key may take, and its values as numbers from 0 in the same order."""
    if not len(key):
        return 0, key
    low, high = int(key.min()), int(key.max())
    if high - low < 1 << 20:
        return high - low + 1, key - low
    unique, inverse = np.unique(key, return_inverse=True)
    return len(unique), inverse.astype(np.int64)


def starts(*keys: IntArray) -> BoolArray:
    """True where a sorted row begins a new combination of the keys."""
    first = np.ones(len(keys[0]), dtype=bool)
    if len(first) > 1:
        first[1:] = np.logical_or.reduce([key[1:] != key[:-1] for key in keys])
    return first


def positions(words: pd.Series, names: Sequence[str]) -> IntArray:
    """Where each word stands in `names`, -1 for others and null. The reverse of `names_of`."""
    known = pd.Index(list(names), dtype=object)
    if isinstance(words.dtype, pd.CategoricalDtype):
        places = known.get_indexer(pd.Index(words.cat.categories, dtype=object)).astype(np.int64)
        return np.append(places, -1)[words.cat.codes.to_numpy()]
    return known.get_indexer(pd.Index(words, dtype=object)).astype(np.int64)


def names_of(names: Sequence[str], codes: IntArray) -> TextArray:
    """The name at each position, None at -1."""
    return np.array([*names, None], dtype=object)[codes]


def label(values: FloatArray, words: Callable[[Any], str]) -> TextArray:
    """`words` of each value, called once a distinct value; the empty string where the value is NaN."""
    text = np.full(len(values), "", dtype=object)
    known = ~np.isnan(values)
    distinct, inverse = np.unique(values[known], return_inverse=True)
    text[known] = np.array([words(value) for value in distinct.tolist()], dtype=object)[inverse]
    return text


def text(words: TextArray) -> pd.Series:
    """A column of text whose type does not depend on what is in it, nor on the version of pandas."""
    return pd.Series(words, dtype=pd.StringDtype("pyarrow", na_value=np.nan))


def whole(values: FloatArray) -> FloatArray:
    """Rounded to whole numbers, never -0."""
    return np.rint(values) + 0.0
