"""Tables of the engine in schema `health`: what they hold, and how they are made and read.

dbt owns the other tables of the schema. These live in the same schema, so dropping it drops everything that
is derived. How results get in by what changed: `engine_changes`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from health_pipeline.warehouse.connection import Warehouse

SCHEMA = "health"
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


def read_frame(warehouse: Warehouse, query: str) -> pd.DataFrame:
    """A query's result as a frame, through Arrow; dates become midnights (datetime64)."""
    frame: pd.DataFrame = read_arrow(warehouse, query).to_pandas(date_as_object=False)
    return frame


def read_arrow(warehouse: Warehouse, query: str) -> pa.Table:
    """A query's result as Arrow has it."""
    with warehouse.arrow() as connection, connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetch_arrow_table()
