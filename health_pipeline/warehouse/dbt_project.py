"""Where the dbt project is, and its manifest: parsed anew when a file of the project changed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlalchemy as sa

#: Beside the package in a checkout; elsewhere it has to be named.
PROJECT_DIR = Path(
    os.environ.get("HEALTH_PIPELINE_DBT_PROJECT", Path(__file__).resolve().parents[2] / "dbt_project")
)
MANIFEST = PROJECT_DIR / "target" / "manifest.json"


def dbt_executable() -> str:
    """dbt of this environment, whatever PATH says."""
    beside = Path(sys.executable).with_name("dbt")
    return str(beside) if beside.exists() else "dbt"


def ensure_manifest() -> Path:
    """The path of an up-to-date manifest.json. Parsing asks no database.

    Raises RuntimeError with dbt's own words where the project does not parse.
    """
    if not (PROJECT_DIR / "dbt_project.yml").exists():
        raise RuntimeError(
            f"there is no dbt project at {PROJECT_DIR}; set HEALTH_PIPELINE_DBT_PROJECT to its folder"
        )
    if not _is_current():
        parsed = subprocess.run(
            [dbt_executable(), "--quiet", "parse", "--profiles-dir", str(PROJECT_DIR)],
            cwd=PROJECT_DIR,
            capture_output=True,
            text=True,
            check=False,
        )
        if parsed.returncode != 0:
            raise RuntimeError(f"the dbt project does not parse:\n{parsed.stdout}{parsed.stderr}")
    return MANIFEST


class KeptParse:
    """What was parsed for one warehouse, for the processes to come; dbt parses anew whenever the connection changed."""

    #: Of so many warehouses, those used last.
    MOST = 6
    _NAME = "partial_parse.msgpack"

    def __init__(self) -> None:
        names = ("HOST", "PORT", "USER", "DATABASE", "SSLMODE")
        connection = repr([os.environ.get(f"HEALTH_PIPELINE_DBT_{name}") for name in names])
        self._file = MANIFEST.with_name(
            f"kept-{hashlib.sha256(connection.encode()).hexdigest()[:16]}.msgpack"
        )

    def give(self, target: Path) -> None:
        """Put it where an invocation with this target folder looks for it."""
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(self._file, target / self._NAME)

    def take(self, target: Path) -> None:
        """Keep what an invocation with this target folder left."""
        draft = self._file.with_suffix(f".{os.getpid()}")
        # A file may be gone: dbt may be told to leave none, and another process may tidy up, too.
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(target / self._NAME, draft)
            draft.replace(self._file)
            kept = sorted(self._file.parent.glob("kept-*.msgpack"), key=lambda each: each.stat().st_mtime)
            for file in kept[: -self.MOST]:
                file.unlink()


class Views:
    """Whether the views of a warehouse are those of the project: to make them again costs more than the tables.

    What they were made from is noted in their own schema, so that it goes when they go.
    """

    KINDS = ("view", "lasting_view")
    #: dbt's arguments to leave them as they are.
    KEEP = ("--exclude", " ".join(f"config.materialized:{kind}" for kind in ("view", "lasting_view")))

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._project = _fingerprint()

    def are_current(self) -> bool:
        import sqlalchemy as sa

        with self._engine.connect() as connection:
            if connection.execute(sa.text("select to_regclass('health_internal._views')")).scalar() is None:
                return False
            noted = connection.execute(
                sa.text(
                    "select project, (views) = (select count(*) from pg_views where schemaname = any(:schemas)) "
                    "from health_internal._views"
                ),
                {"schemas": ["health", "health_internal"]},
            ).one_or_none()
        return noted is not None and tuple(noted) == (self._project, True)

    def note(self) -> None:
        """After a build of all of them that succeeded."""
        import sqlalchemy as sa

        with self._engine.begin() as connection:
            connection.execute(
                sa.text(
                    "create table if not exists health_internal._views (project text not null, views bigint not null)"
                )
            )
            connection.execute(sa.text("delete from health_internal._views"))
            connection.execute(
                sa.text(
                    "insert into health_internal._views select :project, count(*) from pg_views "
                    "where schemaname = any(:schemas)"
                ),
                {"project": self._project, "schemas": ["health", "health_internal"]},
            )


def _fingerprint() -> str:
    """Of all files that say what the views are."""
    digest = hashlib.sha256()
    for path in sorted(path for path in _sources() if path.is_file() and path.suffix in (".sql", ".yml")):
        digest.update(path.name.encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _is_current() -> bool:
    try:
        made_at = MANIFEST.stat().st_mtime
    except FileNotFoundError:
        return False
    return newest_change() <= made_at


def newest_change() -> float:
    """When a file of the project changed last, as seconds since 1970."""
    return max(path.stat().st_mtime for path in _sources())


def _sources() -> Iterator[Path]:
    yield PROJECT_DIR / "dbt_project.yml"
    for folder in ("models", "seeds", "macros", "tests"):
        # Folders too: a file that was deleted changes its folder's time only.
        yield PROJECT_DIR / folder
        yield from (PROJECT_DIR / folder).rglob("*")


if __name__ == "__main__":
    ensure_manifest()
