"""The metric catalogue and the priorities are well formed, and name what there is."""

from __future__ import annotations

import csv
import math
import re

import pytest
import yaml

from health_pipeline.providers.registry import all_providers
from health_pipeline.warehouse.dbt_project import PROJECT_DIR


def _seed(name: str) -> list[dict[str, str]]:
    with (PROJECT_DIR / "seeds" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


METRICS = _seed("metric_types")
#: The providers that have tables: not those whose API is shut down.
TABLED = {name for name, provider in all_providers().items() if provider.entities}
LOINC = _seed("loinc_metrics")
VARIABLES = yaml.safe_load((PROJECT_DIR / "dbt_project.yml").read_text())["vars"]


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric["metric_type"])
def test_metric_is_well_formed(metric: dict[str, str]) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", metric["metric_type"])
    assert metric["category"]
    assert metric["description"].endswith(".")
    assert metric["value_kind"] in {"instant", "interval_sum", "daily_value", "score"}
    assert metric["daily_aggregation"] in {"sum", "mean", "min", "max", "last", "duration_weighted"}
    assert (metric["daily_aggregation"] == "sum") == (metric["value_kind"] == "interval_sum")
    low, high = float(metric["valid_min"]), float(metric["valid_max"])
    assert math.isfinite(low) and math.isfinite(high) and low < high

    units: dict[str, tuple[float, float]] = {}
    for accepted in metric["source_units"].split("|"):
        unit, factor, *shift = accepted.split(":")
        assert len(shift) <= 1
        assert unit and unit not in units
        units[unit] = (float(factor), float(shift[0]) if shift else 0.0)
        assert units[unit][0] > 0
    assert units[metric["unit"]] == (1.0, 0.0)


@pytest.mark.parametrize(
    "metric", [*METRICS, *LOINC], ids=lambda metric: f"{metric['loinc']}-is-{metric['metric_type']}"
)
def test_loinc_code_has_its_check_digit(metric: dict[str, str]) -> None:
    if not metric["loinc"]:
        return
    match = re.fullmatch(r"(\d{1,7})-(\d)", metric["loinc"])
    assert match, metric["loinc"]
    digits = [int(digit) for digit in reversed(match[1])]
    total = sum(digits[1::2]) + sum(sum(divmod(2 * digit, 10)) for digit in digits[::2])
    assert int(match[2]) == -total % 10


@pytest.mark.parametrize(
    ("metric", "unit", "value", "expected"),
    [
        ("glucose", "mmol/L", 5.55, 100.0),
        ("weight", "[lb_av]", 220.462262, 100.0),
        ("weight", "[stone_av]", 10, 63.5),
        ("body_temperature", "[degF]", 98.6, 37.0),
        ("body_temperature", "K", 310.15, 37.0),
        ("body_temperature_deviation", "[degF]", 1.8, 1.0),
        ("distance", "[mi_i]", 26.2188, 42195),
        ("active_minutes", "s", 1800, 30),
        ("calories_burned", "kJ", 4184, 1000),
        ("hba1c", "mmol/mol", 53, 7.0),
        ("cholesterol_total", "mmol/L", 5, 193.35),
        ("blood_pressure_systolic", "kPa", 16, 120),
        ("sleep_duration", "h", 8, 28800),
        ("spo2", "1", 0.97, 97),
        ("heart_rate_variability", "s", 0.045, 45),
        ("blood_glucose", "mmol/L", 5.55, 100),
        ("hemoglobin", "g/L", 140, 14),
        ("hemoglobin", "mmol/L", 8.69, 14),
        ("creatinine", "umol/L", 88.4, 1),
        ("urea_nitrogen", "mmol/L", 5, 14),
        ("calcium", "mmol/L", 2.5, 10.02),
        ("calcium", "meq/L", 5, 10.02),
        ("alt", "ukat/L", 0.5, 30),
        ("vitamin_d", "nmol/L", 74.88, 30),
        ("c_reactive_protein", "mg/dL", 0.5, 5),
        ("leukocytes", "/uL", 6200, 6.2),
        ("hematocrit", "L/L", 0.42, 42),
    ],
)
def test_known_conversions(metric: str, unit: str, value: float, expected: float) -> None:
    row = next(row for row in METRICS if row["metric_type"] == metric)
    factors = {
        name: (float(factor), float(shift[0]) if shift else 0.0)
        for name, factor, *shift in (accepted.split(":") for accepted in row["source_units"].split("|"))
    }
    factor, shift = factors[unit]

    assert value * factor + shift == pytest.approx(expected, rel=2e-3)


