"""Reaching a warehouse, making its databases, and bringing its schema to the newest revision."""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from pydantic import SecretStr
from seaweed import free_ports

from health_pipeline.settings import Settings
from health_pipeline.warehouse import connection as connection_module
from health_pipeline.warehouse.connection import Warehouse, close_warehouse, open_warehouse
from health_pipeline.warehouse.embedded import EmbeddedPostgres, ServerAddress
from health_pipeline.warehouse.migrate import migrate
from health_pipeline.warehouse.models import SCHEMA, Base

CANARY = "canary-password-7f3a"

OPEN = """
import sys
from pydantic import SecretStr
from health_pipeline.settings import Settings
from health_pipeline.warehouse.connection import open_warehouse
sys.stdin.readline()
warehouse = open_warehouse(Settings(database_url=SecretStr(sys.argv[1]), dagster_database_url=SecretStr(sys.argv[2])))
with warehouse.engine.connect() as connection:
    print(connection.exec_driver_sql("select version_num from ops.alembic_version").scalar())
"""


@pytest.fixture
def admin(postgres: ServerAddress) -> Iterator[Callable[[str], object]]:
    engine = sa.create_engine(postgres.url("postgres"), poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")

    def run(statement: str) -> object:
        with engine.connect() as connection:
            result = connection.execute(sa.text(statement))
            return result.scalar() if result.returns_rows else None

    yield run


@pytest.fixture
def names(admin: Callable[[str], object]) -> Iterator[tuple[str, str]]:
    """Two databases that are not there yet; dropped after the test, with what opened them closed."""
    name = f"fresh_{uuid.uuid4().hex[:10]}"
    yield name, f"{name}_dagster"
    close_warehouse()
    for each in (name, f"{name}_dagster"):
        admin(f'drop database if exists "{each}" with (force)')


@pytest.fixture(autouse=True)
def _nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "_opened", None)


def external(url: str, dagster: str | None = None) -> Settings:
    return Settings(
        database_url=SecretStr(url), dagster_database_url=None if dagster is None else SecretStr(dagster)
    )


def plain(postgres: ServerAddress, database: str, scheme: str = "postgresql") -> str:
    return postgres.url(database, driver=scheme)


def revision(engine: sa.Engine) -> str:
    with engine.connect() as connection:
        return str(connection.exec_driver_sql("select version_num from ops.alembic_version").scalar_one())


@pytest.mark.parametrize(
    "scheme", ["postgres", "postgresql", "postgresql+psycopg2", "postgresql+psycopg", "postgresql+asyncpg"]
)
def test_every_usual_form_of_address_opens_and_missing_databases_are_made(
    postgres: ServerAddress, names: tuple[str, str], admin: Callable[[str], object], scheme: str
) -> None:
    warehouse = open_warehouse(external(plain(postgres, names[0], scheme), plain(postgres, names[1], scheme)))
    with warehouse.engine.connect() as connection:
        assert connection.exec_driver_sql("select current_database()").scalar() == names[0]
        assert connection.exec_driver_sql("select count(*) from ops.users").scalar() == 0
    assert admin(f"select count(*) from pg_database where datname = '{names[1]}'") == 1
    # dlt, ADBC and libpq know no SQLAlchemy drivers.
    assert warehouse.libpq_url().startswith("postgresql://")
    assert warehouse.environment()["HEALTH_PIPELINE_DAGSTER_URL"].startswith("postgresql://")
    assert open_warehouse() is warehouse


def test_a_password_with_special_characters_reaches_every_client(
    postgres: ServerAddress, names: tuple[str, str], admin: Callable[[str], object]
) -> None:
    role, password = f"{names[0]}_role", "p@ss/w:rd%41?#&"
    admin(f"create role \"{role}\" login createdb password '{password.replace(':', chr(92) + ':')}'")
    try:
        url = sa.make_url(plain(postgres, names[0])).set(username=role, password=password)
        dagster = url.set(database=names[1]).render_as_string(hide_password=False)
        warehouse = open_warehouse(external(url.render_as_string(hide_password=False), dagster))
        assert warehouse.environment()["HEALTH_PIPELINE_DBT_PASSWORD"] == password
        from adbc_driver_postgresql import dbapi

        with dbapi.connect(warehouse.libpq_url()) as client, client.cursor() as cursor:
            cursor.execute("select current_user::text")
            assert cursor.fetchone() == (role,)
    finally:
        close_warehouse()
        for name in names:
            admin(f'drop database if exists "{name}" with (force)')
        admin(f'drop role "{role}"')


