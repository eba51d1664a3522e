"""Operational tables (`ops.*`): who the users are, what they connected, which raw objects exist.

Derived data is not here: staging tables belong to dlt, `health.*` to dbt.
"""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.dialects import postgresql as pg

SCHEMA = "ops"


class Base(orm.DeclarativeBase):
    metadata = sa.MetaData(
        schema=SCHEMA,
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        },
    )
    type_annotation_map = {  # noqa: RUF012 - read by SQLAlchemy from the class
        dt.datetime: sa.DateTime(timezone=True),
        dict[str, Any]: pg.JSONB,
        str: sa.Text,
        uuid.UUID: pg.UUID(as_uuid=True),
    }


def _now() -> orm.Mapped[dt.datetime]:
    return orm.mapped_column(server_default=sa.func.now())


class User(Base):
    """One row a person. `handle` is the name used on the command line, made on first use.

    `time_zone` is the IANA zone of home; null while nobody has said it, never taken for UTC. `sex`, `birth_year` and
    `max_heart_rate` (a minute) are for training load; null while the person has not said them. `ai_daily_limit` is how
    often a UTC day a language model may be asked about them: a trigger of `ops.ai_audit_log` refuses more.
    """

    __tablename__ = "users"
    __table_args__ = (
        sa.CheckConstraint("sex in ('female', 'male')", name="sex"),
        sa.CheckConstraint("birth_year between 1900 and 2100", name="birth_year"),
        sa.CheckConstraint("max_heart_rate between 100 and 240", name="max_heart_rate"),
        sa.CheckConstraint("ai_daily_limit >= 0", name="ai_daily_limit"),
    )

    user_id: orm.Mapped[int] = orm.mapped_column(sa.Integer, sa.Identity(always=True), primary_key=True)
    handle: orm.Mapped[str] = orm.mapped_column(unique=True)
    time_zone: orm.Mapped[str | None]
    created_at: orm.Mapped[dt.datetime] = _now()
    sex: orm.Mapped[str | None]
    birth_year: orm.Mapped[int | None] = orm.mapped_column(sa.SmallInteger)
    max_heart_rate: orm.Mapped[int | None] = orm.mapped_column(sa.SmallInteger)
    ai_daily_limit: orm.Mapped[int] = orm.mapped_column(sa.SmallInteger, server_default="10")


class Subject(Base):
    """The random id that stands for a user in the raw store. Destroying the row unlinks the objects.

    `user_id` is null for what a provider sent of somebody who is not connected (yet).
    """

    __tablename__ = "subjects"

    subject_id: orm.Mapped[uuid.UUID] = orm.mapped_column(primary_key=True)
    user_id: orm.Mapped[int | None] = orm.mapped_column(
        sa.ForeignKey(User.user_id, ondelete="CASCADE"), unique=True
    )


class ProviderAccount(Base):
    """One row a user and provider: the connection and how its last sync went."""

    __tablename__ = "provider_accounts"
    __table_args__ = (
        sa.UniqueConstraint("user_id", "provider"),
        # Whose a webhook is, is asked for each call.
        sa.Index(None, "provider", "provider_user_id"),
        sa.CheckConstraint("status in ('active', 'pending', 'error', 'disconnected')", name="status"),
    )

    account_id: orm.Mapped[int] = orm.mapped_column(sa.Integer, sa.Identity(always=True), primary_key=True)
    user_id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey(User.user_id, ondelete="CASCADE"))
    provider: orm.Mapped[str]
    provider_user_id: orm.Mapped[str | None]
    status: orm.Mapped[str] = orm.mapped_column(server_default="pending")
    last_sync_at: orm.Mapped[dt.datetime | None]
    last_error: orm.Mapped[str | None]
    details: orm.Mapped[dict[str, Any]] = orm.mapped_column("metadata", server_default=sa.text("'{}'::jsonb"))
    created_at: orm.Mapped[dt.datetime] = _now()