def test_a_loinc_code_means_one_metric() -> None:
    codes = [row["loinc"] for row in [*METRICS, *LOINC] if row["loinc"]]
    assert len(codes) == len(set(codes))
    assert {row["metric_type"] for row in LOINC} <= {metric["metric_type"] for metric in METRICS}


def test_metrics_are_named_once() -> None:
    names = [metric["metric_type"] for metric in METRICS]
    assert len(names) == len(set(names))


def test_every_metric_that_a_model_makes_is_in_the_catalogue_with_its_unit() -> None:
    accepted = {
        (metric["metric_type"], unit.split(":")[0])
        for metric in METRICS
        for unit in metric["source_units"].split("|")
    }
    made = set()
    for path in (PROJECT_DIR / "models").rglob("int_*_metrics.sql"):
        # Without calls of macros, whose arguments are no metrics.
        text = re.sub(r"\{\{.*?\}\}", "", path.read_text())
        made |= set(re.findall(r"\('(\w+)', '([^']+)', '", text))
        made |= set(
            re.findall(r"'(\w+)' as metric_type,\s+\S+ as source_value,\s+'([^']+)' as source_unit", text)
        )

    assert len(made) > 20
    assert made <= accepted


def test_priorities_name_sources_and_metrics_that_there_are() -> None:
    priorities = _seed("source_priorities")

    assert {row["source"] for row in priorities} <= TABLED
    assert {row["metric_type"] for row in priorities} <= {"*"} | {metric["metric_type"] for metric in METRICS}
    assert all(int(row["priority"]) >= 0 for row in priorities)
    keys = [(row["metric_type"], row["source"]) for row in priorities]
    assert len(keys) == len(set(keys))
    # A provider that is not ranked would be ranked by accident.
    assert {row["source"] for row in priorities if row["metric_type"] == "*"} == TABLED


def test_provider_lists_are_those_of_the_registry() -> None:
    listed = {
        name
        for variable, providers in VARIABLES.items()
        if variable.endswith("_providers")
        for name in providers
    }

    assert listed == TABLED
    folders = {path.name for path in (PROJECT_DIR / "models" / "staging").iterdir()}
    # The operational tables are staged beside the providers'.
    assert folders - {"ops"} == TABLED
    readings = {
        path.name.removeprefix("stg_").removesuffix("__readings.sql")
        for path in (PROJECT_DIR / "models" / "staging").rglob("stg_*__readings.sql")
    }
    assert set(VARIABLES["glucose_providers"]) == readings


def test_expectations_are_of_sources_and_metrics_that_there_are() -> None:
    expectations = _seed("provider_expectations")

    assert {row["source"] for row in expectations} <= {row["source"] for row in _seed("source_priorities")}
    assert {row["metric_type"] for row in expectations} <= {metric["metric_type"] for metric in METRICS}
    assert all(row["samples_per_day"] == "" or int(row["samples_per_day"]) > 1 for row in expectations)
    keys = [(row["source"], row["metric_type"]) for row in expectations]
    assert len(keys) == len(set(keys))


def test_what_is_measured_at_an_instant_is_not_sampled() -> None:
    """The timeline shows each value of these; a heart rate among them would be a line every five minutes."""
    kinds = {metric["metric_type"]: metric["value_kind"] for metric in METRICS}
    assert {kinds[name] for name in VARIABLES["timeline_measurements"]} == {"instant"}
    assert set(VARIABLES["sync_cadence_hours"]) <= {"default", *all_providers()}
