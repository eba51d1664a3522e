"""The command line: what to call, with what; the work is in `runtime` and the rooms below it.

Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import datetime as dt
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from health_pipeline import cli_connections, cli_load, cli_personal, cli_tokens, cli_webhooks
from health_pipeline.cli_progress import file_bar, status_line
from health_pipeline.cli_warehouse import open_configured

if TYPE_CHECKING:
    from health_pipeline.providers.base import Window

_DAY = click.DateTime(["%Y-%m-%d"])


class _Commands(click.Group):
    """Errors that say what to do are shown as such; only surprises show a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort):
            raise  # `--help` of a command, and ctrl-C: they are RuntimeErrors, and no trouble
        except (LookupError, RuntimeError, ValueError, OSError) as error:
            if ctx.params.get("debug"):
                raise
            message = error.args[0] if error.args and isinstance(error.args[0], str) else str(error)
            raise click.ClickException(message) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.version_option(package_name="health-pipeline")
def main(debug: bool) -> None:
    """People's health data from every vendor in one warehouse that can be trusted."""


@main.command()
@click.option("--port", type=int, help="Port of the Dagster UI; 3000, or a free one.")
def up(port: int | None) -> None:
    """Start database, sandbox (if no provider is configured), Dagster's UI and daemon. Ctrl-C ends them."""
    from health_pipeline.runtime.servers import up as serve

    settings, warehouse = open_configured()
    serve(settings, warehouse, click.echo, port=port)


@main.command()
@click.option(
    "--all-providers", is_flag=True, help="Connect everybody to every provider, and compare every value."
)
@click.option("--days", type=int, help="Days of history to fetch; 90, or 30 of all providers.")
def demo(all_providers: bool, days: int | None) -> None:
    """The whole way on synthetic people: fetch, upload, load, score, forecast; then check the numbers."""
    from health_pipeline.runtime import demo as demos

    settings, warehouse = open_configured()
    with status_line("demo") as say:
        if all_providers:
            whole = demos.run_all_providers(settings, warehouse, say, days=days or demos.ALL_PROVIDERS_DAYS)
            problems = whole.problems
        else:
            report = demos.run_demo(settings, warehouse, say, days=days or demos.BACKFILL_DAYS)
            problems = report.problems
    if all_providers:
        _show_all_providers(whole)
    else:
        _show_demo(report)
    if problems:
        for problem in problems[:20]:
            say(f"wrong: {problem}")
        raise click.ClickException(f"{len(problems)} things are not as they should be")


def _show_all_providers(report: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 160)
    counts = Table(
        "provider", "metric", "rows", "person-days", "people", title="In the warehouse", title_justify="left"
    )
    compared = Table(
        "provider", "compared", "equal", "cut at the edge", "wrong", "without a truth",
        title="Daily values, against what people did", title_justify="left",
    )  # fmt: skip
    for table in (counts, compared):
        for column in table.columns[1:]:
            column.justify = "right"
    counts.columns[1].justify = "left"
    before = None
    for (provider, metric), numbers in report.counts.items():
        counts.add_row("" if provider == before else provider, metric, *(f"{number:,}" for number in numbers))
        before = provider
    for one in report.comparisons:
        numbers = (one.compared, one.equal, len(one.cut), len(one.wrong), one.untold)
        compared.add_row(one.provider, *(f"{number:,}" for number in numbers))
    console.print(counts)
    for line in report.skipped:
        console.print(line, markup=False, highlight=False)
    console.print(compared)
    for one in report.comparisons:
        for difference in one.cut:
            console.print(f"at the edge: {difference.words()}", markup=False, highlight=False)
    console.print(f"{report.seconds:.0f} s. See it in the Dagster UI:  [bold]make up[/bold]")


