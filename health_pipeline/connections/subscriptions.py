"""Where the providers call us: subscriptions at their APIs, made once, kept up, ended.

What a provider has is asked of the provider each time; what is noted here (ops.webhook_subscriptions) is which of
those we made, when they expire, and the secrets that some give once.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from health_pipeline.connections.accounts import (
    ConnectedAccount,
    ReconnectError,
    RenewalError,
    active_accounts,
    writing_key,
)
from health_pipeline.connections.callback import ReceiverAddressError, callback_address, own_secrets
from health_pipeline.connections.connect import token_of
from health_pipeline.connections.endpoints import Endpoint, ProviderNotConfiguredError, endpoint_of
from health_pipeline.connections.service_account import service_token
from health_pipeline.connections.vault import Vault, VaultError
from health_pipeline.providers.base import (
    Credentials,
    InterpretFunction,
    Provider,
    Subscribing,
    Subscription,
    Subscriptions,
    Verdict,
)
from health_pipeline.providers.http import (
    ApiClient,
    PermissionMissingError,
    ProviderError,
    RateLimiter,
    RecordGoneError,
    RequestRejectedError,
)
from health_pipeline.providers.registry import get
from health_pipeline.settings import Settings
from health_pipeline.warehouse.connection import Warehouse
from health_pipeline.warehouse.lock import hold
from health_pipeline.warehouse.models import (
    User,
    WebhookSubscription,
    WebhookTarget,
)

#: What has less than this left of its life is renewed.
RENEW_BEFORE = dt.timedelta(days=7)
#: With less than this left, something keeps it from being renewed.
EXPIRES_SOON = dt.timedelta(days=4)
_PROBE_SECONDS = 5.0


class SubscriptionError(RuntimeError):
    """The provider's subscriptions are not as they should be; the message says what to do."""


#: What may keep a provider's subscriptions from being looked after.
_TROUBLES = (
    SubscriptionError,
    ReceiverAddressError,
    ProviderNotConfiguredError,
    RenewalError,
    LookupError,
)


class ByHandError(LookupError):
    """The provider has no API for its subscriptions; the message says what to enter on its dashboard."""


@dataclass(slots=True)
class Ensured:
    """What was done at a provider. `problems` are of single accounts or kinds, the others are as they should be."""

    standing: int = 0
    created: int = 0
    renewed: int = 0
    deleted: int = 0
    problems: list[str] = field(default_factory=list)

    def words(self) -> str:
        done = [
            f"{count} {what}"
            for what, count in (("made", self.created), ("renewed", self.renewed), ("ended", self.deleted))
            if count
        ]
        return f"{self.standing} subscriptions stand ({', '.join(done) or 'nothing was to be done'})"


@dataclass(frozen=True, slots=True)
class Listed:
    """A subscription as the provider has it. `handle` is whose it is, None where it is the application's."""

    provider: str
    handle: str | None
    subscription: Subscription
    ours: bool


@dataclass(frozen=True, slots=True)
class _Owner:
    """Whose subscriptions: an account's, or the application's."""

    account_id: int | None
    handle: str | None
    client: ApiClient
    credentials: Credentials


