"""Connecting by a link that the receiver serves: the way to the provider and back, and each way it goes wrong."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

import httpx
import pytest
import sqlalchemy as sa
from api_client import api_client, bearer, user_of
from click.testing import CliRunner
from pydantic import SecretStr
from starlette.testclient import TestClient

from health_pipeline.cli import main
from health_pipeline.connections.consent import consent_to
from health_pipeline.connections.endpoints import endpoint_of
from health_pipeline.connections.flow import begin
from health_pipeline.connections.vault import Vault
from health_pipeline.providers.registry import connectable, get
from health_pipeline.receiver.links import ConnectLink, sign
from health_pipeline.receiver.secrets import Secrets
from health_pipeline.sandbox.server import RunningSandbox
from health_pipeline.settings import Settings, load_settings
from health_pipeline.warehouse.connection import Warehouse

URL = "https://hooks.example.org"
WITH_PAGE = [provider.name for provider in connectable() if provider.password is None]
EMPTY = ("provider_accounts", "connector_tokens", "connector_consent_ledger", "identities", "ingestion_jobs")


@pytest.fixture
def boxed(settings: Settings, sandbox: RunningSandbox) -> Settings:
    return settings.model_copy(update={"sandbox_url": sandbox.url, "receiver_url": URL})


@pytest.fixture
def client(boxed: Settings, warehouse: Warehouse) -> Iterator[TestClient]:
    with api_client(boxed, warehouse) as client:
        client.follow_redirects = False
        yield client


def stored(warehouse: Warehouse) -> dict[str, int]:
    with warehouse.engine.connect() as connection:
        counts = {
            table: connection.exec_driver_sql(f"select count(*) from ops.{table}").scalar_one()
            for table in EMPTY
        }
    return {table: count for table, count in counts.items() if count}


def asked_link(client: TestClient, warehouse: Warehouse, name: str = "oura", handle: str = "ada") -> str:
    answer = client.post(f"/v1/connections/{name}/link", headers=bearer(warehouse, handle))
    assert answer.status_code == 200, answer.text
    return str(answer.json()["url"])


def set_out(client: TestClient, link: str) -> httpx.URL:
    """Press the button; gives the provider's page."""
    gone = client.post(link)
    assert gone.status_code == 303, gone.text
    return httpx.URL(gone.headers["location"])


def allow(page: httpx.URL, **choice: str) -> str:
    """Decide on the provider's page; gives the address it sends the person back to."""
    answer = httpx.get(page.copy_merge_params(choice or {"login_hint": "ada"}), timeout=30)
    return str(answer.headers["location"])


@pytest.mark.parametrize("name", WITH_PAGE)
def test_from_a_link_to_an_account_and_its_first_sync(
    client: TestClient, warehouse: Warehouse, name: str
) -> None:
    link = asked_link(client, warehouse, name)
    shown = client.get(link)
    assert shown.status_code == 200
    assert f"read ada&#x27;s data at {get(name).title}" in shown.text
    assert shown.headers["referrer-policy"] == "no-referrer"
    assert stored(warehouse) == {}
    back = allow(set_out(client, link))
    assert back.startswith(f"{URL}/oauth/callback?")
    assert f"{get(name).title} is connected" in client.get(back).text
    today = dt.datetime.now(dt.UTC).date()
    with warehouse.engine.connect() as connection:
        account = connection.exec_driver_sql(
            "select provider, status, text from ops.provider_accounts inner join ops.connector_consent_ledger "
            "using (user_id, provider)"
        ).one()
        job = connection.exec_driver_sql(
            "select kind, provider, status, window_start, window_end from ops.ingestion_jobs"
        ).one()
    assert tuple(account)[:2] == (name, "active")
    assert "Withdraw at any time" in account.text
    assert tuple(job) == ("sync", name, "requested", today - dt.timedelta(days=29), today)


def test_links_that_are_not_good(client: TestClient, warehouse: Warehouse, boxed: Settings) -> None:
    link = asked_link(client, warehouse)
    secrets = Secrets(boxed)
    stranger = Secrets(boxed.model_copy(update={"webhook_secret": SecretStr("another")}))
    past = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=1)
    ada = user_of(warehouse, "ada")
    head, token = link.split("link=")
    bad = [
        head + "link=" + ("A" if token[0] != "A" else "B") + token[1:],
        head + "link=" + token[:-4],
        f"{head}link=%C3%A9",
        head.removesuffix("?"),
        link.replace("/connect/oura", "/connect/whoop"),
        sign(secrets, URL, ConnectLink(ada, "oura", past)),
        sign(secrets, URL, ConnectLink(999, "oura", past + dt.timedelta(hours=1))),
        sign(stranger, URL, ConnectLink(ada, "oura", past + dt.timedelta(hours=1))),
        f"{URL}/connect/nobody?link={token}",
    ]
    for address in bad:
        for answer in (client.get(address), client.post(address)):
            assert answer.status_code == 400, address
            assert "This link is not good" in answer.text
    assert stored(warehouse) == {}


