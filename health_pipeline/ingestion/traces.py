"""OpenTelemetry traces from a webhook's acceptance to its canonical rows, where a collector is named.

OTEL_EXPORTER_OTLP_ENDPOINT (or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT) names it, as OTLP over HTTP; without it nothing of
OpenTelemetry is imported. The extra `otel` brings the SDK, and the SDK's other OTEL_… settings apply. An event
carries the W3C traceparent of its acceptance, so that the steps of the run that works on it are of the same
trace. Spans name providers and events by number, and nobody.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import sqlalchemy as sa

from health_pipeline.warehouse.models import WebhookEvent

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

logger = logging.getLogger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_SCOPE = "health_pipeline"
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)
#: A run of a thousand events is told by this many traces: what it did, it did for all of them.
_TRACES_A_STEP = 100
_FLUSH_MILLIS = 3000


class Accepting:
    """The trace of one call. A span is made once the call is proved, when its traceparent is asked for."""

    def __init__(self, provider: str, received: str | None) -> None:
        self._provider = provider
        self._started = time.time_ns()
        self._parent = received if received is not None and _TRACEPARENT.fullmatch(received) else None
        self._span: Span | None = None
        #: 32 hexadecimal digits.
        self.trace_id = self._parent.split("-")[1] if self._parent is not None else secrets.token_hex(16)

    @property
    def traceparent(self) -> str:
        """What the event carries: the trace goes on from here."""
        tracer = _tracer()
        if tracer is None:
            return f"00-{self.trace_id}-{secrets.token_hex(8)}-00"
        if self._span is None:
            from opentelemetry.trace import SpanKind

            self._span = tracer.start_span(
                "webhook accept",
                _context(self._parent),
                SpanKind.SERVER,
                {"health_pipeline.provider": self._provider},
                start_time=self._started,
            )
        made = self._span.get_span_context()
        self.trace_id = f"{made.trace_id:032x}"
        return f"00-{self.trace_id}-{made.span_id:016x}-{int(made.trace_flags):02x}"

    def end(self, outcome: str, status: int, event_ids: Sequence[int]) -> None:
        """The call is answered."""
        if self._span is not None:
            self._span.set_attributes(
                {
                    "health_pipeline.outcome": outcome,
                    "health_pipeline.event_ids": list(event_ids),
                    "http.response.status_code": status,
                }
            )
            self._span.end()


@contextmanager
def step(engine: sa.Engine, run_id: str, name: str, provider: str | None = None) -> Iterator[None]:
    """A step of a run, as a span in the trace of each event that the run works on (of the provider)."""
    tracer = _tracer()
    if tracer is None:
        yield
        return
    from opentelemetry.trace import StatusCode

    # A step may begin by taking the events, or end by settling them.
    carried = _carried(engine, run_id, provider)
    started, good = time.time_ns(), False
    try:
        yield
        good = True
    finally:
        ended = time.time_ns()
        attributes = {"health_pipeline.run_id": run_id}
        if provider is not None:
            attributes["health_pipeline.provider"] = provider
        for traceparent in (carried or _carried(engine, run_id, provider))[:_TRACES_A_STEP]:
            span = tracer.start_span(name, _context(traceparent), attributes=attributes, start_time=started)
            if not good:
                span.set_status(StatusCode.ERROR)
            span.end(ended)
        provider_of_spans = _tracer_provider()
        assert provider_of_spans is not None
        # The process of a step may end with it.
        provider_of_spans.force_flush(_FLUSH_MILLIS)


def shut_down() -> None:
    """Send what is left, and send no more."""
    found = _tracer_provider() if _tracer_provider.cache_info().currsize else None
    if found is not None:
        found.shutdown()


def _carried(engine: sa.Engine, run_id: str, provider: str | None) -> list[str]:
    query = (
        sa.select(WebhookEvent.trace_id)
        .where(WebhookEvent.run_id == run_id, WebhookEvent.state == "processing")
        .distinct()
        .order_by(WebhookEvent.trace_id)
    )
    if provider is not None:
        query = query.where(WebhookEvent.provider == provider)
    with engine.connect() as connection:
        found = connection.execute(query).scalars().all()
    return [carried for carried in found if carried is not None and _TRACEPARENT.fullmatch(carried)]


def _context(traceparent: str | None) -> Context:
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = {} if traceparent is None else {"traceparent": traceparent}
    return TraceContextTextMapPropagator().extract(carrier, Context())


def _tracer() -> Tracer | None:
    found = _tracer_provider()
    return None if found is None else found.get_tracer(_SCOPE)


@functools.cache
def _tracer_provider() -> TracerProvider | None:
    """None where no collector is named, or the SDK is not installed."""
    if not any(os.environ.get(name) for name in _ENDPOINTS):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON
    except ImportError:
        logger.warning("a collector of traces is named, but the extra `otel` is not installed: none are sent")
        return None
    # Whether the caller samples its own traces says nothing about ours.
    sampler = None if os.environ.get("OTEL_TRACES_SAMPLER") else ALWAYS_ON
    name = os.environ.get("OTEL_SERVICE_NAME", "health-pipeline")
    made = TracerProvider(sampler, Resource.create({"service.name": name}))
    made.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return made
