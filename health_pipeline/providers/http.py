"""How providers are asked over HTTP: bounded retries, shared rate budgets, a circuit breaker, typed errors.

Nothing here logs or raises a token, a query value or a body: a path, a status and a duration are enough to
act on, and the rest is somebody's health.
"""

from __future__ import annotations

import datetime as dt
import logging
import math
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import cache
from types import TracebackType
from typing import Any, Self

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential

from health_pipeline.providers._json import MalformedBodyError, load_object
from health_pipeline.providers.base import Budget, InterpretFunction, Verdict

Params = Mapping[str, str | int | float | bool | list[str] | None]

DEFAULT_TIMEOUT = httpx.Timeout(30.0, connect=10.0)

logger = logging.getLogger(__name__)

_MAX_PAUSE_SECONDS = 7 * 86_400.0
_NETWORK_ERRORS = (httpx.TransportError, httpx.DecodingError)
_BACKOFF = wait_random_exponential(multiplier=1, max=60)


def _drop_query(record: logging.LogRecord) -> bool:
    if isinstance(record.args, tuple):
        record.args = tuple(
            arg.copy_with(query=None) if isinstance(arg, httpx.URL) else arg for arg in record.args
        )
    return True


# httpx logs whole URLs, and a query holds page tokens and dates. A filter holds whatever level is set later.
logging.getLogger("httpx").addFilter(_drop_query)


class ProviderError(Exception):
    """A provider did not give what it was asked for. `status` is None where no answer came."""

    def __init__(self, provider: str, path: str, status: int | None, message: str) -> None:
        super().__init__(f"{provider}: {message} ({path}, {status or 'no answer'})")
        self.provider = provider
        self.path = path
        self.status = status


class AuthorizationError(ProviderError):
    """The provider takes neither the access token nor a freshly renewed one: the user has to reconnect."""


class PermissionMissingError(ProviderError):
    """The token is good, but a scope was not granted or the user's subscription has lapsed."""


class RateLimitedError(ProviderError):
    """The rate limit leaves no room within the time a call may wait. Ask again at `retry_at` (UTC)."""

    def __init__(self, provider: str, path: str, status: int | None, retry_at: dt.datetime) -> None:
        when = retry_at.isoformat(timespec="seconds")
        super().__init__(provider, path, status, f"the rate limit is used up; ask again after {when}")
        self.retry_at = retry_at


class ProviderUnavailableError(ProviderError):
    """Server errors or network failures, still there after the retries."""


class CircuitOpenError(ProviderUnavailableError):
    """The provider failed so many calls in a row that it is not asked for a while: end the run early."""


class RequestRejectedError(ProviderError):
    """The provider refuses the request as it is (a 4xx other than 401, 403, 429): repeating it is no use."""


class RecordGoneError(RequestRejectedError):
    """What was asked for is not there (404 or 410)."""


class MalformedResponseError(ProviderError):
    """The provider answered 200 with a body that cannot be paged through."""


def require_object(client: ApiClient, path: str, content: bytes) -> dict[str, Any]:
    """The JSON object of an answer. Raises MalformedResponseError where it is none; `path` names nobody's record."""
    try:
        return load_object(content)
    except MalformedBodyError as error:
        raise MalformedResponseError(client.provider, path, 200, str(error)) from None


