"""The fetch door: ask a provider's API for the days of every connected account and keep its answers."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field

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
)
from health_pipeline.connections.endpoints import Endpoint, ProviderShutDownError, endpoint_of
from health_pipeline.connections.vault import Vault, VaultError
from health_pipeline.providers.base import Entity, Provider, Window
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


class ProviderOutageError(RuntimeError):
    """No account of a provider could be fetched because the provider does not answer."""


@dataclass(slots=True)
class AccountResult:
    """What one account's fetch brought. `error` is None where all went well."""

    account_id: int
    new_objects: int = 0
    known_objects: int = 0
    bytes_received: int = 0
    error: str | None = None
    outage: bool = False
    missing_entities: list[str] = field(default_factory=list)


@dataclass(slots=True)
class FetchReport:
    provider: str
    accounts: list[AccountResult] = field(default_factory=list)

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


def fetch(
    warehouse: Warehouse,
    store: RawStore,
    vault: Vault,
    settings: Settings,
    provider: Provider,
    window: Window,
    *,
    user_ids: Sequence[int] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> FetchReport:
    """Fetch the days of `window` for every active account, each entity with its look-back before it.

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
    limiter = RateLimiter(*(budget for budget in provider.budgets if budget.per == "application"))
    breaker = CircuitBreaker()

    def run(account: ConnectedAccount) -> AccountResult:
        client = _client(warehouse, vault, provider, endpoint, account, limiter, breaker)
        with client:
            return _fetch_account(warehouse, store, provider, endpoint, client, account, window)

    with ThreadPoolExecutor(_CONCURRENT_ACCOUNTS, thread_name_prefix=f"fetch-{provider.name}") as pool:
        for number, future in enumerate(as_completed([pool.submit(run, account) for account in accounts]), 1):
            report.accounts.append(future.result())
            if on_progress is not None:
                on_progress(number, len(accounts))
    report.accounts.sort(key=lambda result: result.account_id)
    if all(account.outage for account in report.accounts):
        raise ProviderOutageError(
            f"{provider.title} answers nobody: {report.accounts[0].error}. Nothing was lost; run it again later."
        )
    return report


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
) -> ApiClient:
    refresh = _refresher(provider, endpoint)
    last: str | None = None

    def token(force_refresh: bool) -> str:
        nonlocal last
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
        own_limiter=RateLimiter(*(budget for budget in provider.budgets if budget.per == "account")),
        breaker=breaker,
    )


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
    window: Window,
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
    refused: list[str] = []
    try:
        for entity in provider.entities:
            if entity.endpoint is None:
                continue
            try:
                _fetch_entity(warehouse, store, provider, client, account, entity, window, result)
            except PermissionMissingError:
                result.missing_entities.append(entity.name)
            except (MalformedResponseError, RequestRejectedError) as error:
                # It is about this entity; the others may be well.
                refused.append(str(error))
    except (AuthorizationError, ReconnectError) as error:
        result.error = f"{error}; connect {provider.title} again"
        reconnect = True
    except (ProviderError, RenewalError, VaultError) as error:
        result.error = str(error)
        result.outage = isinstance(error, ProviderUnavailableError | RenewalError)
    else:
        result.error = "; ".join(refused) or None
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
    entity: Entity,
    window: Window,
    result: AccountResult,
) -> None:
    assert provider.fetch is not None
    asked = Window(window.start - dt.timedelta(days=entity.lookback_days), window.end)
    for part in asked.split(entity.max_window_days):
        # All pages of one request share the instant: none of them is newer than another.
        received_at = dt.datetime.now(dt.UTC)
        deliveries: list[Delivery] = []
        zone = {"zone_source": "profile"} if account.profile_time_zone is not None else {}
        try:
            for page in provider.fetch(client, entity, part):
                deliveries.append(  # noqa: PERF401 - what came before an error is kept
                    Delivery(
                        provider=provider.name,
                        entity=entity.name,
                        user_id=account.user_id,
                        door="fetch",
                        content=page.content,
                        received_at=received_at,
                        # Days before the window were read for revisions; they belong to the run that asked.
                        partition_start=max(part.start, window.start),
                        partition_end=max(part.end, window.start),
                        content_type=page.content_type,
                        time_zone=account.profile_time_zone or account.time_zone,
                        context={**page.context, **zone},
                    )
                )
        finally:
            # What came before an error is kept.
            _keep(warehouse, store, deliveries, result)


def _keep(
    warehouse: Warehouse, store: RawStore, deliveries: Sequence[Delivery], result: AccountResult
) -> None:
    for receipt in receive(warehouse.engine, store, deliveries):
        result.bytes_received += receipt.size_bytes
        if receipt.created:
            result.new_objects += 1
        else:
            result.known_objects += 1
