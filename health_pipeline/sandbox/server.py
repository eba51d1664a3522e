"""The sandbox as a server: `python -m health_pipeline.sandbox.server --port 8765`."""

from __future__ import annotations

import argparse
import datetime as dt
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn
from fastapi import FastAPI

from health_pipeline.sandbox.app import NOW_VARIABLE, create_app
from health_pipeline.sandbox.people import DEFAULT_SEED


@dataclass(frozen=True, slots=True)
class RunningSandbox:
    """A sandbox that answers at `url`; `app.state` has its parts."""

    url: str
    app: FastAPI


def _bind(host: str, port: int) -> tuple[socket.socket, str]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OSError(f"the sandbox cannot listen on {host} port {port}: {error.strerror}") from error
    listener.listen(128)
    shown = f"[{host}]" if family == socket.AF_INET6 else host
    return listener, f"http://{shown}:{listener.getsockname()[1]}"


def _server(app: FastAPI) -> uvicorn.Server:
    # A cut connection, which a fault may order, would be logged as an error of ours.
    config = uvicorn.Config(
        app, log_level="critical", access_log=False, lifespan="off", timeout_graceful_shutdown=3
    )
    return uvicorn.Server(config)


def serve(host: str = "127.0.0.1", port: int = 0, **settings: Any) -> None:
    """Serve until interrupted, after one line on stdout with the address. `settings` go to `create_app`.

    Raises:
        OSError: the port is taken.
    """
    app = create_app(**settings)
    listener, url = _bind(host, port)
    sys.stdout.write(f"provider sandbox at {url}\n")
    sys.stdout.flush()
    _server(app).run(sockets=[listener])


@contextmanager
def run_in_thread(host: str = "127.0.0.1", port: int = 0, **settings: Any) -> Iterator[RunningSandbox]:
    """A sandbox in a thread of this process while the block runs. `settings` go to `create_app`."""
    app = create_app(**settings)
    listener, url = _bind(host, port)
    server = _server(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="sandbox", daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + 10
        while not server.started:
            if not thread.is_alive() or time.monotonic() > deadline:
                raise RuntimeError(f"the sandbox at {url} did not start")
            time.sleep(0.005)
        yield RunningSandbox(url, app)
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        listener.close()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m health_pipeline.sandbox.server", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED)
    parser.add_argument(
        "--now", help=f"ISO time with offset at which the clock stands still; else {NOW_VARIABLE}"
    )
    parser.add_argument("--access-token-seconds", type=int, default=86_400)
    given = parser.parse_args(arguments)
    settings: dict[str, Any] = {"seed": given.seed, "access_token_seconds": given.access_token_seconds}
    if given.now:
        try:
            fixed = dt.datetime.fromisoformat(given.now)
        except ValueError:
            parser.error(f"--now is not an ISO time: {given.now}")
        if fixed.tzinfo is None:
            parser.error("--now needs an offset, such as 2026-11-21T12:00:00Z")
        settings["now"] = lambda: fixed
    try:
        serve(given.host, given.port, **settings)
    except KeyboardInterrupt:
        pass
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
