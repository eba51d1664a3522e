"""Traces from the call to the table, as a collector gets them over OTLP/HTTP."""

from __future__ import annotations

import datetime as dt
import gzip
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from calling import SECRET, calls_of, rows, send
from starlette.testclient import TestClient

from health_pipeline.ingestion import events, traces
from health_pipeline.raw.store import RawStore
from health_pipeline.receiver.app import create_app
from health_pipeline.sandbox.server import RunningSandbox
from health_pipeline.warehouse.connection import Warehouse

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra `otel` is not installed")

CALLER = f"00-{'ab' * 16}-{'cd' * 8}-00"


class Collector:
    """The spans that came."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        spans = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
                    ExportTraceServiceRequest,
                )

                content = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    content = gzip.decompress(content)
                request = ExportTraceServiceRequest.FromString(content)
                spans.extend(
                    span
                    for resource in request.resource_spans
                    for scope in resource.scope_spans
                    for span in scope.spans
                )
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def named(self, name: str) -> list[Any]:
        return [span for span in self.spans if span.name == name]


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    collector = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    traces._tracer_provider.cache_clear()
    yield collector
    traces.shut_down()
    traces._tracer_provider.cache_clear()
    collector.server.shutdown()
    collector.server.server_close()


def attributes(span: Any) -> dict[str, Any]:
    return {one.key: one.value for one in span.attributes}


def test_a_call_and_the_run_that_works_on_it_are_one_trace(
    warehouse: Warehouse, store: RawStore, sandbox: RunningSandbox, collector: Collector
) -> None:
    engine = warehouse.engine
    clock = sandbox.app.state.sandbox.now
    with TestClient(create_app(engine, store, lambda _: [SECRET], clock)) as client:
        first, second = calls_of(sandbox, "whoop")[:2]
        assert send(client, "whoop", first, traceparent=CALLER).is_success
        assert send(client, "whoop", second).is_success
        assert not send(client, "oura", second).is_success
    day = clock().date()
    with traces.step(engine, "run", "claim and fetch", "whoop"):
        assert len(events.claim(engine, "whoop", day, "run", clock())) == 2
    with pytest.raises(LookupError), traces.step(engine, "run", "stage", "whoop"):
        raise LookupError("private words")
    with traces.step(engine, "run", "stage", "oura"):
        pass
    with traces.step(engine, "run", "settled"):
        events.settle_run(engine, "run")
    accepted = collector.named("webhook accept")
    assert len(accepted) == 2, "what nothing proves makes no span"
    of_caller = next(span for span in accepted if span.trace_id.hex() == "ab" * 16)
    assert of_caller.parent_span_id.hex() == "cd" * 8
    (of_nobody,) = (span for span in accepted if span is not of_caller)
    assert of_nobody.parent_span_id == b""
    assert attributes(of_caller)["health_pipeline.outcome"].string_value == "accepted"
    for name in ("claim and fetch", "stage", "settled"):
        steps = collector.named(name)
        assert {(span.trace_id, span.parent_span_id) for span in steps} == {
            (span.trace_id, span.span_id) for span in accepted
        }
        assert len(steps) == 2
        assert all(attributes(span)["health_pipeline.run_id"].string_value == "run" for span in steps)
        assert all(of_caller.start_time_unix_nano <= span.start_time_unix_nano for span in steps)
    assert {span.status.code for span in collector.named("stage")} == {2}
    assert "private words" not in str(collector.spans)
    people = {str(row[0]) for row in rows(warehouse, "select provider_user_id from ops.webhook_events")}
    assert not any(person in str(collector.spans) for person in people)


def test_without_a_collector_nothing_is_imported() -> None:
    code = (
        "import sys; from health_pipeline.ingestion import traces; "
        f"one = traces.Accepting('oura', {CALLER!r}); "
        "print(one.traceparent.split('-')[1], any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ab" * 16, "False"]


@pytest.mark.parametrize(
    "said", ["", "words", CALLER.upper(), f"{CALLER}-x", f"00-{'0' * 32}-{'cd' * 8}-01", f"ff{CALLER[2:]}"]
)
def test_a_traceparent_that_is_none_is_made(said: str) -> None:
    one = traces.Accepting("oura", said)
    version, trace_id, span_id, _ = one.traceparent.split("-")
    assert (version, len(trace_id), len(span_id)) == ("00", 32, 16)
    assert trace_id == one.trace_id != "ab" * 16
    assert int(trace_id, 16) > 0


def test_a_collector_that_is_away_stops_nothing(
    warehouse: Warehouse, store: RawStore, sandbox: RunningSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    traces._tracer_provider.cache_clear()
    try:
        clock = sandbox.app.state.sandbox.now
        with TestClient(create_app(warehouse.engine, store, lambda _: [SECRET], clock)) as client:
            assert send(client, "whoop", calls_of(sandbox, "whoop")[0]).is_success
        started = dt.datetime.now()
        with traces.step(warehouse.engine, "run", "claim and fetch", "whoop"):
            events.claim(warehouse.engine, "whoop", clock().date(), "run", clock())
        assert dt.datetime.now() - started < dt.timedelta(seconds=10)
    finally:
        traces.shut_down()
        traces._tracer_provider.cache_clear()
