"""`health-pipeline receiver`: the webhook receiver of this environment."""

from __future__ import annotations

from collections.abc import Callable

from health_pipeline.connections.subscriptions import signing_secrets
from health_pipeline.connections.vault import open_vault
from health_pipeline.raw.store import open_store
from health_pipeline.receiver.app import create_app
from health_pipeline.receiver.secrets import Secrets
from health_pipeline.receiver.server import serve
from health_pipeline.settings import Settings
from health_pipeline.warehouse.connection import Warehouse

DEFAULT_PORT = 8700


def secrets_of(settings: Settings, warehouse: Warehouse) -> Secrets:
    """The secrets of every provider, those too that one gave us when we subscribed."""
    vault = open_vault(settings)
    return Secrets(settings, lambda provider: signing_secrets(warehouse.engine, vault, settings, provider))


def run_receiver(
    settings: Settings, warehouse: Warehouse, say: Callable[[str], None], *, host: str, port: int
) -> None:
    """Serve until SIGINT or SIGTERM. Raises OSError where the port is taken."""
    app = create_app(warehouse.engine, open_store(settings.raw_location), secrets_of(settings, warehouse).of)
    say(f"receiver   http://{host}:{port}")
    serve(app, host, port)
