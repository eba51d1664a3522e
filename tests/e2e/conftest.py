"""The whole house for a module of tests: Postgres, S3, the sandbox over HTTP, Dagster's storage."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable, Iterator

import boto3
import pytest
import sqlalchemy as sa
from house import House
from seaweed import SeaweedServer

from health_pipeline.sandbox.server import run_in_thread
from health_pipeline.settings import load_settings
from health_pipeline.warehouse import connection as warehouse_connection
from health_pipeline.warehouse.connection import Warehouse, close_warehouse, open_warehouse
from health_pipeline.warehouse.embedded import ServerAddress

#: The sandbox's clock stands here.
NOW = dt.datetime(2026, 3, 10, tzinfo=dt.UTC)


@pytest.fixture(scope="module")
def house(
    postgres: ServerAddress,
    seaweed: SeaweedServer,
    dbt_warehouse: Callable[[str], Warehouse],
    migrated_template: str,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[House]:
    """The tables and views of dbt are there where the module is marked with `built`, and are to come elsewhere."""
    built = request.node.get_closest_marker("built") is not None
    template = request.getfixturevalue("built_template") if built else migrated_template
    name = request.module.__name__.rsplit(".", 1)[-1]
    home = tmp_path_factory.mktemp(name)
    bucket = f"raw-{name.replace('_', '-')}"
    before = dict(os.environ)
    os.environ.update(seaweed.environment)
    boto3.client("s3").create_bucket(Bucket=bucket)
    os.environ["HEALTH_PIPELINE_HOME"] = str(home)
    os.environ["HEALTH_PIPELINE_DATABASE_URL"] = dbt_warehouse(template).libpq_url()
    with sa.create_engine(postgres.url("postgres"), isolation_level="AUTOCOMMIT").connect() as admin:
        admin.execute(sa.text("drop database if exists e2e_dagster with (force)"))
        admin.execute(sa.text("create database e2e_dagster"))
    os.environ["HEALTH_PIPELINE_DAGSTER_DATABASE_URL"] = postgres.url("e2e_dagster", driver="postgresql")
    os.environ["HEALTH_PIPELINE_RAW_URL"] = f"s3://{bucket}/raw"
    with run_in_thread(now=lambda: NOW) as sandbox:
        os.environ["HEALTH_PIPELINE_SANDBOX_URL"] = sandbox.url
        load_settings.cache_clear()
        settings = load_settings()
        opened_before, warehouse_connection._opened = warehouse_connection._opened, None
        yield House(settings, open_warehouse(settings), sandbox, home)
        close_warehouse()
        warehouse_connection._opened = opened_before
    os.environ.clear()
    os.environ.update(before)
    load_settings.cache_clear()