def _show_demo(report: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    counts = Table("what", "count", title="In the warehouse", title_justify="left")
    counts.columns[1].justify = "right"
    for label, count in report.counts.items():
        counts.add_row(label, f"{count:,}")
    console.print(counts)
    recovery = Table("who", "day", "recovery", "why", title="Last recovery scores", title_justify="left")
    for handle, day, score, why in report.recovery:
        recovery.add_row(handle, str(day), f"{score:.0f}", why)
    console.print(recovery)
    forecasts = Table("who", "forecast", title="Forecasts", title_justify="left")
    for handle, sentence in report.forecasts:
        forecasts.add_row(handle, sentence)
    console.print(forecasts)
    console.print(f"{report.seconds:.0f} s. See it in the Dagster UI:  [bold]make up[/bold]")


@main.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--user", "handle", required=True, help="Whose data it is; made on first use.")
@click.option("--timezone", "time_zone", help="Zone of local times, like Europe/Berlin; kept for a new user.")
@click.option("--kind", help="Kind of file, if it is not to be found by content.")
@click.option(
    "--date-order", type=click.Choice(["dmy", "mdy"]), help="Order of the file's dates, if it is unclear."
)
@click.option(
    "--option",
    "options",
    metavar="NAME=VALUE",
    multiple=True,
    callback=lambda _context, _parameter, given: _named(given),
    help="What the file does not say: participant=ID (Fitabase), date=YYYY-MM-DD (Fitbit), unit=mmol/L (glucose).",
)
def upload(
    file: Path,
    handle: str,
    time_zone: str | None,
    kind: str | None,
    date_order: str | None,
    options: dict[str, str],
) -> None:
    """Load a file into the warehouse: keep its bytes, then stage, check, and compute what it changes.

    The same command again goes on where one that was killed has ended; what is there is not loaded twice.
    """
    from health_pipeline.runtime.files import upload_file

    if date_order:
        options = {**options, "date_order": date_order}

    settings, warehouse = open_configured()
    with file_bar(file.name) as say:
        summary = upload_file(
            settings, warehouse, file, handle, say, time_zone=time_zone, kind=kind, options=options
        )
    click.echo(summary.words())
    if summary.problems:
        raise click.ClickException("; ".join(summary.problems))


@main.command()
@click.option("--day", type=_DAY, required=True, help="Day to fetch, YYYY-MM-DD (UTC).")
@click.option("--to", "last", type=_DAY, help="Last day of a range; it is one run.")
def refresh(day: dt.datetime, last: dt.datetime | None) -> None:
    """Run the daily job for a day or a range of days."""
    from health_pipeline.runtime.run_job import run_job

    settings, warehouse = open_configured()
    with status_line("refresh") as say:
        outcome = run_job("daily_refresh", _window(day, last), settings, warehouse, on_progress=say)
    for check in outcome.failed_checks:
        say(f"check failed: {check}")
    if not outcome.success:
        raise click.ClickException("; ".join(outcome.failures) or f"run {outcome.run_id} failed; see the UI")
    click.echo(f"done, run {outcome.run_id}")


@main.group()
def user() -> None:
    """People, by the name that --user takes."""


@user.command("set")
@click.argument("handle")
@click.option("--sex", type=click.Choice(["female", "male"]), help="For the formula of training load.")
@click.option("--birth-year", type=int, help="For the highest heart rate by age, where it is not known.")
@click.option("--max-heart-rate", type=int, help="The highest heart rate ever measured, a minute.")
def user_set(handle: str, sex: str | None, birth_year: int | None, max_heart_rate: int | None) -> None:
    """Say of a person what training load needs to be found from their heart rate. The next run uses it."""
    from health_pipeline.runtime.users import set_profile

    _, warehouse = open_configured()
    click.echo(set_profile(warehouse, handle, sex=sex, birth_year=birth_year, max_heart_rate=max_heart_rate))


@user.command("merge")
@click.argument("handle")
@click.option("--into", required=True, help="Who they are; this user stays.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def user_merge(handle: str, into: str, yes: bool) -> None:
    """Make one user of two that are the same person. It cannot be undone."""
    from health_pipeline.runtime.users import merge_users

    _, warehouse = open_configured()
    if not yes:
        click.confirm(f"Give all that is {handle}'s to {into}, for good?", abort=True)
    click.echo(merge_users(warehouse, handle, into))


def _window(day: dt.datetime, last: dt.datetime | None) -> Window:
    from health_pipeline.providers.base import Window

    return Window(day.date(), (last or day).date())


@main.command()
@click.argument("statement", metavar="SQL")
@click.option(
    "--format", "style", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True
)
@click.option("--as-user", help="See only what this user may see.")
def query(statement: str, style: str, as_user: str | None) -> None:
    """Run one read-only SQL statement on the warehouse."""
    from health_pipeline.runtime import query as queries

    _, warehouse = open_configured()
    table = queries.run_query(warehouse, statement, as_user=as_user)
    if style == "csv":
        click.echo(queries.to_csv(table), nl=False)
    elif style == "json":
        click.echo(queries.to_json(table))
    else:
        _print_table(table)


@main.group()
def export() -> None:
    """Write a person's data in the words of others."""


@export.command("fhir")
@click.option("--user", "handle", required=True, help="Whose data.")
@click.option(
    "-o",
    "--output",
    type=click.File("wb", lazy=False, atomic=True),
    default="-",
    help="A file: NDJSON, or a Bundle where its name ends in .json. Standard output by default.",
)
@click.option("--samples", is_flag=True, help="Every value, not one a day and metric.")
@click.option("--from", "first", type=_DAY, help="First local day.")
@click.option("--to", "last", type=_DAY, help="Last local day; the first one alone by default.")
def export_fhir(
    handle: str, output: IO[bytes], samples: bool, first: dt.datetime | None, last: dt.datetime | None
) -> None:
    """A person's values as FHIR R4 Observations, by LOINC and UCUM."""
    from health_pipeline.runtime.fhir_export import export_fhir as write

    if last is not None and first is None:
        raise click.UsageError("--to needs --from")
    _, warehouse = open_configured()
    window = None if first is None else _window(first, last)
    bundle = output.name.endswith(".json")
    count = write(warehouse, handle, output, samples=samples, window=window, bundle=bundle)
    click.echo(f"{count} Observations", err=True)


def _print_table(table: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table(*table.column_names)
    for row in table.to_pylist():
        shown.add_row(*("" if value is None else str(value) for value in row.values()))
    Console(width=None if sys.stdout.isatty() else 200).print(shown)
    click.echo(f"{table.num_rows} rows", err=True)


@main.command()
def status() -> None:
    """Say what is connected, when it last synced, what waits and what is broken (exit code 1)."""
    from rich.console import Console
    from rich.table import Table

    from health_pipeline.runtime.status import read_status

    _, warehouse = open_configured()
    found = read_status(warehouse)
    console = Console(width=None if sys.stdout.isatty() else 160)
    accounts = Table(
        "user", "provider", "status", "last sync (UTC)", "trouble", title="Accounts", title_justify="left"
    )
    for account in found.accounts:
        synced = f"{account.last_sync_at:%Y-%m-%d %H:%M}" if account.last_sync_at else "never"
        accounts.add_row(account.handle, account.provider, account.status, synced, account.last_error or "")
    console.print(accounts)
    providers = Table(
        "source", "raw objects", "last received (UTC)", "to stage", "to apply", "quarantined",
        title="Sources", title_justify="left",
    )  # fmt: skip
    for provider in found.providers:
        received = f"{provider.last_received_at:%Y-%m-%d %H:%M}" if provider.last_received_at else "never"
        providers.add_row(
            provider.provider, f"{provider.objects:,}", received, f"{provider.waiting:,}",
            f"{provider.unapplied:,}", f"{provider.quarantined:,}",
        )  # fmt: skip
    console.print(providers)
    for location, message in found.rejected_files:
        console.print(f"inbox: {location} was refused: {message}", markup=False)
    if not found.healthy:
        raise SystemExit(1)


@main.command()
@click.option("--user", "handle", required=True, help="Whose report.")
@click.option(
    "--period", default="30d", show_default=True, help="So many days (30d) or weeks (12w) up to the last."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="FILE.html, or FILE.pdf.",
)
def report(handle: str, period: str, output: Path) -> None:
    """Write a person's last weeks as one page: recovery, sleep, load, forecast, glucose, completeness."""
    from health_pipeline.runtime.report import parse_period, write_report

    days = parse_period(period)
    _, warehouse = open_configured()
    click.echo(write_report(warehouse, handle, output, days=days).words())


@main.command()
@click.option("--port", type=int, default=8900, show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True)
def sandbox(port: int, host: str) -> None:
    """Serve the provider sandbox: the providers' APIs over synthetic people."""
    from health_pipeline.sandbox.server import serve

    serve(host, port)


@main.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def dbt(arguments: tuple[str, ...]) -> None:
    """Run dbt on the warehouse, wherever it is: `health-pipeline dbt build`."""
    import os
    import subprocess

    from health_pipeline.warehouse.dbt_project import PROJECT_DIR, dbt_executable

    _, warehouse = open_configured()
    done = subprocess.run(
        [dbt_executable(), *arguments, "--project-dir", str(PROJECT_DIR), "--profiles-dir", str(PROJECT_DIR)],
        env={**os.environ, **warehouse.environment()},
        check=False,
    )
    raise SystemExit(done.returncode)


@main.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
def destroy(yes: bool) -> None:
    """Stop the embedded database and delete it, with all that is in it. Raw objects stay."""
    from health_pipeline.settings import load_settings
    from health_pipeline.warehouse.embedded import EmbeddedPostgres

    settings = load_settings()
    if not yes:
        click.confirm(f"Delete the embedded database of {settings.home}?", abort=True)
    EmbeddedPostgres(settings.home_path).destroy()


def _named(given: tuple[str, ...]) -> dict[str, str]:
    """`NAME=VALUE` as a mapping."""
    pairs = [each.partition("=") for each in given]
    for name, equals, _ in pairs:
        if not (name and equals):
            raise click.BadParameter("write it as NAME=VALUE")
    return {name: value for name, _, value in pairs}


for _command in (
    cli_load.simulate_load,
    *(cli_connections.connect, cli_connections.disconnect, cli_connections.accounts),
    *(cli_connections.import_connections, cli_connections.vault),
    *(cli_connections.sync, cli_connections.backfill),
    *(cli_personal.alerts, cli_personal.goal, cli_personal.source),
    *(cli_webhooks.receiver, cli_webhooks.events, cli_webhooks.webhooks, cli_tokens.token),
):
    main.add_command(_command)

if __name__ == "__main__":
    main()
