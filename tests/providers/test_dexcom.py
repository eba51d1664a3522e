"""Dexcom: values and times of records, damaged answers, and fetching from the sandbox over HTTP."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from health_pipeline.connections.endpoints import ProviderNotConfiguredError, endpoint_of
from health_pipeline.providers import dexcom
from health_pipeline.providers.base import Parsed, RawDocument, Window
from health_pipeline.providers.dexcom import PROVIDER
from health_pipeline.providers.http import (
    ApiClient,
    AuthorizationError,
    MalformedResponseError,
    RateLimitedError,
    RequestRejectedError,
)
from health_pipeline.sandbox.faults import Fault
from health_pipeline.sandbox.server import RunningSandbox
from health_pipeline.settings import Settings

SHARED = Path(os.environ.get("HEALTH_PIPELINE_SHARED", Path(__file__).parents[3] / "shared"))
REAL = SHARED / "data" / "dexcom_v3"
RECEIVED_AT = dt.datetime(2026, 11, 21, 6, 0, tzinfo=dt.UTC)
WINDOW = Window(dt.date(2026, 11, 18), dt.date(2026, 11, 19))

EGV = {
    "recordId": "egv-1",
    "systemTime": "2026-11-20T23:49:55Z",
    "displayTime": "2026-11-20T15:49:55-08:00",
    "value": 112,
    "status": None,
    "trend": "fortyFiveUp",
    "trendRate": 1.3,
    "unit": "mg/dL",
    "rateUnit": "mg/dL/min",
    "transmitterTicks": 91000,
    "transmitterId": "ab" * 32,
    "transmitterGeneration": "g7",
    "displayDevice": "iOS",
    "displayApp": "G7",
}
EVENT = {
    **{name: EGV[name] for name in ("systemTime", "displayTime", "transmitterId", "displayDevice")},
    "recordId": "event-1",
    "recordedSystemTime": "2026-11-20T23:52:00Z",
    "recordedDisplayTime": None,
    "eventStatus": "created",
    "eventType": "insulin",
    "eventSubType": "fastActing",
    "value": "4.5",
    "unit": "units",
}


def parse(entity: str, records: list[Any] | bytes) -> Parsed:
    envelope = {"recordType": "x", "recordVersion": "3.0", "userId": "u"}
    content = records if isinstance(records, bytes) else orjson.dumps({**envelope, "records": records})
    parsed = dexcom.parse(RawDocument(entity, content, RECEIVED_AT))
    for name, table in parsed.tables.items():
        assert table.schema == PROVIDER.entity(name).schema
        table.validate(full=True)
    return parsed


def row(entity: str, record: dict[str, Any]) -> dict[str, Any]:
    parsed = parse(entity, [record])
    assert parsed.quarantine.num_rows == 0, parsed.quarantine.to_pylist()
    (found,) = parsed.tables[entity].to_pylist()
    return found


def refusals(parsed: Parsed) -> list[tuple[str, str | None, str]]:
    return [(bad["reason"], bad["field"], bad["location"]) for bad in parsed.quarantine.to_pylist()]


# Parsing -------------------------------------------------------------------------------------------------


def test_a_sensor_value_with_its_trend_and_device() -> None:
    found = row("egvs", EGV)
    assert found["system_time"] == dt.datetime(2026, 11, 20, 23, 49, 55, tzinfo=dt.UTC)
    assert found["display_time"] == dt.datetime(2026, 11, 20, 15, 49, 55)
    assert (found["utc_offset_minutes"], found["value"], found["unit"]) == (-480, 112.0, "mg/dL")
    assert (found["trend"], found["trend_rate"], found["rate_unit"]) == ("fortyFiveUp", 1.3, "mg/dL/min")
    assert (found["transmitter_generation"], found["display_device"]) == ("g7", "iOS")


@pytest.mark.parametrize(
    ("system", "display", "offset"),
    [
        # A phone writes it.
        ("2026-11-20T12:00:00Z", "2026-11-20T17:30:00+05:30", 330),
        ("2026-11-20T12:00:00Z", "2026-11-20T12:00:00+00:00", 0),
        ("2026-11-20T12:00:00Z", "2026-11-20T12:00:00-0330", -210),
        # A receiver does not, and its clock is minutes off.
        ("2026-11-20T12:00:00", "2026-11-20T06:07:41", -360),
        ("2026-11-20T12:00:00Z", "2026-11-20T17:22:00", 330),
        ("2026-11-20T12:00:00Z", "2026-11-20T17:45:30", 345),
        ("2026-11-20T12:00:00Z", "2026-11-21T02:00:00", 840),
        # Missing seconds and one-digit parts.
        ("2026-2-3T4:05Z", "2026-02-03T9:05", 300),
        # Clocks that were never set, or no display time at all.
        ("2026-11-20T12:00:00Z", "2009-01-01T00:00:00", None),
        ("2026-11-20T12:00:00Z", "2026-11-21T09:00:00", None),
        ("2026-11-20T12:00:00Z", None, None),
    ],
)
def test_the_offset_is_the_records_own_or_the_difference_of_its_clocks(
    system: str, display: str | None, offset: int | None
) -> None:
    found = row("egvs", {**EGV, "systemTime": system, "displayTime": display})
    assert found["utc_offset_minutes"] == offset


@given(
    moment=st.datetimes(dt.datetime(2018, 1, 1), dt.datetime(2027, 1, 1)).map(
        lambda t: t.replace(microsecond=0)
    ),
    half_hours=st.integers(-24, 28),
    error=st.integers(-12 * 60, 12 * 60),
)
def test_a_receivers_offset_is_found_whatever_its_clocks_error(
    moment: dt.datetime, half_hours: int, error: int
) -> None:
    shown = moment + dt.timedelta(minutes=30 * half_hours, seconds=error)
    found = row("egvs", {**EGV, "systemTime": f"{moment.isoformat()}Z", "displayTime": shown.isoformat()})
    assert found["system_time"] == moment.replace(tzinfo=dt.UTC)
    assert found["utc_offset_minutes"] == 30 * half_hours


def test_values_of_older_devices_are_kept_beside_the_one_shown() -> None:
    found = row("egvs", {**EGV, "value": None, "smoothedValue": 110, "realtimeValue": 115})
    assert (found["value"], found["smoothed_value"], found["realtime_value"]) == (None, 110.0, 115.0)


def test_an_events_value_is_text_and_its_deletion_is_kept() -> None:
    assert row("events", EVENT)["value_text"] == "4.5"
    assert row("events", {**EVENT, "value": 30, "eventStatus": "deleted"}) | {"unit": None} == {
        **row("events", EVENT),
        "value_text": "30",
        "event_status": "deleted",
        "unit": None,
    }
    assert row("events", {**EVENT, "eventType": "notes", "value": "felt shaky"})["value_text"] == "felt shaky"


def test_the_range_of_data_is_a_row_a_kind_that_has_any() -> None:
    moment = {"systemTime": "2026-11-01T00:00:00", "displayTime": "2026-10-31T19:00:00"}
    body = {"recordType": "dataRange", "userId": "u", "calibrations": None, "events": None}
    parsed = parse("data_range", orjson.dumps({**body, "egvs": {"start": moment, "end": None}}))
    start = dt.datetime(2026, 11, 1, tzinfo=dt.UTC)
    assert parsed.tables["data_range"].to_pylist() == [
        {"kind": "egvs", "start_system_time": start, "end_system_time": None}
    ]
    assert (parsed.records_in, parsed.records_loaded, parsed.notes) == (1, 1, ())
    assert refusals(parse("data_range", orjson.dumps({**body, "egvs": 7}))) == [("wrong_type", None, "egvs")]


def test_a_bad_record_goes_alone_with_its_field_named() -> None:
    bad = [
        {**EGV, "value": "112"},
        {name: value for name, value in EGV.items() if name != "recordId"},
        {**EGV, "systemTime": "yesterday"},
        {**EGV, "displayTime": "2026-11-20T15:49:55-99:00"},
        "nothing",
    ]
    parsed = parse("egvs", [EGV, *bad, {**EGV, "recordId": "egv-2"}])
    assert parsed.tables["egvs"]["record_id"].to_pylist() == ["egv-1", "egv-2"]
    assert (parsed.records_in, parsed.records_loaded) == (7, 2)
    assert refusals(parsed) == [
        ("wrong_type", "value", "records[1]"),
        ("missing_field", "recordId", "records[2]"),
        ("wrong_type", "systemTime", "records[3]"),
        ("wrong_type", "displayTime", "records[4]"),
        ("wrong_type", None, "records[5]"),
    ]


def test_new_words_and_new_fields_are_no_fault() -> None:
    record = {**EGV, "trend": "sideways", "transmitterGeneration": "g9", "displayDevice": "watch", "mood": 1}
    parsed = parse("egvs", [record])
    assert parsed.records_loaded == 1
    assert parsed.notes == ("egvs: new field mood",)


@pytest.mark.parametrize("entity", [entity.name for entity in PROVIDER.entities])
@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"records": {}}', b'{"errors": []}'])
def test_a_body_that_is_none_is_one_refused_record(entity: str, body: bytes) -> None:
    parsed = parse(entity, body)
    assert refusals(parsed) == [("malformed_body", None, "$")]
    assert not parsed.tables


def test_no_records_is_a_good_answer() -> None:
    for entity in ("egvs", "events", "calibrations", "alerts", "devices"):
        parsed = parse(entity, [])
        assert (parsed.records_in, parsed.tables[entity].num_rows) == (0, 0)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no recorded answer at {REAL}")
def test_the_documented_answer_is_read_whole() -> None:
    parsed = parse("egvs", (REAL / "egvs_doc_example.json").read_bytes())
    (found,) = parsed.tables["egvs"].to_pylist()
    assert (parsed.records_in, parsed.records_loaded, parsed.notes) == (1, 1, ())
    assert (found["value"], found["status"], found["utc_offset_minutes"]) == (39.0, "low", -480)
    assert found["system_time"] == dt.datetime(2025, 1, 30, 23, 49, 55, tzinfo=dt.UTC)


# Fetching ------------------------------------------------------------------------------------------------


@pytest.fixture
def dana(sandbox: RunningSandbox) -> Iterator[ApiClient]:
    token = sandbox.app.state.apis["dexcom"].oauth.access_token("dana")
    with ApiClient("dexcom", f"{sandbox.url}/dexcom", lambda _: token, sleep=lambda _: None) as client:
        yield client


def test_an_answer_holds_the_days_asked_for_wherever_the_person_is(dana: ApiClient) -> None:
    (page,) = dexcom.fetch(dana, PROVIDER.entity("egvs"), WINDOW)
    times = [record["systemTime"] for record in orjson.loads(page.content)["records"]]
    assert len(times) > 700
    # From the first midnight on earth (UTC+14) to the last (UTC-12).
    assert min(times)[:15] == "2026-11-17T10:0"
    assert max(times)[:14] == "2026-11-20T11:"
    parsed = parse("egvs", page.content)
    assert parsed.records_loaded == len(times)
    assert set(parsed.tables["egvs"]["utc_offset_minutes"].to_pylist()) == {-360}


@pytest.mark.parametrize("name", [entity.name for entity in PROVIDER.entities])
def test_every_entity_is_fetched_and_read_without_a_refusal(dana: ApiClient, name: str) -> None:
    (page,) = dexcom.fetch(dana, PROVIDER.entity(name), WINDOW)
    parsed = parse(name, page.content)
    assert parsed.records_loaded > 0
    assert (parsed.quarantine.num_rows, parsed.notes) == (0, ())


def test_a_longest_window_is_within_the_vendors_limit(dana: ApiClient) -> None:
    entity = PROVIDER.entity("alerts")
    first = dt.date(2026, 9, 1)
    longest = Window(first, first + dt.timedelta(days=(entity.max_window_days or 0) - 1))
    (page,) = dexcom.fetch(dana, entity, longest)
    assert orjson.loads(page.content)["records"]
    with pytest.raises(RequestRejectedError):
        list(dexcom.fetch(dana, entity, Window(first, longest.end + dt.timedelta(days=2))))


def test_identify_gives_the_id_of_this_client(dana: ApiClient) -> None:
    account = dexcom.identify(dana)
    assert len(account.provider_user_id) == 64


def test_refusals_are_told_apart(sandbox: RunningSandbox, dana: ApiClient) -> None:
    board = sandbox.app.state.faults
    with (
        ApiClient("dexcom", f"{sandbox.url}/dexcom", lambda _: "no token") as nobody,
        pytest.raises(AuthorizationError),
    ):
        dexcom.identify(nobody)
    board.add(Fault(provider="dexcom", kind="rate_limit", path_contains="egvs", count=None))
    with pytest.raises(RateLimitedError):
        list(dexcom.fetch(dana, PROVIDER.entity("egvs"), WINDOW))
    board.clear()
    board.add(Fault(provider="dexcom", kind="malformed", path_contains="dataRange"))
    with pytest.raises(MalformedResponseError):
        dexcom.identify(dana)


# The declaration -----------------------------------------------------------------------------------------


def test_keys_are_never_null_and_no_webhook_is_promised() -> None:
    for entity in PROVIDER.entities:
        assert all(not entity.schema.field(name).nullable for name in entity.key)
    assert PROVIDER.webhook is None


def test_the_settings_choose_the_host_of_the_region(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings()
    monkeypatch.setenv("HEALTH_PIPELINE_DEXCOM_CLIENT_ID", "id")
    monkeypatch.setenv("HEALTH_PIPELINE_DEXCOM_CLIENT_SECRET", "secret")
    american = endpoint_of(PROVIDER, settings)
    assert (american.base_url, american.client_secret) == ("https://api.dexcom.com", SecretStr("secret"))
    monkeypatch.setenv("HEALTH_PIPELINE_DEXCOM_REGION", "eu")
    european = endpoint_of(PROVIDER, settings)
    assert european.oauth is not None
    assert european.base_url == "https://api.dexcom.eu"
    assert european.oauth.authorize_url == "https://api.dexcom.eu/v2/oauth2/login"
    assert european.oauth.token_url == "https://api.dexcom.eu/v2/oauth2/token"
    monkeypatch.setenv("HEALTH_PIPELINE_DEXCOM_REGION", "mars")
    with pytest.raises(ProviderNotConfiguredError, match=r"DEXCOM_REGION is 'mars'.* us, eu, jp"):
        endpoint_of(PROVIDER, settings)
