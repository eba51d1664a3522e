"""`health-pipeline report`: a person's last weeks on one page that needs nothing else.

HTML with the pictures inside as SVG, whose text is text. Each picture has words for who cannot see it and its numbers
as a table; shades, hatches and dashes tell things apart, never a colour alone. On paper by headless Chromium.
"""

from __future__ import annotations

import datetime as dt
import html
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from health_pipeline.connections.users import require_user
from health_pipeline.runtime import report_pictures as pictures
from health_pipeline.warehouse.connection import Warehouse
from health_pipeline.warehouse.engine_tables import HORIZONS, ensure_engine_tables, read_frame

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_DAYS = 30
_LONGEST_DAYS = 366
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_PRINT_SECONDS = 120
_UNKNOWN = "-"
_URGENT_SHOWN = 5
#: What completeness is shown of, in this order, where the person has it.
_WATCHED = (
    *("steps", "sleep_duration", "resting_heart_rate", "heart_rate_variability", "stress_score"),
    *("glucose", "weight", "spo2"),
)

_STYLE = """
:root{--ink:#1a1a1a;--soft:#555;--line:#ccc;--paper:#fff}
*{box-sizing:border-box}
body{margin:0 auto;padding:1rem;max-width:44rem;font:1rem/1.5 system-ui,sans-serif}
body{color:var(--ink);background:var(--paper)}
h1{font-size:1.5rem;margin:.2rem 0}h2{font-size:1.15rem;margin:2rem 0 .3rem;border-bottom:1px solid var(--line)}
p{margin:.4rem 0}.soft{color:var(--soft);font-size:.9rem}
figure{margin:.5rem 0}figure svg{width:100%;height:auto;display:block}figcaption{font-size:.9rem;color:var(--soft)}
table{border-collapse:collapse;width:100%;font-size:.85rem;font-variant-numeric:tabular-nums}
caption{text-align:left;padding:.2rem 0}
th,td{text-align:right;padding:.15rem .4rem;border-bottom:1px solid var(--line)}
td{white-space:nowrap}th:first-child{text-align:left}tbody th{font-weight:normal}
details{margin:.3rem 0}.wide{overflow-x:auto}summary{cursor:pointer;font-size:.9rem}
ul{padding-left:1.2rem;margin:.3rem 0}
@page{size:A4;margin:16mm 18mm}
@media print{body{max-width:none;padding:0;font-size:.85rem}h2{margin-top:1.2rem;break-after:avoid}details{display:none}
figure,table,ul{break-inside:avoid}figure svg{width:72%}}
"""


@dataclass(frozen=True, slots=True)
class Report:
    """What was written where, for the last line of the command."""

    path: Path
    sections: tuple[str, ...]

    def words(self) -> str:
        return f"{self.path}: {', '.join(self.sections) or 'nothing to show yet'}"


def parse_period(text: str) -> int:
    """`30d`, `12w` or `30` as days. Raises ValueError."""
    match = re.fullmatch(r"(\d{1,4})([dw]?)", text.strip())
    days = int(match[1]) * (7 if match[2] == "w" else 1) if match else 0
    if not 1 <= days <= _LONGEST_DAYS:
        raise ValueError(f"{text!r} is no period: write it like 30d or 12w, up to {_LONGEST_DAYS} days")
    return days


def write_report(warehouse: Warehouse, handle: str, output: Path, *, days: int = DEFAULT_DAYS) -> Report:
    """Write a user's report as HTML, or as PDF where `output` ends so. Overwrites.

    Raises LookupError for an unknown user or one without data, RuntimeError where a PDF is asked for and there is no
    Chromium, or it fails.
    """
    pdf = output.suffix.lower() == ".pdf"
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None) if pdf else None
    if pdf and browser is None:
        raise RuntimeError("a PDF needs Chromium or Chrome on this machine; without, name the output .html")
    ensure_engine_tables(warehouse)
    with warehouse.engine.connect() as connection:
        user_id = require_user(connection, handle).user_id
    page, sections = _page(warehouse, user_id, handle, days)
    if not pdf:
        output.write_text(page, encoding="utf-8")
        return Report(output, sections)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "report.html"
        source.write_text(page, encoding="utf-8")
        _print(str(browser), source, output.absolute(), folder)
    return Report(output, sections)


