"""dbt in a thread of this process, in the shape of a process: its events come as lines of JSON.

To start a Python and to parse the project is most of what a small build costs as a process of its own; here both
are done once, or before there is anything to build.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from health_pipeline.warehouse.dbt_project import (
    PROJECT_DIR,
    KeptParse,
    newest_change,
)

if TYPE_CHECKING:
    from dbt.contracts.graph.manifest import Manifest
    from dbt_common.events.base_types import EventMsg


class DbtThread:
    """One invocation of dbt. The environment has to name the warehouse (see Warehouse.environment).

    Has what readers of a subprocess use: `args`, `stdout`, `returncode`, `wait`, `send_signal`.
    """

    def __init__(self, arguments: Sequence[str], target: Path) -> None:
        self.args = ["dbt", *arguments]
        self.returncode: int | None = None
        reading, writing = os.pipe()
        self.stdout: IO[bytes] = os.fdopen(reading, "rb")
        self._events: IO[bytes] = os.fdopen(writing, "wb", buffering=0)
        self._lock = threading.Lock()
        # A run that is ended does not wait for what dbt would still do.
        self._thread = threading.Thread(target=self._run, args=(arguments, target), name="dbt", daemon=True)
        self._thread.start()

    def wait(self, timeout: float | None = None) -> int:
        """0, or 1 where something failed, as dbt's own exit code. Raises subprocess.TimeoutExpired."""
        import subprocess

        self._thread.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self.returncode

    def send_signal(self, _signal: int) -> None:
        """Break off: the statements under way are cancelled, and no further model begins."""
        from dbt.adapters.base.impl import BaseAdapter
        from dbt.adapters.factory import FACTORY

        for adapter in FACTORY.adapters.values():
            assert isinstance(adapter, BaseAdapter)
            with adapter.connection_named("cancel"):
                list(adapter.cancel_open_connections())  # type: ignore[no-untyped-call]

    def _run(self, arguments: Sequence[str], target: Path) -> None:
        self.returncode = 1
        with self._events:
            try:
                from dbt.cli.main import dbtRunner

                runner = dbtRunner(manifest=parsed_project(), callbacks=[self._tell])
                # Its artefacts are read by nobody, and take half a second to write.
                done = runner.invoke([*arguments, "--no-write-json", *_project_arguments(target)])
                if done.success:
                    self.returncode = 0
                elif done.exception is not None:
                    raise done.exception
            except Exception as error:
                self._write({"info": {"level": "error", "name": "Failed", "msg": str(error)}, "data": {}})

    def _tell(self, event: EventMsg) -> None:
        from dbt_common.events.functions import msg_to_dict

        if event.info.level not in ("debug", "test"):
            self._write(msg_to_dict(event))

    def _write(self, event: dict[str, Any]) -> None:
        import orjson

        # Where nobody reads any more, the work goes on.
        with self._lock, contextlib.suppress(BrokenPipeError):
            self._events.write(orjson.dumps(event) + b"\n")


def parsed_project() -> Manifest:
    """The project as dbt has it in memory for the environment's warehouse, parsed anew when a file of it changed.

    Raises RuntimeError with dbt's own words where it does not parse.
    """
    # A manifest holds the name of its database.
    profile = tuple(sorted(item for item in os.environ.items() if item[0].startswith("HEALTH_PIPELINE_DBT_")))
    return _parsed_at(newest_change(), profile)


@lru_cache(maxsize=2)
def _parsed_at(_changed_at: float, _profile: tuple[tuple[str, str], ...]) -> Manifest:
    from dbt.cli.main import dbtRunner
    from dbt.contracts.graph.manifest import Manifest

    with tempfile.TemporaryDirectory(prefix="health-pipeline-dbt-") as folder:
        target = Path(folder)
        kept = KeptParse()
        kept.give(target)
        done = dbtRunner().invoke(["parse", *_project_arguments(target)])
        if not isinstance(done.result, Manifest):
            raise RuntimeError(f"the dbt project does not parse: {done.exception}")
        kept.take(target)
        return done.result


def _project_arguments(target: Path) -> list[str]:
    return [
        *("--project-dir", str(PROJECT_DIR), "--profiles-dir", str(PROJECT_DIR)),
        *("--target-path", str(target), "--log-path", str(target)),
        *("--log-level", "none", "--log-level-file", "none", "--no-send-anonymous-usage-stats"),
    ]