class RateLimiter:
    """The request budgets of one application, or of one account, at a provider. Thread-safe.

    Requests are spaced by a sliding window for each budget before they are sent; without budgets, the limiter
    only waits where the provider has said so (`pause_until`). `clock` gives epoch seconds.
    """

    def __init__(self, *budgets: Budget, clock: Callable[[], float] = time.time) -> None:
        for budget in budgets:
            if budget.requests < 1 or budget.seconds <= 0:
                raise ValueError(f"a budget needs at least one request in a time above 0, not {budget}")
        self._clock = clock
        self._lock = threading.Lock()
        self._paused_until = 0.0
        self._sent: list[tuple[Budget, deque[float]]] = [(budget, deque()) for budget in budgets]

    def reserve(self) -> float:
        """Take one request from every budget and return 0, or take none and return the seconds to wait."""
        with self._lock:
            now = self._clock()
            wait = max(0.0, self._paused_until - now)
            for budget, sent in self._sent:
                while sent and sent[0] <= now - budget.seconds:
                    sent.popleft()
                if len(sent) >= budget.requests:
                    wait = max(wait, sent[0] + budget.seconds - now)
            if wait == 0:
                for _, sent in self._sent:
                    sent.append(now)
            return wait

    def pause_until(self, moment: float) -> None:
        """Hold every client of these budgets back until `moment` (epoch seconds)."""
        with self._lock:
            self._paused_until = max(self._paused_until, moment)


