"""`health-pipeline receiver`: the receiver of this environment, webhooks and API."""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa

from health_pipeline.connections.subscriptions import signing_secrets
from health_pipeline.connections.vault import open_vault
from health_pipeline.ingestion import traces
from health_pipeline.raw.store import open_store
from health_pipeline.receiver.api import create_api
from health_pipeline.receiver.app import STORING_AT_ONCE, create_app
from health_pipeline.receiver.house import House
from health_pipeline.receiver.logs import log_as_json
from health_pipeline.receiver.metrics import Metrics
from health_pipeline.receiver.secrets import Secrets
from health_pipeline.receiver.server import serve
from health_pipeline.settings import Settings
from health_pipeline.warehouse.connection import Warehouse

DEFAULT_PORT = 8700
_MORE_CONNECTIONS = 4


def secrets_of(settings: Settings, warehouse: Warehouse) -> Secrets:
    """The secrets of every provider, those too that one gave us when we subscribed."""
    vault = open_vault(settings)
    return Secrets(settings, lambda provider: signing_secrets(warehouse.engine, vault, settings, provider))


def run_receiver(
    settings: Settings, warehouse: Warehouse, say: Callable[[str], None], *, host: str, port: int
) -> None:
    """Serve until SIGINT or SIGTERM; logs are JSON lines on standard error.

    Raises OSError where a port is taken, ValueError where the setting of `/metrics` is no address.
    """
    # A connection for each call that is being stored, and some for what else is asked.
    engine = sa.create_engine(
        warehouse.url, pool_pre_ping=True, pool_size=STORING_AT_ONCE, max_overflow=_MORE_CONNECTIONS
    )
    metrics = Metrics(engine)
    log_as_json()
    store, secrets = open_store(settings.raw_location), secrets_of(settings, warehouse)
    house = House(settings, warehouse, store, secrets)
    app = create_app(
        engine,
        store,
        secrets.of,
        metrics=metrics,
        tells_metrics=settings.metrics_listen is None,
        calls_per_second=settings.webhook_rate,
        configured_of=lambda provider: settings.webhook_secrets(provider.name),
        api=create_api(house),
    )
    if settings.metrics_listen is not None and settings.metrics_listen != "off":
        from prometheus_client import start_http_server

        metrics_host, metrics_port = _address(settings.metrics_listen)
        start_http_server(metrics_port, metrics_host, metrics.registry)
        say(f"metrics    http://{metrics_host}:{metrics_port}/metrics")
    say(f"receiver   http://{host}:{port}")
    try:
        serve(app, host, port)
    finally:
        traces.shut_down()
        house.dispose()
        engine.dispose()


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit():
        raise ValueError(
            f"HEALTH_PIPELINE_METRICS_LISTEN is host:port (127.0.0.1:9464) or `off`, not {text!r}"
        )
    return host.strip("[]"), int(port)
