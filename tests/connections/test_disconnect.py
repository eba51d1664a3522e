"""Disconnecting: the provider is told, tokens go, nothing is fetched any more, and none of it twice."""

from __future__ import annotations

import datetime as dt
import logging
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from connecting import EXPIRED, OURA, account_row, connect, order, stats

from health_pipeline.connections.accounts import access_token, active_accounts, record_failure, record_success
from health_pipeline.connections.connect import connect_sandbox_person
from health_pipeline.connections.disconnect import deauthorized, disconnect
from health_pipeline.connections.endpoints import Endpoint
from health_pipeline.connections.users import ensure_user
from health_pipeline.connections.vault import Vault
from health_pipeline.ingestion import fetch as fetch_module
from health_pipeline.ingestion.fetch import fetch
from health_pipeline.providers.base import Window
from health_pipeline.providers.registry import connectable, get
from health_pipeline.raw.store import RawStore
from health_pipeline.sandbox.server import RunningSandbox
from health_pipeline.settings import Settings
from health_pipeline.warehouse.connection import Warehouse
from health_pipeline.warehouse.models import ConnectorToken

DAY = dt.date(2026, 11, 10)
#: Those that offer no call that we could make; the person is told where to go.
BY_HAND = {"dexcom", "polar_v4"}


@pytest.fixture
def boxed(settings: Settings, sandbox: RunningSandbox) -> Settings:
    return settings.model_copy(update={"sandbox_url": sandbox.url})


def tokens(warehouse: Warehouse) -> int:
    with warehouse.engine.connect() as connection:
        return int(connection.exec_driver_sql("select count(*) from ops.connector_tokens").scalar_one())


def ledger(warehouse: Warehouse) -> list[str]:
    with warehouse.engine.connect() as connection:
        rows = connection.exec_driver_sql("select event from ops.connector_consent_ledger order by entry_id")
        return list(rows.scalars())


@pytest.mark.parametrize("name", [provider.name for provider in connectable()])
def test_every_provider_is_told_where_it_can_be(
    boxed: Settings, warehouse: Warehouse, vault: Vault, sandbox: RunningSandbox, name: str
) -> None:
    with warehouse.engine.begin() as connection:
        user = ensure_user(connection, "ada", "Europe/Berlin")
    provider = get(name)
    account_id = connect_sandbox_person(boxed, warehouse, vault, provider, "ada")
    with warehouse.engine.connect() as connection:
        row = connection.execute(sa.select(ConnectorToken)).one_or_none()
    # Polar's tokens last until they are revoked, and come without one to renew them.
    kind = "access" if row is None or row.refresh_token is None else "refresh"
    token = None if row is None else vault.decrypt(row.key_id, getattr(row, f"{kind}_token"))

    left = disconnect(warehouse, vault, boxed, provider, user.user_id)

    assert (left is not None) == (name in BY_HAND), left
    if left is not None:
        assert f"settings of your {provider.title} account" in left
    assert tokens(warehouse) == 0
    assert ledger(warehouse) == ["granted", "withdrawn"]
    assert account_row(warehouse, account_id).status == "disconnected"
    assert active_accounts(warehouse.engine, name) == []
    if provider.oauth is not None and name not in BY_HAND:
        api: Any = sandbox.app.state.apis[name]
        with pytest.raises(Exception, match=r"revoked|already used"):
            api.oauth._read(kind, token)
    # Said again, nothing more happens.
    disconnect(warehouse, vault, boxed, provider, user.user_id)
    assert ledger(warehouse) == ["granted", "withdrawn"]


