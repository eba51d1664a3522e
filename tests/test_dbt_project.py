"""How the dbt project is built: the rules of dbt-project-evaluator that matter here, over the manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import Any

import orjson
import pytest

from health_pipeline.warehouse.dbt_project import ensure_manifest

#: Where a rule does not hold, and why that is right. A pattern that no violation matches any more is an error.
EXCEPTIONS: dict[str, dict[str, str]] = {
    "columns_are_described": {
        "stg_[!o]*": "a staging view has the columns of its staging table, which the provider's Entity declares, and "
        "no reader may read it",
        "stg_oura__*": "as above",
        "int_*": "an intermediate view has the columns of the mart it feeds, described there, and no reader may "
        "read it",
    },
    "models_are_tested": {
        "stg_*": "a staging view holds the rows of one run and is empty between runs; what comes out of it is "
        "compared row by row with tests/canonical/golden",
        "int_*_unioned": "one select a provider, without a rule of its own; tested as golden rows",
        "int_*_pending": "keys of the run's rows; tested by histories in any order (test_versions, test_rebuild)",
        "int_days_changed": "a queue; tested by histories in any order (test_versions, test_rebuild)",
        "int_source_priorities": "the house's ranks and the users' on top of each other; tested through daily_metrics",
        **dict.fromkeys(
            (
                "int_*_metrics",
                "int_*_sleep_sessions",
                "int_*_workouts",
                "int_fhir_documents",
                "int_fhir_medications",
                "int_withings_sleeps",
            ),
            "one provider's records in the shape of a canonical table; compared row by row with "
            "tests/canonical/golden, and with a unit test where there is a rule to get wrong",
        ),
        "int_fhir_codes_unmapped": "a report for whoever extends loinc_metrics; nothing is made of it",
        "int_documents_deleted": "keys of all that was deleted; tested by histories in any order (test_deletions)",
        "int_*_attributed": "one join by a key, tested through the views (test_row_level_security)",
        "int_jobs_failed": "one condition, tested through sync_health",
        "int_daily_values_latest": "tested through latest_metrics and health_summary (test_row_level_security)",
    },
    "sources_are_read_by_staging_alone": {
        "metric_quarantine": "takes the quarantine table of every provider, all of one shape; a staging view for each "
        "would be a file a provider that says nothing",
        "int_withings_sleeps": "looks up the other half of a sleep, which an earlier run has applied",
        "int_fhir_codes_unmapped": "asks all that is staged, where a staging view has the rows of one run",
        "int_documents_deleted": "as above: what was deleted once is gone for good",
    },
    "staging_reads_one_source": {
        "stg_*__readings": "two tables of a provider as one: glucose readings of any provider have one shape",
    },
    "models_are_used": {
        "int_fhir_codes_unmapped": "a report for whoever extends loinc_metrics",
        "stg_oura__daily_resilience": "a level in words, which no metric of the catalogue can hold; kept typed for "
        "when one can",
        "stg_dexcom__alerts": "no canonical table has alerts",
        "stg_dexcom__d*": "of the devices and the account, not of the person",
        "stg_polar__cardio_load": "a vendor's load; ours is in health.training_loads",
        "stg_fhir__patient": "who it is; nothing is measured",
        "stg_garmin__*": "what its samples, in tables of their own, are said about; or samples of an activity, "
        "which no canonical table has",
    },
}

Manifest = dict[str, Any]


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    found: Manifest = orjson.loads(ensure_manifest().read_bytes())
    return found


def models(manifest: Manifest, *layers: str) -> dict[str, Any]:
    return {
        unique_id: node
        for unique_id, node in manifest["nodes"].items()
        if node["resource_type"] == "model" and (not layers or node["fqn"][1] in layers)
    }


def generic_tests(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Names of generic tests, with the model each is attached to."""
    for node in manifest["nodes"].values():
        if node["resource_type"] == "test" and node.get("attached_node"):
            yield node["test_metadata"]["name"], node["attached_node"]


