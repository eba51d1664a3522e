"""One module a provider. A module here that has an `API` class joins the sandbox by being here."""

from __future__ import annotations

import datetime as dt
import importlib
import pkgutil
from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from fastapi import APIRouter
from fastapi.responses import Response

from health_pipeline.sandbox.context import Sandbox
from health_pipeline.sandbox.oauth import OAuthRules, OAuthServer

Revision = Literal["edit", "delete"]


class ProviderApi(ABC):
    """A provider's API in the sandbox, mounted at `/{name}`."""

    name: ClassVar[str]
    oauth_rules: ClassVar[OAuthRules]

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.oauth = OAuthServer(self.name, self.oauth_rules, sandbox)

    @abstractmethod
    def router(self) -> APIRouter:
        """The data routes, with the provider's own paths."""

    @abstractmethod
    def unauthorized(self, reason: str) -> Response:
        """The provider's answer to a token that is not good."""

    @abstractmethod
    def rate_limited(self, retry_after: int) -> Response:
        """The provider's answer to too many requests."""

    @abstractmethod
    def revise(self, handle: str, day: dt.date, kind: Revision) -> list[str]:
        """Change what the provider says of a day from now on; the ids of the documents that changed.

        Raises:
            LookupError: there is nothing to revise on that day.
        """


def provider_apis(sandbox: Sandbox) -> dict[str, ProviderApi]:
    """An instance of each provider's API, by name."""
    found: dict[str, ProviderApi] = {}
    for info in sorted(pkgutil.iter_modules(__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{__name__}.{info.name}")
        api: ProviderApi = module.API(sandbox)
        found[api.name] = api
    return found
