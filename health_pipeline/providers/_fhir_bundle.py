"""FHIR R4 Bundles, or one resource alone, to staging tables.

Grain: one row a resource, and for Observations one more for each value, of the Observation itself or of its
components.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from health_pipeline.providers._fhir_resources import (
    RESOURCES,
    VALUE_COLUMNS,
    VALUE_SCHEMA,
    Resource,
    with_time,
)
from health_pipeline.providers._json import (
    UTC_TIMESTAMP,
    MalformedBodyError,
    load_object,
    original_json,
    original_text,
    quarantine_table,
    read_records,
    unknown_fields,
)
from health_pipeline.providers.base import Parsed, RawDocument


@dataclass(slots=True)
class _Read:
    """What became of the resources of one type: tables, refused (place, reason, field) and notes."""

    tables: dict[str, pa.Table]
    refused: list[tuple[int, str, str | None]]
    notes: list[str]


def parse(document: RawDocument) -> Parsed:
    """A Bundle, a resource alone or NDJSON (a resource a line) as staging rows: each goes to its type's table.

    A resource with a wrong type or without what it must have goes to quarantine, alone, an Observation with
    all its components. OperationOutcomes and types we do not take are skipped and counted.
    """
    try:
        placed = _resources(load_object(document.content))
    except MalformedBodyError:
        placed = _lines(document.content)
    if placed is None:
        refused = [("malformed_body", None, "$", original_text(document.content))]
        return Parsed({}, quarantine_table(document.entity, refused), records_in=1, records_loaded=0)

    skipped: Counter[str] = Counter()
    by_type: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    unreadable: list[tuple[str, str | None, str, str]] = []
    for location, resource in placed:
        kind = resource.get("resourceType") if isinstance(resource, dict) else None
        if not isinstance(kind, str):
            field = "resourceType" if isinstance(resource, dict) else None
            reason = "missing_field" if kind is None and field else "wrong_type"
            unreadable.append((reason, field, location, original_json(resource)))
        elif kind in RESOURCES:
            by_type.setdefault(kind, []).append((location, resource))
        else:
            skipped["operation_outcome" if kind == "OperationOutcome" else "other_resource_type"] += 1

    tables: dict[str, pa.Table] = {}
    quarantine = [quarantine_table(document.entity, unreadable)]
    notes: list[str] = []
    loaded = 0
    for kind, found in by_type.items():
        resources = [resource for _, resource in found]
        read = _read(RESOURCES[kind], resources)
        tables |= read.tables
        notes += read.notes
        loaded += read.tables[RESOURCES[kind].entity].num_rows
        quarantine.append(
            quarantine_table(
                RESOURCES[kind].entity,
                (
                    (reason, field, found[place][0], original_json(_without_narrative(resources[place])))
                    for place, reason, field in read.refused
                ),
            )
        )
    return Parsed(
        tables=tables,
        quarantine=pa.concat_tables(quarantine),
        records_in=len(placed),
        records_loaded=loaded,
        skipped=dict(skipped),
        notes=tuple(notes),
    )


def _resources(body: dict[str, Any]) -> list[tuple[str, Any]] | None:
    """The resources of a body with their places; None where it is neither a Bundle nor one we take."""
    kind = body.get("resourceType")
    if kind != "Bundle":
        return [("$", body)] if isinstance(kind, str) and kind in RESOURCES else None
    entries = body.get("entry")
    if entries is None:
        return []  # FHIR has no empty arrays: a search that found nothing has no `entry`
    if not isinstance(entries, list):
        return None
    return [
        (f"entry[{place}].resource", entry.get("resource") if isinstance(entry, dict) else None)
        for place, entry in enumerate(entries)
    ]


def _lines(content: bytes) -> list[tuple[str, Any]] | None:
    """The resources of NDJSON, a line that is none as its text; None where the first line is none."""
    placed: list[tuple[str, Any]] = []
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            resource: Any = load_object(line)
        except MalformedBodyError:
            resource = original_text(line)
        if not placed and not (isinstance(resource, dict) and "resourceType" in resource):
            return None
        placed.append((f"line {number}", resource))
    return placed or None


def _without_narrative(resource: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in resource.items() if name != "text"}


def _read(kind: Resource, resources: list[dict[str, Any]]) -> _Read:
    prepared = [_with_medication(r) for r in resources] if kind.type == "MedicationRequest" else resources
    read = read_records(prepared, kind.columns)
    refused: list[tuple[int, str, str | None]] = [(bad.index, bad.reason, bad.field) for bad in read.refused]
    gone = {place for place, _, _ in refused}
    places = [place for place in range(len(resources)) if place not in gone]
    table = _table(kind, read.table)

    if kind.must_be_dated:
        undated = np.array(
            pc.and_(pc.is_null(table["dated_by"]), pc.not_equal(table["status"], "entered-in-error")),
            dtype=bool,
        )
        refused += [(place, "missing_field", "effectiveDateTime") for place in compress(places, undated)]
        table, places = table.filter(pa.array(~undated)), list(compress(places, ~undated))

    tables = {kind.entity: table}
    notes = [
        f"{kind.entity}: new field {path}"
        for path in unknown_fields(resources, kind.elements)
        # `_status` and the like hold the extensions of a primitive.
        if not path.startswith("_")
    ]
    if kind.type == "Observation":
        values, bad = _values([resources[place] for place in places])
        refused += [(places[place], reason, field) for place, reason, field in bad]
        good = np.ones(len(places), dtype=bool)
        good[[place for place, _, _ in bad]] = False
        tables = {kind.entity: table.filter(pa.array(good)), "observation_value": values}
        unnamed = pc.sum(pc.is_null(values["loinc_codes"])).as_py()
        if unnamed:
            notes.append(f"observation: values without a LOINC code: {unnamed}")
    return _Read(tables, sorted(refused), notes)


def _table(kind: Resource, read: pa.Table) -> pa.Table:
    """The staging table of columns as read: texts of dateTimes give way to what they say."""
    read = read.combine_chunks()
    kept = [read[name] for name in kind.kept]
    moments = [with_time(read[name].combine_chunks()).cast(UTC_TIMESTAMP) for name in kind.moments.values()]
    return pa.table([*kept, *moments, *kind.dated.arrays(read)], schema=kind.schema)


def _with_medication(request: dict[str, Any]) -> dict[str, Any]:
    """The request with `medication`: the concept it names itself, by a contained resource or by reference."""
    concept = request.get("medicationCodeableConcept")
    if concept is None:
        reference = request.get("medicationReference")
        if not isinstance(reference, dict):
            return request
        contained = request.get("contained")
        target = reference.get("reference")
        for resource in contained if isinstance(contained, list) else ():
            if isinstance(resource, dict) and target == f"#{resource.get('id')}":
                concept = resource.get("code")
        if concept is None:
            concept = {"text": reference.get("display") or target}
    return {**request, "medication": concept}


def _values(
    observations: Iterable[dict[str, Any]],
) -> tuple[pa.Table, list[tuple[int, str, str | None]]]:
    """The values of Observations, and the Observations with a bad one: (place, reason, field)."""
    records: list[dict[str, Any]] = []
    owners: list[int] = []
    refused: dict[int, tuple[int, str, str | None]] = {}
    for place, observation in enumerate(observations):
        components = observation.get("component")
        if components is not None and not isinstance(components, list):
            refused[place] = (place, "wrong_type", "component")
            continue
        said = [observation] if _says_a_value(observation) or not components else []
        for position, record in enumerate([*said, *(components or ())], start=0 if said else 1):
            if not isinstance(record, dict):
                refused.setdefault(place, (place, "wrong_type", f"component[{position - 1}]"))
                continue
            records.append({**record, "observation_id": observation["id"], "position": position})
            owners.append(place)
    read = read_records(records, VALUE_COLUMNS)
    for bad in read.refused:
        position = records[bad.index]["position"]
        within = f"component[{position - 1}]." if position else ""
        refused.setdefault(owners[bad.index], (owners[bad.index], bad.reason, f"{within}{bad.field}"))
    table = read.table.combine_chunks()
    values = pa.table(
        [
            *(table[name] for name in ("observation_id", "position", "loinc_codes", "code_text")),
            pc.coalesce(table["quantity"], table["integer"].cast(pa.float64())),
            pc.coalesce(table["string"], table["concept"]),
            *(table[name] for name in VALUE_SCHEMA.names[6:]),
        ],
        schema=VALUE_SCHEMA,
    )
    if refused:
        bad_records = {bad.index for bad in read.refused}
        kept = [owners[place] not in refused for place in range(len(records)) if place not in bad_records]
        values = values.filter(pa.array(kept, pa.bool_()))
    return values, list(refused.values())


def _says_a_value(observation: Mapping[str, Any]) -> bool:
    return any(name.startswith("value") or name == "dataAbsentReason" for name in observation)
