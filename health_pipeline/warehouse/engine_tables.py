"""Tables of the engine in schema `health`: what they hold, and how results get in by what changed.

dbt owns the other tables of the schema. These live in the same schema, so dropping it drops everything that
is derived.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from health_pipeline.warehouse.connection import Warehouse

SCHEMA = "health"
#: The longest that any table looks back.
_HISTORY_DAYS = 180
#: Of tables that look at readings instead of days.
_READING_USER_DAYS = 20_000


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its SQL type, what it means with its unit, and whether it is part of the key or may be null."""

    name: str
    sql_type: str
    comment: str
    key: bool = False
    null: bool = False


@dataclass(frozen=True, slots=True)
class EngineTable:
    """One table of the engine. Plain data, so that Dagster's definitions can describe it without a database."""

    name: str
    comment: str
    columns: tuple[Column, ...]
    #: The metrics whose changed days concern it; none given, all do.
    metrics: tuple[str, ...] = ()
    #: Tables of the engine that it reads: it takes the queue as far as they have, who may be in another run.
    follows: tuple[str, ...] = ()
    #: How many days, of all its users together, are computed at once: what memory has to hold.
    user_days_at_once: int = 250_000

    @property
    def names(self) -> list[str]:
        return [column.name for column in self.columns]

    @property
    def keys(self) -> list[str]:
        return [column.name for column in self.columns if column.key]

    @property
    def day(self) -> str:
        """The column of the local day."""
        return "local_date" if "local_date" in self.names else "as_of_date"


def _number(name: str, comment: str, *, null: bool = True) -> Column:
    return Column(name, "double precision", comment, null=null)


_USER = "Whose it is (ops.users)."

BASELINES = EngineTable(
    "baselines",
    "What is usual for a person. Grain: user, local day, metric, source.",
    (
        Column("user_id", "integer", _USER, key=True),
        Column(
            "local_date", "date", "The day the baseline is for; its window ends the day before.", key=True
        ),
        Column("metric_type", "text", "Metric of the catalogue.", key=True),
        Column("source", "text", "Source the baseline is of; sources are not mixed.", key=True),
        _number("baseline_center", "Median of the window, in the transformed unit.", null=False),
        _number(
            "baseline_scale", "Spread (1.4826 x MAD, not below the metric's floor), transformed.", null=False
        ),
        _number("center_value", "The centre in the metric's own unit.", null=False),
        Column("n_days", "integer", "Days with a value in the 60-day window; at least 14."),
        Column("first_day", "date", "First of them."),
        Column("last_day", "date", "Last of them."),
        Column("staleness_days", "integer", "Days from last_day to local_date."),
        Column("transform", "text", "identity, or ln for heart rate variability."),
        _number("recent_mean", "Mean of the 7 days that end on local_date, transformed; null under 3 days."),
        Column("recent_n_days", "integer", "Days with a value among those 7."),
    ),
)

TRAINING_LOADS = EngineTable(
    "training_loads",
    "Training load and its running means. Grain: user, local day.",
    (
        Column("user_id", "integer", _USER, key=True),
        Column("local_date", "date", "Local day.", key=True),
        _number("load", "Training load of the day, in minutes times CR-10; null on a day without data."),
        Column(
            "load_method",
            "text",
            "banister, edwards, session_rpe, duration_intensity, mixed, none on a rest day, null without data.",
            null=True,
        ),
        _number("banister_trimp", "Banister's training impulse, of the sessions with a heart rate."),
        _number("edwards_trimp", "Edwards' training impulse, of the sessions with a heart rate."),
        _number("heart_rate_share", "Share of the sessions' minutes in those two; null without a session."),
        Column("intensity_assumed", "boolean", "True where a session's intensity was not known."),
        Column("workout_count", "integer", "Sessions of the day; one recorded by two sources counts once."),
        Column("worn", "boolean", "True where steps or heart rate show that a device was worn."),
        _number("acute_load", "Fatigue: exponential mean of load, 7 days."),
        _number("chronic_load", "Fitness: exponential mean of load, 42 days."),
        _number("stress_balance", "Chronic minus acute load of the day before."),
        Column("days_of_history", "integer", "Days with a load so far."),
        Column("missing_days", "integer", "Days without data in a row up to this one."),
        _number(
            "acute_chronic_ratio",
            "Mean load of the last 7 days over that of the 21 before; describes, foretells nothing.",
        ),
    ),
)

