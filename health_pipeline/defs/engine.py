"""The engine's assets: each computes anew the users and days whose inputs changed, and writes what differs."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import dagster as dg

from health_pipeline.defs.plots import (
    plot_agp,
    plot_completeness,
    plot_components,
    plot_forecasts,
    plot_glucose_days,
    plot_loads,
    plot_recovery,
    plot_sleep,
)
from health_pipeline.defs.resources import Platform
from health_pipeline.defs.sources import OWNERS
from health_pipeline.warehouse import engine_changes, engine_tables
from health_pipeline.warehouse.engine_changes import Scope, array_literal, text_array
from health_pipeline.warehouse.engine_tables import EngineTable

if TYPE_CHECKING:
    import pandas as pd

    from health_pipeline.warehouse.connection import Warehouse

DAILY_METRICS = dg.AssetKey(["health", "daily_metrics"])
HEALTH_METRICS = dg.AssetKey(["health", "health_metrics"])
SLEEP_SESSIONS = dg.AssetKey(["health", "sleep_sessions"])
WORKOUTS = dg.AssetKey(["health", "workouts"])
GLUCOSE_READINGS = dg.AssetKey(["health", "glucose_readings"])
#: Days before the first changed one that alerts look at.
_ALERT_CONTEXT_DAYS = 21

Compute = Callable[["Warehouse", Scope], "pd.DataFrame"]


def _asset(table: EngineTable, deps: list[dg.AssetKey]) -> Callable[..., dg.AssetsDefinition]:
    return dg.asset(
        key=["health", table.name],
        deps=deps,
        description=table.comment,
        group_name="engine",
        kinds={"python", "pandas", "postgres"},
        owners=OWNERS,
        # Of what writes a table, one run at a time.
        pool=f"engine_{table.name}",
        metadata={
            "dagster/table_name": f"health.{table.name}",
            "dagster/column_schema": dg.TableSchema(
                columns=[
                    dg.TableColumn(
                        column.name,
                        column.sql_type,
                        description=column.comment,
                        constraints=dg.TableColumnConstraints(nullable=column.null),
                    )
                    for column in table.columns
                ]
            ),
        },
    )


def _key(table: EngineTable) -> dg.AssetKey:
    return dg.AssetKey(["health", table.name])


def _update(platform: Platform, table: EngineTable, compute: Compute) -> dict[str, int]:
    """Compute what changed since the table's last run and write it; the counts are for the asset page."""
    warehouse = platform.warehouse()
    engine_tables.ensure_engine_tables(warehouse)
    last_change, scopes = engine_changes.changed_users(warehouse, table)
    counts = {"users_computed": 0, "rows_computed": 0, "rows_changed": 0}
    for scope in scopes:
        frame = compute(warehouse, scope)
        counts["users_computed"] += len(scope.user_ids)
        counts["rows_computed"] += len(frame)
        counts["rows_changed"] += engine_changes.replace_rows(warehouse, table, frame, scope)
    engine_changes.mark_computed(warehouse, table, last_change)
    return counts


def _compute_baselines(warehouse: "Warehouse", scope: Scope) -> "pd.DataFrame":
    from health_pipeline.engine import baselines

    daily = engine_changes.read_daily(
        warehouse, scope.user_ids, baselines.METRICS, f"date '{scope.start}' - {baselines.WINDOW_DAYS}"
    )
    return baselines.baselines(daily, (scope.start, scope.end))


