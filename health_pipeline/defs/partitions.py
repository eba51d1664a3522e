"""Partitions: one a day, UTC. Never by user: a run takes all users of its days."""

from __future__ import annotations

import datetime as dt

import dagster as dg

from health_pipeline.providers.base import Window
from health_pipeline.settings import FIRST_DAY

#: For `raw/*` and `staging_*`: the days asked for of a provider, the day of receipt of a file. Today is one
#: of them, since files come today.
DAILY = dg.DailyPartitionsDefinition(start_date=FIRST_DAY.isoformat(), end_offset=1)

#: A range of days is one run.
ONE_RUN = dg.BackfillPolicy.single_run()


def window_of(context: dg.AssetExecutionContext) -> Window:
    """The days of a run, both ends included."""
    start, end = context.partition_time_window
    return Window(start.date(), (end - dt.timedelta(days=1)).date())
