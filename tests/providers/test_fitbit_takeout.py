"""Fitbit in Google Takeout: which clock, which unit, which of two generations; nothing counted twice."""

from __future__ import annotations

import datetime as dt
import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from health_pipeline.providers import fitbit_takeout
from health_pipeline.providers.base import Parsed, RawDocument, UnreadableFileError
from health_pipeline.providers.registry import recognise
from health_pipeline.sandbox import fitbit_takeout as sandbox
from health_pipeline.sandbox.archives import pack
from health_pipeline.sandbox.people import person
from health_pipeline.sandbox.recorded import recorded

SHARED = Path(os.environ.get("HEALTH_PIPELINE_SHARED", Path(__file__).parents[3] / "shared"))
RECORDED = SHARED / "data" / "fitbit_takeout"
RECEIVED_AT = dt.datetime(2026, 11, 21, 6, tzinfo=dt.UTC)
SEEN = recorded(person("ben"), dt.date(2026, 8, 4), dt.date(2026, 8, 6))
ARCHIVE = sandbox.archive(SEEN, SEEN.dates[-1])


def parse(content: Any, zone: str | None = "Europe/Berlin") -> Parsed:
    content = content if isinstance(content, bytes) else orjson.dumps(content)
    return fitbit_takeout.parse(RawDocument("records", content, RECEIVED_AT, zone))


def rows(parsed: Parsed, metric: str) -> list[dict[str, Any]]:
    return [row for row in parsed.tables["records"].to_pylist() if row["metric_type"] == metric]


def members() -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(ARCHIVE)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.skipif(not RECORDED.is_dir(), reason=f"no recorded export at {RECORDED}")
def test_recorded_pulses_at_rest() -> None:
    content = (RECORDED / "resting_heart_rate-2023-03-02.json").read_bytes()
    assert recognise(content).name == "fitbit_takeout"
    found = rows(parse(content), "resting_heart_rate")
    assert [(row["local_date"], row["value"]) for row in found] == [
        (dt.date(2024, 2, 28), 52.26781177520752),
        (dt.date(2024, 2, 29), 53.2727746963501),
    ]


def test_every_minute_comes_once_of_two_generations_and_at_its_true_instant() -> None:
    parsed = parse(ARCHIVE)
    assert parsed.quarantine.num_rows == 0
    steps = sorted((row["recorded_at"].timestamp(), row["value"]) for row in rows(parsed, "steps"))
    assert steps == list(zip(SEEN.minutes.tolist(), SEEN.steps.tolist(), strict=True))
    pulses = sorted((row["recorded_at"].timestamp(), row["value"]) for row in rows(parsed, "heart_rate"))
    assert pulses == list(zip(SEEN.pulse_at.tolist(), SEEN.pulse.tolist(), strict=True))
    assert parsed.skipped["also_as_csv"] > 100
    nights = parsed.tables["sleep_sessions"].to_pylist()
    assert {row["local_date"]: row["sleep_seconds"] for row in nights if row["is_main_sleep"]} == (
        SEEN.asleep_by_day()
    )
    assert len(nights) == len(SEEN.nights)
    # A later export with CSV of the same nights says them anew.
    of_json = parse(sandbox.sleeps(SEEN)).tables["sleep_sessions"].to_pylist()
    assert {row["sleep_id"] for row in of_json} == {row["sleep_id"] for row in nights}


def test_the_clock_of_the_series_is_told_by_the_files_and_said() -> None:
    assert "are taken for UTC: 3 of 3 files" in parse(ARCHIVE).notes[0]
    # The same day, as somebody's files have it by the clock on the wall.
    day = sandbox.heart_rate_of_day(SEEN, SEEN.dates[0])
    local = [
        {**each, "dateTime": SEEN.local(at).strftime("%m/%d/%y %H:%M:%S")}
        for each, at in zip(day, SEEN.pulse_at.tolist(), strict=False)
    ]
    parsed = parse(local)
    assert "taken for the wall clock of Europe/Berlin" in parsed.notes[0]
    assert [row["recorded_at"].timestamp() for row in rows(parsed, "heart_rate")] == (
        SEEN.pulse_at[: len(day)].tolist()
    )


def test_steps_alone_tell_the_clock_by_the_nights() -> None:
    """Steps from 8 to 22 in Los Angeles, where that is 15 to 5 UTC."""
    first = dt.datetime(2026, 8, 4, 15, tzinfo=dt.UTC)
    times = [first + dt.timedelta(minutes=5 * number) for number in range(12 * 14)]
    entries = [{"dateTime": f"{time:%m/%d/%y %H:%M:%S}", "value": "20"} for time in times]
    name = "Takeout/Fitbit/Global Export Data/steps-2026-08-04.json"
    archive = pack({name: orjson.dumps(entries)})
    parsed = parse(archive, "America/Los_Angeles")
    assert "taken for UTC: the nights are then almost without a step" in parsed.notes[0]
    assert [row["recorded_at"] for row in rows(parsed, "steps")] == times
    assert "nothing in the file tells" in parse(archive, "UTC").notes[0]


