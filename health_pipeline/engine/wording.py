"""Forecasts in words: labels, units and the sentence of one forecast."""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Display:
    """How a metric is named and its canonical unit shown. Durations are shown in hours and minutes."""

    label: str
    unit: str
    decimals: int = 0
    duration: bool = False

    def value(self, value: float) -> str:
        """A level, with its unit."""
        if self.duration:
            hours, minutes = divmod(round(value / 60.0), 60)
            return f"{hours} h {minutes} min"
        return f"{_plain(value, self.decimals)} {self.unit}".rstrip()

    def span(self, low: float, high: float) -> str:
        """Two levels, the unit once."""
        if self.duration:
            return f"{self.value(low)} to {self.value(high)}"
        return f"{_plain(low, self.decimals)} to {self.value(high)}"

    def change(self, value: float) -> str:
        """The size of a change a day, to two significant digits, with its unit."""
        size = abs(value) / 60.0 if self.duration else abs(value)
        unit = "min" if self.duration else self.unit
        decimals = max(0, 1 - math.floor(math.log10(size))) if size > 0 else 0
        return f"{_plain(size, decimals)} {unit}".rstrip()


DISPLAYS = {
    "body_fat": Display("Body fat", "%", 1),
    "body_temperature_deviation": Display("Body temperature deviation", "°C", 2),
    "calories_burned": Display("Active energy", "kcal"),
    "carbohydrates": Display("Carbohydrates", "g"),
    "distance": Display("Distance", "m"),
    "glucose": Display("Glucose", "mg/dL"),
    "heart_rate_variability": Display("Heart rate variability", "ms"),
    "heart_rate_variability_sdnn": Display("Heart rate variability (SDNN)", "ms"),
    "respiratory_rate": Display("Respiratory rate", "breaths a minute", 1),
    "resting_heart_rate": Display("Resting heart rate", "bpm", 1),
    "sleep_duration": Display("Sleep duration", "s", duration=True),
    "sleep_efficiency": Display("Sleep efficiency", "%"),
    "spo2": Display("Blood oxygen", "%", 1),
    "steps": Display("Steps", "steps"),
    "stress_score": Display("Stress score", ""),
    "weight": Display("Weight", "kg", 1),
}
PLURAL = {"carbohydrates", "steps"}


def forecast_sentence(
    metric_type: str,
    reason: str,
    n_days: int,
    slope: float,
    has_trend: bool,
    target: float,
    recent: float,
    predicted: float,
    low: float,
    high: float,
    projected: dt.date | None,
    earliest: dt.date | None,
    latest: dt.date | None,
    target_date: dt.date | None,
) -> str:
    """One forecast in words; `predicted`, `low` and `high` are those of 30 days ahead."""
    fallback = Display(metric_type.replace("_", " ").capitalize(), "", 2)
    display = DISPLAYS.get(metric_type, fallback)
    label, inner = display.label, display.label[0].lower() + display.label[1:]
    many = metric_type in PLURAL
    if reason == "too_few_days":
        known = f"{inner} {'are' if many else 'is'} known on {n_days} of the last 30"
        return f"Too few days for a forecast: {known}, and it takes 14."
    goal = display.value(target) if reason != "no_goal" else ""
    if reason == "reached":
        has = "have" if many else "has"
        return f"{label} {has} reached {goal}: the median of the last 7 days is {display.value(recent)}."
    span = display.span(low, high)
    if not has_trend:
        no_trend = f"{label} {'show' if many else 'shows'} no clear trend"
        no_date = "" if reason == "no_goal" else f", so there is no date for {goal}"
        return f"{no_trend}{no_date}; in 30 days {span} (90 % range)."
    verb = ("fall" if slope < 0 else "rise") + ("" if many else "s")
    moves = f"{label} {verb} by {display.change(slope)} a day"
    ahead = f"in 30 days about {display.value(predicted)} (90 % range {span})"
    if reason == "wrong_direction":
        return f"{moves}, away from {goal}; {ahead}."
    if reason == "no_better_than_average":
        past = "no way of following a trend has done better than the recent average so far"
        return f"{moves} towards {goal}, but {past}: no date; {ahead}."
    if reason == "too_far":
        return f"{moves} towards {goal}, which is too far off to give a date; {ahead}."
    if projected is None or reason == "no_goal":
        return f"{moves}; {ahead}."
    expected = f"{'are' if many else 'is'} expected to reach {goal} around {projected}"
    between = "" if earliest == latest else f" ({earliest} to {latest}, 80 % range)"
    return f"{moves} and {expected}{between}{_against(projected, target_date)}."


def _against(projected: dt.date, target_date: dt.date | None) -> str:
    """How the date compares with the one the person set."""
    if target_date is None or target_date != target_date:  # NaT differs from itself
        return ""
    days = (projected - target_date).days
    if days == 0:
        return ", on the day set for it"
    count = f"{abs(days)} day{'s' if abs(days) > 1 else ''}"
    return f", {count} {'after' if days > 0 else 'before'} the day set for it"


def _plain(value: float, decimals: int) -> str:
    """Grouped by thousands, without trailing zeros and without a minus before zero."""
    text = f"{value:,.{decimals}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
