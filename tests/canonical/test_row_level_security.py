"""What analysts and the people themselves see of schema `health`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import orjson
import pytest
import sqlalchemy as sa
from canonical_lab import Lab
from histories import History

from health_pipeline.warehouse.dbt_project import ensure_manifest
from health_pipeline.warehouse.engine_tables import ensure_engine_tables

_FILL_ENGINE = """
insert into health.baselines select user_id, date '2026-03-01', 'steps', 'oura', 1, 1, 1, 14, date '2026-02-01',
    date '2026-02-28', 1, 'identity', 1, 7 from ops.users;
insert into health.training_loads (user_id, local_date, intensity_assumed, workout_count, worn, days_of_history,
    missing_days) select user_id, date '2026-03-01', false, 0, true, 1, 0 from ops.users;
insert into health.recovery_scores (user_id, local_date, method, recovery_score, score_low, score_high,
    weight_stress, weight_sleep, weight_heart_rate, weight_load, present_weight, baseline_days, explanation)
    select user_id, date '2026-03-01', 'seed', 75, 70, 80, 0.25, 0.3, 0.2, 0.25, 1, 14, '' from ops.users;
insert into health.forecasts (user_id, metric_type, as_of_date, n_days, window_start, window_end,
    projected_reason, sentence) select user_id, 'steps', date '2026-03-01', 14, date '2026-02-01',
    date '2026-03-01', '', '' from ops.users;
"""
_FILL_OPERATIONS = """
insert into ops.provider_accounts (user_id, provider, status, last_sync_at)
    select user_id, 'oura', 'active', now() from ops.users;
insert into ops.webhook_events (provider, provider_event_id, event_type, account_id)
    select 'oura', account_id || '-' || number, 'sleep', account_id
    from ops.provider_accounts cross join generate_series(1, 3) as number;
insert into ops.webhook_events (provider, provider_event_id, event_type) values ('oura', 'of nobody', 'sleep');
insert into ops.ingestion_jobs (kind, provider, user_id, status)
    select 'sync', 'oura', user_id, 'failed' from ops.users;
"""
_SECURED = """
select format('%I.%I', nspname, relname) as name
from pg_class inner join pg_namespace on pg_namespace.oid = relnamespace
where nspname = 'health' and relkind in ('r', 'p') and relrowsecurity and relforcerowsecurity
"""
_OF_TYPE = {
    "text": "'x'",
    "integer": "1",
    "bigint": "1",
    "double precision": "1",
    "boolean": "true",
    "date": "date '2026-03-01'",
    "timestamp with time zone": "timestamptz '2026-03-01'",
    "jsonb": "'{}'",
}
#: Of columns that may not hold just anything.
_ALLOWED = {"document_kind": "'report'", "reading_type": "'cgm'", "coverage": "1"}
_TABLE_BREACHES = (
    "alter table {} disable row level security",
    "drop policy subject_reads_own on {}",
    "alter policy subject_reads_own on {} using (true)",
    "create policy careless on {} for select to health_subject using (true)",
)
_INVOKER_VIEWS = """
select format('%I.%I', nspname, relname) as name
from pg_class inner join pg_namespace on pg_namespace.oid = relnamespace
inner join pg_attribute on attrelid = pg_class.oid and attname = 'user_id'
where nspname = 'health' and relkind = 'v' and 'security_invoker=true' = any(reloptions)
"""
#: Permission denied; or, for some views, that Postgres could not write into it, whoever asks.
_REFUSALS = {"r": {"42501"}, "p": {"42501"}, "v": {"42501", "55000", "42809"}}


@pytest.fixture(scope="module")
def filled(lab_of_module: Lab) -> Lab:
    """Rows of several people in every table, the engine's too."""
    lab = lab_of_module
    history = History(4, people=4, steps=16, runs=1)
    history.send(lab, 0)
    lab.run()
    ensure_engine_tables(lab.warehouse)
    lab.execute(_FILL_ENGINE)
    lab.execute(_FILL_OPERATIONS)
    for name, users in relations(lab).items():
        person = {lab.user("person-1")}
        if kinds_of(lab)[name] in "rp" and not _is_partition(lab, name) and not person < users:
            _fill(lab, name)
    return lab


def test_person_sees_own_rows_alone(filled: Lab) -> None:
    person = filled.user("person-1")
    tables = relations(filled)
    assert {"health.health_metrics", "health.forecasts", "health.metric_quarantine"} <= tables.keys()
    assert any(name.startswith("health.health_metrics_2026_") for name in tables)

    with _as(filled, "health_subject", person) as connection:
        seen = {name: _users(connection, name) for name in tables}

    assert seen == {name: users & {person} for name, users in tables.items()}
    assert {person} in seen.values()


