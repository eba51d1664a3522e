"""People: what they say of themselves (`user set`), and two users that are one person (`user merge`)."""

from __future__ import annotations

import datetime as dt

import sqlalchemy as sa

from health_pipeline.connections.users import require_user
from health_pipeline.ingestion.erasure import delete_derived
from health_pipeline.warehouse.connection import Warehouse
from health_pipeline.warehouse.models import User


class MergeError(RuntimeError):
    """The two cannot be one person as things are; the message says what to do first."""


#: Tables of a user whose rows move as they are.
_MOVED = (
    "connector_consent_ledger",
    "oauth_states",
    "identities",
    "ingestion_jobs",
    "ai_audit_log",
    "api_tokens",
)
#: Those with rows a metric, which make sense together only: what the user who stays has of a metric counts.
_OF_METRICS = ("goals", "source_priorities")
#: What one of the two may know of the person.
_OF_PEOPLE = ("time_zone", "sex", "birth_year", "max_heart_rate")


def set_profile(
    warehouse: Warehouse,
    handle: str,
    *,
    sex: str | None = None,
    birth_year: int | None = None,
    max_heart_rate: int | None = None,
) -> str:
    """Note what a person says of themselves; what is None stays. Says what is known now.

    Training loads are computed anew with the next run, from the person's first day on. Raises LookupError for an
    unknown user, ValueError for what nobody can be or where nothing is said.
    """
    said = {"sex": sex, "birth_year": birth_year, "max_heart_rate": max_heart_rate}
    values = {name: value for name, value in said.items() if value is not None}
    if not values:
        raise ValueError("say at least one of --sex, --birth-year and --max-heart-rate")
    if sex not in (None, "female", "male"):
        raise ValueError(f"{sex!r} has no formula of its own: female or male, or nothing")
    this_year = dt.datetime.now(dt.UTC).year
    if birth_year is not None and not this_year - 120 <= birth_year <= this_year:
        raise ValueError(f"nobody alive was born in {birth_year}")
    if max_heart_rate is not None and not 100 <= max_heart_rate <= 240:
        raise ValueError(
            f"a highest heart rate of {max_heart_rate} is not believable: 100 to 240 a minute are"
        )
    with warehouse.engine.begin() as connection:
        user = require_user(connection, handle)
        known = connection.execute(
            sa.update(User)
            .where(User.user_id == user.user_id)
            .values(values)
            .returning(User.sex, User.birth_year, User.max_heart_rate)
        ).one()
        if connection.execute(sa.text("select to_regclass('health._changed_daily')")).scalar() is not None:
            connection.execute(
                sa.text(
                    "insert into health._changed_daily (user_id, local_date, metric_type) "
                    "select user_id, min(local_date), 'profile' from health.workouts where user_id = :user "
                    "group by user_id"
                ),
                {"user": user.user_id},
            )
    parts = (
        known.sex,
        None if known.birth_year is None else f"born in {known.birth_year}",
        None if known.max_heart_rate is None else f"highest heart rate {known.max_heart_rate}",
    )
    return f"{handle}: {', '.join(filter(None, parts))}"


