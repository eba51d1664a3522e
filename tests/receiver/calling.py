"""Calls to the receiver as the sandbox's providers make them."""

from __future__ import annotations

import datetime as dt

import httpx
import sqlalchemy as sa
from starlette.testclient import TestClient

from health_pipeline.connections.callback import path_token
from health_pipeline.connections.connect import connect_sandbox_person
from health_pipeline.connections.users import ensure_user
from health_pipeline.connections.vault import Vault
from health_pipeline.providers.registry import all_providers, get
from health_pipeline.sandbox.routers import WebhookCall
from health_pipeline.sandbox.server import RunningSandbox
from health_pipeline.settings import Settings
from health_pipeline.warehouse.connection import Warehouse

SECRET = "active-secret"
DAY = dt.date(2026, 9, 10)
#: Those that the sandbox speaks for.
SENDERS = [
    name
    for name, provider in all_providers().items()
    if provider.webhook is not None and provider.door == "fetch"
]
#: Google signs by keys that it publishes; they are looked up by the caller of the receiver.
SIGNED_BY_SECRET = [name for name in SENDERS if name != "google_health"]


def address(name: str) -> str:
    webhook = get(name).webhook
    assert webhook is not None
    return f"/webhooks/{name}" + (f"/{path_token(SECRET, name)}" if webhook.secret_path else "")


def send(client: TestClient, name: str, call: WebhookCall, **headers: str) -> httpx.Response:
    return client.post(
        address(name), content=call.body, headers={**call.headers, **headers}, params=dict(call.query)
    )


def calls_of(sandbox: RunningSandbox, name: str) -> list[WebhookCall]:
    return list(sandbox.app.state.apis[name].webhooks("ada", DAY, SECRET))


def connected(
    settings: Settings, warehouse: Warehouse, vault: Vault, sandbox: RunningSandbox, name: str
) -> int:
    with warehouse.engine.begin() as connection:
        user = ensure_user(connection, "ada", "Europe/Berlin")
    settings = settings.model_copy(update={"sandbox_url": sandbox.url})
    connect_sandbox_person(settings, warehouse, vault, get(name), "ada")
    return user.user_id


def rows(warehouse: Warehouse, query: str) -> list[sa.Row[tuple[object, ...]]]:
    with warehouse.engine.connect() as connection:
        return list(connection.execute(sa.text(query)))
