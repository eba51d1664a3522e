"""Work on a provider's due events: fetch what they name, end what was withdrawn; pushed data is raw already."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa

from health_pipeline.connections.accounts import move_account
from health_pipeline.connections.disconnect import forget_tokens, withdraw
from health_pipeline.connections.endpoints import ProviderNotConfiguredError
from health_pipeline.connections.vault import Vault
from health_pipeline.ingestion import events
from health_pipeline.ingestion.events import Claimed
from health_pipeline.ingestion.fetch import AccountResult, Asking, FetchReport, fetch_announced
from health_pipeline.providers.base import Event, Provider, Window
from health_pipeline.raw.store import RawStore, RawStoreError
from health_pipeline.settings import FIRST_DAY, Settings
from health_pipeline.warehouse.connection import Warehouse

#: How far back to look for a record whose day its event does not say, where it cannot be asked for by its id.
_DAYS_OF_A_RECORD = 30


@dataclass(slots=True)
class EventsReport:
    """What became of the events of one provider: `failed` ones are tried again, or dead."""

    claimed: int = 0
    failed: int = 0
    fetch: FetchReport | None = None
    errors: set[str] = field(default_factory=set)


def work_on_events(
    warehouse: Warehouse,
    store: RawStore,
    vault: Vault,
    settings: Settings,
    provider: Provider,
    day: dt.date,
    run_id: str,
) -> EventsReport:
    """Take the provider's due events of the day (UTC, of receipt) and do what they ask for.

    What was fetched, and what was pushed, is raw of that day then; the events count as processed when their
    run has it in the warehouse. Events that failed are put off with the reason. Raises RawStoreUnavailableError
    and database errors: then all are tried again.
    """
    engine = warehouse.engine
    claimed = events.claim(engine, provider.name, day, run_id, dt.datetime.now(dt.UTC))
    report = EventsReport(len(claimed))
    wanted: list[tuple[Claimed, Event]] = []
    for event, said in _said(store, provider, claimed):
        error = None
        if said is None:
            error = "its raw object is missing or says something else"
        elif said.kind == "other" or (said.kind == "deauthorized" and event.user_id is None):
            events.settle(engine, [event.event_id])
        elif event.account_id is None or event.user_id is None:
            error = f"nobody here is connected to {provider.title} under its id"
        elif said.kind == "deauthorized":
            forget_tokens(engine, withdraw(engine, provider.name, event.user_id))
            events.settle(engine, [event.event_id])
        elif said.kind == "moved":
            move_account(engine, event.account_id, said.record_ids[0])
            events.settle(engine, [event.event_id])
        elif said.kind == "changed" or (said.kind == "deleted" and not said.record_ids):
            wanted.append((event, said))
        if error is not None:
            _fail(engine, report, [event.event_id], error)
    if wanted:
        _fetch(warehouse, store, vault, settings, provider, day, wanted, report)
    return report


def _said(
    store: RawStore, provider: Provider, claimed: Sequence[Claimed]
) -> Iterable[tuple[Claimed, Event | None]]:
    """Each event as its raw object says it."""
    assert provider.webhook is not None
    read: dict[str, dict[str, Event]] = {}
    for event in claimed:
        key = event.object_key
        if key is not None and key not in read:
            try:
                read[key] = events.by_key(provider.webhook, store.get(key))
            except (RawStoreError, ValueError):
                read[key] = {}
        yield event, read.get(key or "", {}).get(event.provider_event_id)


def _fetch(
    warehouse: Warehouse,
    store: RawStore,
    vault: Vault,
    settings: Settings,
    provider: Provider,
    day: dt.date,
    wanted: Sequence[tuple[Claimed, Event]],
    report: EventsReport,
) -> None:
    engine = warehouse.engine
    askings: dict[int, list[Asking]] = {}
    by_entity: dict[tuple[int, str], list[tuple[Claimed, Event]]] = {}
    for event, said in wanted:
        assert event.account_id is not None
        by_entity.setdefault((event.account_id, said.entity or ""), []).append((event, said))
    for (account_id, name), named in by_entity.items():
        asking = _asking(provider, name, day, [said for _, said in named])
        if asking is not None:
            askings.setdefault(account_id, []).append(asking)
    try:
        report.fetch = fetch_announced(warehouse, store, vault, settings, provider, Window(day, day), askings)
    except ProviderNotConfiguredError as error:
        _fail(engine, report, [event.event_id for event, _ in wanted], str(error))
        return
    results = {result.account_id: result for result in report.fetch.accounts}
    for (account_id, name), named in by_entity.items():
        problem = _problem(provider, results.get(account_id), name)
        if problem:
            _fail(engine, report, [event.event_id for event, _ in named], problem)


def _problem(provider: Provider, result: AccountResult | None, entity: str) -> str | None:
    """Why an account's entity is not fetched; None where it is."""
    if result is None:
        return f"the account is not active; connect {provider.title} again"
    if entity in result.missing_entities:
        return f"no permission for {entity}"
    if result.refused_entities:
        return result.refused_entities.get(entity)
    return result.error


def _asking(provider: Provider, name: str, day: dt.date, said: Sequence[Event]) -> Asking | None:
    """What to ask for of an entity: the days that the events name, the records, or the last weeks."""
    try:
        entity = provider.entity(name)
    except KeyError:
        return None
    windows = [event.window for event in said if event.window is not None]
    dayless = [event for event in said if event.window is None]
    records = {record for event in dayless for record in event.record_ids}
    if provider.fetch_records is None or any(not event.record_ids for event in dayless):
        records = set()
        if dayless:
            windows.append(Window(day - dt.timedelta(days=_DAYS_OF_A_RECORD), day + dt.timedelta(days=1)))
    if entity.window == "everything":
        return Asking(entity, (Window(day, day),))
    parts = [part for window in _merged(windows) for part in window.split(entity.max_window_days)]
    return Asking(entity, tuple(parts), tuple(sorted(records)))


def _merged(windows: Iterable[Window]) -> list[Window]:
    """The same days in windows that do not touch, oldest first, none before the first day there is."""
    merged: list[Window] = []
    for window in sorted(windows, key=lambda each: each.start):
        if window.end < FIRST_DAY:
            continue
        window = Window(max(window.start, FIRST_DAY), window.end)
        if merged and window.start <= merged[-1].end + dt.timedelta(days=1):
            merged[-1] = Window(merged[-1].start, max(merged[-1].end, window.end))
        else:
            merged.append(window)
    return merged


def _fail(engine: sa.Engine, report: EventsReport, event_ids: Sequence[int], error: str) -> None:
    events.put_off(engine, event_ids, error)
    report.failed += len(event_ids)
    report.errors.add(error)
