"""Oura's webhook subscriptions: one a kind of document and change, asked back by a challenge, good for 90 days."""

from __future__ import annotations

import datetime as dt
import secrets

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response

from health_pipeline.sandbox.context import Sandbox
from health_pipeline.sandbox.oauth import OAuthServer
from health_pipeline.sandbox.subscriptions import Subscribed, Subscribers, ask

#: The vendor does not say how long; of the order of what its clients saw.
LIFETIME = dt.timedelta(days=90)
_OPERATIONS = ("create", "update", "delete")
_DATA_TYPES = (
    *("tag", "enhanced_tag", "workout", "session", "sleep", "daily_sleep", "daily_readiness"),
    *("daily_activity", "daily_spo2", "sleep_time", "rest_mode_period", "ring_configuration"),
    *("daily_stress", "daily_cardiovascular_age", "daily_resilience", "vo2_max", "meal"),
)
_FIELDS = ("callback_url", "verification_token", "event_type", "data_type")


def _json(body: object, status: int = 200) -> Response:
    return Response(orjson.dumps(body), status, media_type="application/json")


def _problem(status: int, title: str, detail: str) -> Response:
    return _json({"status": status, "title": title, "detail": detail}, status)


class SubscriptionRoutes:
    """`/v2/webhook/subscription`, signed by the client's id and secret in headers."""

    def __init__(self, sandbox: Sandbox, oauth: OAuthServer, subscribers: Subscribers) -> None:
        self._sandbox = sandbox
        self._oauth = oauth
        self._subscribers = subscribers

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/v2/webhook/subscription")
        router.add_api_route("", self._list, methods=["GET"])
        router.add_api_route("", self._create, methods=["POST"])
        router.add_api_route("/renew/{subscription_id}", self._renew, methods=["PUT"])
        router.add_api_route("/{subscription_id}", self._one, methods=["GET", "DELETE"])
        return router

    def _client(self, request: Request) -> tuple[str, str] | None:
        client_id = request.headers.get("x-client-id", "")
        secret = self._oauth.client_secret(client_id, request.headers.get("x-client-secret", ""))
        return None if secret is None else (client_id, secret)

    def _standing(self, client_id: str) -> list[Subscribed]:
        """What has expired is no more."""
        now = self._sandbox.now()
        for one in self._subscribers:
            if one.expires_at is not None and one.expires_at <= now:
                self._subscribers.remove(one.subscription_id)
        return [one for one in self._subscribers if one.client_id == client_id]

    async def _list(self, request: Request) -> Response:
        client = self._client(request)
        if client is None:
            return _unknown()
        return _json([_shown(one) for one in self._standing(client[0])])

    async def _create(self, request: Request) -> Response:
        client = self._client(request)
        if client is None:
            return _unknown()
        try:
            body = orjson.loads(await request.body())
        except orjson.JSONDecodeError:
            body = None
        wrong = _wrong_field(body)
        if wrong is not None:
            item = {"loc": ["body", wrong], "msg": "Field required or not valid", "type": "value_error"}
            return _json({"detail": [item]}, 422)
        kind = f"{body['data_type']}.{body['event_type']}"
        if any(kind in one.kinds for one in self._standing(client[0])):
            return _problem(409, "Conflict", "There is a subscription to this data type and event type.")
        challenge = secrets.token_hex(16)
        query = {"verification_token": body["verification_token"], "challenge": challenge}
        answer = await ask("GET", body["callback_url"], params=query)
        if answer is None or answer.status_code != 200 or not _says(answer.content, challenge):
            return _problem(400, "Bad Request", "The callback url did not answer the challenge.")
        one = Subscribed(
            address=body["callback_url"],
            kinds=frozenset({kind}),
            secret=client[1],
            client_id=client[0],
            expires_at=self._sandbox.now().replace(microsecond=0) + LIFETIME,
        )
        return _json(_shown(self._subscribers.add(one)), 201)

    async def _renew(self, request: Request, subscription_id: str) -> Response:
        found = self._found(request, subscription_id)
        if isinstance(found, Response):
            return found
        found.expires_at = self._sandbox.now().replace(microsecond=0) + LIFETIME
        return _json(_shown(found))

    async def _one(self, request: Request, subscription_id: str) -> Response:
        found = self._found(request, subscription_id)
        if isinstance(found, Response):
            return found
        if request.method == "DELETE":
            self._subscribers.remove(subscription_id)
            return Response(status_code=204)
        return _json(_shown(found))

    def _found(self, request: Request, subscription_id: str) -> Subscribed | Response:
        client = self._client(request)
        if client is None:
            return _unknown()
        self._standing(client[0])
        found = self._subscribers.get(subscription_id, client[0])
        if found is None:
            # The vendor's word for what there is not.
            return _problem(403, "Forbidden", "Webhook with specified id does not exist.")
        return found


def _unknown() -> Response:
    return _problem(401, "Unauthorized", "Unknown x-client-id or wrong x-client-secret.")


def _shown(one: Subscribed) -> dict[str, str]:
    (kind,) = one.kinds
    data_type, _, event_type = kind.partition(".")
    assert one.expires_at is not None
    return {
        "id": one.subscription_id,
        "callback_url": one.address,
        "event_type": event_type,
        "data_type": data_type,
        "expiration_time": one.expires_at.isoformat().replace("+00:00", "Z"),
    }


def _wrong_field(body: object) -> str | None:
    if not isinstance(body, dict):
        return _FIELDS[0]
    for name, allowed in zip(_FIELDS, (None, None, _OPERATIONS, _DATA_TYPES), strict=True):
        if not isinstance(body.get(name), str) or (allowed is not None and body[name] not in allowed):
            return name
    return None


def _says(content: bytes, challenge: str) -> bool:
    try:
        said = orjson.loads(content)
    except orjson.JSONDecodeError:
        return False
    return isinstance(said, dict) and said.get("challenge") == challenge
