"""An OAuth 2.0 authorization server for each provider of the sandbox: authorization code and refresh token.

Tokens are signed with a key derived from the seed and carry all they mean, so they outlive a restart. What
was spent or revoked is remembered in memory only.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import html
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import parse_qs, urlencode, urlsplit, urlunsplit

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from health_pipeline.sandbox.context import Sandbox

_NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}

TokenKind = Literal["code", "access", "refresh"]


class TokenError(Exception):
    """A token that is not good; the text says why."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token stands for: one person's consent to one client."""

    handle: str
    client_id: str
    scopes: frozenset[str]


@dataclass(frozen=True, slots=True)
class OAuthRules:
    """How a provider's authorization server differs from others.

    `scopes` are those it knows. `rotates` tells whether each refresh gives a new refresh token and spends the
    old one. `revoke_with` is the parameter that carries the token to revoke. The paths are the vendor's.
    `requires_pkce` refuses an authorization without a challenge, `refuse_authorization` (its parameters) with
    the error it gives. `code_seconds` and `access_seconds` are how
    long codes and access tokens live, the latter the sandbox's own figure where it is None. `read_form` turns
    the vendor's token request into the standard's, and `write_answer` (answer, grant) the standard's token
    answer into the vendor's; `write_error` (status, code, description) its errors.
    """

    scopes: tuple[str, ...]
    rotates: bool = True
    revoke_with: str = "token"
    authorize_path: str = "/oauth/authorize"
    token_path: str = "/oauth/token"  # noqa: S105 - a path
    revoke_path: str | None = "/oauth/revoke"
    scope_separator: str = " "
    requires_pkce: bool = False
    refuse_authorization: Callable[[Mapping[str, str]], str | None] | None = None
    code_seconds: int = 600
    access_seconds: int | None = None
    read_form: Callable[[dict[str, str]], dict[str, str]] | None = None
    write_answer: Callable[[dict[str, Any], Grant], dict[str, Any]] | None = None
    write_error: Callable[[int, str, str], Response] | None = None