class CircuitBreaker:
    """Stops asking a provider that is down. One for each provider, shared by all its clients. Thread-safe.

    Opens after `threshold` calls in a row that ended unavailable. After `cool_down_seconds` one request may
    try; an answer closes the circuit, a failure leaves it open for another `cool_down_seconds`.
    """

    def __init__(
        self,
        threshold: int = 5,
        cool_down_seconds: float = 300.0,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if threshold < 1:
            raise ValueError(f"threshold must be at least 1, not {threshold}")
        self._threshold = threshold
        self._cool_down = cool_down_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._open_until: float | None = None

    def try_pass(self) -> float | None:
        """None where a request may go out, else when (epoch seconds) one may."""
        with self._lock:
            now = self._clock()
            if self._open_until is None:
                return None
            if now < self._open_until:
                return self._open_until
            # This request is the trial; the others stay out until it has an answer, or never came back.
            self._open_until = now + self._cool_down
            return None

    def record_answer(self) -> None:
        with self._lock:
            self._failures = 0
            self._open_until = None

    def record_failure(self) -> None:
        with self._lock:
            self._failures += 1
            if self._failures >= self._threshold:
                self._open_until = self._clock() + self._cool_down

    @property
    def failures(self) -> int:
        """Calls in a row that ended unavailable."""
        return self._failures


class _TransientError(Exception):
    """Worth another try. `status` is None for a network failure, whose kind `reason` names."""

    def __init__(
        self,
        reason: str,
        status: int | None = None,
        retry_after: float | None = None,
        *,
        rate_limited: bool = False,
    ) -> None:
        super().__init__(reason)
        self.rate_limited = rate_limited
        self.reason = reason
        self.status = status
        self.retry_after = retry_after


@dataclass(slots=True)
class _Call:
    """The state of one request over all its attempts."""

    method: str
    url: httpx.URL
    relative: str | None
    path: str
    params: Params | None
    form: Params | None
    json: Any
    headers: Mapping[str, str]
    waited: float = 0.0
    renewed: bool = False


class ApiClient:
    """One account's authorised connection to a provider's API.

    `access_token(force_refresh)` supplies the token for every request; it is called with True at most once a
    call, after a 401. Whatever it raises passes through. `authorize` makes headers of the token, a bearer
    token where it is None. `regions` are the base URLs of a provider's regional hosts, and `region_of` names the
    one an access token is good for: its paths are asked for there. `interpret` reads what an answer means where
    its status does not say it.
    `provider_user_id` is whom the provider says the token belongs to. `limiter` and `breaker` are shared
    between the clients of an application, `own_limiter` has the account's own budgets. A call makes at most
    `max_attempts` attempts and waits `max_wait` seconds in all, for the rate limit and between attempts.
    `timeout` bounds each step on the network, `response_deadline` (seconds) and `max_response_bytes` a
    response as a whole. `clock` gives epoch seconds.
    """

    def __init__(
        self,
        provider: str,
        base_url: str,
        access_token: Callable[[bool], str],
        *,
        authorize: Callable[[str], Mapping[str, str]] | None = None,
        regions: Mapping[str, str] | None = None,
        region_of: Callable[[str], str | None] | None = None,
        interpret: InterpretFunction | None = None,
        provider_user_id: str | None = None,
        limiter: RateLimiter | None = None,
        own_limiter: RateLimiter | None = None,
        breaker: CircuitBreaker | None = None,
        timeout: httpx.Timeout | float = DEFAULT_TIMEOUT,
        response_deadline: float = 180.0,
        max_response_bytes: int = 256 * 1024 * 1024,
        max_attempts: int = 5,
        max_wait: float = 120.0,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.provider = provider
        self.provider_user_id = provider_user_id
        self._authorize = authorize or _bearer
        self._interpret = interpret
        self._base_url = _base(base_url)
        self._regions = {name: _base(url) for name, url in (regions or {}).items()}
        self._region_of = region_of
        self._access_token = access_token
        self._limiter = limiter or RateLimiter(clock=clock)
        self._own_limiter = own_limiter or RateLimiter(clock=clock)
        self._breaker = breaker or CircuitBreaker(clock=clock)
        self._response_deadline = response_deadline
        self._max_response_bytes = max_response_bytes
        self._max_attempts = max_attempts
        self._max_wait = max_wait
        self._sleep = sleep
        self._clock = clock
        #: Requests sent, with those that were tried again.
        self.requests_sent = 0
        #: Answers that there were too many.
        self.rate_limit_hits = 0
        self._http = httpx.Client(
            timeout=timeout, verify=_tls_context(), headers={"Accept": "application/json"}
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    @property
    def base_url(self) -> httpx.URL:
        """Where relative paths start, with a slash at its end."""
        return self._base_url

    def get(self, path: str, params: Params | None = None) -> httpx.Response:
        """The good answer to a GET of `path`; see `request`."""
        return self.request("GET", path, params)

    def url_in(self, region: str, path: str) -> str:
        """The address of a path at a regional host. Raises KeyError for a region that is not known."""
        return str(self._regions[region].join(path.lstrip("/")))

    def request(
        self,
        method: str,
        path: str,
        params: Params | None = None,
        *,
        form: Params | None = None,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """The 2xx response to a request of `path`, relative to the base URL or absolute on one of our hosts.

        429, 5xx and network failures (cut bodies too) are tried again, after the time the provider names or
        an exponential backoff with jitter: send nothing twice that must not be. Parameters that are None are
        left out.

        Raises AuthorizationError, PermissionMissingError, RateLimitedError, ProviderUnavailableError (as
        CircuitOpenError where the provider is taken to be down) or RequestRejectedError.
        """
        absolute = httpx.URL(path).is_absolute_url
        url = self._base_url.join(path if absolute else path.lstrip("/"))
        hosts = {(base.scheme, base.netloc) for base in (self._base_url, *self._regions.values())}
        if (url.scheme, url.netloc) not in hosts:
            raise RequestRejectedError(
                self.provider,
                url.path,
                None,
                f"{url.host} is not this provider's host; no token is sent there",
            )
        call = _Call(
            method,
            url,
            None if absolute else path.lstrip("/"),
            url.path,
            _given(params),
            _given(form),
            json,
            headers or {},
        )
        retrying = Retrying(
            retry=retry_if_exception_type(_TransientError),
            wait=_retry_wait,
            stop=lambda state: self._spent(state, call),
            sleep=lambda seconds: self._wait(call, seconds),
            before_sleep=lambda state: self._log_retry(state, call),
            reraise=True,
        )
        try:
            return retrying(self._attempt, call)
        except _TransientError as error:
            failure = error
        # Outside the handler, so that the network library's exception is not chained to ours.
        raise self._give_up(failure, call)

    def _attempt(self, call: _Call) -> httpx.Response:
        renew = False
        while True:
            open_until = self._breaker.try_pass()
            if open_until is not None:
                raise CircuitOpenError(
                    self.provider,
                    call.path,
                    None,
                    f"taken to be down after {self._breaker.failures} failed calls in a row; "
                    f"not asked again before {_utc(open_until).isoformat(timespec='seconds')}",
                )
            self._take_turn(call)
            token = self._access_token(renew)
            self._choose_host(call, token)
            response = self._send(call, token)
            verdict = self._read(response)
            if verdict.kind != "unavailable":
                self._breaker.record_answer()
            if verdict.kind == "unauthorized" and not call.renewed:
                call.renewed = renew = True
                continue
            return self._accept(response, verdict, call)

    def _choose_host(self, call: _Call, token: str) -> None:
        """Move a relative path to the host the token is good for; a renewed token may be good for another."""
        region = self._region_of(token) if self._region_of is not None else None
        if call.relative is None or region is None:
            return
        if region not in self._regions:
            raise RequestRejectedError(
                self.provider, call.path, None, f"the account is in a region we do not know ({region[:20]!r})"
            )
        call.url = self._regions[region].join(call.relative)

    def _take_turn(self, call: _Call) -> None:
        for limiter in (self._own_limiter, self._limiter):
            while (seconds := limiter.reserve()) > 0:
                if call.waited + seconds > self._max_wait:
                    raise RateLimitedError(self.provider, call.path, None, _utc(self._clock() + seconds))
                self._wait(call, seconds)

    def _read(self, response: httpx.Response) -> Verdict:
        now = self._clock()
        verdict = self._interpret(response, now) if self._interpret is not None else None
        if verdict is None:
            verdict = usual_verdict(response, now)
        self.rate_limit_hits += verdict.kind == "rate_limited"
        # The call that was refused waits by itself; whoever shares its budget has to be told.
        if verdict.wait_seconds is not None and (
            verdict.kind == "good" or (verdict.kind == "rate_limited" and verdict.for_all)
        ):
            limiter = self._limiter if verdict.for_all else self._own_limiter
            limiter.pause_until(now + min(max(verdict.wait_seconds, 0.0), _MAX_PAUSE_SECONDS))
        return verdict

    def _send(self, call: _Call, token: str) -> httpx.Response:
        """One request, its body read whole. Raises _TransientError on a network failure or a cut body."""
        started = time.monotonic()
        self.requests_sent += 1
        status: int | None = None
        reason = None
        try:
            with self._http.stream(
                call.method,
                call.url,
                params=call.params,
                data=call.form,
                json=call.json,
                headers={**self._authorize(token), **call.headers},
            ) as response:
                status = response.status_code
                content = bytearray()
                for chunk in response.iter_bytes():
                    content += chunk
                    if time.monotonic() - started > self._response_deadline:
                        raise httpx.ReadTimeout("response took too long", request=response.request)
                    if len(content) > self._max_response_bytes:
                        raise RequestRejectedError(
                            self.provider,
                            call.path,
                            status,
                            "the response is too large; ask for a shorter window",
                        )
        except _NETWORK_ERRORS as error:
            reason = type(error).__name__
        logger.info(
            "%s %s %s -> %s in %.3f s",
            self.provider,
            call.method,
            call.path,
            reason or status,
            time.monotonic() - started,
        )
        if reason is not None:
            raise _TransientError(reason)
        headers = [
            (name, value)
            for name, value in response.headers.multi_items()
            if name not in ("content-encoding", "content-length", "transfer-encoding")
        ]
        return httpx.Response(
            response.status_code, headers=headers, content=bytes(content), request=response.request
        )

    def _accept(self, response: httpx.Response, verdict: Verdict, call: _Call) -> httpx.Response:
        """The response if it is a good one; else the error it stands for."""
        status, where = response.status_code, (self.provider, call.path, response.status_code)
        match verdict.kind:
            case "good":
                return response
            case "rate_limited":
                raise _TransientError("429", status, verdict.wait_seconds, rate_limited=True)
            case "unavailable":
                raise _TransientError(verdict.message or str(status), status, verdict.wait_seconds)
            case "unauthorized":
                said = verdict.message or "the access was revoked or has expired; reconnect the account"
                raise AuthorizationError(*where, said)
            case "forbidden":
                said = verdict.message or (
                    "a permission is missing; reconnect and grant it, or renew the subscription it needs"
                )
                raise PermissionMissingError(*where, said)
            case "rejected":
                kind = RecordGoneError if status in (404, 410) else RequestRejectedError
                raise kind(*where, verdict.message or "the request was refused")

    def _spent(self, state: RetryCallState, call: _Call) -> bool:
        return (
            state.attempt_number >= self._max_attempts or call.waited + state.upcoming_sleep > self._max_wait
        )

    def _wait(self, call: _Call, seconds: float) -> None:
        call.waited += seconds
        self._sleep(seconds)

    def _log_retry(self, state: RetryCallState, call: _Call) -> None:
        logger.warning(
            "%s %s %s: attempt %d failed, next in %.1f s",
            self.provider,
            call.method,
            call.path,
            state.attempt_number,
            state.upcoming_sleep,
        )

    def _give_up(self, failure: _TransientError, call: _Call) -> ProviderError:
        if failure.rate_limited:
            retry_at = _utc(self._clock() + (failure.retry_after or 60.0))
            return RateLimitedError(self.provider, call.path, failure.status, retry_at)
        self._breaker.record_failure()
        what = f"server error {failure.status}" if failure.status else f"network failure ({failure.reason})"
        return ProviderUnavailableError(
            self.provider,
            call.path,
            failure.status,
            f"unavailable, {what} after all attempts; try again later",
        )


@cache
def _tls_context() -> ssl.SSLContext:
    """One for all clients: reading the certificates costs more than a request."""
    return httpx.create_ssl_context()


def _retry_wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome is not None else None
    asked = error.retry_after if isinstance(error, _TransientError) else None
    # On top of what was asked for, too: clients told the same second would come back in the same second.
    return (asked or 0.0) + _BACKOFF(state)


def usual_verdict(response: httpx.Response, now: float) -> Verdict:
    """What status code, Retry-After and X-RateLimit-Reset say. A 4xx that is none of those is a refusal."""
    status = response.status_code
    if response.is_success:
        return Verdict("good")
    if status == 429:
        wait = _asked_wait(response.headers, now)
        return Verdict("rate_limited", wait, for_all=_is_for_all(response.headers))
    if status >= 500:
        return Verdict("unavailable", _asked_wait(response.headers, now))
    if status == 401:
        return Verdict("unauthorized")
    return Verdict("forbidden" if status == 403 else "rejected")


def _base(url: str) -> httpx.URL:
    return httpx.URL(url.rstrip("/") + "/")


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def _given(params: Params | None) -> Params | None:
    return {name: value for name, value in (params or {}).items() if value is not None} or None


def _asked_wait(headers: httpx.Headers, now: float) -> float | None:
    """Seconds the provider asks to wait: Retry-After (seconds or a date), else X-RateLimit-Reset.

    X-RateLimit-Reset is an epoch second at some providers and a number of seconds at others; no window is
    long enough to confuse the two.
    """
    value = headers.get("Retry-After")
    if value is not None:
        seconds = _number(value)
        if seconds is None:
            try:
                date = parsedate_to_datetime(value)
            except ValueError:
                date = None
            if date is not None:
                seconds = date.replace(tzinfo=date.tzinfo or dt.UTC).timestamp() - now
        if seconds is not None:
            return min(max(seconds, 0.0), _MAX_PAUSE_SECONDS)
    reset = _number(headers.get("X-RateLimit-Reset", ""))
    if reset is None:
        return None
    return min(max(reset - now if reset > 1e9 else reset, 0.0), _MAX_PAUSE_SECONDS)


def _is_for_all(headers: httpx.Headers) -> bool:
    """Whether a 429 speaks of the application's budget; so taken where the provider does not say."""
    return str(headers.get("X-RateLimit-Tier", "application")).lower().startswith("app")


def _number(value: str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _utc(epoch_seconds: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(epoch_seconds, dt.UTC)
