"""OAuth 2.0 authorization-code flow, by Authlib."""

from __future__ import annotations

import datetime as dt
import secrets
import warnings
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx

from health_pipeline.connections.accounts import ReconnectError, Refresh, RenewalError, Tokens
from health_pipeline.connections.endpoints import Endpoint

#: What a provider calls a refresh token that will never be good again (RFC 6749 knows the first).
_DEAD_GRANT = ("invalid_grant", "invalid_token", "access_denied")
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
        problem = f"the provider refused the code ({error.error}); connect again"
    except _UNUSABLE as error:
        problem = f"the token endpoint gave no tokens ({_kind(error)}); try again"
    # Outside the handler: what it caught holds the request, and that holds the code and our secret.
    raise ConsentError(problem)


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
    """A function that trades a refresh token for a new pair at the provider's token endpoint.

    It raises ReconnectError and RenewalError.
    """

    def refresh(refresh_token: str) -> Tokens:
        from authlib.common.errors import AuthlibBaseError

        problem: Exception
        try:
            with _client(endpoint) as client:
                return _tokens(client.refresh_token(endpoint.oauth.token_url, refresh_token=refresh_token))
        except AuthlibBaseError as error:
            if error.error in _DEAD_GRANT:
                problem = ReconnectError(f"the provider refused the refresh token ({error.error})")
            elif error.error in ("invalid_client", "unauthorized_client"):
                problem = RenewalError(
                    f"the provider refused our client ({error.error}); check its …_CLIENT_ID and "
                    "…_CLIENT_SECRET settings"
                )
            else:
                problem = RenewalError(
                    f"the token endpoint refused to renew ({error.error}); try again later"
                )
        except _UNUSABLE as error:
            problem = RenewalError(f"the token endpoint gave no tokens ({_kind(error)}); try again later")
        # Outside the handler: what it caught holds the request, and that holds the token and our secret.
        raise problem

    return refresh


#: What an answer that is no answer raises: no connection, a server error, a body without tokens.
_UNUSABLE = (httpx.HTTPError, ValueError, TypeError, KeyError)


def _kind(error: Exception) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        return str(error.response.status_code)
    return type(error).__name__ if isinstance(error, httpx.HTTPError) else "unreadable answer"


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
