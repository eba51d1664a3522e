"""The HTTP API for people's own programs, beside the webhooks: read, sync, upload, connect. `/openapi.json` says it."""

from __future__ import annotations

import asyncio
import logging

import sqlalchemy as sa
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from health_pipeline.connections.vault import VaultError
from health_pipeline.raw.store import RawStoreUnavailableError
from health_pipeline.receiver import connect, reads, uploads, work
from health_pipeline.receiver.errors import RETRY_AFTER_SECONDS, RefusedError, error_response
from health_pipeline.receiver.house import House

logger = logging.getLogger(__name__)

_ABOUT = """A person's own health data, and what feeds it.

Every path below `/v1` wants `Authorization: Bearer`, with a token of one user: `health-pipeline token create`.
Instants are UTC; dates are the person's local days; units are in a field's name or beside the value. Lists come in
pages: go on with `next_cursor` until it is null. A refusal is `{"error": {"code", "message"}}`."""
_CODES = {
    400: "invalid_request",
    404: "not_found",
    405: "method_not_allowed",
    408: "too_slow",
    413: "too_large",
}
#: What any request but an upload may bring, and for how long; it is read before anybody knows who asks.
_BODY_BYTES = 16 * 1024
_BODY_SECONDS = 10.0


def create_api(house: House) -> FastAPI:
    """The ASGI app of everything but webhooks."""
    api = FastAPI(
        title="Health Pipeline",
        version="1",
        description=_ABOUT,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    api.state.house = house
    api.add_middleware(_SmallBodies)
    for module in (reads, work, uploads, connect):
        api.include_router(module.router)
    api.add_exception_handler(RefusedError, _refused)
    api.add_exception_handler(RequestValidationError, _invalid)
    api.add_exception_handler(HTTPException, _not_served)
    for away in (sa.exc.OperationalError, sa.exc.TimeoutError, RawStoreUnavailableError, VaultError):
        api.add_exception_handler(away, _away)
    # An SQL error's own words quote what was asked for.
    api.add_exception_handler(sa.exc.SQLAlchemyError, _failed)
    return api


class _SmallBodies:
    """Cuts a body that is longer or slower than what we ask for; files are counted where they are taken."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == uploads.PATH:
            await self._app(scope, receive, send)
            return
        size = 0

        async def counted() -> Message:
            nonlocal size
            try:
                async with asyncio.timeout(_BODY_SECONDS):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"a body takes at most {_BODY_SECONDS:.0f} s") from None
            size += len(message.get("body", b""))
            if size > _BODY_BYTES:
                raise HTTPException(413, f"a body has at most {_BODY_BYTES} bytes")
            return message

        await self._app(scope, counted, send)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return error.response()


async def _invalid(_: Request, error: Exception) -> Response:
    """Where it is wrong and what is wanted; never what was sent."""
    assert isinstance(error, RequestValidationError)
    found = [
        f"{'.'.join(map(str, one['loc'][1:])) or one['loc'][0]}: {one['msg']}" for one in error.errors()[:5]
    ]
    return error_response(422, "invalid_request", "; ".join(found))


async def _not_served(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = _CODES.get(error.status_code, "refused")
    return error_response(error.status_code, code, str(error.detail), error.headers)


async def _away(_: Request, error: Exception) -> Response:
    logger.warning("api: unavailable (%s)", type(error).__name__)
    return RefusedError(
        503, "unavailable", f"it cannot be answered now ({type(error).__name__})", RETRY_AFTER_SECONDS
    ).response()


async def _failed(_: Request, error: Exception) -> Response:
    logger.error("api: %s", type(error).__name__)
    return error_response(500, "failed", "something went wrong here")
