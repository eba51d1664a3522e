"""The commands about webhooks: the receiver, its events, and what the providers call."""

from __future__ import annotations

import datetime as dt
import sys

import click

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


def _utc(instant: dt.datetime | None) -> str:
    return "" if instant is None else f"{instant.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S}"
