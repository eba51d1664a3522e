"""What somebody sees at a terminal while a command works."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

#: As Dagster does while a run goes on, the file of its log takes the place of standard output and error.
_SCRIPT = """
import os, sys, time
from health_pipeline.cli_progress import {bar}

with {bar}("export.zip") as say:
    log = os.open({log!r}, os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 1), os.dup2(log, 2)
    say("staging_apple_health")
    for line in {lines!r}:
        say(line)
        time.sleep(0.3)
"""


@pytest.mark.parametrize(
    ("bar", "lines", "seen"),
    [
        ("file_bar", ["  staging: 40 % of the file read", "canonical"], ["40 %", "export.zip: canonical"]),
        ("status_line", ["  1 of 2 objects staged"], ["staging_apple_health", "1 of 2 objects staged"]),
    ],
)
def test_progress_is_seen_while_a_run_has_the_standard_streams(
    tmp_path: Path, bar: str, lines: list[str], seen: list[str]
) -> None:
    log = tmp_path / "run.log"
    script = _SCRIPT.format(bar=bar, log=str(log), lines=lines)
    terminal, its_end = pty.openpty()

    with subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "COLUMNS": "100", "TERM": "xterm"},
        stdin=its_end, stdout=its_end, stderr=its_end,
    ) as ended:  # fmt: skip
        os.close(its_end)
        shown = _all_of(terminal)

    assert ended.returncode == 0, shown
    assert [words for words in seen if words not in shown] == []
    assert log.read_text() == ""


def _all_of(terminal: int) -> str:
    content = b""
    try:
        while more := os.read(terminal, 65_536):
            content += more
    except OSError:  # nobody writes to it any more
        pass
    os.close(terminal)
    return content.decode()
