"""Terra's door: the application's key in every request, and a widget page on which a person connects a device."""

from __future__ import annotations

import datetime as dt
import hmac
import html
import secrets
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit, urlunsplit

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from health_pipeline.sandbox.context import Sandbox
from health_pipeline.sandbox.oauth import Grant, OAuthRules, OAuthServer, TokenError

#: The makers whose devices the sandbox's people have; the sensor only those who wear one.
WATCH, SENSOR = "GARMIN", "FREESTYLELIBRE"
RESOURCES = (WATCH, SENSOR)

_SESSION_SECONDS = 900


class RefusedError(TokenError):
    """A request that is not let in, with the vendor's status."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


@dataclass(frozen=True, slots=True)
class Connection:
    """One person's connection with one maker; what Terra calls a user."""

    user_id: str
    handle: str
    resource: str


@dataclass(frozen=True, slots=True)
class _Session:
    reference_id: str
    success: str
    failure: str
    resource: str | None
    expires_at: dt.datetime


def answer(body: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body), status, headers, media_type="application/json")


def problem(
    status: int, title: str, detail: str, instance: str, headers: dict[str, str] | None = None
) -> Response:
    """RFC 9457, as the vendor writes it."""
    body = {"type": "about:blank", "title": title, "instance": instance, "detail": detail}
    return Response(orjson.dumps(body), status, headers, media_type="application/problem+json")


