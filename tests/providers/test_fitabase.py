"""Fitabase: one person of a file of many, dates of a whole file, totals against pandas."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path

import pandas as pd
import pytest

from health_pipeline.providers import fitabase
from health_pipeline.providers.base import Parsed, RawDocument, UnreadableFileError
from health_pipeline.providers.registry import recognise

SHARED = Path(os.environ.get("HEALTH_PIPELINE_SHARED", Path(__file__).parents[3] / "shared"))
EXPORT = SHARED / "data" / "fitbit_fitabase"
RECEIVED_AT = dt.datetime(2026, 11, 21, 6, tzinfo=dt.UTC)
needs_export = pytest.mark.skipif(not EXPORT.is_dir(), reason=f"no recorded export at {EXPORT}")


def parse(content: bytes | str, zone: str | None = "America/New_York", **context: str) -> Parsed:
    content = content.encode() if isinstance(content, str) else content
    parsed = fitabase.parse(RawDocument("measurement", content, RECEIVED_AT, zone, context))
    assert parsed.records_in == parsed.records_loaded + parsed.quarantine.num_rows + sum(
        parsed.skipped.values()
    )
    parsed.tables["measurement"].validate(full=True)
    return parsed


#: File, its day, how that is written, its columns by resource.
REAL = [
    (
        "dailyActivity_merged",
        "ActivityDate",
        "%m/%d/%Y",
        {"steps": "TotalSteps", "distance": "TotalDistance", "calories": "Calories"},
    ),
    ("hourlySteps_merged", "ActivityDate", "%d/%m/%Y", {"steps": "StepTotal"}),
    ("hourlyCalories_merged", "ActivityDate", "%d/%m/%Y", {"calories": "Calories"}),
    (
        "sleepDay_merged",
        "SleepDay",
        "%m/%d/%Y",
        {"asleep_minutes": "TotalMinutesAsleep", "in_bed_minutes": "TotalTimeInBed"},
    ),
    ("weightLogInfo_merged", "Date", "%m/%d/%Y", {"weight": "WeightKg", "body_mass_index": "BMI"}),
]


@needs_export
@pytest.mark.parametrize(("file", "day", "written", "columns"), REAL, ids=[row[0] for row in REAL])
def test_totals_of_everybody_and_every_day_are_those_of_pandas(
    file: str, day: str, written: str, columns: dict[str, str]
) -> None:
    content = (EXPORT / f"{file}.csv").read_bytes()
    assert recognise(content[:65536]).name == "fitabase"
    frame = pd.read_csv(EXPORT / f"{file}.csv", dtype={"Id": str}).drop_duplicates()
    if "SedentaryMinutes" in frame:
        frame = frame[~((frame["TotalSteps"] == 0) & (frame["SedentaryMinutes"] == 1440))]
    frame["date"] = pd.to_datetime(frame[day].str.split(" ").str[0], format=written).dt.date
    compared = 0
    for person, own in frame.groupby("Id"):
        parsed = parse(content, participant=str(person))
        assert (parsed.quarantine.num_rows, parsed.records_loaded) == (0, len(own))
        found = parsed.tables["measurement"].to_pandas()
        for resource, column in columns.items():
            expected = own.groupby("date")[column].sum()
            sums = found[found["resource"] == resource].groupby("date")["value"].sum()
            pd.testing.assert_series_equal(sums, expected, check_names=False, check_dtype=False, rtol=1e-12)
            compared += len(sums)
    assert compared > 20


@needs_export
def test_the_export_itself_says_that_the_month_is_first_where_no_date_can() -> None:
    content = (EXPORT / "heartrate_seconds_sample.csv").read_bytes()
    parsed = parse(content)
    frame = pd.read_csv(EXPORT / "heartrate_seconds_sample.csv")
    times = pd.to_datetime(frame["Time"], format="%m/%d/%Y %I:%M:%S %p")
    assert parsed.records_loaded == len(frame.drop_duplicates())
    table = parsed.tables["measurement"]
    assert set(table["date"].to_pylist()) == set(times.dt.date)
    assert table["ended_at"].null_count == table.num_rows
    other = parse(content, date_order="dmy")
    assert {day.day for day in other.tables["measurement"]["date"].to_pylist()} == set(times.dt.month)


HEADER = "Id,ActivityDate,TotalSteps,TotalDistance,SedentaryMinutes,Calories\n"


def test_whose_rows_count_has_to_be_clear() -> None:
    content = HEADER + "1,4/13/2016,10,0.5,700,1900\n2,4/13/2016,20,1,700,2000\n"
    with pytest.raises(UnreadableFileError, match="rows of 2 people"):
        parse(content)
    with pytest.raises(UnreadableFileError, match="no rows of the participant"):
        parse(content, participant="3")
    parsed = parse(content, participant="2")
    assert (parsed.records_loaded, parsed.skipped) == (1, {"another_person": 1})
    values = dict(
        zip(*(parsed.tables["measurement"][name].to_pylist() for name in ("resource", "value")), strict=True)
    )
    assert (values["steps"], values["calories"]) == (20, 2000)


def test_bad_rows_are_refused_and_what_was_not_worn_is_skipped() -> None:
    parsed = parse(
        HEADER
        + "1,4/13/2016,10,0.5,700,1900\n1,4/13/2016,10,0.5,700,1900\n1,4/14/2016,0,0,1440,1300\n"
        + "1,4/31/2016,10,1,700,1900\n1,4/16/2016,many,1,700,1900\n1,4/17/2016,,1,700,1900\n"
    )
    assert [(row["reason"], row["location"]) for row in parsed.quarantine.to_pylist()] == [
        ("not_a_time", "line 5"),
        ("not_a_number", "line 6"),
        ("not_a_number", "line 7"),
    ]
    assert '"id"' not in str(parsed.quarantine["original"].to_pylist())
    assert (parsed.records_loaded, parsed.skipped) == (1, {"repeated_row": 1, "not_worn": 1})


def test_dates_are_read_one_way_in_a_whole_file_and_hours_are_local() -> None:
    hours = "Id,ActivityDate,ActivityTime,StepTotal\n1,05/04/2016,00:00:00,7\n1,13/04/2016,23:00:00,8\n"
    rows = parse(hours).tables["measurement"].to_pylist()
    assert [(row["date"], row["started_at"], row["ended_at"]) for row in rows] == [
        (
            dt.date(2016, 4, 5),
            dt.datetime(2016, 4, 5, 4, tzinfo=dt.UTC),
            dt.datetime(2016, 4, 5, 5, tzinfo=dt.UTC),
        ),
        (
            dt.date(2016, 4, 13),
            dt.datetime(2016, 4, 14, 3, tzinfo=dt.UTC),
            dt.datetime(2016, 4, 14, 4, tzinfo=dt.UTC),
        ),
    ]
    with pytest.raises(UnreadableFileError, match="--date-order"):
        parse("Id,ActivityDate,ActivityTime,StepTotal\n1,05/04/2016,00:00:00,7\n")
    with pytest.raises(UnreadableFileError, match="--timezone"):
        parse(hours, zone=None)
