"""The receiver's HTTP face: `/webhooks/{provider}`. It verifies, stores and answers; Dagster does the rest."""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
import hmac
import logging
import math
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import anyio
import anyio.to_thread
import sqlalchemy as sa
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from health_pipeline.connections.callback import path_token
from health_pipeline.ingestion import traces
from health_pipeline.ingestion.events import Accepted, accept
from health_pipeline.providers.base import Provider, Webhook, WebhookRequest
from health_pipeline.providers.registry import all_providers
from health_pipeline.raw.store import RawStore, RawStoreUnavailableError
from health_pipeline.receiver.errors import RETRY_AFTER_SECONDS, RefusedError
from health_pipeline.receiver.limits import Bodies, TokenBucket
from health_pipeline.receiver.metrics import CONTENT_TYPE, Metrics
from health_pipeline.receiver.secrets import KeysetUnavailableError

logger = logging.getLogger(__name__)

#: Longest body, in bytes, counted as it comes.
MAX_BODY_BYTES = 1024 * 1024
#: A client that takes longer than this to send its body is cut.
MAX_BODY_SECONDS = 10.0
#: Proved calls a second of one provider.
CALLS_PER_SECOND = 100.0
# What bodies hold together: each has a part of its own, so that large ones do not keep small ones out.
_FREE_BODY_BYTES = 32 * 1024
_SHARED_BODY_BYTES = 64 * 1024 * 1024
#: Calls that are being stored, each with a connection. Most of it is waiting for the disk, which flushes for
#: several at a time.
STORING_AT_ONCE = 12
# And those that may wait for their turn.
_WAITING_TO_STORE = 200
# Key sets come over the network: calls that wait for one keep no others waiting.
_KEYSETS_AT_ONCE = 4
_JSON = "application/json"
_TYPES = {_JSON, "application/x-www-form-urlencoded", "text/plain", "application/octet-stream"}
_DATABASE_AWAY = (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError)
#: In logs and metrics, for whatever name a caller asks for that is no provider's.
UNKNOWN = "unknown"

Clock = Callable[[], dt.datetime]
SecretsOf = Callable[[Provider], Sequence[str]]


_FAILED = RefusedError(500, "failed", "it could not be kept; send it again", RETRY_AFTER_SECONDS)


@dataclass
class _Told:
    """What the log and the metrics tell of a call."""

    outcome: str = "failed"
    event_ids: tuple[int, ...] = ()
    error: str | None = None