class Access(OAuthServer):
    """In the place of an authorization server: widget sessions, and who a request's `user_id` is.

    A connection's id is the same at every run, and good until it is ended; connecting again revives it.
    """

    def __init__(self, provider: str, rules: OAuthRules, sandbox: Sandbox) -> None:
        super().__init__(provider, rules, sandbox)
        self._box = sandbox
        self._connections = {
            user_id: Connection(user_id, handle, resource)
            for handle, person in sandbox.people.items()
            for resource in RESOURCES
            if resource == WATCH or person.cgm is not None
            for user_id in [person.uuid(provider, resource)]
        }
        self._references: dict[str, str] = {}
        self._ended: set[str] = set()
        self._sessions: dict[str, _Session] = {}
        #: What each person connected; the watch where they connected nothing yet.
        self.connected: dict[str, set[str]] = {}

    def connection(self, handle: str, resource: str = WATCH) -> Connection:
        """Raises LookupError: they have no such device."""
        for connection in self._connections.values():
            if (connection.handle, connection.resource) == (handle, resource):
                return connection
        raise LookupError(f"{handle} has no {resource}")

    def resources(self, handle: str) -> set[str]:
        return self.connected.get(handle) or {WATCH}

    def user(self, connection: Connection) -> dict[str, object]:
        """`TerraUser` of a connection."""
        return {
            "user_id": connection.user_id,
            "provider": connection.resource,
            "created_at": None,
            "last_webhook_update": None,
            "scopes": "ACTIVITY_EXPORT,HEALTH_EXPORT" if connection.resource == WATCH else "GLUCOSE",
            "reference_id": self._references.get(connection.user_id),
            "active": connection.user_id not in self._ended,
        }

    def check_key(self, request: Request) -> None:
        """Raises RefusedError."""
        name, key = request.headers.get("dev-id"), request.headers.get("x-api-key")
        if not name or not key:
            raise RefusedError(401, "dev-id or x-api-key headers are missing")
        known = self._box.settings.clients.get(name)
        if known is None or not hmac.compare_digest(known.encode(), key.encode()):
            raise RefusedError(401, "dev-id or x-api-key are invalid")

    def known(self, request: Request) -> Connection:
        """The connection a request asks about. Raises RefusedError."""
        self.check_key(request)
        user_id = request.query_params.get("user_id")
        if not user_id:
            raise RefusedError(400, "user_id is required")
        connection = self._connections.get(user_id)
        if connection is None or user_id in self._ended:
            raise RefusedError(404, "user not found")
        return connection

    def grant(self, request: Request) -> Grant:
        connection = self.known(request)
        return Grant(connection.handle, request.headers["dev-id"], frozenset({connection.resource}))

    def revoke_person(self, handle: str) -> None:
        self._ended |= {c.user_id for c in self._connections.values() if c.handle == handle}
        self.connected.pop(handle, None)

    # Endpoints

    def router(self) -> APIRouter:
        router = APIRouter()
        router.add_api_route("/auth/generateWidgetSession", self._widget_session, methods=["POST"])
        router.add_api_route("/auth/authenticateUser", self._authenticate, methods=["POST"])
        router.add_api_route("/auth/deauthenticateUser", self._deauthenticate, methods=["DELETE"])
        router.add_api_route("/widget/session/{session_id}", self._widget, methods=["GET"])
        router.add_api_route("/userInfo", self._user_info, methods=["GET"])
        return router

    def refusal(self, request: Request, error: RefusedError) -> Response:
        title = {400: "bad request", 401: "unauthorized", 404: "not found"}[error.status]
        return problem(error.status, title, str(error), request.url.path)

    async def _widget_session(self, request: Request) -> Response:
        try:
            session_id = await self._open(request, None)
        except RefusedError as error:
            return self.refusal(request, error)
        return answer(
            {
                "status": "success",
                "session_id": session_id,
                "url": self._page_address(request, session_id),
                "expires_in": _SESSION_SECONDS,
            }
        )

    async def _authenticate(self, request: Request) -> Response:
        resource = request.query_params.get("resource", "").upper()
        try:
            if resource not in RESOURCES:
                raise RefusedError(400, "unknown resource")
            session_id = await self._open(request, resource)
        except RefusedError as error:
            return self.refusal(request, error)
        return answer({"status": "success", "auth_url": self._page_address(request, session_id)})

    async def _open(self, request: Request, resource: str | None) -> str:
        self.check_key(request)
        try:
            asked = orjson.loads(await request.body() or b"{}")
        except orjson.JSONDecodeError:
            asked = None
        if not isinstance(asked, dict):
            raise RefusedError(400, "the body is no JSON object")
        success = str(asked.get("auth_success_redirect_url") or "")
        failure = str(asked.get("auth_failure_redirect_url") or success)
        if any(urlsplit(address).scheme not in ("http", "https") for address in (success, failure)):
            raise RefusedError(400, "the redirect urls must be absolute")
        session_id = secrets.token_hex(16)
        expires_at = self._box.now() + dt.timedelta(seconds=_SESSION_SECONDS)
        reference_id = str(asked.get("reference_id") or "")
        self._sessions[session_id] = _Session(reference_id, success, failure, resource, expires_at)
        return session_id

    def _page_address(self, request: Request, session_id: str) -> str:
        return f"{request.base_url}{self.provider}/widget/session/{session_id}"

    async def _widget(self, request: Request, session_id: str) -> Response:
        query = request.query_params
        session = self._sessions.get(session_id)
        if session is None or self._box.now() > session.expires_at:
            return _page("This session is over", "<p>Start again from the application.</p>", 404)
        if query.get("decision") == "deny":
            del self._sessions[session_id]
            return _back(session.failure, reference_id=session.reference_id, reason="user_cancelled")
        handle = query.get("login_hint")
        if handle is None:
            return self._choose_device(session)
        resource = session.resource or query.get("resource", WATCH).upper()
        try:
            connection = self.connection(handle, resource)
        except LookupError as error:
            return _page("No such device", f"<p>{html.escape(str(error))}.</p>", 400)
        del self._sessions[session_id]
        self._ended.discard(connection.user_id)
        self._references[connection.user_id] = session.reference_id
        self.connected.setdefault(handle, set()).add(resource)
        self.counts["connect"] += 1
        return _back(
            session.success,
            user_id=connection.user_id,
            reference_id=session.reference_id,
            resource=resource,
            widget_session_id=session_id,
        )

    def _choose_device(self, session: _Session) -> Response:
        rows = "".join(
            f'<form><input type="hidden" name="resource" value="{connection.resource}">'
            f'<button name="login_hint" value="{connection.handle}">'
            f"{html.escape(self._box.people[connection.handle].name)}: {connection.resource}</button></form>"
            for connection in self._connections.values()
            if session.resource in (None, connection.resource)
        )
        return _page(
            "terra: connect as", f'{rows}<form><button name="decision" value="deny">Deny</button></form>', 200
        )

    async def _deauthenticate(self, request: Request) -> Response:
        try:
            connection = self.known(request)
        except RefusedError as error:
            return self.refusal(request, error)
        self._ended.add(connection.user_id)
        self.connected.get(connection.handle, set()).discard(connection.resource)
        self.counts["deauthenticate"] += 1
        return answer({"status": "success"})

    async def _user_info(self, request: Request) -> Response:
        reference_id = request.query_params.get("reference_id")
        try:
            if reference_id:
                self.check_key(request)
                of = [user_id for user_id, said in self._references.items() if said == reference_id]
                return answer([self.user(self._connections[user_id]) for user_id in of])
            connection = self.known(request)
        except RefusedError as error:
            return self.refusal(request, error)
        return answer({"status": "success", "is_authenticated": True, "user": self.user(connection)})


def _back(address: str, **query: str) -> Response:
    parts = urlsplit(address)
    whole = "&".join(filter(None, [parts.query, urlencode(query)]))
    return RedirectResponse(urlunsplit(parts._replace(query=whole)), status_code=302)


def _page(title: str, body: str, status: int) -> Response:
    return HTMLResponse(
        f'<!doctype html><meta charset="utf-8"><title>{title}</title><h1>{title}</h1>{body}', status
    )
