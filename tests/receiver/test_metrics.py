"""What the receiver tells of itself: metrics, and a log that quotes nobody."""

from __future__ import annotations

import datetime as dt
import io
import logging
from collections.abc import Iterator

import httpx
import orjson
import pytest
import sqlalchemy as sa
from calling import SECRET, address, calls_of, send
from connecting import connect, order, sandbox_endpoint
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from health_pipeline.connections.vault import Vault
from health_pipeline.ingestion import counters, events
from health_pipeline.ingestion.fetch import fetch
from health_pipeline.providers.base import Window
from health_pipeline.providers.registry import get
from health_pipeline.raw.store import RawStore
from health_pipeline.receiver.app import create_app
from health_pipeline.receiver.logs import log_as_json
from health_pipeline.receiver.metrics import Metrics
from health_pipeline.runtime.receiver import run_receiver
from health_pipeline.sandbox.routers import WebhookCall
from health_pipeline.sandbox.server import RunningSandbox
from health_pipeline.settings import Settings
from health_pipeline.warehouse.connection import Warehouse


def told(client: TestClient | httpx.Client) -> dict[tuple[str, ...], float]:
    """The samples of /metrics by name and label values, in order of the labels' names."""
    answer = client.get("/metrics")
    assert answer.status_code == 200
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_calls_are_counted_by_what_became_of_them(client: TestClient, sandbox: RunningSandbox) -> None:
    calls = calls_of(sandbox, "whoop")
    for call in (calls[0], *calls):
        assert send(client, "whoop", call).is_success
    send(client, "whoop", WebhookCall(calls[0].headers, b"{}"))
    client.post("/webhooks/strava/guess", content=b"{}")
    client.post(address("oura"), content=b"{}", headers={"content-type": "image/png"})
    for name in ("a", "b", "c"):
        client.post(f"/webhooks/{name}", content=b"{}")
    found = told(client)
    assert found["webhook_accepted_total", "whoop"] == len(calls)
    assert found["webhook_duplicate_total", "whoop"] == 1
    assert found["webhook_accept_seconds_count", "whoop"] == len(calls) + 1
    assert found["webhook_invalid_total", "whoop"] == found["webhook_invalid_total", "strava"] == 1
    assert found["webhook_refused_total", "unsupported_media_type", "oura"] == 1
    # Names that callers make up do not become series.
    assert found["webhook_refused_total", "no_webhook", "unknown"] == 3
    assert found["webhook_queue_depth", "whoop", "pending"] == len(calls)
    assert found["webhook_database_up",] == 1


