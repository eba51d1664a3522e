"""Which Postgres is the warehouse, embedded or external, and how to reach it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import sqlalchemy as sa

from health_pipeline.settings import Settings, load_settings
from health_pipeline.warehouse.migrate import migrate

if TYPE_CHECKING:
    from adbc_driver_manager import AdbcDatabase
    from adbc_driver_postgresql.dbapi import Connection

    from health_pipeline.warehouse.embedded import EmbeddedPostgres

WAREHOUSE_DATABASE = "health"
DAGSTER_DATABASE = "dagster"
_OLDEST_SERVER = 150000


@dataclass(frozen=True)
class Warehouse:
    """The warehouse database and, on the same server unless set otherwise, Dagster's own.

    Holds a lease on the embedded server for as long as the process lives. Connections are made on use.
    """

    url: sa.URL
    dagster_url: sa.URL
    _server: EmbeddedPostgres | None = None

    @cached_property
    def engine(self) -> sa.Engine:
        return sa.create_engine(self.url, pool_pre_ping=True, pool_size=5, max_overflow=10)

    @cached_property
    def _arrow_connections(self) -> _ArrowConnections:
        made = _ArrowConnections(self.libpq_url())
        # Also when the process ends: a connection that is left to the interpreter cannot close itself any more.
        weakref.finalize(self, made.close)
        return made

    @property
    def arrow_database(self) -> AdbcDatabase:
        """What ADBC's connections are made from, and ours are: for who cannot afford its DB-API, which imports pandas.

        Made once: it reads the whole catalogue of types and columns, a sixth of a second of CPU and growing.
        """
        return self._arrow_connections.database

    @contextmanager
    def arrow(self) -> Iterator[Connection]:
        """A connection that speaks Arrow, in a transaction that is committed at the end.

        It is kept for the next who asks, unless it failed.
        """
        connection = self._arrow_connections.take()
        try:
            connection.adbc_connection.set_autocommit(False)
            yield connection
            connection.adbc_connection.set_autocommit(True)
        except BaseException:
            connection.close()
            raise
        self._arrow_connections.give_back(connection)

    def libpq_url(self) -> str:
        """URL for clients that speak libpq (ADBC, dlt): no SQLAlchemy driver in the scheme."""
        return self.url.set(drivername="postgresql").render_as_string(hide_password=False)

    def environment(self) -> dict[str, str]:
        """What child processes (dbt, Dagster) need to reach both databases."""
        url, dagster = self.url, self.dagster_url
        return {
            "HEALTH_PIPELINE_DBT_HOST": url.host or "localhost",
            "HEALTH_PIPELINE_DBT_PORT": str(url.port or 5432),
            "HEALTH_PIPELINE_DBT_USER": url.username or "",
            "HEALTH_PIPELINE_DBT_PASSWORD": url.password or "",
            "HEALTH_PIPELINE_DBT_DATABASE": url.database or "",
            "HEALTH_PIPELINE_DBT_SSLMODE": str(url.query.get("sslmode", "prefer")),
            "HEALTH_PIPELINE_DAGSTER_URL": dagster.set(drivername="postgresql").render_as_string(
                hide_password=False
            ),
        }

    def dispose(self) -> None:
        """Close the pools and give the embedded server back."""
        self._arrow_connections.close()
        self.engine.dispose()
        if self._server is not None:
            self._server.release()


class _ArrowConnections:
    """Connections that speak Arrow and nobody uses at the moment; made on use, of one database of the driver."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._idle: list[Connection] = []
        self._first: Connection | None = None
        self._database: AdbcDatabase | None = None
        self._making = threading.RLock()

    @property
    def database(self) -> AdbcDatabase:
        import adbc_driver_postgresql

        with self._making:
            if self._database is None:
                self._database = adbc_driver_postgresql.connect(self._url)
            return self._database

    def take(self) -> Connection:
        try:
            connection = self._idle.pop()
        except IndexError:
            return self._make()
        if _answers(connection):
            return connection
        connection.close()
        return self._make()

    def give_back(self, connection: Connection) -> None:
        self._idle.append(connection)

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()
        if self._first is not None:
            self._first.close()
        elif self._database is not None:
            self._database.close()
        self._first = self._database = None

    def _make(self) -> Connection:
        from adbc_driver_manager import AdbcConnection
        from adbc_driver_postgresql import dbapi

        # The driver counts the connections of its database, and does not say that two threads may.
        with self._making:
            if self._first is None:
                own = AdbcConnection(self.database)
                self._first = dbapi.Connection(self.database, own, autocommit=True)
                # Clones are made of it, which need its database alone.
                own.close()
            connection = self._first.adbc_clone()
        connection.adbc_connection.set_autocommit(True)
        return connection


