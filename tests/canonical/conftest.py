"""The lab: a warehouse with all tables and views of dbt, and nothing in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from canonical_lab import Dbt, Lab

from health_pipeline.raw.store import open_store
from health_pipeline.warehouse.connection import Warehouse


@pytest.fixture
def lab(
    dbt_warehouse: Callable[[str], Warehouse], built_template: str, dbt: Dbt, tmp_path: Path
) -> Iterator[Lab]:
    """A lab of the test's own. Not beside `lab_of_module`: there is one database."""
    lab = Lab(dbt_warehouse(built_template), open_store(str(tmp_path / "raw")), dbt)
    yield lab
    lab.warehouse.engine.dispose()


@pytest.fixture(scope="module")
def lab_of_module(
    dbt_warehouse: Callable[[str], Warehouse],
    built_template: str,
    dbt: Dbt,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Lab]:
    """A lab for all tests of a module."""
    lab = Lab(dbt_warehouse(built_template), open_store(str(tmp_path_factory.mktemp("raw"))), dbt)
    yield lab
    lab.warehouse.engine.dispose()
