"""Fitbit's Web API, which was shut down on 2026-11-02: a name for what came from it, and the way on.

Nothing is fetched. Consent does not carry over: each person connects Google Health, whose identity names
their old Fitbit id, and gets their history from there.
"""

from __future__ import annotations

from health_pipeline.providers._json import quarantine_table
from health_pipeline.providers.base import Parsed, Provider, RawDocument


def parse(document: RawDocument) -> Parsed:
    """Nothing: the bytes stay in raw, and the same days are served by the successor."""
    skipped = {"api_shut_down": 1}
    return Parsed({}, quarantine_table(document.entity, ()), records_in=1, records_loaded=0, skipped=skipped)


PROVIDER = Provider(
    name="fitbit",
    title="Fitbit",
    door="fetch",
    entities=(),
    parse=parse,
    successor="google_health",
)
