"""Pictures for the asset pages. People are numbers there, never names."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import dagster as dg

from health_pipeline.warehouse.engine_tables import HORIZONS, read_frame

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from health_pipeline.warehouse.connection import Warehouse

#: A page shows this many people; more are unreadable.
_PEOPLE = 6
_DAYS = 60


def plot_recovery(warehouse: Warehouse) -> dg.MetadataValue[Any]:
    """Recovery of the last 60 days with its 80 % range, for the people with the newest scores."""
    scores = read_frame(
        warehouse,
        f"""
        with people as ({_newest("recovery_scores", "method = 'calibrated'")})
        select scores.user_id, scores.local_date, scores.recovery_score, scores.score_low, scores.score_high
        from health.recovery_scores as scores
        inner join people using (user_id)
        where scores.method = 'calibrated' and scores.local_date > people.last_day - {_DAYS}
        order by scores.user_id, scores.local_date
        """,  # noqa: S608
    )
    if scores.empty:
        return dg.MetadataValue.md("No recovery scores yet: they need 14 days of data.")

    def draw(axis: Axes, rows: pd.DataFrame) -> None:
        axis.fill_between(rows["local_date"], rows["score_low"], rows["score_high"], alpha=0.25, linewidth=0)
        axis.plot(rows["local_date"], rows["recovery_score"], linewidth=1.5, marker=".", markersize=4)
        axis.axhline(75, color="grey", linewidth=0.8, linestyle=":")
        axis.set_ylim(0, 100)

    figure = _panel_per_person(scores, draw, "Recovery score with 80 % range (75 is an ordinary day)")
    return _markdown(figure, "Recovery scores of the last 60 days")


#: Components of the score, and how each is drawn: told apart without colour.
_COMPONENTS = {
    "stress_component": ("stress", "-"),
    "sleep_component": ("sleep", "--"),
    "heart_rate_component": ("heart rate", ":"),
    "load_component": ("load", "-."),
}


def plot_components(warehouse: Warehouse) -> dg.MetadataValue[Any]:
    """What the recovery of the last 30 days is made of, for the people with the newest scores."""
    scores = read_frame(
        warehouse,
        f"""
        with people as ({_newest("recovery_scores", "method = 'calibrated'")})
        select scores.* from health.recovery_scores as scores
        inner join people using (user_id)
        where scores.method = 'calibrated' and scores.local_date > people.last_day - 30
        order by scores.user_id, scores.local_date
        """,  # noqa: S608
    )
    if scores.empty:
        return dg.MetadataValue.md("No recovery scores yet: they need 14 days of data.")

    def draw(axis: Axes, rows: pd.DataFrame) -> None:
        for column, (name, style) in _COMPONENTS.items():
            axis.plot(rows["local_date"], rows[column], linestyle=style, linewidth=1.2, label=name)
        axis.set_ylim(0, 100)

    figure = _panel_per_person(scores, draw, "Components of recovery, 0 to 100")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), **_BELOW)
    return _markdown(figure, "Components of the recovery scores of the last 30 days")


def plot_loads(warehouse: Warehouse) -> dg.MetadataValue[Any]:
    """Load a day of the last 60 days with both averages, for the people with the newest loads."""
    loads = read_frame(
        warehouse,
        f"""
        with people as ({_newest("training_loads", "load is not null")})
        select loads.user_id, loads.local_date, loads.load, loads.acute_load, loads.chronic_load
        from health.training_loads as loads
        inner join people using (user_id)
        where loads.local_date > people.last_day - {_DAYS} and loads.local_date <= people.last_day
        order by loads.user_id, loads.local_date
        """,  # noqa: S608
    )
    if loads.empty:
        return dg.MetadataValue.md("No training load yet: nobody has worn anything.")

    def draw(axis: Axes, rows: pd.DataFrame) -> None:
        day = rows["local_date"]
        axis.bar(day, rows["load"], width=0.8, color="lightgrey", edgecolor="grey", linewidth=0.4)
        axis.plot(day, rows["acute_load"], color="black", linewidth=1.5, label="7 days")
        axis.plot(day, rows["chronic_load"], color="black", linewidth=1.2, linestyle="--", label="42 days")
        axis.set_ylim(bottom=0)

    figure = _panel_per_person(loads, draw, "Training load a day (bars), its mean of 7 and of 42 days")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), **_BELOW)
    return _markdown(figure, "Training loads of the last 60 days")


def plot_forecasts(warehouse: Warehouse) -> dg.MetadataValue[Any]:
    """Forecasts towards a goal (else of resting heart rate): 30 days past, the line, and the 90 % fan."""
    forecasts = read_frame(
        warehouse,
        f"""
        select *, (select unit from health.metric_types where metric_types.metric_type = forecasts.metric_type)
        from health.forecasts
        where slope_per_day is not null
        order by target_value is null, metric_type <> 'resting_heart_rate', as_of_date desc, user_id
        limit {_PEOPLE}
        """,  # noqa: S608
    )
    if forecasts.empty:
        return dg.MetadataValue.md("No forecast yet: one needs 14 days of data within 30.")
    import pandas as pd

    figure = _panels(len(forecasts), "Forecast: last 30 days, line, 90 % range; dashed: goal")
    for axis, (_, row) in zip(figure.axes, forecasts.iterrows(), strict=False):
        past = read_frame(
            warehouse,
            "select local_date, metric_value from health.daily_metrics "  # noqa: S608
            f"where user_id = {int(row['user_id'])} and metric_type = '{row['metric_type']}' "
            f"and local_date between date '{row['window_start']:%Y-%m-%d}' "
            f"and date '{row['window_end']:%Y-%m-%d}' order by local_date",
        )
        axis.plot(past["local_date"], past["metric_value"], ".", markersize=4, color="black")
        ahead = [row["as_of_date"] + pd.Timedelta(days=days) for days in HORIZONS]
        fan = {part: [row[f"{part}_{days}d"] for days in HORIZONS] for part in ("predicted", "low", "high")}
        axis.fill_between(ahead, fan["low"], fan["high"], alpha=0.25, linewidth=0)
        axis.plot([row["as_of_date"], *ahead], [row["intercept_value"], *fan["predicted"]], linewidth=1.5)
        start_value = row["intercept_value"] - row["slope_per_day"] * 29
        axis.plot(
            [row["window_start"], row["as_of_date"]], [start_value, row["intercept_value"]], linewidth=1
        )
        if pd.notna(row["target_value"]):
            axis.axhline(row["target_value"], color="grey", linewidth=0.8, linestyle="--")
        name = str(row["metric_type"]).replace("_", " ")
        axis.set_title(f"Person {row['user_id']}: {name} ({row['unit']})", fontsize=9, loc="left")
    return _markdown(figure, "Forecasts for 30 days")


def plot_agp(warehouse: Warehouse) -> dg.MetadataValue[Any]:
    """Ambulatory glucose profiles: median, 25 to 75 % and 5 to 95 % of the last 14 days by the local clock."""
    profiles = read_frame(
        warehouse,
        f"""
        with people as (
            select user_id from health.agp where p50 is not null
            group by user_id order by max(as_of_date) desc, user_id limit {_PEOPLE}
        )
        select agp.* from health.agp inner join people using (user_id) order by user_id, minute_of_day
        """,  # noqa: S608
    )
    if profiles.empty:
        return dg.MetadataValue.md("No glucose profile yet: a time of day needs readings of 5 days.")

    def draw(axis: Axes, rows: pd.DataFrame) -> None:
        hour = rows["minute_of_day"] / 60
        axis.fill_between(hour, rows["p05"], rows["p95"], alpha=0.2, linewidth=0, color="tab:blue")
        axis.fill_between(hour, rows["p25"], rows["p75"], alpha=0.35, linewidth=0, color="tab:blue")
        axis.plot(hour, rows["p50"], linewidth=1.8, color="black")
        for limit in (70, 180):
            axis.axhline(limit, color="grey", linewidth=0.8, linestyle="--")
        axis.set_xlim(0, 24)
        axis.set_xticks(range(0, 25, 6), [f"{each:02d}:00" for each in range(0, 25, 6)])
        axis.set_ylim(40, max(300.0, float(rows["p95"].max())))

    figure = _panel_per_person(
        profiles,
        draw,
        "Glucose of 14 days, mg/dL by the local hour: median, 25-75 %, 5-95 %; dashed: 70 and 180",
    )
    return _markdown(figure, "Ambulatory glucose profiles of the last 14 days")


def plot_glucose_days(warehouse: Warehouse) -> dg.MetadataValue[Any]:
    """The days behind the profiles: a strip a day, a shade a band of the consensus, by the local clock."""
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.patches import Patch

    readings = read_frame(
        warehouse,
        f"""
        with people as (
            select user_id, max(as_of_date) as last_day from health.agp where p50 is not null
            group by user_id order by last_day desc, user_id limit {_PEOPLE}
        )
        select
            readings.user_id,
            readings.local_date,
            floor(extract(epoch from (readings.recorded_at at time zone 'UTC')::time
                + make_interval(mins => coalesce(readings.utc_offset_minutes, 0))) / 900)::integer % 96 as quarter,
            avg(readings.glucose_mg_dl)::double precision as glucose
        from people
        inner join health.glucose_readings as readings
            on readings.user_id = people.user_id and readings.local_date > people.last_day - 14
        group by 1, 2, 3
        """,  # noqa: S608
    )
    if readings.empty:
        return dg.MetadataValue.md("No glucose readings yet: no sensor is connected.")
    bands = {
        "under 54": "#000000",
        "54 to 69": "#666666",
        "70 to 180": "#f0f0f0",
        "181 to 250": "#e8a33d",
        "over 250": "#b5471b",
    }
    shades = ListedColormap(list(bands.values()))
    norm = BoundaryNorm([0, 54, 70, 180.5, 250.5, 1000], len(bands))

    def draw(axis: Axes, rows: pd.DataFrame) -> None:
        strips = rows.pivot(index="local_date", columns="quarter", values="glucose").reindex(
            columns=range(96)
        )
        axis.pcolormesh(
            [quarter / 4 for quarter in range(97)], range(len(strips) + 1), strips, cmap=shades, norm=norm
        )
        axis.set_xticks(range(0, 25, 6), [f"{each:02d}:00" for each in range(0, 25, 6)])
        axis.set_yticks(
            [place + 0.5 for place in range(len(strips))], [f"{day:%d %b}" for day in strips.index]
        )
        axis.tick_params(axis="y", labelsize=6, length=0)
        axis.invert_yaxis()

    figure = _panel_per_person(readings, draw, "Glucose day by day, mg/dL")
    patches = [Patch(facecolor=shade, edgecolor="grey", label=name) for name, shade in bands.items()]
    figure.legend(handles=patches, **_BELOW)
    return _markdown(figure, "Glucose of the last 14 days, a strip a day")


def plot_sleep(warehouse: Warehouse) -> dg.MetadataValue[Any]:
    """Hours asleep of the last 30 nights, for the people with the newest scores."""
    nights = read_frame(
        warehouse,
        f"""
        with people as ({_newest("recovery_scores", "method = 'calibrated'")})
        select nights.user_id, nights.local_date, nights.metric_value / 3600 as hours
        from people
        inner join health.daily_metrics as nights
            on nights.user_id = people.user_id and nights.metric_type = 'sleep_duration'
            and nights.local_date > people.last_day - 30
        order by 1, 2
        """,  # noqa: S608
    )
    if nights.empty:
        return dg.MetadataValue.md("No nights yet: they come with the first recovery scores.")

    def draw(axis: Axes, rows: pd.DataFrame) -> None:
        axis.axhspan(7, 9, color="lightgrey", alpha=0.6, linewidth=0)
        axis.bar(rows["local_date"], rows["hours"], width=0.8, color="dimgrey")

    figure = _panel_per_person(nights, draw, "Hours asleep (band: 7 to 9)")
    return _markdown(figure, "Hours asleep of the last 30 nights")


#: What scores, forecasts and alerts are made of.
_COUNTED = (
    "sleep_duration",
    "sleep_efficiency",
    "resting_heart_rate",
    "heart_rate_variability",
    "heart_rate",
    "stress_score",
    "body_temperature_deviation",
    "spo2",
    "steps",
    "calories_burned",
    "weight",
    "glucose",
)


def plot_completeness(warehouse: Warehouse) -> dg.MetadataValue[Any]:
    """Which daily metrics are known on which of the last 30 days, for the people with the newest scores."""
    known = read_frame(
        warehouse,
        f"""
        with people as ({_newest("recovery_scores", "method = 'calibrated'")})
        select daily.user_id, daily.metric_type, people.last_day - daily.local_date as days_ago
        from people
        inner join health.daily_metrics as daily
            on daily.user_id = people.user_id and daily.local_date > people.last_day - 30
            and daily.local_date <= people.last_day
        """,  # noqa: S608
    )
    if known.empty:
        return dg.MetadataValue.md("Nothing to count yet: it comes with the first recovery scores.")

    def draw(axis: Axes, rows: pd.DataFrame) -> None:
        grid = rows.assign(here=1).pivot_table(index="metric_type", columns="days_ago", values="here")
        grid = grid.reindex(index=_COUNTED, columns=range(29, -1, -1)).notna()
        axis.pcolormesh(
            range(-30, 1), range(len(_COUNTED) + 1), grid, cmap="Greys", vmin=0, vmax=1.6, edgecolors="white"
        )
        axis.set_yticks(
            [place + 0.5 for place in range(len(_COUNTED))], [name.replace("_", " ") for name in _COUNTED]
        )
        axis.set_xticks([-30, -20, -10, 0], ["30", "20", "10", "0"])
        axis.tick_params(axis="y", labelsize=6, length=0)
        axis.invert_yaxis()

    title = "Days with a value, by days before the newest score"
    figure = _panel_per_person(known, draw, title, height=3.6, labels=1.5)
    return _markdown(figure, "Which daily metrics are known on which of the last 30 days")


def _newest(table: str, condition: str) -> str:
    """SQL for the people with the newest rows and their `last_day`: a look at an index each, not at all rows."""
    return f"""
            select users.user_id, newest.last_day
            from ops.users
            cross join lateral (
                select local_date as last_day from health.{table}
                where {table}.user_id = users.user_id and {condition}
                order by local_date desc limit 1
            ) as newest
            order by newest.last_day desc, users.user_id limit {_PEOPLE}
    """  # noqa: S608


#: A legend below all panels.
_BELOW: dict[str, Any] = {"loc": "lower center", "ncols": 5, "frameon": False, "fontsize": 8}


def _panel_per_person(
    rows: pd.DataFrame, draw: Callable[[Axes, pd.DataFrame], None], title: str, **sizes: float
) -> Figure:
    people = list(rows.groupby("user_id"))
    figure = _panels(len(people), title, **sizes)
    for axis, (user_id, of_person) in zip(figure.axes, people, strict=False):
        draw(axis, of_person)
        axis.set_title(f"Person {user_id}", fontsize=10, loc="left")
    return figure


def _panels(number: int, title: str, height: float = 2.3, labels: float = 0.55) -> Figure:
    """Panels of so many inches of height, with so many inches for the labels left of each."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.figure import Figure

    columns = 2 if number > 1 else 1
    rows = -(-number // columns)
    # Margins in inches that are known: matplotlib's ways to find them take longer than the picture.
    top, right, bottom = 0.6, 0.15, 0.8
    across, down = 9.0, height * rows + bottom
    figure = Figure(figsize=(across, down))
    axes = figure.subplots(rows, columns, squeeze=False)
    figure.subplots_adjust(
        left=labels / across,
        right=1 - right / across,
        top=1 - top / down,
        bottom=bottom / down,
        wspace=labels / ((across - right) / columns - labels),
        hspace=top / (height - top),
    )
    for place, axis in enumerate(axes.flat):
        if place >= number:
            axis.set_axis_off()
            continue
        locator = AutoDateLocator(maxticks=6)  # type: ignore[no-untyped-call]
        axis.xaxis.set_major_locator(locator)
        axis.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=11, y=1 - 0.08 / down, verticalalignment="top")
    return figure


def _markdown(figure: Figure, words: str) -> dg.MetadataValue[Any]:
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=90)
    return dg.MetadataValue.md(
        f"![{words}](data:image/png;base64,{base64.b64encode(image.getvalue()).decode()})"
    )