def layers_are_named(manifest: Manifest) -> set[str]:
    """staging/<provider>/stg_<provider>__<entity>, intermediate/int_<entity>_<verb>, marts/<entity>."""
    wrong = set()
    for node in models(manifest).values():
        layer, name = node["fqn"][1], node["name"]
        fits = {
            "staging": name.startswith(f"stg_{node['fqn'][2]}__"),
            "intermediate": name.startswith("int_") and name.count("_") >= 2,
            "marts": not name.startswith(("stg_", "int_")) and "__" not in name,
        }
        if not fits.get(layer, False):
            wrong.add(name)
    return wrong


def layers_have_their_schema(manifest: Manifest) -> set[str]:
    """Readers have rights in `health`; what is not for them must not be there."""
    return {
        node["name"]
        for node in models(manifest).values()
        if node["schema"] != ("health" if node["fqn"][1] == "marts" else "health_internal")
    }


def models_are_described(manifest: Manifest) -> set[str]:
    return {node["name"] for node in models(manifest).values() if not node["description"].strip()}


def grain_is_told(manifest: Manifest) -> set[str]:
    return {
        node["name"] for node in models(manifest, "marts").values() if "Grain: " not in node["description"]
    }


def columns_are_described(manifest: Manifest) -> set[str]:
    """Of a mart all, since its contract holds yml and SQL together."""
    wrong = set()
    for node in models(manifest).values():
        columns = node["columns"].values()
        if not columns or not all(each["description"] and each["data_type"] for each in columns):
            wrong.add(node["name"])
        if node["fqn"][1] == "marts" and not node["config"]["contract"]["enforced"]:
            wrong.add(node["name"])
    return wrong


def sources_and_seeds_are_described(manifest: Manifest) -> set[str]:
    seeds = [node for node in manifest["nodes"].values() if node["resource_type"] == "seed"]
    undescribed = {
        node["name"] for node in [*manifest["sources"].values(), *seeds] if not node["description"]
    }
    columns = {
        seed["name"]
        for seed in seeds
        if not all(column["description"] for column in seed["columns"].values())
    }
    return undescribed | columns | {seed["name"] for seed in seeds if not seed["columns"]}


def marts_have_a_key(manifest: Manifest) -> set[str]:
    keyed = {model for test, model in generic_tests(manifest) if test in ("primary_key", "unique_grain")}
    return {node["name"] for unique_id, node in models(manifest, "marts").items() if unique_id not in keyed}


def models_are_tested(manifest: Manifest) -> set[str]:
    tested = {model for _, model in generic_tests(manifest)}
    unit_tested = {test["model"] for test in manifest["unit_tests"].values()}
    return {
        node["name"]
        for unique_id, node in models(manifest).items()
        if unique_id not in tested and node["name"] not in unit_tested
    }


def tests_of_tables_read_what_changed(manifest: Manifest) -> set[str]:
    """Tables grow for years, and data tests run daily: what a column may hold is a check of the database's."""
    frugal = ("primary_key", "values_within_catalogue")
    return {
        node["name"]
        for node in manifest["nodes"].values()
        if node["resource_type"] == "test"
        and manifest["nodes"].get(node.get("attached_node"), node)["config"]["materialized"] == "upsert_table"
        and node["test_metadata"]["name"] not in frugal
        and not node["config"]["where"]
    }


def sources_are_read_by_staging_alone(manifest: Manifest) -> set[str]:
    return {
        node["name"]
        for node in models(manifest, "intermediate", "marts").values()
        if any(parent.startswith("source.") for parent in node["depends_on"]["nodes"])
    }


def staging_reads_one_source(manifest: Manifest) -> set[str]:
    return {
        node["name"]
        for node in models(manifest, "staging").values()
        if [parent.split(".")[0] for parent in node["depends_on"]["nodes"]] != ["source"]
    }


def sources_are_staged_once(manifest: Manifest) -> set[str]:
    staging = models(manifest, "staging")
    readers = {
        source: [child for child in manifest["child_map"][source] if child in staging]
        for source in manifest["sources"]
    }
    return {source for source, children in readers.items() if len(children) > 1}


