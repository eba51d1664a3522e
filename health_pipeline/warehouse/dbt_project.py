"""Where the dbt project is, and its manifest: parsed anew when a file of the project changed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

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


def keep_partial_parse(target: Path) -> None:
    """Keep what an invocation parsed for the next one; dbt parses anew whenever the connection changed."""
    parsed, kept = target / "partial_parse.msgpack", MANIFEST.with_name("partial_parse.msgpack")
    if parsed.exists() and (not kept.exists() or parsed.stat().st_mtime > kept.stat().st_mtime):
        draft = kept.with_name(f"{kept.name}.{os.getpid()}")
        shutil.copyfile(parsed, draft)
        draft.replace(kept)


def _is_current() -> bool:
    try:
        made_at = MANIFEST.stat().st_mtime
    except FileNotFoundError:
        return False
    return all(path.stat().st_mtime <= made_at for path in _sources())


def _sources() -> Iterator[Path]:
    yield PROJECT_DIR / "dbt_project.yml"
    for folder in ("models", "seeds", "macros", "tests"):
        # Folders too: a file that was deleted changes its folder's time only.
        yield PROJECT_DIR / folder
        yield from (PROJECT_DIR / folder).rglob("*")


if __name__ == "__main__":
    ensure_manifest()
