"""The fetch door: ask a provider's API for the days of every connected account and keep its answers."""

from __future__ import annotations

import datetime as dt
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Literal

import sqlalchemy as sa

from health_pipeline.connections import oauth, password
from health_pipeline.connections.accounts import (
    ConnectedAccount,
    ReconnectError,
    Refresh,
    RenewalError,
    access_token,
    active_accounts,
    record_failure,
    record_success,
    while_connected,
)
from health_pipeline.connections.endpoints import Endpoint, ProviderShutDownError, endpoint_of
from health_pipeline.connections.vault import Vault, VaultError
from health_pipeline.ingestion import counters, jobs
from health_pipeline.providers.base import Entity, Page, Provider, Window
from health_pipeline.providers.http import (
    ApiClient,
    AuthorizationError,
    CircuitBreaker,
    MalformedResponseError,
    PermissionMissingError,
    ProviderError,
    ProviderUnavailableError,
    RateLimiter,
    RequestRejectedError,
)
from health_pipeline.raw.index import Delivery, receive
from health_pipeline.raw.store import RawStore
from health_pipeline.settings import Settings
from health_pipeline.warehouse.connection import Warehouse

logger = logging.getLogger(__name__)

#: Accounts asked at the same time. Providers count requests per application, so more gains little.
_CONCURRENT_ACCOUNTS = 4
#: A job's longest window: what is lost of it by a kill, and held in memory, stays small.
_JOB_WINDOW_DAYS = 30
#: How long a call waits for the rate limit in all. A backfill has no one waiting for it and outlasts a quarter of
#: an hour's budget, the commonest kind.
_MAX_WAIT_SECONDS = 120.0
_MAX_BACKFILL_WAIT_SECONDS = 1200.0

Plan = Literal["window", "gaps"]


class ProviderOutageError(RuntimeError):
    """No account of a provider could be fetched because the provider does not answer."""


class _StoppedError(Exception):
    """The run was interrupted: end between two requests."""


@dataclass(slots=True)
class AccountResult:
    """What one account's fetch brought. `error` is None where all went well.

    `windows` were asked for and are raw.
    """

    account_id: int
    windows: int = 0
    new_objects: int = 0
    known_objects: int = 0
    bytes_received: int = 0
    error: str | None = None
    outage: bool = False
    missing_entities: list[str] = field(default_factory=list)
    #: What the provider refused of single entities, by name; the others are well.
    refused_entities: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class FetchReport:
    """`windows_skipped` were not asked for: the job had them raw already."""

    provider: str
    accounts: list[AccountResult] = field(default_factory=list)
    windows_skipped: int = 0

    @property
    def windows(self) -> int:
        return sum(account.windows for account in self.accounts)

    @property
    def new_objects(self) -> int:
        return sum(account.new_objects for account in self.accounts)

    @property
    def known_objects(self) -> int:
        return sum(account.known_objects for account in self.accounts)

    @property
    def bytes_received(self) -> int:
        return sum(account.bytes_received for account in self.accounts)

    @property
    def failed(self) -> list[AccountResult]:
        return [account for account in self.accounts if account.error is not None]


@dataclass(frozen=True, slots=True)
class Asking:
    """What to ask for of one entity: windows, oldest first, and single records by the provider's ids."""

    entity: Entity
    windows: tuple[Window, ...]
    record_ids: tuple[str, ...] = ()