def test_the_reading_test_goes_red_for_every_policy(filled: Lab) -> None:
    """One by one: row-level security off, the person's policy dropped, opened, or another beside it; a view that
    reads as its owner. What a person sees must then differ from what they should, on every relation."""
    person = filled.user("person-1")
    tables, kinds = relations(filled), kinds_of(filled)
    secured = {row["name"] for row in filled.rows(_SECURED)}
    assert secured == {name for name in tables if kinds[name] in "rp"}
    # As its owner, health_summary would still read latest_metrics, which restricts the rows by itself.
    views = {row["name"] for row in filled.rows(_INVOKER_VIEWS)} - {"health.health_summary"}
    assert views
    breaches = [
        *((name, breach.format(name)) for name in sorted(secured) for breach in _TABLE_BREACHES),
        *((name, f"alter view {name} set (security_invoker = false)") for name in sorted(views)),
    ]
    with filled.warehouse.engine.connect() as connection:
        unseen = [
            breach
            for name, breach in breaches
            if _seen_after(connection, breach, name, person) == tables[name] & {person}
        ]
    assert unseen == []


def test_a_new_relation_is_closed_until_it_is_secured(filled: Lab) -> None:
    """Whatever somebody adds to `health`: no reader sees it before ops.secure_table, and then own rows alone."""
    person, other = filled.user("person-1"), filled.user("person-2")
    with filled.warehouse.engine.connect() as connection:
        connection.exec_driver_sql(
            "create table health.added (user_id integer, seen_at timestamptz not null) partition by range (seen_at)"
        )
        connection.exec_driver_sql("create table health.added_2026 partition of health.added default")
        connection.exec_driver_sql(
            f"insert into health.added select id, now() from unnest(array[{person}, {other}]) as id"
        )
        for role in ("health_subject", "health_analyst"):
            _become(connection, role, person)
            assert _refusal_kept(connection, "select * from health.added") == "42501"
            connection.exec_driver_sql("reset role")
        for name in ("health.added", "health.added_2026"):
            connection.execute(sa.text("select ops.secure_table(:name)"), {"name": name})
        for role, seen in (("health_subject", {person}), ("health_analyst", {person, other})):
            _become(connection, role, person)
            assert _users(connection, "health.added") == seen
            assert _users(connection, "health.added_2026") == seen
            connection.exec_driver_sql("reset role")
        connection.rollback()


def test_a_table_is_secured_beside_one_that_gathers_its_statistics(filled: Lab) -> None:
    """`analyze`, as autovacuum does it too, writes the table's row in `pg_class` while it holds the table."""
    filled.execute("create table health.busy (user_id integer)")
    engine = filled.warehouse.engine
    with ThreadPoolExecutor(1) as pool, engine.connect() as analysing:
        analysing.exec_driver_sql("lock table health.busy in share update exclusive mode")
        securing = pool.submit(filled.execute, "select ops.secure_table('health.busy')")
        while (
            not securing.done()
            and not filled.one("select exists (select from pg_locks where not granted) as it")["it"]
        ):
            time.sleep(0.01)
        analysing.exec_driver_sql("analyze health.busy")
        analysing.commit()
        securing.result(timeout=30)
    assert filled.one("select relrowsecurity from pg_class where oid = 'health.busy'::regclass")[
        "relrowsecurity"
    ]
    filled.execute("drop table health.busy")


def test_person_without_a_name_sees_nothing(filled: Lab) -> None:
    with _as(filled, "health_subject") as connection:
        seen = {name for name in relations(filled) if _users(connection, name)}

    assert seen == set()


def test_a_person_cannot_say_they_are_somebody_else(filled: Lab) -> None:
    """Not by the bare number, not by the seal of another session, not by sealing themselves."""
    first, second = filled.user("person-1"), filled.user("person-2")
    with _as(filled, "health_subject", second) as connection:
        others = connection.execute(sa.text("select current_setting('health.user_id')")).scalar_one()
    with _as(filled, "health_subject", first) as connection:
        own = connection.execute(sa.text("select current_setting('health.user_id')")).scalar_one()
        assert own != others
        for claim in (
            str(second),
            others,
            own.replace(f"{first}:", f"{second}:"),
            f"{second}:{'0' * 64}",
            "x",
            "",
        ):
            connection.execute(sa.text("select set_config('health.user_id', :claim, true)"), {"claim": claim})
            assert _users(connection, "health.health_metrics") == set(), claim
    with _as(filled, "health_subject", first) as connection:
        assert _refusal(connection, f"select ops.seal_subject({second})") == "42501"


