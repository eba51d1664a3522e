"""`health-pipeline upload` of a large file on a machine that dies in the middle of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
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
    killed = subprocess.Popen(
        [sys.executable, "-m", "health_pipeline.cli", *command],
        env=dict(os.environ),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 200
    # Its rows come in one transaction of many COPYs: so it is in the middle of the file.
    while not house.rows(
        "select from pg_locks where relation = to_regclass('staging_apple_health.records') "
        "and mode = 'RowExclusiveLock'"
    ):
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert house.rows("select from ops.raw_objects where provider = 'apple_health'") == [()]
    assert house.rows("select from staging_apple_health.staged_objects") == []

    again = house.command(*command, timeout=400)

    assert again.returncode == 0, again.stderr
    assert f"{written.total()} records read, {records} in the warehouse" in again.stdout
    assert "duplicates" not in again.stdout
    assert "% of the file read" in again.stderr
    assert house.scalar("select count(*) from staging_apple_health.records") == records
    assert house.scalar("select count(*) from health.health_metrics") == records