class ConnectorToken(Base):
    """The token pair of an account, encrypted by the vault. `key_id` names the key that can read it."""

    __tablename__ = "connector_tokens"

    account_id: orm.Mapped[int] = orm.mapped_column(
        sa.ForeignKey(ProviderAccount.account_id, ondelete="CASCADE"), primary_key=True
    )
    key_id: orm.Mapped[str]
    access_token: orm.Mapped[bytes]
    refresh_token: orm.Mapped[bytes | None]
    expires_at: orm.Mapped[dt.datetime | None]
    scopes: orm.Mapped[list[str]] = orm.mapped_column(pg.ARRAY(sa.Text), server_default="{}")
    updated_at: orm.Mapped[dt.datetime] = _now()


class ConsentEntry(Base):
    """Append-only ledger of what a user agreed to and withdrew; a trigger refuses changes.

    The newest entry of a user and provider counts: nothing is fetched after a withdrawal or after `expires_at`.
    `text` is what the person was shown, null where nobody was shown one.
    """

    __tablename__ = "connector_consent_ledger"

    entry_id: orm.Mapped[int] = orm.mapped_column(sa.BigInteger, sa.Identity(always=True), primary_key=True)
    user_id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey(User.user_id, ondelete="CASCADE"))
    provider: orm.Mapped[str]
    event: orm.Mapped[str] = orm.mapped_column()
    scopes: orm.Mapped[list[str]] = orm.mapped_column(pg.ARRAY(sa.Text), server_default="{}")
    text_version: orm.Mapped[str]
    text: orm.Mapped[str | None]
    expires_at: orm.Mapped[dt.datetime | None]
    recorded_at: orm.Mapped[dt.datetime] = _now()

    __table_args__ = (
        sa.CheckConstraint("event in ('granted', 'withdrawn')", name="event"),
        sa.Index(None, "user_id", "provider", "entry_id"),
    )


class ApiToken(Base):
    """One row a token that reads one user's data over HTTP, `hp_<token_id>_<secret>`: kept is the secret's SHA-256.

    `scopes` are of read, sync, upload and connect.
    """

    __tablename__ = "api_tokens"
    __table_args__ = (sa.Index(None, "user_id"),)

    token_id: orm.Mapped[int] = orm.mapped_column(sa.Integer, sa.Identity(always=True), primary_key=True)
    user_id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey(User.user_id, ondelete="CASCADE"))
    secret_sha256: orm.Mapped[bytes]
    scopes: orm.Mapped[list[str]] = orm.mapped_column(pg.ARRAY(sa.Text))
    created_at: orm.Mapped[dt.datetime] = _now()
    expires_at: orm.Mapped[dt.datetime | None]
    revoked_at: orm.Mapped[dt.datetime | None]
    last_used_at: orm.Mapped[dt.datetime | None]


class OAuthState(Base):
    """One row a person on their way to consent. `state` itself is not kept, only its SHA-256.

    Good once, until `expires_at`. `code_verifier` (PKCE) is encrypted by the vault.
    """

    __tablename__ = "oauth_states"

    state_sha256: orm.Mapped[bytes] = orm.mapped_column(primary_key=True)
    user_id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey(User.user_id, ondelete="CASCADE"))
    provider: orm.Mapped[str]
    redirect_uri: orm.Mapped[str]
    key_id: orm.Mapped[str | None]
    code_verifier: orm.Mapped[bytes | None]
    consent_version: orm.Mapped[str]
    consent_text: orm.Mapped[str]
    consent_expires_at: orm.Mapped[dt.datetime | None]
    created_at: orm.Mapped[dt.datetime] = _now()
    expires_at: orm.Mapped[dt.datetime]
    used_at: orm.Mapped[dt.datetime | None]