@pytest.mark.parametrize("role", ["health_subject", "health_analyst"])
def test_nobody_writes(filled: Lab, role: str) -> None:
    kinds = kinds_of(filled)
    for name in relations(filled):
        for statement in (
            f"insert into {name} select * from {name}",
            f"update {name} set user_id = user_id",
            f"delete from {name}",
            f"truncate {name}",
        ):
            with _as(filled, role, filled.user("person-1")) as connection:
                assert _refusal(connection, statement) in _REFUSALS[kinds[name]], statement


def test_analyst_reads_everybody_and_the_catalogue(filled: Lab) -> None:
    tables = relations(filled)

    with _as(filled, "health_analyst") as connection:
        assert {name: _users(connection, name) for name in tables} == tables
        assert connection.execute(sa.text("select count(*) from health.metric_types")).scalar_one() > 40
        assert connection.execute(sa.text("select count(*) from health.source_priorities")).scalar_one() > 3


@pytest.mark.parametrize("role", ["health_subject", "health_analyst"])
@pytest.mark.parametrize(
    "relation",
    [
        "ops.connector_tokens",
        "ops.users",
        "ops.raw_objects",
        "ops.provider_accounts",
        "ops.webhook_events",
        "staging_oura.sleep",
        "health._changed_daily",
        "health._pending_objects",
        "health_internal.stg_oura__sleep",
    ],
)
def test_what_is_not_for_readers(filled: Lab, role: str, relation: str) -> None:
    with _as(filled, role, filled.user("person-1")) as connection:
        assert _refusal(connection, f"select * from {relation}") == "42501"


def test_views_read_as_their_reader_or_say_that_they_do_not(filled: Lab) -> None:
    """Where a view reads as its owner, the project says so, and no function runs before its filter."""
    nodes = orjson.loads(ensure_manifest().read_bytes())["nodes"].values()
    said = {
        node["name"]: {"reader": "security_invoker=true", "owner": "security_barrier=true"}[
            node["config"]["meta"]["rights"]
        ]
        for node in nodes
        if node["config"]["materialized"] == "lasting_view" and node["schema"] == "health"
    }
    found = filled.rows(
        "select relname, array_to_string(reloptions, ',') as options from pg_class "
        "where relnamespace = 'health'::regnamespace and relkind = 'v'"
    )

    assert {row["relname"]: row["options"] for row in found} == said
    assert {"connection_status", "day_timeline"} <= said.keys()


def test_person_counts_own_accounts_events_and_jobs_alone(filled: Lab) -> None:
    query = sa.text(
        "select accounts_active, failed_jobs_7d, objects_7d, "
        "(select sum(event_count) from health.webhook_events_24h) as events "
        "from health.sync_health where provider = 'oura'"
    )
    person = filled.user("person-1")
    objects = filled.one(
        "select count(*) filter (where user_id = :person) as own, count(*) as all from ops.raw_objects "
        "inner join ops.subjects using (subject_id) "
        "where provider = 'oura' and received_at > now() - interval '7 days'",
        person=person,
    )

    with _as(filled, "health_subject", person) as connection:
        assert connection.execute(query).all() == [(1, 1, objects["own"], 3)]
    with _as(filled, "health_analyst") as connection:
        assert connection.execute(query).all() == [(4, 4, objects["all"], 13)]
    with _as(filled, "health_subject") as connection:
        assert connection.execute(query).all() == []


def test_function_of_a_reader_sees_no_row_of_others(filled: Lab) -> None:
    """A cheap function is called early: without the barrier, before the filter."""
    with _as(filled, "health_subject", filled.user("person-1")) as connection:
        connection.exec_driver_sql(
            "create function pg_temp.peek(seen integer) returns boolean language plpgsql cost 0.0000001 as $$ "
            "begin perform set_config('peek.seen', current_setting('peek.seen', true) || ' ' || seen, true); "
            "return true; end $$"
        )
        seen = {}
        for view in ("connection_status", "source_spans", "latest_metrics"):
            connection.exec_driver_sql("select set_config('peek.seen', '', true)")
            connection.exec_driver_sql(f"select * from health.{view} where pg_temp.peek(user_id)")
            seen[view] = set(
                connection.exec_driver_sql("select current_setting('peek.seen')").scalar_one().split()
            )

    own = {str(filled.user("person-1"))}
    assert seen == {"connection_status": own, "source_spans": own, "latest_metrics": own}


