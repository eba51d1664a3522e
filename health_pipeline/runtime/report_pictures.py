"""The pictures of the report, as SVG with text in it. Small, so that they can be read on a phone; in greys."""

from __future__ import annotations

import datetime as dt
import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH = 4.4
#: Points of text in a picture that is _WIDTH inches wide: on a phone of 390 pixels about 11 and 10 pixels.
_TEXT, _SMALL = 10, 9
_DARK, _MIDDLE, _LIGHT = "#1a1a1a", "#7a7a7a", "#d0d0d0"
_UNITS = {"/min": "a minute", "{score}": "points", "{steps}": "steps", "Cel": "°C", "a": "years"}


def unit_words(unit: str) -> str:
    """A unit of the catalogue as people write it."""
    return _UNITS.get(unit, unit)


def recovery(scores: pd.DataFrame, parts: Mapping[str, str], first: dt.date, last: dt.date) -> str:
    """The score with its range, and a strip for each component, of the days from `first` to `last`."""
    import pandas as pd

    figure, axes = _figure(3.9, (3.2, 1, 1, 1, 1))
    top = axes[0]
    # A day without a score is a gap, not a line across it.
    scores = scores.set_index("local_date").reindex(pd.date_range(first, last))
    days = scores.index
    top.fill_between(days, scores["score_low"], scores["score_high"], color=_LIGHT, linewidth=0)
    top.plot(days, scores["recovery_score"], color=_DARK, linewidth=1.4, marker=".", markersize=4)
    top.axhline(75, color=_MIDDLE, linewidth=0.8, linestyle=":")
    top.set_ylim(0, 100)
    for axis, (name, column) in zip(axes[1:], parts.items(), strict=True):
        axis.bar(days, scores[column], width=0.8, color=_MIDDLE)
        axis.set_ylim(0, 100)
        axis.set_yticks([0, 100])
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=_TEXT)
        _mark_unknown(axis, days[scores["recovery_score"].notna() & scores[column].isna()])
    top.set_ylabel("of 100", fontsize=_TEXT)
    _days(axes, first, last)
    return _svg(figure)


def sleep(nights: pd.DataFrame) -> str:
    """Bars of hours asleep, stacked by stage where the stages are known."""
    figure, (axis,) = _figure(2.3, (1,))
    axis.axhspan(7, 9, color=_LIGHT, alpha=0.6, linewidth=0)
    hours = nights / 3600
    staged = hours[["deep_sleep", "rem_sleep", "light_sleep"]].notna().all(axis=1)
    plain = hours["sleep_duration"].where(~staged)
    axis.bar(nights.index, plain, width=0.8, color=_MIDDLE)
    below = hours["deep_sleep"].where(staged) * 0
    for name, shade, hatch in (
        ("deep_sleep", _DARK, ""),
        ("rem_sleep", _MIDDLE, "////"),
        ("light_sleep", "#f4f4f4", ""),
    ):
        values = hours[name].where(staged)
        label = name.split("_")[0].replace("rem", "REM")
        axis.bar(
            nights.index,
            values,
            width=0.8,
            bottom=below,
            color=shade,
            edgecolor=_DARK,
            linewidth=0.4,
            hatch=hatch,
            label=label,
        )
        below = below + values
    if staged.any():
        _legend(axis, 3)
    axis.set_ylabel("hours", fontsize=_TEXT)
    _days([axis], nights.index[0], nights.index[-1])
    return _svg(figure)


def load(loads: pd.DataFrame, first: dt.date, last: dt.date) -> str:
    """Bars of load, and both averages."""
    figure, (axis,) = _figure(2.3, (1,))
    axis.bar(loads["local_date"], loads["load"], width=0.8, color=_LIGHT, edgecolor=_MIDDLE, linewidth=0.4)
    axis.plot(loads["local_date"], loads["acute_load"], color=_DARK, linewidth=1.5, label="7 days")
    axis.plot(
        loads["local_date"],
        loads["chronic_load"],
        color=_DARK,
        linewidth=1.2,
        linestyle="--",
        label="42 days",
    )
    unknown = loads.loc[loads["load"].isna(), "local_date"]
    _mark_unknown(axis, unknown)
    _legend(axis, 2)
    axis.set_ylim(bottom=0)
    axis.set_ylabel("load", fontsize=_TEXT)
    _days([axis], first, last)
    return _svg(figure)


def forecast(row: Any, past: pd.DataFrame, factor: float, label: str) -> str:
    """The window's days, the line through them, and the 90 % range ahead; a goal dashed."""
    import pandas as pd

    from health_pipeline.warehouse.engine_tables import HORIZONS

    figure, (axis,) = _figure(2.2, (1,))
    axis.plot(past["local_date"], past["metric_value"] * factor, ".", color=_DARK, markersize=4)
    start = row["as_of_date"]
    ahead = [start, *(start + pd.Timedelta(days=days) for days in HORIZONS)]

    def fan(part: str) -> list[float]:
        return [row["intercept_value"] * factor, *(row[f"{part}_{days}d"] * factor for days in HORIZONS)]

    axis.fill_between(ahead, fan("low"), fan("high"), color=_LIGHT, linewidth=0)
    axis.plot(ahead, fan("predicted"), color=_DARK, linewidth=1.4)
    begin = (row["intercept_value"] - row["slope_per_day"] * 29) * factor
    axis.plot(
        [row["window_start"], start], [begin, row["intercept_value"] * factor], color=_MIDDLE, linewidth=1
    )
    if pd.notna(row["target_value"]):
        axis.axhline(row["target_value"] * factor, color=_DARK, linewidth=0.9, linestyle="--")
    axis.set_title(label, fontsize=_TEXT, loc="left")
    _days([axis], row["window_start"], ahead[-1])
    return _svg(figure)


