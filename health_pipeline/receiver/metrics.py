"""What the receiver counts, for Prometheus.

Calls are counted in this process: of several receivers each is a target, and their counters add up. What is in the
database (queues, processing times, rate limits) is the same from each of them: take the highest.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable

import sqlalchemy as sa
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from health_pipeline.ingestion import counters

logger = logging.getLogger(__name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_KEPT_SECONDS = 5.0
_ACCEPT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_QUEUED_STATES = ("pending", "processing", "dead")


class Metrics:
    """The counters of one receiver, in a registry of their own. Thread-safe."""

    def __init__(self, engine: sa.Engine, clock: Callable[[], float] = time.monotonic) -> None:
        self.registry = CollectorRegistry()
        self.accepted = Counter(
            "webhook_accepted", "Calls that were kept and acknowledged.", ["provider"], registry=self.registry
        )
        self.duplicate = Counter(
            "webhook_duplicate",
            "Calls that were acknowledged and had been kept before.",
            ["provider"],
            registry=self.registry,
        )
        self.invalid = Counter(
            "webhook_invalid", "Calls that nothing proves.", ["provider"], registry=self.registry
        )
        self.refused = Counter(
            "webhook_refused",
            "Other calls that were not taken, by the code of the answer.",
            ["provider", "code"],
            registry=self.registry,
        )
        self.accept_seconds = Histogram(
            "webhook_accept_seconds",
            "From the head of a call to its 2xx.",
            ["provider"],
            buckets=_ACCEPT_BUCKETS,
            registry=self.registry,
        )
        self.registry.register(_Database(engine, clock))

    def count(self, provider: str, outcome: str, seconds: float) -> None:
        """One call. `provider` is a registered name or `unknown`: labels are not for callers to make."""
        match outcome:
            case "accepted" | "duplicate":
                (self.accepted if outcome == "accepted" else self.duplicate).labels(provider).inc()
                self.accept_seconds.labels(provider).observe(seconds)
            case "duplicate_event":
                self.duplicate.labels(provider).inc()
            case "invalid_signature" | "invalid_path":
                self.invalid.labels(provider).inc()
            case "challenge":
                pass
            case code:
                self.refused.labels(provider, code).inc()

    def render(self) -> bytes:
        """The text of `/metrics`; may ask the database."""
        return generate_latest(self.registry)


class _Database(Collector):
    """What is read from the database when it is asked for, and kept for some seconds: scrapers may be many."""

    def __init__(self, engine: sa.Engine, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._clock = clock
        self._lock = threading.Lock()
        self._read: list[Metric] = []
        self._due = float("-inf")

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        with self._lock:
            if self._clock() >= self._due:
                try:
                    self._read = [*_families(self._engine), _reachable(True)]
                except sa.exc.SQLAlchemyError as error:
                    logger.warning("the counts of the database cannot be read: %s", type(error).__name__)
                    # Nothing is better than what is no longer true.
                    self._read = [_reachable(False)]
                self._due = self._clock() + _KEPT_SECONDS
            return self._read


def _reachable(good: bool) -> Metric:
    return GaugeMetricFamily(
        "webhook_database_up", "Whether the events could be read for this scrape.", float(good)
    )


def _families(engine: sa.Engine) -> Iterable[Metric]:
    queues = counters.queues(engine)
    hits, times = counters.read(engine)
    depth = GaugeMetricFamily(
        "webhook_queue_depth", "Events by the state they are in.", labels=["provider", "state"]
    )
    age = GaugeMetricFamily(
        "webhook_queue_oldest_seconds",
        "Since when the oldest event of the state is here.",
        labels=["provider", "state"],
    )
    dead = GaugeMetricFamily("webhook_dead_letters", "Events that ran out of tries.", labels=["provider"])
    # A provider whose queue is empty is told as 0, or an alert would go on with the last it saw.
    found = {(one.provider, one.state): one for one in queues}
    for provider in sorted({one.provider for one in queues} | set(times)):
        for state in _QUEUED_STATES:
            one = found.get((provider, state))
            depth.add_metric([provider, state], one.events if one else 0)
            age.add_metric([provider, state], one.oldest_seconds if one else 0)
        one = found.get((provider, "dead"))
        dead.add_metric([provider], one.events if one else 0)
    processing = HistogramMetricFamily(
        counters.PROCESSED, "From receipt to the canonical table.", labels=["provider"]
    )
    for provider, seen in sorted(times.items()):
        upto, buckets = 0.0, []
        for bound in (*map(str, counters.PROCESSING_BUCKETS), counters.INFINITY):
            upto += seen.counts.get(bound.removesuffix(".0"), 0.0)
            buckets.append((bound, upto))
        processing.add_metric([provider], buckets, seen.total_seconds)
    limits = CounterMetricFamily(
        counters.RATE_LIMIT_HITS,
        "Answers of providers that there were too many requests.",
        labels=["provider"],
    )
    for provider, count in sorted(hits.items()):
        limits.add_metric([provider], count)
    return depth, age, dead, processing, limits
