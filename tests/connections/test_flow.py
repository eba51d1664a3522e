"""A person's way to consent and back to a loopback port, and what they are told when it goes wrong."""

from __future__ import annotations

import socket
import threading
from contextlib import closing

import httpx
import pytest
import sqlalchemy as sa
from connecting import connect, order
from consenting import waiting

from health_pipeline.connections.accounts import AccountTakenError, active_accounts
from health_pipeline.connections.endpoints import Endpoint
from health_pipeline.connections.flow import Completed, complete
from health_pipeline.connections.oauth import ConsentError
from health_pipeline.connections.pages import CALLBACK_PATH
from health_pipeline.connections.vault import Vault
from health_pipeline.providers.registry import connectable, get
from health_pipeline.runtime.connect import Connecting
from health_pipeline.sandbox.server import RunningSandbox
from health_pipeline.settings import Settings
from health_pipeline.warehouse.connection import Warehouse

ELSEWHERE = "https://example.org/oauth/callback"


@pytest.fixture
def boxed(settings: Settings, sandbox: RunningSandbox) -> Settings:
    return settings.model_copy(update={"sandbox_url": sandbox.url})


def stored(warehouse: Warehouse) -> dict[str, int]:
    tables = ("provider_accounts", "connector_tokens", "connector_consent_ledger", "identities")
    with warehouse.engine.connect() as connection:
        return {
            table: connection.exec_driver_sql(f"select count(*) from ops.{table}").scalar_one()
            for table in tables
            if connection.exec_driver_sql(f"select count(*) from ops.{table}").scalar_one()
        }


WITH_A_PAGE = [provider.name for provider in connectable() if provider.password is None]


@pytest.mark.parametrize("name", WITH_A_PAGE)
def test_every_provider_with_a_page_connects_through_it(
    boxed: Settings, warehouse: Warehouse, vault: Vault, name: str
) -> None:
    with waiting(boxed, warehouse, name) as under_way:
        shown = under_way.decide(login_hint="ada")
        assert shown.status_code == 200
        assert f"{get(name).title} is connected" in shown.text
        completed = under_way.end()
    (account,) = active_accounts(warehouse.engine, name)
    assert (account.account_id, account.user_id) == (completed.account_id, completed.user_id)
    with warehouse.engine.connect() as connection:
        consent = connection.exec_driver_sql("select * from ops.connector_consent_ledger").one()
        identities = connection.exec_driver_sql("select system, external_id from ops.identities").all()
        kept = connection.exec_driver_sql("select * from ops.oauth_states").one()
    assert consent.event == "granted"
    assert "read ada's data" in consent.text
    # Polar's v4 does not say whose account it is.
    assert (account.provider_user_id is None) == (name == "polar_v4")
    known = [] if account.provider_user_id is None else [(f"sandbox:{name}", account.provider_user_id)]
    assert [tuple(identity) for identity in identities] == known
    assert kept.used_at is not None
    # What the page was asked with is nowhere in the clear.
    state = httpx.URL(under_way.address).params.get("state")
    assert state is None or state.encode() not in bytes(kept.state_sha256)


def test_denied_consent_ends_the_command_and_stores_nothing(
    boxed: Settings, warehouse: Warehouse, vault: Vault
) -> None:
    with waiting(boxed, warehouse) as under_way:
        shown = under_way.decide(decision="deny")
        assert shown.status_code == 400
        assert "Oura is not connected" in shown.text
        assert "access_denied" in shown.text
        with pytest.raises(ConsentError, match="did not grant access \\(access_denied\\)"):
            under_way.end()
    assert stored(warehouse) == {}


@pytest.mark.parametrize("query", ["code=canary&state=somebody-elses", "code=canary", "state=ä&error=<b>"])
def test_an_answer_to_nobodys_request_is_told_so_and_the_right_one_is_still_waited_for(
    boxed: Settings, warehouse: Warehouse, vault: Vault, query: str
) -> None:
    with waiting(boxed, warehouse) as under_way:
        shown = httpx.get(f"{under_way.back}?{query}")
        assert shown.status_code == 400
        assert "not an answer to a request of ours" in shown.text
        assert "canary" not in shown.text
        assert "<b>" not in shown.text
        assert under_way.goes_on
        assert stored(warehouse) == {}
        under_way.decide(login_hint="ada")
        assert under_way.end().provider == "oura"