def marts_rest_on_intermediate_models(manifest: Manifest) -> set[str]:
    staging = models(manifest, "staging")
    return {
        node["name"]
        for node in models(manifest, "marts").values()
        if any(parent in staging for parent in node["depends_on"]["nodes"])
    }


def models_are_used(manifest: Manifest) -> set[str]:
    return {
        node["name"]
        for unique_id, node in models(manifest, "staging", "intermediate").items()
        if not any(child.startswith("model.") for child in manifest["child_map"][unique_id])
    }


def providers_read_their_own_alone(manifest: Manifest) -> set[str]:
    """A run reads the views of the providers it has objects of: what one had of another would be left out."""
    schemas = {source.split(".")[2] for source in manifest["sources"]}
    wrong = set()
    for unique_id, node in models(manifest, "intermediate").items():
        for kind in ("metrics", "sleep_sessions", "workouts"):
            own = "staging_" + node["name"].removeprefix("int_").removesuffix(f"_{kind}")
            if node["name"].endswith(f"_{kind}") and own in schemas:
                read = {source.split(".")[2] for source in _sources_of(manifest, unique_id)}
                if {schema for schema in read if schema.startswith("staging_")} != {own}:
                    wrong.add(node["name"])
    return wrong


def _sources_of(manifest: Manifest, unique_id: str) -> set[str]:
    parents = manifest["parent_map"].get(unique_id, [])
    if unique_id.startswith("source."):
        return {unique_id}
    return {source for parent in parents for source in _sources_of(manifest, parent)}


def exposures_rest_on_marts(manifest: Manifest) -> set[str]:
    marts = models(manifest, "marts").keys()
    return {
        exposure["name"]
        for exposure in manifest["exposures"].values()
        if not exposure["depends_on"]["nodes"]
        or any(
            not parent.startswith("seed.") and parent not in marts
            for parent in exposure["depends_on"]["nodes"]
        )
    }


RULES: list[Callable[[Manifest], set[str]]] = [
    layers_are_named,
    layers_have_their_schema,
    models_are_described,
    grain_is_told,
    columns_are_described,
    sources_and_seeds_are_described,
    marts_have_a_key,
    models_are_tested,
    tests_of_tables_read_what_changed,
    sources_are_read_by_staging_alone,
    staging_reads_one_source,
    sources_are_staged_once,
    marts_rest_on_intermediate_models,
    models_are_used,
    providers_read_their_own_alone,
    exposures_rest_on_marts,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_holds(rule: Callable[[Manifest], set[str]], manifest: Manifest) -> None:
    violations = rule(manifest)
    argued = EXCEPTIONS.get(rule.__name__, {})

    assert {name for name in violations if not any(fnmatchcase(name, pattern) for pattern in argued)} == set()
    # An argument for nothing would hide the next violation.
    assert {p for p in argued if not any(fnmatchcase(name, p) for name in violations)} == set()


def test_exceptions_are_of_rules_that_there_are() -> None:
    assert EXCEPTIONS.keys() <= {rule.__name__ for rule in RULES}


def test_exposures_are_the_engines_assets(manifest: Manifest) -> None:
    """Each with the marts that the asset reads."""
    from health_pipeline.defs import engine
    from health_pipeline.warehouse.engine_tables import TABLES

    marts = {node["name"] for node in models(manifest, "marts").values()}
    exposed = {
        exposure["name"]: {parent.split(".")[-1] for parent in exposure["depends_on"]["nodes"]} & marts
        for exposure in manifest["exposures"].values()
    }
    read = {
        asset.key.path[-1]: {dep.path[-1] for dep in asset.asset_deps[asset.key]} & marts
        for asset in engine.ASSETS
    }

    assert exposed == read
    assert exposed.keys() == {table.name for table in TABLES}
    assert all(each["owner"]["name"] for each in manifest["exposures"].values())
