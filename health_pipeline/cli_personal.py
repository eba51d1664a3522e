"""The commands about what a person is told, wants, and believes: alerts, goals, ranks of sources."""

from __future__ import annotations

import datetime as dt
import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from health_pipeline.warehouse.connection import Warehouse

_DAY = click.DateTime(["%Y-%m-%d"])


def _open() -> Warehouse:
    from health_pipeline.warehouse.connection import open_warehouse

    return open_warehouse()


@click.group()
def alerts() -> None:
    """What people should know soon."""


@alerts.command("list")
@click.option("--user", "handle", help="Of this user alone.")
@click.option("--all", "everything", is_flag=True, help="Acknowledged ones, and those of new sensors, too.")
def alerts_list(handle: str | None, everything: bool) -> None:
    """Show the newest alerts that nobody has acknowledged."""
    from rich.console import Console
    from rich.table import Table

    from health_pipeline.runtime.alerts import list_alerts

    warehouse = _open()
    shown = Table("user", "day", "alert", "severity", "state", "in words")
    found = list_alerts(warehouse, handle, everything=everything)
    for alert in found:
        shown.add_row(
            *(alert.handle, str(alert.local_date), alert.kind, alert.severity, alert.state, alert.sentence)
        )
    if found:
        Console(width=None if sys.stdout.isatty() else 180).print(shown)
    else:
        click.echo("no open alerts")


@alerts.command("ack")
@click.option("--user", "handle", required=True, help="Whose alerts.")
@click.option("--kind", help="Of this kind alone.")
@click.option("--day", type=_DAY, help="Of this local day alone, YYYY-MM-DD.")
def alerts_ack(handle: str, kind: str | None, day: dt.datetime | None) -> None:
    """Note that a user's alerts were seen; they are neither shown nor sent any more."""
    from health_pipeline.runtime.alerts import acknowledge

    warehouse = _open()
    number = acknowledge(warehouse, handle, kind, None if day is None else day.date())
    click.echo(f"{number} alerts acknowledged")


@click.group()
def goal() -> None:
    """What a person wants to reach."""


@goal.command("set")
@click.argument("metric")
@click.argument("target", type=float)
@click.option("--user", "handle", required=True, help="Whose goal it is.")
@click.option("--by", type=_DAY, help="By when, YYYY-MM-DD.")
def goal_set(metric: str, target: float, handle: str, by: dt.datetime | None) -> None:
    """Set the goal of a metric, in the catalogue's unit. The next run forecasts towards it."""
    from health_pipeline.runtime.goals import set_goal

    warehouse = _open()
    click.echo(set_goal(warehouse, handle, metric, target, by.date() if by else None))


@click.group()
def source() -> None:
    """Whose word counts where several devices have the same day."""


@source.command("prefer")
@click.argument("sources", nargs=-1)
@click.option("--user", "handle", required=True, help="Whose days.")
@click.option("--metric", default="*", help="For this metric alone; all, if none is named.")
def source_prefer(sources: tuple[str, ...], handle: str, metric: str) -> None:
    """Rank a user's sources, best first; none named: the house's ranks (seed source_priorities) count again."""
    from health_pipeline.runtime.preferences import prefer

    warehouse = _open()
    click.echo(prefer(warehouse, handle, sources, metric))


@source.command("list")
@click.option("--user", "handle", required=True, help="Whose ranks.")
def source_list(handle: str) -> None:
    """Show a user's own ranks."""
    from health_pipeline.runtime.preferences import preferences

    warehouse = _open()
    ranks = preferences(warehouse, handle)
    for metric, sources in ranks:
        click.echo(f"{'all metrics' if metric == '*' else metric}: {', then '.join(sources)}")
    if not ranks:
        click.echo(f"{handle} has chosen nothing: the house's ranks count (health.source_priorities)")