def test_a_takeout_that_begins_with_something_long_is_recognised() -> None:
    archive = pack({"Takeout/archive_browser.html": bytes(100_000), **members()})
    assert recognise(archive[:65536]).name == "fitbit_takeout"


def test_local_times_need_a_zone() -> None:
    with pytest.raises(UnreadableFileError, match="--timezone"):
        parse(ARCHIVE, None)


@pytest.mark.parametrize(("unit", "kg"), [("lb", 0.45359237), ("kg", 1.0), ("st", 6.35029318)])
def test_weights_are_in_the_unit_that_agrees_with_the_body_mass_index(unit: str, kg: float) -> None:
    entries = [{**each, "weight": each["weight"] * 0.45359237 / kg} for each in sandbox.weights(SEEN)]
    ucum = {"lb": "[lb_av]", "kg": "kg", "st": "[stone_av]"}[unit]
    found = rows(parse(entries), "weight")
    assert {row["unit"] for row in found} == {ucum}
    assert [row["value"] * kg for row in found] == pytest.approx(
        [weighed.weight for weighed in SEEN.weighings], abs=0.05
    )
    assert [row["recorded_at"].timestamp() for row in found] == [each.instant for each in SEEN.weighings]


def test_a_weight_of_which_nothing_tells_the_unit_is_refused() -> None:
    entry = {name: value for name, value in sandbox.weights(SEEN)[0].items() if name != "bmi"}
    (row,) = parse([entry]).quarantine.to_pylist()
    assert (row["reason"], row["field"]) == ("unknown_unit", "weight")


def test_numbers_of_minutes_alone_do_not_say_what_they_are() -> None:
    with pytest.raises(UnreadableFileError, match="upload the archive"):
        parse(sandbox.steps(SEEN))


def test_bad_entries_are_refused_alone_with_their_places() -> None:
    entries: list[Any] = sandbox.heart_rate_of_day(SEEN, SEEN.dates[0])[:6]
    entries[1] = {"dateTime": "13/45/26 00:00:00", "value": {"bpm": 60, "confidence": 3}}
    entries[3] = {"dateTime": "08/04/26 01:00:00", "value": {"bpm": "sixty"}}
    parsed = parse(entries)
    assert [(row["reason"], row["location"]) for row in parsed.quarantine.to_pylist()] == [
        ("unparsable_time", "$[1]"),
        ("unparsable_value", "$[3]"),
    ]
    assert parsed.records_loaded == 4
    table = (
        b"timestamp,steps,data source\n2026-08-04T10:00:00Z,12,a\n1,2\nsoon,5,a\n2026-08-04T10:02:00Z,x,a\n"
    )
    parsed = parse(table)
    assert sorted((row["reason"], row["location"]) for row in parsed.quarantine.to_pylist()) == [
        ("unparsable_time", "$ line 4"),
        ("unparsable_value", "$ line 5"),
        ("wrong_number_of_cells", "$ line 3"),
    ]
    assert [row["value"] for row in rows(parsed, "steps")] == [12]


def test_two_devices_of_a_minute_stay_apart() -> None:
    table = b"timestamp,steps,data source\n2026-08-04T10:00:00Z,12,watch\n2026-08-04T10:00:00Z,9,phone\n"
    assert [(row["device"], row["value"]) for row in rows(parse(table), "steps")] == [
        ("watch", 12),
        ("phone", 9),
    ]


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(sorted(members())),
    st.lists(st.tuples(st.integers(0, 100_000), st.integers(0, 255)), max_size=12),
    st.integers(0, 2_000),
)
def test_damaged_files_are_read_or_refused(name: str, edits: list[tuple[int, int]], cut: int) -> None:
    found = members()
    damaged = bytearray(found[name])
    for place, byte in edits:
        damaged[place % len(damaged)] = byte
    found[name] = bytes(damaged[: len(damaged) - min(cut, len(damaged))])
    parsed = parse(pack(found))
    assert parsed.records_loaded > 0
    for table_name, table in parsed.tables.items():
        assert table.schema == fitbit_takeout.PROVIDER.entity(table_name).schema
        table.validate(full=True)
    assert np.all([row["location"] for row in parsed.quarantine.to_pylist()])