def test_answers_that_are_wrong_used_late_or_denied(client: TestClient, warehouse: Warehouse) -> None:
    link = asked_link(client, warehouse)
    denied = client.get(allow(set_out(client, link), decision="deny"))
    assert denied.status_code == 400
    assert "did not grant access (access_denied)" in denied.text
    for forged in ("", "?code=x", "?state=forged&code=x"):
        answer = client.get(f"{URL}/oauth/callback{forged}")
        assert answer.status_code == 400
        assert "not an answer to a request of ours" in answer.text
    late = allow(set_out(client, link))
    with warehouse.engine.begin() as connection:
        connection.execute(sa.text("update ops.oauth_states set expires_at = now()"))
    assert "This answer came too late" in client.get(late).text
    assert stored(warehouse) == {}
    back = allow(set_out(client, link))
    assert client.get(back).status_code == 200
    before = stored(warehouse)
    again = client.get(back)
    assert (again.status_code, "This answer was used already" in again.text) == (400, True)
    assert stored(warehouse) == before


def test_an_answer_comes_to_the_browser_that_set_out(
    client: TestClient, warehouse: Warehouse, boxed: Settings, vault: Vault
) -> None:
    """Else one person could have another's consent sent to an account of their own."""
    back = allow(set_out(client, asked_link(client, warehouse)))
    with api_client(boxed, warehouse) as victim:
        assert "the browser that set out" in victim.get(back).text
    assert stored(warehouse) == {}
    assert client.get(back).status_code == 200  # the state was not spent


def test_an_answer_that_was_asked_for_at_another_address(
    client: TestClient, warehouse: Warehouse, boxed: Settings, vault: Vault
) -> None:
    oura = get("oura")
    elsewhere = "http://127.0.0.1:8910/oauth/callback"
    back = allow(set_out(client, asked_link(client, warehouse)))
    with warehouse.engine.begin() as connection:
        connection.execute(sa.text("update ops.oauth_states set redirect_uri = :it"), {"it": elsewhere})
    assert "came to the wrong address" in client.get(back).text
    begun = begin(
        *(warehouse, vault, oura, endpoint_of(oura, boxed), user_of(warehouse, "ada"), elsewhere),
        consent_to(oura, "ada"),
    )
    query = httpx.URL(allow(httpx.URL(begun.url))).query.decode()
    assert client.get(f"{URL}/oauth/callback?{query}").status_code == 400
    assert stored(warehouse) == {}


def test_the_command_makes_the_same_link(
    client: TestClient, warehouse: Warehouse, boxed: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["connect", "oura", "--user", "ada", "--link", "--consent-days", "10"]
    monkeypatch.setenv("HEALTH_PIPELINE_SANDBOX_URL", str(boxed.sandbox_url))
    load_settings.cache_clear()
    without = CliRunner().invoke(main, command)
    assert without.exit_code == 1
    assert "HEALTH_PIPELINE_RECEIVER_URL" in without.stderr
    monkeypatch.setenv("HEALTH_PIPELINE_RECEIVER_URL", f"{URL}/")
    load_settings.cache_clear()
    link = CliRunner().invoke(main, command).stdout.strip()
    assert link.startswith(f"{URL}/connect/oura?link=")
    assert client.get(allow(set_out(client, link))).status_code == 200
    with warehouse.engine.connect() as connection:
        expires = connection.exec_driver_sql(
            "select expires_at from ops.connector_consent_ledger"
        ).scalar_one()
    assert dt.timedelta(days=9, hours=23) < expires - dt.datetime.now(dt.UTC) < dt.timedelta(days=10)
    refused = CliRunner().invoke(main, ["connect", "librelinkup", "--user", "ada", "--link"])
    assert "has no page to consent on" in refused.stderr


def test_what_no_link_is_made_for(client: TestClient, warehouse: Warehouse, boxed: Settings) -> None:
    mine = bearer(warehouse)
    assert client.post("/v1/connections/fitbit/link", headers=mine).status_code == 404
    answer = client.post("/v1/connections/librelinkup/link", headers=mine)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "no_page")
    nowhere = boxed.model_copy(update={"receiver_url": None})
    with api_client(nowhere, warehouse) as client:
        answer = client.post("/v1/connections/oura/link", headers=mine)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_configured")


def test_disconnecting_ends_it_and_erases_where_asked(client: TestClient, warehouse: Warehouse) -> None:
    mine = bearer(warehouse)
    for name in ("nobody", "oura"):
        answer = client.post(f"/v1/connections/{name}/disconnect", headers=mine)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_connected")
    client.get(allow(set_out(client, asked_link(client, warehouse))))
    bens = client.post("/v1/connections/oura/disconnect", headers=bearer(warehouse, "ben"))
    assert bens.status_code == 404
    done = client.post("/v1/connections/oura/disconnect", headers=mine, json={"delete_data": True})
    assert done.json() == {
        "provider": "oura",
        "left": None,
        "erased": {"objects": 0, "staged_rows": 0, "derived_rows": 0},
        "job_id": None,
    }
    with warehouse.engine.connect() as connection:
        status = connection.exec_driver_sql("select status from ops.provider_accounts").scalar_one()
        events = connection.exec_driver_sql(
            "select event from ops.connector_consent_ledger order by entry_id"
        )
        assert (status, events.scalars().all()) == ("disconnected", ["granted", "withdrawn"])
        assert connection.exec_driver_sql("select count(*) from ops.connector_tokens").scalar_one() == 0