class Subscriber:
    """The subscriptions at one provider."""

    def __init__(self, warehouse: Warehouse, vault: Vault, settings: Settings, provider: Provider) -> None:
        """Raises LookupError for a provider that calls nobody, as ByHandError, and ProviderNotConfiguredError."""
        self._api = api_of(provider, settings)
        self._engine = warehouse.engine
        self._warehouse = warehouse
        self._vault = vault
        self._settings = settings
        self._provider = provider
        self._endpoint = endpoint_of(provider, settings)
        self._limiter = RateLimiter(*(one for one in self._endpoint.budgets if one.per == "application"))

    def subscribe(self, now: dt.datetime) -> Ensured:
        """Have the provider call us from here on; see `ensure`."""
        callback_address(self._settings, self._provider)
        with self._engine.begin() as connection:
            connection.execute(
                insert(WebhookTarget)
                .values(provider=self._provider.name, environment=self._endpoint.environment)
                .on_conflict_do_nothing()
            )
        return self.ensure(now)

    def ensure(self, now: dt.datetime, *, renew: bool = False) -> Ensured:
        """Make what is missing, renew what expires within a week (all, with `renew`), end what we made elsewhere.

        Subscriptions that somebody else made at other addresses are left alone. Raises SubscriptionError where
        nothing can be done, ReceiverAddressError.
        """
        address = callback_address(self._settings, self._provider)
        if not self._is_target():
            raise SubscriptionError(
                f"{self._provider.title} was not subscribed to; first say "
                f"`health-pipeline webhooks subscribe {self._provider.name}`"
            )
        done = Ensured()
        with self._held():
            for owner in self._owners():
                try:
                    self._ensure(owner, address, now, renew, done)
                except (ProviderError, RenewalError, ReconnectError, VaultError) as error:
                    done.problems.append(_of(owner, str(error)))
            problem = "; ".join(done.problems) or None
            with self._engine.begin() as connection:
                connection.execute(
                    sa.update(WebhookTarget)
                    .where(*self._here(WebhookTarget))
                    .values(checked_at=now, last_error=problem)
                )
        if problem is not None and self._api.per == "application":
            raise SubscriptionError(problem)
        return done

    def listed(self) -> list[Listed]:
        """What the provider has, ours and others'. Raises SubscriptionError."""
        failed = Ensured()
        found = []
        for owner in self._owners():
            try:
                there = self._api.list(owner.client, owner.credentials)
            except (ProviderError, RenewalError, ReconnectError, VaultError) as error:
                failed.problems.append(_of(owner, str(error)))
                continue
            made = self._made(owner)
            found += [
                Listed(self._provider.name, owner.handle, one, (one.kind, digest(one.address)) in made)
                for one in there
            ]
        if failed.problems:
            raise SubscriptionError("; ".join(failed.problems))
        return found

    def delete(self) -> Ensured:
        """End what we made, at whatever address, and what calls our address now. Raises SubscriptionError."""
        done = Ensured()
        try:
            address = callback_address(self._settings, self._provider)
        except ReceiverAddressError:
            address = None
        with self._held():
            for owner in self._owners():
                try:
                    self._delete(owner, done, address)
                except (ProviderError, RenewalError, ReconnectError, VaultError) as error:
                    done.problems.append(_of(owner, str(error)))
            if done.problems and self._api.per == "application":
                raise SubscriptionError("; ".join(done.problems))
            with self._engine.begin() as connection:
                connection.execute(sa.delete(WebhookTarget).where(*self._here(WebhookTarget)))
        return done

    # Parts

    @contextmanager
    def _held(self) -> Iterator[None]:
        with hold(self._engine, f"subscriptions:{self._provider.name}") as held:
            if not held:
                raise SubscriptionError(
                    f"{self._provider.title}'s subscriptions are being looked after by another process"
                )
            yield

    def _owners(self) -> Iterator[_Owner]:
        endpoint = self._endpoint
        secret = endpoint.client_secret.get_secret_value()
        if self._api.per == "application":
            credentials = Credentials(endpoint.client_id, secret, "")
            headers = self._application_headers(credentials)
            with ApiClient(
                self._provider.name,
                endpoint.base_url,
                lambda _renew: "",
                authorize=lambda _token: headers,
                interpret=interpreter(self._provider, self._api),
                limiter=self._limiter,
            ) as client:
                yield _Owner(None, None, client, credentials)
            return
        with self._engine.connect() as connection:
            handles = dict(connection.execute(sa.select(User.user_id, User.handle)).tuples().all())
        for account in active_accounts(self._engine, self._provider.name):
            if account.environment != endpoint.environment:
                continue
            with account_client(
                self._warehouse,
                self._vault,
                self._provider,
                endpoint,
                account.account_id,
                account.provider_user_id,
                self._limiter,
            ) as client:
                yield _Owner(
                    account.account_id,
                    handles[account.user_id],
                    client,
                    Credentials(endpoint.client_id, secret, ""),
                )

    def _application_headers(self, credentials: Credentials) -> dict[str, str]:
        if self._api.service_account is not None:
            scope = self._api.service_account
            token = service_token(self._settings, self._provider, self._endpoint, scope)
            return {"Authorization": f"Bearer {token}"}
        return {} if self._api.authorize is None else dict(self._api.authorize(credentials))

    def _ensure(self, owner: _Owner, address: str, now: dt.datetime, renew: bool, done: Ensured) -> None:
        made = self._made(owner)
        standing: dict[str, Subscription] = {}
        for one in self._api.list(owner.client, owner.credentials):
            known = (one.kind, digest(one.address)) in made
            at_ours = one.address == address
            if (
                at_ours
                and one.kind in self._api.kinds
                and one.kind not in standing
                and self._readable(one, made)
            ):
                standing[one.kind] = one
            elif known or (at_ours and self._api.gives_secret):
                # Another address of ours, from before; or one whose secret nobody has.
                self._end(owner, one)
                done.deleted += 1
        for kind in self._api.kinds:
            if kind not in standing:
                try:
                    standing[kind] = self._create(owner, kind, address)
                except (RequestRejectedError, PermissionMissingError) as error:
                    done.problems.append(_of(owner, self._refused(kind, address, error)))
                    if not standing:
                        break  # the others would be refused for the same reason
                    continue
                done.created += 1
            elif self._api.renew is not None and (renew or _is_due(standing[kind], now)):
                standing[kind] = self._api.renew(owner.client, owner.credentials, standing[kind])
                done.renewed += 1
            self._note(owner, standing[kind])
        self._forget(owner, {(kind, digest(address)) for kind in standing})
        done.standing += len(standing)

    def _create(self, owner: _Owner, kind: str, address: str) -> Subscription:
        asked = Subscribing(kind, address, own_secrets(self._settings, self._provider)[0])
        try:
            return self._api.create(owner.client, owner.credentials, asked)
        except RequestRejectedError:
            # A first try may have come through without its answer.
            for one in self._api.list(owner.client, owner.credentials):
                if (one.kind, one.address) == (kind, address) and not self._api.gives_secret:
                    return one
            raise

    def _end(self, owner: _Owner, subscription: Subscription) -> None:
        with suppress(RecordGoneError):
            self._api.delete(owner.client, owner.credentials, subscription)

    def _delete(self, owner: _Owner, done: Ensured, address: str | None) -> None:
        made = self._made(owner)
        for one in self._api.list(owner.client, owner.credentials):
            if one.address == address or (one.kind, digest(one.address)) in made:
                self._end(owner, one)
                done.deleted += 1
        self._forget(owner, set())

    def _readable(self, one: Subscription, made: dict[tuple[str, str], bool]) -> bool:
        """Whether what it sends can be verified: we have its secret, where there is one to have."""
        if not self._api.gives_secret or self._settings.webhook_secrets(self._provider.name):
            return True
        return made.get((one.kind, digest(one.address)), False)

    def _refused(self, kind: str, address: str, error: ProviderError) -> str:
        host = urlsplit(address).netloc
        text = f"{self._provider.title} refused the subscription {kind} to {host}: {error}"
        if error.status == 409 or isinstance(error, PermissionMissingError):
            return text
        parts = urlsplit(address)
        try:
            answer = httpx.get(f"{parts.scheme}://{host}/healthz", timeout=_PROBE_SECONDS)
        except (httpx.HTTPError, httpx.InvalidURL) as problem:
            return (
                f"{text}. Nothing answers at {host} from here ({type(problem).__name__}): start "
                "`health-pipeline receiver` there, or set HEALTH_PIPELINE_RECEIVER_URL to where it is"
            )
        if answer.status_code != 204:
            return f"{text}. What answers at {host} is not the receiver (status {answer.status_code})"
        return (
            f"{text}. The receiver answers at {host} from here: see that it can be reached from outside, and runs "
            "with the same HEALTH_PIPELINE_WEBHOOK_SECRET or home folder as this command"
        )

    # What is noted

    def _is_target(self) -> bool:
        with self._engine.connect() as connection:
            query = sa.select(WebhookTarget.provider).where(*self._here(WebhookTarget))
            return connection.execute(query).one_or_none() is not None

    def _here(
        self, table: type[WebhookTarget] | type[WebhookSubscription]
    ) -> tuple[sa.ColumnElement[bool], ...]:
        return (
            table.provider == self._provider.name,
            table.environment == self._endpoint.environment,
        )

    def _of_owner(self, owner: _Owner) -> tuple[sa.ColumnElement[bool], ...]:
        account = WebhookSubscription.account_id
        return (
            *self._here(WebhookSubscription),
            account.is_(None) if owner.account_id is None else account == owner.account_id,
        )

    def _made(self, owner: _Owner) -> dict[tuple[str, str], bool]:
        """What we made, by kind and digest of its address; whether we have a secret that we can read."""
        with self._engine.connect() as connection:
            rows = connection.execute(
                sa.select(
                    WebhookSubscription.kind, WebhookSubscription.address_sha256, WebhookSubscription.key_id
                ).where(*self._of_owner(owner))
            )
            return {
                (row.kind, row.address_sha256): row.key_id is not None and self._vault.knows(row.key_id)
                for row in rows
            }

    def _note(self, owner: _Owner, one: Subscription) -> None:
        with self._engine.begin() as connection:
            values: dict[str, object] = {
                "provider_subscription_id": one.subscription_id,
                "expires_at": one.expires_at,
                "updated_at": sa.func.now(),
            }
            if one.secret is not None:
                key_id = writing_key(connection, self._vault)
                values |= {"key_id": key_id, "secret": self._vault.encrypt(one.secret, key_id)[1]}
            connection.execute(
                insert(WebhookSubscription)
                .values(
                    provider=self._provider.name,
                    environment=self._endpoint.environment,
                    account_id=owner.account_id,
                    kind=one.kind,
                    address_sha256=digest(one.address),
                    **values,
                )
                .on_conflict_do_update(constraint="uq_webhook_subscriptions_key", set_=values)
            )

    def _forget(self, owner: _Owner, standing: set[tuple[str, str]]) -> None:
        with self._engine.begin() as connection:
            connection.execute(
                sa.delete(WebhookSubscription).where(
                    *self._of_owner(owner),
                    sa.tuple_(WebhookSubscription.kind, WebhookSubscription.address_sha256).not_in(standing),
                )
            )