def test_processes_that_start_together_make_and_migrate_one_database(
    postgres: ServerAddress, names: tuple[str, str], admin: Callable[[str], object]
) -> None:
    command = [sys.executable, "-c", OPEN, plain(postgres, names[0]), plain(postgres, names[1])]
    processes = [
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    with ThreadPoolExecutor(len(processes)) as pool:
        ended = list(pool.map(lambda process: process.communicate("go\n", timeout=60), processes))
    assert [process.returncode for process in processes] == [0] * 4, ended
    assert {output.strip() for output, _ in ended} == {newest_revision()}
    assert admin(f"select count(*) from pg_database where datname = '{names[1]}'") == 1


def test_databases_are_made_while_others_are_being_made(
    postgres: ServerAddress, names: tuple[str, str], admin: Callable[[str], object]
) -> None:
    """CREATE DATABASE copies a template that only one may copy at a time; others are refused, or wait."""
    url = sa.make_url(postgres.url(names[0]))
    wanted = {url, url.set(database=names[1])}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: connection_module._create_databases(url, wanted), range(8)))
    for name in names:
        assert admin(f"select count(*) from pg_database where datname = '{name}'") == 1


def newest_revision() -> str:
    from health_pipeline.warehouse.migrate import _newest_revision

    return _newest_revision()


def test_the_newest_revision_by_file_name_is_alembics_only_head() -> None:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(connection_module.__file__).parent / "migrations"))
    assert ScriptDirectory.from_config(config).get_heads() == [newest_revision()]


def test_migrating_twice_changes_nothing_and_keeps_rows(warehouse: Warehouse) -> None:
    with warehouse.engine.begin() as connection:
        connection.exec_driver_sql("insert into ops.users (handle) values ('ada')")
    for _ in range(2):
        migrate(warehouse.engine)
    with warehouse.engine.connect() as connection:
        assert connection.exec_driver_sql("select array_agg(handle) from ops.users").scalar() == ["ada"]
    assert revision(warehouse.engine) == newest_revision()


def test_a_database_half_way_is_brought_to_the_newest_revision(
    postgres: ServerAddress, names: tuple[str, str]
) -> None:
    from alembic import command
    from alembic.config import Config

    url = sa.make_url(postgres.url(names[0]))
    connection_module._create_databases(url, {url})
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    config = Config()
    config.set_main_option("script_location", str(Path(connection_module.__file__).parent / "migrations"))
    with engine.begin() as connection:
        connection.exec_driver_sql("create schema ops")
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    assert revision(engine) == "0001"
    migrate(engine)
    assert revision(engine) == newest_revision()


def test_two_databases_of_one_new_server_migrate_at_once(tmp_path: Path) -> None:
    """Roles belong to the server: the second finds out only after it asked that the first was making them."""
    server = EmbeddedPostgres(tmp_path / "home")
    address = server.acquire()
    try:
        url = sa.make_url(address.url("health"))
        connection_module._create_databases(url, {url})
        engine = sa.create_engine(url, poolclass=sa.NullPool)
        other = sa.create_engine(address.url("postgres"), poolclass=sa.NullPool)
        waiting = (
            "select count(*) from pg_stat_activity where datname = 'health' and wait_event_type = 'Lock'"
        )
        with ThreadPoolExecutor(1) as pool, other.connect() as first:
            for role in ("health_analyst", "health_subject"):
                first.exec_driver_sql(f"create role {role} nologin")
            second = pool.submit(migrate, engine)
            wait_until(lambda: second.done() or scalar(other, waiting) == 1)
            first.commit()
            second.result(timeout=20)
        assert revision(engine) == newest_revision()
        assert scalar(engine, "select count(*) from pg_roles where rolname like 'health_%'") == 2
    finally:
        server.release()


def test_threads_that_open_at_once_get_one_warehouse(postgres: ServerAddress, names: tuple[str, str]) -> None:
    settings = external(plain(postgres, names[0]), plain(postgres, names[1]))
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(lambda _: open_warehouse(settings), range(4)))
    assert len(set(map(id, opened))) == 1


def scalar(engine: sa.Engine, query: str) -> object:
    with engine.connect() as connection:
        return connection.execute(sa.text(query)).scalar()


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_a_database_of_a_newer_version_is_refused_with_the_way_out(warehouse: Warehouse) -> None:
    with warehouse.engine.begin() as connection:
        connection.exec_driver_sql("update ops.alembic_version set version_num = '9999'")
    with pytest.raises(RuntimeError, match="upgrade health-pipeline") as refused:
        migrate(warehouse.engine)
    assert "9999" in str(refused.value)
    assert "HEALTH_PIPELINE_DATABASE_URL" in str(refused.value)
    assert revision(warehouse.engine) == "9999"


def test_models_and_migrations_say_the_same(warehouse: Warehouse) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with warehouse.engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "include_schemas": True,
                "version_table_schema": SCHEMA,
                "compare_type": True,
                "compare_server_default": True,
                "include_name": lambda name, kind, _: kind != "schema" or name == SCHEMA,
            },
        )
        assert compare_metadata(context, Base.metadata) == []
        # Alembic compares neither check constraints nor what happens to a foreign key's rows.
        for table in Base.metadata.sorted_tables:
            inspector = sa.inspect(connection)
            checks = {found["name"] for found in inspector.get_check_constraints(table.name, schema=SCHEMA)}
            assert checks == {
                str(constraint.name)
                for constraint in table.constraints
                if isinstance(constraint, sa.CheckConstraint)
            }, table.name
            found = {
                (column, key.get("options", {}).get("ondelete"))
                for key in inspector.get_foreign_keys(table.name, schema=SCHEMA)
                for column in key["constrained_columns"]
            }
            assert found == {(key.parent.name, key.ondelete) for key in table.foreign_keys}, table.name


