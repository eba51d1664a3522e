"""`health-pipeline upload` of a large file on a machine that dies in the middle of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from house import House

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from apple_export import write_export


@pytest.mark.slow
def test_the_same_command_after_a_kill_ends_with_every_row_once(house: House, tmp_path: Path) -> None:
    path = tmp_path / "export.zip"
    written = write_export(path, 12)
    records = written.total() - written["ActivitySummary"]
    command = ("upload", str(path), "--user", "ada", "--timezone", "Europe/Berlin")
    # Its rows come in one transaction of many COPYs: so it is in the middle of the file.
    house.kill(
        *command,
        when=lambda: house.rows(
            "select from pg_locks where relation = to_regclass('staging_apple_health.records') "
            "and mode = 'RowExclusiveLock'"
        ),
    )
    assert house.rows("select from ops.raw_objects where provider = 'apple_health'") == [()]
    assert house.rows("select from staging_apple_health.staged_objects") == []

    again = house.command(*command, timeout=400)

    assert again.returncode == 0, again.stderr
    assert f"{written.total()} records read, {records} in the warehouse" in again.stdout
    assert "duplicates" not in again.stdout
    assert "% of the file read" in again.stderr
    assert house.scalar("select count(*) from staging_apple_health.records") == records
    assert house.scalar("select count(*) from health.health_metrics") == records
