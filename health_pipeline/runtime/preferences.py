"""Whose word counts where several sources have a metric of a person's day."""

from __future__ import annotations

import csv
from collections.abc import Sequence

import sqlalchemy as sa

from health_pipeline.connections.users import require_user
from health_pipeline.providers.registry import all_providers
from health_pipeline.warehouse.connection import Warehouse
from health_pipeline.warehouse.dbt_project import PROJECT_DIR
from health_pipeline.warehouse.models import SourcePriority

#: Every metric that has no order of its own.
ALL_METRICS = "*"


def prefer(warehouse: Warehouse, handle: str, sources: Sequence[str], metric: str = ALL_METRICS) -> str:
    """Rank a user's sources for a metric, best first, in place of the ranks there were; none: the house's ranks.

    Sources that are not named come after those that are. The next run computes the days anew that this changes.
    Raises LookupError for an unknown user, ValueError for an unknown source or metric, or one named twice.
    """
    known = all_providers()
    if unknown := [source for source in sources if source not in known]:
        raise ValueError(f"there is no source {unknown[0]!r}; there are {', '.join(known)}")
    if len(set(sources)) < len(sources):
        raise ValueError("a source is named twice")
    metrics = _catalogue()
    if metric != ALL_METRICS and metric not in metrics:
        raise ValueError(f"there is no metric {metric!r}; there are {', '.join(sorted(metrics))}")
    with warehouse.engine.begin() as connection:
        user = require_user(connection, handle)
        connection.execute(
            sa.delete(SourcePriority).where(
                SourcePriority.user_id == user.user_id, SourcePriority.metric_type == metric
            )
        )
        if sources:
            connection.execute(
                sa.insert(SourcePriority),
                [
                    {"user_id": user.user_id, "metric_type": metric, "source": source, "priority": place}
                    for place, source in enumerate(sources, start=1)
                ],
            )
    of = "all metrics" if metric == ALL_METRICS else metric
    if not sources:
        return f"{handle}: {of} by the house's ranks, from the next run on"
    return f"{handle}: {of} from {', then '.join(sources)}, then any other, from the next run on"


def preferences(warehouse: Warehouse, handle: str) -> list[tuple[str, list[str]]]:
    """A user's own ranks: metrics, and their sources from the best down. LookupError for an unknown user."""
    with warehouse.engine.connect() as connection:
        user = require_user(connection, handle)
        rows = connection.execute(
            sa.select(SourcePriority.metric_type, SourcePriority.source)
            .where(SourcePriority.user_id == user.user_id)
            .order_by(SourcePriority.metric_type, SourcePriority.priority)
        ).all()
    ranks: dict[str, list[str]] = {}
    for metric, source in rows:
        ranks.setdefault(metric, []).append(source)
    return list(ranks.items())


def _catalogue() -> set[str]:
    with (PROJECT_DIR / "seeds" / "metric_types.csv").open() as file:
        return {row["metric_type"] for row in csv.DictReader(file)}
