"""`docs/metrics.md` and `docs/data-model.md`, from the catalogue seed, the models' yml and the engine's tables.

`python -m health_pipeline.runtime.catalogue_docs` writes both. They are committed, so that they can be read where
the code is; a test says when they are out of date.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from health_pipeline.warehouse.dbt_project import PROJECT_DIR, ensure_manifest
from health_pipeline.warehouse.engine_tables import TABLES

DOCS_DIR = PROJECT_DIR.parent / "docs"

_WRITTEN_BY = (
    "<!-- Written by `make docs` from the catalogue, the models' yml, the engine's tables: change those. -->"
)
#: Tables outside `health` that its columns point to, with the column.
_REFERENCES = {"user_id": "users", "metric_type": "metric_types", "raw_object_id": "raw_objects"}
_OUTSIDE = {
    "users": "ops.users: the people",
    "raw_objects": "ops.raw_objects: receipts of bytes",
}


@dataclass(frozen=True, slots=True)
class _Column:
    name: str
    sql_type: str
    description: str


@dataclass(frozen=True, slots=True)
class _Relation:
    """A table or view of schema `health`. `reads` names what a view is made of."""

    name: str
    description: str
    key: tuple[str, ...]
    columns: tuple[_Column, ...]
    reads: tuple[str, ...] = ()


def metrics_page() -> str:
    """The catalogue as a page: one row a metric, by category."""
    with (PROJECT_DIR / "seeds" / "metric_types.csv").open(encoding="utf-8", newline="") as file:
        metrics = list(csv.DictReader(file))
    lines = [
        _WRITTEN_BY,
        "# Metrics",
        "",
        f"The {len(metrics)} metrics of `health.metric_types` (seed `dbt_project/seeds/metric_types.csv`). Units are "
        "UCUM; what is in braces is a word, not a unit. Values in other units are converted once, on the way into "
        "`health.health_metrics`; values outside the range go to `health.metric_quarantine`.",
        "",
        "- *kind*: `instant` (true at a moment), `interval_sum` (adds up over a period), `daily_value` (one of a day "
        "or night) or `score` (a vendor's own scale).",
        "- *a day is*: how a source's values of a local day become the one in `health.daily_metrics`.",
    ]
    for category in dict.fromkeys(metric["category"] for metric in metrics):
        lines += ["", f"## {category.capitalize()}", ""]
        lines += _table(
            ("metric", "unit", "also accepted", "range", "kind", "a day is", "LOINC", "definition"),
            (
                (
                    f"`{metric['metric_type']}`",
                    f"`{metric['unit']}`",
                    _other_units(metric),
                    f"{metric['valid_min']} to {metric['valid_max']}",
                    f"`{metric['value_kind']}`",
                    metric["daily_aggregation"].replace("_", " "),
                    metric["loinc"],
                    metric["description"],
                )
                for metric in metrics
                if metric["category"] == category
            ),
        )
    return "\n".join(lines) + "\n"


def _other_units(metric: Mapping[str, str]) -> str:
    units = [unit.split(":")[0] for unit in metric["source_units"].split("|")]
    return ", ".join(f"`{unit}`" for unit in units if unit != metric["unit"])


def data_model_page() -> str:
    """What schema `health` holds: a picture of the tables, one of the views, and all columns."""
    import orjson

    manifest = orjson.loads(ensure_manifest().read_bytes())
    tables = sorted(_relations(manifest, views=False), key=lambda each: each.name)
    views = sorted(_relations(manifest, views=True), key=lambda each: each.name)
    engine = [
        _Relation(
            table.name,
            table.comment,
            tuple(table.keys),
            tuple(_Column(column.name, column.sql_type, column.comment) for column in table.columns),
        )
        for table in TABLES
    ]
    lines = [
        _WRITTEN_BY,
        "# Data model",
        "",
        "What analysts read: schema `health`. Times are UTC (`timestamptz`), a `_date` is a local day, units are in "
        "the column's name or beside the value. Metrics and their units: [metrics.md](metrics.md).",
        "",
        "```mermaid",
        *_diagram([*tables, *engine]),
        "```",
        "",
        "Only keys are drawn. Every row with a `raw_object_id` leads back to the bytes it was read from. Tables and "
        "views with a `user_id` are under row-level security: `health_analyst` reads all rows, `health_subject` those "
        "of the person that the session is sealed for (`ops.seal_subject`).",
        "",
        "```mermaid",
        *_view_diagram(views),
        "```",
    ]
    for title, relations in (
        ("Canonical tables", tables),
        ("Tables of the engine", engine),
        ("Questions, as views", views),
    ):
        lines += ["", f"## {title}"]
        for relation in relations:
            lines += ["", f"### health.{relation.name}", "", relation.description, ""]
            lines += _table(
                ("column", "type", "key", "meaning"),
                (
                    (
                        f"`{column.name}`",
                        f"`{column.sql_type}`",
                        "key" if column.name in relation.key else "",
                        column.description,
                    )
                    for column in relation.columns
                ),
            )
    return "\n".join(lines) + "\n"


def _relations(manifest: Mapping[str, Any], *, views: bool) -> Iterator[_Relation]:
    """The marts that are views, or those that are not, as their yml describes them."""
    keys = {
        test["attached_node"]: tuple(test["test_metadata"]["kwargs"]["columns"])
        for test in manifest["nodes"].values()
        if test["resource_type"] == "test"
        and (test.get("test_metadata") or {}).get("name") in ("primary_key", "unique_grain")
    }
    for unique_id, node in manifest["nodes"].items():
        if node["resource_type"] != "model" or node["fqn"][1] != "marts":
            continue
        if (node["config"]["materialized"] == "lasting_view") == views:
            yield _Relation(
                node["name"],
                _one_line(node["description"]),
                keys[unique_id],
                tuple(
                    _Column(column["name"], column["data_type"], _one_line(column["description"]))
                    for column in node["columns"].values()
                ),
                tuple(sorted(_reads(manifest, unique_id))),
            )


def _reads(manifest: Mapping[str, Any], unique_id: str) -> set[str]:
    """What a model is made of, by way of internal models: tables and views of `health`, and tables of `ops`."""
    found = set()
    for parent in manifest["nodes"][unique_id]["depends_on"]["nodes"]:
        if parent.startswith("source."):
            source = manifest["sources"][parent]
            found.add(f"{source['schema']}.{source['name']}")
        elif manifest["nodes"][parent]["schema"] == "health":
            found.add(manifest["nodes"][parent]["name"])
        else:
            found |= _reads(manifest, parent)
    return found


def _diagram(relations: Sequence[_Relation]) -> Iterator[str]:
    yield "erDiagram"
    for relation in relations:
        names = [column.name for column in relation.columns]
        for column, target in _REFERENCES.items():
            if column in names:
                yield f"    {target} ||--o{{ {relation.name} : {column}"
    yield '    daily_metrics ||--|{ health_metrics : "user_id, local_date, metric_type"'
    for relation in relations:
        yield f"    {relation.name} {{"
        for each in relation.columns:
            marks = [
                mark
                for mark, holds in (("PK", each.name in relation.key), ("FK", each.name in _REFERENCES))
                if holds
            ]
            if marks:
                yield f"        {each.sql_type.replace(' ', '_')} {each.name} {', '.join(marks)}"
        yield "    }"
    yield "    metric_types {"
    yield "        text metric_type PK"
    yield "    }"
    for name, comment in _OUTSIDE.items():
        yield f"    {name} {{"
        yield f'        {"integer user_id" if name == "users" else "bigint raw_object_id"} PK "{comment}"'
        yield "    }"


def _view_diagram(views: Sequence[_Relation]) -> Iterator[str]:
    yield "flowchart LR"
    for view in views:
        yield f'    {view.name}(["{view.name}"])'
    for table in sorted({table for view in views for table in view.reads} - {view.name for view in views}):
        yield f'    {table.replace(".", "_")}["{table}"]'
    for view in views:
        for table in view.reads:
            yield f"    {table.replace('.', '_')} --> {view.name}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"


def _one_line(text: str) -> str:
    return " ".join(text.split())


PAGES = {"metrics.md": metrics_page, "data-model.md": data_model_page}


def write(folder: Path = DOCS_DIR) -> list[Path]:
    """Write the pages. Returns their paths."""
    folder.mkdir(exist_ok=True)
    written = []
    for name, page in PAGES.items():
        path = folder / name
        path.write_text(page(), encoding="utf-8")
        written.append(path)
    return written


if __name__ == "__main__":
    write()
