"""What Oura posts to us: notices of one document each, signed by the client secret, the document to be fetched."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import Literal

import orjson

from health_pipeline.providers._json import load_object
from health_pipeline.providers.base import Event, WebhookRequest

#: Kinds of document that Oura tells of and we read; of heart rate it tells nothing.
_ENTITIES = {
    "daily_activity",
    "daily_readiness",
    "daily_sleep",
    "daily_spo2",
    "daily_stress",
    "daily_resilience",
    "daily_cardiovascular_age",
    "vo2_max",
    "sleep",
    "workout",
}
_KINDS: dict[str, Literal["changed", "deleted"]] = {
    "create": "changed",
    "update": "changed",
    "delete": "deleted",
}


def verify(request: WebhookRequest, secrets: Sequence[str]) -> bool:
    """Hexadecimal HMAC-SHA256, by the client secret, of the timestamp and the body behind it.

    The vendor names no tolerance of the timestamp, and retries for an hour: how old it is proves nothing.
    """
    signature = request.header("x-oura-signature")
    timestamp = request.header("x-oura-timestamp")
    if signature is None or timestamp is None:
        return False
    message = timestamp.encode() + request.body
    proofs = [hmac.new(secret.encode(), message, hashlib.sha256).hexdigest() for secret in secrets]
    # The vendor writes upper case; the digits are what counts.
    given = signature.lower().encode()
    return any(hmac.compare_digest(given, proof.encode()) for proof in proofs)


def verification_token(secret: str) -> str:
    """What a subscription is made with, and Oura gives back in the handshake; the secret itself is not sent."""
    return hmac.new(secret.encode(), b"webhook subscription", hashlib.sha256).hexdigest()


def challenge(request: WebhookRequest, secrets: Sequence[str]) -> tuple[int, str, bytes] | None:
    """The handshake of a subscription: the challenge back, for the token that we made it with."""
    asked = request.query.get("challenge")
    if request.method != "GET" or asked is None:
        return None
    token = request.query.get("verification_token", "").encode()
    if not any(hmac.compare_digest(token, verification_token(secret).encode()) for secret in secrets):
        return 401, "application/json", b"{}"
    return 200, "application/json", orjson.dumps({"challenge": asked})


def events(body: bytes) -> tuple[Event, ...]:
    """The one event of a notice. It names the document and not its day, and has no id of its own."""
    notice = load_object(body)
    change, kind, document, user = (
        notice.get(name) for name in ("event_type", "data_type", "object_id", "user_id")
    )
    if not isinstance(change, str) or not isinstance(kind, str) or not isinstance(document, str):
        raise ValueError("an Oura notice has an event_type, a data_type and an object_id")
    known = kind in _ENTITIES and change in _KINDS
    return (
        Event(
            event_type=f"{kind}.{change}",
            kind=_KINDS[change] if known else "other",
            provider_user_id=user if isinstance(user, str) else None,
            entity=kind if known else None,
            record_ids=(document,),
        ),
    )