class _Progress:
    """How many windows are done, for the job and whoever watches. Thread-safe."""

    def __init__(
        self,
        engine: sa.Engine,
        job: jobs.Job | None,
        done: int,
        total: int,
        on_progress: Callable[[int, int], None] | None,
    ) -> None:
        self._engine = engine
        self._job_id = None if job is None else job.job_id
        self._done, self._total = done, total
        self._on_progress = on_progress
        self._lock = threading.Lock()

    def fetched(
        self,
        account: ConnectedAccount,
        entity: Entity,
        window: Window,
        asked_at: dt.datetime,
        *,
        requests: int,
        objects_new: int,
    ) -> None:
        jobs.note_fetched(
            self._engine,
            account.account_id,
            entity.name,
            window,
            asked_at,
            job_id=self._job_id,
            requests=requests,
            objects_new=objects_new,
        )
        self._count(1)

    def given_up(self, windows: int, *, requests: int, objects_new: int) -> None:
        """What was asked for in vain; `windows` is 0 where asking again may help."""
        if self._job_id is not None:
            jobs.note_progress(
                self._engine, self._job_id, windows=windows, requests=requests, objects_new=objects_new
            )
        if windows:
            self._count(windows)

    def _count(self, windows: int) -> None:
        with self._lock:
            self._done += windows
            if self._on_progress is not None:
                self._on_progress(self._done, self._total)


