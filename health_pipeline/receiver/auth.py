"""Who calls, by `Authorization: Bearer`, and whether they may."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Path, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import Request
from starlette.responses import Response

from health_pipeline.connections.api_tokens import Caller, authenticate
from health_pipeline.receiver.errors import RefusedError, error_response
from health_pipeline.receiver.house import house_of

_BEARER = HTTPBearer(
    scheme_name="token", description="Made by `health-pipeline token create`.", auto_error=False
)


class UnauthorizedError(RefusedError):
    """No token that is good."""

    def __init__(self) -> None:
        super().__init__(401, "unauthorized", "send a good token: Authorization: Bearer hp_…")

    def response(self) -> Response:
        return error_response(self.status, self.code, self.message, {"WWW-Authenticate": "Bearer"})


def caller(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)]
) -> Caller:
    """Whoever has a good token. Raises UnauthorizedError."""
    found = None
    if credentials is not None:
        found = authenticate(house_of(request).readers, credentials.credentials)
    if found is None:
        raise UnauthorizedError
    return found


def require(scope: str) -> Callable[[Caller], Caller]:
    """A dependency: a caller whose token is for this. RefusedError 403 where it is for something else."""

    def check(who: Annotated[Caller, Depends(caller)]) -> Caller:
        if scope not in who.scopes:
            raise RefusedError(403, "insufficient_scope", f"this token is not for {scope}")
        return who

    return check


def person(
    who: Annotated[Caller, Depends(require("read"))],
    user: Annotated[str, Path(description="The user's name, as in `--user`.", max_length=63)],
) -> Caller:
    """The person of the path, who is the token's. Somebody else is as unknown as nobody."""
    if user != who.handle:
        raise RefusedError(404, "unknown_user", "this token opens no such user")
    return who


Anyone = Annotated[Caller, Depends(caller)]
Person = Annotated[Caller, Depends(person)]
Syncer = Annotated[Caller, Depends(require("sync"))]
Uploader = Annotated[Caller, Depends(require("upload"))]
Connector = Annotated[Caller, Depends(require("connect"))]
