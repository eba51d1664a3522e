"""`/openapi.json` against what is answered: every route, with what it says it takes and with what it does not."""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis
import pytest
import schemathesis
from api_client import bearer, receiver_app, user_of
from connecting import connect
from schemathesis.core.parameters import ParameterLocation
from schemathesis.specs.openapi.checks import positive_data_acceptance
from schemathesis.specs.openapi.schemas import OpenApiSchema

from health_pipeline.connections.endpoints import Endpoint
from health_pipeline.connections.vault import Vault
from health_pipeline.ingestion import jobs
from health_pipeline.providers.base import Window
from health_pipeline.receiver.house import today
from health_pipeline.sandbox.server import RunningSandbox
from health_pipeline.settings import Settings
from health_pipeline.warehouse.connection import Warehouse

#: Why a request may be refused that is as the schema wants it.
BEYOND_A_SCHEMA = ("invalid_cursor", "invalid_range", "unreadable_file", "unknown_time_zone")


@pytest.fixture
def described(
    settings: Settings, warehouse: Warehouse, vault: Vault, endpoint: Endpoint, sandbox: RunningSandbox
) -> Iterator[OpenApiSchema]:
    """The API of a house where ada is connected and has a job, with a token of hers."""
    boxed = settings.model_copy(
        update={"sandbox_url": sandbox.url, "receiver_url": "http://testserver", "upload_max_bytes": 100_000}
    )
    connect(warehouse, vault, endpoint, "ada")
    day = today()
    jobs.create(warehouse.engine, "sync", "oura", user_of(warehouse, "ada"), Window(day, day))
    with receiver_app(boxed, warehouse) as app:
        schema = schemathesis.openapi.from_asgi("/openapi.json", app)
        yield schema


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_every_route_answers_as_it_says(
    described: OpenApiSchema, warehouse: Warehouse, mode: schemathesis.GenerationMode
) -> None:
    mine = bearer(warehouse)
    routes = [result.ok() for result in described.get_all_operations()]
    assert len(routes) == 15
    for route in routes:
        if mode.is_negative and route.path == "/oauth/callback":
            continue  # it wants nothing of its own: there is nothing to get wrong

        @hypothesis.given(case=route.as_strategy(generation_mode=mode))
        @hypothesis.settings(
            max_examples=15,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        def check(case: schemathesis.Case) -> None:
            ask(case, mine)

        check()


def ask(case: schemathesis.Case, mine: dict[str, str]) -> None:
    assert case.meta is not None
    wrong_at = case.meta.is_negative_at
    if "user" in case.path_parameters and not wrong_at(ParameterLocation.PATH):
        # Else nearly every request would be for somebody unknown.
        case.path_parameters["user"] = "ada"
    answer = case.call_and_validate(
        headers=None if wrong_at(ParameterLocation.HEADER) else mine,
        excluded_checks=[positive_data_acceptance],
    )
    is_program = case.path.startswith("/v1")
    if case.meta.generation.mode.is_positive and is_program and answer.status_code in (400, 413, 415, 422):
        assert answer.json()["error"]["code"] in BEYOND_A_SCHEMA