RECOVERY_SCORES = EngineTable(
    "recovery_scores",
    "Recovery from 0.25 stress, 0.30 sleep, 0.20 heart rate, 0.25 load. Grain: user, local day, method.",
    (
        Column("user_id", "integer", _USER, key=True),
        Column("local_date", "date", "Local day.", key=True),
        Column("method", "text", "calibrated (default) or seed.", key=True),
        _number("recovery_score", "0 to 100; an ordinary day is 75 by the calibrated method.", null=False),
        _number("score_low", "Lower end of the 80 % range.", null=False),
        _number("score_high", "Upper end of the 80 % range.", null=False),
        _number("stress_component", "0 to 100; null where there is no data for it."),
        _number("sleep_component", "0 to 100; null where there is no data for it."),
        _number("heart_rate_component", "0 to 100; null where there is no data for it."),
        _number("load_component", "0 to 100; null where there is no data for it."),
        _number("weight_stress", "Weight as used; those of the present components sum to 1.", null=False),
        _number("weight_sleep", "Weight as used.", null=False),
        _number("weight_heart_rate", "Weight as used.", null=False),
        _number("weight_load", "Weight as used.", null=False),
        _number("present_weight", "Weight of the present components before that; at least 0.55.", null=False),
        Column("baseline_days", "integer", "Days in the shortest baseline behind the score."),
        Column("explanation", "text", "Why, in a sentence."),
    ),
    follows=("baselines", "training_loads"),
)

#: Days ahead for which a forecast has columns of its own.
HORIZONS = (7, 14, 30)

FORECASTS = EngineTable(
    "forecasts",
    "Where a metric is heading, from a line through the last 30 days. Grain: user, metric.",
    (
        Column("user_id", "integer", _USER, key=True),
        Column("metric_type", "text", "Metric of the catalogue.", key=True),
        Column("as_of_date", "date", "The last local day with a value: where the forecast starts."),
        Column("source", "text", "Source whose days the line is fitted to.", null=True),
        Column("n_days", "integer", "Days with a value in the window."),
        Column("window_start", "date", "First day of the 30-day window."),
        Column("window_end", "date", "Last day of the window."),
        _number("slope_per_day", "Slope of the line, metric unit a day; null under 14 days."),
        _number("slope_low", "Lower end of the slope's 95 % interval, allowing for autocorrelation."),
        _number("slope_high", "Upper end of it."),
        _number("theil_sen_slope", "Median of the slopes through every two days of the window."),
        _number(
            "theil_sen_low", "Lower end of its 95 % interval, allowing for autocorrelation; may be infinite."
        ),
        _number("theil_sen_high", "Upper end of it."),
        _number("intercept_value", "The line's value on as_of_date."),
        _number("r_squared", "Describes the fit; no evidence of a trend."),
        _number("residual_sd", "Standard deviation of the residuals."),
        _number(
            "autocorrelation", "Lag-1 autocorrelation about the line, mean over 30-day windows of 180 days."
        ),
        Column("method", "text", "Candidate that won the back-test; ols where there is none.", null=True),
        Column(
            "interval_method",
            "text",
            "conformal or student_t (from back-test errors), or regression without a back-test.",
            null=True,
        ),
        *(
            _number(f"{part}_{days}d", f"{words} {days} days ahead, metric unit.")
            for days in HORIZONS
            for part, words in (
                ("predicted", "Expected value"),
                ("low", "Lower end of the 90 % range"),
                ("high", "Upper end of the 90 % range"),
            )
        ),
        *(
            _number(f"{part}_{days}d", words.format(days=days))
            for days in HORIZONS
            for part, words in (
                (
                    "mase_naive",
                    "Back-test error {days} days ahead, relative to the last value's; under 1 is better.",
                ),
                ("mase_drift", "Back-test error {days} days ahead, relative to drift's."),
                (
                    "coverage",
                    "Share of newer back-test errors within the range that older ones give, {days} days.",
                ),
            )
        ),
        *(
            Column(
                f"n_origins_{days}d",
                "integer",
                f"Past days that forecast {days} days ahead was tested on.",
                null=True,
            )
            for days in HORIZONS
        ),
        _number("target_value", "The user's goal, if there is one (ops.goals)."),
        Column("target_date", "date", "By when.", null=True),
        Column(
            "projected_date", "date", "When the line meets the goal; null if it cannot be said.", null=True
        ),
        Column("projected_date_low", "date", "Earlier end of the date's 80 % range.", null=True),
        Column("projected_date_high", "date", "Later end of it.", null=True),
        Column("projected_reason", "text", "on_course, or why there is no date.", null=True),
        Column("sentence", "text", "The forecast in words."),
    ),
)

