"""Timestamps as files write them, and wall-clock times to instants, a whole column at once.

Times are int64 microseconds since 1970-01-01: of the wall clock ("civil") until `localise` has given them a
UTC offset, of UTC afterwards. Nothing here reads a clock.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from health_pipeline.providers.base import UnreadableFileError

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

#: In `Times.offset` and `Instants.offset`: no offset is known.
NO_OFFSET = -32768

#: What became of a timestamp text (`Times.kind`).
MISSING, UNPARSABLE, IMPLAUSIBLE, CIVIL, INSTANT = range(5)

_SECOND = 1_000_000
_MINUTE = 60 * _SECOND
_HOUR = 60 * _MINUTE
_DAY = 24 * _HOUR
_EPOCH = dt.datetime(1970, 1, 1)

# A device with an unset clock writes the year 1; databases and Python disagree about such times.
_FIRST_YEAR, _LAST_YEAR = 1900, 2199

_TIMESTAMP = (
    r"^(?P<a>\d{1,4})(?P<mark>[-/.])(?P<b>\d{1,2})[-/.](?P<c>\d{1,4})(?:[Tt]|,? +)"
    r"(?P<h>\d{1,2}):(?P<m>\d{2})(?::(?P<s>\d{2})(?:[.,](?P<f>\d{1,9}))?)?"
    r" ?(?P<p>[AaPp])?(?:\.? ?[Mm]\.?)? ?(?P<u>UTC|GMT|[Zz])?(?:(?P<sign>[+-])(?P<zh>\d{2}):?(?P<zm>\d{2}))?$"
)
_EPOCH_SECONDS = r"^\d{9,10}(\.\d*)?$"
_EPOCH_MILLISECONDS = r"^\d{12,13}(\.\d*)?$"
_DATE = re.compile(r"(?<!\d)(\d{1,2})[-/.](\d{1,2})[-/.]\d{4}(?!\d)")


@dataclass(frozen=True, slots=True)
class Times:
    """A column of timestamp texts, read. `us` is UTC where `kind` is INSTANT, else the wall clock.

    `offset` is the minutes a row itself writes (`+02:00`), NO_OFFSET where it writes none. A wall-clock time
    with an offset is CIVIL: `us` is as written.
    """

    kind: npt.NDArray[np.int8]
    us: Ints
    offset: npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Instants:
    """UTC instants with the offset in force. `ambiguous`: the wall clock showed this time twice, or never."""

    us: Ints
    offset: npt.NDArray[np.int32]
    ambiguous: Flags


def load_zone(name: str) -> ZoneInfo:
    """The IANA zone of this name; UnreadableFileError when there is none."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise UnreadableFileError(
            f"{name!r} is not a time zone; give one as AREA/CITY, for example --timezone Europe/Berlin"
        ) from error


def strings(array: Any) -> pa.Array:
    """One chunk of strings, trimmed, with nulls as empty texts."""
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    return pc.utf8_trim_whitespace(pc.fill_null(array.cast(pa.string()), ""))


def parse_times(text: pa.Array, *, date_order: str | None = None, evidence: Sequence[str] = ()) -> Times:
    """Read timestamps: ISO 8601 (also with a blank, a one-digit hour or no seconds), day and month first with
    or without AM/PM, epoch seconds (9-10 digits) and milliseconds (12-13 digits).

    Whether `05-12-2019` is May or December is decided once for the whole column: by `date_order` (`dmy` or
    `mdy`), else by a part above 12, by `evidence` (other texts of the file with dates in them), by a dot as
    separator, or by the steps between readings. UnreadableFileError if none of these decides.
    """
    if date_order not in (None, "dmy", "mdy"):
        raise UnreadableFileError(f"date_order is {date_order!r}; it must be dmy or mdy")
    if (uniform := _uniform_times(text)) is not None:
        return uniform
    text = strings(text)
    found = pc.extract_regex(text, _TIMESTAMP)
    part = {name.name: found.field(i) for i, name in enumerate(found.type)}
    matched = _flags(pc.is_valid(found))
    kind = np.where(_flags(pc.equal(text, "")), MISSING, UNPARSABLE).astype(np.int8)
    us = np.zeros(len(text), dtype=np.int64)
    offset = np.full(len(text), NO_OFFSET, dtype=np.int32)

    time_of_day, time_valid = _time_of_day(part)
    first, second, third = (_ints(part[name]) for name in "abc")
    lengths = [_ints(pc.utf8_length(part[name])) for name in "ac"]
    year_first = (lengths[0] == 4) & (lengths[1] <= 2)
    year_last = (lengths[1] == 4) & (lengths[0] <= 2)
    day, month = third, second
    if (rows := np.flatnonzero(matched & year_last)).size:
        dotted = part["mark"][int(rows[0])].as_py() == "."
        order = date_order or _decide_date_order(
            first[rows], second[rows], third[rows], time_of_day[rows], evidence, dotted=dotted
        )
        day = np.where(year_last, first if order == "dmy" else second, day)
        month = np.where(year_last, second if order == "dmy" else first, month)
    year = np.where(year_last, third, first)
    days, date_valid = _days(year, month, day)
    good = matched & time_valid & date_valid & (year_first | year_last)
    us[good] = days[good] * _DAY + time_of_day[good]
    plausible = (year >= _FIRST_YEAR) & (year <= _LAST_YEAR)
    kind[good] = np.where(plausible[good], CIVIL, IMPLAUSIBLE)
    _read_offsets(part, kind, offset)
    _read_epochs(text, kind, us)
    return Times(kind, us, offset)