def api_of(provider: Provider, settings: Settings) -> Subscriptions:
    """A provider's subscriptions. Raises LookupError where it calls nobody, as ByHandError where by hand only."""
    webhook = provider.webhook
    if webhook is None:
        raise LookupError(
            f"{provider.title} sends no webhooks; it is asked every {provider.poll_hours} hours"
        )
    if webhook.subscriptions is not None:
        return webhook.subscriptions
    secret = f"HEALTH_PIPELINE_{provider.name.upper()}_WEBHOOK_SECRET"
    address = callback_address(settings, provider)
    how = webhook.dashboard or "enter it where the application was registered"
    text = f"{provider.title} is told by hand where to call: {how}\n\n  {address}\n"
    if webhook.signed_by_client:
        text += "\nIts calls are signed with the client secret: there is nothing else to set."
    elif webhook.secret_path:
        text += "\nIts calls are not signed: nobody else may see this address."
    else:
        text += f"\nThen set {secret} to the secret that is shown there, and start the receiver again."
    raise ByHandError(text)


def account_client(
    warehouse: Warehouse,
    vault: Vault,
    provider: Provider,
    endpoint: Endpoint,
    account_id: int,
    provider_user_id: str | None,
    limiter: RateLimiter | None = None,
) -> ApiClient:
    """A client for one account's subscriptions."""
    assert provider.webhook is not None
    assert provider.webhook.subscriptions is not None
    return ApiClient(
        provider.name,
        endpoint.base_url,
        token_of(warehouse, vault, endpoint, account_id),
        authorize=endpoint.authorizer(provider),
        regions=endpoint.regions,
        region_of=provider.region_of,
        interpret=interpreter(provider, provider.webhook.subscriptions),
        provider_user_id=provider_user_id,
        limiter=limiter,
    )


