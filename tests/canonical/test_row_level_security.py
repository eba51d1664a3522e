"""What analysts and the people themselves see of schema `health`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from canonical_lab import Lab
from histories import History

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


@pytest.fixture(scope="module")
def filled(lab_of_module: Lab) -> Lab:
    """Rows of several people in every table, the engine's too."""
    lab = lab_of_module
    history = History(4, people=4, steps=16, runs=1)
    history.send(lab, 0)
    lab.run()
    ensure_engine_tables(lab.warehouse)
    lab.execute(_FILL_ENGINE)
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
    for name in relations(filled):
        for statement in (
            f"insert into {name} select * from {name}",
            f"update {name} set user_id = user_id",
            f"delete from {name}",
            f"truncate {name}",
        ):
            with _as(filled, role, filled.user("person-1")) as connection:
                assert _refusal(connection, statement) == "42501", statement


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
        "staging_oura.sleep",
        "health._changed_daily",
        "health._pending_objects",
        "health_internal.stg_oura__sleep",
    ],
)
def test_what_is_not_for_readers(filled: Lab, role: str, relation: str) -> None:
    with _as(filled, role, filled.user("person-1")) as connection:
        assert _refusal(connection, f"select * from {relation}") == "42501"


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


def _users(connection: sa.Connection, relation: str) -> set[int]:
    return set(connection.execute(sa.text(f"select distinct user_id from {relation}")).scalars())


def _refusal(connection: sa.Connection, statement: str) -> Any:
    """The SQLSTATE with which the database refuses; None if it does not."""
    try:
        connection.execute(sa.text(statement))
    except sa.exc.DBAPIError as error:
        return error.orig.pgcode
    return None
