"""`health-pipeline up` on the embedded default: it serves, and whatever happens it leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from health_pipeline.defs.run_launcher import PID_TAG
from health_pipeline.runtime.processes import free_port

_LOCATIONS = (
    "{ workspaceOrError { ... on Workspace { locationEntries { name loadStatus "
    "locationOrLoadError { ... on PythonError { message } } } } } }"
)


class Up:
    """A running `health-pipeline up`, and every process that belongs to it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.port = free_port()
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("HEALTH_", "DAGSTER_"))
        }
        # The mark that all children inherit, by which what is left of them is found.
        self.mark = f"UP_TEST={home}"
        environment |= {"HEALTH_PIPELINE_HOME": str(home), "UP_TEST": str(home)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "health_pipeline.cli", "up", "--port", str(self.port)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_until_it_serves(self) -> list[str]:
        lines = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            lines.append(line.strip())
            if "Ctrl-C" in line:
                return lines
        raise AssertionError("\n".join(lines))

    def processes(self) -> list[str]:
        found = []
        for folder in Path("/proc").iterdir():
            try:
                marked = self.mark.encode() in (folder / "environ").read_bytes().split(b"\0")
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (OSError, ValueError):
                continue
            if command and (marked or str(self.home) in command):
                found.append(command)
        return found

    def wait_until_nothing_is_left(self, seconds: float) -> list[str]:
        deadline = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return left


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    if not Path("/proc/self/environ").exists():
        pytest.skip("processes are counted through /proc")
    running = Up(tmp_path / "home")
    yield running
    running.process.kill()
    running.process.wait()


def test_it_serves_the_definitions_and_ends_all_it_started(up: Up) -> None:
    lines = up.wait_until_it_serves()
    url = f"http://127.0.0.1:{up.port}"
    assert f"dagster    {url}" in lines
    answer = httpx.post(f"{url}/graphql", json={"query": _LOCATIONS}, timeout=60).json()
    (location,) = answer["data"]["workspaceOrError"]["locationEntries"]
    assert location["name"] == "health_pipeline"
    assert location["loadStatus"] == "LOADED"
    assert not (location["locationOrLoadError"] or {}).get("message")
    password = (up.home / "postgres" / "password").read_text().strip()
    assert len(up.processes()) >= 5
    assert not [command for command in up.processes() if password in command]
    up.process.send_signal(signal.SIGTERM)
    assert up.process.wait(timeout=30) == 0
    assert up.wait_until_nothing_is_left(15) == []


_LAUNCH = """mutation {
  launchRun(executionParams: {
    selector: {
      repositoryLocationName: "health_pipeline", repositoryName: "__repository__", jobName: "webhook_scores"
    }
  }) { __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } }
}"""
_RUN = "query ($id: ID!) { runOrError(runId: $id) { ... on Run { status tags { key value } } } }"


def run_of_scores(up: Up) -> tuple[str, set[str]]:
    """Launch a run and wait for its end: its status, and the keys of its tags."""
    url = f"http://127.0.0.1:{up.port}/graphql"
    launched = httpx.post(url, json={"query": _LAUNCH}, timeout=60).json()["data"]["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    asked = {"query": _RUN, "variables": {"id": launched["run"]["runId"]}}
    deadline = time.monotonic() + 120
    while True:
        run = httpx.post(url, json=asked, timeout=60).json()["data"]["runOrError"]
        if run["status"] in ("SUCCESS", "FAILURE", "CANCELED") or time.monotonic() > deadline:
            return run["status"], {tag["key"] for tag in run["tags"]}
        time.sleep(0.5)


@pytest.mark.slow
def test_runs_are_forked_once_what_they_need_is_loaded(up: Up) -> None:
    up.wait_until_it_serves()
    # There are no tables yet: its steps fail, and it comes to its end.
    status, tags = run_of_scores(up)
    assert status == "FAILURE"
    assert PID_TAG not in tags, "the first begins to load, and does not wait for it"
    for _ in range(10):
        status, tags = run_of_scores(up)
        assert status == "FAILURE"
        if PID_TAG in tags:
            return
    raise AssertionError("no run was forked")


@pytest.mark.slow
def test_even_killed_it_leaves_nothing_behind(up: Up) -> None:
    up.wait_until_it_serves()
    up.process.kill()
    # Dagster's code servers notice by their heartbeat.
    assert up.wait_until_nothing_is_left(75) == []
