"""The one entry for Dagster. Each module below says what it adds."""

from __future__ import annotations

import dagster as dg

from health_pipeline.defs import (
    canonical,
    checks,
    dead_runs,
    engine,
    events,
    jobs,
    settled,
    sources,
    subscriptions,
)
from health_pipeline.defs.resources import Platform

defs = dg.Definitions.merge(
    sources.defs,  # raw/* and staging_*/*: what providers and files give
    canonical.defs,  # health/*: the dbt project
    engine.defs,  # health/*: baselines, loads, recovery, forecasts
    checks.defs,  # what must hold of all of them
    settled.defs,  # ops/settled: what was asked for is done
    jobs.defs,  # when they run
    events.defs,  # what webhooks and requests start
    subscriptions.defs,  # where providers call us
    dead_runs.defs,  # runs whose process was killed
    dg.Definitions(
        resources={"platform": Platform()},
        # A step's imports cost more than most steps: a run is one process.
        executor=dg.in_process_executor,
    ),
)
