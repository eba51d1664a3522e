"""Whether a provider's records still have the shape that its parser knows."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from health_pipeline.staging.tables import schema_name

#: Loads that count as new: about a day's of a provider that is asked every hour.
NEWEST_LOADS = 20
#: Reasons of quarantine that speak of the record's shape, not of its values.
SHAPE_REASONS = ("missing_field", "wrong_type", "malformed_body")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Records of one entity refused in the newest loads for the same field and reason."""

    entity: str
    field: str | None
    reason: str
    records: int


@dataclass(frozen=True, slots=True)
class Drift:
    """`refusals` are in quarantine; `notes` are what was new and is kept in raw, such as new fields."""

    refusals: tuple[Refusal, ...]
    notes: tuple[str, ...]


def recent_drift(engine: sa.Engine, provider: str) -> Drift:
    """Refusals for their shape, and notes, of a provider's newest loads; found by the loads' block-range index."""
    schema = schema_name(provider)
    newest = f"select load_id from {schema}.loads where finished order by load_id desc limit :loads"  # noqa: S608
    with engine.connect() as connection:
        loads = list(connection.execute(sa.text(newest), {"loads": NEWEST_LOADS}).scalars())
        bound = {"loads": loads, "first": min(loads, default=0), "reasons": list(SHAPE_REASONS)}
        refusals = connection.execute(
            sa.text(
                f"select entity, field, reason, count(*) as records from {schema}.quarantine "  # noqa: S608
                "where _load_id >= :first and _load_id = any(:loads) and reason = any(:reasons) "
                "group by entity, field, reason order by entity, field, reason"
            ),
            bound,
        ).all()
        notes = connection.execute(
            sa.text(
                f"select distinct unnest(notes) as note from {schema}.staged_objects "  # noqa: S608
                "where load_id = any(:loads) order by note"
            ),
            bound,
        ).scalars()
        return Drift(tuple(Refusal(*row) for row in refusals), tuple(notes))
