"""The corpus of signed calls: what the vendor's scheme proves is taken, and anything else is not even read."""

from __future__ import annotations

import base64
import datetime as dt
import functools
import hashlib
import hmac
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import httpx
import orjson
import pytest
from calling import DAY, address, rows
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from health_pipeline.connections.callback import path_token
from health_pipeline.ingestion.events import Accepted
from health_pipeline.providers.registry import all_providers, get
from health_pipeline.raw.store import RawStore
from health_pipeline.receiver.app import create_app
from health_pipeline.receiver.secrets import Secrets
from health_pipeline.sandbox.routers import WebhookCall
from health_pipeline.sandbox.server import RunningSandbox
from health_pipeline.settings import Settings
from health_pipeline.warehouse.connection import Warehouse

SECRET = "whsec_" + base64.b64encode(b"an active secret").decode()
OLDER = "whsec_" + base64.b64encode(b"an older secret").decode()
SIGNED = [name for name, provider in all_providers().items() if provider.webhook and provider.webhook.verify]
#: The headers that prove a call; a vendor may say the same in two.
PROOFS = {
    "generic": ("webhook-signature",),
    "google_health": ("google-health-api-signature", "x-healthapi-signature"),
    "oura": ("x-oura-signature",),
    "polar": ("polar-webhook-signature",),
    "terra": ("terra-signature", "x-terra-signature"),
    "whoop": ("x-whoop-signature",),
}
#: And those that the proof speaks of.
PROVED = {
    "generic": ("webhook-timestamp", "webhook-id"),
    "oura": ("x-oura-timestamp",),
    "whoop": ("x-whoop-signature-timestamp",),
}
#: How old a call may be, s, where the scheme says.
TOLERANCE = {"generic": 300, "terra": 300, "whoop": 300}

each_signed = pytest.mark.parametrize("name", SIGNED)
Headers = list[tuple[str, str]]


@dataclass(frozen=True)
class Sent:
    """A call on the wire; a header may come twice."""

    headers: tuple[tuple[str, str], ...]
    body: bytes

    def with_headers(self, names: tuple[str, ...], change: Callable[[str], list[str]]) -> Sent:
        """Each of these headers with the values that `change` makes of its own."""
        return replace(
            self,
            headers=tuple(
                (name, value)
                for name, before in self.headers
                for value in (change(before) if name in names else [before])
            ),
        )


def sent(call: WebhookCall) -> Sent:
    return Sent(tuple((name.lower(), value) for name, value in call.headers.items()), call.body)


def generic_call(handle: str, day: dt.date, secret: str, now: dt.datetime) -> Sent:
    """As a sender of one's own signs by Standard Webhooks 1.0, with another signature in front."""
    record = {"metric_type": "weight", "value": 70.5, "unit": "kg", "recorded_at": f"{day}T07:00:00+02:00"}
    body = orjson.dumps({"user": handle, "records": [record]})
    identifier, timestamp = f"msg_{handle}_{day}", str(int(now.timestamp()))
    key = base64.b64decode(secret[6:] + "==") if secret.startswith("whsec_") else secret.encode()
    proof = hmac.digest(key or b"x", f"{identifier}.{timestamp}.".encode() + body, hashlib.sha256)
    headers = {
        "content-type": "application/json",
        "webhook-id": identifier,
        "webhook-timestamp": timestamp,
        "webhook-signature": f"v1a,Zm9v v1,{base64.b64encode(proof).decode()}",
    }
    return Sent(tuple(headers.items()), body)


