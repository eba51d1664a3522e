"""A person's way to consent and back, whoever serves the address they come back to.

Between the two there is only a row of ops.oauth_states, so the one who sends the person off and the one they
come back to may be different processes.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

import httpx
import sqlalchemy as sa

from health_pipeline.connections import hosted_link, oauth
from health_pipeline.connections.accounts import Tokens, writing_key
from health_pipeline.connections.connect import save_consent
from health_pipeline.connections.consent import Consent
from health_pipeline.connections.endpoints import Endpoint, endpoint_of
from health_pipeline.connections.hosted_link import LinkSession
from health_pipeline.connections.oauth import Authorization, ConsentError
from health_pipeline.connections.vault import Vault
from health_pipeline.providers.base import Account, Provider
from health_pipeline.providers.registry import all_providers, get
from health_pipeline.settings import Settings
from health_pipeline.warehouse.connection import Warehouse
from health_pipeline.warehouse.models import OAuthState

#: How long a person has to come back.
STATE_LIFETIME = dt.timedelta(minutes=10)
_KEPT = dt.timedelta(days=1)


class StateError(ConsentError):
    """The address somebody came to carries no state that is good: nothing was asked of the provider."""

    def __init__(self, message: str, reason: Literal["unknown", "used", "expired", "redirect"]) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Begun:
    """Where to send the person, and by when they have to be back."""

    url: str = field(repr=False)
    state: str = field(repr=False)
    expires_at: dt.datetime


@dataclass(frozen=True, slots=True)
class Completed:
    account_id: int
    user_id: int
    provider: str


def begin(
    warehouse: Warehouse,
    vault: Vault,
    provider: Provider,
    endpoint: Endpoint,
    user_id: int,
    redirect_uri: str,
    consent: Consent,
) -> Begun:
    """Note that a user sets out, and say where to. Raises ConsentError where the provider has no page to go to."""
    asked: Authorization | LinkSession
    if provider.hosted_link is not None:
        asked, verifier = hosted_link.start(provider, endpoint, redirect_uri), None
    else:
        asked = _authorization(provider, endpoint, redirect_uri)
        verifier = asked.code_verifier
    now = dt.datetime.now(dt.UTC)
    with warehouse.engine.begin() as connection:
        connection.execute(sa.delete(OAuthState).where(OAuthState.expires_at < now - _KEPT))
        key_id = None if verifier is None else writing_key(connection, vault)
        connection.execute(
            sa.insert(OAuthState).values(
                state_sha256=_digest(asked.state),
                user_id=user_id,
                provider=provider.name,
                redirect_uri=redirect_uri,
                key_id=key_id,
                code_verifier=None if verifier is None else vault.encrypt(verifier, key_id)[1],
                consent_version=consent.version,
                consent_text=consent.text,
                consent_expires_at=consent.expires_at,
                expires_at=now + STATE_LIFETIME,
            )
        )
    return Begun(asked.url, asked.state, now + STATE_LIFETIME)


def complete(warehouse: Warehouse, vault: Vault, settings: Settings, answer: str) -> Completed:
    """Make an account of the address a person came back to. The state in it is good for one call.

    Raises ConsentError with what to tell them, as StateError where the address is none of ours, and
    AccountTakenError. Nothing is stored then.
    """
    parts = urlsplit(answer)
    state = state_in(parts.query)
    if state is None:
        raise StateError("the address carries no state; start with health-pipeline connect", "unknown")
    row = _take(warehouse, state, f"{parts.scheme}://{parts.netloc}{parts.path}")
    provider = get(row.provider)
    endpoint = endpoint_of(provider, settings)
    granted: Tokens | Account
    if provider.hosted_link is not None:
        granted = hosted_link.finish(provider, LinkSession("", state), answer)
    else:
        verifier = None if row.key_id is None else vault.decrypt(row.key_id, row.code_verifier)
        granted = oauth.exchange(endpoint, Authorization("", state, row.redirect_uri, verifier), answer)
    consent = Consent(row.consent_version, row.consent_text, row.consent_expires_at)
    account_id = save_consent(warehouse, vault, provider, endpoint, row.user_id, granted, consent)
    return Completed(account_id, row.user_id, row.provider)


def state_in(query: str) -> str | None:
    """The state that the query of an address carries, whatever the provider calls it."""
    said = {name: values[-1] for name, values in parse_qs(query).items()}
    return next((said[name] for name in _state_parameters() if name in said), None)


def _authorization(provider: Provider, endpoint: Endpoint, redirect_uri: str) -> Authorization:
    try:
        return oauth.authorization(endpoint, redirect_uri)
    except httpx.HTTPError as error:
        problem = type(error).__name__
    raise ConsentError(
        f"{provider.title}'s authorisation server cannot be found ({problem}); try again later"
    )


def _take(warehouse: Warehouse, state: str, address: str) -> sa.Row[Any]:
    """The row of a state, which is spent by this. Raises StateError."""
    digest = _digest(state)
    now = dt.datetime.now(dt.UTC)
    with warehouse.engine.begin() as connection:
        row = connection.execute(
            sa.update(OAuthState)
            .where(
                OAuthState.state_sha256 == digest, OAuthState.used_at.is_(None), OAuthState.expires_at > now
            )
            .values(used_at=now)
            .returning(OAuthState.__table__)
        ).one_or_none()
        known = (
            row
            or connection.execute(
                sa.select(OAuthState.__table__).where(OAuthState.state_sha256 == digest)
            ).one_or_none()
        )
    if known is None:
        raise StateError(
            "the answer does not belong to a request of ours (unknown state); connect again", "unknown"
        )
    if row is None and known.used_at is not None:
        raise StateError("this answer was used before; connect again if the account is not there", "used")
    if row is None:
        minutes = STATE_LIFETIME.total_seconds() / 60
        raise StateError(f"this answer came too late, after {minutes:.0f} minutes; connect again", "expired")
    if address != known.redirect_uri:
        raise StateError(
            "the answer came to another address than it was asked for at (redirect URI); connect again",
            "redirect",
        )
    return row


def _state_parameters() -> list[str]:
    hosted = {
        provider.hosted_link.state_parameter
        for provider in all_providers().values()
        if provider.hosted_link is not None
    }
    return sorted({"state", *hosted})


def _digest(state: str) -> bytes:
    return hashlib.sha256(state.encode()).digest()
