"""OAuth 2.0 authorization-code flow, by Authlib."""

from __future__ import annotations

import datetime as dt
import secrets
import warnings
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx

from health_pipeline.connections.accounts import ReconnectError, Refresh, Tokens
from health_pipeline.connections.endpoints import Endpoint

_TIMEOUT = httpx.Timeout(30.0, connect=10.0)


class ConsentError(RuntimeError):
    """The authorisation did not come to an end: denied, expired, or answered by somebody else."""


def _client(endpoint: Endpoint, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Authlib announces a change of its HTTP library at import
        from authlib.integrations.httpx_client import OAuth2Client

    return OAuth2Client(
        client_id=endpoint.client_id,
        client_secret=endpoint.client_secret.get_secret_value(),
        token_endpoint_auth_method="client_secret_post",  # noqa: S106 - the name of a method
        timeout=_TIMEOUT,
        **options,
    )


def authorization_url(endpoint: Endpoint, redirect_uri: str, **extra: str) -> tuple[str, str]:
    """The address to send a person to, and the `state` that must come back."""
    state = secrets.token_urlsafe(32)
    with _client(endpoint, redirect_uri=redirect_uri, scope=" ".join(endpoint.oauth.scopes)) as client:
        url, _ = client.create_authorization_url(endpoint.oauth.authorize_url, state=state, **extra)
    return url, state


def exchange(endpoint: Endpoint, redirect_uri: str, answer: str, state: str) -> Tokens:
    """Trade the address the provider redirected to (`answer`) for tokens. Raises ConsentError."""
    query = {key: values[0] for key, values in parse_qs(urlsplit(answer).query).items()}
    if query.get("state") is None or not secrets.compare_digest(query["state"], state):
        raise ConsentError("the answer does not belong to this request (state differs); connect again")
    if "error" in query or "code" not in query:
        raise ConsentError(f"the provider did not grant access ({query.get('error', 'no code')})")
    from authlib.common.errors import AuthlibBaseError

    try:
        with _client(endpoint, redirect_uri=redirect_uri) as client:
            return _tokens(client.fetch_token(endpoint.oauth.token_url, code=query["code"]))
    except AuthlibBaseError as error:
        raise ConsentError(f"the provider refused the code ({error.error}); connect again") from None
    except httpx.HTTPError as error:
        raise ConsentError(f"no answer from the token endpoint ({type(error).__name__}); try again") from None


def connect_with_hint(
    endpoint: Endpoint, person: str, redirect_uri: str = "http://127.0.0.1/callback"
) -> Tokens:
    """Walk the flow without a browser, for the sandbox, whose authorise page takes a `login_hint`."""
    if endpoint.environment != "sandbox":
        raise ValueError("only the sandbox grants access without its person")
    url, state = authorization_url(endpoint, redirect_uri, login_hint=person)
    answer = httpx.get(url, timeout=_TIMEOUT, follow_redirects=False)
    if not answer.is_redirect:
        raise ConsentError(f"the sandbox's authorise page answered {answer.status_code} for {person!r}")
    return exchange(endpoint, redirect_uri, answer.headers["location"], state)


def refresher(endpoint: Endpoint) -> Refresh:
    """A function that trades a refresh token for a new pair at the provider's token endpoint."""

    def refresh(refresh_token: str) -> Tokens:
        from authlib.common.errors import AuthlibBaseError

        try:
            with _client(endpoint) as client:
                answer = client.refresh_token(endpoint.oauth.token_url, refresh_token=refresh_token)
        except AuthlibBaseError as error:
            raise ReconnectError(f"the provider refused the refresh token ({error.error})") from None
        renewed = _tokens(answer)
        if renewed.refresh_token is None:
            return Tokens(renewed.access_token, refresh_token, renewed.expires_at, renewed.scopes)
        return renewed

    return refresh


def _tokens(answer: Mapping[str, Any]) -> Tokens:
    expires_in = answer.get("expires_in")
    return Tokens(
        access_token=answer["access_token"],
        refresh_token=answer.get("refresh_token"),
        expires_at=None
        if expires_in is None
        else dt.datetime.now(dt.UTC) + dt.timedelta(seconds=int(expires_in)),
        scopes=tuple(str(answer.get("scope", "")).split()),
    )
