"""dlt's Postgres destination, whose jobs use the warehouse's connections.

dlt connects anew for each table of a load, and each time ADBC reads the whole catalogue of types and columns: of a
load of ten tables, which takes a second, that would be two seconds of CPU more, and more as the warehouse grows.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, ClassVar

from dlt.destinations.impl.postgres.factory import postgres
from dlt.destinations.impl.postgres.postgres import PostgresClient, PostgresParquetCopyJob

from health_pipeline.warehouse.connection import Warehouse

if TYPE_CHECKING:
    from adbc_driver_postgresql.dbapi import Connection
    from dlt.common.destination.client import LoadJob
    from dlt.common.destination.typing import PreparedTableSchema


class Destination(postgres):
    """`dlt.destinations.postgres` of a warehouse."""

    def __init__(self, warehouse: Warehouse) -> None:
        super().__init__(credentials=warehouse.libpq_url(), destination_name="postgres")
        # dlt takes a class here, and makes the client itself.
        self._client_class = type("Client", (_Client,), {"warehouse": warehouse})

    @property
    def client_class(self) -> type[PostgresClient]:
        return self._client_class


class _Client(PostgresClient):
    warehouse: ClassVar[Warehouse]

    def create_load_job(
        self, table: PreparedTableSchema, file_path: str, load_id: str, restore: bool = False
    ) -> LoadJob:
        job = super().create_load_job(table, file_path, load_id, restore)
        if isinstance(job, PostgresParquetCopyJob):
            job = _CopyJob(file_path, self.warehouse)
        return job


class _CopyJob(PostgresParquetCopyJob):
    def __init__(self, file_path: str, warehouse: Warehouse) -> None:
        super().__init__(file_path)
        self._warehouse = warehouse

    # dlt enters what it gets, and asks it for no more.
    def _connect(self) -> AbstractContextManager[Connection]:  # type: ignore[override]
        return self._warehouse.arrow()