_GLUCOSE_STATISTICS = (
    Column("n_readings", "integer", "Sensor readings."),
    _number("percent_active", "Time that readings stand for, percent of the fixed window of local time."),
    _number("mean_mg_dl", "Mean glucose, mg/dL; a bound where readings are censored, as all below."),
    _number("sd_mg_dl", "Standard deviation (n - 1), mg/dL; null under two readings."),
    _number("cv_percent", "Standard deviation as percent of the mean."),
    _number("percent_below_54", "Percent of time under 54 mg/dL (3.0 mmol/L)."),
    _number("percent_54_69", "Percent of time from there to under 70 mg/dL (3.9 mmol/L)."),
    _number("percent_in_range", "Percent of time in 70 to 180 mg/dL (3.9 to 10.0 mmol/L)."),
    _number("percent_in_tight_range", "Percent of time in 70 to 140 mg/dL (3.9 to 7.8 mmol/L)."),
    _number("percent_181_250", "Percent of time over 180 and up to 250 mg/dL (13.9 mmol/L)."),
    _number("percent_above_250", "Percent of time over 250 mg/dL."),
    _number("percent_in_pregnancy_range", "Percent of time in 63 to 140 mg/dL (3.5 to 7.8 mmol/L)."),
    _number("percent_below_pregnancy_range", "Percent of time under 63 mg/dL."),
    _number("percent_above_pregnancy_range", "Percent of time over 140 mg/dL."),
    _number("gri", "Glycemia Risk Index, 0 to 100 (Klonoff et al. 2022)."),
    Column("gri_zone", "text", "A (0 to 20) to E (over 80)."),
    _number("lbgi", "Low Blood Glucose Index (Kovatchev et al.)."),
    _number("hbgi", "High Blood Glucose Index."),
    Column("n_censored_low", "integer", "Readings that say only Low; taken for 39 mg/dL."),
    Column("n_censored_high", "integer", "Readings that say only High; taken for 401 mg/dL."),
    Column(
        "hypo_episodes", "integer", "Episodes under 70 mg/dL: 15 minutes or more, ended by 15 minutes back."
    ),
    Column("hypo_episodes_level_2", "integer", "The same under 54 mg/dL."),
    Column("extended_hypo_episodes", "integer", "Episodes under 70 mg/dL of over 120 minutes."),
    Column("hyper_episodes", "integer", "Episodes over 180 mg/dL."),
    Column("hyper_episodes_level_2", "integer", "The same over 250 mg/dL."),
    _number("modd", "Mean absolute difference from 24 hours before, mg/dL."),
)