class Untouchable:
    """A database and a raw store that nobody may use."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was used")


class Desk:
    """A receiver that notes the bodies it takes for proved, before anything reads them."""

    def __init__(
        self, sandbox: RunningSandbox, configured: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.sandbox = sandbox
        self.taken: list[bytes] = []
        self.moved = dt.timedelta(0)
        monkeypatch.setattr("health_pipeline.receiver.app.accept", self._accept)
        for name in SIGNED:
            if name != "google_health":
                monkeypatch.setenv(f"HEALTH_PIPELINE_{name.upper()}_WEBHOOK_SECRET", f"{SECRET},{OLDER}")
        self.secrets = Secrets(configured.model_copy(update={"sandbox_url": sandbox.url}))
        now = sandbox.app.state.sandbox.now
        app = create_app(
            Untouchable(),  # type: ignore[arg-type]
            Untouchable(),  # type: ignore[arg-type]
            self.secrets.of,
            lambda: now() + self.moved,
            calls_per_second=1e6,
        )
        self.client = TestClient(app)

    def _accept(
        self, _: object, __: object, provider: object, body: bytes, *rest: object, **more: object
    ) -> Accepted:
        self.taken.append(body)
        return Accepted((len(self.taken),), 0)

    @functools.cache  # noqa: B019 - a desk lives as long as its test
    def calls(self, name: str, secret: str = SECRET, handle: str = "ada", day: dt.date = DAY) -> list[Sent]:
        if name == "generic":
            return [generic_call(handle, day, secret, self.sandbox.app.state.sandbox.now())]
        calls = self.sandbox.app.state.apis[name].webhooks(handle, day, secret)
        return [sent(call) for call in calls]

    def post(self, name: str, call: Sent) -> httpx.Response:
        return self.client.post(address(name), content=call.body, headers=list(call.headers))

    def refuses(self, name: str, call: Sent) -> None:
        before = len(self.taken)
        answer = self.post(name, call)
        assert answer.status_code == get(name).webhook.refusal, call
        assert answer.json()["error"]["code"] == "invalid_signature"
        assert len(self.taken) == before, "it was taken, and read"


@pytest.fixture
def desk(settings: Settings, sandbox: RunningSandbox, monkeypatch: pytest.MonkeyPatch) -> Desk:
    return Desk(sandbox, settings, monkeypatch)


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8 % len(changed)] ^= 1 << bit % 8
    return bytes(changed)


def changes_of_body(body: bytes) -> Iterator[bytes]:
    yield from (flipped(body, 8 * at + at % 8) for at in range(0, len(body), max(1, len(body) // 25)))
    yield from (
        body[:-1],
        body[1:],
        body[: len(body) // 2],
        b"",
        body + b" ",
        body + b"\n",
        b" " + body,
        body + body,
    )
    yield from (b"\xef\xbb\xbf" + body, b"0" + body, body.replace(b"0", b"1", 1) + b"!")
    parsed = orjson.loads(body)
    again = [orjson.dumps(parsed, option=option) for option in (orjson.OPT_INDENT_2, orjson.OPT_SORT_KEYS)]
    yield from (text for text in again if text != body)


def changes_of_proof(value: str) -> Iterator[list[str]]:
    """Values in place of a proof, none of which proves anything."""
    mark = next((mark for mark in ("v1=", "v1,") if mark in value), "v1=")
    before, mark, rest = value.partition(mark)
    if mark:
        proof, comma, rest = rest.partition(",")
        yield from ([], [""], [value, value], [value, "x"], [before + mark], [value.replace("v1", "v2")])
        yield from ([before + mark + changed + comma + rest] for changed in changed_proofs(proof))
        return
    yield from ([], [""], [value, value], [value, "x"])
    yield from ([changed] for changed in changed_proofs(value))


def changed_proofs(proof: str) -> Iterator[str]:
    yield from (proof[:-1], proof[: len(proof) // 2], proof + "A", proof + "0", proof[::-1])
    for at in range(0, len(proof.rstrip("=")), 3):
        yield proof[:at] + ("1" if proof[at] == "0" else "0") + proof[at + 1 :]
    if proof.endswith("="):
        # The last digit before the padding has bits that decode to nothing.
        digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
        at = len(proof.rstrip("=")) - 1
        yield proof[:at] + digits[digits.index(proof[at]) ^ 1] + proof[at + 1 :]


@each_signed
def test_what_the_vendor_signs_is_taken(desk: Desk, name: str) -> None:
    calls = [
        call for handle in ("ada", "ben") for day in (DAY, DAY - dt.timedelta(days=1))
        for call in desk.calls(name, SECRET, handle, day)
    ]  # fmt: skip
    for call in calls:
        assert desk.post(name, call).status_code == get(name).webhook.status
        # A proxy may add to the type, and in front of it.
        typed = call.with_headers(("content-type",), lambda value: [f"{value}; charset=utf-8"])
        assert desk.post(name, typed).is_success
    assert desk.taken == [call.body for call in calls for _ in range(2)]
    if name != "google_health":
        for secret in (OLDER,):
            assert desk.post(name, desk.calls(name, secret)[0]).is_success, "the older secret is active, too"


@each_signed
def test_a_changed_body_is_not_read(desk: Desk, name: str) -> None:
    call = desk.calls(name)[0]
    for body in changes_of_body(call.body):
        assert body != call.body
        desk.refuses(name, replace(call, body=body))
    assert desk.post(name, call).is_success


@each_signed
def test_a_changed_proof_proves_nothing(desk: Desk, name: str) -> None:
    call = desk.calls(name)[0]
    value = next(value for header, value in call.headers if header in PROOFS[name])
    for values in changes_of_proof(value):
        desk.refuses(name, call.with_headers(PROOFS[name], lambda _, values=values: values))  # type: ignore[misc]
    desk.refuses(name, replace(call, headers=(("content-type", "application/json"),)))


@each_signed
def test_what_the_proof_speaks_of_is_as_it_was(desk: Desk, name: str) -> None:
    call = desk.calls(name)[0]
    for header in PROVED.get(name, ()):
        for change in (
            lambda value: [],
            lambda value: [value, value],
            lambda value: [str(int(value) + 1)] if value.isdigit() else [value + "x"],
            lambda value: [value[:-1]],
            lambda value: [value + "0"],
            lambda value: [value + ".0"],
            lambda value: [f"0{value}"],
            lambda value: [""],
            lambda value: ["-1"],
        ):
            desk.refuses(name, call.with_headers((header,), change))
        # What is signed has no mark where one part ends: a digit may not go over to the other.
        (value,) = (value for found, value in call.headers if found == header)
        moved = call.with_headers((header,), lambda value: [value[:-1]])
        desk.refuses(name, replace(moved, body=value[-1:].encode() + call.body))
        moved = call.with_headers((header,), lambda value: [value + call.body[:1].decode()])
        desk.refuses(name, replace(moved, body=call.body[1:]))
    if name == "terra":
        desk.refuses(name, call.with_headers(PROOFS[name], lambda value: [value.replace("t=", "t=1", 1)]))
        desk.refuses(name, call.with_headers(PROOFS[name], lambda value: [f"{value},t=1"]))


@each_signed
def test_old_calls_are_refused_where_the_scheme_says_how_old(desk: Desk, name: str) -> None:
    call = desk.calls(name)[0]
    tolerance = TOLERANCE.get(name)
    for seconds in (0, 250, -250):
        desk.moved = dt.timedelta(seconds=seconds)
        assert desk.post(name, call).is_success
    desk.moved = dt.timedelta(seconds=(tolerance or 86_400) + 5)
    if tolerance is None:
        assert desk.post(name, call).is_success
    else:
        desk.refuses(name, call)
        desk.moved = -desk.moved
        desk.refuses(name, call)


@each_signed
def test_another_secret_or_vendor_proves_nothing(desk: Desk, name: str) -> None:
    if name == "google_health":
        from health_pipeline.sandbox.routers.google_health.signing import Signer

        call = desk.calls(name)[0]
        stranger = Signer(4711).sign(call.body)
        desk.refuses(name, call.with_headers(PROOFS[name], lambda _: [stranger]))
    else:
        own = desk.secrets.own(get(name))[0]
        assert desk.post(name, desk.calls(name, own)[0]).is_success, "one of our making, for the sandbox"
        for secret in ("guess", SECRET.upper(), SECRET[:-4], desk.secrets.own(get("strava"))[0]):
            desk.refuses(name, desk.calls(name, secret)[0])
    for other in SIGNED:
        if other != name:
            desk.refuses(name, desk.calls(other)[0])


def damaged(data: st.DataObject, name: str, call: Sent) -> Sent:
    """The call with something of it other than it was, that counts."""
    kind = data.draw(st.sampled_from(["bits", "cut", "insert", "proof", "random", "proved"]))
    body = call.body
    if kind == "proved" and name in PROVED:
        header = data.draw(st.sampled_from(PROVED[name]))
        (value,) = (value for found, value in call.headers if found == header)
        other = data.draw(
            st.text("0123456789 -+.abc", max_size=20).filter(lambda text: text.strip() != value)
        )
        return call.with_headers((header,), lambda _: [other])
    if kind == "proof":
        value = next(value for header, value in call.headers if header in PROOFS[name])
        texts = st.one_of(
            st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=120),
            st.integers(0, len(value)).map(lambda at: value[:at]),
            st.permutations(list(value)).map("".join),
        )
        # Digits of either case are the same digits at Oura.
        other = data.draw(texts.filter(lambda text: text.strip().lower() != value.lower()))
        # Without what Terra adds to its proof, that is whole.
        assume(name != "terra" or not {*value.split(",")[:2]} <= {*other.split(",")})
        return call.with_headers(PROOFS[name], lambda _: [other])
    if kind == "cut":
        at = data.draw(st.integers(0, len(body) - 1))
        return replace(call, body=body[:at] + body[at + data.draw(st.integers(1, 9)) :])
    if kind == "insert":
        at = data.draw(st.integers(0, len(body)))
        return replace(call, body=body[:at] + data.draw(st.binary(min_size=1, max_size=9)) + body[at:])
    if kind == "random":
        # hypothesis knows the bytes of our sources: a handshake has no proof, and an answer of its own.
        others = st.binary(max_size=500).filter(lambda other: other != body and b"verification" not in other)
        return replace(call, body=data.draw(others))
    for bit in data.draw(st.sets(st.integers(0, 8 * len(body) - 1), min_size=1, max_size=5)):
        body = flipped(body, bit)
    return replace(call, body=body)


def fuzz(desk: Desk, name: str, examples: int) -> None:
    calls = desk.calls(name)

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def refuses_what_is_damaged(data: st.DataObject) -> None:
        desk.refuses(name, damaged(data, name, data.draw(st.sampled_from(calls))))

    refuses_what_is_damaged()
    assert desk.taken == []
    assert desk.post(name, calls[0]).is_success


@each_signed
def test_whatever_is_damaged_is_refused(desk: Desk, name: str) -> None:
    fuzz(desk, name, 100)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@each_signed
def test_ten_thousand_damaged_calls_are_refused(desk: Desk, name: str) -> None:
    fuzz(desk, name, 10_000)


def test_stravas_signature_counts_where_its_secret_is_configured(desk: Desk) -> None:
    """By the unguessable path alone where it is not: the vendor does not say what it signs with."""
    call = desk.calls("strava")[0]
    path = f"/webhooks/strava/{path_token(SECRET, 'strava')}"
    now = int(desk.sandbox.app.state.sandbox.now().timestamp())

    def signed(body: bytes, secret: str, at: int = now) -> dict[str, str]:
        proof = hmac.digest(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hex()
        return {"content-type": "application/json", "x-strava-signature": f"t={at},v1={proof}"}

    def post(body: bytes, headers: dict[str, str], configured: list[str]) -> int:
        app = create_app(
            Untouchable(),  # type: ignore[arg-type]
            Untouchable(),  # type: ignore[arg-type]
            lambda _: [SECRET],
            desk.sandbox.app.state.sandbox.now,
            configured_of=lambda _: configured,
        )
        with TestClient(app) as client:
            return client.post(path, content=body, headers=headers).status_code

    plain = {"content-type": "application/json"}
    for headers in (plain, signed(call.body, "another's"), signed(call.body, "signing")):
        assert post(call.body, headers, []) == 200
    assert post(call.body, signed(call.body, "signing"), ["newer", "signing"]) == 200
    taken = len(desk.taken)
    for body, headers in (
        (call.body, plain),
        (call.body, signed(call.body, SECRET)),
        (call.body, signed(call.body, "signing", now - 305)),
        (call.body + b" ", signed(call.body, "signing")),
        (call.body, signed(call.body, "signing") | {"x-strava-signature": ""}),
    ):
        assert post(body, headers, ["signing"]) == 400
    assert len(desk.taken) == taken, "it was taken, and read"


def test_googles_calls_are_kept(
    warehouse: Warehouse, store: RawStore, configured_sandbox: Settings, sandbox: RunningSandbox
) -> None:
    app = create_app(warehouse.engine, store, Secrets(configured_sandbox).of, sandbox.app.state.sandbox.now)
    calls = [sent(call) for call in sandbox.app.state.apis["google_health"].webhooks("ada", DAY, "s")]
    with TestClient(app) as client:
        for call in (*calls, *calls):
            answer = client.post(address("google_health"), content=call.body, headers=list(call.headers))
            assert answer.status_code == 204
    kept = rows(
        warehouse,
        "select state, object_key from ops.webhook_events inner join ops.raw_objects using (raw_object_id)",
    )
    assert {row[0] for row in kept} == {"pending"}
    assert {store.get(str(row[1])) for row in kept} == {call.body for call in calls}


@pytest.fixture
def configured_sandbox(settings: Settings, sandbox: RunningSandbox) -> Settings:
    return settings.model_copy(update={"sandbox_url": sandbox.url})
