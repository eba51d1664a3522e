"""OAuth 2.0 authorization-code flow, by Authlib."""

from __future__ import annotations

import datetime as dt
import logging
import re
import secrets
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx

from health_pipeline.connections.accounts import ReconnectError, Refresh, RenewalError, Tokens
from health_pipeline.connections.endpoints import Endpoint
from health_pipeline.providers.base import OAuth

#: What a provider calls a refresh token that will never be good again (RFC 6749 knows the first).
_DEAD_GRANT = ("invalid_grant", "invalid_token", "access_denied")
_TIMEOUT = httpx.Timeout(30.0, connect=10.0)


class ConsentError(RuntimeError):
    """The authorisation did not come to an end: denied, expired, or answered by somebody else."""


def _client(endpoint: Endpoint, oauth: OAuth, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Authlib announces a change of its HTTP library at import
        from authlib.integrations.httpx_client import OAuth2Client

    secret = endpoint.client_secret.get_secret_value()
    return OAuth2Client(
        client_id=endpoint.client_id,
        client_secret=secret,
        # A client without a secret is a public one (RFC 6749, 2.1).
        token_endpoint_auth_method=oauth.client_authentication if secret else "none",
        timeout=_TIMEOUT,
        **options,
    )


def _oauth(endpoint: Endpoint) -> OAuth:
    """The provider's authorization server. Raises ValueError, and httpx.HTTPError where it has to be found."""
    oauth = endpoint.oauth
    if oauth is None:
        raise ValueError("this provider's consent is not OAuth")
    return oauth if oauth.discover is None else oauth.discover(oauth, endpoint.base_url)


@dataclass(frozen=True, slots=True)
class Authorization:
    """A person on their way to consent: where to send them, and what must fit when they come back.

    `code_verifier` is None where the provider has no PKCE (RFC 7636).
    """

    url: str
    state: str
    redirect_uri: str
    code_verifier: str | None = field(default=None, repr=False)


def authorization(endpoint: Endpoint, redirect_uri: str, **extra: str) -> Authorization:
    """Begin an authorization-code flow.

    Raises ValueError, and httpx.HTTPError where the provider's authorization server cannot be found.
    """
    oauth = _oauth(endpoint)
    state = secrets.token_urlsafe(32)
    verifier = secrets.token_urlsafe(64) if oauth.pkce else None
    options: dict[str, Any] = {"code_challenge_method": "S256"} if oauth.pkce else {}
    scope = oauth.scope_separator.join(oauth.scopes)
    with _client(endpoint, oauth, redirect_uri=redirect_uri, scope=scope, **options) as client:
        url, _ = client.create_authorization_url(
            oauth.authorize_url, state=state, code_verifier=verifier, **oauth.authorize_params, **extra
        )
    return Authorization(url, state, redirect_uri, verifier)


def exchange(endpoint: Endpoint, asked: Authorization, answer: str) -> Tokens:
    """Trade the address the provider redirected to (`answer`) for tokens. Raises ConsentError."""
    query = {key: values[0] for key, values in parse_qs(urlsplit(answer).query).items()}
    state = query.get("state")
    if state is None or not secrets.compare_digest(state.encode(), asked.state.encode()):
        raise ConsentError("the answer does not belong to this request (state differs); connect again")
    if "error" in query or "code" not in query:
        # Anybody may have written the address, and terminals and pages show this.
        said = re.sub(r"[^a-z0-9_ .-]", "", query.get("error", "no code").lower())[:60]
        raise ConsentError(f"the provider did not grant access ({said})")
    from authlib.common.errors import AuthlibBaseError

    try:
        oauth = _oauth(endpoint)
        proof = {} if asked.code_verifier is None else {"code_verifier": asked.code_verifier}
        with _client(endpoint, oauth, redirect_uri=asked.redirect_uri) as client:
            _read_answers_of(client, oauth, "access_token_response")
            return _tokens(
                client.fetch_token(oauth.token_url, code=query["code"], **proof, **oauth.token_params), oauth
            )
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
    asked = authorization(endpoint, redirect_uri, login_hint=person)
    with _unlogged():  # in the place of a browser, which logs nothing either
        answer = httpx.get(asked.url, timeout=_TIMEOUT, follow_redirects=False)
    if not answer.is_redirect:
        raise ConsentError(f"the sandbox's authorise page answered {answer.status_code} for {person!r}")
    return exchange(endpoint, asked, answer.headers["location"])


def refresher(endpoint: Endpoint) -> Refresh:
    """A function that trades a refresh token for a new pair at the provider's token endpoint.

    It raises ReconnectError and RenewalError.
    """

    def refresh(refresh_token: str) -> Tokens:
        from authlib.common.errors import AuthlibBaseError

        problem: Exception
        try:
            oauth = _oauth(endpoint)
            with _client(endpoint, oauth) as client:
                _read_answers_of(client, oauth, "refresh_token_response")
                return _tokens(
                    client.refresh_token(
                        oauth.token_url,
                        refresh_token=refresh_token,
                        **{**oauth.token_params, **oauth.refresh_params},
                    ),
                    oauth,
                )
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
            if isinstance(error, httpx.HTTPStatusError) and error.response.status_code in (400, 401):
                problem = ReconnectError(f"the provider refused the refresh token ({_kind(error)})")
            else:
                problem = RenewalError(f"the token endpoint gave no tokens ({_kind(error)}); try again later")
        # Outside the handler: what it caught holds the request, and that holds the token and our secret.
        raise problem

    return refresh


def revoke(endpoint: Endpoint, access_token: str, refresh_token: str | None) -> None:
    """End the grant at the provider (RFC 7009, or as the vendor has it). Raises RenewalError."""
    from authlib.common.errors import AuthlibBaseError

    try:
        oauth = _oauth(endpoint)
        if oauth.revoke_url is None:
            raise ValueError("this provider has no revocation")
        with _client(endpoint, oauth) as client, _unlogged():
            if oauth.revoke_parameter is not None:
                answer = httpx.post(
                    oauth.revoke_url, params={oauth.revoke_parameter: access_token}, timeout=_TIMEOUT
                )
            else:
                answer = client.revoke_token(oauth.revoke_url, token=refresh_token or access_token)
            answer.raise_for_status()
            return
    except AuthlibBaseError as error:
        problem = f"the provider refused to revoke ({error.error})"
    except _UNUSABLE as error:
        problem = f"the provider did not revoke ({_kind(error)})"
    # Outside the handler: what it caught holds the request, and that holds the token.
    raise RenewalError(problem)


_logging = ContextVar("_logging", default=True)
for _name in ("httpx", "httpcore.connection", "httpcore.http11"):
    logging.getLogger(_name).addFilter(lambda _record: _logging.get())


@contextmanager
def _unlogged() -> Iterator[None]:
    """httpx logs addresses, and in this one is a token."""
    before = _logging.set(False)
    try:
        yield
    finally:
        _logging.reset(before)


#: What an answer that is no answer raises: no connection, a server error, a body without tokens.
_UNUSABLE = (httpx.HTTPError, ValueError, TypeError, KeyError)


def _kind(error: Exception) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        return str(error.response.status_code)
    return type(error).__name__ if isinstance(error, httpx.HTTPError) else "unreadable answer"


def _read_answers_of(client: Any, oauth: OAuth, hook: str) -> None:
    """Have the vendor's token answers turned into the standard's before Authlib reads them."""
    if oauth.read_token_answer is None:
        return
    read = oauth.read_token_answer

    def standard(response: httpx.Response) -> httpx.Response:
        if not response.is_success:
            return response
        return httpx.Response(
            response.status_code, json=dict(read(response.json())), request=response.request
        )

    client.register_compliance_hook(hook, standard)


def _tokens(answer: Mapping[str, Any], oauth: OAuth) -> Tokens:
    expires_in = answer.get("expires_in")
    user_id = answer.get(oauth.user_id_field) if oauth.user_id_field is not None else None
    return Tokens(
        access_token=answer["access_token"],
        refresh_token=answer.get("refresh_token"),
        expires_at=None
        if expires_in is None
        else dt.datetime.now(dt.UTC) + dt.timedelta(seconds=int(expires_in)),
        scopes=tuple(str(answer.get("scope", "")).replace(oauth.scope_separator, " ").split()),
        provider_user_id=None if user_id is None else str(user_id),
    )
