"""A receiver without a socket."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from calling import SECRET
from starlette.testclient import TestClient

from health_pipeline.raw.store import RawStore
from health_pipeline.receiver.app import create_app
from health_pipeline.sandbox.server import RunningSandbox
from health_pipeline.warehouse.connection import Warehouse


@pytest.fixture
def client(warehouse: Warehouse, store: RawStore, sandbox: RunningSandbox) -> Iterator[TestClient]:
    now = sandbox.app.state.sandbox.now if hasattr(sandbox.app.state, "sandbox") else None
    app = create_app(warehouse.engine, store, lambda _: [SECRET, "older-secret"], now)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client
