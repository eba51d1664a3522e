"""Polar's webhooks: one a client, pinged before it is made; its signing key is said once."""

from __future__ import annotations

import uuid
from typing import TypeGuard

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response

from health_pipeline.sandbox.context import Sandbox
from health_pipeline.sandbox.oauth import OAuthServer
from health_pipeline.sandbox.subscriptions import Subscribed, Subscribers, ask

_EVENTS = {
    *("EXERCISE", "SLEEP", "CONTINUOUS_HEART_RATE", "SLEEP_WISE_CIRCADIAN_BEDTIME"),
    *("SLEEP_WISE_ALERTNESS", "ACTIVITY_SUMMARY", "PHYSICAL_INFORMATION"),
}


class SubscriptionRoutes:
    """`/v3/webhooks`, signed by the client with HTTP Basic."""

    def __init__(self, sandbox: Sandbox, oauth: OAuthServer, subscribers: Subscribers) -> None:
        self._sandbox = sandbox
        self._oauth = oauth
        self._subscribers = subscribers

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/webhooks")
        router.add_api_route("", self._create, methods=["POST"])
        router.add_api_route("", self._get, methods=["GET"])
        router.add_api_route("/{verb}", self._switch, methods=["POST"])
        router.add_api_route("/{webhook_id}", self._patch, methods=["PATCH"])
        router.add_api_route("/{webhook_id}", self._delete, methods=["DELETE"])
        return router

    async def _create(self, request: Request) -> Response:
        client = self._oauth.basic_client(request)
        if client is None:
            return self._error(401, "unauthorized", "Unknown client or wrong secret")
        asked = await _body(request)
        events, url = asked.get("events"), asked.get("url")
        if not _known(events) or not isinstance(url, str):
            return self._error(400, "bad_request", "events or url is not valid")
        if self._of(client[0]) is not None:
            return self._error(409, "conflict", "Webhook already exists")
        if not await self._ping(url):
            return self._error(400, "bad_request", "The ping was not answered with 200")
        one = self._subscribers.add(
            Subscribed(url, frozenset(events), secret=str(uuid.uuid4()), client_id=client[0])
        )
        shown = {key: value for key, value in _shown(one).items() if key != "active"}
        return _json({"data": {**shown, "signature_secret_key": one.secret}}, 201)

    async def _get(self, request: Request) -> Response:
        client = self._oauth.basic_client(request)
        if client is None:
            return self._error(401, "unauthorized", "Unknown client or wrong secret")
        one = self._of(client[0])
        return _json({"data": [] if one is None else [_shown(one)]})

    async def _switch(self, request: Request, verb: str) -> Response:
        client = self._oauth.basic_client(request)
        if client is None:
            return self._error(401, "unauthorized", "Unknown client or wrong secret")
        if verb not in ("activate", "deactivate"):
            return self._error(404, "not_found", "Not found")
        one = self._of(client[0])
        if one is None:
            return Response(status_code=204)
        if verb == "activate" and not await self._ping(one.address):
            return self._error(400, "bad_request", "The ping was not answered with 200")
        one.active = verb == "activate"
        return Response(status_code=200)

    async def _patch(self, request: Request, webhook_id: str) -> Response:
        one = self._found(request, webhook_id)
        if isinstance(one, Response):
            return one
        asked = await _body(request)
        events, url = asked.get("events", sorted(one.kinds)), asked.get("url", one.address)
        if not _known(events) or not isinstance(url, str):
            return self._error(400, "bad_request", "events or url is not valid")
        if url != one.address and not await self._ping(url):
            return self._error(400, "bad_request", "The ping was not answered with 200")
        one.address, one.kinds = url, frozenset(events)
        return _json({"data": [_shown(one)]})

    async def _delete(self, request: Request, webhook_id: str) -> Response:
        one = self._found(request, webhook_id)
        if isinstance(one, Response):
            return one
        self._subscribers.remove(webhook_id)
        return Response(status_code=204)

    def _of(self, client_id: str) -> Subscribed | None:
        return next((one for one in self._subscribers if one.client_id == client_id), None)

    def _found(self, request: Request, webhook_id: str) -> Subscribed | Response:
        client = self._oauth.basic_client(request)
        if client is None:
            return self._error(401, "unauthorized", "Unknown client or wrong secret")
        found = self._subscribers.get(webhook_id, client[0])
        return self._error(404, "not_found", "Webhook not found") if found is None else found

    async def _ping(self, url: str) -> bool:
        """Unsigned: whoever is asked does not know the key yet."""
        content = orjson.dumps({"timestamp": self._timestamp(), "event": "PING"})
        headers = {"Content-Type": "application/json", "Polar-Webhook-Event": "PING"}
        answer = await ask("POST", url, content=content, headers=headers)
        return answer is not None and answer.status_code == 200

    def _timestamp(self) -> str:
        return self._sandbox.now().strftime("%Y-%m-%dT%H:%M:%SZ")

    def _error(self, status: int, kind: str, message: str) -> Response:
        content = {
            "timestamp": self._timestamp(),
            "status": status,
            "errorType": kind,
            "message": message,
            "corrId": uuid.uuid4().hex,
        }
        return _json(content, status)


async def _body(request: Request) -> dict[str, object]:
    try:
        found = orjson.loads(await request.body())
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _known(events: object) -> TypeGuard[list[str]]:
    return isinstance(events, list) and bool(events) and all(event in _EVENTS for event in events)


def _json(content: object, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")


def _shown(one: Subscribed) -> dict[str, object]:
    return {
        "id": one.subscription_id,
        "events": sorted(one.kinds),
        "url": one.address,
        "active": one.active,
    }