def interpreter(provider: Provider, api: Subscriptions) -> InterpretFunction:
    """What answers about subscriptions mean: the provider's own reading, with its refusals in words."""

    def interpret(response: httpx.Response, now: float) -> Verdict | None:
        said = None if api.explain is None else api.explain(response)
        if said is None and api.per == "application" and response.status_code == 401:
            said = "it does not know the client's id and secret"
        if said is not None:
            return Verdict("rejected", message=said)
        return None if provider.interpret is None else provider.interpret(response, now)

    return interpret


def unsubscribe_account(
    warehouse: Warehouse,
    vault: Vault,
    provider: Provider,
    endpoint: Endpoint,
    account_id: int,
    provider_user_id: str | None,
) -> None:
    """End the subscriptions that we made for an account. Raises ProviderError, ReconnectError, RenewalError."""
    api = None if provider.webhook is None else provider.webhook.subscriptions
    if api is None or api.per != "account":
        return
    with warehouse.engine.connect() as connection:
        made = {
            (row.kind, row.address_sha256)
            for row in connection.execute(
                sa.select(WebhookSubscription.kind, WebhookSubscription.address_sha256).where(
                    WebhookSubscription.account_id == account_id
                )
            )
        }
    if not made:
        return
    credentials = Credentials(endpoint.client_id, endpoint.client_secret.get_secret_value(), "")
    with account_client(warehouse, vault, provider, endpoint, account_id, provider_user_id) as client:
        for one in api.list(client, credentials):
            if (one.kind, digest(one.address)) in made:
                api.delete(client, credentials, one)


def forget_subscriptions(engine: sa.Engine, account_id: int) -> None:
    """An account's subscriptions are no more."""
    with engine.begin() as connection:
        connection.execute(sa.delete(WebhookSubscription).where(WebhookSubscription.account_id == account_id))


