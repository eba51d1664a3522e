"""The receiver's HTTP face: `/webhooks/{provider}`. It verifies, stores and answers; Dagster does the rest."""

from __future__ import annotations

import asyncio
import datetime as dt
import hmac
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import orjson
import sqlalchemy as sa
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from health_pipeline.connections.callback import path_token
from health_pipeline.ingestion.events import Accepted, accept
from health_pipeline.providers.base import Provider, Webhook, WebhookRequest
from health_pipeline.providers.registry import all_providers
from health_pipeline.raw.store import RawStore, RawStoreUnavailableError
from health_pipeline.receiver.secrets import KeysetUnavailableError

logger = logging.getLogger(__name__)

#: Longest body, in bytes, counted as it comes.
MAX_BODY_BYTES = 1024 * 1024
#: A client that takes longer than this to send its body is cut.
MAX_BODY_SECONDS = 10.0
_RETRY_AFTER_SECONDS = 30
_JSON = "application/json"
_TYPES = {_JSON, "application/x-www-form-urlencoded", "text/plain", "application/octet-stream"}

Clock = Callable[[], dt.datetime]
SecretsOf = Callable[[Provider], Sequence[str]]


@dataclass(eq=False)
class RefusedError(Exception):
    """An answer that is no acceptance; `code` is for machines, `message` for whoever reads their log."""

    status: int
    code: str
    message: str
    retry_after: int | None = None

    def response(self) -> Response:
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        body = orjson.dumps({"error": {"code": self.code, "message": self.message}})
        return Response(body, self.status, headers, media_type=_JSON)


class Receiver:
    """Webhooks of every provider that has one."""

    def __init__(self, engine: sa.Engine, store: RawStore, secrets_of: SecretsOf, clock: Clock) -> None:
        self._engine = engine
        self._store = store
        self._secrets_of = secrets_of
        self._clock = clock

    async def webhook(self, request: Request) -> Response:
        """One call of a provider: 2xx once it is durable."""
        started = time.monotonic()
        name = request.path_params["provider"]
        try:
            response, outcome = await self._answer(request, name)
        except RefusedError as refusal:
            response, outcome = refusal.response(), refusal.code
        except ClientDisconnect:
            response, outcome = Response(status_code=400), "cut"
        logger.info(
            "webhook",
            extra={
                "provider": name,
                "outcome": outcome,
                "status": response.status_code,
                "seconds": round(time.monotonic() - started, 4),
            },
        )
        return response

    async def _answer(self, request: Request, name: str) -> tuple[Response, str]:
        provider = all_providers().get(name)
        if provider is None or provider.webhook is None:
            why = "sends no webhooks" if provider is not None else "is not known"
            raise RefusedError(404, "no_webhook", f"{name} {why}")
        webhook, secrets = provider.webhook, await self._secrets(provider)
        self._require_path(provider, webhook, secrets, request.path_params.get("token"))
        body = b"" if request.method == "GET" else await _read(request)
        call = _call(request, body, self._clock())
        if webhook.challenge is not None and (answer := webhook.challenge(call, secrets)) is not None:
            status, media_type, content = answer
            return Response(content, status, media_type=media_type), "challenge"
        if request.method != "POST":
            raise RefusedError(405, "method_not_allowed", "events are posted")
        if webhook.verify is not None and not webhook.verify(call, secrets):
            raise RefusedError(webhook.refusal, "invalid_signature", "the signature does not prove this body")
        accepted = await self._store_call(provider, call, request)
        if accepted.is_duplicate and request.headers.get("prefer") == "duplicate=409":
            raise RefusedError(409, "duplicate_event", "this event was accepted before")
        return Response(status_code=webhook.status), "duplicate" if accepted.is_duplicate else "accepted"

    async def _secrets(self, provider: Provider) -> Sequence[str]:
        try:
            return await run_in_threadpool(self._secrets_of, provider)
        except KeysetUnavailableError as error:
            raise RefusedError(503, "unavailable", str(error), _RETRY_AFTER_SECONDS) from None

    def _require_path(
        self, provider: Provider, webhook: Webhook, secrets: Sequence[str], token: str | None
    ) -> None:
        if not webhook.secret_path:
            return
        given = (token or "").encode()
        if not any(
            hmac.compare_digest(given, path_token(secret, provider.name).encode()) for secret in secrets
        ):
            raise RefusedError(404, "no_webhook", "nothing is received here")

    async def _store_call(self, provider: Provider, call: WebhookRequest, request: Request) -> Accepted:
        content_type = _content_type(request)
        trace_id = request.headers.get("traceparent")
        try:
            return await run_in_threadpool(
                accept,
                self._engine,
                self._store,
                provider,
                call.body,
                content_type,
                call.received_at,
                trace_id=trace_id,
            )
        except (RawStoreUnavailableError, sa.exc.OperationalError) as error:
            raise RefusedError(
                503,
                "unavailable",
                f"it cannot be kept now ({type(error).__name__}); send it again",
                _RETRY_AFTER_SECONDS,
            ) from None


async def _read(request: Request) -> bytes:
    """The body, as long as it is short, quick and plain."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise RefusedError(415, "unsupported_encoding", "send the body without compression")
    content_type = _content_type(request)
    if content_type not in _TYPES:
        raise RefusedError(415, "unsupported_media_type", f"{_JSON} or a form is expected")
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(MAX_BODY_SECONDS):
            async for chunk in request.stream():
                size += len(chunk)
                if size > MAX_BODY_BYTES:
                    raise RefusedError(413, "too_large", f"a body has at most {MAX_BODY_BYTES} bytes")
                chunks.append(chunk)
    except TimeoutError:
        raise RefusedError(408, "too_slow", f"a body takes at most {MAX_BODY_SECONDS:.0f} s") from None
    return b"".join(chunks)


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "application/octet-stream").split(";")[0].strip().lower()


def _call(request: Request, body: bytes, received_at: dt.datetime) -> WebhookRequest:
    headers: dict[str, tuple[str, ...]] = {}
    for raw_name, raw_value in request.headers.raw:
        name = raw_name.decode("latin-1").lower()
        headers[name] = (*headers.get(name, ()), raw_value.decode("latin-1"))
    return WebhookRequest(
        request.method, request.url.path, dict(request.query_params), headers, body, received_at
    )


def create_app(
    engine: sa.Engine, store: RawStore, secrets_of: SecretsOf, clock: Clock | None = None
) -> Starlette:
    """The ASGI app. `secrets_of` gives the active secrets of a provider, newest first."""
    receiver = Receiver(engine, store, secrets_of, clock or (lambda: dt.datetime.now(dt.UTC)))
    methods = ["GET", "POST"]
    return Starlette(
        routes=[
            Route("/webhooks/{provider}", receiver.webhook, methods=methods),
            Route("/webhooks/{provider}/{token}", receiver.webhook, methods=methods),
            Route("/healthz", lambda _: Response(status_code=204), methods=["GET"]),
        ]
    )
