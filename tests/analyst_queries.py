"""What analysts ask of large tables, as they would write it, and what its plan has to do with an index."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

#: By name. Parameters: `user_id`, `metric`, `day` (the last of the period, or the one day).
QUERIES = {
    "last 90 days of one metric of one user": """
        select recorded_at, metric_value, source
        from health.health_metrics
        where user_id = :user_id and metric_type = :metric
            and recorded_at >= date :day - 90 and recorded_at < date :day + 1
        order by recorded_at
    """,
    "one day of all users, a value a metric": """
        select user_id, metric_type, metric_value, source
        from health.daily_metrics
        where local_date = date :day
    """,
    # A local day begins and ends up to 14 hours from the UTC one: the instants leave out the other months.
    "one day of all users, every sample": """
        select user_id, metric_type, recorded_at, metric_value, source
        from health.health_metrics
        where local_date = date :day
            and recorded_at >= date :day - 1 and recorded_at < date :day + 2
    """,
    # `order by … limit 1` for each metric of the catalogue walks the primary key backwards from the newest
    # month; `distinct on (metric_type)` would read all that the user ever measured.
    "latest value of each metric of a user": """
        select metric_types.metric_type, latest.metric_value, latest.metric_unit, latest.recorded_at, latest.source
        from health.metric_types
        cross join lateral (
            select metric_value, metric_unit, recorded_at, source
            from health.health_metrics
            where user_id = :user_id and metric_type = metric_types.metric_type
            order by recorded_at desc
            limit 1
        ) as latest
    """,
}


def bound(query: str, user_id: int, metric: str, day: dt.date) -> str:
    """The query with its values written into it, as a person types them."""
    for name, value in {":user_id": str(user_id), ":metric": f"'{metric}'", ":day": f"'{day}'"}.items():
        query = query.replace(name, value)
    return query


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A plan of `explain (format json)` and all that is below it."""
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def read_whole(plan: dict[str, Any]) -> list[str]:
    """The tables and partitions of measured values that the plan went through from end to end."""
    return sorted(
        node["Relation Name"]
        for node in nodes(plan)
        if node["Node Type"] == "Seq Scan"
        and node["Actual Loops"] > 0
        and node["Relation Name"].startswith(("health_metrics", "daily_metrics"))
    )


def partitions_read(plan: dict[str, Any]) -> list[str]:
    """The partitions of health_metrics that the plan opened."""
    return sorted(
        {
            node["Relation Name"]
            for node in nodes(plan)
            if node.get("Relation Name", "").startswith("health_metrics_") and node["Actual Loops"] > 0
        }
    )


def buffers(plan: dict[str, Any]) -> int:
    """Blocks of 8 KiB that the plan read, from memory or from disk."""
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])