def test_the_queue_is_read_from_the_database(
    client: TestClient, sandbox: RunningSandbox, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = calls_of(sandbox, "whoop")
    for call in calls:
        send(client, "whoop", call)
    with warehouse.engine.begin() as connection:
        first, *_ = connection.execute(
            sa.text(
                "update ops.webhook_events set received_at = now() - interval '40 seconds' returning event_id"
            )
        ).scalars()
        connection.execute(
            sa.text("update ops.webhook_events set state = 'dead' where event_id = :id"), {"id": first}
        )
        connection.execute(
            sa.text("update ops.webhook_events set state = 'processing' where state = 'pending'")
        )
        rest = list(
            connection.execute(
                sa.text("select event_id from ops.webhook_events where state = 'processing'")
            ).scalars()
        )
    assert len(rest) >= 2
    events.settle(warehouse.engine, rest[:1])
    # It is processed once: a second time changes no count.
    events.settle(warehouse.engine, rest[:1])
    found = told(client)
    assert found["webhook_dead_letters", "whoop"] == found["webhook_queue_depth", "whoop", "dead"] == 1
    assert found["webhook_queue_depth", "whoop", "processing"] == len(rest) - 1
    assert found["webhook_queue_depth", "whoop", "pending"] == 0
    assert 40 <= found["webhook_queue_oldest_seconds", "whoop", "dead"] < 100
    assert found["webhook_processing_seconds_count", "whoop"] == 1
    assert 40 <= found["webhook_processing_seconds_sum", "whoop"] < 100
    assert found["webhook_processing_seconds_bucket", "30.0", "whoop"] == 0
    assert found["webhook_processing_seconds_bucket", "+Inf", "whoop"] == 1
    # Within some seconds the database is not asked again.
    events.settle(warehouse.engine, rest[1:])
    assert told(client)["webhook_queue_depth", "whoop", "processing"] == len(rest) - 1


def test_without_a_database_the_rest_is_told(warehouse: Warehouse, store: RawStore) -> None:
    away = sa.create_engine(warehouse.url.set(database="not_there"), poolclass=sa.NullPool)
    now = 0.0
    metrics = Metrics(away, lambda: now)
    with TestClient(create_app(away, store, lambda _: [SECRET], metrics=metrics)) as client:
        client.post("/webhooks/nobody", content=b"{}")
        found = told(client)
        assert found["webhook_database_up",] == 0
        assert found["webhook_refused_total", "no_webhook", "unknown"] == 1
        answer = client.get("/healthz")
        assert answer.status_code == 204


def test_a_providers_rate_limit_counts_whoever_ran_into_it(
    client: TestClient,
    settings: Settings,
    warehouse: Warehouse,
    store: RawStore,
    vault: Vault,
    sandbox: RunningSandbox,
) -> None:
    settings = settings.model_copy(update={"sandbox_url": sandbox.url})
    connect(warehouse, vault, sandbox_endpoint(sandbox.url, settings), "ada")
    order(sandbox.url, "rate_limit", count=1, retry_after=0)
    day = dt.date(2026, 11, 19)
    fetch(warehouse, store, vault, settings, get("oura"), Window(day, day))
    assert told(client)["provider_rate_limit_hits_total", "oura"] == 1
    counters.add(warehouse.engine, counters.RATE_LIMIT_HITS, "oura", 3)
    assert counters.read(warehouse.engine)[0] == {"oura": 4}


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    stream = io.StringIO()
    log_as_json(stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in ("uvicorn", "httpx"):
        logging.getLogger(name).setLevel(logging.NOTSET)


def test_each_call_is_one_line_that_quotes_nobody(
    client: TestClient, sandbox: RunningSandbox, warehouse: Warehouse, log: io.StringIO
) -> None:
    trace = f"00-{'ab' * 16}-{'cd' * 8}-01"
    call = calls_of(sandbox, "strava")[0]
    assert send(client, "strava", call, traceparent=trace).is_success
    client.post("/webhooks/someone@example.org/secret-token", content=b"private words")
    send(client, "whoop", WebhookCall(call.headers, b"private words"), traceparent="private words")
    kept, stranger, forged = (orjson.loads(line) for line in log.getvalue().splitlines())
    with warehouse.engine.connect() as connection:
        events_kept = connection.execute(
            sa.text("select event_id, trace_id from ops.webhook_events order by event_id")
        ).all()
    assert (kept["provider"], kept["outcome"], kept["status"]) == ("strava", "accepted", 200)
    assert kept["trace_id"] == "ab" * 16
    assert sorted(kept["event_ids"]) == [event_id for event_id, _ in events_kept] != []
    assert {carried.split("-")[1] for _, carried in events_kept} == {"ab" * 16}
    assert 0 < kept["seconds"] < 60
    assert abs(dt.datetime.fromisoformat(kept["time"]) - dt.datetime.now(dt.UTC)) < dt.timedelta(minutes=5)
    assert (stranger["provider"], stranger["outcome"]) == ("unknown", "no_webhook")
    assert (forged["outcome"], forged["event_ids"]) == ("invalid_signature", [])
    assert len(forged["trace_id"]) == 32
    (person,) = (owner for owner in [orjson.loads(call.body)["owner_id"]])
    for private in (
        "example.org",
        "secret-token",
        "private words",
        str(person),
        address("strava").split("/")[-1],
    ):
        assert private not in log.getvalue()


def test_what_fails_is_told_by_its_place_and_not_in_its_words(
    warehouse: Warehouse,
    sandbox: RunningSandbox,
    store: RawStore,
    log: io.StringIO,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise LookupError("the body said private words")

    monkeypatch.setattr("health_pipeline.receiver.app.accept", fails)
    with TestClient(create_app(warehouse.engine, store, lambda _: [SECRET])) as client:
        answer = send(client, "strava", calls_of(sandbox, "strava")[0])
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "failed")
        assert answer.headers["retry-after"]
        try:
            raise ValueError("private words")
        except ValueError:
            logging.getLogger("any").exception("it failed")
    first, second = (orjson.loads(line) for line in log.getvalue().splitlines())
    assert (first["level"], first["status"]) == ("ERROR", 500)
    assert first["error"].startswith("LookupError in fails, line")
    assert second["exc_info"].endswith("ValueError")
    assert "private words" not in log.getvalue()


def test_metrics_are_where_the_setting_says(
    settings: Settings, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[TestClient] = []
    monkeypatch.setattr(
        "health_pipeline.runtime.receiver.serve", lambda app, host, port: served.append(TestClient(app))
    )
    monkeypatch.setattr("health_pipeline.runtime.receiver.log_as_json", lambda: None)
    said: list[str] = []

    def run(listen: str | None) -> int:
        with_setting = settings.model_copy(update={"metrics_listen": listen})
        run_receiver(with_setting, warehouse, said.append, host="127.0.0.1", port=0)
        return served[-1].get("/metrics").status_code

    assert run(None) == 200
    assert run("off") == 404
    assert run("127.0.0.1:0") == 404
    assert any(line.startswith("metrics") for line in said)
    with pytest.raises(ValueError, match="METRICS_LISTEN"):
        run("9464")
