"""How results of the engine get into its tables by what changed: who has to be computed anew, from which days, and
the rows that differ afterwards."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from health_pipeline.warehouse.engine_tables import FORECASTS, NARRATIVES, TABLES, EngineTable, read_arrow

if TYPE_CHECKING:
    import pandas as pd

    from health_pipeline.warehouse.connection import Warehouse

#: The longest that any table looks back.
_HISTORY_DAYS = 180


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

    table = read_arrow(
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
    return changed
