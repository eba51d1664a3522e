"""How runs start under `health-pipeline up`: forked from a process that has imported what they need.

A Python of its own for each run takes seconds to import Dagster, dlt, dbt and the definitions, which is most of
what a webhook's run costs. Named in the home's dagster.yaml; an instance configured otherwise starts runs in its
own way.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import TYPE_CHECKING

from dagster._core.launcher.default_run_launcher import DefaultRunLauncher
from dagster._grpc.types import ExecuteRunArgs
from dagster._serdes import serialize_value

from health_pipeline.defs.dead_runs import end_dead_run
from health_pipeline.defs.resources import keep_connections
from health_pipeline.warehouse.dbt_project import newest_change

if TYPE_CHECKING:
    from dagster._core.launcher.base import LaunchRunContext

#: The run's process, on the machine that launched it.
PID_TAG = "health_pipeline/pid"
_PACKAGE = Path(__file__).parents[1]
_PR_SET_PDEATHSIG = 1


class PreloadedRunLauncher(DefaultRunLauncher):
    """Forks runs; where the code has changed since it was loaded, starts them as DefaultRunLauncher does."""

    _forks: ForkServerContext | None = None
    _begun_at: float = 0.0
    _loaded: threading.Event

    def launch_run(self, context: LaunchRunContext) -> None:
        keep_connections(self._instance)
        run = context.dagster_run
        if run.job_code_origin is None or not self._is_loaded():
            super().launch_run(context)
            return
        assert self._forks is not None
        arguments = ExecuteRunArgs(run.job_code_origin, run.run_id, self._instance.get_ref())
        process = self._forks.Process(target=execute, args=(serialize_value(arguments),), name=run.run_id)
        process.start()
        self._instance.add_run_tags(run.run_id, {PID_TAG: str(process.pid)})
        threading.Thread(target=self._watch, args=(process, run.run_id), daemon=True).start()

    def terminate(self, run_id: str) -> bool:
        """Interrupt the run, from whichever process of this machine; its steps clean up."""
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        if PID_TAG not in run.tags:
            return bool(super().terminate(run_id))  # type: ignore[no-untyped-call]
        self._instance.report_run_canceling(run)
        try:
            os.kill(int(run.tags[PID_TAG]), signal.SIGINT)
        except ProcessLookupError:
            self._instance.report_run_canceled(run, message="The run's process had ended already.")
        return True

    def _is_loaded(self) -> bool:
        """Begin to load with the first run, which does not wait for it."""
        if self._forks is None:
            self._begun_at = time.time()
            self._loaded = threading.Event()
            self._forks = multiprocessing.get_context("forkserver")
            self._forks.set_forkserver_preload(["health_pipeline.runtime.preload"])
            threading.Thread(target=self._load, args=(self._forks,), daemon=True).start()
        return self._loaded.is_set() and _newest_code() < self._begun_at

    def _load(self, forks: ForkServerContext) -> None:
        # The first fork comes when everything is loaded.
        first = forks.Process(target=_nothing)
        first.start()
        first.join()
        if first.exitcode == 0:
            self._loaded.set()

    def _watch(self, process: ForkServerProcess, run_id: str) -> None:
        """A process that dies without a word, killed perhaps, leaves a run that failed."""
        atexit.register(process.terminate)
        process.join()
        atexit.unregister(process.terminate)
        run = self._instance.get_run_by_id(run_id)
        if process.exitcode and run is not None and not run.is_finished:
            end_dead_run(self._instance, run, f"The run's process ended with exit code {process.exitcode}.")


def execute(arguments: str) -> None:
    """In the forked process: the run, as Dagster's own command does it."""
    from dagster._cli.api import execute_run_command

    _die_with_parent()
    execute_run_command.main([arguments], prog_name="dagster api execute_run", standalone_mode=False)


def _nothing() -> None:
    pass


def _die_with_parent() -> None:
    # As with every process under `up`: what started it ends it, be it by kill -9.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _newest_code() -> float:
    newest = newest_change()
    for path in _PACKAGE.rglob("*.py"):
        with contextlib.suppress(FileNotFoundError):
            newest = max(newest, path.stat().st_mtime)
    return newest