def test_an_expired_token_is_renewed_to_tell_the_provider_and_none_is_logged(
    boxed: Settings,
    warehouse: Warehouse,
    vault: Vault,
    endpoint: Endpoint,
    sandbox: RunningSandbox,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Oura takes the token to revoke in the address."""
    ada = connect(warehouse, vault, endpoint, "ada", expires_at=EXPIRED)
    caplog.set_level(logging.DEBUG)
    assert disconnect(warehouse, vault, boxed, OURA, ada.user_id) is None
    assert stats(sandbox.url)["revoke"] == 1
    assert stats(sandbox.url)["refresh_token"] == 1
    assert "oauth/token" in caplog.text
    assert "access_token" not in caplog.text
    assert ada.tokens.access_token[20:60] not in caplog.text


def test_withings_is_told_by_a_signature_and_not_by_a_token(
    boxed: Settings,
    warehouse: Warehouse,
    vault: Vault,
    sandbox: RunningSandbox,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """So it is told, too, where the tokens are no good any more. Neither secret nor signature is logged."""
    withings = get("withings")
    with warehouse.engine.begin() as connection:
        user = ensure_user(connection, "ada", "Europe/Berlin")
    connect_sandbox_person(boxed, warehouse, vault, withings, "ada")
    caplog.set_level(logging.DEBUG)
    assert disconnect(warehouse, vault, boxed, withings, user.user_id) is None
    api: Any = sandbox.app.state.apis["withings"]
    assert (api.oauth.counts["revoke"], api._nonces) == (1, {})
    assert "v2/signature" in caplog.text
    assert "sandbox-secret" not in caplog.text and "signature=" not in caplog.text
    # A secret that is not theirs any more: the person is told where to go.
    connect_sandbox_person(boxed, warehouse, vault, withings, "ada")
    sandbox.app.state.sandbox.settings.clients["sandbox"] = "another secret"
    try:
        left = disconnect(warehouse, vault, boxed, withings, user.user_id)
    finally:
        sandbox.app.state.sandbox.settings.clients["sandbox"] = "sandbox-secret"
    assert left is not None and "settings of your Withings account" in left
    assert api.oauth.counts["revoke"] == 1
    assert tokens(warehouse) == 0


def test_a_provider_that_is_down_does_not_keep_anybody(
    boxed: Settings, warehouse: Warehouse, vault: Vault, endpoint: Endpoint, sandbox: RunningSandbox
) -> None:
    ada = connect(warehouse, vault, endpoint, "ada")
    order(sandbox.url, "server_error", path_contains="oauth/revoke")
    left = disconnect(warehouse, vault, boxed, OURA, ada.user_id)
    assert left is not None
    assert "could not be told (the provider did not revoke (503))" in left
    assert tokens(warehouse) == 0
    assert active_accounts(warehouse.engine, "oura") == []


def test_a_disconnect_that_was_killed_goes_on(
    boxed: Settings,
    warehouse: Warehouse,
    vault: Vault,
    endpoint: Endpoint,
    sandbox: RunningSandbox,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ada = connect(warehouse, vault, endpoint, "ada")
    module = "health_pipeline.connections.disconnect"
    with monkeypatch.context() as killed:
        killed.setattr(f"{module}._tell_provider", _killed)
        killed.setattr(f"{module}.forget_tokens", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            disconnect(warehouse, vault, boxed, OURA, ada.user_id)
    assert active_accounts(warehouse.engine, "oura") == []
    assert disconnect(warehouse, vault, boxed, OURA, ada.user_id) is None
    assert stats(sandbox.url)["revoke"] == 1
    assert tokens(warehouse) == 0
    assert ledger(warehouse) == ["granted", "withdrawn"]


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_what_a_fetch_under_way_brings_afterwards_is_not_kept(
    boxed: Settings,
    warehouse: Warehouse,
    vault: Vault,
    store: RawStore,
    endpoint: Endpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ada = connect(warehouse, vault, endpoint, "ada")
    kept = fetch_module.while_connected

    def leave(engine: sa.Engine, account_id: int) -> Any:
        if active_accounts(engine, "oura"):
            disconnect(warehouse, vault, boxed, OURA, ada.user_id)
        return kept(engine, account_id)

    monkeypatch.setattr(fetch_module, "while_connected", leave)
    report = fetch(warehouse, store, vault, boxed, OURA, Window(DAY, DAY))
    assert report.new_objects == 0
    assert "the account was disconnected" in str(report.failed[0].error)
    assert account_row(warehouse, ada.account_id).status == "disconnected"
    with warehouse.engine.connect() as connection:
        for table in ("raw_objects", "fetched_windows"):
            assert connection.exec_driver_sql(f"select count(*) from ops.{table}").scalar_one() == 0


def test_a_disconnected_account_stays_so_whatever_a_sync_says(
    boxed: Settings, warehouse: Warehouse, vault: Vault, endpoint: Endpoint
) -> None:
    ada = connect(warehouse, vault, endpoint, "ada")
    disconnect(warehouse, vault, boxed, OURA, ada.user_id)
    record_failure(warehouse.engine, ada.account_id, "refused", reconnect=True)
    record_success(warehouse.engine, ada.account_id, dt.datetime.now(dt.UTC))
    row = account_row(warehouse, ada.account_id)
    assert (row.status, row.last_error, row.last_sync_at) == ("disconnected", None, None)


def test_who_withdraws_at_the_provider_is_disconnected_here(
    warehouse: Warehouse, vault: Vault, endpoint: Endpoint, sandbox: RunningSandbox
) -> None:
    connect(warehouse, vault, endpoint, "ada")
    ben = connect(warehouse, vault, endpoint, "ben")
    assert deauthorized(warehouse.engine, OURA, "live", "ben-at-oura") is None
    assert deauthorized(warehouse.engine, OURA, "sandbox", "ben-at-oura") == ben.account_id
    assert deauthorized(warehouse.engine, OURA, "sandbox", "nobody") is None
    assert [account.provider_user_id for account in active_accounts(warehouse.engine, "oura")] == [
        "ada-at-oura"
    ]
    assert tokens(warehouse) == 1
    assert "revoke" not in stats(sandbox.url)


def test_who_connects_again_is_fetched_again(
    boxed: Settings, warehouse: Warehouse, vault: Vault, endpoint: Endpoint
) -> None:
    ada = connect(warehouse, vault, endpoint, "ada")
    disconnect(warehouse, vault, boxed, OURA, ada.user_id)
    again = connect(warehouse, vault, endpoint, "ada")
    assert [each.account_id for each in active_accounts(warehouse.engine, "oura")] == [ada.account_id]
    token = access_token(warehouse.engine, vault, ada.account_id, lambda _: again.tokens)
    url = f"{endpoint.base_url}/v2/usercollection/personal_info"
    assert httpx.get(url, headers={"Authorization": f"Bearer {token}"}).status_code == 200
    assert ledger(warehouse) == ["granted", "withdrawn", "granted"]


def test_nobody_to_disconnect_is_said(boxed: Settings, warehouse: Warehouse, vault: Vault) -> None:
    with pytest.raises(LookupError, match="no oura account"):
        disconnect(warehouse, vault, boxed, OURA, 17)