def signing_secrets(engine: sa.Engine, vault: Vault, settings: Settings, provider: Provider) -> list[str]:
    """What a provider said, when we subscribed, that it would sign with; the newest first. Raises VaultError."""
    try:
        environment = endpoint_of(provider, settings).environment
    except ProviderNotConfiguredError:
        return []
    with engine.connect() as connection:
        rows = connection.execute(
            sa.select(WebhookSubscription.key_id, WebhookSubscription.secret)
            .where(
                WebhookSubscription.provider == provider.name,
                WebhookSubscription.environment == environment,
                WebhookSubscription.secret.isnot(None),
            )
            .order_by(WebhookSubscription.subscription_id.desc())
        ).all()
    return [vault.decrypt(row.key_id, row.secret) for row in rows]


def targets(engine: sa.Engine, settings: Settings) -> list[Provider]:
    """The providers that were subscribed to, in the environment that they are configured for now."""
    with engine.connect() as connection:
        rows = connection.execute(
            sa.select(WebhookTarget.provider, WebhookTarget.environment).order_by(WebhookTarget.provider)
        ).all()
    found = []
    for row in rows:
        provider = get(row.provider)
        try:
            if endpoint_of(provider, settings).environment == row.environment:
                found.append(provider)
        except ProviderNotConfiguredError:
            continue
    return found


def keep_up(
    warehouse: Warehouse, vault: Vault, settings: Settings, now: dt.datetime
) -> dict[str, Ensured | str]:
    """`Subscriber.ensure` for every provider that was subscribed to: what was done, or why nothing was.

    One provider's trouble does not keep the others from theirs; it is noted with the provider.
    """
    found: dict[str, Ensured | str] = {}
    for provider in targets(warehouse.engine, settings):
        try:
            found[provider.name] = Subscriber(warehouse, vault, settings, provider).ensure(now)
        except _TROUBLES as error:
            found[provider.name] = str(error)
            environment = endpoint_of(provider, settings).environment
            with warehouse.engine.begin() as connection:
                connection.execute(
                    sa.update(WebhookTarget)
                    .where(WebhookTarget.provider == provider.name, WebhookTarget.environment == environment)
                    .values(checked_at=now, last_error=str(error))
                )
    return found


def troubles(engine: sa.Engine, settings: Settings, now: dt.datetime) -> list[tuple[str, str]]:
    """(provider, what is wrong) of those that were subscribed to and may not call."""
    names = [provider.name for provider in targets(engine, settings)]
    soon = WebhookSubscription.expires_at < now + EXPIRES_SOON
    with engine.connect() as connection:
        failed = connection.execute(
            sa.select(WebhookTarget.provider, WebhookTarget.last_error)
            .where(WebhookTarget.provider.in_(names), WebhookTarget.last_error.isnot(None))
            .order_by(WebhookTarget.provider)
        ).all()
        expiring = connection.execute(
            sa.select(
                WebhookSubscription.provider, sa.func.count(), sa.func.min(WebhookSubscription.expires_at)
            )
            .where(WebhookSubscription.provider.in_(names), soon)
            .group_by(WebhookSubscription.provider)
        ).all()
    return [(row.provider, row.last_error) for row in failed] + [
        (provider, f"{count} subscriptions were not renewed and expire from {first:%Y-%m-%d %H:%M} UTC on")
        for provider, count, first in expiring
    ]


def unsubscribed_accounts(engine: sa.Engine, settings: Settings) -> list[ConnectedAccount]:
    """Active accounts without a subscription, of providers that were subscribed to account by account."""
    found = []
    for provider in targets(engine, settings):
        api = api_of(provider, settings)
        if api.per != "account":
            continue
        environment = endpoint_of(provider, settings).environment
        with engine.connect() as connection:
            known = set(
                connection.execute(
                    sa.select(WebhookSubscription.account_id).where(
                        WebhookSubscription.provider == provider.name
                    )
                ).scalars()
            )
        found += [
            account
            for account in active_accounts(engine, provider.name)
            if account.environment == environment and account.account_id not in known
        ]
    return found


def digest(address: str) -> str:
    """Tells addresses apart without keeping them: some hold a secret."""
    return hashlib.sha256(address.encode()).hexdigest()


def _is_due(one: Subscription, now: dt.datetime) -> bool:
    return not one.active or (one.expires_at is not None and one.expires_at - now < RENEW_BEFORE)


def _of(owner: _Owner, message: str) -> str:
    return message if owner.handle is None else f"{owner.handle}: {message}"
