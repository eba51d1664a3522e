"""Running sandboxes, and clients that hold a person's token."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import httpx
import pytest
from sandbox_client import ALL_SCOPES, NOW, connected

from health_pipeline.sandbox.server import RunningSandbox, run_in_thread


@pytest.fixture(scope="session")
def sandbox() -> Iterator[RunningSandbox]:
    """Shared by tests that change nothing in it."""
    with run_in_thread(now=lambda: NOW) as running:
        yield running


@pytest.fixture
def own_sandbox() -> Iterator[RunningSandbox]:
    """For tests that switch something."""
    with run_in_thread(now=lambda: NOW) as running:
        yield running


@pytest.fixture
def connect() -> Iterator[Callable[..., httpx.Client]]:
    """A client with the token of a person: `connect(sandbox, "ada")`."""
    opened: list[AbstractContextManager[httpx.Client]] = []

    def open_client(
        running: RunningSandbox, handle: str | None = None, scope: str = ALL_SCOPES
    ) -> httpx.Client:
        manager = connected(running, handle, scope)
        opened.append(manager)
        return manager.__enter__()

    yield open_client
    for manager in opened:
        manager.__exit__(None, None, None)