def agp(profile: pd.DataFrame) -> str:
    """Percentiles of glucose by the hour of the local clock."""
    figure, (axis,) = _figure(2.6, (1,))
    hour = profile["minute_of_day"] / 60
    axis.fill_between(hour, profile["p05"], profile["p95"], color="#e4e4e4", linewidth=0)
    axis.fill_between(hour, profile["p25"], profile["p75"], color="#b0b0b0", linewidth=0)
    axis.plot(hour, profile["p50"], color=_DARK, linewidth=1.8)
    _glucose_axis(axis, float(profile["p95"].max()))
    axis.set_xticks(range(0, 25, 6), [f"{each:02d}:00" for each in range(0, 25, 6)])
    axis.set_ylabel("mg/dL", fontsize=_TEXT)
    return _svg(figure)


def glucose_days(readings: pd.DataFrame) -> str:
    """A small panel a day, seven to a row."""
    from matplotlib.figure import Figure

    days = list(readings.groupby("local_date"))
    rows = -(-len(days) // 7)
    figure = Figure(figsize=(_WIDTH, 0.85 * rows + 0.2), layout="constrained")
    axes = list(figure.subplots(rows, 7, squeeze=False, sharey=True).flat)
    highest = float(readings["glucose_mg_dl"].max())
    for axis, (day, values) in zip(axes, days, strict=False):
        axis.axhspan(70, 180, color="#e4e4e4", linewidth=0)
        axis.plot(values["hour"], values["glucose_mg_dl"], ".", color=_DARK, markersize=1)
        _glucose_axis(axis, highest, lines=False)
        axis.set_xticks([])
        axis.set_yticks([70, 180])
        axis.tick_params(labelsize=_SMALL - 1, length=2)
        axis.set_title(f"{day:%a %-d}", fontsize=_SMALL - 1, pad=2)
    for axis in axes[len(days) :]:
        axis.set_axis_off()
    return _svg(figure)


def completeness(known: pd.DataFrame, names: Sequence[str]) -> str:
    """A row a metric, a square a day, filled where there is a value."""
    figure, (axis,) = _figure(0.24 * len(names) + 0.5, (1,))
    axis.pcolormesh(
        [*known.index, known.index[-1] + (known.index[-1] - known.index[0]) / max(len(known) - 1, 1)],
        range(len(names) + 1),
        known.to_numpy(dtype=float).T,
        cmap="Greys",
        vmin=0,
        vmax=1.6,
        edgecolors="white",
        linewidth=0.6,
        shading="flat",
    )
    axis.set_yticks([place + 0.5 for place in range(len(names))], names)
    axis.invert_yaxis()
    axis.tick_params(axis="y", length=0)
    axis.spines[:].set_visible(False)
    _date_ticks(axis)
    return _svg(figure)


def _glucose_axis(axis: Axes, highest: float, *, lines: bool = True) -> None:
    for limit in (70, 180) if lines else ():
        axis.axhline(limit, color=_MIDDLE, linewidth=0.8, linestyle="--")
    axis.set_xlim(0, 24)
    axis.set_ylim(40, max(250.0, highest))


def _figure(height: float, ratios: Sequence[float]) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = list(
        figure.subplots(
            len(ratios), 1, squeeze=False, sharex=True, gridspec_kw={"height_ratios": ratios}
        ).flat
    )
    for axis in axes:
        axis.tick_params(labelsize=_TEXT)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _days(axes: Sequence[Axes], first: Any, last: Any) -> None:
    import pandas as pd

    half = pd.Timedelta(hours=12)
    axes[-1].set_xlim(pd.Timestamp(first) - half, pd.Timestamp(last) + half)  # type: ignore[arg-type]
    _date_ticks(axes[-1])


def _legend(axis: Axes, columns: int) -> None:
    """What the colours mean, in one row above the picture."""
    axis.legend(
        fontsize=_SMALL,
        handlelength=1.4,
        columnspacing=1.2,
        ncols=columns,
        frameon=False,
        loc="lower left",
        bbox_to_anchor=(0, 1),
    )


def _mark_unknown(axis: Axes, days: Any) -> None:
    """A dot on the ground line for each day that nothing is known of: a bar of no height is a value, too."""
    if len(days):
        (dots,) = axis.plot(days, [0] * len(days), ".", color=_DARK, markersize=4, clip_on=False)
        dots.set_in_layout(False)


def _date_ticks(axis: Axes) -> None:
    """Three to six dates, each with its month."""
    from matplotlib.dates import AutoDateLocator, DateFormatter

    axis.xaxis.set_major_locator(AutoDateLocator(minticks=3, maxticks=6))  # type: ignore[no-untyped-call]
    axis.xaxis.set_major_formatter(DateFormatter("%-d %b"))  # type: ignore[no-untyped-call]


def _svg(figure: Figure) -> str:
    """The picture alone, with text as text, the same bytes for the same numbers, and ids of its own."""
    import hashlib

    import matplotlib

    image = io.StringIO()
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "report", "font.family": "sans-serif"}
    ):
        figure.savefig(image, format="svg", metadata={"Date": None, "Creator": None})
    svg = image.getvalue()
    svg = svg[svg.index("<svg ") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
    # Several pictures share a page: what one refers to is not another's.
    own = "p" + hashlib.sha256(svg.encode()).hexdigest()[:8]
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{own}\1"', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\1{own}", svg)
    return re.sub(r'<svg ([^>]*?)height="[\d.]+pt"([^>]*?)width="[\d.]+pt"', r"<svg \1\2", svg, count=1)