def _uniform_times(text: pa.Array) -> Times | None:
    """A column that is ISO 8601 throughout, of years in range, and all in UTC (`Z`) or all without an offset.

    None for any other: Arrow reads these, which most files have, at a tenth of the cost.
    """
    if not pa.types.is_string(text.type) or text.null_count:
        return None
    in_utc = _flags(pc.ends_with(text, "Z"))
    utc = bool(in_utc.all())
    # Shorter ones, which Arrow takes too, have no minutes.
    shortest = len("2026-01-31T06:30") + utc
    if not len(text) or in_utc.any() != utc or pc.min(pc.binary_length(text)).as_py() < shortest:
        return None
    try:
        read = text.cast(pa.timestamp("us", "UTC" if utc else None))
    except pa.ArrowInvalid:
        return None
    years = pc.min_max(pc.year(read)).as_py()
    if years["min"] < _FIRST_YEAR or years["max"] > _LAST_YEAR:
        return None
    kind = np.full(len(text), INSTANT if utc else CIVIL, dtype=np.int8)
    offset = np.full(len(text), NO_OFFSET, dtype=np.int32)
    return Times(kind, _ints(read), offset)


def localise(
    civil: Ints,
    zone: ZoneInfo,
    *,
    group: Ints | None = None,
    clock: npt.NDArray[np.float64] | None = None,
) -> Instants:
    """Wall-clock times to UTC.

    A time of the repeated hour is told by `clock` (seconds of a clock that no time zone moves, NaN where
    there is none; comparable within a `group`, a device), else by the order of the rows of its group: the
    run before the clock falls back is in summer time, the run after it in standard time. A time the clock
    skipped is read with the offset before the gap, so 02:30 becomes 03:30. Both are flagged.
    """

    def both(moment: dt.datetime) -> tuple[int, int]:
        return _seconds(moment, zone, 0), _seconds(moment, zone, 1)

    early, late = _offsets(civil, both)
    repeated = early > late
    skipped = early < late
    second_pass = np.zeros(len(civil), dtype=np.bool_)
    if repeated.any():
        groups = np.zeros(len(civil), dtype=np.int64) if group is None else group
        second_pass = _second_pass_by_order(civil, (early - late) * _SECOND, groups)
        if clock is not None:
            _second_pass_by_clock(civil, early, late, repeated, groups, clock, second_pass)
    used = np.where(repeated & second_pass, late, early)
    in_force = np.where(skipped, late, used)
    return Instants(civil - used * _SECOND, _minutes(in_force), repeated | skipped)


def offsets_at(us: Ints, zone: ZoneInfo) -> npt.NDArray[np.int32]:
    """Minutes east of UTC that a zone's clocks were at these UTC instants."""

    def at(moment: dt.datetime) -> tuple[int, int]:
        offset = moment.replace(tzinfo=dt.UTC).astimezone(zone).utcoffset()
        seconds = round(offset.total_seconds()) if offset else 0
        return seconds, seconds

    return _minutes(_offsets(us, at)[0])


def _flags(array: Any) -> Flags:
    return np.asarray(pc.fill_null(array, False).to_numpy(zero_copy_only=False), dtype=np.bool_)


def _ints(array: Any) -> Ints:
    if pa.types.is_string(array.type):
        array = pc.if_else(pc.equal(array, ""), "0", array)
    return np.asarray(array.cast(pa.int64()).to_numpy(zero_copy_only=False), dtype=np.int64)


def _minutes(seconds: Ints) -> npt.NDArray[np.int32]:
    return np.rint(seconds / 60).astype(np.int32)


