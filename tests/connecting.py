"""People of a sandbox as users of a warehouse, connected to Oura the way users are."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, replace
from typing import Any

import httpx
import sqlalchemy as sa

from health_pipeline.connections.accounts import Tokens, save_connection
from health_pipeline.connections.endpoints import Endpoint, endpoint_of
from health_pipeline.connections.oauth import connect_with_hint
from health_pipeline.connections.users import ensure_user
from health_pipeline.connections.vault import Vault
from health_pipeline.providers.registry import get
from health_pipeline.sandbox.server import RunningSandbox
from health_pipeline.settings import Settings
from health_pipeline.warehouse.connection import Warehouse

#: Where the clock of the tests' sandboxes stands.
NOW = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
OURA = get("oura")

EXPIRED = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)


@dataclass(frozen=True)
class Connected:
    user_id: int
    account_id: int
    tokens: Tokens


def sandbox_endpoint(url: str, settings: Settings) -> Endpoint:
    return endpoint_of(OURA, settings.model_copy(update={"sandbox_url": url}))


def connect(
    warehouse: Warehouse,
    vault: Vault,
    endpoint: Endpoint,
    handle: str,
    *,
    zone: str | None = "Europe/London",
    scopes: tuple[str, ...] | None = None,
    expires_at: dt.datetime | None = None,
) -> Connected:
    """Grant access in the sandbox and save the connection; `expires_at` changes what we believe of the token."""
    if scopes is not None:
        endpoint = replace(endpoint, oauth=replace(endpoint.oauth, scopes=scopes))
    with warehouse.engine.begin() as connection:
        user = ensure_user(connection, handle, zone)
    tokens = connect_with_hint(endpoint, handle)
    if expires_at is not None:
        tokens = replace(tokens, expires_at=expires_at)
    account_id = save_connection(
        warehouse.engine,
        vault,
        user_id=user.user_id,
        provider="oura",
        provider_user_id=f"{handle}-at-oura",
        environment="sandbox",
        tokens=tokens,
        profile={"age": 30},
        consent_version="test-1",
    )
    return Connected(user.user_id, account_id, tokens)


def account_row(warehouse: Warehouse, account_id: int) -> Any:
    with warehouse.engine.connect() as connection:
        return connection.execute(
            sa.text("select * from ops.provider_accounts where account_id = :id"), {"id": account_id}
        ).one()


def order(url: str, kind: str, **rest: Any) -> None:
    """Switch a fault on."""
    answer = httpx.post(f"{url}/__faults", json={"provider": "oura", "kind": kind, **rest})
    assert answer.status_code == 201, answer.text


def as_new(sandbox: RunningSandbox) -> None:
    """Make a sandbox forget what an earlier test did to it; grants that were ended stay so.

    Terra's connections, which keep their ids when they are made again, are not ended any more.
    """
    state = sandbox.app.state
    state.faults.clear()
    state.faults.requests.clear()
    state.sandbox.fix_time(None)
    for api in state.apis.values():
        api.oauth.counts.clear()
        api.subscribers.clear()
    state.apis["terra"].oauth._ended.clear()
    state.apis["terra"].oauth.connected.clear()
    for documents in state.apis["oura"]._documents.values():
        documents.edits.clear()
        documents.deleted.clear()


def calm(url: str) -> None:
    """Switch all faults off and forget what was asked."""
    httpx.delete(f"{url}/__faults").raise_for_status()
    httpx.delete(f"{url}/__requests").raise_for_status()


def asked(url: str, *, path: str = "", status: int | None = None) -> int:
    """How often paths that contain `path` were asked for, of all requests or those answered with `status`."""
    rows = httpx.get(f"{url}/__requests").raise_for_status().json()["requests"]
    return sum(row["count"] for row in rows if path in row["path"] and status in (None, row["status"]))


def stats(url: str) -> dict[str, int]:
    """How often Oura's authorization server was asked, by kind of grant."""
    counts: dict[str, int] = httpx.get(f"{url}/__stats").raise_for_status().json()["oura"]
    return counts
