"""What a provider is: one declarative module that says how to fetch its pages and how to read its bytes.

A provider knows nothing of Dagster, Postgres or S3. It yields `Page`s (bytes exactly as received) and turns
`RawDocument`s (the same bytes, read back from the raw store) into Arrow tables.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import pyarrow as pa

if TYPE_CHECKING:
    import httpx

    from health_pipeline.providers.http import ApiClient

#: Rows a parser refused. `location` is where in the object (a JSON path or a line number), `original` the
#: refused values as JSON text. Reasons are snake_case words, the same for all providers.
#: Records that a provider told us were deleted, by its ids.
DELETION_SCHEMA = pa.schema(
    [pa.field("entity", pa.string(), nullable=False), pa.field("record_id", pa.string(), nullable=False)]
)
#: What the context of a raw object says that is a notice of deletion.
ANNOUNCES_DELETION = {"announces": "deletion"}

QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("entity", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("field", pa.string()),
        pa.field("location", pa.string(), nullable=False),
        pa.field("original", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class Window:
    """Whole days, both ends included, in the account's local time."""

    start: dt.date
    end: dt.date

    def __post_init__(self) -> None:
        if self.end < self.start:
            raise ValueError(f"window ends ({self.end}) before it starts ({self.start})")

    def split(self, days: int | None) -> Iterator[Window]:
        """Consecutive windows of at most `days` days; the whole window where there is no limit."""
        if days is None:
            yield self
            return
        start = self.start
        while start <= self.end:
            end = min(start + dt.timedelta(days=days - 1), self.end)
            yield Window(start, end)
            start = end + dt.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Page:
    """One response body exactly as received, with what its bytes do not say about themselves."""

    entity: str
    content: bytes
    window: Window
    content_type: str = "application/json"
    context: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RawDocument:
    """Bytes read back from the raw store, as a parser gets them.

    `time_zone` is the IANA zone to assume for local times without an offset: the one given with an upload,
    else the user's. `context` is `Page.context` as it was stored.
    """

    entity: str
    content: bytes
    received_at: dt.datetime
    time_zone: str | None = None
    context: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RawFile:
    """A `RawDocument` that may be larger than memory: `content` is read forward, once."""

    entity: str
    content: BinaryIO
    received_at: dt.datetime
    time_zone: str | None = None
    context: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a parser made of one object. Every record is accounted for: loaded, quarantined or skipped.

    `tables` maps a staging table to rows of that entity's schema; one record may give several rows (a night
    gives a row for the night and one for each HRV sample), so the `records_*` counts are of the provider's
    records, not of rows. `skipped` counts, by reason, the records that are understood and carry nothing for
    us (an insulin row in a glucose file).
    """

    tables: Mapping[str, pa.Table]
    quarantine: pa.Table
    records_in: int
    records_loaded: int
    skipped: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        accounted = self.records_loaded + self.quarantine.num_rows + sum(self.skipped.values())
        if accounted != self.records_in:
            raise ValueError(f"parser lost records: {self.records_in} in, {accounted} accounted for")


WindowRule = Literal["local_days", "instants", "upload_time", "change_time", "everything"]
Paging = Literal["none", "cursor", "page_number", "offset", "link"]


@dataclass(frozen=True, slots=True)
class Entity:
    """One kind of record a provider has, and the staging table it becomes.

    `schema` is the staging table without the columns that staging adds. `endpoint` is None for tables that
    are filled from another entity's objects. `window` says what the provider's window selects by: local days,
    instants, the time of upload or of change, or nothing (everything comes, or the newest). `paging` names
    how the pages of one window follow each other. `lookback_days` is how far back a daily fetch reads again
    for revised records. `max_window_days` is the longest span of one request, None where there is no limit.
    """

    name: str
    schema: pa.Schema
    key: tuple[str, ...]
    description: str
    endpoint: str | None = None
    window: WindowRule = "local_days"
    paging: Paging = "none"
    lookback_days: int = 0
    max_window_days: int | None = None
    scope: str | None = None


@dataclass(frozen=True, slots=True)
class OAuth:
    """OAuth 2.0 authorization-code facts. URLs are the vendor's; the sandbox replaces their host.

    `client_authentication` is how the client shows who it is at the token endpoint. `authorize_params` and
    `token_params` are sent along with the standard ones, `refresh_params` with those of a renewal.
    `read_token_answer` turns the token endpoint's JSON into the standard's (RFC 6749, 5.1) where the vendor's
    is another; it raises ValueError for an answer that is an error in disguise.
    `revoke_parameter` is the query parameter in which the access token is revoked where that is not as in
    RFC 7009. `user_id_field` is the field of that answer that says whose account it is,
    where one does. `discover(oauth, base_url)` completes this where every server has addresses of its own,
    the sandbox too; it raises httpx.HTTPError or ValueError.
    """

    authorize_url: str
    token_url: str
    scopes: tuple[str, ...]
    revoke_url: str | None = None
    revoke_parameter: str | None = None
    pkce: bool = False
    rotates_refresh_token: bool = True
    scope_separator: str = " "
    client_authentication: Literal["client_secret_post", "client_secret_basic"] = "client_secret_post"
    authorize_params: Mapping[str, str] = field(default_factory=dict)
    token_params: Mapping[str, str] = field(default_factory=dict)
    refresh_params: Mapping[str, str] = field(default_factory=dict)
    read_token_answer: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    user_id_field: str | None = None
    discover: Callable[[OAuth, str], OAuth] | None = None


@dataclass(frozen=True, slots=True)
class HostedLink:
    """Consent on a page that an aggregator hosts: it answers with its user id, and there are no tokens.

    `start(client, redirect_uri, state)` gives the address to send the person to. `finish(query)` reads the
    address they come back to; it raises ValueError where they did not grant access. `state_parameter` is the
    parameter of that address in which the state comes back.
    """

    start: Callable[[ApiClient, str, str], str]
    finish: Callable[[Mapping[str, str]], Account]
    state_parameter: str = "state"


@dataclass(frozen=True, slots=True)
class PasswordLogin:
    """Sign-in by the person's own user name and password, for services without any OAuth.

    `login(client, user_name, password)` gives an answer in the shape of RFC 6749, 5.1. The password is kept
    in the vault as the account's refresh token, as `user_name` and `password` in JSON. `warning` is what the
    person has to know and accept before.
    """

    login: Callable[[ApiClient, str, str], Mapping[str, Any]]
    warning: str


@dataclass(frozen=True, slots=True)
class Account:
    """Who a provider says the tokens belong to; None where it does not."""

    provider_user_id: str | None
    profile: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Budget:
    """So many requests in so many seconds, of the whole application or of each account."""

    requests: int
    seconds: float
    per: Literal["application", "account"] = "application"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an answer means, where the provider does not say it by status code and Retry-After.

    `wait_seconds` with `good` says that the budget has just been used up and when there will be more. With
    `rate_limited` it is how long to wait. `message` is for people and holds nothing of the body's values.
    `for_all` tells whether it is the application that has to wait, or this account only.
    """

    kind: Literal["good", "rate_limited", "unauthorized", "forbidden", "rejected", "unavailable"]
    wait_seconds: float | None = None
    message: str | None = None
    for_all: bool = True


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a request may be signed with. No repr: it would end in a log."""

    client_id: str = field(repr=False)
    client_secret: str = field(repr=False)
    access_token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class WebhookRequest:
    """A call to our receiver: the bytes as received, header names in lower case, every value of each."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, tuple[str, ...]]
    body: bytes
    received_at: dt.datetime

    def header(self, name: str) -> str | None:
        """The header's one value; None where there is none or more than one."""
        values = self.headers.get(name.lower(), ())
        return values[0] if len(values) == 1 else None


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that a webhook says: data of `entity` came, changed or went for the days named.

    `event_id` is the provider's own, None where it has none. `kind` is `data` (the body holds it), `changed`
    (fetch it), `deleted`, `deauthorized` (the person withdrew consent at the provider), `moved` (the person's
    id is `record_ids[0]` from now on) or `other`. Days are
    the person's local ones as near as the event says, None where it names none. `callback_url` is where the
    provider says the data is to be had: anybody may have written it, so whoever follows it checks it first.
    """

    event_type: str
    kind: Literal["data", "changed", "deleted", "deauthorized", "moved", "other"]
    provider_user_id: str | None
    event_id: str | None = None
    entity: str | None = None
    window: Window | None = None
    record_ids: tuple[str, ...] = ()
    callback_url: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Subscription:
    """What a provider keeps of where it is to call: one kind of data, one address.

    `kind` is the provider's word for what is told, several joined by commas where one subscription tells them
    all. `expires_at` is None where it does not end by itself, `active` False where the provider has stopped
    calling. `secret` is what its calls are signed with, where it said so when the subscription was made.
    """

    subscription_id: str
    kind: str
    address: str = field(repr=False)
    expires_at: dt.datetime | None = None
    active: bool = True
    secret: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Subscribing:
    """What a subscription is asked for with. `token` is ours, and comes back in the provider's handshake."""

    kind: str
    address: str = field(repr=False)
    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Subscriptions:
    """How a provider is told by its API where to call.

    `per` says whose they are: the application's, asked for with the client's id and secret (`authorize` makes
    headers of them where they go into headers), or each account's, with its token. `kinds` are those we want,
    one subscription each. `list` gives all there are, at other addresses too; `create` makes one, `delete` ends
    one, and `renew` keeps one going that expires or is no longer active (None where there is no such thing).
    `service_account` is the scope of the token to ask with where that is a service account's (RFC 7523), whose key
    file HEALTH_PIPELINE_<NAME>_SERVICE_ACCOUNT names.
    `gives_secret` is True where the answer to `create`, and nothing else ever, has the secret of the calls.
    `explain(response)` says in our words why a request was refused; None where there is nothing to add. All
    raise the errors of `ApiClient.request`.
    """

    per: Literal["application", "account"]
    kinds: tuple[str, ...]
    list: Callable[[ApiClient, Credentials], Sequence[Subscription]]
    create: Callable[[ApiClient, Credentials, Subscribing], Subscription]
    delete: Callable[[ApiClient, Credentials, Subscription], None]
    renew: Callable[[ApiClient, Credentials, Subscription], Subscription] | None = None
    authorize: Callable[[Credentials], Mapping[str, str]] | None = None
    service_account: str | None = None
    gives_secret: bool = False
    explain: Callable[[httpx.Response], str | None] | None = None