GLUCOSE_DAILY = EngineTable(
    "glucose_daily",
    "Statistics of glucose sensors, of the day's elected source. Grain: user, local day.",
    (
        Column("user_id", "integer", _USER, key=True),
        Column("local_date", "date", "Local day; an episode belongs to the day it starts on.", key=True),
        *_GLUCOSE_STATISTICS,
    ),
    metrics=("glucose",),
    user_days_at_once=_READING_USER_DAYS,
)

GLUCOSE_PERIODS = EngineTable(
    "glucose_periods",
    "Statistics of glucose sensors over the days up to the last with a reading. Grain: user, length of period.",
    (
        Column("user_id", "integer", _USER, key=True),
        Column("period_days", "integer", "14 or 90 local days.", key=True),
        Column("as_of_date", "date", "Last local day with a reading, the period's last."),
        Column("start_date", "date", "The period's first day."),
        Column("n_days", "integer", "Days with a reading."),
        *_GLUCOSE_STATISTICS,
        _number("conga_1h", "Standard deviation of the difference from one hour before, mg/dL."),
        _number("mage", "Mean amplitude of glycemic excursions, mg/dL; null under 24 hours of readings."),
        Column("mage_excursions", "integer", "Excursions it is the mean of."),
        Column("mage_variant", "text", "avg: the mean of the rising and the falling excursions'."),
        _number(
            "gmi_percent",
            "Glucose Management Indicator, percent; not a laboratory HbA1c. Null under 10 days.",
        ),
        Column("sufficient", "boolean", "True with 70 % of the period or more; below that, read with care."),
    ),
    metrics=("glucose",),
    user_days_at_once=_READING_USER_DAYS,
)

AGP = EngineTable(
    "agp",
    "Ambulatory glucose profile of the 14 days up to the last with a reading. Grain: user, quarter of an hour.",
    (
        Column("user_id", "integer", _USER, key=True),
        Column("minute_of_day", "integer", "Start of the quarter, minutes of the local clock.", key=True),
        Column("as_of_date", "date", "Last local day with a reading."),
        _number("p05", "5th percentile, mg/dL, smoothed around the clock; null under 5 days."),
        _number("p25", "25th percentile."),
        _number("p50", "Median."),
        _number("p75", "75th percentile."),
        _number("p95", "95th percentile."),
        Column("n_days", "integer", "Days with a reading in the quarter."),
    ),
    metrics=("glucose",),
    user_days_at_once=_READING_USER_DAYS,
)

ALERTS = EngineTable(
    "alerts",
    "What a person should be told of soon, once an episode. Grain: user, local day, kind, episode of the day.",
    (
        Column("user_id", "integer", _USER, key=True),
        Column("local_date", "date", "Local day it was detected on.", key=True),
        Column(
            "kind",
            "text",
            "rapid_fall, rapid_rise, urgent_low, prolonged_high, resting_heart_rate_high, body_temperature_high or "
            "missing_data.",
            key=True,
        ),
        Column("episode", "integer", "1, 2, ... of the kind on the day.", key=True),
        Column("detected_at", "timestamptz", "Reading that told, UTC; null for a day's value.", null=True),
        Column("ended_at", "timestamptz", "End, UTC; null while it lasts and for a day's value.", null=True),
        _number(
            "value",
            "mg/dL a minute (rapid), mg/dL (low, high), robust standard deviations over the baseline, or days missing.",
            null=False,
        ),
        Column("severity", "text", "urgent or warning."),
        Column(
            "suppressed", "boolean", "True where a new sensor may still be settling: kept, not to be sent."
        ),
        Column("sentence", "text", "The alert in words."),
    ),
    user_days_at_once=_READING_USER_DAYS,
    follows=("baselines",),
)

