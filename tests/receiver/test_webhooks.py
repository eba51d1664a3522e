"""Calls of providers over HTTP: verified, kept once, answered; refused before anything is read."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from calling import DAY, SIGNED_BY_SECRET, address, calls_of, connected, rows, send
from starlette.testclient import TestClient

from health_pipeline.connections.callback import path_token
from health_pipeline.connections.vault import Vault
from health_pipeline.providers.registry import get
from health_pipeline.raw.store import RawStore
from health_pipeline.receiver.app import MAX_BODY_BYTES
from health_pipeline.sandbox.routers import WebhookCall
from health_pipeline.sandbox.server import RunningSandbox
from health_pipeline.settings import Settings
from health_pipeline.warehouse.connection import Warehouse


@pytest.mark.parametrize("name", SIGNED_BY_SECRET)
def test_a_signed_call_is_kept_once_and_belongs_to_its_person(
    client: TestClient,
    settings: Settings,
    warehouse: Warehouse,
    vault: Vault,
    sandbox: RunningSandbox,
    store: RawStore,
    name: str,
) -> None:
    user_id = connected(settings, warehouse, vault, sandbox, name)
    calls = calls_of(sandbox, name)
    for _ in range(2):
        for call in calls:
            answer = send(client, name, call)
            assert answer.status_code == get(name).webhook.status, answer.text
    events = rows(
        warehouse,
        "select event_id, state, account_id is not null as known, objects.object_key, subjects.user_id, sha256 "
        "from ops.webhook_events as events inner join ops.raw_objects as objects using (raw_object_id) "
        "inner join ops.subjects using (subject_id)",
    )
    total = rows(warehouse, "select count(*) from ops.webhook_events")[0][0]
    assert len(events) == total >= len(calls) > 0
    assert {(row.state, row.known, row.user_id) for row in events} == {("pending", True, user_id)}
    kept = {store.get(row.object_key) for row in events}
    assert kept == {call.body for call in calls}
    if calls:
        again = send(client, name, calls[0], prefer="duplicate=409")
        assert (again.status_code, again.json()["error"]["code"]) == (409, "duplicate_event")


@pytest.mark.parametrize("name", SIGNED_BY_SECRET)
def test_what_comes_of_somebody_unknown_is_kept(
    client: TestClient, warehouse: Warehouse, sandbox: RunningSandbox, name: str
) -> None:
    for call in calls_of(sandbox, name):
        assert send(client, name, call).is_success
    events = rows(
        warehouse,
        "select account_id, user_id, state from ops.webhook_events inner join ops.raw_objects using (raw_object_id) "
        "inner join ops.subjects using (subject_id)",
    )
    assert events
    assert {tuple(row) for row in events} == {(None, None, "pending")}


@pytest.mark.parametrize("name", SIGNED_BY_SECRET)
def test_a_call_that_nothing_proves_leaves_nothing(
    client: TestClient, warehouse: Warehouse, sandbox: RunningSandbox, name: str
) -> None:
    webhook = get(name).webhook
    assert webhook is not None
    call = calls_of(sandbox, name)[0]
    if webhook.secret_path:
        wrong = [f"/webhooks/{name}", f"/webhooks/{name}/{path_token('guess', name)}", f"{address(name)}0"]
        answers = [client.post(url, content=call.body, headers=dict(call.headers)) for url in wrong]
        assert {answer.status_code for answer in answers} == {404}
    else:
        changed = bytearray(call.body)
        changed[len(changed) // 2] ^= 1
        forged = sandbox.app.state.apis[name].webhooks("ada", DAY, "another")[0]
        for bad in (
            WebhookCall(call.headers, bytes(changed)),
            WebhookCall(call.headers, b""),
            WebhookCall({"Content-Type": "application/json"}, call.body),
            forged,
        ):
            answer = send(client, name, bad)
            assert answer.status_code == webhook.refusal
            assert answer.json()["error"]["code"] == "invalid_signature"
    assert rows(warehouse, "select 1 from ops.webhook_events") == []
    assert rows(warehouse, "select 1 from ops.raw_objects") == []


def test_any_active_secret_will_do(client: TestClient, warehouse: Warehouse, sandbox: RunningSandbox) -> None:
    (call, *_) = sandbox.app.state.apis["oura"].webhooks("ada", DAY, "older-secret")
    assert send(client, "oura", call).is_success


def test_the_same_call_from_many_at_once_is_one_event(
    client: TestClient, warehouse: Warehouse, sandbox: RunningSandbox
) -> None:
    call = calls_of(sandbox, "whoop")[0]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: send(client, "whoop", call).status_code, range(32)))
    assert set(answers) == {200}
    assert len(rows(warehouse, "select 1 from ops.webhook_events")) == 1
    assert len(rows(warehouse, "select 1 from ops.raw_objects")) == 1


@pytest.mark.parametrize(
    ("content", "headers", "status", "code"),
    [
        (b"x" * (MAX_BODY_BYTES + 1), {"content-type": "application/json"}, 413, "too_large"),
        (
            b"{}",
            {"content-type": "application/json", "content-encoding": "gzip"},
            415,
            "unsupported_encoding",
        ),
        (b"{}", {"content-type": "image/png"}, 415, "unsupported_media_type"),
    ],
)
def test_what_is_too_large_or_of_another_kind_is_refused(
    client: TestClient, content: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    answer = client.post("/webhooks/oura", content=content, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize("name", ["dexcom", "nobody"])
def test_provider_without_webhooks_says_so(client: TestClient, name: str) -> None:
    answer = client.post(f"/webhooks/{name}", content=b"{}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_webhook")
    assert name in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "content",
    [b"not json", rb'{"object_type": "a\u0000b", "aspect_type": "create", "owner_id": 1, "object_id": 2}'],
    ids=["no json", "no text of Postgres"],
)
def test_a_body_that_cannot_be_read_is_kept_as_dead(
    client: TestClient, warehouse: Warehouse, store: RawStore, content: bytes
) -> None:
    answer = client.post(address("strava"), content=content, headers={"content-type": "application/json"})
    assert answer.is_success
    ((state, error, key),) = rows(
        warehouse,
        "select state, error, object_key from ops.webhook_events inner join ops.raw_objects using (raw_object_id)",
    )
    assert state == "dead"
    assert "cannot be read" in str(error)
    assert store.get(str(key)) == content
