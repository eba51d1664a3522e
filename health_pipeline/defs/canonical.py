"""The dbt project as assets: staging views, intermediate views, the catalogue, and the tables of `health`."""

import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import dagster as dg
import orjson
from dagster_dbt import (
    DagsterDbtTranslator,
    DagsterDbtTranslatorSettings,
    DbtCliInvocation,
    DbtCliResource,
    DbtProject,
    dbt_assets,
)
from dagster_dbt.asset_utils import (
    extract_runtime_selection_from_args,
    get_updated_cli_invocation_params_for_context,
)
from packaging.version import Version

from health_pipeline.defs.resources import Platform
from health_pipeline.defs.sources import OWNERS
from health_pipeline.warehouse.dbt_project import (
    MANIFEST,
    PROJECT_DIR,
    Views,
    dbt_executable,
    ensure_manifest,
)

#: One run at a time changes the canonical tables, whatever started it.
POOL = "dbt"


class OwnDbt(DbtCliResource):
    """dbt of this environment, within this process (see `warehouse.dbt_thread`)."""

    @cached_property
    def _cli_version(self) -> Version:
        # To ask dbt itself takes as long as its start.
        return Version(metadata.version("dbt-core"))

    def cli(
        self,
        args: Sequence[str],
        *,
        raise_on_error: bool = True,
        manifest: Any = None,
        dagster_dbt_translator: DagsterDbtTranslator | None = None,
        context: Any = None,
        target_path: Path | None = None,
    ) -> DbtCliInvocation:
        """As DbtCliResource.cli, which starts a process."""
        from health_pipeline.warehouse.dbt_thread import DbtThread

        arguments, selects, excludes = extract_runtime_selection_from_args(args)
        asked = get_updated_cli_invocation_params_for_context(
            context=context,
            manifest=manifest or {},
            dagster_dbt_translator=dagster_dbt_translator or DagsterDbtTranslator(),
            runtime_selects=selects,
            runtime_excludes=excludes,
        )
        arguments = [*arguments, *asked.selection_args]
        if asked.indirect_selection:
            arguments += ["--indirect-selection", asked.indirect_selection]
        target = target_path or self._get_unique_target_path(context=context)
        return DbtCliInvocation(
            process=cast("subprocess.Popen[bytes]", DbtThread(arguments, target)),
            manifest=asked.manifest,
            dagster_dbt_translator=asked.dagster_dbt_translator,
            project_dir=PROJECT_DIR,
            target_path=target,
            raise_on_error=raise_on_error,
            cli_version=self._cli_version,
            context=context,
        )


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
    from health_pipeline.ingestion import traces
    from health_pipeline.providers.registry import all_providers
    from health_pipeline.staging.tables import ensure_tables

    warehouse = platform.warehouse()
    with warehouse.engine.begin() as connection:
        for provider in all_providers().values():
            ensure_tables(connection, provider)
    os.environ.update(warehouse.environment())
    # dbt writes its artefacts per invocation; years of them would fill the disk.
    with (
        traces.step(warehouse.engine, context.run.run_id, "canonical"),
        tempfile.TemporaryDirectory(prefix="health-pipeline-dbt-") as target,
    ):
        _ensure_views(context, dbt, Views(warehouse.engine), Path(target))
        # Unit tests are of the code, not of the data: `make test` runs them.
        arguments = ["build", "--exclude-resource-type", "unit_test", *Views.KEEP]
        yield from dbt.cli(arguments, context=context, target_path=Path(target)).stream()


def _ensure_views(context: dg.AssetExecutionContext, dbt: DbtCliResource, views: Views, target: Path) -> None:
    """Make the views where the project has changed, and say so; a run over unchanged ones leaves them alone.

    They depend on tables, and tables on them: where one is missing, all are built, in their order.
    """
    if views.are_current():
        return
    context.log.info("the dbt project has changed: its views are made anew")
    # With the seeds, which views of a new warehouse read.
    without_tests = ["--exclude-resource-type", "test", "--exclude-resource-type", "unit_test"]
    dbt.cli(["build", *without_tests], target_path=target).wait()
    views.note()
    manifest = orjson.loads(MANIFEST.read_bytes())
    for unique_id, node in manifest["nodes"].items():
        if node["resource_type"] == "model" and node["config"]["materialized"] in Views.KINDS:
            spec = TRANSLATOR.get_asset_spec(manifest, unique_id, None)
            context.log_event(dg.AssetMaterialization(spec.key, description="view made anew"))


def _operational_tables() -> list[dg.AssetSpec]:
    """The tables of `ops` that models read: nothing here makes them, the doors write them."""
    sources = orjson.loads(ensure_manifest().read_bytes())["sources"].values()
    return [
        dg.AssetSpec(
            ["ops", source["name"]],
            description=source["description"],
            group_name="operations",
            kinds={"postgres"},
            owners=OWNERS,
        )
        for source in sources
        if source["schema"] == "ops"
    ]


defs = dg.Definitions(
    assets=[canonical_assets, *_operational_tables()],
    resources={
        "dbt": OwnDbt(
            project_dir=str(PROJECT_DIR), profiles_dir=str(PROJECT_DIR), dbt_executable=dbt_executable()
        )
    },
)