def test_place_in_the_cohort_is_known_without_the_cohort(filled: Lab) -> None:
    """A subject's percentile is the analyst's: it is made of people whose values the subject may not read."""
    person = filled.user("person-1")
    for handle in ("extra-1", "extra-2"):
        user = filled.user(handle)
        filled.execute(
            "insert into ops.subjects (subject_id, user_id) values (gen_random_uuid(), :user)", user=user
        )
    filled.execute(
        "insert into health.daily_metrics (user_id, local_date, metric_type, metric_value, metric_unit, source, "
        "sources_seen, sample_count, coverage) select user_id, date '2026-03-01', 'vascular_age', 30 + user_id, 'a', "
        "'oura', array['oura'], 1, 1 from ops.subjects"
    )
    query = sa.text(
        "select cohort_size, cohort_percentile from health.health_summary "
        f"where metric_type = 'vascular_age' and user_id = {person}"
    )

    with _as(filled, "health_analyst") as connection:
        of_analyst = connection.execute(query).all()
    with _as(filled, "health_subject", person) as connection:
        assert connection.execute(query).all() == of_analyst
        assert (
            connection.execute(
                sa.text("select count(distinct user_id) from health.health_summary")
            ).scalar_one()
            == 1
        )
    ((size, percentile),) = of_analyst
    assert size == 6
    assert percentile == pytest.approx(100 / 6 * (_rank_of(filled, person) + 0.5))


def _fill(lab: Lab, relation: str) -> None:
    """A row a person into a table where the history left somebody out, of what it must have."""
    columns = lab.rows(
        "select attname as name, atttypid::regtype::text as type from pg_attribute "
        "where attrelid = cast(:name as regclass) and attnum > 0 and attnotnull and attname <> 'user_id'",
        name=relation,
    )
    names = ", ".join(column["name"] for column in columns)
    values = ", ".join(_ALLOWED.get(column["name"]) or _OF_TYPE[column["type"]] for column in columns)
    lab.execute(
        f"insert into {relation} (user_id, {names}) select user_id, {values} from ops.users on conflict do nothing"
    )


def _is_partition(lab: Lab, relation: str) -> bool:
    query = "select relispartition from pg_class where oid = cast(:name as regclass)"
    return bool(lab.one(query, name=relation)["relispartition"])


def _rank_of(lab: Lab, user_id: int) -> int:
    return int(lab.one("select count(*) from ops.subjects where user_id < :user", user=user_id)["count"])


def kinds_of(lab: Lab) -> dict[str, str]:
    """pg_class.relkind of what is in `health`."""
    rows = lab.rows(
        "select format('%I.%I', 'health', relname) as name, relkind::text as kind from pg_class "
        "where relnamespace = 'health'::regnamespace"
    )
    return {row["name"]: row["kind"] for row in rows}


def relations(lab: Lab) -> dict[str, set[int]]:
    """Every table and partition of `health` for readers that has a user, with the users it has rows of."""
    names = [
        row["name"]
        for row in lab.rows(
            """
            select format('%I.%I', nspname, relname) as name
            from pg_class inner join pg_namespace on pg_namespace.oid = relnamespace
            inner join pg_attribute on attrelid = pg_class.oid and attname = 'user_id'
            where nspname = 'health' and relkind in ('r', 'p', 'v', 'm') and relname not like '\\_%'
            """
        )
    ]
    with lab.warehouse.engine.connect() as connection:
        return {name: _users(connection, name) for name in names}


@contextmanager
def _as(lab: Lab, role: str, user_id: int | None = None) -> Iterator[sa.Connection]:
    with lab.warehouse.engine.connect() as connection:
        seal = "select set_config('health.user_id', coalesce(ops.seal_subject(:id), ''), true)"
        connection.execute(sa.text(seal), {"id": user_id})
        connection.execute(sa.text(f"set local role {role}"))
        yield connection
        connection.rollback()


def _become(connection: sa.Connection, role: str, user_id: int) -> None:
    seal = "select set_config('health.user_id', ops.seal_subject(:id), true)"
    connection.execute(sa.text(seal), {"id": user_id})
    connection.execute(sa.text(f"set local role {role}"))


def _seen_after(connection: sa.Connection, breach: str, relation: str, user_id: int) -> set[int]:
    """Whose rows a person sees once a statement was done, which is then undone."""
    with connection.begin_nested() as undone:
        connection.exec_driver_sql(breach)
        _become(connection, "health_subject", user_id)
        seen = _users(connection, relation)
        undone.rollback()
    return seen


def _refusal_kept(connection: sa.Connection, statement: str) -> Any:
    """As _refusal, and the transaction goes on."""
    with connection.begin_nested() as attempt:
        refused = _refusal(connection, statement)
        attempt.rollback()
    return refused


def _users(connection: sa.Connection, relation: str) -> set[int]:
    return set(connection.execute(sa.text(f"select distinct user_id from {relation}")).scalars())


def _refusal(connection: sa.Connection, statement: str) -> Any:
    """The SQLSTATE with which the database refuses; None if it does not."""
    try:
        connection.execute(sa.text(statement))
    except sa.exc.DBAPIError as error:
        return error.orig.pgcode
    return None
