"""What Oura posts to us: notices of one document each, signed by the client secret, the document to be fetched."""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import orjson

from health_pipeline.providers._json import MalformedBodyError, load_object
from health_pipeline.providers.base import (
    Credentials,
    Event,
    Subscribing,
    Subscription,
    Subscriptions,
    WebhookRequest,
)
from health_pipeline.providers.http import ApiClient, MalformedResponseError, RequestRejectedError

if TYPE_CHECKING:
    import httpx

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
    Nothing parts it from the body, so neither may end, or begin, with what could be the other's.
    """
    signature = request.header("x-oura-signature")
    timestamp = request.header("x-oura-timestamp")
    if signature is None or timestamp is None or not (timestamp.isascii() and timestamp.isdigit()):
        return False
    if request.body[:1].isdigit():
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


# Subscriptions

_SUBSCRIPTIONS = "/v2/webhook/subscription"


def _authorize(credentials: Credentials) -> Mapping[str, str]:
    return {"x-client-id": credentials.client_id, "x-client-secret": credentials.client_secret}


def _list(client: ApiClient, _: Credentials) -> list[Subscription]:
    response = client.get(_SUBSCRIPTIONS)
    try:
        rows = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        rows = None
    if not isinstance(rows, list):
        raise MalformedResponseError(client.provider, _SUBSCRIPTIONS, 200, "the subscriptions are no list")
    return [_read(client, row) for row in rows]


def _create(client: ApiClient, _: Credentials, asked: Subscribing) -> Subscription:
    data_type, event_type = asked.kind.split(".")
    wanted = {
        "callback_url": asked.address,
        "verification_token": verification_token(asked.token),
        "event_type": event_type,
        "data_type": data_type,
    }
    return _read(client, _object(client, client.request("POST", _SUBSCRIPTIONS, json=wanted)))


def _renew(client: ApiClient, _: Credentials, subscription: Subscription) -> Subscription:
    path = f"{_SUBSCRIPTIONS}/renew/{subscription.subscription_id}"
    return _read(client, _object(client, client.request("PUT", path)))


def _delete(client: ApiClient, _: Credentials, subscription: Subscription) -> None:
    try:
        client.request("DELETE", f"{_SUBSCRIPTIONS}/{subscription.subscription_id}")
    except RequestRejectedError as error:
        # What it says of one that there is not.
        if error.status != 403:
            raise


def _object(client: ApiClient, response: httpx.Response) -> dict[str, Any]:
    try:
        return load_object(response.content)
    except MalformedBodyError:
        raise MalformedResponseError(
            client.provider, _SUBSCRIPTIONS, response.status_code, "the subscription cannot be read"
        ) from None


def _read(client: ApiClient, row: Any) -> Subscription:
    try:
        expires_at = dt.datetime.fromisoformat(row["expiration_time"])
        return Subscription(
            row["id"],
            f"{row['data_type']}.{row['event_type']}",
            row["callback_url"],
            expires_at if expires_at.tzinfo is not None else expires_at.replace(tzinfo=dt.UTC),
        )
    except (KeyError, TypeError, ValueError):
        raise MalformedResponseError(
            client.provider, _SUBSCRIPTIONS, 200, "a subscription cannot be read"
        ) from None


#: One a kind of document and of change. They expire after some weeks (the vendor does not say how many).
SUBSCRIPTIONS = Subscriptions(
    per="application",
    kinds=tuple(f"{entity}.{change}" for entity in sorted(_ENTITIES) for change in _KINDS),
    authorize=_authorize,
    list=_list,
    create=_create,
    renew=_renew,
    delete=_delete,
)
