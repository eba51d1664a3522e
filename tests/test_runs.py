"""Runs that the sensors ask for, and runs whose process was killed."""

from __future__ import annotations

import datetime as dt
import multiprocessing
import os
import signal
import subprocess
import sys
import uuid
from multiprocessing.context import ForkServerProcess

import dagster as dg
import pytest
import sqlalchemy as sa

from health_pipeline.definitions import defs
from health_pipeline.defs.dead_runs import COMMAND_TAG, dead_runs_sensor, end_dead_runs
from health_pipeline.defs.events import requested_jobs_sensor, scores_sensor, webhook_sensor
from health_pipeline.defs.resources import Platform
from health_pipeline.defs.run_launcher import PID_TAG, PreloadedRunLauncher
from health_pipeline.ingestion import jobs
from health_pipeline.providers.base import Window
from health_pipeline.warehouse.connection import Warehouse
from health_pipeline.warehouse.lock import hold

NOW = dt.datetime.now(dt.UTC)
TODAY = NOW.date()


@pytest.fixture
def instance() -> dg.DagsterInstance:
    return dg.DagsterInstance.ephemeral()


def started(
    instance: dg.DagsterInstance, *, tags: dict[str, str] | None = None, job: str = "webhook_events"
) -> str:
    run_id = str(uuid.uuid4())
    instance.create_run_for_job(
        defs.resolve_job_def(job), run_id=run_id, status=dg.DagsterRunStatus.STARTED, tags=tags
    )
    return run_id