def _time_of_day(part: dict[str, Any]) -> tuple[Ints, Flags]:
    hour, minute, second = (_ints(part[name]) for name in "hms")
    fraction = pc.utf8_slice_codeunits(pc.utf8_rpad(part["f"], 6, "0"), 0, 6)
    valid = (minute < 60) & (second < 60)
    half = _flags(pc.not_equal(part["p"], ""))
    if half.any():
        afternoon = _flags(pc.equal(pc.utf8_lower(part["p"]), "p"))
        valid &= np.where(half, (hour >= 1) & (hour <= 12), hour < 24)
        hour = np.where(half, hour % 12 + np.where(afternoon, 12, 0), hour)
    else:
        valid &= hour < 24
    return ((hour * 60 + minute) * 60 + second) * _SECOND + _ints(fraction), valid


def _days(year: Ints, month: Ints, day: Ints) -> tuple[Ints, Flags]:
    """Days since 1970 of calendar dates, and whether the calendar has them."""
    valid = (month >= 1) & (month <= 12) & (day >= 1) & (year >= 1)
    months = np.where(valid, (year - 1970) * 12 + month - 1, 0)
    first = months.astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)
    after = (months + 1).astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)
    return first + day - 1, valid & (day <= after - first)


def _read_offsets(part: dict[str, Any], kind: npt.NDArray[np.int8], offset: npt.NDArray[np.int32]) -> None:
    signed = _flags(pc.not_equal(part["sign"], "")) & (kind == CIVIL)
    kind[_flags(pc.not_equal(part["u"], "")) & ~signed & (kind == CIVIL)] = INSTANT
    if not signed.any():
        return
    hours, minutes = _ints(part["zh"]), _ints(part["zm"])
    total = (hours * 60 + minutes) * np.where(_flags(pc.equal(part["sign"], "-")), -1, 1)
    real = (minutes < 60) & (np.abs(total) <= 14 * 60)
    kind[signed & ~real] = UNPARSABLE
    signed &= real
    # +00:00 says where the wearer was only if the file writes other offsets too: most often it is a UTC dump.
    if (total[signed] != 0).any():
        offset[signed] = total[signed]
    else:
        kind[signed] = INSTANT


def _read_epochs(text: pa.Array, kind: npt.NDArray[np.int8], us: Ints) -> None:
    if not (kind == UNPARSABLE).any():
        return
    for pattern, scale in ((_EPOCH_SECONDS, _SECOND), (_EPOCH_MILLISECONDS, 1000)):
        rows = np.flatnonzero(_flags(pc.match_substring_regex(text, pattern)) & (kind == UNPARSABLE))
        if rows.size:
            numbers = np.asarray(text.take(pa.array(rows)).cast(pa.float64()), dtype=np.float64)
            us[rows] = np.rint(numbers * scale).astype(np.int64)
            kind[rows] = INSTANT


def _decide_date_order(
    first: Ints, second: Ints, year: Ints, time_of_day: Ints, evidence: Sequence[str], *, dotted: bool
) -> str:
    days_dmy, valid_dmy = _days(year, second, first)
    days_mdy, valid_mdy = _days(year, first, second)
    votes = int((valid_dmy & ~valid_mdy).sum()), int((valid_mdy & ~valid_dmy).sum())
    if votes[0] and votes[1] and min(votes) * 10 > max(votes):
        raise UnreadableFileError(
            f"{votes[0]} dates can only be day-month-year and {votes[1]} only month-day-year; this looks "
            "like two files joined, upload them apart or say which with --date-order dmy or --date-order mdy"
        )
    if votes[0] != votes[1]:
        return "dmy" if votes[0] > votes[1] else "mdy"
    for one, other in _DATE.findall(" ".join(evidence)):
        if int(one) > 12 >= int(other):
            return "dmy"
        if int(other) > 12 >= int(one):
            return "mdy"
    if dotted:
        return "dmy"
    both = valid_dmy & valid_mdy
    changes = np.flatnonzero((np.diff(first[both]) != 0) | (np.diff(second[both]) != 0))
    steps = [np.diff(days[both] * _DAY + time_of_day[both])[changes] for days in (days_dmy, days_mdy)]
    joins = [_joins_days(step) for step in steps]
    if joins[0] != joins[1]:
        return "dmy" if joins[0] else "mdy"
    raise UnreadableFileError(
        "every date in this file can be read as day-month-year or as month-day-year (no part is above 12); "
        "upload it again with --date-order dmy or --date-order mdy"
    )