def test_an_answer_is_good_once(boxed: Settings, warehouse: Warehouse, vault: Vault) -> None:
    with waiting(boxed, warehouse) as first:
        sent_back = httpx.get(httpx.URL(first.address).copy_merge_params({"login_hint": "ada"}))
        answer = httpx.URL(sent_back.headers["location"])
        assert httpx.get(answer).status_code == 200
        first.end()
    before = stored(warehouse)
    with waiting(boxed, warehouse) as second:
        again = httpx.get(httpx.URL(second.back).copy_with(query=answer.query))
        assert again.status_code == 400
        assert "This answer was used already" in again.text
        assert second.goes_on
        assert stored(warehouse) == before


def test_two_who_come_with_one_answer_at_once_are_one(
    boxed: Settings, warehouse: Warehouse, vault: Vault
) -> None:
    connecting = Connecting(boxed, warehouse, "oura", "ada")
    address = connecting._begin(ELSEWHERE)
    answer = httpx.get(httpx.URL(address).copy_merge_params({"login_hint": "ada"})).headers["location"]
    ended: list[object] = []

    def come() -> None:
        try:
            ended.append(complete(warehouse, vault, boxed, answer))
        except ConsentError as error:
            ended.append(str(error))

    threads = [threading.Thread(target=come) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(each, Completed) for each in ended) == 1
    assert sum("used before" in str(each) for each in ended) == 3


def test_an_answer_that_comes_too_late_is_told_so_and_ends_the_command(
    boxed: Settings, warehouse: Warehouse, vault: Vault
) -> None:
    with waiting(boxed, warehouse) as under_way:
        with warehouse.engine.begin() as connection:
            lifetime = connection.exec_driver_sql("select expires_at - created_at from ops.oauth_states")
            assert 595 < lifetime.scalar_one().total_seconds() < 605
            connection.exec_driver_sql("update ops.oauth_states set expires_at = now()")
        shown = under_way.decide(login_hint="ada")
        assert shown.status_code == 400
        assert "This answer came too late" in shown.text
        with pytest.raises(ConsentError, match="too late, after 10 minutes"):
            under_way.end()
    assert stored(warehouse) == {}


def test_an_answer_at_another_address_is_not_taken(
    boxed: Settings, warehouse: Warehouse, vault: Vault
) -> None:
    """As when two commands wait at once, and somebody swaps the ports."""
    with waiting(boxed, warehouse) as mine, waiting(boxed, warehouse, handle="ben") as other:
        sent_back = httpx.get(httpx.URL(mine.address).copy_merge_params({"login_hint": "ada"}))
        swapped = httpx.URL(other.back).copy_with(query=httpx.URL(sent_back.headers["location"]).query)
        shown = httpx.get(swapped)
        assert shown.status_code == 400
        assert "came to the wrong address" in shown.text
        with pytest.raises(ConsentError, match="redirect URI"):
            other.end()
    assert stored(warehouse) == {}


def test_other_paths_of_the_port_are_nothing(boxed: Settings, warehouse: Warehouse, vault: Vault) -> None:
    with waiting(boxed, warehouse) as under_way:
        shown = httpx.get(under_way.back.replace(CALLBACK_PATH, "/favicon.ico"))
        assert shown.status_code == 404
        assert under_way.goes_on


def test_a_code_that_the_provider_refuses_ends_the_command(
    boxed: Settings, warehouse: Warehouse, vault: Vault
) -> None:
    with waiting(boxed, warehouse) as under_way:
        state = httpx.URL(under_way.address).params["state"]
        shown = httpx.get(f"{under_way.back}?code=canary&state={state}")
        assert "refused the code (invalid_grant)" in shown.text
        assert "canary" not in shown.text
        with pytest.raises(ConsentError, match="refused the code"):
            under_way.end()
    assert stored(warehouse) == {}