def fetch(
    warehouse: Warehouse,
    store: RawStore,
    vault: Vault,
    settings: Settings,
    provider: Provider,
    window: Window,
    *,
    user_ids: Sequence[int] | None = None,
    plan: Plan = "window",
    job: jobs.Job | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> FetchReport:
    """Fetch the days of `window` for every active account, each entity with its look-back before it.

    With the plan `gaps`, only the days up to the window's end that should be raw and are not. What comes is of
    the window's day partitions either way. With a `job`, windows that it has raw already are not asked for, the
    others are short, and progress and trouble are noted on it; a backfill has no look-back. `on_progress` gets
    the windows done and all there are.

    One account's failure is recorded on that account and the others go on; where the provider's API is shut
    down, nobody is asked and every account is told so. Raises ProviderOutageError when
    the provider answered nobody, ProviderNotConfiguredError, RawStoreUnavailableError.
    """
    accounts = active_accounts(warehouse.engine, provider.name, user_ids)
    report = FetchReport(provider.name)
    if not accounts:
        return report
    try:
        endpoint = endpoint_of(provider, settings)
    except ProviderShutDownError as error:
        report.accounts = [_shut_down(warehouse, account, str(error)) for account in accounts]
        return report
    askings, report.windows_skipped = _askings(warehouse.engine, provider, accounts, window, plan, job)
    total = report.windows_skipped + sum(len(each.windows) for its in askings.values() for each in its)
    if job is not None:
        jobs.set_plan(warehouse.engine, job.job_id, report.windows_skipped, total)
    progress = _Progress(warehouse.engine, job, report.windows_skipped, total, on_progress)
    max_wait = _MAX_BACKFILL_WAIT_SECONDS if job is not None and job.kind == "backfill" else _MAX_WAIT_SECONDS
    _ask_all(
        warehouse, store, vault, provider, endpoint, accounts, askings, window, progress, max_wait, report
    )
    if job is not None and report.failed:
        jobs.note_error(warehouse.engine, job.job_id, _errors(report))
    if report.accounts and all(account.outage for account in report.accounts):
        raise ProviderOutageError(
            f"{provider.title} answers nobody: {report.accounts[0].error}. Nothing was lost; run it again later."
        )
    return report


def fetch_announced(
    warehouse: Warehouse,
    store: RawStore,
    vault: Vault,
    settings: Settings,
    provider: Provider,
    window: Window,
    askings: Mapping[int, Sequence[Asking]],
) -> FetchReport:
    """Fetch what a provider said had changed, by account; what comes is of the day partitions in `window`.

    Accounts that are not active have no part in the report. Raises ProviderNotConfiguredError,
    RawStoreUnavailableError; what fails otherwise is in the report.
    """
    report = FetchReport(provider.name)
    endpoint = endpoint_of(provider, settings)
    accounts = [
        account
        for account in active_accounts(warehouse.engine, provider.name)
        if account.account_id in askings
    ]
    progress = _Progress(warehouse.engine, None, 0, 0, None)
    _ask_all(
        *(warehouse, store, vault, provider, endpoint, accounts, askings, window, progress),
        _MAX_WAIT_SECONDS,
        report,
    )
    return report


def _ask_all(
    warehouse: Warehouse,
    store: RawStore,
    vault: Vault,
    provider: Provider,
    endpoint: Endpoint,
    accounts: Sequence[ConnectedAccount],
    askings: Mapping[int, Sequence[Asking]],
    window: Window,
    progress: _Progress,
    max_wait: float,
    report: FetchReport,
) -> None:
    """Ask for several accounts at the same time; the results go into the report."""
    accounts_to_ask = [account for account in accounts if askings[account.account_id]]
    limiter = RateLimiter(*(budget for budget in endpoint.budgets if budget.per == "application"))
    breaker = CircuitBreaker()
    stop = threading.Event()

    def run(account: ConnectedAccount) -> AccountResult:
        client = _client(warehouse, vault, provider, endpoint, account, limiter, breaker, stop, max_wait)
        with client:
            try:
                return _fetch_account(
                    warehouse,
                    store,
                    provider,
                    endpoint,
                    client,
                    account,
                    askings[account.account_id],
                    window,
                    progress,
                )
            finally:
                counters.add(
                    warehouse.engine, counters.RATE_LIMIT_HITS, provider.name, client.rate_limit_hits
                )

    with ThreadPoolExecutor(_CONCURRENT_ACCOUNTS, thread_name_prefix=f"fetch-{provider.name}") as pool:
        try:
            for future in as_completed([pool.submit(run, account) for account in accounts_to_ask]):
                report.accounts.append(future.result())
        except BaseException:
            # The pool waits for its threads; without this, an interrupted backfill would first run to its end.
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    report.accounts.sort(key=lambda result: result.account_id)


def _errors(report: FetchReport) -> str:
    """What went wrong, each thing once, with the accounts by number."""
    accounts: dict[str, list[str]] = {}
    for result in report.failed:
        accounts.setdefault(str(result.error), []).append(str(result.account_id))
    return "; ".join(f"account {', '.join(numbers)}: {error}" for error, numbers in accounts.items())


def _askings(
    engine: sa.Engine,
    provider: Provider,
    accounts: Sequence[ConnectedAccount],
    window: Window,
    plan: Plan,
    job: jobs.Job | None,
) -> tuple[dict[int, list[Asking]], int]:
    """What to ask of each account, and how many windows need no asking because the job has them raw."""
    account_ids = [account.account_id for account in accounts]
    gaps = jobs.find_gaps(engine, account_ids, window.end) if plan == "gaps" else {}
    raw = jobs.fetched_for(engine, job, account_ids) if job is not None else set()
    found: dict[int, list[Asking]] = {account_id: [] for account_id in account_ids}
    skipped = 0
    for account_id in account_ids:
        for entity in provider.entities:
            if entity.endpoint is None:
                continue
            whole = [_with_lookback(entity, window, job)]
            days = gaps.get((account_id, entity.name), []) if plan == "gaps" else whole
            windows = [part for each in days for part in _split(entity, each, plan, job)]
            missing = tuple(part for part in windows if (account_id, entity.name, part) not in raw)
            skipped += len(windows) - len(missing)
            if missing:
                found[account_id].append(Asking(entity, missing))
    return found, skipped


def _with_lookback(entity: Entity, window: Window, job: jobs.Job | None) -> Window:
    if entity.window == "everything" or (job is not None and job.kind == "backfill"):
        return window
    return Window(window.start - dt.timedelta(days=entity.lookback_days), window.end)


def _split(entity: Entity, days: Window, plan: Plan, job: jobs.Job | None) -> list[Window]:
    if entity.window == "everything":
        # The answer holds all days whatever is asked for: once a run, and there are no days to miss.
        return [] if plan == "gaps" else [days]
    longest = entity.max_window_days
    if job is not None:
        longest = min(longest or _JOB_WINDOW_DAYS, _JOB_WINDOW_DAYS)
    return list(days.split(longest))


def _shut_down(warehouse: Warehouse, account: ConnectedAccount, message: str) -> AccountResult:
    """The account waits for its person to connect the successor; tokens and all that came stay as they are."""
    record_failure(warehouse.engine, account.account_id, message, reconnect=True)
    return AccountResult(account.account_id, error=message)


def _client(
    warehouse: Warehouse,
    vault: Vault,
    provider: Provider,
    endpoint: Endpoint,
    account: ConnectedAccount,
    limiter: RateLimiter,
    breaker: CircuitBreaker,
    stop: threading.Event,
    max_wait: float,
) -> ApiClient:
    refresh = _refresher(provider, endpoint)
    last: str | None = None

    def token(force_refresh: bool) -> str:
        nonlocal last
        if stop.is_set():
            raise _StoppedError
        if refresh is None:
            return ""  # the application's own key is all there is
        rejected = last if force_refresh else None
        last = access_token(warehouse.engine, vault, account.account_id, refresh, rejected=rejected)
        return last

    return ApiClient(
        provider.name,
        endpoint.base_url,
        token,
        authorize=endpoint.authorizer(provider),
        regions=endpoint.regions,
        region_of=provider.region_of,
        interpret=provider.interpret,
        provider_user_id=account.provider_user_id,
        limiter=limiter,
        own_limiter=RateLimiter(*(budget for budget in endpoint.budgets if budget.per == "account")),
        breaker=breaker,
        max_wait=max_wait,
        sleep=lambda seconds: _pause(stop, seconds),
    )


def _pause(stop: threading.Event, seconds: float) -> None:
    if stop.wait(seconds):
        raise _StoppedError


def _refresher(provider: Provider, endpoint: Endpoint) -> Refresh | None:
    """How the accounts of a provider get new access tokens; None where they have none."""
    if endpoint.oauth is not None:
        return oauth.refresher(endpoint)
    return None if provider.password is None else password.refresher(provider, endpoint)


def _fetch_account(
    warehouse: Warehouse,
    store: RawStore,
    provider: Provider,
    endpoint: Endpoint,
    client: ApiClient,
    account: ConnectedAccount,
    askings: Sequence[Asking],
    window: Window,
    progress: _Progress,
) -> AccountResult:
    result = AccountResult(account.account_id)
    engine = warehouse.engine
    if account.environment != endpoint.environment:
        result.error = (
            f"connected to the {account.environment} environment, but {provider.title} is configured for "
            f"{endpoint.environment}; connect the account again"
        )
        record_failure(engine, account.account_id, result.error)
        return result
    started_at = dt.datetime.now(dt.UTC)
    reconnect = False
    try:
        for asking in askings:
            try:
                _fetch_entity(warehouse, store, provider, client, account, asking, window, progress, result)
            except PermissionMissingError:
                result.missing_entities.append(asking.entity.name)
            except (MalformedResponseError, RequestRejectedError) as error:
                # It is about this entity; the others may be well.
                result.refused_entities[asking.entity.name] = str(error)
    except (AuthorizationError, ReconnectError) as error:
        result.error = f"{error}; connect {provider.title} again"
        reconnect = True
    except (ProviderError, RenewalError, VaultError) as error:
        result.error = str(error)
        result.outage = isinstance(error, ProviderUnavailableError | RenewalError)
    else:
        result.error = "; ".join(result.refused_entities.values()) or None
    if result.error is None:
        record_success(engine, account.account_id, started_at, _warning(result))
    else:
        record_failure(engine, account.account_id, result.error, reconnect=reconnect)
        logger.warning("%s account %s: %s", provider.name, account.account_id, result.error)
    return result


def _warning(result: AccountResult) -> str | None:
    if not result.missing_entities:
        return None
    return (
        f"no permission for {', '.join(result.missing_entities)}: the scope was not granted or the "
        "subscription has lapsed"
    )


def _fetch_entity(
    warehouse: Warehouse,
    store: RawStore,
    provider: Provider,
    client: ApiClient,
    account: ConnectedAccount,
    asking: Asking,
    window: Window,
    progress: _Progress,
    result: AccountResult,
) -> None:
    entity = asking.entity
    if asking.record_ids:
        _fetch_records(warehouse, store, provider, client, account, asking, window, result)
    for number, part in enumerate(asking.windows):
        objects, requests = result.new_objects, client.requests_sent
        # All pages of one request share the instant: none of them is newer than another.
        received_at = dt.datetime.now(dt.UTC)
        try:
            _fetch_window(
                warehouse, store, provider, client, account, entity, part, window, received_at, result
            )
        except Exception as error:
            # What the person did not allow is settled for this run, whatever days are left.
            progress.given_up(
                len(asking.windows) - number if isinstance(error, PermissionMissingError) else 0,
                requests=client.requests_sent - requests,
                objects_new=result.new_objects - objects,
            )
            raise
        result.windows += 1
        progress.fetched(
            account,
            entity,
            part,
            received_at,
            requests=client.requests_sent - requests,
            objects_new=result.new_objects - objects,
        )


def _fetch_window(
    warehouse: Warehouse,
    store: RawStore,
    provider: Provider,
    client: ApiClient,
    account: ConnectedAccount,
    entity: Entity,
    part: Window,
    window: Window,
    received_at: dt.datetime,
    result: AccountResult,
) -> None:
    assert provider.fetch is not None
    _keep_pages(
        warehouse,
        store,
        provider,
        account,
        provider.fetch(client, entity, part),
        entity,
        part,
        window,
        received_at,
        result,
    )


def _fetch_records(
    warehouse: Warehouse,
    store: RawStore,
    provider: Provider,
    client: ApiClient,
    account: ConnectedAccount,
    asking: Asking,
    window: Window,
    result: AccountResult,
) -> None:
    """Single records; they are of no window, so that none counts as fetched."""
    assert provider.fetch_records is not None
    pages = provider.fetch_records(client, asking.entity, asking.record_ids, window)
    now = dt.datetime.now(dt.UTC)
    _keep_pages(warehouse, store, provider, account, pages, asking.entity, window, window, now, result)


def _keep_pages(
    warehouse: Warehouse,
    store: RawStore,
    provider: Provider,
    account: ConnectedAccount,
    pages: Iterable[Page],
    entity: Entity,
    part: Window,
    window: Window,
    received_at: dt.datetime,
    result: AccountResult,
) -> None:
    deliveries: list[Delivery] = []
    zone = {"zone_source": "profile"} if account.profile_time_zone is not None else {}
    try:
        for page in pages:
            deliveries.append(  # noqa: PERF401 - what came before an error is kept
                Delivery(
                    provider=provider.name,
                    entity=entity.name,
                    user_id=account.user_id,
                    door="fetch",
                    content=page.content,
                    received_at=received_at,
                    # Days before the window, read for revisions or missing until now, belong to the run that asked.
                    partition_start=max(part.start, window.start),
                    partition_end=min(max(part.end, window.start), window.end),
                    content_type=page.content_type,
                    time_zone=account.profile_time_zone or account.time_zone,
                    context={**page.context, **zone},
                )
            )
    finally:
        # What came before an error is kept; what came after the person left is not.
        with while_connected(warehouse.engine, account.account_id) as connected:
            if connected:
                _keep(warehouse, store, deliveries, result)
        if not connected:
            raise ReconnectError("the account was disconnected")


def _keep(
    warehouse: Warehouse, store: RawStore, deliveries: Sequence[Delivery], result: AccountResult
) -> None:
    for receipt in receive(warehouse.engine, store, deliveries):
        result.bytes_received += receipt.size_bytes
        if receipt.created:
            result.new_objects += 1
        else:
            result.known_objects += 1