def test_a_wrong_password_is_told_without_it(
    postgres: ServerAddress, names: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    url = sa.make_url(plain(postgres, names[0])).set(password=CANARY)
    with pytest.raises(RuntimeError) as refused:
        open_warehouse(external(url.render_as_string(hide_password=False)))
    message = str(refused.value)
    assert f"{url.host}:{url.port}" in message
    assert repr(url.username) in message
    assert "password authentication failed" in message
    assert "HEALTH_PIPELINE_DATABASE_URL" in message
    assert_nowhere(CANARY, refused.value, caplog)


@pytest.mark.parametrize("host", ["127.0.0.1", "nobody.invalid"])
def test_a_server_that_is_not_there_is_named(host: str, caplog: pytest.LogCaptureFixture) -> None:
    (port,) = free_ports(1)
    with pytest.raises(RuntimeError) as refused:
        open_warehouse(external(f"postgresql://someone:{CANARY}@{host}:{port}/health"))
    assert f"{host}:{port}" in str(refused.value)
    assert "'health'" in str(refused.value)
    assert "HEALTH_PIPELINE_DATABASE_URL" in str(refused.value)
    assert_nowhere(CANARY, refused.value, caplog)


@pytest.mark.parametrize(
    "url",
    [
        f"mysql://someone:{CANARY}@host/health",
        f"someone:{CANARY}@host",
        f"postgresql://someone:{CANARY}@host",
        f"postgresql://someone:{CANARY}@host:port/health",
    ],
)
def test_what_is_no_postgres_address_is_refused_without_being_repeated(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(
        RuntimeError, match=r"HEALTH_PIPELINE_DATABASE_URL .*postgresql://user:password@host"
    ) as refused:
        open_warehouse(external(url))
    assert_nowhere(CANARY, refused.value, caplog)


def test_the_setting_of_dagsters_own_storage_is_named_where_it_is_wrong(postgres: ServerAddress) -> None:
    with pytest.raises(RuntimeError, match="HEALTH_PIPELINE_DAGSTER_DATABASE_URL"):
        open_warehouse(external(plain(postgres, "postgres"), "sqlite:///dagster.db"))


def test_who_may_not_create_a_database_is_told_what_to_ask_for(
    postgres: ServerAddress, names: tuple[str, str], admin: Callable[[str], object]
) -> None:
    role = f"{names[0]}_role"
    admin(f"create role \"{role}\" login password '{CANARY}'")
    try:
        url = sa.make_url(plain(postgres, names[0])).set(username=role, password=CANARY)
        with pytest.raises(RuntimeError) as refused:
            open_warehouse(external(url.render_as_string(hide_password=False)))
        message = str(refused.value)
        assert names[0] in message or "dagster" in message
        assert "CREATEDB" in message
        assert role in message
        assert CANARY not in message
    finally:
        admin(f'drop role "{role}"')


def test_a_server_that_is_too_old_is_refused(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    with warehouse.engine.connect() as connection:
        version = int(connection.exec_driver_sql("show server_version_num").scalar_one())
    monkeypatch.setattr(connection_module, "_OLDEST_SERVER", version + 1)
    with pytest.raises(RuntimeError, match=rf"runs Postgres {version // 10000}; \d+ or newer is needed"):
        connection_module._check_server(warehouse)


def assert_nowhere(secret: str, error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    """Neither in an exception, nor in one it was raised from, nor in a log."""
    seen: BaseException | None = error
    while seen is not None:
        assert secret not in str(seen)
        assert secret not in repr(seen)
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    assert secret not in caplog.text


def test_a_connection_for_arrow_is_kept_until_it_fails_or_the_server_ends_it(warehouse: Warehouse) -> None:
    def backend() -> int:
        with warehouse.arrow() as connection, connection.cursor() as cursor:
            cursor.execute("select pg_backend_pid()::bigint as pid")
            found: int = cursor.fetchone()[0]
        return found

    first = backend()
    assert backend() == first
    with warehouse.engine.begin() as connection:
        connection.execute(sa.text("select pg_terminate_backend(:pid, 5000)"), {"pid": first})
    second = backend()
    assert second != first

    with (
        pytest.raises(Exception, match="no_such_table"),
        warehouse.arrow() as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("select * from no_such_table")
    assert backend() != second


def test_two_that_ask_for_arrow_at_once_do_not_share(warehouse: Warehouse) -> None:
    with warehouse.arrow() as one, warehouse.arrow() as other:
        assert one is not other