class Receiver:
    """Webhooks of every provider that has one."""

    def __init__(
        self,
        engine: sa.Engine,
        store: RawStore,
        secrets_of: SecretsOf,
        clock: Clock,
        metrics: Metrics,
        calls_per_second: float,
        configured_of: SecretsOf,
    ) -> None:
        self._engine = engine
        self._store = store
        self._secrets_of = secrets_of
        self._configured_of = configured_of
        self._clock = clock
        self._metrics = metrics
        self._bodies = Bodies(_FREE_BODY_BYTES, _SHARED_BODY_BYTES)
        self._buckets = {name: TokenBucket(calls_per_second) for name in all_providers()}
        self._storing = anyio.CapacityLimiter(STORING_AT_ONCE)
        self._keysets = anyio.CapacityLimiter(_KEYSETS_AT_ONCE)

    async def webhook(self, request: Request) -> Response:
        """One call of a provider: 2xx once it is durable. Leaves one line in the log."""
        started = time.monotonic()
        name = request.path_params["provider"]
        known = name if name in all_providers() else UNKNOWN
        told = _Told()
        trace = traces.Accepting(known, request.headers.get("traceparent"))
        try:
            response = await self._answer(request, name, trace, told)
        except RefusedError as refusal:
            response, told.outcome = refusal.response(), refusal.outcome or refusal.code
        except ClientDisconnect:
            response, told.outcome = Response(status_code=400), "cut"
        except Exception as error:
            # Its message may quote a row or the body; where it was raised is enough.
            last = traceback.extract_tb(error.__traceback__)[-1]
            told.error = f"{type(error).__name__} in {last.name}, line {last.lineno} of {last.filename}"
            response = _FAILED.response()
        trace.end(told.outcome, response.status_code, told.event_ids)
        seconds = time.monotonic() - started
        self._metrics.count(known, told.outcome, seconds)
        entry = {
            "provider": known,
            "outcome": told.outcome,
            "status": response.status_code,
            "seconds": round(seconds, 4),
            "event_ids": told.event_ids,
            "trace_id": trace.trace_id,
        }
        if told.error is None:
            logger.info("webhook", extra=entry)
        else:
            logger.error("webhook", extra={**entry, "error": told.error})
        return response

    async def metrics(self, _: Request) -> Response:
        """For Prometheus."""
        text = await anyio.to_thread.run_sync(self._metrics.render)
        return Response(text, headers={"Content-Type": CONTENT_TYPE})

    async def _answer(self, request: Request, name: str, trace: traces.Accepting, told: _Told) -> Response:
        provider = all_providers().get(name)
        if provider is None or provider.webhook is None:
            why = "sends no webhooks" if provider is not None else "is not known"
            raise RefusedError(404, "no_webhook", f"{name} {why}")
        webhook, secrets = provider.webhook, await self._secrets(provider)
        self._require_path(provider, webhook, secrets, request.path_params.get("token"))
        body = b"" if request.method == "GET" else await self._read(request)
        call = _call(request, body, self._clock())
        if webhook.challenge is not None and (answer := webhook.challenge(call, secrets)) is not None:
            status, media_type, content = answer
            told.outcome = "challenge"
            return Response(content, status, media_type=media_type)
        if request.method != "POST":
            raise RefusedError(405, "method_not_allowed", "events are posted")
        if not self._is_proved(provider, webhook, call, secrets):
            raise RefusedError(webhook.refusal, "invalid_signature", "the signature does not prove this body")
        # Of proved calls alone: what nothing proves must not use up what the provider may send.
        if wait := self._buckets[provider.name].take():
            raise RefusedError(429, "too_many", "more calls than are taken; wait", math.ceil(wait))
        accepted = await self._store_call(provider, call, request, trace)
        told.event_ids = accepted.event_ids
        if accepted.is_duplicate and request.headers.get("prefer") == "duplicate=409":
            raise RefusedError(409, "duplicate_event", "this event was accepted before")
        told.outcome = "duplicate" if accepted.is_duplicate else "accepted"
        return Response(status_code=webhook.status)

    def _is_proved(
        self, provider: Provider, webhook: Webhook, call: WebhookRequest, secrets: Sequence[str]
    ) -> bool:
        """By the provider's own scheme, and with the secret that was configured for it where there is one."""
        if webhook.verify is not None and not webhook.verify(call, secrets):
            return False
        configured = self._configured_of(provider) if webhook.verify_configured is not None else None
        return (
            not configured or webhook.verify_configured is None or webhook.verify_configured(call, configured)
        )

    async def _secrets(self, provider: Provider) -> Sequence[str]:
        webhook = provider.webhook
        assert webhook is not None
        is_stored = webhook.subscriptions is not None and webhook.subscriptions.gives_secret
        if webhook.keyset_url is None and not is_stored:
            return self._secrets_of(provider)
        try:
            return await anyio.to_thread.run_sync(self._secrets_of, provider, limiter=self._keysets)
        except KeysetUnavailableError as error:
            raise RefusedError(503, "unavailable", str(error), RETRY_AFTER_SECONDS) from None

    def _require_path(
        self, provider: Provider, webhook: Webhook, secrets: Sequence[str], token: str | None
    ) -> None:
        if not webhook.secret_path:
            return
        given = (token or "").encode()
        if not any(
            hmac.compare_digest(given, path_token(secret, provider.name).encode()) for secret in secrets
        ):
            raise RefusedError(404, "no_webhook", "nothing is received here", outcome="invalid_path")

    async def _read(self, request: Request) -> bytes:
        """The body, as long as it is short, quick and plain."""
        if any(value != "identity" for value in request.headers.getlist("content-encoding")):
            raise RefusedError(415, "unsupported_encoding", "send the body without compression")
        content_type = _content_type(request)
        if content_type not in _TYPES:
            raise RefusedError(415, "unsupported_media_type", f"{_JSON} or a form is expected")
        # Not a list of what came: a body sent byte by byte would take forty times its size.
        body = bytearray()
        try:
            with self._bodies.body() as holds:
                async with asyncio.timeout(MAX_BODY_SECONDS):
                    async for chunk in request.stream():
                        body += chunk
                        if len(body) > MAX_BODY_BYTES:
                            raise RefusedError(413, "too_large", f"a body has at most {MAX_BODY_BYTES} bytes")
                        if not holds(len(body)):
                            raise RefusedError(503, "busy", "too many large bodies; send it again", 5)
        except TimeoutError:
            raise RefusedError(408, "too_slow", f"a body takes at most {MAX_BODY_SECONDS:.0f} s") from None
        return bytes(body)

    async def _store_call(
        self, provider: Provider, call: WebhookRequest, request: Request, trace: traces.Accepting
    ) -> Accepted:
        if self._storing.statistics().tasks_waiting >= _WAITING_TO_STORE:
            raise RefusedError(503, "busy", "too many calls wait to be kept; send it again", 5)
        keep = functools.partial(
            accept,
            self._engine,
            self._store,
            provider,
            call.body,
            _content_type(request),
            call.received_at,
            trace_id=trace.traceparent,
        )
        try:
            return await anyio.to_thread.run_sync(keep, limiter=self._storing)
        except (RawStoreUnavailableError, *_DATABASE_AWAY) as error:
            raise RefusedError(
                503,
                "unavailable",
                f"it cannot be kept now ({type(error).__name__}); send it again",
                RETRY_AFTER_SECONDS,
            ) from None


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
    engine: sa.Engine,
    store: RawStore,
    secrets_of: SecretsOf,
    clock: Clock | None = None,
    *,
    metrics: Metrics | None = None,
    tells_metrics: bool = True,
    calls_per_second: float = CALLS_PER_SECOND,
    configured_of: SecretsOf = lambda _: (),
    api: ASGIApp | None = None,
) -> Starlette:
    """The ASGI app. `secrets_of` gives the active secrets of a provider, newest first; `configured_of` those of them
    that somebody has set as the vendor's own.

    `tells_metrics` is False where `/metrics` is at another address; `api` has the paths that are none of these.
    """
    receiver = Receiver(
        engine,
        store,
        secrets_of,
        clock or (lambda: dt.datetime.now(dt.UTC)),
        metrics or Metrics(engine),
        calls_per_second,
        configured_of,
    )
    methods = ["GET", "POST"]
    routes = [
        Route("/webhooks/{provider}", receiver.webhook, methods=methods),
        Route("/webhooks/{provider}/{token}", receiver.webhook, methods=methods),
        Route("/healthz", lambda _: Response(status_code=204), methods=["GET"]),
    ]
    if tells_metrics:
        routes.append(Route("/metrics", receiver.metrics, methods=["GET"]))
    app = Starlette(routes=routes)
    if api is not None:
        app.router.default = api
    return app
