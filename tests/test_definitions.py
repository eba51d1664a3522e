"""What Dagster sees: assets, checks, jobs, the schedule and the sensor."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import dagster as dg
import pytest
from connecting import connect
from dagster._core.definitions.partitions.context import partition_loading_context
from dagster._core.definitions.schedule_definition import ScheduleExecutionData

from health_pipeline.connections.endpoints import Endpoint
from health_pipeline.connections.users import ensure_user
from health_pipeline.connections.vault import Vault
from health_pipeline.definitions import defs
from health_pipeline.defs.jobs import inbox_sensor
from health_pipeline.defs.partitions import DAILY
from health_pipeline.ingestion.inbox import open_inbox, receive_new_files
from health_pipeline.raw.store import RawStore
from health_pipeline.settings import FIRST_DAY, Settings, load_settings
from health_pipeline.warehouse.connection import Warehouse

MARTS = (
    "health_metrics",
    "glucose_readings",
    "sleep_sessions",
    "workouts",
    "daily_metrics",
    "metric_quarantine",
)
ENGINE = (
    "baselines",
    "training_loads",
    "recovery_scores",
    "forecasts",
    "glucose_daily",
    "glucose_periods",
    "agp",
    "alerts",
    "correlations",
    "narratives",
)


def specs() -> dict[str, dg.AssetSpec]:
    return {spec.key.to_user_string(): spec for spec in defs.resolve_all_asset_specs()}


def test_definitions_are_loadable() -> None:
    dg.Definitions.validate_loadable(defs)


def test_everything_from_raw_to_forecasts_is_an_asset() -> None:
    found = specs()
    assert {"raw/oura", "raw/dexcom_clarity", "raw/libreview", "raw/nightscout", "raw/glucose_csv"} <= set(
        found
    )
    assert {"staging_oura/sleep", "staging_oura/heartrate", "staging_libreview/readings"} <= set(found)
    assert {f"health/{name}" for name in (*MARTS, *ENGINE)} <= set(found)


def test_every_asset_says_what_it_is() -> None:
    for key, spec in specs().items():
        assert spec.description, f"{key} has no description"
        assert spec.group_name not in (None, "default"), f"{key} has no group"
        assert spec.owners, f"{key} has no owner"
        assert spec.kinds, f"{key} has no kind"


def test_tables_show_their_columns() -> None:
    for name in (*MARTS, *ENGINE):
        schema = specs()[f"health/{name}"].metadata["dagster/column_schema"]
        assert isinstance(schema, dg.TableSchema)
        assert all(column.description for column in schema.columns), name


def test_lineage_runs_from_the_provider_to_the_score() -> None:
    graph = defs.resolve_asset_graph()
    score = dg.AssetKey(["health", "recovery_scores"])
    ancestors = graph.get_ancestor_asset_keys(score)
    assert dg.AssetKey(["raw", "oura"]) in ancestors
    assert dg.AssetKey(["staging_oura", "sleep"]) in ancestors
    assert dg.AssetKey(["health", "health_metrics"]) in ancestors


def test_days_are_those_that_dagster_would_list_on_every_date() -> None:
    plain = dg.DailyPartitionsDefinition(start_date=FIRST_DAY.isoformat(), end_offset=1)
    for now in (dt.datetime(2026, 3, 9, 23, 59, tzinfo=dt.UTC), dt.datetime(2026, 3, 10, tzinfo=dt.UTC)):
        with partition_loading_context(effective_dt=now):
            assert list(DAILY.get_partition_keys()) == list(plain.get_partition_keys())
            assert DAILY.get_partition_keys()[-1] == now.date().isoformat()
        assert list(DAILY.get_partition_keys(now)) == list(plain.get_partition_keys(now))


def test_raw_and_staging_are_partitioned_by_day_and_backfill_as_one_run() -> None:
    graph = defs.resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        if key.path[0] == "raw" or (key.path[0].startswith("staging_")):
            assert isinstance(node.partitions_def, dg.DailyPartitionsDefinition), key
            assert node.backfill_policy == dg.BackfillPolicy.single_run(), key
        else:
            assert node.partitions_def is None, key


def test_dbt_tests_are_asset_checks() -> None:
    checks = {
        (check.asset_key.to_user_string(), check.name)
        for check in defs.resolve_asset_graph().asset_check_keys
    }
    assert ("raw/oura", "accounts_healthy") in checks
    assert ("staging_oura/quarantine", "records_accounted") in checks
    assert ("staging_oura/quarantine", "shape_unchanged") in checks
    assert ("health/metric_quarantine", "quarantined_share") in checks
    assert any(asset == "health/health_metrics" and "primary_key" in name for asset, name in checks)


def test_the_schedule_takes_the_day_before() -> None:
    schedule = defs.resolve_schedule_def("daily_schedule")
    context = dg.build_schedule_context(
        scheduled_execution_time=dt.datetime(2026, 3, 10, 13, 0, tzinfo=dt.UTC),
        repository_def=defs.get_repository_def(),
    )
    requests = schedule.evaluate_tick(context).run_requests
    assert [request.partition_key for request in requests or []] == ["2026-03-09"]


def test_every_provider_that_can_be_asked_has_a_job_of_its_own() -> None:
    names = {job.name for job in defs.get_repository_def().get_all_jobs()}
    assert {"sync_oura", "sync_dexcom", "sync_fhir", "reconcile"} <= names
    assert "sync_fitbit" not in names
    assert not {name for name in names if name.startswith("sync_") and "libreview" in name}
    assets = defs.resolve_job_def("sync_dexcom").asset_layer.executable_asset_keys
    assert {key.path[1] for key in assets if key.path[0] == "raw"} == {"dexcom"}
    assert dg.AssetKey(["health", "recovery_scores"]) in assets


def test_reconcile_looks_for_gaps_up_to_yesterday(
    settings: Settings, warehouse: Warehouse, vault: Vault, endpoint: Endpoint
) -> None:
    at = dt.datetime(2026, 3, 10, 2, 30, tzinfo=dt.UTC)
    assert tick("reconcile_schedule", at).skip_message == "no account is connected"
    connect(warehouse, vault, endpoint, "ada")
    (request,) = tick("reconcile_schedule", at).run_requests or []
    assert request.partition_key == "2026-03-09"
    config = request.run_config["ops"]
    assert config["raw__oura"]["config"] == {"plan": "gaps"}
    assert "raw__fitbit" not in config


def test_polling_costs_nothing_where_nobody_is_connected(
    settings: Settings, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = dt.datetime(2026, 3, 10, 14, 25, tzinfo=dt.UTC)
    assert tick("poll_dexcom", at).skip_message == "no account is connected to Dexcom"
    with warehouse.engine.begin() as connection:
        user = ensure_user(connection, "ada").user_id
        connection.exec_driver_sql(
            f"insert into ops.provider_accounts (user_id, provider, status) values ({user}, 'dexcom', 'active')"
        )
        connection.exec_driver_sql(
            "insert into ops.connector_consent_ledger (user_id, provider, event, text_version) "
            f"values ({user}, 'dexcom', 'granted', 'test-1')"
        )
    # Nobody to ask: to try it would give a failed run every two hours.
    assert "HEALTH_PIPELINE_DEXCOM_CLIENT_ID" in str(tick("poll_dexcom", at).skip_message)
    monkeypatch.setenv("HEALTH_PIPELINE_SANDBOX_URL", "http://127.0.0.1:9")
    load_settings.cache_clear()
    (request,) = tick("poll_dexcom", at).run_requests or []
    assert request.partition_key == "2026-03-10"
    with dg.DagsterInstance.local_temp() as instance:
        instance.add_run(dg.DagsterRun(job_name="sync_dexcom", status=dg.DagsterRunStatus.STARTED))
        assert "has not ended" in str(tick("poll_dexcom", at, instance).skip_message)


def tick(name: str, at: dt.datetime, instance: dg.DagsterInstance | None = None) -> ScheduleExecutionData:
    with dg.DagsterInstance.local_temp() as empty:
        context = dg.build_schedule_context(
            instance=instance or empty,
            scheduled_execution_time=at,
            repository_def=defs.get_repository_def(),
        )
        return defs.resolve_schedule_def(name).evaluate_tick(context)


@pytest.fixture
def inbox(settings: Settings) -> Path:
    folder = Path(settings.inbox_location)
    folder.mkdir(parents=True)
    return folder


def test_the_sensor_asks_for_one_run_a_set_of_files(
    inbox: Path, settings: Settings, warehouse: Warehouse, store: RawStore
) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        context = dg.build_sensor_context(instance=instance)
        assert isinstance(inbox_sensor(context), dg.SkipReason)

        (inbox / "walt").mkdir()
        (inbox / "walt" / "a.csv").write_text("timestamp,glucose\n2026-03-01T08:00:00Z,100\n")
        asked = inbox_sensor(context)
        assert isinstance(asked, dg.SensorResult)
        (request,) = asked.run_requests or []
        assert request.partition_key == dt.datetime.now(dt.UTC).date().isoformat()
        # A permanent run key would swallow the retry of a run that failed.
        assert request.run_key is None
        assert "walt" not in str(request.run_config)

        run = dg.DagsterRun(job_name="file_upload", status=dg.DagsterRunStatus.STARTED)
        instance.add_run(run)
        waiting = dg.build_sensor_context(instance=instance, cursor=asked.cursor)
        assert isinstance(inbox_sensor(waiting), dg.SkipReason)

        instance.report_run_failed(run)
        again = inbox_sensor(dg.build_sensor_context(instance=instance, cursor=asked.cursor))
        assert isinstance(again, dg.SensorResult)

        receive_new_files(warehouse, store, open_inbox(settings.inbox_location))
        assert isinstance(inbox_sensor(waiting), dg.SkipReason)
