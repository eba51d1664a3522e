"""The commands about tokens: who may read whose data over HTTP."""

from __future__ import annotations

import datetime as dt
import sys

import click


@click.group()
def token() -> None:
    """Tokens with which a person's own programs use the API of the receiver."""


@token.command("create")
@click.option("--user", "handle", required=True, help="Whose data it opens.")
@click.option("--expires-days", type=int, help="It ends after so many days; without, when revoked.")
@click.option(
    "--scopes",
    default="read",
    show_default=True,
    help="What it may do, comma separated: read, sync, upload, connect.",
)
def token_create(handle: str, expires_days: int | None, scopes: str) -> None:
    """Make a token. It is shown once, on standard output; only its hash is kept."""
    from health_pipeline.runtime.tokens import create_token
    from health_pipeline.warehouse.connection import open_warehouse

    wanted = [scope.strip() for scope in scopes.split(",") if scope.strip()]
    created = create_token(open_warehouse(), handle, wanted, expires_days)
    until = "revoked" if created.expires_at is None else f"{created.expires_at:%Y-%m-%d %H:%M} UTC"
    click.echo(f"token {created.token_id} of {handle}, for {', '.join(wanted)}, until {until}:", err=True)
    click.echo(created.token)


@token.command("list")
@click.option("--user", "handle", help="Of this user alone.")
def token_list(handle: str | None) -> None:
    """All tokens, without their secrets, which nobody knows."""
    from rich.console import Console
    from rich.table import Table

    from health_pipeline.connections.api_tokens import list_tokens
    from health_pipeline.warehouse.connection import open_warehouse

    table = Table("token", "user", "for", "made (UTC)", "last used (UTC)", "ends (UTC)", "state")
    now = dt.datetime.now(dt.UTC)
    for one in list_tokens(open_warehouse().engine, handle):
        expired = one.expires_at is not None and one.expires_at <= now
        state = "revoked" if one.revoked_at is not None else "expired" if expired else "good"
        table.add_row(
            str(one.token_id), one.handle, ", ".join(one.scopes), _utc(one.created_at), _utc(one.last_used_at),
            _utc(one.expires_at), state,
        )  # fmt: skip
    Console(width=None if sys.stdout.isatty() else 160).print(table)


@token.command("revoke")
@click.argument("token_id", type=int)
def token_revoke(token_id: int) -> None:
    """End a token, by its number."""
    from health_pipeline.connections.api_tokens import revoke
    from health_pipeline.warehouse.connection import open_warehouse

    revoke(open_warehouse().engine, token_id)
    click.echo(f"token {token_id} is revoked")


def _utc(instant: dt.datetime | None) -> str:
    return "never" if instant is None else f"{instant.astimezone(dt.UTC):%Y-%m-%d %H:%M}"
