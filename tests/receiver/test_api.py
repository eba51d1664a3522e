"""Tokens, sync-now, jobs and uploads over HTTP; what a person reads is tested where there is something to read."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import os
import tracemalloc
from collections.abc import Iterator
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from api_client import api_client, bearer, receiver_app, user_of
from click.testing import CliRunner
from connecting import connect
from starlette.testclient import TestClient

from health_pipeline.cli import main
from health_pipeline.connections.api_tokens import authenticate, create, revoke
from health_pipeline.connections.endpoints import Endpoint
from health_pipeline.connections.vault import Vault
from health_pipeline.defs.events import requested_jobs_sensor
from health_pipeline.ingestion import jobs
from health_pipeline.raw.store import RawStore
from health_pipeline.runtime.users import merge_users
from health_pipeline.sandbox.server import RunningSandbox
from health_pipeline.settings import Settings
from health_pipeline.warehouse.connection import Warehouse

READS = ("daily", "summary", "glucose", "sleep", "workouts", "recovery", "forecasts")
GLUCOSE = b"timestamp,glucose\n2026-03-01T08:00:00Z,100\n2026-03-01T08:05:00Z,104\n"
NAIVE = b"timestamp,glucose\n2026-03-01 08:00:00,100\n"


@pytest.fixture
def boxed(settings: Settings, sandbox: RunningSandbox) -> Settings:
    return settings.model_copy(update={"sandbox_url": sandbox.url, "upload_max_bytes": 1024 * 1024})


@pytest.fixture
def client(boxed: Settings, warehouse: Warehouse) -> Iterator[TestClient]:
    with api_client(boxed, warehouse) as client:
        yield client


def rows(warehouse: Warehouse, query: str) -> list[tuple[object, ...]]:
    with warehouse.engine.connect() as connection:
        return [tuple(row) for row in connection.execute(sa.text(query))]


def run_requests(instance: dg.DagsterInstance) -> list[dg.RunRequest]:
    found = requested_jobs_sensor(dg.build_sensor_context(instance=instance))
    return [one for one in list(found or []) if isinstance(one, dg.RunRequest)]


def test_a_token_is_shown_once_and_only_its_hash_is_kept(warehouse: Warehouse, settings: Settings) -> None:
    user_of(warehouse, "ada")
    run = CliRunner()
    made = run.invoke(
        main, ["token", "create", "--user", "ada", "--scopes", "read,upload", "--expires-days", "9"]
    )
    token = made.stdout.strip()
    assert made.exit_code == 0
    assert "ada, for read, upload, until" in made.stderr
    ((token_id, kept, expires),) = rows(
        warehouse, "select token_id, secret_sha256, expires_at from ops.api_tokens"
    )
    number, secret = token.removeprefix("hp_").split("_", 1)
    assert (int(number), bytes(kept)) == (token_id, hashlib.sha256(secret.encode()).digest())  # type: ignore[arg-type]
    assert isinstance(expires, dt.datetime)
    assert expires - dt.datetime.now(dt.UTC) > dt.timedelta(days=8)
    assert secret not in run.invoke(main, ["token", "list"]).stdout
    assert "good" in run.invoke(main, ["token", "list", "--user", "ada"]).stdout
    assert authenticate(warehouse.engine, token) is not None
    assert run.invoke(main, ["token", "revoke", str(token_id)]).exit_code == 0
    assert "revoked" in run.invoke(main, ["token", "list"]).stdout
    assert authenticate(warehouse.engine, token) is None
    for wrong in (
        ["--user", "nobody"],
        ["--user", "ada", "--scopes", "all"],
        ["--user", "ada", "--expires-days", "0"],
    ):
        assert run.invoke(main, ["token", "create", *wrong]).exit_code == 1
    assert run.invoke(main, ["token", "revoke", "99"]).exit_code == 1


def test_nothing_but_a_good_token_opens_anything(client: TestClient, warehouse: Warehouse) -> None:
    ada = user_of(warehouse, "ada")
    good = create(warehouse.engine, ada, ["read"])
    other = create(warehouse.engine, ada, ["read"])
    expired = create(warehouse.engine, ada, ["read"], 1)
    with warehouse.engine.begin() as connection:
        connection.execute(
            sa.text(f"update ops.api_tokens set expires_at = now() where token_id = {expired.token_id}")
        )
    last = "A" if good.token[-1] != "A" else "B"
    swapped = f"hp_{other.token_id}_{good.token.split('_', 2)[2]}"
    for token in (
        good.token[:-1] + last,
        good.token[:-1],
        swapped,
        expired.token,
        "hp_1_",
        "x" * 5000,
        "hp_\u0661_x",
    ):
        header = {"Authorization": f"Bearer {token}".encode()}
        answer = client.get("/v1/health/ada/daily", headers=header)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized"), token
        assert answer.headers["www-authenticate"] == "Bearer"
    assert client.get("/v1/health/ada/daily").status_code == 401
    assert (
        client.get("/v1/health/ada/daily", headers={"Authorization": f"Basic {good.token}"}).status_code
        == 401
    )
    mine = {"Authorization": f"Bearer {good.token}"}
    assert client.get("/v1/health/ada/daily", headers=mine).status_code == 200
    assert rows(warehouse, "select token_id from ops.api_tokens where last_used_at is not null") == [
        (good.token_id,)
    ]
    revoke(warehouse.engine, good.token_id)
    assert client.get("/v1/health/ada/daily", headers=mine).status_code == 401


@pytest.mark.parametrize("what", READS)
def test_a_token_of_one_person_opens_nobody_else(client: TestClient, warehouse: Warehouse, what: str) -> None:
    user_of(warehouse, "ben")
    mine = bearer(warehouse, "ada")
    known, unknown = (client.get(f"/v1/health/{user}/{what}", headers=mine) for user in ("ben", "nobody"))
    assert (known.status_code, known.content) == (404, unknown.content)
    assert unknown.status_code == 404
    empty = client.get(f"/v1/health/ada/{what}", headers=mine)
    assert empty.json() == {"user": "ada", "time_zone": "Europe/Berlin", "data": [], "next_cursor": None}
    assert empty.headers["cache-control"] == "no-store"


def test_a_token_does_what_it_is_for_alone(client: TestClient, warehouse: Warehouse) -> None:
    reads = bearer(warehouse, "ada", ["read"])
    syncs = bearer(warehouse, "ada", ["sync"])
    for answer in (
        client.get("/v1/health/ada/sleep", headers=syncs),
        client.post("/v1/health/oura/sync", headers=reads),
        client.post("/v1/uploads", headers=reads, files={"file": GLUCOSE}),
        client.post("/v1/connections/oura/link", headers=syncs),
        client.post("/v1/connections/oura/disconnect", headers=reads),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "insufficient_scope")


def test_whoever_two_users_were_keeps_their_tokens(warehouse: Warehouse, client: TestClient) -> None:
    mine = bearer(warehouse, "ada2")
    user_of(warehouse, "ada")
    merge_users(warehouse, "ada2", "ada")
    assert client.get("/v1/health/ada/daily", headers=mine).status_code == 200


def test_what_is_wrong_is_said_without_saying_what_was_sent(client: TestClient, warehouse: Warehouse) -> None:
    mine = bearer(warehouse)
    for query, word in (
        ("start=secret", "start"),
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("metric=secret%20", "metric"),
    ):
        answer = client.get(f"/v1/health/ada/daily?{query}", headers=mine)
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_request")
        assert word in answer.json()["error"]["message"]
        assert "secret" not in answer.text
    for cursor in (
        "",
        "x",
        "W10=",
        "bnVsbA==",
        "é",
        "WyJzbGVlcCIsIjIwMjYtMDEtMDEiLCIyMDI2LTAxLTAxIixudWxsLFtdXQ==",
    ):
        answer = client.get("/v1/health/ada/daily", params={"cursor": cursor}, headers=mine)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_cursor"), cursor
    for method, path, status in (("GET", "/v1/nothing", 404), ("PUT", "/v1/uploads", 405)):
        answer = client.request(method, path, headers=mine)
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"code", "message"}


def test_a_body_is_short_before_anybody_is_asked_who_they_are(client: TestClient) -> None:
    for content, status, code in ((b"[" * 100_000, 413, "too_large"), (b"\xff", 400, "invalid_request")):
        answer = client.post(
            "/v1/health/oura/sync", content=content, headers={"content-type": "application/json"}
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_a_sync_is_a_job_that_the_sensor_takes(
    client: TestClient, warehouse: Warehouse, vault: Vault, endpoint: Endpoint
) -> None:
    mine = bearer(warehouse)
    assert client.post("/v1/health/nobody/sync", headers=mine).status_code == 404
    assert client.post("/v1/health/fitbit/sync", headers=mine).status_code == 404
    early = client.post("/v1/health/oura/sync", headers=mine)
    assert (early.status_code, early.json()["error"]["code"]) == (409, "not_connected")
    ada = connect(warehouse, vault, endpoint, "ada")
    asked = client.post("/v1/health/oura/sync", headers=mine, json={"days": 3})
    assert asked.status_code == 202
    job_id = asked.json()["job_id"]
    assert asked.headers["location"] == asked.json()["location"] == f"/v1/jobs/{job_id}"
    again = client.post("/v1/health/oura/sync", headers=mine, json={"days": 3})
    assert again.json()["job_id"] == job_id
    today = dt.datetime.now(dt.UTC).date()
    with dg.DagsterInstance.ephemeral() as instance:
        (request,) = run_requests(instance)
        assert request.job_name == "sync_oura"
        assert request.run_config["ops"]["raw__oura"]["config"] == {
            "user_ids": [ada.user_id],
            "job_id": job_id,
        }
        assert request.tags["dagster/asset_partition_range_start"] == str(today - dt.timedelta(days=2))
        assert request.tags["dagster/asset_partition_range_end"] == str(today)
        assert run_requests(instance) == []
    jobs.begin(warehouse.engine, job_id, "a-run")
    jobs.set_plan(warehouse.engine, job_id, 1, 4)
    seen = client.get(f"/v1/jobs/{job_id}", headers=mine).json()
    assert (seen["status"], seen["windows_done"], seen["windows_total"]) == ("running", 1, 4)
    jobs.finish(warehouse.engine, job_id, "Oura answers nobody")
    seen = client.get(f"/v1/jobs/{job_id}", headers=mine).json()
    assert (seen["status"], seen["last_error"], seen["file"]) == ("failed", "Oura answers nobody", None)
    assert seen["finished_at"].endswith("Z")
    theirs = client.get(f"/v1/jobs/{job_id}", headers=bearer(warehouse, "ben"))
    unknown = client.get("/v1/jobs/999999", headers=mine)
    assert (theirs.status_code, theirs.content) == (404, unknown.content)


def test_files_are_kept_as_they_are_and_read_by_one_run(
    client: TestClient, warehouse: Warehouse, store: RawStore
) -> None:
    mine, bens = bearer(warehouse), bearer(warehouse, "ben")
    first = client.post("/v1/uploads", headers=mine, files={"file": ("whatever.bin", GLUCOSE)})
    assert first.status_code == 202, first.text
    again = client.post("/v1/uploads", headers=mine, files={"file": GLUCOSE})
    theirs = client.post("/v1/uploads", headers=bens, files={"file": GLUCOSE})
    keys = rows(warehouse, "select object_key from ops.raw_objects where provider = 'glucose_csv'")
    assert [store.get(str(key)) for (key,) in keys] == [GLUCOSE, GLUCOSE]
    found = rows(
        warehouse, "select kind, provider, status, objects_new from ops.ingestion_jobs order by job_id"
    )
    assert found == [("upload", "glucose_csv", "requested", new) for new in (1, 0, 1)]
    job_ids = [each.json()["job_id"] for each in (first, again, theirs)]
    assert client.get(f"/v1/jobs/{job_ids[2]}", headers=mine).status_code == 404
    with dg.DagsterInstance.ephemeral() as instance:
        run = dg.DagsterRun(job_name="file_upload", status=dg.DagsterRunStatus.STARTED)
        instance.add_run(run)
        assert run_requests(instance) == []  # the files gather
        instance.report_run_failed(run)
        (request,) = run_requests(instance)
        assert (request.job_name, request.partition_key) == (
            "file_upload",
            dt.datetime.now(dt.UTC).date().isoformat(),
        )
        assert request.run_config == {"ops": {"received_files": {"config": {"job_ids": job_ids}}}}
        assert run_requests(instance) == []


def test_an_upload_that_cannot_be_taken_leaves_nothing(client: TestClient, warehouse: Warehouse) -> None:
    mine = bearer(warehouse)
    zone = {"time_zone": "Europe/Paris"}
    form = "multipart/form-data; boundary=b"
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\nx'
    for status, code, sent in (
        (413, "too_large", {"files": {"file": b"x" * (1024 * 1024 + 1)}}),
        (415, "unsupported_media_type", {"content": GLUCOSE}),
        (415, "unsupported_media_type", {"json": {}}),
        (
            415,
            "unsupported_encoding",
            {"content": part, "headers": {"content-type": form, "content-encoding": "br"}},
        ),
        (422, "invalid_request", {"content": part, "headers": {"content-type": form}}),  # cut
        (422, "invalid_request", {"content": b"--b\r\n\r\n", "headers": {"content-type": form}}),
        (422, "invalid_request", {"files": {"other": GLUCOSE}}),
        (422, "invalid_request", {"files": [("file", GLUCOSE), ("file", GLUCOSE)]}),
        (422, "unknown_time_zone", {"files": {"file": GLUCOSE}, "data": {"time_zone": "Mars"}}),
        (422, "invalid_request", {"files": {"file": GLUCOSE}, "data": {"date_order": "ymd"}}),
        (422, "invalid_request", {"files": {"file": GLUCOSE}, "data": {"kind": "x" * 300}}),
        (422, "unreadable_file", {"files": {"file": GLUCOSE}, "data": {"kind": "nothing"}}),
        (422, "unreadable_file", {"files": {"file": os.urandom(500)}}),
        (422, "unreadable_file", {"files": {"file": b""}}),
    ):
        headers = {**mine, **sent.pop("headers", {})}  # type: ignore[dict-item]
        answer = client.post("/v1/uploads", headers=headers, **sent)  # type: ignore[arg-type]
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    assert rows(warehouse, "select 1 from ops.raw_objects") == []
    assert rows(warehouse, "select 1 from ops.ingestion_jobs") == []
    assert client.post("/v1/uploads", headers=mine, files={"file": NAIVE}).status_code == 202
    other = client.post("/v1/uploads", headers=mine, files={"file": NAIVE}, data=zone)
    assert (other.status_code, other.json()["error"]["code"]) == (409, "conflicting_upload")
    assert "Europe/Berlin" in other.json()["error"]["message"]


def test_a_large_body_is_not_held_in_memory(boxed: Settings, warehouse: Warehouse) -> None:
    """Counted as it comes: nobody has to say how long it is."""
    limit = 64 * 1024 * 1024
    boxed = boxed.model_copy(update={"upload_max_bytes": limit})
    token = bearer(warehouse)["Authorization"].encode()
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    block = b"2026-03-01T08:00:00Z,100\n" * 2600
    given, said = 0, b""
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/uploads",
        "query_string": b"",
        "headers": [(b"authorization", token), (b"content-type", b"multipart/form-data; boundary=b")],
    }

    async def receive() -> dict[str, Any]:
        nonlocal given
        body = block if given else head
        given += len(body)
        return {"type": "http.request", "body": body, "more_body": True}

    async def send(message: Any) -> None:
        nonlocal said
        said += str(message.get("status", "")).encode() + message.get("body", b"")

    with receiver_app(boxed, warehouse) as app:
        tracemalloc.start()
        asyncio.run(app(scope, receive, send))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert said.startswith(b'413{"error":{"code":"too_large"')
    assert limit < given < limit + 8 * 1024 * 1024
    assert peak < 16 * 1024 * 1024
