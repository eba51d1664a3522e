"""Google Health's calls to us: a Tink signature over the raw body, a handshake, and what an event says.

The active secrets are of two kinds: the vendor's public keyset, as the JSON text that it publishes at
KEYSET_URL (to be fetched again each day), and the value of the `Authorization` header that we chose when the
subscriber was created, with its scheme (`Bearer …`). The keyset proves calls; the header the handshake, and
nothing else: calls have come without it.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import hmac
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import orjson

from health_pipeline.providers._google_health_subscriptions import subscriptions
from health_pipeline.providers.base import Event, Webhook, WebhookRequest, Window

#: Where the vendor publishes the keys that its calls are signed with.
KEYSET_URL = "https://www.gstatic.com/googlehealthapi/webhooks/webhooks_public_keyset.json"

#: The newer name first; the older one is still in the reference.
_SIGNATURE_HEADERS = ("google-health-api-signature", "x-healthapi-signature")
_KEY_TYPE = "type.googleapis.com/google.crypto.tink.EcdsaPublicKey"
_TINK_PREFIX = 1
#: SHA-256, NIST P-256, DER: the numbers Tink has for them (ecdsa.proto, common.proto).
_PARAMETERS = {1: 3, 2: 2, 3: 2}
_VERIFICATION = b'{"type":"verification"}'
_KINDS = {"UPSERT": "changed", "DELETE": "deleted"}

Point = tuple[int, int]


def webhook(entities: Mapping[str, str]) -> Webhook:
    """The scheme; `entities` maps data types, as calls name them, to ours."""
    return Webhook(
        carries="notice",
        scheme="ECDSA P-256 over the raw body, by the vendor's published Tink keyset; no time, so no replay window",
        events=_reader(entities),
        verify=verify,
        challenge=challenge,
        status=204,
        refusal=401,
        keyset_url=KEYSET_URL,
        subscriptions=subscriptions(entities),
    )


def verify(request: WebhookRequest, secrets: Sequence[str]) -> bool:
    """Whether a key of the keysets among `secrets` signed the body: base64 of 0x01, key id, DER signature."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    header = next(filter(None, map(request.header, _SIGNATURE_HEADERS)), None)
    if header is None:
        return False
    try:
        blob = base64.b64decode(header, validate=True)
    except (binascii.Error, ValueError):
        return False
    # Other texts decode to the same bytes.
    if len(blob) <= 5 or blob[0] != _TINK_PREFIX or base64.b64encode(blob).decode() != header:
        return False
    key_id, signature = int.from_bytes(blob[1:5], "big"), blob[5:]
    for secret in secrets:
        for known_id, (x, y) in _keys(secret) if secret.lstrip().startswith("{") else ():
            if known_id != key_id:
                continue
            try:
                key = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
                key.verify(signature, request.body, ec.ECDSA(hashes.SHA256()))
            except (InvalidSignature, ValueError):
                continue
            return True
    return False


def challenge(request: WebhookRequest, secrets: Sequence[str]) -> tuple[int, str, bytes] | None:
    """The subscriber's handshake: 201 where our own header value came with it, 401 where it did not."""
    # Compared as bytes: nothing is parsed before it is proved.
    if request.method != "POST" or len(request.body) > 100 or b"".join(request.body.split()) != _VERIFICATION:
        return None
    given = (request.header("authorization") or "").encode()
    ours = [
        value.encode()
        for secret in secrets
        if secret and not secret.lstrip().startswith("{")
        # One that we made goes with its scheme.
        for value in (secret, f"Bearer {secret}")
    ]
    # All are compared, so that the time taken says nothing.
    known = sum(hmac.compare_digest(given, value) for value in ours)
    return (201 if known else 401), "application/json", b"{}"


def _loaded(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


# Keysets ----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def _keys(keyset: str) -> tuple[tuple[int, Point], ...]:
    """The enabled P-256 keys of a Tink JSON keyset, by id; none of a text that is no keyset."""
    found = _loaded(keyset.encode())
    keys = found.get("key") if isinstance(found, dict) else None
    return tuple(_usable(keys if isinstance(keys, list) else ()))


def _usable(keys: Sequence[Any]) -> Iterator[tuple[int, Point]]:
    for key in keys:
        try:
            if (key["status"], key["outputPrefixType"]) != ("ENABLED", "TINK"):
                continue
            if key["keyData"]["typeUrl"] != _KEY_TYPE:
                continue
            fields = dict(_protobuf(base64.b64decode(key["keyData"]["value"], validate=True)))
            if dict(_protobuf(fields[2])) == _PARAMETERS:
                yield key["keyId"], (int.from_bytes(fields[3], "big"), int.from_bytes(fields[4], "big"))
        except (KeyError, TypeError, ValueError, IndexError):
            continue


def _protobuf(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a protobuf message that has integers and byte strings only."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = data[place]
            place += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    while place < len(data):
        tag = varint()
        if tag & 7 == 0:
            yield tag >> 3, varint()
        elif tag & 7 == 2:
            length = varint()
            if place + length > len(data):
                raise ValueError("the message breaks off")
            yield tag >> 3, data[place : place + length]
            place += length
        else:
            raise ValueError("not a message of integers and byte strings")


# Events -----------------------------------------------------------------------------------------------------


def _reader(entities: Mapping[str, str]) -> Callable[[bytes], tuple[Event, ...]]:
    def events(body: bytes) -> tuple[Event, ...]:
        """One event a notification, of which a body holds one (as documented) or a list (as seen)."""
        found = _loaded(body)
        notices = found if isinstance(found, list) else [found]
        return tuple(_event(notice, entities) for notice in notices)

    return events


def _event(notice: Any, entities: Mapping[str, str]) -> Event:
    data = notice.get("data") if isinstance(notice, dict) else None
    if not isinstance(data, dict):
        raise ValueError("a notification without data")
    user, data_type, operation = (data.get(name) for name in ("healthUserId", "dataType", "operation"))
    if not (isinstance(user, str) and isinstance(data_type, str) and isinstance(operation, str)):
        raise ValueError("a notification that does not say whose data of what type changed how")
    entity = entities.get(data_type)
    kind: Any = _KINDS.get(operation, "other") if entity is not None else "other"
    return Event(
        event_type=f"{data_type}.{operation}",
        kind=kind,
        provider_user_id=user,
        entity=entity,
        window=_window(data.get("intervals")),
    )


def _window(intervals: Any) -> Window | None:
    """The civil days of all intervals; None where an interval does not say them."""
    days: list[dt.date] = []
    for interval in intervals if isinstance(intervals, list) else ():
        try:
            civil = interval["civilIso8601TimeInterval"]
            days += [dt.date.fromisoformat(civil[end][:10]) for end in ("startTime", "endTime")]
        except (KeyError, TypeError, ValueError):
            return None
    return Window(min(days), max(days)) if days else None