def _compute_training_loads(warehouse: "Warehouse", scope: Scope) -> "pd.DataFrame":
    import pandas as pd

    from health_pipeline.engine import training_load

    users = array_literal(scope.user_ids)
    previous = engine_tables.read_frame(
        warehouse,
        f"select {', '.join(training_load.STATE_COLUMNS)} from health.training_loads "  # noqa: S608
        f"where user_id = any({users}) and local_date = date '{scope.start}' - 1",
    )
    recent = engine_tables.read_frame(
        warehouse,
        "select user_id, local_date, load from health.training_loads "  # noqa: S608
        f"where user_id = any({users}) and local_date < date '{scope.start}' "
        f"and local_date > date '{scope.start}' - {training_load.UNCOUPLED_DAYS}",
    )
    # Who has no row to continue from starts at the beginning.
    continue_from = set(previous["user_id"].tolist())
    new = array_literal(set(scope.user_ids) - continue_from)

    def since(user: str, day: str = f"date '{scope.start}' - 1") -> str:
        return f"case when {user} = any({new}) then date '-infinity' else {day} end"

    workouts = engine_tables.read_frame(
        warehouse,
        f"select {', '.join(training_load.WORKOUT_COLUMNS)} from health.workouts "  # noqa: S608
        f"where user_id = any({array_literal(continue_from)}) and local_date >= date '{scope.start}' - 1 "
        f"or user_id = any({new})",
    )
    profiles = engine_tables.read_frame(
        warehouse,
        f"select {', '.join(training_load.PROFILE_COLUMNS)} from ops.users "  # noqa: S608
        f"where user_id = any({users}) and (max_heart_rate is not null or birth_year is not null)",
    )
    daily = engine_changes.read_daily(
        warehouse, scope.user_ids, training_load.WEAR_METRICS, since("users.user_id")
    )
    if len(profiles):
        first = since("users.user_id", f"date '{scope.start}' - 1 - {training_load.MAX_RESTING_AGE_DAYS}")
        resting = engine_changes.read_daily(warehouse, profiles["user_id"], ("resting_heart_rate",), first)
        daily = pd.concat([daily, resting], ignore_index=True)
    heart_rate = engine_tables.read_frame(
        warehouse,
        f"""
        select user_id, minute, source, avg(metric_value) as bpm
        from (
            select distinct
                samples.user_id, samples.source, samples.recorded_at, samples.metric_value,
                date_trunc('minute', samples.recorded_at) as minute
            from health.workouts
            inner join health.health_metrics as samples
                on samples.user_id = workouts.user_id
                and samples.metric_type = 'heart_rate'
                and samples.recorded_at >= workouts.started_at - interval '{training_load.SAMPLE_MINUTES} minutes'
                and samples.recorded_at < workouts.ended_at
            where workouts.user_id = any({array_literal(profiles["user_id"])})
                and workouts.local_date >= {since("workouts.user_id")}
        ) as samples
        group by user_id, minute, source
        """,  # noqa: S608
    )
    return training_load.training_loads(
        workouts, daily, (scope.start, scope.end), previous, recent, heart_rate, profiles
    )


def _compute_recovery(warehouse: "Warehouse", scope: Scope) -> "pd.DataFrame":
    from health_pipeline.engine import recovery

    users = array_literal(scope.user_ids)

    def results(table: EngineTable, columns: Iterable[str], since: str) -> "pd.DataFrame":
        return engine_tables.read_frame(
            warehouse,
            f"select {', '.join(columns)} from health.{table.name} "  # noqa: S608
            f"where user_id = any({users}) and local_date >= {since}",
        )

    first = f"date '{scope.start}'"
    nights = engine_tables.read_frame(
        warehouse,
        f"""
        select distinct on (sleeps.user_id, sleeps.local_date)
            sleeps.user_id,
            sleeps.local_date,
            -- By the clock at getting up, as the day is.
            mod(
                extract(epoch from sleeps.started_at + (sleeps.ended_at - sleeps.started_at) / 2) / 60
                + coalesce(sleeps.end_utc_offset_minutes, sleeps.utc_offset_minutes, 0),
                1440
            )::double precision as midpoint_minute
        from health.sleep_sessions as sleeps
        inner join health.daily_metrics as daily using (user_id, local_date, source)
        where sleeps.user_id = any({users}) and sleeps.is_main_sleep and daily.metric_type = 'sleep_duration'
            and sleeps.local_date >= {first} - {recovery.REGULARITY_NIGHTS}
        order by sleeps.user_id, sleeps.local_date, sleeps.ended_at - sleeps.started_at desc, sleeps.started_at
        """,  # noqa: S608
    )
    return recovery.recovery_scores(
        engine_changes.read_daily(warehouse, scope.user_ids, recovery.METRICS, first),
        results(engine_tables.BASELINES, recovery.BASELINE_COLUMNS, first),
        results(engine_tables.TRAINING_LOADS, recovery.LOAD_COLUMNS, f"{first} - 1"),
        (scope.start, scope.end),
        nights,
    )