def test_one_account_at_a_provider_is_one_users(boxed: Settings, warehouse: Warehouse, vault: Vault) -> None:
    with waiting(boxed, warehouse) as under_way:
        under_way.decide(login_hint="ada")
        under_way.end()
    before = stored(warehouse)
    with waiting(boxed, warehouse, handle="also-ada") as under_way:
        shown = under_way.decide(login_hint="ada")
        assert "connected as &#x27;ada&#x27; already" in shown.text
        with pytest.raises(AccountTakenError, match="merge the two users"):
            under_way.end()
    assert stored(warehouse) == before
    with warehouse.engine.begin() as connection:
        connection.exec_driver_sql("update ops.provider_accounts set status = 'disconnected'")
    with waiting(boxed, warehouse, handle="also-ada") as under_way:
        under_way.decide(login_hint="ada")
        completed = under_way.end()
    with warehouse.engine.connect() as connection:
        owner = connection.exec_driver_sql("select user_id from ops.identities").scalar_one()
    assert owner == completed.user_id


def test_a_machine_without_a_browser_takes_the_address_by_hand(
    boxed: Settings, warehouse: Warehouse, vault: Vault
) -> None:
    shown: list[str] = []

    def person() -> str:
        page = httpx.URL(shown[0]).copy_merge_params({"login_hint": "ada"})
        return f" {httpx.get(page).headers['location']}\n"

    connecting = Connecting(boxed, warehouse, "google_health", "ada")
    completed = connecting.with_pasted_address(ELSEWHERE, lambda url, _: shown.append(url), person)
    assert active_accounts(warehouse.engine, "google_health")[0].account_id == completed.account_id


def test_a_port_that_is_taken_is_named(boxed: Settings, warehouse: Warehouse, vault: Vault) -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        connecting = Connecting(boxed, warehouse, "oura", "ada")
        with pytest.raises(OSError, match=f"port {port} of 127.0.0.1 is taken.*--port"):
            connecting.with_browser(port, lambda *_: None, browser=False)


def test_a_password_connects_and_a_wrong_one_does_not(
    boxed: Settings, warehouse: Warehouse, vault: Vault, sandbox: RunningSandbox
) -> None:
    known = httpx.get(f"{sandbox.url}/__accounts/librelinkup/ada").json()
    connecting = Connecting(boxed, warehouse, "librelinkup", "ada")
    with pytest.raises(ConsentError) as refused:
        connecting.with_password(known["user_name"], "password-canary")
    assert "canary" not in str(refused.value)
    assert stored(warehouse) == {}
    connecting.with_password(known["user_name"], known["password"])
    assert len(active_accounts(warehouse.engine, "librelinkup")) == 1


def test_a_consent_that_ends_stops_the_fetching(
    boxed: Settings, warehouse: Warehouse, vault: Vault, sandbox: RunningSandbox
) -> None:
    known = httpx.get(f"{sandbox.url}/__accounts/librelinkup/ada").json()
    connecting = Connecting(boxed, warehouse, "librelinkup", "ada", consent_days=30)
    assert "until 20" in connecting.consent.text
    connecting.with_password(known["user_name"], known["password"])
    assert len(active_accounts(warehouse.engine, "librelinkup")) == 1
    with warehouse.engine.begin() as connection:
        connection.execute(
            sa.text(
                "insert into ops.connector_consent_ledger (user_id, provider, event, text_version, expires_at) "
                "select user_id, provider, event, text_version, now() from ops.connector_consent_ledger"
            )
        )
    assert active_accounts(warehouse.engine, "librelinkup") == []


@pytest.mark.parametrize("statement", ["update {} set expires_at = now()", "delete from {}"])
def test_the_ledger_cannot_be_rewritten(
    warehouse: Warehouse, vault: Vault, endpoint: Endpoint, statement: str
) -> None:
    ada = connect(warehouse, vault, endpoint, "ada")
    ledger = "ops.connector_consent_ledger"
    with pytest.raises(sa.exc.DBAPIError, match="append-only"), warehouse.engine.begin() as connection:
        connection.exec_driver_sql(statement.format(ledger))
    # With the user, everything goes.
    with warehouse.engine.begin() as connection:
        connection.exec_driver_sql(f"delete from ops.users where user_id = {ada.user_id}")
        assert connection.exec_driver_sql(f"select count(*) from {ledger}").scalar_one() == 0


def test_a_provider_that_is_down_says_so(
    boxed: Settings, warehouse: Warehouse, vault: Vault, sandbox: RunningSandbox
) -> None:
    order(sandbox.url, "server_error", path_contains="oauth/token")
    with waiting(boxed, warehouse) as under_way:
        assert "try again" in under_way.decide(login_hint="ada").text
        with pytest.raises(ConsentError, match="try again"):
            under_way.end()
    assert stored(warehouse) == {}
