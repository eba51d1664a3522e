"""Faults on order, and a count of what was asked: ASGI middleware around the providers' routes."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

import orjson
from fastapi import Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from health_pipeline.sandbox.oauth import TokenError
from health_pipeline.sandbox.routers import ProviderApi

FaultKind = Literal["rate_limit", "server_error", "slow", "cut", "malformed", "unauthorized", "drift"]


class Fault(BaseModel):
    """What goes wrong, where and how often.

    `count` requests are hit, all of them when it is null. `path_contains` and `handle` narrow it to a part of
    the provider and to one person's token. `cut` breaks the connection in the middle of the body, `malformed`
    sends half the body as if it were whole, `drift` changes the records' fields: one unknown field is added,
    those in `drop` vanish, the numbers in `retype` come as strings.
    """

    model_config = ConfigDict(extra="forbid")

    provider: str
    kind: FaultKind
    count: int | None = Field(default=1, ge=1)
    path_contains: str = ""
    handle: str | None = None
    retry_after: int = Field(default=1, ge=0, description="seconds, for rate_limit")
    status: int = Field(default=503, ge=500, le=599, description="for server_error")
    delay: float = Field(default=1.0, ge=0, description="seconds, for slow")
    drop: list[str] = Field(default_factory=list, description="for drift")
    retype: list[str] = Field(default_factory=list, description="for drift")


class FaultBoard:
    """The faults that are switched on, and what was asked of the sandbox."""

    def __init__(self) -> None:
        self._ids = itertools.count(1)
        self._faults: dict[int, Fault] = {}
        self._hits: Counter[int] = Counter()
        self.requests: Counter[tuple[str, str, str, int]] = Counter()

    def add(self, fault: Fault) -> dict[str, Any]:
        number = next(self._ids)
        self._faults[number] = fault
        return self._shown(number)

    def clear(self) -> None:
        self._faults.clear()
        self._hits.clear()

    def list(self) -> list[dict[str, Any]]:
        return [self._shown(number) for number in self._faults]

    def _shown(self, number: int) -> dict[str, Any]:
        return {"id": number, "hits": self._hits[number], **self._faults[number].model_dump()}

    def take(self, provider: str, path: str, handle: str | None) -> Fault | None:
        """The first fault that meets a request, counted as used."""
        for number, fault in self._faults.items():
            if fault.count is not None and self._hits[number] >= fault.count:
                continue
            if fault.provider != provider or fault.path_contains not in path:
                continue
            if fault.handle is not None and fault.handle != handle:
                continue
            self._hits[number] += 1
            return fault
        return None


class FaultMiddleware:
    """Stands before the routers: counts each request, and spoils those that a fault meets."""

    def __init__(self, app: ASGIApp, board: FaultBoard, apis: Mapping[str, ProviderApi]) -> None:
        self._app = app
        self._board = board
        self._apis = apis

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        provider = path.split("/")[1] if path.startswith("/") else ""
        api = self._apis.get(provider)
        if scope["type"] != "http" or api is None:
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._board.requests[provider, scope["method"], path, message["status"]] += 1
            await send(message)

        fault = self._board.take(provider, path, _handle(api, scope))
        if fault is None:
            await self._app(scope, receive, counted)
        elif fault.kind == "slow":
            await asyncio.sleep(fault.delay)
            await self._app(scope, receive, counted)
        elif fault.kind in ("cut", "malformed", "drift"):
            await self._spoil(fault, scope, receive, counted)
        else:
            await _refusal(fault, api)(scope, receive, counted)

    async def _spoil(self, fault: Fault, scope: Scope, receive: Receive, send: Send) -> None:
        start: Message = {}
        body = bytearray()

        async def collect(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
            else:
                body.extend(message.get("body", b""))

        await self._app(scope, receive, collect)
        content = bytes(body)
        if fault.kind == "drift" and start["status"] == 200:
            content = _drifted(content, fault)
        length = len(content)
        if fault.kind != "drift":
            content = content[: length // 2]
        if fault.kind != "cut":
            length = len(content)
        headers = [(name, value) for name, value in start["headers"] if name != b"content-length"]
        headers.append((b"content-length", str(length).encode()))
        await send({**start, "headers": headers})
        # A body that ends before its announced length makes the server drop the connection.
        await send({"type": "http.response.body", "body": content, "more_body": fault.kind == "cut"})


def _handle(api: ProviderApi, scope: Scope) -> str | None:
    try:
        return api.oauth.grant(Request(scope)).handle
    except TokenError:
        return None


def _refusal(fault: Fault, api: ProviderApi) -> Response:
    if fault.kind == "rate_limit":
        return api.rate_limited(fault.retry_after)
    if fault.kind == "unauthorized":
        return api.unauthorized("the sandbox was told to refuse this token")
    body = {"status": fault.status, "title": "Server Error", "detail": "The sandbox was told to fail."}
    return JSONResponse(body, status_code=fault.status)


def _records(document: Any) -> list[dict[str, Any]]:
    """The objects of the outermost lists of a body; none where it holds no such list."""
    if isinstance(document, list):
        return [record for record in document if isinstance(record, dict)]
    if not isinstance(document, dict):
        return []
    return [record for value in document.values() for record in _records(value)]


def _drifted(content: bytes, fault: Fault) -> bytes:
    document = orjson.loads(content)
    for record in _records(document) or [document]:
        for name in fault.drop:
            record.pop(name, None)
        for name in fault.retype:
            if name in record and record[name] is not None:
                record[name] = str(record[name])
        record["sandbox_drift"] = {"added": True}
    return orjson.dumps(document)
