"""Connecting the sandbox's people, whichever way to consent a provider has."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from health_pipeline.connections.accounts import active_accounts
from health_pipeline.connections.connect import connect_sandbox_person
from health_pipeline.connections.oauth import ConsentError
from health_pipeline.connections.users import ensure_user
from health_pipeline.connections.vault import Vault
from health_pipeline.providers.registry import all_providers, connectable, get
from health_pipeline.sandbox.server import RunningSandbox
from health_pipeline.settings import Settings
from health_pipeline.warehouse.connection import Warehouse


@pytest.fixture
def boxed(settings: Settings, sandbox: RunningSandbox, warehouse: Warehouse) -> Settings:
    with warehouse.engine.begin() as connection:
        for handle in ("ada", "ben"):
            ensure_user(connection, handle, "Europe/Berlin")
    return settings.model_copy(update={"sandbox_url": sandbox.url})


def consents(warehouse: Warehouse) -> list[tuple[str, str]]:
    query = "select provider, event from ops.connector_consent_ledger order by provider"
    with warehouse.engine.connect() as connection:
        return [tuple(row) for row in connection.execute(sa.text(query))]


@pytest.mark.parametrize(("name", "has_tokens"), [("oura", True), ("librelinkup", True), ("terra", False)])
def test_each_way_to_consent_ends_in_an_account(
    boxed: Settings, warehouse: Warehouse, vault: Vault, name: str, has_tokens: bool
) -> None:
    account_id = connect_sandbox_person(boxed, warehouse, vault, get(name), "ada")
    (account,) = active_accounts(warehouse.engine, name)
    assert account.account_id == account_id
    assert account.environment == "sandbox"
    assert account.provider_user_id
    assert consents(warehouse) == [(name, "granted")]
    with warehouse.engine.connect() as connection:
        tokens = connection.exec_driver_sql("select count(*) from ops.connector_tokens").scalar_one()
    assert bool(tokens) == has_tokens


@pytest.mark.parametrize("name", ["dexcom", "librelinkup"])
def test_who_has_no_account_is_told_why_and_nothing_is_kept(
    boxed: Settings, warehouse: Warehouse, vault: Vault, name: str
) -> None:
    with pytest.raises(ConsentError, match="ben wears no glucose sensor"):
        connect_sandbox_person(boxed, warehouse, vault, get(name), "ben")
    assert active_accounts(warehouse.engine, name) == []
    assert consents(warehouse) == []


def test_nobody_is_connected_to_the_vendor_without_being_asked(
    boxed: Settings, warehouse: Warehouse, vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEALTH_PIPELINE_OURA_CLIENT_ID", "ours")
    with pytest.raises(ValueError, match="only the sandbox"):
        connect_sandbox_person(boxed, warehouse, vault, get("oura"), "ada")


def test_all_that_is_fetched_can_be_connected_but_what_is_shut_down() -> None:
    fetched = {name for name, provider in all_providers().items() if provider.door == "fetch"}
    assert fetched - {provider.name for provider in connectable()} == {"fitbit"}
