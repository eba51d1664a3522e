"""The commands about accounts at providers: connected, asked for their days, shown, ended."""

from __future__ import annotations

import datetime as dt
import sys
from typing import TYPE_CHECKING, Literal

import click

from health_pipeline.cli_progress import status_line, windows_bar
from health_pipeline.cli_warehouse import open_configured

if TYPE_CHECKING:
    from health_pipeline.providers.base import Window

_DAY = click.DateTime(["%Y-%m-%d"])


@click.command()
@click.argument("provider")
@click.option("--user", "handle", required=True, help="Who connects; made on first use.")
@click.option("--timezone", "time_zone", help="Home zone of a new user, like Europe/Berlin.")
@click.option("--port", type=int, help="Port of 127.0.0.1 to come back to; 8910. 0 takes a free one.")
@click.option("--no-browser", is_flag=True, help="Print the address only.")
@click.option(
    "--redirect-uri",
    help="Where the provider sends people back to, if that is not this machine; the address they end at is asked for.",
)
@click.option(
    "--consent-days", type=int, help="The consent ends after so many days; without, when withdrawn."
)
@click.option("--days", default=30, show_default=True, help="Days of the first sync; 0 for none.")
@click.option("--yes", is_flag=True, help="Do not ask whether a password may be kept.")
@click.option("--external-id", help="What the sender of `generic` calls the person.")
@click.option("--link", is_flag=True, help="Print an address to send the person, which the receiver serves.")
def connect(
    provider: str,
    handle: str,
    time_zone: str | None,
    port: int | None,
    no_browser: bool,
    redirect_uri: str | None,
    consent_days: int | None,
    days: int,
    yes: bool,
    external_id: str | None,
    link: bool,
) -> None:
    """Connect a person's account at a provider, by their consent there, and fetch their last days."""
    from health_pipeline.runtime.connect import DEFAULT_PORT, Connecting, connect_sender
    from health_pipeline.runtime.sync import last_days

    window = last_days(days) if days else None
    settings, warehouse = open_configured()
    if external_id is not None:
        consent = connect_sender(
            *(settings, warehouse, provider, handle, external_id),
            time_zone=time_zone,
            consent_days=consent_days,
        )
        click.echo(f"{consent.text}\n{provider} is connected for {handle}")
        return
    connecting = Connecting(
        settings,
        warehouse,
        provider,
        handle,
        time_zone=time_zone,
        consent_days=consent_days,
    )
    if link:
        address, expires_at = connecting.link(consent_days)
        click.echo(f"good until {expires_at:%Y-%m-%d %H:%M} UTC, for {handle} alone:", err=True)
        click.echo(address)
        return
    click.echo(connecting.consent.text)

    def show(address: str, opened: bool) -> None:
        click.echo("Your browser was sent to:" if opened else "Open this address in your browser:")
        click.echo(address)

    if connecting.provider.password is not None:
        if not yes:
            click.confirm("Go on?", abort=True)
        user_name = click.prompt("User name", err=True)
        connecting.with_password(user_name, click.prompt("Password", hide_input=True, err=True))
    elif redirect_uri is not None:
        connecting.with_pasted_address(
            redirect_uri, show, lambda: str(click.prompt("The address it ended at", err=True))
        )
    else:
        connecting.with_browser(DEFAULT_PORT if port is None else port, show, browser=not no_browser)
    click.echo(f"{connecting.provider.title} is connected for {handle}")
    if window is not None:
        _sync("sync", provider, handle, window)


@click.command()
@click.argument("provider")
@click.option("--user", "handle", required=True, help="Whose account to end.")
@click.option("--delete-data", is_flag=True, help="Erase all that came of it: kept bytes and every row.")
@click.option("--yes", is_flag=True, help="Do not ask before erasing.")
def disconnect(provider: str, handle: str, delete_data: bool, yes: bool) -> None:
    """End a person's connection: withdraw consent, tell the provider, delete the tokens."""
    from health_pipeline.runtime.disconnect import disconnect as end

    settings, warehouse = open_configured()
    if delete_data and not yes:
        click.confirm(f"Erase all that {provider} ever sent of {handle}, for good?", abort=True)
    with status_line("disconnect") as say:
        ended = end(settings, warehouse, provider, handle, delete_data=delete_data, say=say)
    click.echo(ended.words())
    if ended.problems:
        raise click.ClickException("; ".join(ended.problems))


