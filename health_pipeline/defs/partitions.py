"""Partitions: one a day, UTC. Never by user: a run takes all users of its days."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import dagster as dg

from health_pipeline.providers.base import Window
from health_pipeline.settings import FIRST_DAY


class _Days(dg.DailyPartitionsDefinition):
    """Days whose keys are written once a day, and not each time that somebody asks.

    Before each step Dagster lists all days of every partitioned asset that the step reads, only to see that there are
    too many to look at: two seconds of a run over seven years and thirty providers, and more each year.
    """

    def get_partition_keys(self, *arguments: Any, **named: Any) -> Sequence[str]:
        if arguments or named:
            return super().get_partition_keys(*arguments, **named)
        return _keys_up_to(self.get_last_partition_key())


@lru_cache(maxsize=4)
def _keys_up_to(_last: str | None) -> Sequence[str]:
    return dg.DailyPartitionsDefinition.get_partition_keys(DAILY)


#: For `raw/*` and `staging_*`: the days asked for of a provider, the day of receipt of a file. Today is one
#: of them, since files come today.
DAILY = _Days(start_date=FIRST_DAY.isoformat(), end_offset=1)

#: A range of days is one run.
ONE_RUN = dg.BackfillPolicy.single_run()


def window_of(context: dg.AssetExecutionContext) -> Window:
    """The days of a run, both ends included."""
    start, end = context.partition_time_window
    return Window(start.date(), (end - dt.timedelta(days=1)).date())