class Identity(Base):
    """What a system calls a user. Grain: system, id. `system` is a provider, or who else gives out ids.

    A provider's sandbox is a system of its own (`sandbox:oura`); `handle` holds the names of users that were
    merged into this one.
    """

    __tablename__ = "identities"
    __table_args__ = (sa.Index(None, "user_id"),)

    system: orm.Mapped[str] = orm.mapped_column(primary_key=True)
    external_id: orm.Mapped[str] = orm.mapped_column(primary_key=True)
    user_id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey(User.user_id, ondelete="CASCADE"))
    created_at: orm.Mapped[dt.datetime] = _now()


class VaultKey(Base):
    """One row a key that tokens were ever encrypted with, by its id. One of them is the active one.

    Whoever writes a token does so with the active key, see `connections.accounts.writing_key`.
    """

    __tablename__ = "vault_keys"
    __table_args__ = (
        sa.Index("uq_vault_keys_active", "active", unique=True, postgresql_where=sa.text("active")),
    )

    key_id: orm.Mapped[str] = orm.mapped_column(primary_key=True)
    active: orm.Mapped[bool]
    created_at: orm.Mapped[dt.datetime] = _now()
    retired_at: orm.Mapped[dt.datetime | None]


class RawObject(Base):
    """One row an effective receipt of bytes: which object, whose, when it came, by which door.

    `partition_start` to `partition_end` are the day partitions the object belongs to: the days asked for
    (fetch) or the day of receipt (upload, webhook), UTC. `data_start_date` to `data_end_date` are the local
    days of the records inside, known once the object was parsed. The same bytes are registered again only
    when something newer came between (a provider went back to an earlier version), see `raw.index`.
    """

    __tablename__ = "raw_objects"
    __table_args__ = (
        sa.CheckConstraint("door in ('fetch', 'upload', 'webhook')", name="door"),
        sa.CheckConstraint("partition_start <= partition_end", name="partitions"),
        sa.Index(None, "subject_id", "provider", "entity", "sha256"),
        sa.Index(None, "provider", "partition_start", "partition_end"),
        # What came lately, and how far the data reaches (health.sync_health), without reading all receipts.
        sa.Index(None, "provider", "received_at"),
        sa.Index(None, "provider", "data_end_date"),
    )

    raw_object_id: orm.Mapped[int] = orm.mapped_column(
        sa.BigInteger, sa.Identity(always=True), primary_key=True
    )
    provider: orm.Mapped[str]
    entity: orm.Mapped[str]
    subject_id: orm.Mapped[uuid.UUID] = orm.mapped_column(sa.ForeignKey(Subject.subject_id))
    door: orm.Mapped[str]
    received_at: orm.Mapped[dt.datetime]
    partition_start: orm.Mapped[dt.date]
    partition_end: orm.Mapped[dt.date]
    data_start_date: orm.Mapped[dt.date | None]
    data_end_date: orm.Mapped[dt.date | None]
    sha256: orm.Mapped[str]
    size_bytes: orm.Mapped[int] = orm.mapped_column(sa.BigInteger)
    stored_bytes: orm.Mapped[int] = orm.mapped_column(sa.BigInteger)
    object_key: orm.Mapped[str]
    content_type: orm.Mapped[str]
    time_zone: orm.Mapped[str | None]
    context: orm.Mapped[dict[str, Any]] = orm.mapped_column(server_default=sa.text("'{}'::jsonb"))


class InboxFile(Base):
    """One row a file seen in the watched folder: taken into raw, or refused with the reason."""

    __tablename__ = "inbox_files"
    __table_args__ = (sa.CheckConstraint("state in ('received', 'rejected')", name="state"),)

    location: orm.Mapped[str] = orm.mapped_column(primary_key=True)
    fingerprint: orm.Mapped[str] = orm.mapped_column(primary_key=True)
    state: orm.Mapped[str]
    message: orm.Mapped[str | None]
    raw_object_id: orm.Mapped[int | None] = orm.mapped_column(sa.BigInteger)
    seen_at: orm.Mapped[dt.datetime] = _now()


