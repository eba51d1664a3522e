"""The lab: an empty, migrated database, and one parsed dbt project for all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from canonical_lab import Dbt, Lab

from health_pipeline.raw.store import open_store
from health_pipeline.warehouse.connection import Warehouse
from health_pipeline.warehouse.embedded import ServerAddress

#: One name for all, because a dbt manifest holds the name of its database.
_DATABASE = "canonical"


@pytest.fixture(scope="session")
def dbt(tmp_path_factory: pytest.TempPathFactory) -> Dbt:
    return Dbt(tmp_path_factory.mktemp("dbt-target"))


@pytest.fixture
def lab(postgres: ServerAddress, migrated_template: str, dbt: Dbt, tmp_path: Path) -> Iterator[Lab]:
    """A lab of the test's own. Not beside `lab_of_module`: there is one database."""
    with _lab(postgres, migrated_template, dbt, tmp_path / "raw") as lab:
        yield lab


@pytest.fixture(scope="module")
def lab_of_module(
    postgres: ServerAddress, migrated_template: str, dbt: Dbt, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lab]:
    """A lab for all tests of a module."""
    with _lab(postgres, migrated_template, dbt, tmp_path_factory.mktemp("raw")) as lab:
        yield lab


@contextmanager
def _lab(postgres: ServerAddress, template: str, dbt: Dbt, raw: Path) -> Iterator[Lab]:
    admin = sa.create_engine(postgres.url("postgres"), poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(sa.text(f'drop database if exists "{_DATABASE}" with (force)'))
        connection.execute(sa.text(f'create database "{_DATABASE}" template "{template}"'))
    url = sa.make_url(postgres.url(_DATABASE))
    warehouse = Warehouse(url, url)
    lab = Lab(warehouse, open_store(str(raw)), dbt)
    lab.ensure_staging()
    yield lab
    warehouse.engine.dispose()
