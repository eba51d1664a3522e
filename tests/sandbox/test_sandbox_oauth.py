"""The authorization server: parameters, consent, single use, rotation, expiry, revocation."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
from collections.abc import Iterator

import httpx
import pytest
from sandbox_client import NOW, REDIRECT, Connect, authorize, exchange, tokens

from health_pipeline.sandbox.server import RunningSandbox, run_in_thread

PERSONAL_INFO = "/oura/v2/usercollection/personal_info"
ASKED = {"client_id": "sandbox", "redirect_uri": REDIRECT, "response_type": "code", "state": "a b&c"}


@pytest.fixture
def client(own_sandbox: RunningSandbox, connect: Connect) -> Iterator[httpx.Client]:
    yield connect(own_sandbox)


def who(client: httpx.Client, access_token: str) -> httpx.Response:
    return client.get(PERSONAL_INFO, headers={"Authorization": f"Bearer {access_token}"})


def test_a_hint_approves_at_once_and_keeps_the_state(client: httpx.Client) -> None:
    answer = client.get("/oura/oauth/authorize", params={**ASKED, "login_hint": "chen", "scope": "daily"})
    back = httpx.URL(answer.headers["location"])
    assert answer.status_code == 302
    assert str(back).startswith(REDIRECT + "?")
    assert back.params["state"] == "a b&c"
    token = exchange(client, grant_type="authorization_code", code=back.params["code"], redirect_uri=REDIRECT)
    assert token.json()["scope"] == "daily"
    assert token.json()["expires_in"] == 86_400
    assert token.json()["token_type"] == "Bearer"
    assert token.headers["cache-control"] == "no-store"


def test_without_a_hint_a_page_lists_the_people(client: httpx.Client) -> None:
    page = client.get("/oura/oauth/authorize", params={**ASKED, "state": '"><script>'})
    assert page.status_code == 200
    for handle in ("ada", "ben", "chen", "dana", "eli"):
        assert f'name="login_hint" value="{handle}"' in page.text
    assert 'name="decision" value="deny"' in page.text
    assert "<script>" not in page.text
    denied = client.get("/oura/oauth/authorize", params={**ASKED, "decision": "deny"})
    assert httpx.URL(denied.headers["location"]).params["error"] == "access_denied"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"client_id": "nobody"}, "Unknown client_id"),
        ({"redirect_uri": "javascript:alert(1)"}, "Bad redirect_uri"),
        ({"redirect_uri": "/relative"}, "Bad redirect_uri"),
        ({"login_hint": "zoe"}, "People: ada, ben, chen, dana, eli"),
    ],
)
def test_an_unsafe_request_is_not_redirected(
    client: httpx.Client, change: dict[str, str], words: str
) -> None:
    answer = client.get("/oura/oauth/authorize", params={**ASKED, "login_hint": "ada", **change})
    assert answer.status_code == 400
    assert words in answer.text


@pytest.mark.parametrize(
    ("change", "error"),
    [({"response_type": "token"}, "unsupported_response_type"), ({"scope": "daily moon"}, "invalid_scope")],
)
def test_other_errors_go_back_to_the_client(client: httpx.Client, change: dict[str, str], error: str) -> None:
    answer = client.get("/oura/oauth/authorize", params={**ASKED, "login_hint": "ada", **change})
    back = httpx.URL(answer.headers["location"])
    assert (back.params["error"], back.params["state"]) == (error, "a b&c")
    assert "code" not in back.params


def test_a_code_is_good_once_and_for_ten_minutes(client: httpx.Client, own_sandbox: RunningSandbox) -> None:
    code = authorize(client, "ada")
    wrong_place = exchange(client, grant_type="authorization_code", code=code, redirect_uri=REDIRECT + "/x")
    assert wrong_place.json()["error"] == "invalid_grant"
    form = {"grant_type": "authorization_code", "code": code, "redirect_uri": REDIRECT}
    assert exchange(client, **form).status_code == 200
    again = exchange(client, **form)
    assert (again.status_code, again.json()["error"]) == (400, "invalid_grant")
    late = authorize(client, "ada")
    own_sandbox.app.state.sandbox.fix_time(NOW + dt.timedelta(minutes=10))
    answer = exchange(client, grant_type="authorization_code", code=late, redirect_uri=REDIRECT)
    assert answer.json()["error_description"] == "The authorization code is not valid: expired."


def test_a_client_must_prove_itself(client: httpx.Client) -> None:
    code = authorize(client, "ada")
    form = {"grant_type": "authorization_code", "code": code, "redirect_uri": REDIRECT}
    refused = exchange(client, **form, client_secret="wrong")
    assert (refused.status_code, refused.json()["error"]) == (401, "invalid_client")
    basic = client.post("/oura/oauth/token", data=form, auth=("sandbox", "sandbox-secret"))
    assert basic.status_code == 200
    assert exchange(client, grant_type="password").json()["error"] == "unsupported_grant_type"


def test_pkce_is_checked_when_it_was_asked_for(client: httpx.Client) -> None:
    digest = hashlib.sha256(b"v" * 50).digest()
    asked = {
        **ASKED,
        "login_hint": "ada",
        "code_challenge_method": "S256",
        "code_challenge": base64.urlsafe_b64encode(digest).decode().rstrip("="),
    }
    answer = client.get("/oura/oauth/authorize", params=asked)
    code = httpx.URL(answer.headers["location"]).params["code"]
    form = {"grant_type": "authorization_code", "code": code, "redirect_uri": REDIRECT}
    assert exchange(client, **form).status_code == 400
    assert exchange(client, **form, code_verifier="v" * 50).status_code == 200


def test_a_refresh_token_rotates_and_is_good_once(client: httpx.Client) -> None:
    first = tokens(client, "ben")
    second = exchange(client, grant_type="refresh_token", refresh_token=first["refresh_token"]).json()
    assert second["refresh_token"] != first["refresh_token"]
    reused = exchange(client, grant_type="refresh_token", refresh_token=first["refresh_token"])
    assert (reused.status_code, reused.json()["error"]) == (400, "invalid_grant")
    third = exchange(client, grant_type="refresh_token", refresh_token=second["refresh_token"])
    assert third.status_code == 200
    ids = {who(client, t["access_token"]).json()["id"] for t in (first, second, third.json())}
    assert len(ids) == 1
    assert client.get("/__stats").json()["oura"] == {
        "authorize": 1,
        "authorization_code": 1,
        "refresh_token": 3,
        "refused": 1,
    }


def test_an_access_token_expires(connect: Connect) -> None:
    with run_in_thread(now=lambda: NOW, access_token_seconds=600) as running:
        client = connect(running)
        token = tokens(client, "ada")
        assert token["expires_in"] == 600
        assert who(client, token["access_token"]).status_code == 200
        running.app.state.sandbox.fix_time(NOW + dt.timedelta(seconds=600))
        expired = who(client, token["access_token"])
        assert (expired.status_code, expired.json()["title"]) == (401, "Unauthorized")
        fresh = exchange(client, grant_type="refresh_token", refresh_token=token["refresh_token"]).json()
        assert who(client, fresh["access_token"]).status_code == 200


def test_tokens_outlive_a_restart_but_not_another_seed(connect: Connect) -> None:
    with run_in_thread(now=lambda: NOW) as before:
        token = tokens(connect(before), "dana")
    with run_in_thread(now=lambda: NOW) as after:
        client = connect(after)
        assert who(client, token["access_token"]).status_code == 200
        form = {"grant_type": "refresh_token", "refresh_token": token["refresh_token"]}
        assert exchange(client, **form).status_code == 200
        assert exchange(client, **form).status_code == 400
    with run_in_thread(now=lambda: NOW, seed=5) as other:
        assert who(connect(other), token["access_token"]).status_code == 401


@pytest.mark.parametrize("forged", ["x", "abc", "a.b", "é.x", "e30.0000"])
def test_a_forged_token_is_refused(client: httpx.Client, forged: str) -> None:
    answer = client.get(PERSONAL_INFO, headers={"Authorization": f"Bearer {forged}".encode()})
    assert answer.status_code == 401
    assert (
        exchange(client, grant_type="refresh_token", refresh_token=forged).json()["error"] == "invalid_grant"
    )


def test_a_token_of_one_kind_is_not_one_of_another(client: httpx.Client) -> None:
    token = tokens(client, "ada")
    assert who(client, token["refresh_token"]).status_code == 401
    swapped = exchange(client, grant_type="refresh_token", refresh_token=token["access_token"])
    assert swapped.status_code == 400


def test_revoking_ends_the_grant(client: httpx.Client) -> None:
    token, other = tokens(client, "ada"), tokens(client, "ada")
    answer = client.post("/oura/oauth/revoke", params={"access_token": token["access_token"]})
    assert answer.status_code == 200
    assert who(client, token["access_token"]).status_code == 401
    form = {"grant_type": "refresh_token"}
    assert exchange(client, **form, refresh_token=token["refresh_token"]).status_code == 400
    assert who(client, other["access_token"]).status_code == 200
    assert client.post("/oura/oauth/revoke").status_code == 400


def test_a_person_can_withdraw_everything_at_the_provider(client: httpx.Client) -> None:
    ada, ben = tokens(client, "ada"), tokens(client, "ben")
    assert client.post("/__revoke", json={"provider": "oura", "handle": "ada"}).status_code == 204
    assert who(client, ada["access_token"]).status_code == 401
    assert exchange(client, grant_type="refresh_token", refresh_token=ada["refresh_token"]).status_code == 400
    assert who(client, ben["access_token"]).status_code == 200
    assert who(client, tokens(client, "ada")["access_token"]).status_code == 200
