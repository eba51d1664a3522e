"""One module a provider. A module here that has an `API` class joins the sandbox by being here."""

from __future__ import annotations

import datetime as dt
import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from fastapi import APIRouter
from fastapi.responses import Response

from health_pipeline.sandbox.context import Sandbox
from health_pipeline.sandbox.night import DEEP, LIGHT, REM, Night
from health_pipeline.sandbox.oauth import OAuthRules, OAuthServer
from health_pipeline.sandbox.subscriptions import EVERYTHING, Subscribers

Revision = Literal["edit", "delete"]


@dataclass(frozen=True, slots=True)
class TrueValue:
    """What a metric of a local day must be in the warehouse, from what the person did: no wire format involved.

    `value` is in the catalogue's unit, the day's values made one by the catalogue's daily aggregation.
    `tolerance` is what the vendor's rounding may take from it.
    """

    metric_type: str
    local_date: dt.date
    value: float
    tolerance: float


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """A request whose answer is kept under data/samples; `context` is what its page's context would say."""

    path: str
    params: Mapping[str, str | list[str]] = field(default_factory=dict)
    method: str = "GET"
    form: Mapping[str, str] | None = None
    json: Any = None
    context: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WebhookCall:
    """A request as the vendor would send it to our receiver's address for it."""

    headers: Mapping[str, str]
    body: bytes
    method: str = "POST"
    query: Mapping[str, str] = field(default_factory=dict)


class ProviderApi(ABC):
    """A provider's API in the sandbox, mounted at `/{name}`.

    `samples` maps file names (`<entity>.json`, `<entity>.<n>.json`) to the requests whose answers they hold,
    asked for by `sample_person` at the samples' time.
    """

    name: ClassVar[str]
    oauth_rules: ClassVar[OAuthRules]
    samples: ClassVar[Mapping[str, SampleRequest]] = MappingProxyType({})
    sample_person: ClassVar[str] = "ben"

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.oauth = OAuthServer(self.name, self.oauth_rules, sandbox)
        self.subscribers = Subscribers()

    @abstractmethod
    def router(self) -> APIRouter:
        """The data routes, with the provider's own paths."""

    def sample_headers(self, handle: str) -> Mapping[str, str]:
        """The headers that sign a sample's request."""
        return {"Authorization": f"Bearer {self.oauth.access_token(handle)}"}

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

    @abstractmethod
    def truth(self, handle: str, start: dt.date, end: dt.date) -> list[TrueValue]:
        """What the warehouse must hold of this provider for the local days from `start` to `end`, both included.

        Only what the person's device saw and what the provider would have told by now.
        """

    def account(self, handle: str) -> Mapping[str, str]:
        """What a person signs in with, `user_name` and `password`, where that is the way to connect.

        Raises:
            LookupError: they have no account here.
        """
        return {}

    def service_account(self, root: str) -> Mapping[str, str]:
        """The key file of an application's service account, where there are such; `root` is the provider's address.

        Raises:
            LookupError: there are none.
        """
        raise LookupError(f"{self.name} has no service accounts")

    def webhooks(self, handle: str, day: dt.date, secret: str) -> list[WebhookCall]:
        """The calls that the vendor makes when a day's data is there, signed as the vendor signs."""
        raise LookupError(f"{self.name} calls nobody")

    def kind_of(self, call: WebhookCall) -> str:
        """What a call tells, in the words of the vendor's subscriptions."""
        return EVERYTHING

    def subscribed_calls(self, handle: str, day: dt.date) -> list[tuple[str, WebhookCall]]:
        """The same as `webhooks`, each with the address that subscribed to it."""
        return [
            (one.address, call)
            for one in self.subscribers.to_call(handle, self.sandbox.now())
            for call in self.webhooks(handle, day, one.secret)
            if one.kinds & {EVERYTHING, self.kind_of(call)}
        ]


def night_values(date: dt.date, slept: Sequence[Night]) -> list[TrueValue]:
    """What the main sleeps that ended on a date come to: durations added, rates weighted by time in bed."""

    def total(value: Callable[[Night], float]) -> float:
        return float(sum(value(night) for night in slept))

    def weighted(value: Callable[[Night], float]) -> float:
        return total(lambda night: value(night) * night.time_in_bed) / total(lambda night: night.time_in_bed)

    return [
        TrueValue("sleep_duration", date, total(lambda night: night.total_sleep), 0),
        TrueValue("deep_sleep", date, total(lambda night: night.seconds_of(DEEP)), 0),
        TrueValue("light_sleep", date, total(lambda night: night.seconds_of(LIGHT)), 0),
        TrueValue("rem_sleep", date, total(lambda night: night.seconds_of(REM)), 0),
        TrueValue("awake_time", date, total(lambda night: night.awake_time), 0),
        TrueValue("time_in_bed", date, total(lambda night: night.time_in_bed), 0),
        TrueValue("resting_heart_rate", date, min(night.lowest_heart_rate for night in slept), 0.5),
        TrueValue("respiratory_rate", date, weighted(lambda night: night.breath), 0.5),
        TrueValue("heart_rate_variability", date, weighted(lambda night: night.average_hrv or 0), 0.5),
    ]


def provider_apis(sandbox: Sandbox) -> dict[str, ProviderApi]:
    """An instance of each provider's API, by name."""
    found: dict[str, ProviderApi] = {}
    for info in sorted(pkgutil.iter_modules(__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{__name__}.{info.name}")
        api: ProviderApi = module.API(sandbox)
        found[api.name] = api
    return found