def _compute_forecasts(warehouse: "Warehouse", scope: Scope) -> "pd.DataFrame":
    from health_pipeline.engine import backtest, forecast

    users = array_literal(scope.user_ids)
    goals = engine_tables.read_frame(
        warehouse,
        f"select {', '.join(forecast.GOAL_COLUMNS)} from ops.goals where user_id = any({users})",  # noqa: S608
    )
    ranges = engine_tables.read_frame(
        warehouse, "select metric_type, valid_min as low, valid_max as high from health.metric_types"
    )
    daily = engine_changes.read_daily(
        warehouse,
        scope.user_ids,
        {*forecast.DEFAULT_METRICS, *goals["metric_type"]},
        f"of_metric.last_day - {backtest.HISTORY_DAYS - 1}",
        of_metric="select max(local_date) as last_day from health.daily_metrics "
        "where user_id = users.user_id and metric_type = metrics.metric_type",
    )
    return forecast.forecasts(daily, goals, valid_ranges=ranges)


def _readings(warehouse: "Warehouse", users: tuple[int, ...], since: str) -> "pd.DataFrame":
    """`readings` of `engine.glucose`: of each day, those of the source that the day's value is of.

    From `since` on, an SQL date that may name ends.last_day, a user's last day of glucose.
    """
    from health_pipeline.engine import glucose

    columns = ", ".join(f"readings.{column}" for column in glucose.READING_COLUMNS)
    return engine_tables.read_frame(
        warehouse,
        f"""
        select {columns}
        from unnest({array_literal(users)}) as users (user_id)
        cross join lateral (
            select max(local_date) as last_day from health.daily_metrics
            where user_id = users.user_id and metric_type = 'glucose'
        ) as ends
        cross join lateral (
            select * from health.glucose_readings
            where glucose_readings.user_id = users.user_id and glucose_readings.local_date >= {since}
            offset 0 -- each user's by their index, however many the planner expects
        ) as readings
        inner join health.daily_metrics as daily
            on daily.user_id = readings.user_id
            and daily.metric_type = 'glucose'
            and daily.local_date = readings.local_date
            and daily.source = readings.source
        where readings.reading_type = 'cgm'
        """,  # noqa: S608
    )


def _compute_glucose_daily(warehouse: "Warehouse", scope: Scope) -> "pd.DataFrame":
    from datetime import timedelta

    from health_pipeline.engine import glucose

    # An episode of the evening before may go on into the first day; that day compares with the one before it.
    first = scope.start - timedelta(days=1)
    readings = _readings(warehouse, scope.user_ids, f"date '{first - timedelta(days=1)}'")
    daily = glucose.glucose_daily(readings)
    return daily[daily["local_date"] >= str(first)]


def _compute_glucose_periods(warehouse: "Warehouse", scope: Scope) -> "pd.DataFrame":
    from health_pipeline.engine import glucose

    since = f"ends.last_day - {max(glucose.PERIODS) - 1}"
    return glucose.glucose_periods(_readings(warehouse, scope.user_ids, since))


def _compute_agp(warehouse: "Warehouse", scope: Scope) -> "pd.DataFrame":
    from health_pipeline.engine import glucose

    since = f"ends.last_day - {glucose.SUFFICIENT_DAYS - 1}"
    return glucose.agp(_readings(warehouse, scope.user_ids, since))


def _compute_alerts(warehouse: "Warehouse", scope: Scope) -> "pd.DataFrame":
    from datetime import timedelta

    from health_pipeline.engine import alerts

    # An episode of an earlier day may have ended since; one that began before these days is cut short.
    first = scope.start - timedelta(days=1)
    since = f"date '{scope.start - timedelta(days=_ALERT_CONTEXT_DAYS)}'"
    baselines = engine_tables.read_frame(
        warehouse,
        f"select {', '.join(alerts.BASELINE_COLUMNS)} from health.baselines "  # noqa: S608
        f"where user_id = any({array_literal(scope.user_ids)}) and local_date >= {since} "
        f"and metric_type = any({text_array(alerts.OFF_BASELINE)})",
    )
    found = alerts.alerts(
        _readings(warehouse, scope.user_ids, since),
        engine_changes.read_daily(warehouse, scope.user_ids, {*alerts.OFF_BASELINE, *alerts.EXPECTED}, since),
        baselines,
    )
    return found[(found["local_date"] >= str(first)) | (found["ended_at"] >= str(first))]


