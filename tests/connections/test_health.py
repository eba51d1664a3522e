"""How connections are: each state with its reason, in the command and in Dagster's check."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
import sqlalchemy as sa
from connecting import Connected, connect
from house import House

from health_pipeline.connections.accounts import record_failure, record_success
from health_pipeline.connections.disconnect import withdraw
from health_pipeline.connections.endpoints import Endpoint
from health_pipeline.connections.health import account_health
from health_pipeline.connections.vault import Vault
from health_pipeline.sandbox.server import RunningSandbox
from health_pipeline.settings import Settings
from health_pipeline.warehouse.connection import Warehouse


def ago(**time: float) -> dt.datetime:
    return dt.datetime.now(dt.UTC) - dt.timedelta(**time)


@pytest.fixture
def ada(warehouse: Warehouse, vault: Vault, endpoint: Endpoint) -> Connected:
    found = connect(warehouse, vault, endpoint, "ada")
    record_success(warehouse.engine, found.account_id, ago(hours=1))
    return found


def execute(warehouse: Warehouse, statement: str) -> None:
    with warehouse.engine.begin() as connection:
        connection.exec_driver_sql(statement)


def consent(warehouse: Warehouse, expires: str) -> None:
    execute(
        warehouse,
        "insert into ops.connector_consent_ledger (user_id, provider, event, text_version, expires_at) "
        f"select user_id, provider, 'granted', 'test-1', {expires} from ops.provider_accounts",
    )


STATES = {
    "error": (
        "update ops.provider_accounts set status = 'error', last_error = 'gone'",
        "gone; health-pipeline connect",
    ),
    "pending": ("update ops.provider_accounts set status = 'pending'", "waits for its person"),
    "expired": (
        "update ops.connector_tokens set refresh_token = null, expires_at = now() - interval '1 hour'",
        "cannot be renewed",
    ),
    "expiring": (
        "update ops.connector_tokens set refresh_token = null, expires_at = now() + interval '6 days'",
        "the token ends on",
    ),
    "failing": ("update ops.provider_accounts set last_error = 'server error 502'", "server error 502"),
    "never synced": (
        "update ops.provider_accounts set last_sync_at = null",
        "nothing was fetched",
    ),
    # Oura is asked every four hours.
    "silent": (
        "update ops.provider_accounts set last_sync_at = now() - interval '11 hours'",
        "no sync for 11 h",
    ),
    "disconnected": ("update ops.provider_accounts set status = 'disconnected'", None),
    "well": ("update ops.connector_tokens set expires_at = now() - interval '1 hour'", None),
}


@pytest.mark.parametrize("state", STATES)
def test_each_state_and_its_reason(warehouse: Warehouse, ada: Connected, state: str) -> None:
    statement, why = STATES[state]
    execute(warehouse, statement)
    later = dt.datetime.now(dt.UTC) + dt.timedelta(hours=27 if state == "never synced" else 0)
    (found,) = account_health(warehouse.engine, now=later)
    assert found.state == state
    assert (why is None and found.why is None) or (why is not None and why in str(found.why))
    assert found.needs_attention == (state not in ("well", "disconnected"))


def test_a_consent_that_is_over_or_about_to_be(warehouse: Warehouse, ada: Connected) -> None:
    consent(warehouse, "now() + interval '3 days'")
    (found,) = account_health(warehouse.engine)
    assert (found.state, "the consent ends on" in str(found.why)) == ("expiring", True)
    consent(warehouse, "now()")
    (found,) = account_health(warehouse.engine)
    assert found.state == "consent over"
    withdraw(warehouse.engine, "oura", ada.user_id)
    assert account_health(warehouse.engine)[0].state == "disconnected"


def test_a_new_account_is_given_a_day_for_its_first_sync(
    warehouse: Warehouse, vault: Vault, endpoint: Endpoint
) -> None:
    connect(warehouse, vault, endpoint, "ada")
    assert account_health(warehouse.engine)[0].state == "well"


def test_the_check_counts_states_and_names_nobody(
    settings: Settings, warehouse: Warehouse, vault: Vault, endpoint: Endpoint, ada: Connected
) -> None:
    from dagster import build_asset_check_context  # noqa: F401 - dagster is slow to import

    from health_pipeline.defs.checks import _accounts_healthy
    from health_pipeline.defs.resources import Platform
    from health_pipeline.providers.registry import get

    check = _accounts_healthy(get("oura"))
    assert check(Platform()).passed  # type: ignore[call-arg]
    ben = connect(warehouse, vault, endpoint, "ben")
    record_failure(warehouse.engine, ben.account_id, "the grant was refused", reconnect=True)
    result = check(Platform())  # type: ignore[call-arg]
    assert not result.passed
    said = {name: value.value for name, value in result.metadata.items()}
    assert said["accounts_in_trouble"] == 1
    assert said["states"] == "error: 1, well: 1"
    assert f"account {ben.account_id} (error): the grant was refused" in said["accounts"]
    assert "ben" not in said["accounts"]


def test_the_commands_show_end_and_merge(
    settings: Settings,
    warehouse: Warehouse,
    vault: Vault,
    endpoint: Endpoint,
    sandbox: RunningSandbox,
    ada: Connected,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The command line itself, once through."""
    monkeypatch.setenv("HEALTH_PIPELINE_SANDBOX_URL", sandbox.url)
    house = House(settings, warehouse, sandbox, tmp_path)
    shown = house.command("accounts")
    assert shown.returncode == 0, shown.stderr
    assert [word in shown.stdout for word in ("ada", "oura", "well", "open")] == [True] * 4
    rotated = house.command("vault", "rotate")
    assert "1 accounts' tokens are encrypted with the key" in rotated.stdout, rotated.stderr
    ended = house.command("disconnect", "oura", "--user", "ada", "--delete-data", "--yes")
    assert "Oura is disconnected for ada; its tokens are deleted" in ended.stdout, ended.stderr
    assert "erased 0 raw objects" in ended.stdout
    with warehouse.engine.begin() as connection:
        connection.execute(sa.text("insert into ops.users (handle) values ('eda')"))
    merged = house.command("user", "merge", "ada", "--into", "eda", "--yes")
    assert "ada is eda now: 1 accounts" in merged.stdout, merged.stderr
    assert house.command("user", "merge", "ada", "--into", "eda", "--yes").returncode == 1
