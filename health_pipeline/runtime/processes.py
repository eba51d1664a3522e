"""Child processes that end with us: each in a process group of its own, ended as a group."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

_PR_SET_PDEATHSIG = 1
_GRACE_SECONDS = 10.0


class Interrupted(Exception):  # noqa: N818 - an event, not an error
    """SIGINT or SIGTERM came: end in good order."""


def free_port(preferred: int | None = None) -> int:
    """`preferred` if nobody listens there on loopback, else a free one."""
    for port in (preferred, 0):
        if port is None:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            found: int = probe.getsockname()[1]
            return found
    raise OSError("there is no free port on 127.0.0.1")


def _die_with_parent() -> None:
    # Even kill -9 of the parent must leave nothing behind; elsewhere than on Linux only an orderly end does.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class ProcessGroup:
    """Children started through it are ended, with all that they started, when the block is left."""

    def __init__(self, log_folder: Path) -> None:
        self._log_folder = log_folder
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> ProcessGroup:
        self._log_folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, name: str, arguments: Sequence[str], environment: Mapping[str, str]) -> Path:
        """Start a child; its output goes to `<log folder>/<name>.log`, which is returned."""
        log = self._log_folder / f"{name}.log"
        with log.open("wb") as output:
            self._children[name] = subprocess.Popen(
                list(arguments),
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        return log

    def ended(self) -> str | None:
        """The name of a child that ended by itself, with its exit code."""
        for name, child in self._children.items():
            if child.poll() is not None:
                return f"{name} (exit code {child.returncode})"
        return None

    def stop(self) -> None:
        """End every group: SIGTERM, then SIGKILL for what is left after ten seconds."""
        for child in self._children.values():
            _signal_group(child.pid, signal.SIGTERM)
        deadline = time.monotonic() + _GRACE_SECONDS
        for child in self._children.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, deadline - time.monotonic()))
        while time.monotonic() < deadline and any(
            _group_lives(child.pid) for child in self._children.values()
        ):
            time.sleep(0.1)
        for child in self._children.values():
            _signal_group(child.pid, signal.SIGKILL)
            child.wait()
        self._children.clear()


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGINT and SIGTERM raise Interrupted within the block, so that `finally` runs for both."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise Interrupted

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def wait_for_http(url: str, group: ProcessGroup, seconds: float = 60.0) -> None:
    """Return once `url` answers. Raises RuntimeError where a child of the group ended or time is up."""
    import httpx

    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (ended := group.ended()) is not None:
            raise RuntimeError(f"{ended} ended before it answered")
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url, timeout=2.0).status_code < 500:
                return
        time.sleep(0.1)
    raise RuntimeError(f"nothing answered at {url} within {seconds:.0f} s")
