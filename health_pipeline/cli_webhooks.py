"""The commands about webhooks: the receiver, its events, and what the providers call."""

from __future__ import annotations

import datetime as dt
import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from health_pipeline.settings import Settings
    from health_pipeline.warehouse.connection import Warehouse

_TIME = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"])
_STATES = ("pending", "processing", "processed", "dead")


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8700, show_default=True)
def receiver(host: str, port: int) -> None:
    """Take the providers' webhooks: verify, store, answer. `up` starts one, too."""
    from health_pipeline.runtime.receiver import run_receiver
    from health_pipeline.settings import load_settings
    from health_pipeline.warehouse.connection import open_warehouse

    settings = load_settings()
    run_receiver(settings, open_warehouse(settings), click.echo, host=host, port=port)


@click.group()
def events() -> None:
    """What webhooks brought: look at it, try it again."""


@events.command("list")
@click.option("--provider")
@click.option("--state", type=click.Choice(_STATES))
@click.option("--limit", default=50, show_default=True)
def events_list(provider: str | None, state: str | None, limit: int) -> None:
    """The newest events."""
    from rich.console import Console
    from rich.table import Table

    from health_pipeline.runtime.events import list_events
    from health_pipeline.warehouse.connection import open_warehouse

    found = list_events(open_warehouse().engine, provider=provider, state=state, limit=limit)
    if not found:
        click.echo("no events")
        return
    table = Table("event", "provider", "type", "state", "tries", "received (UTC)", "next try (UTC)", "error")
    for one in found:
        table.add_row(
            str(one.event_id), one.provider, one.event_type, one.state, str(one.attempts),
            _utc(one.received_at), _utc(one.next_try_at), one.error or "",
        )  # fmt: skip
    Console(width=None if sys.stdout.isatty() else 160).print(table)


@events.command("show")
@click.argument("event_id", type=int)
def events_show(event_id: int) -> None:
    """All that is known of an event; what it said is in its raw object."""
    from health_pipeline.runtime.events import show_event
    from health_pipeline.warehouse.connection import open_warehouse

    one = show_event(open_warehouse().engine, event_id)
    for name in one.__dataclass_fields__:
        value = getattr(one, name)
        click.echo(
            f"{name:14} {_utc(value) if isinstance(value, dt.datetime) else '' if value is None else value}"
        )


@events.command("replay")
@click.argument("event_ids", type=int, nargs=-1)
@click.option("--dead", is_flag=True, help="All dead ones.")
@click.option("--since", type=_TIME, help="Those received from here on, UTC.")
@click.option("--until", type=_TIME, help="Those received before, UTC.")
@click.option("--provider", help="Of this provider alone.")
def events_replay(
    event_ids: tuple[int, ...],
    dead: bool,
    since: dt.datetime | None,
    until: dt.datetime | None,
    provider: str | None,
) -> None:
    """Try events again: by number, all dead ones, or those of a time. The sensor takes them within seconds."""
    from health_pipeline.runtime.events import replay
    from health_pipeline.warehouse.connection import open_warehouse

    count = replay(
        open_warehouse().engine,
        event_ids=event_ids,
        dead=dead,
        since=since and since.replace(tzinfo=dt.UTC),
        until=until and until.replace(tzinfo=dt.UTC),
        provider=provider,
    )
    click.echo(f"{count} events are tried again")


@click.group()
def webhooks() -> None:
    """Where the providers call the receiver."""


@webhooks.command("subscribe")
@click.argument("provider")
def webhooks_subscribe(provider: str) -> None:
    """Have PROVIDER call the receiver; said again, it changes nothing. The daily run keeps it up."""
    from health_pipeline.runtime.webhooks import subscribe

    _said(subscribe(*_here(), provider))


@webhooks.command("renew")
@click.argument("provider")
def webhooks_renew(provider: str) -> None:
    """Renew the subscriptions at PROVIDER that expire, now, and make those that are missing."""
    from health_pipeline.runtime.webhooks import renew

    _said(renew(*_here(), provider))


@webhooks.command("delete")
@click.argument("provider")
def webhooks_delete(provider: str) -> None:
    """Have PROVIDER call no more. Subscriptions of other addresses stay."""
    from health_pipeline.runtime.webhooks import delete

    _said(delete(*_here(), provider))


@webhooks.command("list")
@click.argument("provider")
def webhooks_list(provider: str) -> None:
    """The subscriptions that PROVIDER has, asked of itself."""
    from rich.console import Console
    from rich.table import Table

    from health_pipeline.runtime.webhooks import listed

    found = listed(*_here(), provider)
    if not found:
        click.echo("no subscriptions")
        return
    table = Table("provider", "kind", "address", "expires (UTC)", "whose")
    for one in found:
        table.add_row(one.provider, one.kind, one.address, _utc(one.expires_at), one.state)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


@webhooks.command("address")
@click.argument("provider")
def webhooks_address(provider: str) -> None:
    """The address for PROVIDER to call, to be entered on its dashboard. Where it signs nothing, keep it secret."""
    from health_pipeline.runtime.webhooks import address
    from health_pipeline.settings import load_settings

    click.echo(address(load_settings(), provider))


@webhooks.command("try")
@click.argument("provider")
@click.option("--user", required=True, help="One of the sandbox's people.")
@click.option("--day", type=click.DateTime(["%Y-%m-%d"]), help="The sandbox's yesterday, if not given.")
def webhooks_try(provider: str, user: str, day: dt.datetime | None) -> None:
    """Have the sandbox send a day's webhooks, signed as PROVIDER signs, to the receiver."""
    from health_pipeline.runtime.webhooks import try_webhooks
    from health_pipeline.settings import load_settings

    sent, statuses = try_webhooks(load_settings(), provider, user, None if day is None else day.date())
    click.echo(f"{provider} sent {len(statuses)} calls of {sent}; answers: {' '.join(map(str, statuses))}")
    if any(status >= 300 for status in statuses):
        raise SystemExit(1)


def _here() -> tuple[Settings, Warehouse]:
    from health_pipeline.settings import load_settings
    from health_pipeline.warehouse.connection import open_warehouse

    settings = load_settings()
    return settings, open_warehouse(settings)


def _said(lines: list[str]) -> None:
    """What was done, then the problems: then it was no success."""
    click.echo(lines[0])
    for problem in lines[1:]:
        click.echo(problem, err=True)
    if lines[1:]:
        raise SystemExit(1)


def _utc(instant: dt.datetime | None) -> str:
    return "" if instant is None else f"{instant.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S}"
