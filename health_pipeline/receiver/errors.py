"""How the receiver says no: `{"error": {"code", "message"}}`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import orjson
from starlette.responses import Response

#: When to come again, where something that we need is away.
RETRY_AFTER_SECONDS = 30


@dataclass(eq=False)
class RefusedError(Exception):
    """An answer that is no acceptance; `code` is for machines, `message` for whoever reads their log."""

    status: int
    code: str
    message: str
    retry_after: int | None = None
    #: What the log and the metrics call it, where that is not the code.
    outcome: str | None = field(default=None, kw_only=True)

    def response(self) -> Response:
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return error_response(self.status, self.code, self.message, headers)


def error_response(
    status: int, code: str, message: str, headers: Mapping[str, str] | None = None
) -> Response:
    body = orjson.dumps({"error": {"code": code, "message": message}})
    return Response(body, status, headers, media_type="application/json")
