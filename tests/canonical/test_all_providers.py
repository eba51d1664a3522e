"""Every provider that can be connected, from consent to canonical rows, held against what the people did.

Here rather than with the end-to-end tests, for the dbt project that is parsed once.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import pytest
from canonical_lab import Lab

from health_pipeline.connections.connect import connect_sandbox_person
from health_pipeline.connections.users import ensure_user
from health_pipeline.connections.vault import open_vault
from health_pipeline.ingestion.fetch import FetchReport, fetch
from health_pipeline.providers.base import Provider, Window
from health_pipeline.providers.registry import connectable
from health_pipeline.runtime.comparison import Comparison, compare_with_truth
from health_pipeline.sandbox.server import run_in_thread
from health_pipeline.settings import Settings

#: The sandbox's clock stands at the end of the last day compared: some providers keep the last hours only.
NOW = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)
#: The days around those compared are fetched, too, so that none of these is cut.
FETCHED = Window(dt.date(2026, 11, 16), dt.date(2026, 11, 21))
COMPARED = Window(dt.date(2026, 11, 17), dt.date(2026, 11, 20))
#: Both wear a glucose sensor; the one lives in UTC, the other five or six hours west of it.
PEOPLE = {"ada": "Europe/London", "dana": "America/Chicago"}


@dataclass
class Pass:
    """What one pass over all providers did."""

    fetched: dict[str, FetchReport]
    comparisons: dict[str, Comparison]
    quarantined: list[dict[str, object]]


@pytest.fixture(scope="module")
def whole(lab_of_module: Lab, tmp_path_factory: pytest.TempPathFactory) -> Pass:
    lab = lab_of_module
    providers = connectable()
    with run_in_thread(now=lambda: NOW) as sandbox:
        settings = Settings(home=tmp_path_factory.mktemp("home"), sandbox_url=sandbox.url)
        vault = open_vault(settings)
        with lab.warehouse.engine.begin() as connection:
            for handle, zone in PEOPLE.items():
                ensure_user(connection, handle, zone)
        fetched = {}
        for provider in providers:
            for handle in PEOPLE:
                connect_sandbox_person(settings, lab.warehouse, vault, provider, handle)
            fetched[provider.name] = fetch(lab.warehouse, lab.store, vault, settings, provider, FETCHED)
        lab.run(*fetched)
        comparisons = compare_with_truth(lab.warehouse, sandbox.url, providers, COMPARED)
    return Pass(
        fetched,
        {comparison.provider: comparison for comparison in comparisons},
        lab.rows("select source, entity, reason, field, location from health.metric_quarantine"),
    )


@pytest.mark.parametrize("provider", connectable(), ids=lambda provider: provider.name)
def test_daily_values_are_what_people_did(whole: Pass, provider: Provider) -> None:
    report, comparison = whole.fetched[provider.name], whole.comparisons[provider.name]
    assert [account.error for account in report.accounts] == [None] * len(PEOPLE)
    assert [account.missing_entities for account in report.accounts] == [[]] * len(PEOPLE)
    assert [difference.words() for difference in comparison.wrong + comparison.cut] == []
    assert comparison.equal > 0


def test_nothing_of_the_sandbox_is_in_quarantine(whole: Pass) -> None:
    assert whole.quarantined == []


def test_one_watch_by_two_apis_is_counted_once(whole: Pass, lab_of_module: Lab) -> None:
    del whole
    steps = lab_of_module.rows(
        """
        select local_date, metric_value,
            (select max((item ->> 'value')::float) from jsonb_array_elements(contributions) as item
             where item ->> 'source' in ('polar', 'polar_v4')) as of_watch,
            (select sum((item ->> 'counted')::float) from jsonb_array_elements(contributions) as item
             where item ->> 'source' in ('polar', 'polar_v4')) as counted
        from health.daily_metrics
        where metric_type = 'steps' and sources_seen @> array['polar', 'polar_v4']
            and local_date between :start and :end
        """,
        start=COMPARED.start,
        end=COMPARED.end,
    )
    assert len({day["local_date"] for day in steps}) >= 3
    for day in steps:
        assert day["counted"] <= day["of_watch"] + 1e-6, day
    nights = lab_of_module.rows(
        "select array_position(sources_seen, 'polar_v4') < array_position(sources_seen, 'polar') as history_first "
        "from health.daily_metrics where metric_type = 'sleep_duration' and sources_seen @> array['polar', 'polar_v4']"
    )
    assert nights and all(night["history_first"] for night in nights)


def test_the_comparison_sees_what_is_wrong_missing_and_too_much(whole: Pass, lab_of_module: Lab) -> None:
    lab = lab_of_module
    day = dt.date(2026, 11, 18)
    of = "source = 'oura' and user_id = :user and local_date = :day and metric_type ="
    ada = lab.one("select user_id from ops.users where handle = 'ada'")["user_id"]
    for statement in (
        f"update health.health_metrics set metric_value = metric_value + 1 where {of} 'sleep_duration'",
        f"delete from health.health_metrics where {of} 'steps'",
        "update health.health_metrics set local_date = local_date - 1 where metric_type = 'deep_sleep' "
        "and source = 'oura' and user_id = :user and local_date = :day",
    ):
        lab.execute(statement, user=ada, day=day)
    with run_in_thread(now=lambda: NOW) as sandbox:
        provider = next(provider for provider in connectable() if provider.name == "oura")
        (comparison,) = compare_with_truth(lab.warehouse, sandbox.url, [provider], COMPARED)
    found = {(wrong.metric_type, wrong.stored is None) for wrong in comparison.wrong}
    assert found == {("sleep_duration", False), ("steps", True), ("deep_sleep", True)}
    # The night that moved is on a day at the edge, where it is told apart.
    assert {cut.metric_type for cut in comparison.cut} == {"deep_sleep"}
    assert comparison.equal == whole.comparisons["oura"].equal - len(comparison.wrong) - len(comparison.cut)
    assert "ada, 2026-11-18: steps is missing, it was" in " ".join(one.words() for one in comparison.wrong)
