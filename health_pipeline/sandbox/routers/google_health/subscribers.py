"""Google Health's subscribers and the service account that looks after them, in a Cloud project of the sandbox."""

from __future__ import annotations

import base64
import binascii
import secrets
from functools import cached_property
from typing import Any

import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from fastapi import APIRouter, Request
from fastapi.responses import Response

from health_pipeline.sandbox.context import Sandbox
from health_pipeline.sandbox.subscriptions import Subscribed, Subscribers, ask

_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_VERIFICATION = orjson.dumps({"type": "verification"})
_TYPE = "type.googleapis.com/google.devicesandservices.health.v4.Subscriber"


class ServiceAccount:
    """One that may do everything in the project, and its tokens."""

    email = "subscriber@sandbox.iam.gserviceaccount.com"

    def __init__(self) -> None:
        self._tokens: set[str] = set()

    @cached_property
    def _key(self) -> rsa.RSAPrivateKey:
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def key_file(self, token_uri: str) -> dict[str, str]:
        """What the vendor's console gives for download."""
        private = self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return {
            "type": "service_account",
            "project_id": "health-pipeline-sandbox",
            "private_key_id": "sandbox",
            "private_key": private.decode(),
            "client_email": self.email,
            "token_uri": token_uri,
        }

    def token(self, assertion: str, now: float) -> dict[str, object] | None:
        """The answer to an assertion (RFC 7523); None where it is not good."""
        claims = self._claims(assertion)
        if (
            claims is None
            or claims.get("iss") != self.email
            or _SCOPE not in str(claims.get("scope")).split()
        ):
            return None
        if not isinstance(claims.get("exp"), int | float) or claims["exp"] < now:
            return None
        token = f"ya29.{secrets.token_urlsafe(24)}"
        self._tokens.add(token)
        return {"access_token": token, "expires_in": 3599, "token_type": "Bearer"}

    def knows(self, request: Request) -> bool:
        return request.headers.get("authorization", "").removeprefix("Bearer ") in self._tokens

    def _claims(self, assertion: str) -> dict[str, Any] | None:
        try:
            signed, _, signature = assertion.rpartition(".")
            self._key.public_key().verify(
                _decoded(signature), signed.encode(), padding.PKCS1v15(), hashes.SHA256()
            )
            claims = orjson.loads(_decoded(signed.partition(".")[2]))
        except (InvalidSignature, ValueError, binascii.Error):
            return None
        return claims if isinstance(claims, dict) else None


class SubscriberRoutes:
    """`/v4/projects/{project}/subscribers`."""

    def __init__(self, sandbox: Sandbox, account: ServiceAccount, subscribers: Subscribers) -> None:
        self._sandbox = sandbox
        self._account = account
        self._subscribers = subscribers

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/v4/projects/{project}/subscribers")
        router.add_api_route("", self._list, methods=["GET"])
        router.add_api_route("", self._create, methods=["POST"])
        router.add_api_route("/{name}", self._patch, methods=["PATCH"])
        router.add_api_route("/{name}", self._delete, methods=["DELETE"])
        return router

    async def _list(self, request: Request, project: str) -> Response:
        if not self._account.knows(request):
            return _unauthenticated()
        found = [self._shown(one) for one in self._subscribers if one.client_id == project]
        return _json({"subscribers": found, "totalSize": len(found)} if found else {})

    async def _create(self, request: Request, project: str) -> Response:
        if not self._account.knows(request):
            return _unauthenticated()
        body = await _body(request)
        name = request.query_params.get("subscriberId") or secrets.token_hex(16)
        secret = _member(body.get("endpointAuthorization"), "secret")
        configs, address = body.get("subscriberConfigs"), body.get("endpointUri")
        if not isinstance(address, str) or not secret or " " not in secret or not isinstance(configs, list):
            return _problem(400, "INVALID_ARGUMENT", "Request contains an invalid argument.")
        if self._subscribers.get(name, project) is not None:
            return _problem(409, "ALREADY_EXISTS", f"Subscriber {name} already exists.")
        if not await _verified(address, secret):
            return _problem(400, "FAILED_PRECONDITION", "The endpoint could not be verified.")
        made = Subscribed(
            address,
            frozenset(kind for config in configs for kind in config["dataTypes"]),
            secret=secret,
            client_id=project,
            details={"subscriberConfigs": configs, "createTime": self._time()},
            subscription_id=name,
        )
        return self._operation(self._subscribers.add(made))

    async def _patch(self, request: Request, project: str, name: str) -> Response:
        if not self._account.knows(request):
            return _unauthenticated()
        one = self._subscribers.get(name, project)
        if one is None:
            return _problem(404, "NOT_FOUND", f"Subscriber {name} does not exist.")
        body = await _body(request)
        address = str(body.get("endpointUri", one.address))
        secret = _member(body.get("endpointAuthorization"), "secret") or one.secret
        if not await _verified(address, secret):
            return _problem(400, "FAILED_PRECONDITION", "The endpoint could not be verified.")
        one.address, one.secret, one.active = address, secret, True
        return self._operation(one)

    async def _delete(self, request: Request, project: str, name: str) -> Response:
        if not self._account.knows(request):
            return _unauthenticated()
        if self._subscribers.get(name, project) is None:
            return _problem(404, "NOT_FOUND", f"Subscriber {name} does not exist.")
        self._subscribers.remove(name)
        empty = {"@type": "type.googleapis.com/google.protobuf.Empty"}
        return _json({"name": f"operations/{secrets.token_hex(8)}", "done": True, "response": empty})

    def _operation(self, one: Subscribed) -> Response:
        response = {"@type": _TYPE, **self._shown(one)}
        return _json({"name": f"operations/{secrets.token_hex(8)}", "done": True, "response": response})

    def _shown(self, one: Subscribed) -> dict[str, object]:
        return {
            "name": f"projects/{one.client_id}/subscribers/{one.subscription_id}",
            "endpointUri": one.address,
            "endpointAuthorization": {"secretSet": True},
            "state": "ACTIVE" if one.active else "INACTIVE",
            "updateTime": self._time(),
            **one.details,
        }

    def _time(self) -> str:
        return self._sandbox.now().strftime("%Y-%m-%dT%H:%M:%SZ")


async def _verified(address: str, secret: str) -> bool:
    """With the secret it is to be taken, without it to be refused."""
    headers = {"Content-Type": "application/json"}
    known = await ask("POST", address, content=_VERIFICATION, headers={**headers, "Authorization": secret})
    stranger = await ask("POST", address, content=_VERIFICATION, headers=headers)
    if known is None or stranger is None:
        return False
    return known.status_code in (200, 201) and stranger.status_code in (401, 403)


async def _body(request: Request) -> dict[str, Any]:
    try:
        found = orjson.loads(await request.body())
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _member(found: object, name: str) -> str | None:
    value = found.get(name) if isinstance(found, dict) else None
    return value if isinstance(value, str) else None


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _json(document: object, status: int = 200) -> Response:
    return Response(orjson.dumps(document), status, media_type="application/json; charset=UTF-8")


def _problem(code: int, status: str, message: str) -> Response:
    return _json({"error": {"code": code, "message": message, "status": status}}, code)


def _unauthenticated() -> Response:
    return _problem(401, "UNAUTHENTICATED", "Request had invalid authentication credentials.")
