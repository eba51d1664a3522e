"""Connections to the sandbox: consent, tokens at rest, and their renewal."""

from __future__ import annotations

import base64
import datetime as dt
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import httpx
import pytest
import sqlalchemy as sa
from connecting import EXPIRED, OURA, Connected, account_row, connect, order, stats
from cryptography.fernet import Fernet
from pydantic import SecretStr

from health_pipeline.connections.accounts import (
    ReconnectError,
    RenewalError,
    Tokens,
    access_token,
    active_accounts,
    record_failure,
    save_connection,
)
from health_pipeline.connections.endpoints import Endpoint, ProviderNotConfiguredError, endpoint_of
from health_pipeline.connections.oauth import (
    ConsentError,
    authorization,
    connect_with_hint,
    exchange,
    refresher,
)
from health_pipeline.connections.vault import Vault, VaultError
from health_pipeline.sandbox.server import RunningSandbox
from health_pipeline.settings import Settings
from health_pipeline.warehouse.connection import Warehouse
from health_pipeline.warehouse.models import ConnectorToken

ASK = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
from health_pipeline.connections.accounts import access_token
from health_pipeline.connections.endpoints import endpoint_of
from health_pipeline.connections.oauth import refresher
from health_pipeline.connections.vault import open_vault
from health_pipeline.providers.registry import get
from health_pipeline.settings import load_settings
from health_pipeline.warehouse.connection import open_warehouse

warehouse, vault = open_warehouse(), open_vault()
refresh = refresher(endpoint_of(get("oura"), load_settings()))
barrier = threading.Barrier(4)
print("ready", flush=True)
sys.stdin.readline()

def ask(_):
    barrier.wait()
    return access_token(warehouse.engine, vault, int(sys.argv[1]), refresh)

with ThreadPoolExecutor(4) as pool:
    print(*pool.map(ask, range(4)))