class Goal(Base):
    """What a user wants a metric to reach. One goal a user and metric."""

    __tablename__ = "goals"

    user_id: orm.Mapped[int] = orm.mapped_column(
        sa.ForeignKey(User.user_id, ondelete="CASCADE"), primary_key=True
    )
    metric_type: orm.Mapped[str] = orm.mapped_column(primary_key=True)
    target_value: orm.Mapped[float]
    target_date: orm.Mapped[dt.date | None]
    created_at: orm.Mapped[dt.datetime] = _now()


class AlertState(Base):
    """What became of an alert of `health.alerts`, by its key: seen by the person, sent, tried in vain.

    `last_error` is a message without payload or address.
    """

    __tablename__ = "alert_states"

    user_id: orm.Mapped[int] = orm.mapped_column(
        sa.ForeignKey(User.user_id, ondelete="CASCADE"), primary_key=True
    )
    local_date: orm.Mapped[dt.date] = orm.mapped_column(primary_key=True)
    kind: orm.Mapped[str] = orm.mapped_column(primary_key=True)
    episode: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    acknowledged_at: orm.Mapped[dt.datetime | None]
    sent_at: orm.Mapped[dt.datetime | None]
    attempts: orm.Mapped[int] = orm.mapped_column(server_default="0")
    next_attempt_at: orm.Mapped[dt.datetime | None]
    last_error: orm.Mapped[str | None]


class AiAuditEntry(Base):
    """One row a question to a language model: what was asked, what came, and whether its words were taken.

    `decision` is `asked` until there is an answer; then `accepted`, `rejected` (with the reason) or `failed`.
    """

    __tablename__ = "ai_audit_log"
    __table_args__ = (
        sa.CheckConstraint("decision in ('asked', 'accepted', 'rejected', 'failed')", name="decision"),
        sa.Index(None, "user_id", "recorded_at"),
    )

    entry_id: orm.Mapped[int] = orm.mapped_column(sa.BigInteger, sa.Identity(always=True), primary_key=True)
    user_id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey(User.user_id, ondelete="CASCADE"))
    recorded_at: orm.Mapped[dt.datetime] = _now()
    local_date: orm.Mapped[dt.date]
    subject: orm.Mapped[str]
    model: orm.Mapped[str]
    prompt: orm.Mapped[str]
    prompt_sha256: orm.Mapped[str]
    answer: orm.Mapped[str | None]
    prompt_tokens: orm.Mapped[int | None]
    completion_tokens: orm.Mapped[int | None]
    decision: orm.Mapped[str] = orm.mapped_column(server_default="asked")
    reason: orm.Mapped[str | None]


class SourcePriority(Base):
    """Which source a user trusts for a metric (`*`: for all that have no row of their own). The lowest comes first."""

    __tablename__ = "source_priorities"

    user_id: orm.Mapped[int] = orm.mapped_column(
        sa.ForeignKey(User.user_id, ondelete="CASCADE"), primary_key=True
    )
    metric_type: orm.Mapped[str] = orm.mapped_column(primary_key=True)
    source: orm.Mapped[str] = orm.mapped_column(primary_key=True)
    priority: orm.Mapped[int]


#: The one secret that seals which person a session reads as (ops.seal_subject, ops.subject_id).
session_seal = sa.Table("session_seal", Base.metadata, sa.Column("secret", sa.LargeBinary, nullable=False))


