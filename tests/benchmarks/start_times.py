"""What a command and a code location cost before they do anything."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

from measure import Bench, Figure, stopwatch


def figures(bench: Bench) -> Iterator[Figure]:
    bench.say("starting Python again and again")
    rounds = 2 if bench.quick else 4

    def best(code: str) -> float:
        return min(_seconds(code) for _ in range(rounds))

    yield Figure(
        "import of the definitions", "import dagster, dagster_dlt, dagster_dbt", "seconds",
        best("import health_pipeline.definitions"), best("import dagster, dagster_dlt, dagster_dbt"), 1.35, False,
    )  # fmt: skip
    helped = best("import sys; sys.argv = ['health-pipeline', '--help']; import runpy; "
                   "runpy.run_module('health_pipeline.cli', run_name='__main__')")  # fmt: skip
    yield Figure("health-pipeline --help, beyond `python -c pass`", "0.4 s", "seconds",
                 helped - best("pass"), 0.4, 1, False)  # fmt: skip


def _seconds(code: str) -> float:
    with stopwatch() as seconds:
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return seconds()
