"""The report: one page that needs nothing else, says what it shows, and shows nobody else's."""

from __future__ import annotations

import base64
import datetime as dt
import re
import shutil
import warnings
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from health_pipeline.cli import main
from health_pipeline.defs import plots
from health_pipeline.runtime import report
from health_pipeline.runtime.report import parse_period, write_report
from health_pipeline.warehouse.connection import Warehouse
from health_pipeline.warehouse.engine_tables import ensure_engine_tables

LAST = dt.date(2026, 3, 31)
_MARTS = """
create table health.daily_metrics (user_id integer, local_date date, metric_type text, metric_value double precision,
    source text);
create table health.glucose_readings (user_id integer, recorded_at timestamptz, local_date date,
    utc_offset_minutes smallint, source text, glucose_mg_dl double precision, reading_type text);
create table health.metric_types (metric_type text, unit text);
insert into health.metric_types values ('resting_heart_rate', '/min'), ('steps', '{steps}'), ('weight', 'kg');
insert into ops.users (handle) values ('ada'), ('ben & co'), ('eve');
insert into health.daily_metrics
select user_id, date '2026-03-31' - n, metric, level + n % 4, 'ring'
from ops.users
cross join generate_series(0, 44) as n
cross join (values ('steps', 8000), ('sleep_duration', 27000), ('deep_sleep', 6000), ('rem_sleep', 6000),
    ('light_sleep', 15000), ('sleep_efficiency', 90), ('resting_heart_rate', 52), ('glucose', 120)) as m (metric, level)
where handle <> 'eve' and n <> 3;
insert into health.glucose_readings
select user_id, timestamptz '2026-03-31 00:00+00' - n * interval '1 hour',
    ((timestamptz '2026-03-31 00:00+00' - n * interval '1 hour') at time zone 'UTC')::date, 0, 'ring',
    100 + n % 80, 'cgm'
from ops.users cross join generate_series(0, 300) as n where handle = 'ada';
insert into health.agp select user_id, n * 15, date '2026-03-31', 70, 90, 110, 150, 190, 14
from ops.users cross join generate_series(0, 95) as n where handle = 'ada';
insert into health.recovery_scores
select user_id, date '2026-03-31' - n, 'calibrated', 70 - n, 62 - n, 77 - n, 70, null, 60, 80, 0.3, 0, 0.3, 0.4, 0.7,
    30, '70: slept <b>well</b>.'
from ops.users cross join generate_series(0, 44) as n where handle = 'ada';
insert into health.training_loads
select user_id, date '2026-03-31' - n, case when n % 5 = 4 then null else 50.0 * (n % 3) end,
    case when n % 3 = 0 then 'none' else 'banister' end, null, null, null, false, 1, true, 60, 55, -5, 40, 0, 1
from ops.users cross join generate_series(0, 44) as n where handle = 'ada';
insert into health.forecasts (user_id, metric_type, as_of_date, n_days, window_start, window_end, slope_per_day,
    intercept_value, predicted_7d, low_7d, high_7d, predicted_14d, low_14d, high_14d, predicted_30d, low_30d, high_30d,
    sentence)
select user_id, 'resting_heart_rate', date '2026-03-31', 30, date '2026-03-02', date '2026-03-31', -0.1, 52, 51, 49, 53,
    51, 48, 54, 50, 46, 55, 'Resting heart rate falls.' from ops.users where handle = 'ada';
insert into health.narratives
select user_id, 'day 2026-03-31', date '2026-03-31', 'A good day.', 'template', 'A good day.', 'x'
from ops.users where handle = 'ada';
insert into health.alerts select user_id, date '2026-03-30', 'urgent_low', 1, null, null, 50, 'urgent', handle = 'eve',
    'Glucose is 50 mg/dL for ' || handle || '.' from ops.users;
"""


@pytest.fixture
def measured(warehouse: Warehouse) -> Warehouse:
    ensure_engine_tables(warehouse)
    with warehouse.engine.begin() as connection:
        connection.exec_driver_sql(_MARTS.replace("%", "%%"))
    return warehouse