CORRELATIONS = EngineTable(
    "correlations",
    "What goes with what in a person's last 90 days, free of trend and weekday. Grain: user, pair of metrics, lag.",
    (
        Column("user_id", "integer", _USER, key=True),
        Column("first_metric", "text", "Metric of the earlier day.", key=True),
        Column("then_metric", "text", "Metric of the later day.", key=True),
        Column("lag_days", "integer", "Days between them, 0 to 3.", key=True),
        Column("as_of_date", "date", "Last of the 90 days."),
        Column("n_pairs", "integer", "Pairs of days; at least 20."),
        _number("effective_n", "Independent pairs that they are worth, days being like the days before."),
        _number("rho", "Spearman's rank correlation.", null=False),
        _number("p_value", "Of no correlation, by effective_n."),
        _number(
            "q_value", "False discovery rate over all pairs and lags of the person (Benjamini-Hochberg)."
        ),
        Column("associated", "boolean", "True where q_value is at most 0.1."),
        _number("rho_low", "Lower end of the 90 % range, by blocks of 7 days; null where not associated."),
        _number("rho_high", "Upper end of it."),
        Column("sentence", "text", "The association in words; null where there is none.", null=True),
    ),
)

NARRATIVES = EngineTable(
    "narratives",
    "A sentence or three on each of a person's last 30 days, and on each forecast. Grain: user, subject.",
    (
        Column("user_id", "integer", _USER, key=True),
        Column("subject", "text", "day and its date, or forecast and its metric.", key=True),
        Column("local_date", "date", "The day, or the last day that the forecast knows."),
        Column("sentence", "text", "The words to show."),
        Column("author", "text", "template, or the language model whose words were accepted."),
        Column("template", "text", "The facts in the words of the template."),
        Column("prompt_sha256", "text", "What the answer is found by in ops.ai_audit_log."),
    ),
    follows=("recovery_scores", "glucose_daily", "alerts", "forecasts"),
)

TABLES = (
    BASELINES,
    TRAINING_LOADS,
    RECOVERY_SCORES,
    FORECASTS,
    GLUCOSE_DAILY,
    GLUCOSE_PERIODS,
    AGP,
    ALERTS,
    CORRELATIONS,
    NARRATIVES,
)


@dataclass(frozen=True, slots=True)
class Scope:
    """The work of one engine table: these users, from `start` to each user's last day of data.

    Users are grouped by how far back they changed, so that one late file does not recompute everybody.
    """

    user_ids: tuple[int, ...]
    start: dt.date
    end: dt.date
    #: Each user's last day of data, in the order of `user_ids`: nothing is computed beyond it.
    last_days: tuple[dt.date, ...]


def ensure_engine_tables(warehouse: Warehouse) -> None:
    """Create the engine's tables where they are missing, with comments and row-level security.

    A table with other columns than it should have is of an older version: it is derived, so it is dropped,
    and computed anew for everybody. `_engine_watermarks` says how far each table has read the queue of
    changed days; a table without one has computed nothing yet.
    """
    import sqlalchemy as sa

    with warehouse.engine.begin() as connection:
        for statement in (
            f"create schema if not exists {SCHEMA}",
            f"create table if not exists {SCHEMA}._engine_watermarks "
            "(table_name text primary key, change_id bigint not null)",
        ):
            connection.execute(sa.text(statement))
        names = [f"{SCHEMA}.{table.name}" for table in TABLES]
        have = connection.execute(
            sa.text(
                "select name, array_agg(attname::text order by attnum) from unnest(cast(:names as text[])) as name "
                "inner join pg_attribute on attrelid = to_regclass(name) and attnum > 0 and not attisdropped "
                "group by name"
            ),
            {"names": names},
        )
        columns = {row.name: row[1] for row in have}
        for table, name in zip(TABLES, names, strict=True):
            if columns.get(name) != table.names:
                connection.execute(sa.text(f"drop table if exists {name}"))
                connection.execute(
                    sa.text(f"delete from {SCHEMA}._engine_watermarks where table_name = :table"),  # noqa: S608
                    {"table": table.name},
                )
                for statement in _create_statements(table):
                    connection.exec_driver_sql(statement)
        secure = sa.text("select ops.secure_table(name) from unnest(cast(:names as text[])) as name")
        connection.execute(secure, {"names": names})


