"""One renewal however many ask, and what becomes of one that is killed; the long form is in tests/benchmarks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from health_pipeline.sandbox.server import RunningSandbox
from health_pipeline.warehouse.connection import Warehouse

RACE = Path(__file__).parents[1] / "benchmarks" / "refresh_race.py"


def test_fifty_processes_renew_once_and_a_kill_is_never_silent(
    warehouse: Warehouse, sandbox: RunningSandbox
) -> None:
    database = warehouse.url.render_as_string(hide_password=False)
    done = subprocess.run(
        [sys.executable, str(RACE), "--processes", "50", "--rounds", "4", "--kill-every", "2"],
        env={
            **os.environ,
            "RACE_DATABASE": database,
            "RACE_SANDBOX": sandbox.url,
            "PYTHONPATH": str(RACE.parents[2]),
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["renewed"] + found["reconnect"] == 4
    # Killed between the provider's answer and the commit, where it came to that: the spent token is told to the
    # person, not forgotten.
    assert found["wrong"] == []