class IngestionJob(Base):
    """One row a piece of ingestion somebody or something asked for: what it takes, and how far it is.

    `window_start` to `window_end` are the local days asked for, both included. `windows_done` of `windows_total` is
    the progress; `last_error` is a message without payload or token. `run_id` is the Dagster run that works on it.
    A job that is `requested` waits for the sensor that asks for a run of it. `raw_object_id` is the file of an
    upload over HTTP; its days are the partition of that object.
    """

    __tablename__ = "ingestion_jobs"
    __table_args__ = (
        sa.CheckConstraint("kind in ('sync', 'backfill', 'reconcile', 'upload', 'webhook')", name="kind"),
        sa.CheckConstraint(
            "status in ('requested', 'queued', 'running', 'done', 'failed', 'cancelled')", name="status"
        ),
        sa.CheckConstraint("window_start <= window_end", name="window"),
        sa.Index(None, "provider", "status"),
        sa.Index(None, "user_id", "created_at"),
        # An object that is erased is found here without reading all jobs.
        sa.Index(None, "raw_object_id"),
    )

    job_id: orm.Mapped[int] = orm.mapped_column(sa.BigInteger, sa.Identity(always=True), primary_key=True)
    kind: orm.Mapped[str]
    provider: orm.Mapped[str]
    user_id: orm.Mapped[int | None] = orm.mapped_column(sa.ForeignKey(User.user_id, ondelete="CASCADE"))
    entity: orm.Mapped[str | None]
    raw_object_id: orm.Mapped[int | None] = orm.mapped_column(
        sa.BigInteger, sa.ForeignKey(RawObject.raw_object_id, ondelete="SET NULL")
    )
    window_start: orm.Mapped[dt.date | None]
    window_end: orm.Mapped[dt.date | None]
    status: orm.Mapped[str] = orm.mapped_column(server_default="queued")
    requests_done: orm.Mapped[int] = orm.mapped_column(server_default="0")
    windows_done: orm.Mapped[int] = orm.mapped_column(server_default="0")
    windows_total: orm.Mapped[int | None]
    objects_new: orm.Mapped[int] = orm.mapped_column(server_default="0")
    last_error: orm.Mapped[str | None]
    run_id: orm.Mapped[str | None]
    created_at: orm.Mapped[dt.datetime] = _now()
    started_at: orm.Mapped[dt.datetime | None]
    finished_at: orm.Mapped[dt.datetime | None]
    updated_at: orm.Mapped[dt.datetime] = _now()


class FetchedWindow(Base):
    """One row a window of an entity whose answer is already raw: where a backfill resumes, where the gaps are.

    `window_start` to `window_end` are local days, both included.
    """

    __tablename__ = "fetched_windows"
    __table_args__ = (sa.CheckConstraint("window_start <= window_end", name="window"),)

    account_id: orm.Mapped[int] = orm.mapped_column(
        sa.ForeignKey(ProviderAccount.account_id, ondelete="CASCADE"), primary_key=True
    )
    entity: orm.Mapped[str] = orm.mapped_column(primary_key=True)
    window_start: orm.Mapped[dt.date] = orm.mapped_column(primary_key=True)
    window_end: orm.Mapped[dt.date] = orm.mapped_column(primary_key=True)
    fetched_at: orm.Mapped[dt.datetime] = _now()


class WebhookEvent(Base):
    """One row an event a provider announced: received, waiting for its next try, processed or dead-lettered.

    `provider_event_id` is the provider's id of the event, or one made from its bytes where it sends none, so that a
    delivery that is repeated is one row. `account_id` is null while nobody is known by `provider_user_id`.
    """

    __tablename__ = "webhook_events"
    __table_args__ = (
        sa.CheckConstraint("state in ('pending', 'processing', 'processed', 'dead')", name="state"),
        sa.UniqueConstraint("provider", "provider_event_id"),
        sa.Index(None, "state", "next_try_at"),
        sa.Index(None, "received_at"),
        # What is erased with an account or an object is found without reading all events.
        sa.Index(None, "account_id"),
        sa.Index(None, "raw_object_id"),
    )

    event_id: orm.Mapped[int] = orm.mapped_column(sa.BigInteger, sa.Identity(always=True), primary_key=True)
    provider: orm.Mapped[str]
    provider_event_id: orm.Mapped[str]
    event_type: orm.Mapped[str]
    kind: orm.Mapped[str] = orm.mapped_column(server_default="other")
    entity: orm.Mapped[str | None]
    provider_user_id: orm.Mapped[str | None]
    account_id: orm.Mapped[int | None] = orm.mapped_column(
        sa.ForeignKey(ProviderAccount.account_id, ondelete="CASCADE")
    )
    received_at: orm.Mapped[dt.datetime] = _now()
    state: orm.Mapped[str] = orm.mapped_column(server_default="pending")
    attempts: orm.Mapped[int] = orm.mapped_column(server_default="0")
    next_try_at: orm.Mapped[dt.datetime | None]
    error: orm.Mapped[str | None]
    raw_object_id: orm.Mapped[int | None] = orm.mapped_column(
        sa.BigInteger, sa.ForeignKey(RawObject.raw_object_id, ondelete="SET NULL")
    )
    #: The Dagster run that worked on it last.
    run_id: orm.Mapped[str | None]
    #: Where its trace goes on: the W3C traceparent of its acceptance.
    trace_id: orm.Mapped[str | None]
    updated_at: orm.Mapped[dt.datetime] = _now()


