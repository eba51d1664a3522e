"""Consent on an aggregator's own page: the walk, what is refused, and accounts that have no tokens."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

import httpx
import pytest
import sqlalchemy as sa
from connecting import OURA, account_row
from pydantic import SecretStr

from health_pipeline.connections.accounts import active_accounts, save_connection
from health_pipeline.connections.endpoints import Endpoint, endpoint_of
from health_pipeline.connections.hosted_link import LinkSession, connect_with_hint, finish, start
from health_pipeline.connections.oauth import ConsentError
from health_pipeline.connections.users import ensure_user
from health_pipeline.connections.vault import Vault
from health_pipeline.ingestion.fetch import fetch
from health_pipeline.providers.base import Account, Window
from health_pipeline.providers.registry import get
from health_pipeline.raw.store import RawStore
from health_pipeline.sandbox.people import person
from health_pipeline.sandbox.server import RunningSandbox
from health_pipeline.settings import Settings
from health_pipeline.warehouse.connection import Warehouse

TERRA = get("terra")
BACK = "http://127.0.0.1/callback?tab=devices"


@pytest.fixture
def in_sandbox(sandbox: RunningSandbox, settings: Settings) -> Settings:
    return settings.model_copy(update={"sandbox_url": sandbox.url})


@pytest.fixture
def endpoint(in_sandbox: Settings) -> Endpoint:
    return endpoint_of(TERRA, in_sandbox)


def walk(asked: LinkSession, **choices: str) -> str:
    page = httpx.URL(asked.url).copy_merge_params(choices)
    return httpx.get(page, follow_redirects=False).headers["location"]


def test_a_person_comes_back_as_an_account_of_their_device(endpoint: Endpoint) -> None:
    watch = connect_with_hint(TERRA, endpoint, "ada")
    assert watch == Account(person("ada").uuid("terra", "GARMIN"), {"resource": "GARMIN"})
    sensor = connect_with_hint(TERRA, endpoint, "dana", resource="FREESTYLELIBRE")
    assert sensor == Account(person("dana").uuid("terra", "FREESTYLELIBRE"), {"resource": "FREESTYLELIBRE"})


def test_an_answer_to_another_request_is_not_taken(endpoint: Endpoint) -> None:
    first, second = start(TERRA, endpoint, BACK), start(TERRA, endpoint, BACK)
    assert first.state != second.state
    answer = walk(first, login_hint="ada")
    assert answer.startswith(f"{BACK}&user_id=")
    bare = "http://127.0.0.1/callback?user_id=x&resource=GARMIN"
    for said in (bare, f"{bare}&reference_id=", f"{bare}&reference_id=é"):
        with pytest.raises(ConsentError, match="does not belong to this request"):
            finish(TERRA, first, said)
    with pytest.raises(ConsentError, match="does not belong to this request"):
        finish(TERRA, second, answer)
    assert finish(TERRA, first, answer).profile == {"resource": "GARMIN"}


def test_a_denial_is_told_and_a_session_ends(sandbox: RunningSandbox, endpoint: Endpoint) -> None:
    asked = start(TERRA, endpoint, BACK)
    with pytest.raises(ConsentError, match=r"did not grant access \(user_cancelled\)"):
        finish(TERRA, asked, walk(asked, decision="deny"))
    late = start(TERRA, endpoint, BACK)
    now = httpx.get(f"{sandbox.url}/healthz").json()["now"]
    later = (dt.datetime.fromisoformat(now) + dt.timedelta(minutes=16)).isoformat()
    httpx.put(f"{sandbox.url}/__now", json={"now": later}).raise_for_status()
    assert httpx.get(late.url, params={"login_hint": "ada"}).status_code == 404


def test_what_keeps_the_page_away_is_told_without_our_key(
    endpoint: Endpoint, sandbox: RunningSandbox
) -> None:
    wrong = replace(endpoint, client_secret=SecretStr("canary"))
    with pytest.raises(ConsentError, match="refused our dev-id and API key") as refused:
        start(TERRA, wrong, BACK)
    assert "canary" not in f"{refused.value!r}{refused.value.__cause__!r}{refused.value.__context__!r}"
    with pytest.raises(ConsentError, match="answered 400 for 'zoe'"):
        connect_with_hint(TERRA, endpoint, "zoe")
    with pytest.raises(ConsentError, match="answered 400 for 'eli'"):
        connect_with_hint(TERRA, endpoint, "eli", resource="FREESTYLELIBRE")
    with pytest.raises(ValueError, match="only the sandbox"):
        connect_with_hint(TERRA, replace(endpoint, environment="live"), "ada")
    with pytest.raises(ValueError, match="oura's consent"):
        start(OURA, endpoint, BACK)


def test_an_account_without_tokens_is_fetched_until_its_person_ends_it(
    warehouse: Warehouse,
    vault: Vault,
    store: RawStore,
    sandbox: RunningSandbox,
    in_sandbox: Settings,
    endpoint: Endpoint,
) -> None:
    account = connect_with_hint(TERRA, endpoint, "dana", resource="FREESTYLELIBRE")
    with warehouse.engine.begin() as connection:
        user = ensure_user(connection, "dana", "America/Chicago")
    account_id = save_connection(
        warehouse.engine,
        vault,
        user_id=user.user_id,
        provider="terra",
        provider_user_id=account.provider_user_id,
        environment=endpoint.environment,
        tokens=None,
        profile=account.profile,
        consent_version="test-1",
    )
    (active,) = active_accounts(warehouse.engine, "terra")
    assert (active.account_id, active.provider_user_id) == (account_id, account.provider_user_id)
    with warehouse.engine.connect() as connection:
        tokens = "select count(*) from ops.connector_tokens"
        consents = "select event from ops.connector_consent_ledger"
        assert connection.execute(sa.text(tokens)).scalar_one() == 0
        assert connection.execute(sa.text(consents)).scalar_one() == "granted"

    window = Window(dt.date(2026, 11, 16), dt.date(2026, 11, 17))
    report = fetch(warehouse, store, vault, in_sandbox, TERRA, window)
    assert (report.new_objects, report.failed) == (4, [])
    assert report.bytes_received > 100_000

    httpx.delete(
        f"{endpoint.base_url}/auth/deauthenticateUser",
        params={"user_id": account.provider_user_id},
        headers={"dev-id": "sandbox", "x-api-key": "sandbox-secret"},
    ).raise_for_status()
    (ended,) = fetch(warehouse, store, vault, in_sandbox, TERRA, window).failed
    assert ended.error is not None
    assert "connect Terra again" in ended.error
    assert account_row(warehouse, account_id).status == "error"
    assert active_accounts(warehouse.engine, "terra") == []