def _compute_correlations(warehouse: "Warehouse", scope: Scope) -> "pd.DataFrame":
    from health_pipeline.engine import correlations

    daily = engine_changes.read_daily(
        warehouse,
        scope.user_ids,
        correlations.METRICS,
        f"of_user.last_day - {correlations.WINDOW_DAYS - 1}",
        of_user="select max(local_date) as last_day from health.daily_metrics "  # noqa: S608
        f"where user_id = users.user_id and metric_type = any({text_array(correlations.METRICS)})",
    )
    return correlations.correlations(daily)


def _compute_narratives(warehouse: "Warehouse", scope: Scope) -> "pd.DataFrame":
    from health_pipeline.engine import narrative

    users = array_literal(scope.user_ids)
    # The first of the days is compared with the week before it.
    days = narrative.DAYS + narrative.MEAN_DAYS

    def results(table: EngineTable, columns: Iterable[str], also: str = "") -> "pd.DataFrame":
        return engine_tables.read_frame(
            warehouse,
            f"""
            select {", ".join(f"told.{column}" for column in columns)}
            from unnest({users}) as users (user_id)
            cross join lateral (
                select max(local_date) as last_day from health.daily_metrics where user_id = users.user_id
            ) as ends
            inner join health.{table.name} as told
                on told.user_id = users.user_id and told.local_date > ends.last_day - {days} {also}
            """,  # noqa: S608
        )

    found = narrative.narratives(
        results(engine_tables.RECOVERY_SCORES, narrative.RECOVERY_COLUMNS, "and method = 'calibrated'"),
        results(engine_tables.GLUCOSE_DAILY, narrative.GLUCOSE_COLUMNS),
        results(engine_tables.ALERTS, narrative.ALERT_COLUMNS, "and not suppressed"),
        engine_tables.read_frame(
            warehouse,
            f"select {', '.join(narrative.FORECAST_COLUMNS)} from health.forecasts "  # noqa: S608
            f"where user_id = any({users})",
        ),
    )
    accepted = engine_tables.read_frame(
        warehouse,
        f"""
        select distinct on (user_id, prompt_sha256) user_id, prompt_sha256, answer as sentence, model as author
        from ops.ai_audit_log where user_id = any({users}) and decision = 'accepted'
        order by user_id, prompt_sha256, entry_id desc
        """,  # noqa: S608
    )
    found = found.merge(
        accepted.astype({"user_id": "int64", "prompt_sha256": found["prompt_sha256"].dtype}),
        how="left",
        on=["user_id", "prompt_sha256"],
    )
    found["sentence"] = found["sentence"].where(found["sentence"].notna(), found["template"])
    found["author"] = found["author"].where(found["author"].notna(), "template")
    return found


@_asset(engine_tables.BASELINES, deps=[DAILY_METRICS])
def baselines(platform: Platform) -> dg.MaterializeResult:  # type: ignore[type-arg]
    return dg.MaterializeResult(metadata=_update(platform, engine_tables.BASELINES, _compute_baselines))


@_asset(engine_tables.TRAINING_LOADS, deps=[DAILY_METRICS, HEALTH_METRICS, WORKOUTS])
def training_loads(platform: Platform) -> dg.MaterializeResult:  # type: ignore[type-arg]
    counts = _update(platform, engine_tables.TRAINING_LOADS, _compute_training_loads)
    return dg.MaterializeResult(metadata={**counts, "load": plot_loads(platform.warehouse())})