@dataclass(frozen=True, slots=True)
class Webhook:
    """How a provider calls us.

    `verify(request, secrets)` is True where one of the active secrets (shared secrets, or public keys as the
    vendor publishes them) proves the call; it looks at nothing in the body but its bytes. `secret_path` is
    True where the vendor signs nothing, and an unguessable path has to do. `verify_configured` is asked besides
    where HEALTH_PIPELINE_<PROVIDER>_WEBHOOK_SECRET is set: for signatures that are not documented. `events(body)`
    reads a verified body and raises ValueError where it is none. `challenge(request, secrets)` answers a subscription's
    handshake with (status, content type, body), and is None where the vendor has none or the request is no
    handshake. `status` is what the vendor wants to hear, `refusal` what it wants for a bad signature.
    `deletes_records` is True where notices of deletion name the records: then these are gone for good.
    `signed_by_client` is True where the shared secret is the OAuth client's; `keyset_url` is where the vendor
    publishes its public keys, which change. `subscriptions` is None where the address is entered on the
    vendor's dashboard; `dashboard` says what to do there.
    """

    carries: Literal["data", "notice"]
    scheme: str
    events: Callable[[bytes], tuple[Event, ...]]
    verify: Callable[[WebhookRequest, Sequence[str]], bool] | None = None
    secret_path: bool = False
    verify_configured: Callable[[WebhookRequest, Sequence[str]], bool] | None = None
    challenge: Callable[[WebhookRequest, Sequence[str]], tuple[int, str, bytes] | None] | None = None
    status: int = 200
    refusal: int = 400
    deletes_records: bool = False
    signed_by_client: bool = False
    keyset_url: str | None = None
    subscriptions: Subscriptions | None = None
    dashboard: str | None = None

    def __post_init__(self) -> None:
        if self.verify is None and not self.secret_path:
            raise ValueError("a webhook is either signed or has a secret path")


