"""Accounts with a password: what is stored, how they are renewed, and a fetch through the whole door."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import replace

import pytest
import sqlalchemy as sa
from connecting import EXPIRED, account_row

from health_pipeline.connections.accounts import (
    ReconnectError,
    RenewalError,
    access_token,
    save_connection,
)
from health_pipeline.connections.endpoints import Endpoint, endpoint_of
from health_pipeline.connections.oauth import ConsentError
from health_pipeline.connections.password import refresher, sign_in
from health_pipeline.connections.users import ensure_user
from health_pipeline.connections.vault import Vault
from health_pipeline.ingestion.fetch import fetch
from health_pipeline.providers.base import Window
from health_pipeline.providers.http import ApiClient
from health_pipeline.providers.registry import get
from health_pipeline.raw.store import RawStore
from health_pipeline.sandbox.people import person
from health_pipeline.sandbox.routers.librelinkup import password_of
from health_pipeline.sandbox.server import RunningSandbox
from health_pipeline.settings import Settings
from health_pipeline.warehouse.connection import Warehouse

LIBRE = get("librelinkup")
ADA = (person("ada").email, password_of(person("ada")))
STORED = json.dumps({"user_name": ADA[0], "password": ADA[1]})
TODAY = Window(dt.date(2026, 11, 21), dt.date(2026, 11, 21))


@pytest.fixture
def libre(sandbox: RunningSandbox) -> Endpoint:
    api = sandbox.app.state.apis["librelinkup"]
    api.pending_step = None
    api._failures.clear()
    api._locked_until.clear()
    return endpoint_of(LIBRE, Settings(sandbox_url=sandbox.url))


def connect(
    warehouse: Warehouse, vault: Vault, libre: Endpoint, expires_at: dt.datetime | None = None
) -> int:
    tokens = sign_in(LIBRE, libre, *ADA)
    with ApiClient(
        LIBRE.name,
        libre.base_url,
        lambda _: tokens.access_token,
        authorize=libre.authorizer(LIBRE),
        regions=libre.regions,
        region_of=LIBRE.region_of,
    ) as client:
        assert LIBRE.identify is not None
        account = LIBRE.identify(client)
    with warehouse.engine.begin() as connection:
        user = ensure_user(connection, "ada", "Europe/London")
    return save_connection(
        warehouse.engine,
        vault,
        user_id=user.user_id,
        provider=LIBRE.name,
        provider_user_id=account.provider_user_id,
        environment=libre.environment,
        tokens=tokens if expires_at is None else replace(tokens, expires_at=expires_at),
        profile={},
        consent_version="test-1",
    )


def test_a_sign_in_gives_tokens_that_can_be_renewed(libre: Endpoint) -> None:
    tokens = sign_in(LIBRE, libre, *ADA)
    assert json.loads(tokens.refresh_token or "") == {"user_name": ADA[0], "password": ADA[1]}
    assert tokens.access_token.startswith("eu2:")
    assert tokens.expires_at is not None
    renewed = refresher(LIBRE, libre)(tokens.refresh_token or "")
    assert renewed.refresh_token == tokens.refresh_token
    assert renewed.access_token != tokens.access_token


def test_a_refused_password_ends_the_connection_and_is_in_no_message(libre: Endpoint) -> None:
    with pytest.raises(ConsentError, match="password was refused") as refused:
        sign_in(LIBRE, libre, ADA[0], "a wrong secret")
    wrong = json.dumps({"user_name": ADA[0], "password": "a wrong secret"})
    with pytest.raises(ReconnectError, match="password was refused") as dead:
        refresher(LIBRE, libre)(wrong)
    for error in (refused.value, dead.value):
        assert "secret" not in str(error)
        assert error.__context__ is None


def test_what_may_pass_keeps_the_connection(sandbox: RunningSandbox, libre: Endpoint) -> None:
    sandbox.app.state.apis["librelinkup"].pending_step = "tou"
    with pytest.raises(RenewalError, match="accept the new terms of use"):
        refresher(LIBRE, libre)(STORED)
    gone = replace(libre, base_url="http://127.0.0.1:9")
    with pytest.raises(RenewalError, match="unavailable"):
        refresher(LIBRE, gone)(STORED)


@pytest.mark.parametrize("stored", ["", "a refresh token", "[]", '{"user_name": "ada"}'])
def test_what_is_no_password_asks_to_connect_again(libre: Endpoint, stored: str) -> None:
    with pytest.raises(ReconnectError, match="no user name and password"):
        refresher(LIBRE, libre)(stored)


def test_an_expired_ticket_is_renewed_once_and_the_fetch_goes_on(
    warehouse: Warehouse,
    vault: Vault,
    store: RawStore,
    settings: Settings,
    sandbox: RunningSandbox,
    libre: Endpoint,
) -> None:
    settings_here = settings.model_copy(update={"sandbox_url": sandbox.url})
    account_id = connect(warehouse, vault, libre, EXPIRED)
    report = fetch(warehouse, store, vault, settings_here, LIBRE, TODAY)
    assert (report.new_objects, report.failed) == (2, [])
    # Once to connect, once for the expired ticket.
    assert sandbox.app.state.apis["librelinkup"].oauth.counts["login"] == 2
    assert account_row(warehouse, account_id).status == "active"
    again = fetch(warehouse, store, vault, settings_here, LIBRE, TODAY)
    assert (again.new_objects, again.known_objects) == (0, 2)

    sandbox.app.state.apis["librelinkup"].oauth.revoke_person("ada")
    token = access_token(warehouse.engine, vault, account_id, refresher(LIBRE, libre))
    third = fetch(warehouse, store, vault, settings_here, LIBRE, TODAY)
    assert third.failed == []
    assert access_token(warehouse.engine, vault, account_id, refresher(LIBRE, libre)) != token


def test_the_password_is_nowhere_in_the_clear(warehouse: Warehouse, vault: Vault, libre: Endpoint) -> None:
    connect(warehouse, vault, libre)
    with warehouse.engine.connect() as connection:
        everything = " ".join(
            str(row)
            for table in ("connector_tokens", "provider_accounts", "consent_ledger")
            if connection.execute(sa.text("select to_regclass(:name)"), {"name": f"ops.{table}"}).scalar()
            for row in connection.execute(sa.text(f"select t::text from ops.{table} as t"))
        )
    assert "librelinkup" in everything
    assert ADA[1] not in everything
    assert ADA[0] not in everything