@_asset(
    engine_tables.RECOVERY_SCORES,
    deps=[
        DAILY_METRICS,
        SLEEP_SESSIONS,
        _key(engine_tables.BASELINES),
        _key(engine_tables.TRAINING_LOADS),
    ],
)
def recovery_scores(platform: Platform) -> dg.MaterializeResult:  # type: ignore[type-arg]
    counts = _update(platform, engine_tables.RECOVERY_SCORES, _compute_recovery)
    warehouse = platform.warehouse()
    pictures = {
        "recovery": plot_recovery(warehouse),
        "components": plot_components(warehouse),
        "sleep": plot_sleep(warehouse),
        "completeness": plot_completeness(warehouse),
    }
    return dg.MaterializeResult(metadata={**counts, **pictures})


@_asset(engine_tables.FORECASTS, deps=[DAILY_METRICS])
def forecasts(platform: Platform) -> dg.MaterializeResult:  # type: ignore[type-arg]
    counts = _update(platform, engine_tables.FORECASTS, _compute_forecasts)
    return dg.MaterializeResult(metadata={**counts, "forecast": plot_forecasts(platform.warehouse())})


@_asset(engine_tables.GLUCOSE_DAILY, deps=[DAILY_METRICS, GLUCOSE_READINGS])
def glucose_daily(platform: Platform) -> dg.MaterializeResult:  # type: ignore[type-arg]
    counts = _update(platform, engine_tables.GLUCOSE_DAILY, _compute_glucose_daily)
    return dg.MaterializeResult(metadata=counts)


@_asset(engine_tables.GLUCOSE_PERIODS, deps=[DAILY_METRICS, GLUCOSE_READINGS])
def glucose_periods(platform: Platform) -> dg.MaterializeResult:  # type: ignore[type-arg]
    counts = _update(platform, engine_tables.GLUCOSE_PERIODS, _compute_glucose_periods)
    return dg.MaterializeResult(metadata=counts)


@_asset(engine_tables.AGP, deps=[DAILY_METRICS, GLUCOSE_READINGS])
def agp(platform: Platform) -> dg.MaterializeResult:  # type: ignore[type-arg]
    counts = _update(platform, engine_tables.AGP, _compute_agp)
    warehouse = platform.warehouse()
    pictures = {"profile": plot_agp(warehouse), "days": plot_glucose_days(warehouse)}
    return dg.MaterializeResult(metadata={**counts, **pictures})


@_asset(engine_tables.ALERTS, deps=[DAILY_METRICS, GLUCOSE_READINGS, _key(engine_tables.BASELINES)])
def alerts(platform: Platform) -> dg.MaterializeResult:  # type: ignore[type-arg]
    from health_pipeline.outgoing.alerts import send_alerts

    counts = _update(platform, engine_tables.ALERTS, _compute_alerts)
    sending = send_alerts(platform.warehouse(), platform.settings)
    return dg.MaterializeResult(metadata={**counts, "sent": sending.sent, "not_sent": sending.failed})


@_asset(engine_tables.CORRELATIONS, deps=[DAILY_METRICS])
def correlations(platform: Platform) -> dg.MaterializeResult:  # type: ignore[type-arg]
    counts = _update(platform, engine_tables.CORRELATIONS, _compute_correlations)
    return dg.MaterializeResult(metadata=counts)


@_asset(
    engine_tables.NARRATIVES,
    deps=[
        DAILY_METRICS,
        _key(engine_tables.RECOVERY_SCORES),
        _key(engine_tables.GLUCOSE_DAILY),
        _key(engine_tables.ALERTS),
        _key(engine_tables.FORECASTS),
    ],
)
def narratives(platform: Platform) -> dg.MaterializeResult:  # type: ignore[type-arg]
    from health_pipeline.outgoing.language_model import rewrite_narratives

    counts = _update(platform, engine_tables.NARRATIVES, _compute_narratives)
    words = rewrite_narratives(platform.warehouse(), platform.settings)
    return dg.MaterializeResult(
        metadata={
            **counts,
            "accepted": words.accepted,
            "rejected": words.rejected,
            "failed": words.failed,
            "people_over_their_limit": words.over_limit,
        }
    )


ASSETS = (
    baselines,
    training_loads,
    recovery_scores,
    forecasts,
    glucose_daily,
    glucose_periods,
    agp,
    alerts,
    correlations,
    narratives,
)
defs = dg.Definitions(assets=ASSETS)