class Outline(HTMLParser):
    """Titles, and what each picture says of itself; refuses what is not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.titles: list[str] = []
        self.pictures: list[str] = []
        self.tables = 0
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        if tag == "svg":
            assert told["role"] == "img"
            self.pictures.append(told["aria-label"] or "")
        self.tables += tag == "table"
        if tag not in ("meta", "path", "use", "rect", "image"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.titles.append(data)


def test_the_page_needs_nothing_else_and_says_what_it_shows(measured: Warehouse, tmp_path: Path) -> None:
    written = write_report(measured, "ada", tmp_path / "report.html")
    page = written.path.read_text()
    outline = Outline()
    outline.feed(page)
    assert outline.open == []
    assert tuple(outline.titles) == written.sections
    assert set(written.sections) == {
        *("In words", "Recovery", "Sleep", "Training load", "Forecast", "Glucose", "Alerts", "Completeness"),
    }
    assert len(outline.pictures) == 7
    assert all(len(words) > 30 for words in outline.pictures)
    # Each picture has its numbers, and there are the alerts.
    assert outline.tables == len(outline.pictures) + 1
    # Nothing is loaded from anywhere, no script runs, and pictures do not share their parts.
    assert not re.search(r'(?:src|href)="(?!#)|<script|@import|url\((?!#)', page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert "Recovery score a day, from 41 to 70, mean 56, on 30 days" in page
    assert "steps 29 of 30" in page
    assert "A good day." in page
    assert "70: slept &lt;b&gt;well&lt;/b&gt;." in page
    assert "for ada." in page and "for ben" not in page
    assert write_report(measured, "ada", tmp_path / "again.html").path.read_text() == page


@pytest.mark.parametrize(
    "plot",
    [
        plots.plot_recovery,
        plots.plot_components,
        plots.plot_sleep,
        plots.plot_completeness,
        plots.plot_loads,
        plots.plot_agp,
        plots.plot_glucose_days,
    ],
)
def test_an_asset_page_has_its_picture_or_says_why_not(measured: Warehouse, plot: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shown = plot(measured).value
    words, image = re.fullmatch(r"!\[(.+)\]\(data:image/png;base64,(.+)\)", shown).groups()  # type: ignore[union-attr]
    assert len(words) > 20 and "ada" not in words
    assert base64.b64decode(image).startswith(b"\x89PNG")
    with measured.engine.begin() as connection:
        for table in ("recovery_scores", "training_loads", "agp", "glucose_daily"):
            connection.exec_driver_sql(f"delete from health.{table}")
    assert " yet: " in plot(measured).value


def test_a_period_is_what_is_shown(measured: Warehouse, tmp_path: Path) -> None:
    page = write_report(measured, "ada", tmp_path / "week.html", days=7).path.read_text()
    assert "25 March 2026 to 31 March 2026, 7 days" in page
    assert "steps 6 of 7" in page and "2026-03-24" not in page.split("Forecast")[0]
    assert (parse_period("30d"), parse_period("12w"), parse_period("90")) == (30, 84, 90)
    for bad in ("", "d", "0d", "400d", "a month"):
        with pytest.raises(ValueError, match="is no period"):
            parse_period(bad)


def test_who_has_little_gets_a_short_page_and_who_has_nothing_is_told(
    measured: Warehouse, tmp_path: Path
) -> None:
    written = write_report(measured, "ben & co", tmp_path / "short.html")
    assert written.sections == ("Sleep", "Alerts", "Completeness")
    assert "Health report of ben &amp; co" in written.path.read_text()
    with pytest.raises(LookupError, match="no data of this user yet"):
        write_report(measured, "eve", tmp_path / "none.html")
    with pytest.raises(LookupError, match="there is no user 'mallory'"):
        write_report(measured, "mallory", tmp_path / "none.html")


def test_a_pdf_needs_a_browser_and_says_so(
    measured: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(RuntimeError, match="a PDF needs Chromium"):
        write_report(measured, "ada", tmp_path / "report.pdf")


@pytest.mark.skipif(not any(map(shutil.which, report._BROWSERS)), reason="no Chromium on this machine")
def test_a_pdf_is_printed_by_the_browser(measured: Warehouse, tmp_path: Path) -> None:
    written = write_report(measured, "ada", tmp_path / "report.pdf")
    printed = written.path.read_bytes()
    assert printed.startswith(b"%PDF") and printed.rstrip().endswith(b"%%EOF")
    # Everything is there: on paper of A4, and not a page of pictures each.
    pages = re.findall(rb"/Type /Page\b", printed)
    assert 2 <= len(pages) <= 5
    assert set(re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", printed)) == {(b"594.95996", b"841.91998")}
    assert len(printed) > 20_000


def test_no_picture_s_parts_are_squeezed_out(measured: Warehouse, tmp_path: Path) -> None:
    """A picture whose parts do not fit is warned of, and drawn cut off."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_report(measured, "ada", tmp_path / "report.html")


def test_the_command_refuses_a_period_before_it_opens_anything() -> None:
    done = CliRunner().invoke(main, ["report", "--user", "ada", "--period", "soon", "-o", "report.html"])
    assert done.exit_code == 1
    assert "write it like 30d or 12w" in done.output