def _joins_days(steps: Ints) -> bool:
    """Whether the steps from one date to the next are those of readings that run through midnight."""
    near = np.abs(steps) <= _HOUR
    same_way = max((steps > 0).sum(), (steps < 0).sum()) >= 0.9 * len(steps)
    return bool(len(steps) and near.any() and same_way)


def _seconds(moment: dt.datetime, zone: ZoneInfo, fold: int) -> int:
    offset = moment.replace(tzinfo=zone, fold=fold).utcoffset()
    return round(offset.total_seconds()) if offset else 0


def _offsets(us: Ints, at: Callable[[dt.datetime], tuple[int, int]]) -> tuple[Ints, Ints]:
    """`at` of every time. It is called twice for each day, and for each minute only of a day that changes."""
    if not len(us):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    # As `np.unique` does, without sorting: there are few days, however many times.
    day = us // _DAY
    since_first = day - day.min()
    has_times = np.zeros(int(since_first.max()) + 1, dtype=np.bool_)
    has_times[since_first] = True
    days = np.flatnonzero(has_times) + day.min()
    of_row = (np.cumsum(has_times) - 1)[since_first]
    ends = [
        (*at(_EPOCH + dt.timedelta(days=int(day))), *at(_EPOCH + dt.timedelta(days=int(day) + 1)))
        for day in days
    ]
    table = np.array(ends, dtype=np.int64).reshape(-1, 4)
    early = table[of_row, 0]
    late = early.copy()
    changing = np.flatnonzero((table.min(axis=1) != table.max(axis=1))[of_row])
    if changing.size:
        minutes, of_change = np.unique(us[changing] // _SECOND, return_inverse=True)
        exact = np.array([at(_EPOCH + dt.timedelta(seconds=int(m))) for m in minutes], dtype=np.int64)
        early[changing], late[changing] = exact[of_change, 0], exact[of_change, 1]
    return early, late


def _second_pass_by_order(civil: Ints, shift: Ints, group: Ints) -> Flags:
    """Which rows of repeated hours come after the clock fell back, by the order of rows in each group.

    `shift` is how far the clock falls back. A step back of half of it or more is the clock's; a smaller one
    is a row out of order. Where the hour was recorded once only, it is the second pass if it runs on into the
    readings after it and does not join those before.
    """
    second = np.zeros(len(civil), dtype=np.bool_)
    repeated = shift > 0
    for one in np.unique(group[repeated]):
        rows = np.flatnonzero(group == one)
        steps = np.diff(civil[rows])
        if (steps < 0).sum() > (steps > 0).sum():
            rows = rows[::-1]
        times = civil[rows]
        inside = repeated[rows]
        starts = np.flatnonzero(inside & ~np.r_[False, inside[:-1]])
        ends = np.flatnonzero(inside & ~np.r_[inside[1:], False])
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            back = np.flatnonzero(np.diff(times[start : end + 1]) <= -shift[rows[start]] // 2)
            if back.size:
                second[rows[start + int(back[0]) + 1 : end + 1]] = True
                continue
            joins_before = start > 0 and 0 <= times[start] - times[start - 1] <= _HOUR // 2
            joins_after = end + 1 < len(times) and 0 <= times[end + 1] - times[end] <= _HOUR // 2
            if joins_after and not joins_before:
                second[rows[start : end + 1]] = True
    return second


def _second_pass_by_clock(
    civil: Ints,
    early: Ints,
    late: Ints,
    repeated: Flags,
    group: Ints,
    clock: npt.NDArray[np.float64],
    second: Flags,
) -> None:
    """Replace the verdict for rows with a clock: the pass that agrees with the nearest sure row's clock."""
    known = np.isfinite(clock)
    for one in np.unique(group[repeated & known]):
        sure = np.flatnonzero((group == one) & known & ~repeated)
        unsure = np.flatnonzero((group == one) & known & repeated)
        if not sure.size:
            continue
        sure = sure[np.argsort(clock[sure], kind="stable")]
        right = np.clip(np.searchsorted(clock[sure], clock[unsure]), 1, max(len(sure) - 1, 1))
        right = np.minimum(right, len(sure) - 1)
        left = np.maximum(right - 1, 0)
        nearer_left = np.abs(clock[unsure] - clock[sure[left]]) <= np.abs(clock[sure[right]] - clock[unsure])
        reference = sure[np.where(nearer_left, left, right)]
        expected = (
            civil[reference] - early[reference] * _SECOND + (clock[unsure] - clock[reference]) * _SECOND
        )
        misses = [np.abs(civil[unsure] - pass_[unsure] * _SECOND - expected) for pass_ in (early, late)]
        second[unsure] = misses[1] < misses[0]
