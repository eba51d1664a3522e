"""Oura's notices: who signed them, and what they say."""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from health_pipeline.providers import _oura_webhook as webhook
from health_pipeline.providers.base import WebhookRequest
from health_pipeline.sandbox.server import RunningSandbox

NOW = dt.datetime(2026, 11, 21, 12, 0, tzinfo=dt.UTC)
SECRET = "client-secret"
KNOWN = "A8CF3A73E06065E7A49262092442363716AA6D350A2F65433ACE2DA0D2AD95F8"
NOTICE = (
    b'{"event_type":"update","data_type":"sleep","object_id":"a1b2","event_time":"2026-11-21T07:00:00+00:00",'
    b'"user_id":"u-1"}'
)


def signed(body: bytes = NOTICE, secret: str = SECRET, timestamp: str = "1795262400") -> WebhookRequest:
    proof = hmac.digest(secret.encode(), timestamp.encode() + body, hashlib.sha256).hex().upper()
    headers = {"x-oura-signature": (proof,), "x-oura-timestamp": (timestamp,)}
    return WebhookRequest("POST", "/hook", {}, headers, body, NOW)


def test_signature_of_a_known_message() -> None:
    # printf '1795262400{}' | openssl dgst -sha256 -hmac client-secret
    request = signed(b"{}")
    assert request.header("x-oura-signature") == KNOWN
    assert webhook.verify(request, [SECRET])


def test_any_active_secret_in_either_case_proves_a_call() -> None:
    request = signed()
    assert webhook.verify(request, ["older", SECRET])
    assert not webhook.verify(request, ["older"])
    assert not webhook.verify(request, [])
    lower = {**request.headers, "x-oura-signature": (request.headers["x-oura-signature"][0].lower(),)}
    assert webhook.verify(WebhookRequest("POST", "/", {}, lower, NOTICE, NOW), [SECRET])


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, len(NOTICE) - 1), bit=st.integers(0, 7))
def test_changed_body_is_refused(place: int, bit: int) -> None:
    request = signed()
    changed = bytearray(request.body)
    changed[place] ^= 1 << bit
    assert not webhook.verify(WebhookRequest("POST", "/", {}, request.headers, bytes(changed), NOW), [SECRET])


def test_missing_repeated_or_unreadable_headers_are_refused() -> None:
    good = signed()
    proof = good.headers["x-oura-signature"][0]
    for name, values in (
        ("x-oura-signature", ()),
        ("x-oura-signature", (proof, proof)),
        ("x-oura-signature", ("é",)),
        ("x-oura-signature", ("",)),
        ("x-oura-timestamp", ()),
        ("x-oura-timestamp", ("1795262401",)),
    ):
        headers = {**good.headers, name: values}
        assert not webhook.verify(WebhookRequest("POST", "/", {}, headers, NOTICE, NOW), [SECRET]), name


def test_handshake_is_answered_for_our_token_alone() -> None:
    def ask(token: str, method: str = "GET", **query: str) -> tuple[int, str, bytes] | None:
        query = {"verification_token": token, **query}
        return webhook.challenge(WebhookRequest(method, "/hook", query, {}, b"", NOW), ["older", SECRET])

    token = webhook.verification_token(SECRET)
    assert SECRET not in token
    assert ask(token, challenge="xyz") == (200, "application/json", b'{"challenge":"xyz"}')
    assert (ask("wrong", challenge="xyz") or (0,))[0] == 401
    assert (ask(SECRET, challenge="xyz") or (0,))[0] == 401
    assert ask(token) is None
    assert ask(token, "POST", challenge="xyz") is None


def test_events() -> None:
    (event,) = webhook.events(NOTICE)
    assert (event.event_type, event.kind, event.entity) == ("sleep.update", "changed", "sleep")
    assert (event.provider_user_id, event.record_ids, event.window) == ("u-1", ("a1b2",), None)
    for change, data_type, expected in (
        ("delete", "daily_sleep", ("deleted", "daily_sleep")),
        ("create", "vo2_max", ("changed", "vo2_max")),
        ("create", "meal", ("other", None)),
        ("celebrated", "sleep", ("other", None)),
    ):
        body = {**orjson.loads(NOTICE), "event_type": change, "data_type": data_type}
        (event,) = webhook.events(orjson.dumps(body))
        assert (event.kind, event.entity) == expected


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"event_type": "update"}', NOTICE.replace(b'"a1b2"', b"7")]
)
def test_body_that_is_no_notice(body: bytes) -> None:
    with pytest.raises(ValueError):
        webhook.events(body)


def test_notices_of_the_sandbox_prove_themselves_and_name_documents_that_are_there(
    sandbox: RunningSandbox,
) -> None:
    calls = sandbox.app.state.apis["oura"].webhooks("ada", dt.date(2026, 9, 10), SECRET)
    told = set()
    for call in calls:
        headers = {name.lower(): (value,) for name, value in call.headers.items()}
        request = WebhookRequest(call.method, "/", call.query, headers, call.body, NOW)
        assert webhook.verify(request, [SECRET])
        assert not webhook.verify(request, ["another"])
        (event,) = webhook.events(call.body)
        assert event.kind == "changed"
        told.add(event.entity)
    assert {"sleep", "daily_sleep", "daily_readiness", "daily_activity"} <= told
