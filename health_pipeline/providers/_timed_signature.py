"""Signatures of the form `t=<seconds>,v1=<hex>[,v1=…]`, as Terra and others write them."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from health_pipeline.providers.base import WebhookRequest

_TOLERANCE = 300


def proves(said: str, request: WebhookRequest, secrets: Sequence[str]) -> bool:
    """Whether a `v1` is the HMAC-SHA256 of "t.body" by one of the secrets, and `t` at most five minutes off."""
    parts = [part.strip().partition("=") for part in said.split(",")]
    times = [value for name, _, value in parts if name == "t"]
    if len(times) != 1 or not (times[0].isascii() and times[0].isdecimal() and len(times[0]) <= 12):
        return False
    if abs(request.received_at.timestamp() - int(times[0])) > _TOLERANCE:
        return False
    message = times[0].encode() + b"." + request.body
    expected = [hmac.new(secret.encode(), message, hashlib.sha256).hexdigest().encode() for secret in secrets]
    given = [value.encode() for name, _, value in parts if name == "v1"]
    # All are compared, so that the time taken tells nothing.
    return sum(hmac.compare_digest(one, other) for one in expected for other in given) > 0