class WebhookTarget(Base):
    """One row a provider whose webhooks are to reach us by subscription, in the real world or in the sandbox.

    It is there from `webhooks subscribe` to `webhooks delete`; the daily run keeps its subscriptions up.
    `checked_at` and `last_error` are of the newest comparison with what the provider has.
    """

    __tablename__ = "webhook_targets"

    provider: orm.Mapped[str] = orm.mapped_column(primary_key=True)
    environment: orm.Mapped[str] = orm.mapped_column(primary_key=True)
    created_at: orm.Mapped[dt.datetime] = _now()
    checked_at: orm.Mapped[dt.datetime | None]
    last_error: orm.Mapped[str | None]


class WebhookSubscription(Base):
    """One row a subscription that we made at a provider and that stood there when it was last looked at.

    `account_id` is null where it is the application's. `address_sha256` is of the address that is called, which
    holds a secret for some. `secret` is what the provider signs with, where it gave one, encrypted by the vault.
    """

    __tablename__ = "webhook_subscriptions"
    __table_args__ = (
        sa.ForeignKeyConstraint(
            ["provider", "environment"],
            [WebhookTarget.provider, WebhookTarget.environment],
            ondelete="CASCADE",
        ),
        sa.UniqueConstraint(
            "provider",
            "environment",
            "account_id",
            "kind",
            "address_sha256",
            name="uq_webhook_subscriptions_key",
            postgresql_nulls_not_distinct=True,
        ),
        sa.CheckConstraint("(secret is null) = (key_id is null)", name="secret"),
        sa.Index(None, "account_id"),
    )

    subscription_id: orm.Mapped[int] = orm.mapped_column(
        sa.BigInteger, sa.Identity(always=True), primary_key=True
    )
    provider: orm.Mapped[str]
    environment: orm.Mapped[str]
    account_id: orm.Mapped[int | None] = orm.mapped_column(
        sa.ForeignKey(ProviderAccount.account_id, ondelete="CASCADE")
    )
    kind: orm.Mapped[str]
    provider_subscription_id: orm.Mapped[str]
    address_sha256: orm.Mapped[str]
    expires_at: orm.Mapped[dt.datetime | None]
    key_id: orm.Mapped[str | None]
    secret: orm.Mapped[bytes | None]
    created_at: orm.Mapped[dt.datetime] = _now()
    updated_at: orm.Mapped[dt.datetime] = _now()


class Counter(Base):
    """One row a count, provider and bucket of a histogram (`` where it is none). It only grows.

    Added to in one statement by processes that nobody scrapes; told by the receiver's metrics.
    """

    __tablename__ = "counters"

    name: orm.Mapped[str] = orm.mapped_column(primary_key=True)
    provider: orm.Mapped[str] = orm.mapped_column(primary_key=True)
    bucket: orm.Mapped[str] = orm.mapped_column(primary_key=True, server_default="")
    value: orm.Mapped[float] = orm.mapped_column(sa.Double)