#: The entity of a raw object that only says that there is something: nothing of it is staged.
NOTICE = "notice"

FetchFunction = Callable[["ApiClient", Entity, Window], Iterator[Page]]
#: The pages of single records, by the provider's ids, for the days of a run; ids of records that are gone give none.
FetchRecordsFunction = Callable[["ApiClient", Entity, Sequence[str], Window], Iterator[Page]]
ParseFunction = Callable[[RawDocument], Parsed]
#: The parts of a file, each a `Parsed` of its own that fits into memory. A last part may be notes alone.
StreamFunction = Callable[[RawFile], Iterator[Parsed]]
#: Confidence, 0 (not mine) to 1 (certain), that the first bytes of a file are of this kind.
SniffFunction = Callable[[bytes], float]
#: What an answer means; None for the usual reading. The second argument is the time, in epoch seconds.
InterpretFunction = Callable[["httpx.Response", float], Verdict | None]


@dataclass(frozen=True, slots=True)
class Provider:
    """A source of health data. `door` says how its bytes come: `fetch` over HTTP, `upload` as files, or
    `webhook` where calls to us are all there is.

    What is fetched may come as a file as well, in the same shape: then it has a `sniff`.

    `base_url` is None for what has a server for each organisation: HEALTH_PIPELINE_<NAME>_BASE_URL names it.

    Consent is one of `oauth`, `hosted_link` and `password`. `budgets` are the request limits known in advance,
    `limit_signal` says how the provider tells that one is used up, and `interpret` reads it (and errors in
    disguise) where it is not by 429, Retry-After and X-RateLimit-Reset. `authorize` gives the headers that
    sign a request, `Authorization: Bearer` where it is None. `poll_hours` is how often to ask without a
    webhook. `enabled` is False for what has to be switched on by HEALTH_PIPELINE_<NAME>_ENABLED. `successor`
    names the provider to connect in its place where its API is shut down: nothing is fetched from it.
    `disconnect` ends the person's consent at the provider, its webhooks too, where that is a call of its API
    rather than OAuth's revocation; `disconnect_signed` does where that call is the application's own, signed by
    its secret: its client sends no token.

    `regions` are the hosts among which a provider divides its accounts, by name. One of them serves all where
    HEALTH_PIPELINE_<NAME>_REGION names it in place of `base_url`; `region_of` tells it of each access token
    where tokens of several come side by side.

    `file_options` are what its files may not say and the person who uploads one can: words of the context, each
    with what it means.
    """

    name: str
    title: str
    door: Literal["fetch", "upload", "webhook"]
    entities: tuple[Entity, ...]
    parse: ParseFunction
    base_url: str | None = None
    regions: Mapping[str, str] = field(default_factory=dict)
    region_of: Callable[[str], str | None] | None = None
    oauth: OAuth | None = None
    hosted_link: HostedLink | None = None
    password: PasswordLogin | None = None
    authorize: Callable[[Credentials], Mapping[str, str]] | None = None
    budgets: tuple[Budget, ...] = ()
    limit_signal: str | None = None
    interpret: InterpretFunction | None = None
    webhook: Webhook | None = None
    poll_hours: int = 24
    enabled: bool = True
    fetch: FetchFunction | None = None
    #: For entities whose notices name a record and not its days.
    fetch_records: FetchRecordsFunction | None = None
    identify: Callable[[ApiClient], Account] | None = None
    disconnect: Callable[[ApiClient], None] | None = None
    disconnect_signed: Callable[[ApiClient, Credentials], None] | None = None
    sniff: SniffFunction | None = None
    file_options: Mapping[str, str] = field(default_factory=dict)
    #: For files of any size: `parse` in parts, in memory that does not grow with the file.
    parse_stream: StreamFunction | None = None
    successor: str | None = None
    #: Bumped when a parser's output changes, so that staged objects can be told from those to replay.
    parser_version: int = 1

    def entity(self, name: str) -> Entity:
        for entity in self.entities:
            if entity.name == name:
                return entity
        known = ", ".join(entity.name for entity in self.entities)
        raise KeyError(f"{self.name} has no entity {name!r}; it has {known}")


class UnreadableFileError(ValueError):
    """A file that cannot be read as a whole (empty, binary, no header). The message says what to do."""
