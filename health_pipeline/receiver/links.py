"""Links with which a person connects an account: signed, for one user and provider, good for a day."""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from health_pipeline.receiver.secrets import Secrets

LINK_LIFETIME = dt.timedelta(days=1)
_PURPOSE = "connect link"


class LinkError(ValueError):
    """The link is none of ours, or has expired; the message is for the person."""


@dataclass(frozen=True, slots=True)
class ConnectLink:
    """Who is to connect what. `consent_days` as with `health-pipeline connect`."""

    user_id: int
    provider: str
    expires_at: dt.datetime
    consent_days: int | None = None


def sign(secrets: Secrets, base_url: str, link: ConnectLink) -> str:
    """The address to send the person."""
    claims = [link.user_id, link.provider, int(link.expires_at.timestamp()), link.consent_days]
    body = orjson.dumps(claims)
    signature = _signature(secrets.derived(_PURPOSE)[0], body)
    token = base64.urlsafe_b64encode(signature + body).decode().rstrip("=")
    return f"{base_url.rstrip('/')}/connect/{link.provider}?link={token}"


def read(secrets: Secrets, provider: str, token: str) -> ConnectLink:
    """Raises LinkError."""
    unknown = LinkError("This link is not one of ours, or was cut on its way. Ask for another.")
    try:
        signed = base64.b64decode(token.encode("ascii") + b"=" * (-len(token) % 4), b"-_", validate=True)
    except (ValueError, binascii.Error):
        raise unknown from None
    given, body = signed[:32], signed[32:]
    if not _any_signs(secrets.derived(_PURPOSE), given, body):
        raise unknown
    user_id, named, expires, consent_days = orjson.loads(body)
    if named != provider:
        raise unknown
    expires_at = dt.datetime.fromtimestamp(expires, dt.UTC)
    if expires_at <= dt.datetime.now(dt.UTC):
        raise LinkError(f"This link was good until {expires_at:%Y-%m-%d %H:%M} UTC. Ask for another.")
    return ConnectLink(user_id, provider, expires_at, consent_days)


def _any_signs(secrets: Sequence[str], given: bytes, body: bytes) -> bool:
    return any(hmac.compare_digest(_signature(secret, body), given) for secret in secrets)


def _signature(secret: str, body: bytes) -> bytes:
    return hmac.new(secret.encode(), body, hashlib.sha256).digest()