def _create_statements(table: EngineTable) -> Iterator[str]:
    columns = [
        f"{column.name} {column.sql_type}{'' if column.null else ' not null'}" for column in table.columns
    ]
    yield f"create table {SCHEMA}.{table.name} ({', '.join(columns)}, primary key ({', '.join(table.keys)}))"
    yield f"comment on table {SCHEMA}.{table.name} is {_literal(table.comment)}"
    for column in table.columns:
        yield f"comment on column {SCHEMA}.{table.name}.{column.name} is {_literal(column.comment)}"


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''").replace("%", "%%") + "'"


#: A goal that was set, moved or dropped since the forecast was made changes that forecast.
_CHANGED_GOALS = """
    union all
    select user_id, forecasts.as_of_date from ops.goals full join health.forecasts using (user_id, metric_type)
    where forecasts.user_id is not null
        and (goals.target_value, goals.target_date) is distinct from
            (forecasts.target_value, forecasts.target_date)
    union all
    select daily.user_id, max(daily.local_date) from ops.goals
    inner join health.daily_metrics as daily using (user_id, metric_type)
    where not exists (
        select from health.forecasts
        where forecasts.user_id = goals.user_id and forecasts.metric_type = goals.metric_type
    )
    group by daily.user_id, daily.metric_type
"""


#: A forecast that was made anew without a changed day, for a goal's sake, has other words.
_CHANGED_WORDS = """
    union all
    select forecasts.user_id, forecasts.as_of_date from health.forecasts
    left join health.narratives
        on narratives.user_id = forecasts.user_id and narratives.subject = 'forecast ' || forecasts.metric_type
    where narratives.template is distinct from forecasts.sentence
"""


#: A table that has computed nothing yet needs everybody from their first day, whatever is left in the queue.
_EVERYBODY = """
    union all
    select user_id, min(local_date) from health.daily_metrics
    where not exists (select from health._engine_watermarks where table_name = :table)
    group by user_id
    union all
    select user_id, min(local_date) from health.workouts
    where not exists (select from health._engine_watermarks where table_name = :table)
    group by user_id
"""


def changed_users(warehouse: Warehouse, table: EngineTable) -> tuple[int, list[Scope]]:
    """What a table has to compute anew: the queue's last change that it takes, and the users by how far back they
    changed.

    A user's days start at the first that changed, or after the last the table has, whichever is earlier, and
    end at the last day of which there is any data.
    """
    import sqlalchemy as sa

    query = sa.text(
        f"""
        with changed as (
            select user_id, min(local_date) as first_day
            from (
                select user_id, local_date from health._changed_daily
                where change_id <= :last_change and change_id > coalesce(
                    (select change_id from health._engine_watermarks where table_name = :table), 0)
                    {f"and metric_type = any({text_array(table.metrics)})" if table.metrics else ""}
                {_EVERYBODY}
                {_CHANGED_GOALS if table is FORECASTS else ""}
                {_CHANGED_WORDS if table is NARRATIVES else ""}
            ) as changes
            group by user_id
        )
        select
            changed.user_id,
            least(changed.first_day, computed.last_day + 1) as first_day,
            coalesce(greatest(daily.last_day, workouts.last_day), changed.first_day) as last_day
        from changed
        -- Each looks at the end of an index: what it costs is the same after years.
        cross join lateral (
            select max(local_date) as last_day from health.daily_metrics where user_id = changed.user_id
        ) as daily
        cross join lateral (
            select max(local_date) as last_day from health.workouts where user_id = changed.user_id
        ) as workouts
        cross join lateral (
            select max({table.day}) as last_day from health.{table.name} where user_id = changed.user_id
        ) as computed
        order by changed.user_id
        """  # noqa: S608
    )
    with warehouse.engine.connect() as connection:
        newest = connection.execute(
            sa.text(
                """
                select least(coalesce(max(changes.change_id), 0), (
                    select min(coalesce(marks.change_id, 0)) from unnest(cast(:follows as text[])) as followed (name)
                    left join health._engine_watermarks as marks on marks.table_name = followed.name
                ))
                from health._changed_daily as changes
                """
            ),
            {"follows": list(table.follows)},
        )
        last_change: int = newest.scalar_one()
        rows = connection.execute(query, {"table": table.name, "last_change": last_change}).all()
    return last_change, _group(rows, table.user_days_at_once)


