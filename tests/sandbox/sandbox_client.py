"""How tests talk to a sandbox: authorization, tokens, and a client that holds a person's."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from health_pipeline.sandbox.server import RunningSandbox

NOW = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
REDIRECT = "http://localhost:3000/callback"
ALL_SCOPES = (
    "email personal daily heartrate workout tag session spo2Daily spo2 stress ring_configuration heart_health"
)

Connect = Callable[..., httpx.Client]


def shared_folder() -> Path:
    return Path(os.environ.get("HEALTH_PIPELINE_SHARED", Path(__file__).parents[3] / "shared"))


def authorize(client: httpx.Client, handle: str, scope: str = ALL_SCOPES) -> str:
    answer = client.get(
        "/oura/oauth/authorize",
        params={
            "client_id": "sandbox",
            "redirect_uri": REDIRECT,
            "response_type": "code",
            "scope": scope,
            "state": "s1",
            "login_hint": handle,
        },
    )
    assert answer.status_code == 302, answer.text
    return httpx.URL(answer.headers["location"]).params["code"]


def exchange(client: httpx.Client, **form: str) -> httpx.Response:
    return client.post(
        "/oura/oauth/token", data={"client_id": "sandbox", "client_secret": "sandbox-secret", **form}
    )


def tokens(client: httpx.Client, handle: str, scope: str = ALL_SCOPES) -> dict[str, str]:
    code = authorize(client, handle, scope)
    answer = exchange(client, grant_type="authorization_code", code=code, redirect_uri=REDIRECT)
    assert answer.status_code == 200, answer.text
    return answer.json()


@contextmanager
def connected(
    sandbox: RunningSandbox, handle: str | None = None, scope: str = ALL_SCOPES
) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=sandbox.url, timeout=20) as client:
        if handle is not None:
            client.headers["Authorization"] = f"Bearer {tokens(client, handle, scope)['access_token']}"
        yield client