def _print(browser: str, source: Path, output: Path, folder: str) -> None:
    """Let a browser print a page. Root may not use Chromium's sandbox; the page is ours and loads nothing."""
    command = [
        *(browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile"),
        *("--no-pdf-header-footer", f"--print-to-pdf={output}", source.as_uri()),
    ]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_PRINT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{Path(browser).name} did not print within {_PRINT_SECONDS} s") from None
    if done.returncode or not output.exists():
        raise RuntimeError(f"{Path(browser).name} could not print the report (exit code {done.returncode})")


class _Source:
    """One person's rows of the days shown."""

    def __init__(self, warehouse: Warehouse, user_id: int, days: int) -> None:
        self._warehouse = warehouse
        self.user_id = user_id
        last = self.read("select max(local_date) as day from health.daily_metrics where user_id = {user}")[
            "day"
        ][0]
        if last is None or last != last:
            raise LookupError("there is no data of this user yet: connect an account or upload a file first")
        self.last: dt.date = last.date()
        self.first: dt.date = self.last - dt.timedelta(days=days - 1)

    def read(self, query: str) -> pd.DataFrame:
        """A query's rows; `{user}`, `{first}` and `{last}` are filled in."""
        values = {"user": int(self.user_id)}
        if "{first}" in query or "{last}" in query:
            values |= {"first": f"date '{self.first}'", "last": f"date '{self.last}'"}  # type: ignore[dict-item]
        return read_frame(self._warehouse, query.format(**values))

    def daily(self, metrics: Iterable[str]) -> pd.DataFrame:
        """Daily values, a column a metric, a row a day of the period, null where there is none."""
        import pandas as pd

        names = ", ".join(f"'{name}'" for name in metrics)
        rows = self.read(
            "select local_date, metric_type, metric_value from health.daily_metrics where user_id = {user} "  # noqa: S608
            f"and metric_type in ({names}) and local_date between {{first}} and {{last}}"
        )
        wide = rows.pivot(index="local_date", columns="metric_type", values="metric_value")
        return wide.reindex(pd.date_range(self.first, self.last))


def _page(warehouse: Warehouse, user_id: int, handle: str, days: int) -> tuple[str, tuple[str, ...]]:
    source = _Source(warehouse, user_id, days)
    sections = []
    for title, section in (
        ("In words", _words),
        ("Recovery", _recovery),
        ("Sleep", _sleep),
        ("Training load", _load),
        ("Forecast", _forecasts),
        ("Glucose", _glucose),
        ("Alerts", _alerts),
        ("What goes together", _correlations),
        ("Completeness", _completeness),
    ):
        content = section(source)
        if content:
            anchor = title.lower().replace(" ", "-")
            sections.append(
                (
                    title,
                    f'<section aria-labelledby="{anchor}"><h2 id="{anchor}">{title}</h2>{content}</section>',
                )
            )
    name = html.escape(handle)
    period = f"{source.first:%d %B %Y} to {source.last:%d %B %Y}"
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>Health report of {name}, {period}</title><style>{_STYLE}</style></head>
<body><header><h1>Health report of {name}</h1><p class="soft">{period}, {days} days. Numbers of devices worn in daily
life: they describe, and are no diagnosis.</p></header>
<main>{"".join(content for _, content in sections)}</main></body></html>
"""
    return page, tuple(title for title, _ in sections)


# What the sections are made of


def _figure(svg: str, alt: str, caption: str, table: str) -> str:
    """A picture, what it shows in words, and its numbers."""
    picture = svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(alt, quote=True)}" ', 1)
    return (
        f"<figure>{picture}<figcaption>{html.escape(caption)}</figcaption></figure>"
        f'<details><summary>The numbers</summary><div class="wide">{table}</div></details>'
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]], caption: str) -> str:
    cells = "".join(f'<th scope="col">{html.escape(each)}</th>' for each in head)
    body = "".join(
        f'<tr><th scope="row">{html.escape(str(first))}</th>'
        + "".join(f"<td>{html.escape(_cell(each))}</td>" for each in rest)
        + "</tr>"
        for first, *rest in rows
    )
    return (
        f"<table><caption class='soft'>{html.escape(caption)}</caption><thead><tr>{cells}</tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )


def _cell(value: Any) -> str:
    if value is None or value != value:
        return _UNKNOWN
    return f"{value:.0f}" if isinstance(value, float) else str(value)


def _hours(seconds: float) -> str:
    if seconds != seconds:
        return _UNKNOWN
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min"


def _span(values: pd.Series, unit: str = "") -> str:
    known = values.dropna()
    return f"from {known.min():.0f} to {known.max():.0f}{unit}, mean {known.mean():.0f}{unit}, on {len(known)} days"


def _words(source: _Source) -> str:
    rows = source.read(
        "select subject, sentence, author, local_date from health.narratives where user_id = {user} "
        "and subject like 'day %' order by local_date desc limit 1"
    )
    if rows.empty:
        return ""
    row = rows.iloc[0]
    by = "" if row["author"] == "template" else f" Worded by {row['author']}, from the same numbers."
    return f"<p>{html.escape(row['sentence'])}</p><p class='soft'>Of {row['local_date']:%d %B %Y}.{html.escape(by)}</p>"


def _recovery(source: _Source) -> str:
    scores = source.read(
        "select * from health.recovery_scores where user_id = {user} and method = 'calibrated' "
        "and local_date between {first} and {last} order by local_date"
    )
    if scores.empty:
        return ""
    parts = {
        "Stress": "stress_component",
        "Sleep": "sleep_component",
        "Heart rate": "heart_rate_component",
        "Load": "load_component",
    }
    svg = pictures.recovery(scores, parts, source.first, source.last)
    newest = scores.iloc[-1]
    table = _table(
        ["Day", "Recovery", "80 % range", *parts],
        (
            [
                f"{row['local_date']:%Y-%m-%d}",
                row["recovery_score"],
                f"{row['score_low']:.0f} to {row['score_high']:.0f}",
                *(row[column] for column in parts.values()),
            ]
            for _, row in scores.iterrows()
        ),
        "Recovery score and its components, 0 to 100",
    )
    return f"<p>{html.escape(newest['explanation'])}</p>" + _figure(
        svg,
        f"Recovery score a day, {_span(scores['recovery_score'])}; below it its four components.",
        "Recovery with its 80 % range; 75 (dotted) is an ordinary day. Below, what it is made of; a dot is a part that "
        "is not known. No line where too little is known for a score.",
        table,
    )


def _sleep(source: _Source) -> str:
    names = ("sleep_duration", "deep_sleep", "rem_sleep", "light_sleep", "sleep_efficiency")
    nights = source.daily(names).reindex(columns=list(names))
    if nights["sleep_duration"].notna().sum() == 0:
        return ""
    known = nights["sleep_duration"].dropna()
    within = ((known >= 7 * 3600) & (known <= 9 * 3600)).mean()
    table = _table(
        ["Night", "Asleep", "Deep", "REM", "Light", "Efficiency %"],
        (
            [f"{day:%Y-%m-%d}", *(_hours(row[name]) for name in names[:4]), row["sleep_efficiency"]]
            for day, row in nights.iterrows()
        ),
        "Nights by the day they ended on",
    )
    return _figure(
        pictures.sleep(nights),
        f"Hours asleep a night, mean {_hours(known.mean())} on {len(known)} nights, {within:.0%} of them 7 to 9 hours.",
        f"Hours asleep, by stage where known; the band is 7 to 9 hours. Mean {_hours(known.mean())}.",
        table,
    )


def _load(source: _Source) -> str:
    loads = source.read(
        "select local_date, load, load_method, banister_trimp, acute_load, chronic_load, stress_balance "
        "from health.training_loads "
        "where user_id = {user} and local_date between {first} and {last} order by local_date"
    )
    if loads.empty or not (loads["load"] > 0).any():
        return ""
    sessions = int((loads["load"] > 0).sum())
    table = _table(
        ["Day", "Load", "Found by", "TRIMP", "7 days", "42 days", "Balance"],
        (
            [
                f"{row['local_date']:%Y-%m-%d}",
                row["load"],
                str(row["load_method"] or _UNKNOWN).replace("_", " "),
                *(row[name] for name in ("banister_trimp", "acute_load", "chronic_load", "stress_balance")),
            ]
            for _, row in loads.iterrows()
        ),
        "Training load a day, minutes times effort; TRIMP is Banister's, where the heart rate is known",
    )
    return _figure(
        pictures.load(loads, source.first, source.last),
        f"Training load a day: {sessions} of {len(loads)} days with training; the mean of 7 days ends at "
        f"{_cell(float(loads['acute_load'].iloc[-1]))}, that of 42 at {_cell(float(loads['chronic_load'].iloc[-1]))}.",
        "Load a day (bars; a dot is a day that nothing is known of), its mean of 7 days (line) and of 42 (dashed).",
        table,
    )


def _forecasts(source: _Source) -> str:
    rows = source.read(
        """
        select forecasts.*, types.unit from health.forecasts as forecasts
        inner join health.metric_types as types using (metric_type)
        where user_id = {user} and slope_per_day is not null and (target_value is not null
            or metric_type in ('resting_heart_rate', 'heart_rate_variability', 'weight'))
        order by target_value is null, metric_type <> 'resting_heart_rate', metric_type limit 3
        """
    )
    parts = []
    for _, row in rows.iterrows():
        metric = str(row["metric_type"])
        past = source.read(
            "select local_date, metric_value from health.daily_metrics where user_id = {user} "  # noqa: S608
            f"and metric_type = '{metric}' and local_date between date '{row['window_start']:%Y-%m-%d}' "
            f"and date '{row['window_end']:%Y-%m-%d}' order by local_date"
        )
        seconds = row["unit"] == "s"
        factor, unit = (1 / 3600, "h") if seconds else (1.0, pictures.unit_words(str(row["unit"])))
        name = metric.replace("_", " ")
        table = _table(
            ["Days ahead", "Expected", "90 % range"],
            (
                [
                    days,
                    f"{row[f'predicted_{days}d'] * factor:.1f}",
                    f"{row[f'low_{days}d'] * factor:.1f} to {row[f'high_{days}d'] * factor:.1f}",
                ]
                for days in HORIZONS
            ),
            f"Forecast of {name}, {unit}",
        )
        parts.append(
            _figure(
                pictures.forecast(row, past, factor, f"{name} ({unit})"),
                f"{name}: the last 30 days and the range ahead. {row['sentence']}",
                str(row["sentence"]),
                table,
            )
        )
    return "".join(parts)


def _glucose(source: _Source) -> str:
    profile = source.read("select * from health.agp where user_id = {user} order by minute_of_day")
    if profile["p50"].notna().sum() == 0:
        return ""
    periods = source.read(
        "select * from health.glucose_periods where user_id = {user} order by period_days limit 1"
    )
    as_of = profile["as_of_date"].iloc[0]
    readings = source.read(
        f"""
        select readings.local_date, readings.glucose_mg_dl,
            (extract(epoch from (readings.recorded_at
                + coalesce(readings.utc_offset_minutes, 0) * interval '1 minute') at time zone 'UTC'
                - readings.local_date) / 3600)::double precision as hour
        from health.glucose_readings as readings
        inner join health.daily_metrics as daily using (user_id, local_date, source)
        where readings.user_id = {{user}} and readings.reading_type = 'cgm' and daily.metric_type = 'glucose'
            and readings.local_date > date '{as_of:%Y-%m-%d}' - 14
        order by readings.recorded_at
        """  # noqa: S608
    )
    median = profile["p50"].dropna()
    caption = (
        "Glucose by the time of day, of the last 14 days: median, half of the readings (dark), nine in ten (light). "
        "Dashed: 70 and 180 mg/dL."
    )
    parts = [
        _figure(
            pictures.agp(profile),
            f"Glucose profile of a day: the median lies between {median.min():.0f} and {median.max():.0f} mg/dL.",
            caption,
            _table(
                ["Time", "5 %", "25 %", "Median", "75 %", "95 %", "Days"],
                (
                    [
                        f"{int(row['minute_of_day']) // 60:02}:{int(row['minute_of_day']) % 60:02}",
                        *(row[name] for name in ("p05", "p25", "p50", "p75", "p95")),
                        int(row["n_days"]),
                    ]
                    for _, row in profile.iloc[::4].iterrows()
                ),
                "Glucose by the hour, mg/dL",
            ),
        )
    ]
    daily = readings.groupby("local_date")["glucose_mg_dl"].agg(["mean", "min", "max", "count"])
    parts.append(
        _figure(
            pictures.glucose_days(readings),
            f"Glucose of each of {len(daily)} days, midnight to midnight, with 70 to 180 mg/dL shaded.",
            "Each of these days; the band is 70 to 180 mg/dL.",
            _table(
                ["Day", "Mean", "Lowest", "Highest", "Readings"],
                (
                    [f"{day:%Y-%m-%d}", row["mean"], row["min"], row["max"], int(row["count"])]
                    for day, row in daily.iterrows()
                ),
                "Glucose a day, mg/dL",
            ),
        )
    )
    if not periods.empty:
        parts.insert(0, _glucose_facts(periods.iloc[0]))
    return "".join(parts)


def _glucose_facts(row: pd.Series) -> str:
    facts: list[list[Any]] = [
        ["Time with readings", f"{_cell(row['percent_active'])} %"],
        ["Mean", f"{_cell(row['mean_mg_dl'])} mg/dL"],
        ["Variation (CV)", f"{_cell(row['cv_percent'])} %"],
        ["Above 250 mg/dL", f"{_cell(row['percent_above_250'])} %"],
        ["181 to 250", f"{_cell(row['percent_181_250'])} %"],
        ["In range, 70 to 180", f"{_cell(row['percent_in_range'])} %"],
        ["54 to 69", f"{_cell(row['percent_54_69'])} %"],
        ["Below 54", f"{_cell(row['percent_below_54'])} %"],
    ]
    if row["gmi_percent"] == row["gmi_percent"]:
        facts.insert(3, ["GMI (no laboratory HbA1c)", f"{row['gmi_percent']:.1f} %"])
    words = "" if row["sufficient"] else "<p>Less than 70 % of the time has readings: read with care.</p>"
    days = int(row["period_days"])
    return words + _table(["Measure", "Value"], facts, f"The {days} days up to {row['as_of_date']:%d %B %Y}")


def _alerts(source: _Source) -> str:
    rows = source.read(
        "select local_date, kind, severity, sentence from health.alerts where user_id = {user} and not suppressed "
        "and local_date between {first} and {last} order by local_date desc, severity = 'urgent' desc, kind"
    )
    if rows.empty:
        return ""
    counts = rows.groupby("kind").agg(
        number=("kind", "size"), days=("local_date", "nunique"), last=("local_date", "max")
    )
    table = _table(
        ["Alert", "Times", "Days", "Last"],
        (
            [str(kind).replace("_", " "), int(row["number"]), int(row["days"]), f"{row['last']:%Y-%m-%d}"]
            for kind, row in counts.iterrows()
        ),
        "Alerts of the period",
    )
    urgent = rows[rows["severity"] == "urgent"].head(_URGENT_SHOWN)
    items = "".join(
        f"<li>{row['local_date']:%Y-%m-%d}: {html.escape(row['sentence'])}</li>"
        for _, row in urgent.iterrows()
    )
    return table + (f"<p>The last urgent ones:</p><ul>{items}</ul>" if items else "")


def _correlations(source: _Source) -> str:
    rows = source.read(
        "select sentence from health.correlations where user_id = {user} and associated "
        "order by abs(rho) desc, first_metric, then_metric, lag_days limit 5"
    )
    items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in rows["sentence"])
    return (
        f"<ul>{items}</ul><p class='soft'>Of the last 90 days; what comes of what is not known.</p>"
        if items
        else ""
    )


def _completeness(source: _Source) -> str:
    days = source.daily(_WATCHED)
    names = [name for name in _WATCHED if name in days.columns]
    if not names:
        return ""
    known = days[names].notna()
    shares = {name.replace("_", " "): int(known[name].sum()) for name in names}
    return _figure(
        pictures.completeness(known, [name.replace("_", " ") for name in names]),
        "Days with a value: "
        + ", ".join(f"{name} {count} of {len(known)}" for name, count in shares.items())
        + ".",
        "A filled square is a day with a value.",
        _table(
            ["Measured", "Days", "Of"],
            ([name, count, len(known)] for name, count in shares.items()),
            "Days with a value",
        ),
    )
