"""The command that brings a load of synthetic people: what a machine stands, before real people are on it."""

from __future__ import annotations

import datetime as dt

import click

from health_pipeline.cli_progress import count_bar


@click.command("simulate-load")
@click.option("--users", type=click.IntRange(1, 1_000_000), help="How many people.")
@click.option("--days", type=click.IntRange(1, 10_000), help="How many days, up to --until.")
@click.option(
    "--until", type=click.DateTime(["%Y-%m-%d"]), help="Last day, YYYY-MM-DD; the day before yesterday."
)
@click.option(
    "--sampling",
    type=click.IntRange(1, 86_400),
    default=300,
    show_default=True,
    help="Seconds between two heart rates.",
)
@click.option(
    "--glucose-share",
    type=click.FloatRange(0, 1),
    default=0.1,
    show_default=True,
    help="Share of the people with a glucose sensor, every five minutes.",
)
@click.option(
    "--days-at-once",
    type=click.IntRange(1, 366),
    default=30,
    show_default=True,
    help="Days that come in one run: 1 as every day does, 30 as a backfill does.",
)
@click.option("--raw-only", is_flag=True, help="Keep what comes, and compute nothing of it.")
@click.option("--remove", is_flag=True, help="Erase all simulated people with everything of theirs, instead.")
@click.option("--yes", is_flag=True, help="Do not ask where there are real people, nor before erasing.")
def simulate_load(
    users: int | None,
    days: int | None,
    until: dt.datetime | None,
    sampling: int,
    glucose_share: float,
    days_at_once: int,
    raw_only: bool,
    remove: bool,
    yes: bool,
) -> None:
    """Bring a load of synthetic people into the configured raw store and warehouse, and say what each part took.

    They are users simulated-000000 and so on, with rings of Oura and some with sensors of Dexcom. The same command
    again changes nothing; more users or days add to what is there. --remove takes them away.
    """
    from health_pipeline.providers.base import Window
    from health_pipeline.runtime import simulate_load as loads
    from health_pipeline.sandbox.load import Shape
    from health_pipeline.settings import load_settings
    from health_pipeline.warehouse.connection import open_warehouse

    if remove == (users is not None or days is not None) or (users is None) != (days is None):
        raise click.UsageError("give --users and --days, or --remove")
    settings = load_settings()
    warehouse = open_warehouse(settings)
    if remove:
        if not yes:
            click.confirm("Erase all simulated people and everything of theirs?", abort=True)
        with count_bar("remove", "people") as (_, progress):
            removed = loads.remove_load(settings, warehouse, progress)
        click.echo(f"{removed} simulated people erased")
        return
    assert users is not None and days is not None
    real = loads.others(warehouse)
    if real and not yes:
        click.confirm(
            f"There are {real} users here that are not simulated. Put {users} simulated people beside them?",
            abort=True,
        )
    last = until.date() if until else dt.datetime.now(dt.UTC).date() - dt.timedelta(days=2)
    window = Window(last - dt.timedelta(days=days - 1), last)
    with count_bar("simulate-load", "person-days") as (show, progress):
        for part in loads.simulate_load(
            settings,
            warehouse,
            users,
            window,
            Shape(sampling, glucose_share),
            progress,
            days_at_once=days_at_once,
            compute=not raw_only,
        ):
            show(part.words())
