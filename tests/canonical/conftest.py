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


@pytest.fixture(scope="session")
def built_template(
    postgres: ServerAddress, migrated_template: str, dbt: Dbt, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """A database with all tables and views, and nothing in them: to copy it takes less than to build it."""
    name = "template_canonical"
    with _lab(postgres, migrated_template, dbt, tmp_path_factory.mktemp("raw")) as lab:
        lab.ensure_staging()
        lab.build()
    with _admin(postgres) as connection:
        connection.execute(sa.text(f'create database "{name}" template "{_DATABASE}"'))
    return name


@pytest.fixture
def lab(postgres: ServerAddress, built_template: str, dbt: Dbt, tmp_path: Path) -> Iterator[Lab]:
    """A lab of the test's own. Not beside `lab_of_module`: there is one database."""
    with _lab(postgres, built_template, dbt, tmp_path / "raw") as lab:
        yield lab


@pytest.fixture(scope="module")
def lab_of_module(
    postgres: ServerAddress, built_template: str, dbt: Dbt, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lab]:
    """A lab for all tests of a module."""
    with _lab(postgres, built_template, dbt, tmp_path_factory.mktemp("raw")) as lab:
        yield lab


@contextmanager
def _lab(postgres: ServerAddress, template: str, dbt: Dbt, raw: Path) -> Iterator[Lab]:
    with _admin(postgres) as connection:
        connection.execute(sa.text(f'drop database if exists "{_DATABASE}" with (force)'))
        connection.execute(sa.text(f'create database "{_DATABASE}" template "{template}"'))
    url = sa.make_url(postgres.url(_DATABASE))
    warehouse = Warehouse(url, url)
    yield Lab(warehouse, open_store(str(raw)), dbt)
    warehouse.engine.dispose()


@contextmanager
def _admin(postgres: ServerAddress) -> Iterator[sa.Connection]:
    admin = sa.create_engine(postgres.url("postgres"), poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        yield connection