"""


@pytest.fixture
def ada(warehouse: Warehouse, vault: Vault, endpoint: Endpoint) -> Connected:
    return connect(warehouse, vault, endpoint, "ada")


@pytest.fixture
def expired(warehouse: Warehouse, vault: Vault, endpoint: Endpoint) -> Connected:
    return connect(warehouse, vault, endpoint, "ada", expires_at=EXPIRED)


def answers(endpoint: Endpoint, token: str) -> int:
    url = f"{endpoint.base_url}/v2/usercollection/personal_info"
    return httpx.get(url, headers={"Authorization": f"Bearer {token}"}).status_code


def every_value(warehouse: Warehouse) -> Iterator[tuple[str, bytes]]:
    """Every row of every table of the database as text, bytes decoded, too: a dump."""
    with warehouse.engine.connect() as connection:
        tables = connection.execute(
            sa.text(
                "select format('%I.%I', table_schema, table_name) from information_schema.tables "
                "where table_type = 'BASE TABLE' and table_schema not in ('information_schema', 'pg_catalog')"
            )
        ).scalars()
        for table in list(tables):
            for row in connection.exec_driver_sql(f"select * from {table}"):
                for value in row:
                    yield (
                        table,
                        bytes(value) if isinstance(value, memoryview | bytes) else str(value).encode(),
                    )


def test_tokens_are_nowhere_in_the_database_in_the_clear(
    warehouse: Warehouse, vault: Vault, endpoint: Endpoint, ada: Connected
) -> None:
    before = ada.tokens
    assert before.refresh_token is not None
    after = access_token(
        warehouse.engine, vault, ada.account_id, refresher(endpoint), rejected=before.access_token
    )
    secrets = [before.access_token, before.refresh_token, after]
    needles = [secret.encode() for secret in secrets]
    # The middle of a token alone is one, too; and so is another way to write it.
    needles += [secret.encode()[20:60] for secret in secrets]
    needles += [base64.b64encode(secret.encode())[:40] for secret in secrets]
    needles += [secret.encode().hex().encode()[:40] for secret in secrets]
    dump = list(every_value(warehouse))
    assert {table for table, _ in dump} >= {"ops.connector_tokens", "ops.provider_accounts"}
    found = [(table, needle) for table, value in dump for needle in needles if needle in value]
    assert found == []
    with warehouse.engine.connect() as connection:
        row = connection.execute(sa.select(ConnectorToken)).one()
    assert vault.decrypt(row.key_id, row.access_token) == after
    assert set(row.scopes) == set(before.scopes) == set(OURA.oauth.scopes if OURA.oauth else ())


def test_tokens_have_no_repr() -> None:
    tokens = Tokens("access-canary", "refresh-canary", None)
    assert "canary" not in repr(tokens) + str(tokens) + f"{[tokens]}"


def test_a_good_token_is_given_without_asking(
    sandbox: RunningSandbox, warehouse: Warehouse, vault: Vault, endpoint: Endpoint, ada: Connected
) -> None:
    assert (
        access_token(warehouse.engine, vault, ada.account_id, refresher(endpoint)) == ada.tokens.access_token
    )
    assert stats(sandbox.url).get("refresh_token", 0) == 0


def test_a_token_about_to_expire_is_renewed_and_the_new_pair_kept(
    sandbox: RunningSandbox, warehouse: Warehouse, vault: Vault, endpoint: Endpoint
) -> None:
    soon = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=4)
    ada = connect(warehouse, vault, endpoint, "ada", expires_at=soon)
    renewed = access_token(warehouse.engine, vault, ada.account_id, refresher(endpoint))
    assert renewed != ada.tokens.access_token
    assert answers(endpoint, renewed) == 200
    assert access_token(warehouse.engine, vault, ada.account_id, refresher(endpoint)) == renewed
    assert stats(sandbox.url)["refresh_token"] == 1
    # The provider gives a new refresh token each time and takes the old one no more.
    again = access_token(warehouse.engine, vault, ada.account_id, refresher(endpoint), rejected=renewed)
    assert answers(endpoint, again) == 200
    assert stats(sandbox.url).get("refused", 0) == 0


def test_sixteen_threads_renew_once(
    sandbox: RunningSandbox, warehouse: Warehouse, vault: Vault, endpoint: Endpoint, expired: Connected
) -> None:
    refresh = refresher(endpoint)
    with ThreadPoolExecutor(16) as pool:
        tokens = set(
            pool.map(lambda _: access_token(warehouse.engine, vault, expired.account_id, refresh), range(16))
        )
    assert len(tokens) == 1
    assert answers(endpoint, tokens.pop()) == 200
    assert stats(sandbox.url)["refresh_token"] == 1
    assert stats(sandbox.url).get("refused", 0) == 0


def test_sixteen_threads_with_a_rejected_token_renew_once(
    sandbox: RunningSandbox, warehouse: Warehouse, vault: Vault, endpoint: Endpoint, ada: Connected
) -> None:
    refresh, rejected = refresher(endpoint), ada.tokens.access_token

    def ask(_: int) -> str:
        return access_token(warehouse.engine, vault, ada.account_id, refresh, rejected=rejected)

    with ThreadPoolExecutor(16) as pool:
        tokens = set(pool.map(ask, range(16)))
    assert len(tokens) == 1
    assert rejected not in tokens
    assert stats(sandbox.url)["refresh_token"] == 1


def test_four_processes_renew_once(
    sandbox: RunningSandbox,
    settings: Settings,
    warehouse: Warehouse,
    endpoint: Endpoint,
    expired: Connected,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HEALTH_PIPELINE_SANDBOX_URL", sandbox.url)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ASK, str(expired.account_id)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    with ThreadPoolExecutor(4) as pool:
        ended = list(pool.map(lambda process: process.communicate("go\n", timeout=60), processes))
    assert [process.returncode for process in processes] == [0] * 4, ended
    tokens = {token for output, _ in ended for token in output.split()}
    assert len(tokens) == 1
    assert answers(endpoint, tokens.pop()) == 200
    assert stats(sandbox.url)["refresh_token"] == 1


def test_a_revoked_grant_asks_to_connect_again(
    sandbox: RunningSandbox, warehouse: Warehouse, vault: Vault, endpoint: Endpoint, expired: Connected
) -> None:
    httpx.post(f"{sandbox.url}/__revoke", json={"provider": "oura", "handle": "ada"}).raise_for_status()
    with pytest.raises(ReconnectError, match="refused the refresh token") as refused:
        access_token(warehouse.engine, vault, expired.account_id, refresher(endpoint))
    assert_no_secret(refused.value, expired.tokens)
    record_failure(warehouse.engine, expired.account_id, str(refused.value), reconnect=True)
    row = account_row(warehouse, expired.account_id)
    assert (row.status, row.last_error) == ("error", str(refused.value))
    assert active_accounts(warehouse.engine, "oura") == []
    # Connecting again mends it: same account, no error left, two consents in the ledger.
    again = connect(warehouse, vault, endpoint, "ada")
    assert again.account_id == expired.account_id
    row = account_row(warehouse, again.account_id)
    assert (row.status, row.last_error) == ("active", None)
    assert (
        access_token(warehouse.engine, vault, again.account_id, refresher(endpoint))
        == again.tokens.access_token
    )
    with warehouse.engine.connect() as connection:
        events = connection.exec_driver_sql(
            "select event, text_version from ops.connector_consent_ledger order by entry_id"
        )
        assert [tuple(row) for row in events] == [("granted", "test-1")] * 2


def test_an_account_without_tokens_asks_to_connect_again(
    warehouse: Warehouse, vault: Vault, endpoint: Endpoint, expired: Connected
) -> None:
    with warehouse.engine.begin() as connection:
        connection.exec_driver_sql("update ops.connector_tokens set refresh_token = null")
    with pytest.raises(ReconnectError, match="connect it again"):
        access_token(warehouse.engine, vault, expired.account_id, refresher(endpoint))
    with pytest.raises(ReconnectError, match="connect it again"):
        access_token(warehouse.engine, vault, 10_000, refresher(endpoint))


def test_a_token_endpoint_that_fails_costs_nobody_their_connection(
    sandbox: RunningSandbox, warehouse: Warehouse, vault: Vault, endpoint: Endpoint, expired: Connected
) -> None:
    order(sandbox.url, "server_error", status=502, path_contains="oauth/token")
    no_tokens = replace(endpoint, oauth=replace(endpoint.oauth, token_url=f"{sandbox.url}/healthz"))
    for asked, said in ((endpoint, "502"), (no_tokens, "unreadable answer")):
        with pytest.raises(RenewalError, match=rf"{said}.*try again later") as refused:
            access_token(warehouse.engine, vault, expired.account_id, refresher(asked))
        assert_no_secret(refused.value, expired.tokens)
    assert (
        answers(endpoint, access_token(warehouse.engine, vault, expired.account_id, refresher(endpoint)))
        == 200
    )


def test_a_token_endpoint_that_is_not_there_costs_nobody_their_connection(
    warehouse: Warehouse, vault: Vault, endpoint: Endpoint, expired: Connected
) -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{taken.getsockname()[1]}/token"
        gone = replace(endpoint, oauth=replace(endpoint.oauth, token_url=nowhere))
        with pytest.raises(RenewalError, match=r"ConnectError.*try again later") as refused:
            access_token(warehouse.engine, vault, expired.account_id, refresher(gone))
    assert_no_secret(refused.value, expired.tokens)
    # Nothing was spent: the same pair renews once the endpoint is back.
    assert (
        answers(endpoint, access_token(warehouse.engine, vault, expired.account_id, refresher(endpoint)))
        == 200
    )


def test_a_wrong_client_secret_is_our_fault_and_not_the_accounts(
    warehouse: Warehouse, vault: Vault, endpoint: Endpoint, expired: Connected
) -> None:
    wrong = replace(endpoint, client_secret=SecretStr("secret-canary"))
    with pytest.raises(RenewalError, match=r"invalid_client.*CLIENT_SECRET") as refused:
        access_token(warehouse.engine, vault, expired.account_id, refresher(wrong))
    assert_no_secret(refused.value, expired.tokens, "secret-canary")


def test_scopes_and_refresh_token_that_an_answer_leaves_out_stay(
    warehouse: Warehouse, vault: Vault, expired: Connected
) -> None:
    later = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    access_token(
        warehouse.engine, vault, expired.account_id, lambda _: Tokens("new-access", "new-refresh", later)
    )
    with warehouse.engine.connect() as connection:
        row = connection.execute(sa.select(ConnectorToken)).one()
    assert tuple(row.scopes) == expired.tokens.scopes
    assert vault.decrypt(row.key_id, row.refresh_token) == "new-refresh"


def test_tokens_of_a_lost_key_are_told_and_kept(
    warehouse: Warehouse, endpoint: Endpoint, ada: Connected, settings: Settings
) -> None:
    other = Vault([Fernet.generate_key().decode()])
    with pytest.raises(VaultError, match="HEALTH_PIPELINE_VAULT_KEY"):
        access_token(warehouse.engine, other, ada.account_id, refresher(endpoint))
    with warehouse.engine.connect() as connection:
        assert connection.exec_driver_sql("select count(*) from ops.connector_tokens").scalar() == 1


def test_one_refusal_is_not_yet_a_revocation(
    sandbox: RunningSandbox, warehouse: Warehouse, vault: Vault, endpoint: Endpoint, expired: Connected
) -> None:
    real, asked_with = refresher(endpoint), []

    def refusing_once(token: str) -> Tokens:
        asked_with.append(token)
        if len(asked_with) == 1:
            raise ReconnectError("the provider refused the refresh token (invalid_grant)")
        return real(token)

    token = access_token(warehouse.engine, vault, expired.account_id, refusing_once)
    assert answers(endpoint, token) == 200
    assert asked_with == [expired.tokens.refresh_token] * 2


@pytest.mark.parametrize("status", [400, 401])
def test_a_refusal_without_a_word_is_believed_when_it_is_repeated(
    sandbox: RunningSandbox,
    warehouse: Warehouse,
    vault: Vault,
    endpoint: Endpoint,
    expired: Connected,
    status: int,
) -> None:
    asked_at = []

    def refuse(request: httpx.Request) -> httpx.Response:
        asked_at.append(request.url)
        return httpx.Response(status, text="no")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(httpx.HTTPTransport, "handle_request", lambda _, request: refuse(request))
        with pytest.raises(ReconnectError, match=str(status)):
            access_token(warehouse.engine, vault, expired.account_id, refresher(endpoint))
    assert len(asked_at) == 2


def test_a_connection_is_whole_or_not_there(
    warehouse: Warehouse, vault: Vault, endpoint: Endpoint, ada: Connected
) -> None:
    """A consent text that cannot be stored undoes the account and the tokens, too."""
    with pytest.raises(sa.exc.DBAPIError):
        save_connection(
            warehouse.engine,
            vault,
            user_id=ada.user_id,
            provider="other",
            provider_user_id=None,
            environment="sandbox",
            tokens=ada.tokens,
            profile={},
            consent_version=None,  # type: ignore[arg-type]
        )
    with warehouse.engine.connect() as connection:
        assert connection.exec_driver_sql("select count(*) from ops.provider_accounts").scalar() == 1


# Consent


def test_an_answer_to_another_request_is_not_taken(endpoint: Endpoint) -> None:
    asked = authorization(endpoint, "http://127.0.0.1/callback")
    for answer in ("?code=x&state=other", "?code=x", "?error=access_denied"):
        with pytest.raises(ConsentError, match="does not belong to this request"):
            exchange(endpoint, asked, f"http://127.0.0.1/callback{answer}")


def test_a_denial_and_a_bad_code_are_told(sandbox: RunningSandbox, endpoint: Endpoint) -> None:
    redirect = "http://127.0.0.1/callback"
    asked = authorization(endpoint, redirect, decision="deny")
    denied = httpx.get(asked.url).headers["location"]
    with pytest.raises(ConsentError, match="did not grant access \\(access_denied\\)"):
        exchange(endpoint, asked, denied)
    with pytest.raises(ConsentError, match="refused the code \\(invalid_grant\\); connect again"):
        exchange(endpoint, asked, f"{redirect}?code=canary&state={asked.state}")
    order(sandbox.url, "server_error", path_contains="oauth/token")
    asked = authorization(endpoint, redirect, login_hint="ada")
    answer = httpx.get(asked.url).headers["location"]
    code = httpx.URL(answer).params["code"]
    with pytest.raises(ConsentError, match="try again") as refused:
        exchange(endpoint, asked, answer)
    assert_no_secret(refused.value, None, code, "sandbox-secret")


def test_the_sandbox_does_not_know_everybody(endpoint: Endpoint) -> None:
    with pytest.raises(ConsentError, match="answered 400 for 'zoe'"):
        connect_with_hint(endpoint, "zoe")


# Endpoints


def test_a_client_id_means_the_vendors_own_hosts(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    both = settings.model_copy(update={"sandbox_url": "http://127.0.0.1:9/"})
    in_sandbox = endpoint_of(OURA, both)
    assert in_sandbox.environment == "sandbox"
    assert in_sandbox.base_url == "http://127.0.0.1:9/oura"
    assert in_sandbox.oauth.token_url == "http://127.0.0.1:9/oura/oauth/token"
    monkeypatch.setenv("HEALTH_PIPELINE_OURA_CLIENT_ID", "our-id")
    monkeypatch.setenv("HEALTH_PIPELINE_OURA_CLIENT_SECRET", "secret-canary")
    live = endpoint_of(OURA, both)
    assert (live.environment, live.base_url) == ("live", "https://api.ouraring.com")
    assert live.client_secret.get_secret_value() == "secret-canary"
    assert "canary" not in repr(live)
    with pytest.raises(ValueError, match="only the sandbox"):
        connect_with_hint(live, "ada")


def test_neither_client_nor_sandbox_names_what_is_missing(settings: Settings) -> None:
    with pytest.raises(ProviderNotConfiguredError) as refused:
        endpoint_of(OURA, settings)
    for name in ("OURA_CLIENT_ID", "OURA_CLIENT_SECRET", "SANDBOX_URL"):
        assert f"HEALTH_PIPELINE_{name}" in str(refused.value)


def assert_no_secret(error: BaseException, tokens: Tokens | None, *more: str) -> None:
    """Neither in an exception nor in those it came from, nor in what they hold."""
    secrets = [*more]
    if tokens is not None:
        secrets += [tokens.access_token, tokens.refresh_token or tokens.access_token]
    seen: BaseException | None = error
    while seen is not None:
        for secret in secrets:
            assert secret not in f"{seen!s} {seen!r} {vars(seen)}"
        assert not isinstance(seen, httpx.HTTPError), "holds the request, and that the tokens"
        seen = seen.__cause__ or seen.__context__
