"""`health-pipeline disconnect`: the connection, and where asked the data, end."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, field

from health_pipeline.connections import disconnect as connections
from health_pipeline.connections.users import require_user
from health_pipeline.connections.vault import open_vault
from health_pipeline.ingestion.erasure import Erased, erase_source
from health_pipeline.providers.base import Window
from health_pipeline.providers.registry import all_providers, get
from health_pipeline.raw.store import open_store
from health_pipeline.runtime.run_job import run_job
from health_pipeline.settings import Settings
from health_pipeline.staging.tables import schema_name
from health_pipeline.warehouse.connection import Warehouse


@dataclass(slots=True)
class Ended:
    """`left` is what only the person can do, at the provider."""

    title: str
    handle: str
    left: str | None
    erased: Erased | None = None
    problems: list[str] = field(default_factory=list)

    def words(self) -> str:
        """The report for the terminal."""
        lines = [f"{self.title} is disconnected for {self.handle}; its tokens are deleted"]
        if self.left is not None:
            lines.append(self.left)
        lines.append(
            self.erased.words() if self.erased else "what came before is kept (--delete-data erases it)"
        )
        return "\n".join(lines)


def disconnect(
    settings: Settings,
    warehouse: Warehouse,
    provider_name: str,
    handle: str,
    *,
    delete_data: bool,
    say: Callable[[str], None],
    compute: bool = True,
) -> Ended:
    """End a user's connection to a provider; with `delete_data`, erase what came and compute the rest anew.

    Raises LookupError for an unknown provider, user or account, RawStoreUnavailableError.
    """
    provider = get(provider_name)
    with warehouse.engine.connect() as connection:
        user = require_user(connection, handle)
    left = connections.disconnect(warehouse, open_vault(settings), settings, provider, user.user_id)
    ended = Ended(provider.title, handle, left)
    if delete_data:
        say("erasing")
        ended.erased = erase_source(warehouse, open_store(settings.raw_location), provider, user.user_id)
        if compute and ended.erased.derived:
            ended.problems = _compute_anew(settings, warehouse, say)
    return ended


def _compute_anew(settings: Settings, warehouse: Warehouse, say: Callable[[str], None]) -> list[str]:
    """Run what follows staging; returns what went wrong."""
    today = dt.datetime.now(dt.UTC).date()
    doors = ("raw", *(schema_name(name) for name in all_providers()))
    outcome = run_job(
        "daily_refresh", Window(today, today), settings, warehouse, without=doors, on_progress=say
    )
    return list(outcome.failures)
