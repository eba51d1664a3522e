"""What the numbers say, in a sentence or three: of each of a person's last days, and of each of their forecasts.

The words are templates filled with facts. A language model may say them more kindly; what it says is taken only if
`objections` has none: every number in it is among the facts, it has no more sentences than the template may have,
and nothing in it is a diagnosis, a dose, an order or a certainty. Otherwise the template stands.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable

import numpy as np
import pandas as pd

from health_pipeline.engine.frames import dates, day_numbers, floats, require_columns, text, user_ids

#: Days up to a person's last that have words.
DAYS = 30
MEAN_DAYS = 7
MIN_MEAN_DAYS = 4
#: Marks under which a component is named as what holds recovery back.
LOW_MARKS = 60.0
MAX_SENTENCES = 3
MAX_CHARACTERS = 600
COMPONENTS = {
    "stress_component": "stress",
    "sleep_component": "sleep",
    "heart_rate_component": "resting heart rate",
    "load_component": "training load",
}
#: What a component is called where it is good.
_GOOD = {"stress": "little stress", "training load": "a light training load"}
RECOVERY_COLUMNS = ("user_id", "local_date", "recovery_score", "score_low", "score_high", *COMPONENTS)
GLUCOSE_COLUMNS = ("user_id", "local_date", "percent_in_range", "percent_active")
ALERT_COLUMNS = ("user_id", "local_date")
FORECAST_COLUMNS = ("user_id", "metric_type", "as_of_date", "sentence")
_ASKED = (
    "Say the following to the person it is about, in at most three short, plain sentences of English. Use only what is "
    "said here, with these very numbers. No diagnosis, no advice on medication, no orders, no promises, no causes.\n\n"
)


def narratives(
    recovery: pd.DataFrame, glucose: pd.DataFrame, alerts: pd.DataFrame, forecasts: pd.DataFrame
) -> pd.DataFrame:
    """Words of every person's last 30 days that say something, and of their forecasts. Grain: user_id, subject; sorted
    so.

    `recovery` has the scores of one method of the last 37 days, `glucose` the daily statistics, `alerts` a row an
    alert that nothing explains, `forecasts` the newest of each metric.

    Columns: `subject` (`day 2026-11-20` or `forecast steps`), `local_date` (the day, or the last day the forecast
    knows), `template`, `prompt_sha256` (of `prompt(template)`).
    """
    parts = [_days(recovery, glucose, alerts), _forecasts(forecasts)]
    frame = pd.concat(parts, ignore_index=True)
    frame["prompt_sha256"] = text(
        np.array([prompt_sha256(words) for words in frame["template"]], dtype=object)
    )
    return frame.sort_values(["user_id", "subject"], ignore_index=True)


def _days(recovery: pd.DataFrame, glucose: pd.DataFrame, alerts: pd.DataFrame) -> pd.DataFrame:
    for frame, name, columns in (
        (recovery, "recovery", RECOVERY_COLUMNS),
        (glucose, "glucose", GLUCOSE_COLUMNS),
        (alerts, "alerts", ALERT_COLUMNS),
    ):
        require_columns(frame, name, columns)
    rows = pd.DataFrame(
        {
            "user_id": user_ids(recovery, "recovery"),
            "day": day_numbers(recovery, "recovery"),
            **{column: floats(recovery, column) for column in RECOVERY_COLUMNS[2:]},
        }
    ).sort_values(["user_id", "day"], ignore_index=True)
    rows["usual"] = _mean_before(rows)
    sugar = pd.DataFrame(
        {
            "user_id": user_ids(glucose, "glucose"),
            "day": day_numbers(glucose, "glucose"),
            "in_range": floats(glucose, "percent_in_range"),
            "active": floats(glucose, "percent_active"),
        }
    )
    told = pd.DataFrame({"user_id": user_ids(alerts, "alerts"), "day": day_numbers(alerts, "alerts")})
    told = told.value_counts(["user_id", "day"]).rename("alerts").reset_index()
    rows = rows.merge(sugar, how="outer", on=["user_id", "day"]).merge(
        told, how="outer", on=["user_id", "day"]
    )
    rows = rows[rows["day"] > rows.groupby("user_id")["day"].transform("max") - DAYS]
    days = dates(rows["day"].to_numpy(dtype=np.int64))
    frame = pd.DataFrame(
        {
            "user_id": rows["user_id"].to_numpy(dtype=np.int64),
            "subject": text(np.array([f"day {day:%Y-%m-%d}" for day in pd.to_datetime(days)], dtype=object)),
            "local_date": days,
            "template": text(np.array([_day_words(row) for row in rows.itertuples()], dtype=object)),
        }
    )
    return frame[frame["template"] != ""]


def _mean_before(rows: pd.DataFrame) -> pd.Series:
    """The mean score of the 7 days before each, by the calendar; null where under 4 are known."""
    total, count = np.zeros(len(rows)), np.zeros(len(rows))
    scores = rows[["user_id", "day", "recovery_score"]]
    for back in range(1, MEAN_DAYS + 1):
        before = rows[["user_id", "day"]].merge(
            scores.assign(day=scores["day"] + back), how="left", on=["user_id", "day"]
        )["recovery_score"]
        total += before.fillna(0.0).to_numpy()
        count += before.notna().to_numpy()
    return pd.Series(np.where(count >= MIN_MEAN_DAYS, total / np.maximum(count, 1), np.nan))


def _day_words(row: object) -> str:
    def value(name: str) -> float:
        return float(getattr(row, name))

    sentences = []
    if value("recovery_score") == value("recovery_score"):
        sentences = _recovery_words(value)
    others = []
    if value("in_range") == value("in_range") and value("active") >= 70:
        others.append(f"glucose was between 70 and 180 mg/dL for {value('in_range'):.0f} % of the time")
    number = value("alerts")
    if number == number:
        others.append(f"there {'was 1 alert' if number == 1 else f'were {number:.0f} alerts'}")
    if others:
        words = " and ".join(others)
        sentences.append(words[0].upper() + words[1:] + ".")
    return " ".join(sentences)


def _recovery_words(value: Callable[[str], float]) -> list[str]:
    score, usual = round(value("recovery_score")), value("usual")
    first = f"Recovery is {score} of 100 (80 % range {value('score_low'):.0f} to {value('score_high'):.0f})"
    if usual == usual:
        apart = score - round(usual)
        word = f"{abs(apart)} {'higher' if apart > 0 else 'lower'} than" if apart else "as"
        first += f", {word} the mean of the {MEAN_DAYS} days before"
    marks = {words: value(name) for name, words in COMPONENTS.items() if value(name) == value(name)}
    low = [words for words, mark in sorted(marks.items(), key=lambda each: each[1]) if mark < LOW_MARKS]
    if low:
        second = f"What holds it back most is {low[0]}{f', then {low[1]}' if len(low) > 1 else ''}."
    else:
        best = max(marks, key=lambda words: marks[words])
        second = f"Nothing holds it back; best is {_GOOD.get(best, best)}."
    return [f"{first}.", second]


def _forecasts(forecasts: pd.DataFrame) -> pd.DataFrame:
    require_columns(forecasts, "forecasts", FORECAST_COLUMNS)
    subjects = [f"forecast {metric}" for metric in forecasts["metric_type"]]
    return pd.DataFrame(
        {
            "user_id": user_ids(forecasts, "forecasts"),
            "subject": text(np.array(subjects, dtype=object)),
            "local_date": dates(day_numbers(forecasts, "forecasts", "as_of_date")),
            "template": text(forecasts["sentence"].to_numpy(dtype=object)),
        }
    )


def prompt(template: str) -> str:
    """What a language model is asked: the template and how to say it. Nobody is named."""
    return _ASKED + template


def prompt_sha256(template: str) -> str:
    """What an answer is found again by."""
    return hashlib.sha256(prompt(template).encode()).hexdigest()


_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
_NUMBER_WORDS = re.compile(
    r"\b(?:zero|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|"
    r"eighteen|nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|thousand|dozen|half|halved|third|"
    r"quarter|twice|double[ds]?|triple[ds]?|once)\b"
)
_FORBIDDEN = {
    "a diagnosis": re.compile(
        r"diagnos|diseas|disorder|syndrome|diabet|hypertens|hypogly|hypergly|insomnia|ap?n(?:o)?ea|infect|\bill(?:ness)?\b"
        r"|\bsick|\bflu\b|covid|fever|arrhythm|fibrillat|cancer|depress|anxi|patholog|overtrain|deficien|inflammat|symptom"
    ),
    "a dose or a drug": re.compile(
        r"\bdos(?:e|es|age|ing)\b|insulin|medic|\bdrugs?\b|tablet|\bpills?\b|inject|prescri|\bunits?\b|supplement|caffeine"
        r"|melatonin|metformin|\b(?:mg|mcg|µg)\b(?!/dl)"
    ),
    "an order": re.compile(
        r"\b(?:must|should|shall|need(?:s)? to|have to|has to|ought|avoid|stop|consult|see (?:a|your) doctor|doctor)\b"
    ),
    "a certainty": re.compile(
        r"certain|definite|guarante|\bwill\b|\bwon't\b|\balways\b|\bnever\b|\bsurely\b|no doubt|\bproves?\b|\bproven\b"
        r"|\bcaus(?:e|es|ed|ing)\b|\bbecause\b|\bdue to\b|thanks to|led to|result(?:s|ed)? (?:in|from)"
    ),
    "an address": re.compile(r"https?:|www\.|@|[<>{}\[\]|`*#]"),
}


def objections(said: str, template: str) -> list[str]:
    """Why the words of a language model cannot stand in for a template's; empty where they can."""
    found = []
    words = said.strip()
    if not words:
        return ["it says nothing"]
    if len(words) > MAX_CHARACTERS or len(re.findall(r"[.!?](?:\s|$)", words)) > MAX_SENTENCES:
        found.append(f"it is longer than {MAX_SENTENCES} sentences")
    known = _numbers(template)
    strange = sorted(number for number in _numbers(words) if number not in known)
    if strange:
        found.append(f"numbers that are not among the facts: {', '.join(strange)}")
    lower, given = words.lower(), template.lower()
    spelt = sorted({word for word in _NUMBER_WORDS.findall(lower) if word not in given})
    if spelt:
        found.append(f"numbers in words: {', '.join(spelt)}")
    for name, pattern in _FORBIDDEN.items():
        if any(hit.group() not in given for hit in pattern.finditer(lower)):
            found.append(name)
    turned = [pair for pair in _OPPOSITES if _turned(pair, lower, given)]
    if turned:
        found.append(f"the other direction: {', '.join(' for '.join(pair[::-1]) for pair in turned)}")
    return found


#: Words whose place must not be taken by each other.
_OPPOSITES = (
    ("higher", "lower"),
    ("rise", "fall"),
    ("above", "under"),
    ("better", "worse"),
    ("earlier", "later"),
)


def _turned(pair: tuple[str, str], said: str, template: str) -> bool:
    return any(
        word in said and word not in template and other in template for word, other in (pair, pair[::-1])
    )


def _numbers(words: str) -> set[str]:
    """The numbers of a text, each in one way of writing it."""
    found = set()
    for number in _NUMBER.findall(words):
        plain = number.replace(",", "")
        found.add(plain.rstrip("0").rstrip(".") if "." in plain else plain.lstrip("0") or "0")
    return found