def status(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRunStatus:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.status


def test_a_run_without_its_process_is_ended_and_a_live_one_is_not(
    instance: dg.DagsterInstance, warehouse: Warehouse
) -> None:
    dead, alive = (started(instance, tags={COMMAND_TAG: "true"}) for _ in range(2))
    with hold(warehouse.engine, f"run:{alive}") as held:
        assert held
        assert end_dead_runs(instance, warehouse.engine) == [dead]
    assert status(instance, dead) == dg.DagsterRunStatus.FAILURE
    assert status(instance, alive) == dg.DagsterRunStatus.STARTED


def test_a_dead_run_frees_its_pools_also_where_who_ends_it_is_killed_meanwhile(
    instance: dg.DagsterInstance, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead, waits = started(instance, tags={COMMAND_TAG: "true"}), str(uuid.uuid4())
    pools = instance.event_log_storage
    pools.set_concurrency_slots("staging_oura", 1)
    assert pools.claim_concurrency_slot("staging_oura", dead, "staging_oura").is_claimed
    assert not pools.claim_concurrency_slot("staging_oura", waits, "staging_oura").is_claimed
    with monkeypatch.context() as killed:

        def die(*_: object) -> None:
            raise KeyboardInterrupt

        for name in ("report_run_failed", "free_concurrency_slots_for_run"):
            of = instance if hasattr(instance, name) else pools
            before = getattr(of, name)
            # Whichever of the two comes first is done, and nothing after it.
            killed.setattr(of, name, lambda *of_run, before=before: (before(*of_run), die()))
        with pytest.raises(KeyboardInterrupt):
            end_dead_runs(instance, warehouse.engine)
    end_dead_runs(instance, warehouse.engine)
    assert status(instance, dead) == dg.DagsterRunStatus.FAILURE
    assert pools.claim_concurrency_slot("staging_oura", waits, "staging_oura").is_claimed


def test_a_step_that_waits_for_a_pool_gets_a_place_that_was_freed_halfway(
    instance: dg.DagsterInstance, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead, waits = str(uuid.uuid4()), str(uuid.uuid4())
    pools = instance.event_log_storage
    pools.set_concurrency_slots("staging_oura", 1)
    assert pools.claim_concurrency_slot("staging_oura", dead, "staging_oura").is_claimed
    assert not pools.claim_concurrency_slot("staging_oura", waits, "staging_oura").is_claimed
    with monkeypatch.context() as killed:
        killed.setattr(pools, "assign_pending_steps", lambda *_: None)
        pools.free_concurrency_slot_for_step(dead, "staging_oura")
    assert not pools.claim_concurrency_slot("staging_oura", waits, "staging_oura").is_claimed
    dead_runs_sensor(dg.build_sensor_context(instance=instance))
    assert pools.claim_concurrency_slot("staging_oura", waits, "staging_oura").is_claimed
    # The place is given once.
    assert not pools.claim_concurrency_slot("staging_oura", dead, "staging_oura").is_claimed
    dead_runs_sensor(dg.build_sensor_context(instance=instance))
    assert not pools.claim_concurrency_slot("staging_oura", dead, "staging_oura").is_claimed


def test_a_job_of_a_run_that_was_killed_has_failed_and_says_so(
    instance: dg.DagsterInstance, warehouse: Warehouse
) -> None:
    run_id = started(instance, tags={COMMAND_TAG: "true"})
    job = jobs.create(warehouse.engine, "sync", "oura", None, Window(TODAY, TODAY))
    jobs.begin(warehouse.engine, job.job_id, run_id)
    dead_runs_sensor(dg.build_sensor_context(instance=instance))
    ended = jobs.get(warehouse.engine, job.job_id)
    assert ended.status == "failed"
    assert run_id in str(ended.last_error)


def event(warehouse: Warehouse, provider: str, received_at: dt.datetime) -> None:
    with warehouse.engine.begin() as connection:
        connection.execute(
            sa.text(
                "insert into ops.webhook_events (provider, provider_event_id, event_type, kind, received_at, "
                "next_try_at) values (:provider, gen_random_uuid()::text, 'sleep.updated', 'changed', :at, :at)"
            ),
            {"provider": provider, "at": received_at},
        )


def tick(instance: dg.DagsterInstance) -> object:
    return webhook_sensor(
        dg.build_sensor_context(instance=instance, repository_def=defs.get_repository_def())
    )


def test_a_tick_takes_all_due_events_in_a_run_a_day_with_their_providers_alone(
    instance: dg.DagsterInstance, warehouse: Warehouse
) -> None:
    assert isinstance(tick(instance), dg.SkipReason)
    yesterday = NOW - dt.timedelta(days=1)
    for provider, at in (("oura", yesterday), ("whoop", NOW), ("oura", NOW), ("oura", NOW)):
        event(warehouse, provider, at)
    result = tick(instance)
    assert isinstance(result, dg.SensorResult)
    requests = {request.partition_key: request for request in result.run_requests or []}
    assert list(requests) == [yesterday.date().isoformat(), TODAY.isoformat()]
    of_today = requests[TODAY.isoformat()]
    selected = {key.to_user_string() for key in of_today.asset_selection or []}
    assert {key for key in selected if key.startswith("raw/")} == {"raw/oura", "raw/whoop"}
    assert {key.split("/")[0] for key in selected if key.startswith("staging")} == {
        "staging_oura",
        "staging_whoop",
    }
    assert {"health/health_metrics", "health/alerts", "ops/settled"} <= selected
    assert of_today.run_config == {
        "ops": {name: {"config": {"plan": "events"}} for name in ("raw__oura", "raw__whoop")}
    }
    assert all(request.run_key is None for request in requests.values()), "a retry must not be swallowed"
    # While a run is under way, events gather.
    running = started(instance)
    assert isinstance(tick(instance), dg.SkipReason)
    instance.report_run_failed(instance.get_run_by_id(running))  # type: ignore[arg-type]
    assert isinstance(tick(instance), dg.SensorResult)


def test_a_requested_job_gets_a_run_once(instance: dg.DagsterInstance, warehouse: Warehouse) -> None:
    window = Window(TODAY - dt.timedelta(days=2), TODAY)
    job = jobs.create(warehouse.engine, "sync", "oura", None, window, requested=True)
    context = dg.build_sensor_context(instance=instance, repository_def=defs.get_repository_def())
    data = requested_jobs_sensor.evaluate_tick(context)
    (request,) = data.run_requests or []
    assert request.job_name == "sync_oura"
    assert request.run_config == {"ops": {"raw__oura": {"config": {"user_ids": [], "job_id": job.job_id}}}}
    assert request.tags["dagster/asset_partition_range_start"] == window.start.isoformat()
    assert jobs.get(warehouse.engine, job.job_id).status == "queued"
    assert not requested_jobs_sensor.evaluate_tick(context).run_requests


def test_scores_are_asked_for_once_after_runs_of_events(instance: dg.DagsterInstance) -> None:
    cursor: str | None = None

    def asked() -> bool:
        nonlocal cursor
        result = scores_sensor(dg.build_sensor_context(instance=instance, cursor=cursor))
        if isinstance(result, dg.SkipReason):
            return False
        assert isinstance(result, dg.SensorResult)
        cursor = result.cursor
        return len(result.run_requests or []) == 1

    assert not asked()
    first = started(instance)
    assert not asked(), "the run of events has not ended"
    instance.handle_run_event(first, _success(first))
    assert asked()
    assert not asked(), "nothing new since"
    second = started(instance)
    instance.handle_run_event(second, _success(second))
    scores = started(instance, job="webhook_scores")
    assert not asked(), "the scores of before are under way"
    instance.handle_run_event(scores, _success(scores))
    assert asked()


def _success(run_id: str) -> dg.DagsterEvent:
    return dg.DagsterEvent(event_type_value=dg.DagsterEventType.RUN_SUCCESS.value, job_name="any")


def test_alerts_are_of_the_run_that_brought_the_reading_and_scores_are_not() -> None:
    keys = {
        name: {key.to_user_string() for key in defs.resolve_job_def(name).asset_layer.executable_asset_keys}
        for name in ("webhook_events", "webhook_scores")
    }
    assert {"health/glucose_readings", "health/baselines", "health/alerts", "ops/settled"} <= keys[
        "webhook_events"
    ]
    assert {"health/recovery_scores", "health/forecasts", "health/narratives"} <= keys["webhook_scores"]
    assert not keys["webhook_events"] & keys["webhook_scores"]


@pytest.fixture
def launcher(instance: dg.DagsterInstance) -> PreloadedRunLauncher:
    made = PreloadedRunLauncher()
    made.register_instance(instance)
    return made


def test_a_run_keeps_its_connections_to_dagsters_storage_and_makes_new_ones_where_they_died(
    warehouse: Warehouse,
) -> None:
    storage = warehouse.environment()["HEALTH_PIPELINE_DAGSTER_URL"]
    with (
        dg.instance_for_test(overrides={"storage": {"postgres": {"postgres_url": storage}}}) as instance,
        sa.create_engine(warehouse.url, isolation_level="AUTOCOMMIT").connect() as admin,
    ):

        def connections() -> set[int]:
            found = admin.execute(
                sa.text("select pid from pg_stat_activity where datname = :name"),
                {"name": warehouse.dagster_url.database},
            )
            return set(found.scalars())

        def run() -> set[int]:
            assert one_step.execute_in_process(instance=instance, resources={"platform": Platform()}).success
            return connections()

        assert connections() == set()
        kept = run()
        assert kept
        assert run() == kept
        for pid in kept:
            admin.execute(sa.text("select pg_terminate_backend(:pid)"), {"pid": pid})
        assert run().isdisjoint(kept)


@dg.op(required_resource_keys={"platform"})
def step() -> None:
    pass


@dg.job(resource_defs={"platform": Platform()})
def one_step() -> None:
    step()


def dying() -> ForkServerProcess:
    process = multiprocessing.get_context("forkserver").Process(target=os._exit, args=(9,))
    process.start()
    return process


def test_a_forked_run_that_dies_without_a_word_has_failed(
    instance: dg.DagsterInstance, launcher: PreloadedRunLauncher
) -> None:
    run_id = started(instance)
    slots = instance.event_log_storage
    slots.set_concurrency_slots("dbt", 1)
    assert slots.claim_concurrency_slot("dbt", run_id, "step").is_claimed
    launcher._watch(dying(), run_id)
    assert status(instance, run_id) == dg.DagsterRunStatus.FAILURE
    assert slots.get_concurrency_info("dbt").active_slot_count == 0, "the next run waits for its slot"


def test_a_forked_run_that_has_ended_stays_as_it_ended(
    instance: dg.DagsterInstance, launcher: PreloadedRunLauncher
) -> None:
    run_id = started(instance)
    instance.handle_run_event(run_id, _success(run_id))
    launcher._watch(dying(), run_id)
    assert status(instance, run_id) == dg.DagsterRunStatus.SUCCESS


def test_a_forked_run_is_interrupted_when_it_is_terminated(
    instance: dg.DagsterInstance, launcher: PreloadedRunLauncher
) -> None:
    # What was started in the background ignores SIGINT by inheritance; a run does not.
    sleeps = (
        "import signal, time; signal.signal(signal.SIGINT, signal.SIG_DFL); print(flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", sleeps], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        run_id = started(instance, tags={PID_TAG: str(process.pid)})
        assert launcher.terminate(run_id)
        assert process.wait(10) == -signal.SIGINT
    assert status(instance, run_id) == dg.DagsterRunStatus.CANCELING
    assert launcher.terminate(run_id), "its process is gone"
    assert status(instance, run_id) == dg.DagsterRunStatus.CANCELED
    assert not launcher.terminate(run_id)
