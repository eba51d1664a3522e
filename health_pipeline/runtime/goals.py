"""Goals: what the forecasts are projected to."""

from __future__ import annotations

import csv
import datetime as dt

from sqlalchemy.dialects.postgresql import insert

from health_pipeline.connections.users import require_user
from health_pipeline.warehouse.connection import Warehouse
from health_pipeline.warehouse.dbt_project import PROJECT_DIR
from health_pipeline.warehouse.models import Goal


def set_goal(warehouse: Warehouse, handle: str, metric: str, target: float, by: dt.date | None) -> str:
    """Set a user's goal; says so in words. LookupError for an unknown user, ValueError for a bad goal."""
    with (PROJECT_DIR / "seeds" / "metric_types.csv").open() as file:
        catalogue = {row["metric_type"]: row for row in csv.DictReader(file)}
    if metric not in catalogue:
        raise ValueError(f"there is no metric {metric!r}; there are {', '.join(sorted(catalogue))}")
    row = catalogue[metric]
    if not float(row["valid_min"]) <= target <= float(row["valid_max"]):
        raise ValueError(
            f"{target:g} {row['unit']} cannot be a goal for {metric}: "
            f"it lies between {row['valid_min']} and {row['valid_max']}"
        )
    values = {"target_value": target, "target_date": by}
    with warehouse.engine.begin() as connection:
        user = require_user(connection, handle)
        connection.execute(
            insert(Goal)
            .values(user_id=user.user_id, metric_type=metric, **values)
            .on_conflict_do_update(index_elements=[Goal.user_id, Goal.metric_type], set_=values)
        )
    return f"{handle}: {metric} to {target:g} {row['unit']}" + (f" by {by}" if by else "")
