"""The one resource: warehouse, raw store, vault and settings of this process. It holds no secret itself."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import dagster as dg

if TYPE_CHECKING:
    from health_pipeline.connections.vault import Vault
    from health_pipeline.raw.store import RawStore
    from health_pipeline.settings import Settings
    from health_pipeline.warehouse.connection import Warehouse


class Platform(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Opens each part on first use; configured by the environment alone (see `health_pipeline.settings`)."""

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator["Platform"]:
        """Hold the run's name while its process lives, so that a run whose process was killed can be told."""
        from health_pipeline.warehouse.lock import hold

        if context.run is None:
            yield self
            return
        if context.instance is not None:
            keep_connections(context.instance)
        with hold(self.warehouse().engine, f"run:{context.run.run_id}"):
            yield self

    @property
    def settings(self) -> "Settings":
        from health_pipeline.settings import load_settings

        return load_settings()

    def warehouse(self) -> "Warehouse":
        from health_pipeline.warehouse.connection import open_warehouse

        return open_warehouse()

    def store(self) -> "RawStore":
        """The raw store, opened once a process: to open one of S3 reads a megabyte of what boto3 knows of services."""
        access = sorted(
            item for item in os.environ.items() if item[0].startswith(("AWS_", "HEALTH_PIPELINE_RAW_"))
        )
        return _store_of(self.settings.raw_location, tuple(access))

    def vault(self) -> "Vault":
        from health_pipeline.connections.vault import open_vault

        return open_vault()


def keep_connections(instance: dg.DagsterInstance) -> None:
    """Have Dagster keep its connections in this process, which lasts.

    Else it connects anew two or three times for each event it stores, of which a run has hundreds: half of what a
    webhook's run takes.
    """
    import sqlalchemy as sa

    if instance in _KEEPING:
        return
    _KEEPING.add(instance)
    instance.optimize_for_webserver(statement_timeout=60_000, pool_recycle=3600, max_overflow=20)
    for storage in (instance.run_storage, instance.event_log_storage, instance.schedule_storage):
        engine = getattr(storage, "_engine", None)
        if isinstance(engine, sa.Engine) and engine.dialect.name == "postgresql":
            sa.event.listen(engine, "checkout", _require_alive)


_KEEPING: WeakSet[dg.DagsterInstance] = WeakSet()


def _require_alive(connection: Any, _record: object, _proxy: object) -> None:
    """A connection that was kept over a restart of the server is made anew, as one would be that was not kept."""
    import sqlalchemy as sa

    try:
        with connection.cursor() as cursor:
            cursor.execute("select 1")
    except connection.Error as error:
        raise sa.exc.DisconnectionError from error


@lru_cache(maxsize=2)
def _store_of(location: str, _access: tuple[tuple[str, str], ...]) -> "RawStore":
    from health_pipeline.raw.store import open_store

    return open_store(location)