class OAuthServer:
    """Authorization, token and revocation endpoints, at the vendor's paths under `/{provider}`."""

    def __init__(self, provider: str, rules: OAuthRules, sandbox: Sandbox) -> None:
        self.provider = provider
        self.rules = rules
        self.counts: Counter[str] = Counter()
        self._sandbox = sandbox
        self._key = hashlib.sha256(f"health-pipeline sandbox {sandbox.seed} {provider}".encode()).digest()
        self._spent: set[str] = set()
        self._ended_families: set[str] = set()
        self._ended_handles: dict[str, int] = {}
        #: Answers a form at the token's path that is about something else; None where it is about tokens.
        self.other_action: Callable[[dict[str, str]], Response | None] | None = None

    # Tokens

    def _sign(self, payload: bytes) -> str:
        return hmac.new(self._key, payload, hashlib.sha256).hexdigest()[:40]

    def _issue(self, kind: TokenKind, claims: dict[str, Any], seconds: int | None) -> str:
        body = claims | {"k": kind, "j": secrets.token_hex(8), "i": time.time_ns()}
        if seconds is not None:
            body["e"] = int(self._sandbox.now().timestamp()) + seconds
        payload = orjson.dumps(body)
        return f"{base64.urlsafe_b64encode(payload).decode().rstrip('=')}.{self._sign(payload)}"

    def _read(self, kind: TokenKind, token: str) -> dict[str, Any]:
        try:
            text, signature = token.split(".")
            payload = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
            if not hmac.compare_digest(signature.encode(), self._sign(payload).encode()):
                raise TokenError("bad signature")
            claims: dict[str, Any] = orjson.loads(payload)
        except (ValueError, binascii.Error) as error:
            raise TokenError("not a token of this provider") from error
        if claims["k"] != kind:
            raise TokenError(f"not a token for {kind}")
        if "e" in claims and self._sandbox.now().timestamp() >= claims["e"]:
            raise TokenError("expired")
        if claims["j"] in self._spent:
            raise TokenError("already used")
        ended = self._ended_handles.get(claims["h"], 0)
        if claims["f"] in self._ended_families or claims["i"] <= ended:
            raise TokenError("revoked")
        if claims["h"] not in self._sandbox.people:
            raise TokenError("unknown person")
        return claims

    def grant(self, request: Request) -> Grant:
        """Whom a request's bearer token stands for.

        Raises:
            TokenError: there is none, or it is expired, revoked or forged.
        """
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise TokenError("no bearer token")
        claims = self._read("access", token.strip())
        return Grant(claims["h"], claims["c"], frozenset(claims["s"].split()))

    def access_token(self, handle: str) -> str:
        """A token for a person's whole data, as if the sandbox's own client had been granted it."""
        claims = {"h": handle, "c": "sandbox", "s": " ".join(self.rules.scopes), "f": secrets.token_hex(8)}
        return str(self._issue("access", claims, None))

    def revoke_person(self, handle: str) -> None:
        """End every grant of a person, as if they had withdrawn them at the provider."""
        self._ended_handles[handle] = time.time_ns()

    def _tokens(self, claims: dict[str, Any], refresh_token: str | None = None) -> dict[str, Any]:
        kept = {name: claims[name] for name in ("h", "c", "s", "f")}
        seconds = self.rules.access_seconds or self._sandbox.settings.access_token_seconds
        answer = {
            "access_token": self._issue("access", kept, seconds),
            "token_type": "Bearer",
            "expires_in": seconds,
            "refresh_token": refresh_token or self._issue("refresh", kept, None),
            "scope": self.rules.scope_separator.join(claims["s"].split()),
        }
        if self.rules.write_answer is not None:
            return self.rules.write_answer(
                answer, Grant(claims["h"], claims["c"], frozenset(claims["s"].split()))
            )
        return answer

    # Endpoints

    def router(self) -> APIRouter:
        router = APIRouter()
        router.add_api_route(self.rules.authorize_path, self._authorize, methods=["GET"])
        router.add_api_route(self.rules.token_path, self._token, methods=["POST"])
        if self.rules.revoke_path is not None:
            router.add_api_route(self.rules.revoke_path, self._revoke, methods=["POST"])
        return router

    async def _authorize(self, request: Request) -> Response:
        query = request.query_params
        redirect_uri = query.get("redirect_uri", "")
        parts = urlsplit(redirect_uri)
        # An answer may only be sent back to where a known client asked for it.
        if query.get("client_id") not in self._sandbox.settings.clients:
            return _page("Unknown client_id", "Register it with the sandbox, or use the default one.", 400)
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.fragment:
            return _page(
                "Bad redirect_uri", "It must be an absolute http(s) address without a fragment.", 400
            )
        if query.get("response_type") != "code":
            return self._back(redirect_uri, query.get("state"), error="unsupported_response_type")
        scopes = query.get("scope", "").replace(self.rules.scope_separator, " ").split() or list(
            self.rules.scopes
        )
        refused = self._refused(query, scopes)
        if refused is not None:
            return self._back(redirect_uri, query.get("state"), error=refused)
        handle = query.get("login_hint")
        if query.get("decision") == "deny":
            return self._back(redirect_uri, query.get("state"), error="access_denied")
        if handle is None:
            return self._choose(request)
        if handle not in self._sandbox.people:
            return _page("Nobody here by that name", f"People: {', '.join(self._sandbox.people)}.", 400)
        self.counts["authorize"] += 1
        claims = {
            "h": handle,
            "c": query["client_id"],
            "s": " ".join(scopes),
            "f": secrets.token_hex(8),
            "r": redirect_uri,
            "p": query.get("code_challenge", ""),
        }
        return self._back(
            redirect_uri, query.get("state"), code=self._issue("code", claims, self.rules.code_seconds)
        )

    def _refused(self, query: Mapping[str, str], scopes: list[str]) -> str | None:
        if self.rules.requires_pkce and not query.get("code_challenge"):
            return "invalid_request"
        if self.rules.refuse_authorization is not None:
            refused = self.rules.refuse_authorization(query)
            if refused is not None:
                return refused
        return None if set(scopes) <= set(self.rules.scopes) else "invalid_scope"

    def _back(self, redirect_uri: str, state: str | None, **answer: str) -> Response:
        if state is not None:
            answer["state"] = state
        parts = urlsplit(redirect_uri)
        query = "&".join(filter(None, [parts.query, urlencode(answer)]))
        return RedirectResponse(urlunsplit(parts._replace(query=query)), status_code=302)

    def _choose(self, request: Request) -> Response:
        asked = [
            item for item in request.query_params.multi_items() if item[0] not in ("login_hint", "decision")
        ]
        hidden = "".join(
            f'<input type="hidden" name="{html.escape(name)}" value="{html.escape(value)}">'
            for name, value in asked
        )
        people = "".join(
            f'<p><button name="login_hint" value="{person.handle}">{html.escape(person.name)}</button></p>'
            for person in self._sandbox.people.values()
        )
        deny = '<p><button name="decision" value="deny">Deny</button></p>'
        title = f"{self.provider}: approve as"
        return _page(title, f'<form method="get">{hidden}{people}{deny}</form>', 200, markup=True)

    async def _token(self, request: Request) -> Response:
        form = _form(await request.body())
        other = None if self.other_action is None else self.other_action(form)
        if other is not None:
            return other
        if self.rules.read_form is not None:
            form = self.rules.read_form(form)
        if not self._client_ok(request, form):
            self.counts["refused"] += 1
            return self._error(401, "invalid_client", "Unknown client_id or wrong client_secret.")
        grant_type = form.get("grant_type", "")
        self.counts[grant_type if grant_type in ("authorization_code", "refresh_token") else "refused"] += 1
        try:
            if grant_type == "authorization_code":
                claims = self._redeem(form)
            elif grant_type == "refresh_token":
                claims = self._read("refresh", form.get("refresh_token", ""))
            else:
                return self._error(400, "unsupported_grant_type", "Use authorization_code or refresh_token.")
            if claims["c"] != form["client_id"]:
                raise TokenError("issued to another client")
        except TokenError as error:
            self.counts["refused"] += 1
            return self._error(
                400, "invalid_grant", f"The {grant_type.replace('_', ' ')} is not valid: {error}."
            )
        keeps_refresh_token = grant_type == "refresh_token" and not self.rules.rotates
        if not keeps_refresh_token:
            self._spent.add(claims["j"])
        answer = self._tokens(claims, form["refresh_token"] if keeps_refresh_token else None)
        return JSONResponse(answer, headers=_NO_STORE)

    def _error(self, status: int, code: str, description: str) -> Response:
        write = self.rules.write_error or _error
        return write(status, code, description)

    def _redeem(self, form: dict[str, str]) -> dict[str, Any]:
        claims = self._read("code", form.get("code", ""))
        if claims["r"] != form.get("redirect_uri"):
            raise TokenError("redirect_uri differs from the one asked with")
        if claims["p"]:
            digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
            if base64.urlsafe_b64encode(digest).decode().rstrip("=") != claims["p"]:
                raise TokenError("code_verifier does not fit")
        return claims

    def client_secret(self, client_id: str, secret: str) -> str | None:
        """The secret of a client that shows who it is; None where it does not."""
        known = self._sandbox.settings.clients.get(client_id)
        return known if known is not None and hmac.compare_digest(known.encode(), secret.encode()) else None

    def basic_client(self, request: Request) -> tuple[str, str] | None:
        """Id and secret of the client that a request is signed by (RFC 7617); None where it is not."""
        form: dict[str, str] = {}
        if not request.headers.get("authorization") or not self._client_ok(request, form):
            return None
        return form["client_id"], form["client_secret"]

    def _client_ok(self, request: Request, form: dict[str, str]) -> bool:
        scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "basic":
            try:
                name, _, secret = base64.b64decode(encoded).decode().partition(":")
            except (ValueError, binascii.Error):
                return False
            form["client_id"], form["client_secret"] = name, secret
        return self.client_secret(form.get("client_id", ""), form.get("client_secret", "")) is not None

    async def _revoke(self, request: Request) -> Response:
        form = _form(await request.body()) | dict(request.query_params)
        token = form.get(self.rules.revoke_with) or form.get("token")
        if not token:
            return _error(400, "invalid_request", f"Give the token as {self.rules.revoke_with}.")
        self.counts["revoke"] += 1
        for kind in ("access", "refresh"):
            try:
                self._ended_families.add(self._read(kind, token)["f"])
            except TokenError:
                continue
        # RFC 7009: a token that is no longer good is no error.
        return Response(status_code=200)


def _form(body: bytes) -> dict[str, str]:
    return {name: values[-1] for name, values in parse_qs(body.decode("utf-8", "replace")).items()}


def _error(status: int, code: str, description: str) -> Response:
    body = {"error": code, "error_description": description}
    return JSONResponse(body, status_code=status, headers=_NO_STORE)


def _page(title: str, body: str, status: int, *, markup: bool = False) -> Response:
    text = body if markup else f"<p>{html.escape(body)}</p>"
    return HTMLResponse(
        f'<!doctype html><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<h1>{html.escape(title)}</h1>{text}",
        status_code=status,
    )