def _answers(connection: Connection) -> bool:
    """Whether the server is still there for it."""
    from adbc_driver_manager import Error

    try:
        with connection.cursor() as cursor:
            cursor.execute("select 1")
            cursor.fetchone()
    except Error:
        return False
    return True


_opened: Warehouse | None = None
_opening = threading.Lock()


def open_warehouse(settings: Settings | None = None) -> Warehouse:
    """The warehouse of this process: started if embedded, migrated, version checked. Opened once.

    Raises RuntimeError with the way out where the server is missing, too old or refuses.
    """
    global _opened
    # Sensors are evaluated in threads of one process, and Alembic runs in one thread at a time.
    with _opening:
        if _opened is None:
            _opened = _open(settings or load_settings())
        return _opened


def close_warehouse() -> None:
    """Close what `open_warehouse` opened, so that the next call opens anew."""
    global _opened
    if _opened is not None:
        _opened.dispose()
        _opened = None


def _open(settings: Settings) -> Warehouse:
    if settings.database_url is None:
        from health_pipeline.warehouse.embedded import EmbeddedPostgres

        server = EmbeddedPostgres(settings.home_path)
        address = server.acquire()
        url = sa.make_url(address.url(WAREHOUSE_DATABASE))
        dagster_url = url.set(database=DAGSTER_DATABASE)
        _create_databases(url, {url, dagster_url})
        warehouse = Warehouse(url, dagster_url, server)
    else:
        url = _parse("HEALTH_PIPELINE_DATABASE_URL", settings.database_url.get_secret_value())
        dagster_url = url.set(database=DAGSTER_DATABASE)
        if settings.dagster_database_url is not None:
            dagster_url = _parse(
                "HEALTH_PIPELINE_DAGSTER_DATABASE_URL", settings.dagster_database_url.get_secret_value()
            )
        _create_databases(url, {url, dagster_url})
        warehouse = Warehouse(url, dagster_url)
    _check_server(warehouse)
    migrate(warehouse.engine)
    return warehouse


def _parse(variable: str, text: str) -> sa.URL:
    try:
        url = sa.make_url(text)
    except (sa.exc.ArgumentError, ValueError):
        raise RuntimeError(
            f"{variable} is not a database URL; write it as postgresql://user:password@host:5432/database"
        ) from None
    if url.get_backend_name() not in ("postgresql", "postgres") or not url.database:
        raise RuntimeError(
            f"{variable} must name a Postgres database: postgresql://user:password@host/database"
        )
    # The driver is ours to choose: dagster-postgres and dbt bring psycopg2.
    return url.set(drivername="postgresql+psycopg2")


def _create_databases(url: sa.URL, wanted: set[sa.URL]) -> None:
    """Make those databases of the server that are missing; needs CREATEDB only when one of them is.

    A server that does not answer is left for `_check_server` to report.
    """
    names = {other.database or "" for other in wanted if (other.host, other.port) == (url.host, url.port)}
    for candidate in (url, url.set(database="postgres")):
        engine = sa.create_engine(candidate, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as connection:
                have = set(connection.execute(sa.text("select datname from pg_database")).scalars())
                for name in sorted(names - have):
                    try:
                        connection.execute(sa.text(f'create database "{name}"'))
                    except (sa.exc.ProgrammingError, sa.exc.IntegrityError) as error:
                        if getattr(error.orig, "pgcode", None) in ("42P04", "23505"):
                            continue  # another command made it first
                        raise RuntimeError(
                            f"the database {name!r} does not exist on {url.host} and user {url.username!r} may "
                            f"not create it; create it, or grant CREATEDB, or for Dagster's own storage set "
                            "HEALTH_PIPELINE_DAGSTER_DATABASE_URL"
                        ) from None
                return
        except sa.exc.OperationalError:
            continue


def _check_server(warehouse: Warehouse) -> None:
    url = warehouse.url
    try:
        with warehouse.engine.connect() as connection:
            version = int(connection.execute(sa.text("show server_version_num")).scalar_one())
    except sa.exc.OperationalError as error:
        reason = str(error.orig).strip().splitlines()[0] if error.orig else "no answer"
        raise RuntimeError(
            f"cannot reach the warehouse {url.database!r} at {url.host}:{url.port or 5432} as {url.username!r}: "
            f"{reason}; check HEALTH_PIPELINE_DATABASE_URL"
        ) from None
    if version < _OLDEST_SERVER:
        raise RuntimeError(
            f"the warehouse at {url.host} runs Postgres {version // 10000}; 15 or newer is needed"
        )