def _group(rows: Sequence[Any], user_days: int) -> list[Scope]:
    """Scopes of users whose first days lie within the same power of two of days before the newest, so many at once
    that their days, with the history that results rest on, are not more than `user_days`."""
    if not rows:
        return []
    newest = max(row.last_day for row in rows)
    groups: dict[int, list[Any]] = {}
    for row in rows:
        groups.setdefault((newest - min(row.first_day, newest)).days.bit_length(), []).append(row)
    scopes = []
    for bits, everybody in sorted(groups.items()):
        at_once = max(user_days // (2**bits + _HISTORY_DAYS), 1)
        for start in range(0, len(everybody), at_once):
            members = everybody[start : start + at_once]
            scopes.append(
                Scope(
                    tuple(row.user_id for row in members),
                    min(row.first_day for row in members),
                    max(max(row.last_day, row.first_day) for row in members),
                    tuple(row.last_day for row in members),
                )
            )
    return scopes


def mark_computed(warehouse: Warehouse, table: EngineTable, last_change: int) -> None:
    """The table has taken the queue up to this change; what every table has taken leaves the queue."""
    import sqlalchemy as sa

    with warehouse.engine.begin() as connection:
        connection.execute(
            sa.text(
                "insert into health._engine_watermarks values (:table, :change) "
                "on conflict (table_name) do update set change_id = excluded.change_id"
            ),
            {"table": table.name, "change": last_change},
        )
        connection.execute(
            sa.text(
                "delete from health._changed_daily where change_id <= "  # noqa: S608
                f"(select min(change_id) from health._engine_watermarks having count(*) = {len(TABLES)})"
            )
        )


def read_frame(warehouse: Warehouse, query: str) -> pd.DataFrame:
    """A query's result as a frame, through Arrow; dates become midnights (datetime64)."""
    frame: pd.DataFrame = _read(warehouse, query).to_pandas(date_as_object=False)
    return frame


def _read(warehouse: Warehouse, query: str) -> pa.Table:
    with warehouse.arrow() as connection, connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetch_arrow_table()


def read_daily(
    warehouse: Warehouse,
    users: Iterable[int],
    metrics: Iterable[str],
    since: str,
    *,
    of_user: str = "",
    of_metric: str = "",
) -> pd.DataFrame:
    """`daily` of the engine (see `engine.frames`): users' elected values of some metrics, `since` an SQL date.

    It may name a column of a lateral query of each user (`of_user`, of users.user_id) or of each user and metric
    (`of_metric`, of metrics.metric_type, too). A user's metric comes as one row with its days and values as arrays:
    rows with words in each take three times as long to come.
    """
    import numpy as np
    import pandas as pd

    table = _read(
        warehouse,
        f"""
        select users.user_id, metrics.metric_type, daily.source, daily.days, daily.amounts
        from unnest({array_literal(users)}) as users (user_id)
        {f"cross join lateral ({of_user}) as of_user" if of_user else ""}
        cross join unnest({text_array(metrics)}) as metrics (metric_type)
        {f"cross join lateral ({of_metric}) as of_metric" if of_metric else ""}
        cross join lateral (
            select source, array_agg(local_date - date '1970-01-01') as days, array_agg(metric_value) as amounts
            from health.daily_metrics
            where user_id = users.user_id and metric_type = metrics.metric_type and local_date >= {since}
            group by source
        ) as daily
        """,  # noqa: S608
    ).combine_chunks()
    lengths = table["days"].combine_chunks().value_lengths().to_numpy(zero_copy_only=False)

    def repeated(column: str) -> Any:
        words = pd.Categorical(table[column].to_pandas())
        return pd.Categorical.from_codes(np.repeat(words.codes, lengths), dtype=words.dtype)

    def flat(column: str) -> Any:
        return table[column].combine_chunks().flatten().to_numpy(zero_copy_only=False)

    return pd.DataFrame(
        {
            "user_id": np.repeat(table["user_id"].to_numpy(), lengths),
            "local_date": flat("days").astype("datetime64[D]").astype("datetime64[s]"),
            "metric_type": repeated("metric_type"),
            "value": flat("amounts").astype("float64"),
            "source": repeated("source"),
        }
    )


def array_literal(ids: Iterable[int]) -> str:
    """`'{1,2}'::integer[]`: ids inline, since they are numbers and ADBC binds no arrays."""
    return "'{" + ",".join(str(int(each)) for each in ids) + "}'::integer[]"


def text_array(names: Iterable[str]) -> str:
    """A text array inline, sorted; for names of our own, such as metrics."""
    quoted = ", ".join("'" + name.replace("'", "''") + "'" for name in sorted(names))
    return f"array[{quoted}]::text[]"


def replace_rows(warehouse: Warehouse, table: EngineTable, frame: pd.DataFrame, scope: Scope) -> int:
    """Make the table's rows of the scope equal to `frame`; touches only rows that differ. Returns how many.

    In scope are the scope's users from its first day to each one's last day of data; what `frame` has beyond
    a user's last day is left out.
    """
    import pyarrow as pa
    from pandas import Series

    last_days = Series(scope.last_days, index=scope.user_ids, dtype="datetime64[us]")
    frame = frame[frame[table.day] <= frame["user_id"].map(last_days)]

    columns, keys, day = table.names, table.keys, table.day
    rest = [name for name in columns if name not in keys]
    result = pa.Table.from_pandas(frame[columns], preserve_index=False)
    for position, column in enumerate(table.columns):
        if column.sql_type == "date":
            result = result.set_column(position, column.name, result[column.name].cast(pa.date32()))
    users = array_literal(scope.user_ids)
    # A table of one row a user and metric is made anew as a whole; the others from the first day on.
    since = f"and target.{day} >= date '{scope.start}'" if day in keys else ""
    same_key = " and ".join(f"batch.{key} = target.{key}" for key in keys)
    with warehouse.arrow() as connection, connection.cursor() as cursor:
        connection.adbc_connection.set_autocommit(False)
        cursor.adbc_ingest("engine_batch", result, mode="create", temporary=True)
        cursor.execute(
            f"delete from health.{table.name} as target where target.user_id = any({users}) {since} "  # noqa: S608
            f"and not exists (select from engine_batch as batch where {same_key})"
        )
        changed: int = max(cursor.rowcount, 0)
        cursor.execute(
            f"insert into health.{table.name} as target ({', '.join(columns)}) "  # noqa: S608
            f"select {', '.join(columns)} from engine_batch order by {', '.join(keys)} "
            f"on conflict ({', '.join(keys)}) do update set "
            f"{', '.join(f'{name} = excluded.{name}' for name in rest)} "
            f"where ({', '.join(f'target.{name}' for name in rest)}) is distinct from "
            f"({', '.join(f'excluded.{name}' for name in rest)})"
        )
        changed += max(cursor.rowcount, 0)
        cursor.execute("drop table engine_batch")
        connection.commit()
        connection.adbc_connection.set_autocommit(True)
    return changed
