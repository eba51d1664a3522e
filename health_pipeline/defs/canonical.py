"""The dbt project as assets: staging views, intermediate views, the catalogue, and the tables of `health`."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
from dagster_dbt import (
    DagsterDbtTranslator,
    DagsterDbtTranslatorSettings,
    DbtCliResource,
    DbtProject,
    dbt_assets,
)

from health_pipeline.defs.resources import Platform
from health_pipeline.defs.sources import OWNERS
from health_pipeline.warehouse.dbt_project import (
    PROJECT_DIR,
    dbt_executable,
    ensure_manifest,
    keep_partial_parse,
)

#: One run at a time changes the canonical tables, whatever started it.
POOL = "dbt"


class Translator(DagsterDbtTranslator):
    """Asset key = schema and table; groups by layer."""

    def get_asset_spec(
        self, manifest: Mapping[str, Any], unique_id: str, project: DbtProject | None
    ) -> dg.AssetSpec:
        spec = super().get_asset_spec(manifest, unique_id, project)
        properties = manifest["nodes"].get(unique_id)
        if properties is None:  # a source: the staging asset says what it is
            return spec
        layer = "catalogue" if properties["resource_type"] == "seed" else properties["fqn"][1]
        return spec.replace_attributes(group_name=_GROUPS.get(layer, layer), owners=OWNERS)


_GROUPS = {"marts": "canonical", "staging": "staging_views"}


TRANSLATOR = Translator(settings=DagsterDbtTranslatorSettings(enable_asset_checks=True))


@dbt_assets(manifest=ensure_manifest(), dagster_dbt_translator=TRANSLATOR, pool=POOL, name="canonical")
def canonical_assets(
    context: dg.AssetExecutionContext, dbt: DbtCliResource, platform: Platform
) -> Iterator[Any]:
    """`dbt build` of what is selected, over the staged objects that are not applied yet."""
    from health_pipeline.providers.registry import all_providers
    from health_pipeline.staging.tables import ensure_tables

    warehouse = platform.warehouse()
    with warehouse.engine.begin() as connection:
        for provider in all_providers().values():
            ensure_tables(connection, provider)
    os.environ.update(warehouse.environment())
    # Unit tests are of the code, not of the data: `make test` runs them.
    arguments = ["build", "--exclude-resource-type", "unit_test"]
    # dbt writes its artefacts per invocation; years of them would fill the disk.
    with tempfile.TemporaryDirectory(prefix="health-pipeline-dbt-") as target:
        yield from dbt.cli(arguments, context=context, target_path=Path(target)).stream()
        keep_partial_parse(Path(target))


defs = dg.Definitions(
    assets=[canonical_assets],
    resources={
        "dbt": DbtCliResource(
            project_dir=str(PROJECT_DIR), profiles_dir=str(PROJECT_DIR), dbt_executable=dbt_executable()
        )
    },
)
