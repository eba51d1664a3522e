"""`health-pipeline up`: database, sandbox where no provider is configured, receiver, Dagster's two processes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from health_pipeline.providers.registry import all_providers
from health_pipeline.runtime.dagster_home import prepare
from health_pipeline.runtime.processes import (
    Interrupted,
    ProcessGroup,
    free_port,
    interruptible,
    wait_for_http,
)
from health_pipeline.runtime.receiver import DEFAULT_PORT as RECEIVER_PORT
from health_pipeline.settings import Settings
from health_pipeline.warehouse.connection import Warehouse
from health_pipeline.warehouse.dbt_project import ensure_manifest

Say = Callable[[str], None]

#: Beside the package in a checkout; gives the code location its name.
WORKSPACE = Path(__file__).resolve().parents[2] / "workspace.yaml"


def needs_sandbox(settings: Settings) -> bool:
    """True where no provider has a client id and no sandbox is named: there is nobody to ask."""
    return settings.sandbox_url is None and not any(
        settings.client_credentials(name) for name in all_providers()
    )


def start_sandbox(group: ProcessGroup, *, now: str | None = None) -> str:
    """Start the sandbox as a child on a free port and return its address once it answers."""
    port = free_port(8900)
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    if now is not None:
        environment["HEALTH_PIPELINE_SANDBOX_NOW"] = now
    group.start(
        "sandbox", [sys.executable, "-m", "health_pipeline.sandbox.server", "--port", str(port)], environment
    )
    url = f"http://127.0.0.1:{port}"
    wait_for_http(f"{url}/healthz", group)
    return url


def up(settings: Settings, warehouse: Warehouse, say: Say, *, port: int | None = None) -> None:
    """Serve until SIGINT or SIGTERM; then end every process that was started.

    Raises RuntimeError where one of them ends by itself, naming its log.
    """
    logs = settings.home_path / "logs"
    with interruptible(), ProcessGroup(logs) as group:
        try:
            _serve(settings, warehouse, say, group, logs, port)
        except Interrupted:
            say("stopping")


def _serve(
    settings: Settings, warehouse: Warehouse, say: Say, group: ProcessGroup, logs: Path, port: int | None
) -> None:
    environment = {**os.environ, **prepare(settings, warehouse)}
    say(f"warehouse  postgresql://{warehouse.url.host}:{warehouse.url.port or 5432}/{warehouse.url.database}")
    say(f"raw store  {settings.raw_location}")
    say(f"inbox      {settings.inbox_location}/<user>/<file>")
    ensure_manifest()
    if needs_sandbox(settings):
        environment["HEALTH_PIPELINE_SANDBOX_URL"] = start_sandbox(group)
        say(f"sandbox    {environment['HEALTH_PIPELINE_SANDBOX_URL']}  (no provider is configured)")
    receiver = f"http://127.0.0.1:{free_port(RECEIVER_PORT)}"
    environment.setdefault("HEALTH_PIPELINE_RECEIVER_URL", receiver)
    group.start(
        "receiver",
        [sys.executable, "-m", "health_pipeline.cli", "receiver", "--port", receiver.rpartition(":")[2]],
        environment,
    )
    port = free_port(port or 3000)
    location = (
        ["--workspace", str(WORKSPACE)] if WORKSPACE.exists() else ["-m", "health_pipeline.definitions"]
    )
    bin_folder = Path(sys.executable).parent
    group.start(
        "webserver",
        [str(bin_folder / "dagster-webserver"), *location, "--host", "127.0.0.1", "--port", str(port)],
        environment,
    )
    group.start("daemon", [str(bin_folder / "dagster-daemon"), "run", *location], environment)
    wait_for_http(f"http://127.0.0.1:{port}/server_info", group, seconds=120)
    wait_for_http(f"{receiver}/healthz", group)
    say(f"receiver   {receiver}/webhooks/<provider>")
    say(f"dagster    http://127.0.0.1:{port}")
    say("Ctrl-C ends all of it")
    while (ended := group.ended()) is None:
        time.sleep(0.5)
    raise RuntimeError(f"{ended} ended by itself; see {logs}")
