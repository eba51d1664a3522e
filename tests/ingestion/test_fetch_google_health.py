"""The fetch door for Google Health, whose refresh tokens come once, and for Fitbit, whose API is no more."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from connecting import EXPIRED, account_row

from health_pipeline.connections.accounts import Tokens, save_connection
from health_pipeline.connections.endpoints import ProviderShutDownError, endpoint_of
from health_pipeline.connections.oauth import connect_with_hint
from health_pipeline.connections.users import ensure_user
from health_pipeline.connections.vault import Vault
from health_pipeline.ingestion.fetch import fetch
from health_pipeline.providers.base import Window
from health_pipeline.providers.registry import get
from health_pipeline.raw.index import Delivery, receive
from health_pipeline.raw.store import RawStore
from health_pipeline.sandbox.server import RunningSandbox
from health_pipeline.settings import Settings
from health_pipeline.warehouse.connection import Warehouse

DAY = dt.date(2026, 11, 10)
GOOGLE, FITBIT = get("google_health"), get("fitbit")


def connect(warehouse: Warehouse, vault: Vault, provider: str, tokens: Tokens, environment: str) -> Any:
    with warehouse.engine.begin() as connection:
        user = ensure_user(connection, "ada", "Europe/London")
    return user.user_id, save_connection(
        warehouse.engine,
        vault,
        user_id=user.user_id,
        provider=provider,
        provider_user_id="ada-there",
        environment=environment,
        tokens=tokens,
        profile={},
        consent_version="test-1",
    )


def count(warehouse: Warehouse, table: str, where: str) -> int:
    with warehouse.engine.connect() as connection:
        return int(connection.execute(sa.text(f"select count(*) from {table} where {where}")).scalar_one())


def test_an_account_is_fetched_again_and_again_with_the_one_refresh_token(
    warehouse: Warehouse, store: RawStore, vault: Vault, settings: Settings, sandbox: RunningSandbox
) -> None:
    settings = settings.model_copy(update={"sandbox_url": sandbox.url})
    tokens = connect_with_hint(endpoint_of(GOOGLE, settings), "ada")
    assert tokens.refresh_token
    _, account = connect(warehouse, vault, "google_health", replace(tokens, expires_at=EXPIRED), "sandbox")
    for known in (False, True):
        with warehouse.engine.begin() as connection:
            connection.execute(sa.text("update ops.connector_tokens set expires_at = now()"))
        report = fetch(warehouse, store, vault, settings, GOOGLE, Window(DAY, DAY))
        assert not report.failed
        assert account_row(warehouse, account).status == "active"
        assert account_row(warehouse, account).last_error is None
        assert (report.new_objects == 0) is known
    entities = "select count(distinct entity) from ops.raw_objects where provider = 'google_health'"
    with warehouse.engine.connect() as connection:
        fetched = connection.execute(sa.text(entities)).scalar_one()
    assert fetched == sum(entity.endpoint is not None for entity in GOOGLE.entities)
    renewals = httpx.get(f"{sandbox.url}/__stats").json()["google_health"]["refresh_token"]
    assert renewals == 2


def test_a_fitbit_account_is_told_to_connect_google_health_and_loses_nothing(
    warehouse: Warehouse, store: RawStore, vault: Vault, settings: Settings, sandbox: RunningSandbox
) -> None:
    settings = settings.model_copy(update={"sandbox_url": sandbox.url})
    user, account = connect(warehouse, vault, "fitbit", Tokens("access", "refresh", None), "live")
    received = dt.datetime(2026, 10, 1, tzinfo=dt.UTC)
    receive(
        warehouse.engine,
        store,
        [Delivery("fitbit", "sleep", user, "fetch", b"{}", received, DAY, DAY, "application/json")],
    )
    report = fetch(warehouse, store, vault, settings, FITBIT, Window(DAY, DAY))
    message = "Fitbit's Web API is shut down; connect Google Health"
    assert [result.error for result in report.failed] == [message]
    row = account_row(warehouse, account)
    assert (row.status, row.last_error) == ("error", message)
    assert count(warehouse, "ops.connector_tokens", f"account_id = {account}") == 1
    assert count(warehouse, "ops.raw_objects", "provider = 'fitbit'") == 1
    assert httpx.get(f"{sandbox.url}/__requests").json()["requests"] == []
    # Nobody is asked again, until the person connects.
    assert fetch(warehouse, store, vault, settings, FITBIT, Window(DAY, DAY)).accounts == []


def test_fitbit_cannot_be_connected(settings: Settings) -> None:
    live = settings.model_copy(update={"sandbox_url": "http://127.0.0.1:1"})
    with pytest.raises(ProviderShutDownError, match="connect Google Health"):
        endpoint_of(FITBIT, live)
