"""The generic webhook: signed by Standard Webhooks, read record by record, tied to its people."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
from pathlib import Path

import orjson
import pytest
import sqlalchemy as sa
from starlette.testclient import TestClient

from health_pipeline.connections.accounts import AccountTakenError
from health_pipeline.connections.endpoints import endpoint_of
from health_pipeline.connections.vault import Vault
from health_pipeline.ingestion.announced import work_on_events
from health_pipeline.ingestion.events import settle_run
from health_pipeline.providers.base import RawDocument, WebhookRequest, Window
from health_pipeline.providers.generic import PROVIDER, events, parse, verify
from health_pipeline.raw.store import RawStore
from health_pipeline.receiver.app import create_app
from health_pipeline.runtime.connect import connect_sender
from health_pipeline.runtime.disconnect import disconnect
from health_pipeline.settings import Settings
from health_pipeline.staging.load import stage
from health_pipeline.warehouse.connection import Warehouse

SAMPLE = (Path(__file__).parents[2] / "data" / "samples" / "generic" / "records.json").read_bytes()
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
NOW = dt.datetime.fromtimestamp(1614265330, dt.UTC)


def signed(body: bytes, at: dt.datetime = NOW, identifier: str = "msg_1") -> dict[str, str]:
    timestamp = str(int(at.timestamp()))
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    proof = hmac.digest(key, f"{identifier}.{timestamp}.".encode() + body, hashlib.sha256)
    return {
        "webhook-id": identifier,
        "webhook-timestamp": timestamp,
        "webhook-signature": "v1," + base64.b64encode(proof).decode(),
    }


def request(body: bytes, headers: dict[str, str]) -> WebhookRequest:
    return WebhookRequest("POST", "/", {}, {name: (value,) for name, value in headers.items()}, body, NOW)


def test_the_signature_of_the_libraries_is_taken() -> None:
    """The values that the specification's own libraries are tested with."""
    headers = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    body = b'{"test": 2432232314}'
    assert verify(request(body, headers), [SECRET])
    assert verify(request(body, headers), ["whsec_", "other", SECRET])
    assert not verify(request(body, headers), ["whsec_", "", "whsec_%%%"])
    several = {**headers, "webhook-signature": f"v1,bm8= v2,xx {headers['webhook-signature']} v1a,yy"}
    assert verify(request(body, several), [SECRET])
    assert not verify(request(body, {**headers, "webhook-id": "msg_2"}), [SECRET])


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"user": 7}', b'{"user": ""}', b"no"])
def test_a_call_says_whose_it_is(body: bytes) -> None:
    with pytest.raises(ValueError):
        events(body)


def test_records_are_read_one_by_one() -> None:
    good = {"metric_type": "weight", "value": 70, "unit": "kg", "recorded_at": "2026-03-01T07:00:00+01:00"}
    records = [
        good,
        {**good, "value": "70"},
        {**good, "recorded_at": "2026-03-01T07:00:00"},
        {**good, "value": None},
        {name: value for name, value in good.items() if name != "unit"},
        "nothing",
        {**good, "mood": "good"},
    ]
    parsed = parse(RawDocument("record", orjson.dumps({"user": "u", "records": records}), NOW))
    assert parsed.tables["record"]["position"].to_pylist() == [0, 3, 6]
    assert parsed.tables["record"]["utc_offset_minutes"].to_pylist() == [60, 60, 60]
    assert parsed.tables["record"]["value"].to_pylist() == [70, None, 70]
    assert [(row["location"], row["field"]) for row in parsed.quarantine.to_pylist()] == [
        ("records[1]", "value"),
        ("records[2]", "recorded_at"),
        ("records[4]", "unit"),
        ("records[5]", None),
    ]
    assert parsed.notes == ("record: new field mood",)


def test_a_call_comes_to_its_person(
    settings: Settings, warehouse: Warehouse, store: RawStore, vault: Vault
) -> None:
    connect_sender(settings, warehouse, "generic", "ada", "person-4711")
    now = dt.datetime.now(dt.UTC)
    with TestClient(create_app(warehouse.engine, store, lambda _: [SECRET])) as client:
        headers = {"content-type": "application/json", **signed(SAMPLE, now)}
        assert client.post("/webhooks/generic", content=SAMPLE, headers=headers).status_code == 200
        forged = client.post("/webhooks/generic", content=SAMPLE + b" ", headers=headers)
        assert forged.status_code == 400
    day = now.date()
    report = work_on_events(warehouse, store, vault, settings, PROVIDER, day, "run")
    assert (report.claimed, report.failed) == (1, 0)
    assert stage(warehouse, store, PROVIDER, Window(day, day)).records_loaded == 8
    assert settle_run(warehouse.engine, "run").processed == 1
    with warehouse.engine.connect() as connection:
        whose = connection.execute(
            sa.text(
                "select distinct handle from staging_generic.record inner join ops.raw_objects "
                "on _raw_object_id = raw_object_id inner join ops.subjects using (subject_id) "
                "inner join ops.users using (user_id)"
            )
        ).scalars()
        assert list(whose) == ["ada"]
        consent = connection.execute(sa.text("select text from ops.connector_consent_ledger")).scalar_one()
    assert "Generic webhook" in consent
    ended = disconnect(settings, warehouse, "generic", "ada", delete_data=False, say=lambda _: None)
    assert ended.problems == []
    with TestClient(create_app(warehouse.engine, store, lambda _: [SECRET])) as client:
        body = orjson.dumps({"user": "person-4711", "records": []})
        assert client.post("/webhooks/generic", content=body, headers=signed(body, now)).is_success
    with warehouse.engine.connect() as connection:
        accounts = connection.execute(
            sa.text("select account_id from ops.webhook_events order by event_id")
        ).scalars()
        assert [account is None for account in accounts] == [False, True], "nothing is theirs any more"


def test_an_id_is_one_persons(settings: Settings, warehouse: Warehouse) -> None:
    connect_sender(settings, warehouse, "generic", "ada", "person-4711")
    with pytest.raises(AccountTakenError):
        connect_sender(settings, warehouse, "generic", "ben", "person-4711")
    with pytest.raises(ValueError, match="external-id"):
        connect_sender(settings, warehouse, "oura", "ada", "person-4711")
    with pytest.raises(ValueError, match="external-id"):
        endpoint_of(PROVIDER, settings)
