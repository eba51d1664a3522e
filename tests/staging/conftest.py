"""Real pages of a sandbox, in a raw store, waiting to be staged."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import sqlalchemy as sa
from connecting import NOW, OURA

from health_pipeline.connections.endpoints import endpoint_of
from health_pipeline.connections.oauth import connect_with_hint
from health_pipeline.connections.users import ensure_user
from health_pipeline.providers.base import Page, Provider, Window
from health_pipeline.providers.http import ApiClient
from health_pipeline.raw.index import Delivery, receive
from health_pipeline.raw.store import RawStore
from health_pipeline.sandbox.server import run_in_thread
from health_pipeline.settings import Settings
from health_pipeline.staging.load import StagingReport, stage
from health_pipeline.staging.tables import schema_name, table_schemas
from health_pipeline.warehouse.connection import Warehouse

DAY = dt.date(2026, 11, 10)


@pytest.fixture(scope="session")
def pages() -> Sequence[Page]:
    """Three days of ada, all entities."""
    with run_in_thread(now=lambda: NOW) as sandbox:
        endpoint = endpoint_of(OURA, Settings(sandbox_url=sandbox.url))
        token = connect_with_hint(endpoint, "ada").access_token
        window = Window(DAY, DAY + dt.timedelta(days=2))
        assert OURA.fetch is not None
        with ApiClient("oura", endpoint.base_url, lambda _: token) as client:
            return [
                page
                for entity in OURA.entities
                if entity.endpoint is not None
                for page in OURA.fetch(client, entity, window)
            ]


@dataclass
class Staging:
    """The staging room of a warehouse: deliver to it, stage, and read the tables."""

    warehouse: Warehouse
    store: RawStore
    provider: Provider = OURA
    received: int = field(default=0)

    def deliver(
        self,
        content: bytes,
        entity: str,
        *,
        day: dt.date = DAY,
        until: dt.date | None = None,
        context: Mapping[str, str] | None = None,
    ) -> int:
        with self.warehouse.engine.begin() as connection:
            user = ensure_user(connection, "ada", "Europe/London")
        self.received += 1
        receipt = receive(
            self.warehouse.engine,
            self.store,
            [
                Delivery(
                    provider=self.provider.name,
                    entity=entity,
                    user_id=user.user_id,
                    door="fetch",
                    content=content,
                    received_at=NOW + dt.timedelta(seconds=self.received),
                    partition_start=day,
                    partition_end=until or day,
                    time_zone=user.time_zone,
                    context=context or {},
                )
            ],
        )[0]
        return receipt.raw_object_id

    def deliver_pages(self, pages: Sequence[Page]) -> list[int]:
        return [self.deliver(page.content, page.entity) for page in pages]

    def stage(self, **rest: Any) -> StagingReport:
        return stage(self.warehouse, self.store, rest.pop("provider", self.provider), **rest)

    def query(self, statement: str) -> list[Any]:
        with self.warehouse.engine.connect() as connection:
            return list(connection.execute(sa.text(statement)))

    def scalar(self, statement: str) -> Any:
        return self.query(statement)[0][0]

    @property
    def schema(self) -> str:
        return schema_name(self.provider.name)

    def tables(self, without: Sequence[str] = ("_load_id",)) -> dict[str, list[str]]:
        """Every table's rows as text in a fixed order, without some columns."""
        return {
            table: [
                row[0]
                for row in self.query(
                    f"select (to_jsonb(t) - '{{{','.join(without)}}}'::text[])::text as row "
                    f'from {self.schema}."{table}" as t order by 1'
                )
            ]
            for table in table_schemas(self.provider)
        }

    def assert_tidy(self) -> None:
        """Every row belongs to the one load that its object was staged with, and all loads are finished."""
        assert self.scalar(f"select count(*) from {self.schema}.loads where not finished") == 0
        for table in table_schemas(self.provider):
            orphans = (
                f'select count(*) from {self.schema}."{table}" as t where not exists ('
                f"select from {self.schema}.staged_objects as s "
                "where s.raw_object_id = t._raw_object_id and s.load_id = t._load_id)"
            )
            assert self.scalar(orphans) == 0, table
        counted: dict[str, int] = dict.fromkeys(table_schemas(self.provider), 0)
        for row in self.query(f"select rows_staged from {self.schema}.staged_objects"):
            for table, rows in row.rows_staged.items():
                counted[table] += rows
        assert counted == {table: len(rows) for table, rows in self.tables().items()}


@pytest.fixture
def staging(warehouse: Warehouse, store: RawStore) -> Iterator[Staging]:
    yield Staging(warehouse, store)


@pytest.fixture
def filled(staging: Staging, pages: Sequence[Page]) -> Staging:
    staging.deliver_pages(pages)
    return staging


Make = Callable[[], Staging]
