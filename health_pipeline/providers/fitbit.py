"""Fitbit's Web API, which was shut down on 2026-11-02: a name for what came from it, and the way on.

Nothing is fetched. Consent does not carry over: each person connects Google Health, whose identity names
their old Fitbit id, and gets their history from there. Answers that were kept as files can be uploaded.
"""

from __future__ import annotations

from health_pipeline.providers._fitbit_parse import SCHEMAS, parse, sniff
from health_pipeline.providers.base import Entity, Provider


def _entity(name: str, key: tuple[str, ...], description: str) -> Entity:
    return Entity(name=name, schema=SCHEMAS[name], key=key, description=description)


PROVIDER = Provider(
    name="fitbit",
    title="Fitbit",
    door="fetch",
    entities=(
        _entity(
            "daily_value", ("resource", "date"), "One row a local day and resource: steps, km, kcal, bpm."
        ),
        _entity(
            "intraday_value",
            ("resource", "started_at"),
            "One row a minute (or the detail asked for) and resource.",
        ),
        _entity("body_log", ("kind", "log_id"), "One row a weighing or a measurement of body fat."),
        _entity("sleep", ("log_id",), "One row a sleep with its stages, naps included."),
        _entity("workout", ("log_id",), "One row a logged activity."),
    ),
    parse=parse,
    sniff=sniff,
    file_options={"date": "the day of an activity summary, YYYY-MM-DD, which does not say it itself"},
    successor="google_health",
    parser_version=2,
)