@click.command()
@click.option("--user", "handle", help="Of this user alone.")
def accounts(handle: str | None) -> None:
    """Show every connected account and how it is (exit code 1 where one needs somebody)."""
    from rich.console import Console
    from rich.table import Table

    from health_pipeline.runtime.accounts import account_health

    _, warehouse = open_configured()
    shown = Table("user", "provider", "how it is", "last sync (UTC)", "consent until (UTC)", "why")
    needy = False
    for account in account_health(warehouse.engine, handle=handle):
        needy = needy or account.needs_attention
        synced = f"{account.last_sync_at:%Y-%m-%d %H:%M}" if account.last_sync_at else "never"
        if account.consent_event != "granted":
            until = account.consent_event or "none given"
        else:
            until = f"{account.consent_expires_at:%Y-%m-%d %H:%M}" if account.consent_expires_at else "open"
        shown.add_row(account.handle, account.provider, account.state, synced, until, account.why or "")
    Console(width=None if sys.stdout.isatty() else 180).print(shown)
    if needy:
        raise SystemExit(1)


@click.command("import-connections")
@click.argument("source")
@click.option(
    "--system", default="health_connections", show_default=True, help="What to call the older system."
)
def import_connections(source: str, system: str) -> None:
    """Take over an older system's connections from a CSV file or a SCHEMA.TABLE: user_id, service_type, status."""
    from health_pipeline.runtime.legacy import import_connections as take_over

    _, warehouse = open_configured()
    click.echo(take_over(warehouse, source, system).words())


@click.group()
def vault() -> None:
    """The keys that people's tokens are encrypted with."""


@vault.command("rotate")
def vault_rotate() -> None:
    """Encrypt every token with a new key while everything else goes on; the old one opens nothing after."""
    from health_pipeline.runtime.accounts import rotate

    settings, warehouse = open_configured()
    rotation = rotate(warehouse.engine, settings)
    click.echo(rotation.words(settings))
    if rotation.unreadable:
        numbers = ", ".join(map(str, rotation.unreadable))
        raise click.ClickException(
            f"no key reads the tokens of accounts {numbers}; they wait for their people"
        )


@click.command()
@click.argument("provider")
@click.option("--user", "handle", required=True, help="Whose account to ask.")
@click.option("--days", default=7, show_default=True, help="So many days up to today (UTC).")
def sync(provider: str, handle: str, days: int) -> None:
    """Fetch a person's last days from a provider, with its look-back, and compute what they change."""
    from health_pipeline.runtime.sync import last_days

    _sync("sync", provider, handle, last_days(days))


@click.command()
@click.argument("provider")
@click.option("--user", "handle", required=True, help="Whose account to ask.")
@click.option("--from", "first", type=_DAY, required=True, help="First day, YYYY-MM-DD.")
@click.option("--to", "last", type=_DAY, required=True, help="Last day, YYYY-MM-DD.")
def backfill(provider: str, handle: str, first: dt.datetime, last: dt.datetime) -> None:
    """Fetch a person's history from a provider. Interrupted, it goes on when it is called again."""
    from health_pipeline.runtime.sync import days_between

    _sync("backfill", provider, handle, days_between(first.date(), last.date()))


def _sync(kind: Literal["sync", "backfill"], provider: str, handle: str, window: Window) -> None:
    from health_pipeline.runtime.sync import run_sync

    settings, warehouse = open_configured()
    with windows_bar(f"{kind} {provider}") as (say, on_windows):
        summary = run_sync(settings, warehouse, kind, provider, handle, window, say, on_windows)
    for note in summary.notes:
        say(note)
    click.echo(summary.words())
    if summary.problems:
        raise click.ClickException("; ".join(summary.problems))
