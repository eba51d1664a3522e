"""The receiver's API as a person's own program has it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.testclient import TestClient

from health_pipeline.connections.api_tokens import create
from health_pipeline.connections.users import ensure_user
from health_pipeline.raw.store import open_store
from health_pipeline.receiver.api import create_api
from health_pipeline.receiver.app import create_app
from health_pipeline.receiver.house import House
from health_pipeline.receiver.secrets import Secrets
from health_pipeline.settings import Settings
from health_pipeline.warehouse.connection import Warehouse

EVERYTHING = ("read", "sync", "upload", "connect")


def user_of(warehouse: Warehouse, handle: str, time_zone: str | None = "Europe/Berlin") -> int:
    with warehouse.engine.begin() as connection:
        return ensure_user(connection, handle, time_zone).user_id


def bearer(
    warehouse: Warehouse, handle: str = "ada", scopes: Sequence[str] = EVERYTHING, days: int | None = None
) -> dict[str, str]:
    """The header of somebody with a new token."""
    token = create(warehouse.engine, user_of(warehouse, handle), scopes, days).token
    return {"Authorization": f"Bearer {token}"}


@contextmanager
def receiver_app(settings: Settings, warehouse: Warehouse) -> Iterator[Starlette]:
    """The whole app, as `health-pipeline receiver` serves it."""
    store, secrets = open_store(settings.raw_location), Secrets(settings)
    house = House(settings, warehouse, store, secrets)
    yield create_app(warehouse.engine, store, secrets.of, api=create_api(house))
    house.dispose()


@contextmanager
def api_client(settings: Settings, warehouse: Warehouse) -> Iterator[TestClient]:
    with receiver_app(settings, warehouse) as app:
        base = settings.receiver_url or "http://testserver"
        with TestClient(app, base_url=base, raise_server_exceptions=False) as client:
            yield client


@contextmanager
def running(app: Starlette, port: int) -> Iterator[None]:
    """The app on a port of 127.0.0.1, for a browser."""
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < until, "the receiver does not start"
        time.sleep(0.02)
    yield
    server.should_exit = True
    thread.join()
