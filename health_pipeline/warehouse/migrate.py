"""Bring the operational schema to the newest revision, under a lock, at every start."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from health_pipeline.warehouse.models import SCHEMA

#: Any fixed number: commands that start together queue here instead of migrating twice.
_LOCK_KEY = 7_104_114_823


def migrate(engine: sa.Engine) -> None:
    """Run the pending Alembic migrations. A database at the newest revision costs one query.

    Raises RuntimeError where the database is newer than this program.
    """
    newest = _newest_revision()
    with engine.connect() as connection:
        if _current_revision(connection) == newest:
            return
    _upgrade(engine)


def _newest_revision() -> str:
    # The file names carry the revision ids in order, so that the usual start needs no Alembic import.
    versions = Path(__file__).parent / "migrations" / "versions"
    return max(path.stem.split("_", 1)[0] for path in versions.glob("[0-9]*.py"))


def _current_revision(connection: sa.Connection) -> str | None:
    if connection.execute(sa.text(f"select to_regclass('{SCHEMA}.alembic_version')")).scalar() is None:
        return None
    return connection.execute(sa.text(f"select version_num from {SCHEMA}.alembic_version")).scalar()  # noqa: S608


def _upgrade(engine: sa.Engine) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with engine.begin() as connection:
        connection.execute(sa.text("select pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})
        connection.execute(sa.text(f"create schema if not exists {SCHEMA}"))
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise RuntimeError(
                f"the warehouse's schema {SCHEMA!r} is not one this version knows ({error}); "
                "upgrade health-pipeline, or point HEALTH_PIPELINE_DATABASE_URL at another database"
            ) from error