def merge_users(warehouse: Warehouse, handle: str, into: str) -> str:
    """Give all that is one user's to another, in one transaction, and forget the first. Returns what was done.

    Accounts, consents, identities, jobs and raw objects move; goals and ranks do where the other has none. What
    was derived of the one is deleted: the next run derives it from the same objects for the other.

    Raises LookupError for an unknown user, ValueError for one user twice, MergeError where both have an account
    of the same provider that is in use.
    """
    if handle == into:
        raise ValueError("a user cannot be merged into itself")
    with warehouse.engine.begin() as connection:
        source, target = require_user(connection, handle), require_user(connection, into)
        ids = {"source": source.user_id, "target": target.user_id}

        def run(statement: str, **more: int) -> int:
            return int(connection.execute(sa.text(statement), {**ids, **more}).rowcount)

        run("select from ops.users where user_id in (:source, :target) order by user_id for update")
        _check_accounts(connection, ids, into)
        consents = _consents_in_force(connection, ids)
        # One of the two is in use at most; the other's tokens and windows go with it.
        run(
            "delete from ops.provider_accounts as lesser using ops.provider_accounts as better "
            "where better.provider = lesser.provider and (lesser.user_id, better.user_id) in "
            "((:source, :target), (:target, :source)) and lesser.status = 'disconnected' "
            "and (better.status <> 'disconnected' or lesser.user_id = :source)"
        )
        accounts = run("update ops.provider_accounts set user_id = :target where user_id = :source")
        for table in _MOVED:
            run(f"update ops.{table} set user_id = :target where user_id = :source")  # noqa: S608
        for entry_id in consents:
            # The ledger keeps both stories; what counts is the last word about the account that is in use.
            run(
                "insert into ops.connector_consent_ledger (user_id, provider, event, scopes, text_version, text, "
                "expires_at) select user_id, provider, event, scopes, text_version, text, expires_at "
                "from ops.connector_consent_ledger as said where entry_id = :entry and exists "
                "(select from ops.connector_consent_ledger as later where later.user_id = said.user_id "
                "and later.provider = said.provider and later.entry_id > said.entry_id)",
                entry=entry_id,
            )
        for table in _OF_METRICS:
            run(
                f"update ops.{table} set user_id = :target where user_id = :source and metric_type not in "  # noqa: S608
                f"(select metric_type from ops.{table} where user_id = :target)"
            )
        objects = _move_objects(connection, ids)
        delete_derived(connection, source.user_id, None)
        known = ", ".join(f"{name} = coalesce(target.{name}, source.{name})" for name in _OF_PEOPLE)
        run(
            f"update ops.users as target set {known} from ops.users as source "  # noqa: S608
            "where source.user_id = :source and target.user_id = :target"
        )
        run("delete from ops.users where user_id = :source")
        connection.execute(
            sa.text(
                "insert into ops.identities (system, external_id, user_id) values ('handle', :handle, :target) "
                "on conflict (system, external_id) do update set user_id = excluded.user_id"
            ),
            {"handle": handle, **ids},
        )
    return (
        f"{handle} is {into} now: {accounts} accounts and {objects:,} raw objects moved; the next run derives the rest "
        "(health-pipeline refresh)"
    )


def _check_accounts(connection: sa.Connection, ids: dict[str, int], into: str) -> None:
    both = connection.execute(
        sa.text(
            "select provider from ops.provider_accounts where user_id in (:source, :target) "
            "and status <> 'disconnected' group by provider having count(*) = 2 order by provider"
        ),
        ids,
    ).scalars()
    names = ", ".join(both)
    if names:
        raise MergeError(
            f"both have an account of {names} in use; disconnect the one that is not to be {into}'s first"
        )


def _consents_in_force(connection: sa.Connection, ids: dict[str, int]) -> list[int]:
    """The newest entry of the ledger for each account that is in use, by its number."""
    query = (
        "select max(entry_id) from ops.connector_consent_ledger inner join ops.provider_accounts "
        "using (user_id, provider) where user_id in (:source, :target) and status <> 'disconnected' "
        "group by user_id, provider order by 1"
    )
    return [int(entry_id) for entry_id in connection.execute(sa.text(query), ids).scalars()]


def _move_objects(connection: sa.Connection, ids: dict[str, int]) -> int:
    """Raw objects change whose they are; their keys, which nobody reads anything from, stay."""
    subjects = {
        row.user_id: row.subject_id
        for row in connection.execute(
            sa.text(
                "select user_id, subject_id from ops.subjects where user_id in (:source, :target) for update"
            ),
            ids,
        )
    }
    mine, theirs = subjects.get(ids["source"]), subjects.get(ids["target"])
    if mine is None:
        return 0
    given = {"mine": mine, "theirs": theirs, **ids}
    if theirs is None:
        connection.execute(
            sa.text("update ops.subjects set user_id = :target where user_id = :source"), given
        )
        counted = connection.execute(
            sa.text("select count(*) from ops.raw_objects where subject_id = :mine"), given
        )
        return int(counted.scalar_one())
    moved = connection.execute(
        sa.text("update ops.raw_objects set subject_id = :theirs where subject_id = :mine"), given
    ).rowcount
    connection.execute(sa.text("delete from ops.subjects where subject_id = :mine"), given)
    return int(moved)
