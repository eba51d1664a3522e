"""Narratives: what the templates say, and which words of a language model may stand in for them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from health_pipeline.engine.narrative import narratives, objections

FIRST = pd.Timestamp("2026-11-01")
MARKS = {
    "stress_component": 75.0,
    "sleep_component": 80.0,
    "heart_rate_component": 70.0,
    "load_component": 65.0,
}


def scores(*values: float, user: int = 1, **marks: float) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "user_id": user,
                "local_date": FIRST + pd.Timedelta(days=place),
                "recovery_score": value,
                "score_low": value - 8,
                "score_high": value + 7,
                **MARKS,
                **marks,
            }
            for place, value in enumerate(values)
        ]
    )


def sugar(percent: float, active: float = 95.0, day: int = 0, user: int = 1) -> pd.DataFrame:
    values = {"user_id": user, "local_date": FIRST + pd.Timedelta(days=day)}
    return pd.DataFrame([{**values, "percent_in_range": percent, "percent_active": active}])


def told(*days: int, user: int = 1) -> pd.DataFrame:
    dates = pd.Series([FIRST + pd.Timedelta(days=day) for day in days], dtype="datetime64[us]")
    return pd.DataFrame({"user_id": user, "local_date": dates})


NO_SUGAR, NO_ALERTS = sugar(1).head(0), told()
NO_FORECASTS = pd.DataFrame(
    {"user_id": np.empty(0, "int64"), "metric_type": [], "as_of_date": pd.to_datetime([]), "sentence": []}
)


def words(recovery: pd.DataFrame, glucose=NO_SUGAR, alerts=NO_ALERTS) -> list[str]:
    return narratives(recovery, glucose, alerts, NO_FORECASTS)["template"].tolist()


def test_a_day_in_words() -> None:
    assert words(
        scores(70, 72, 74, 76, 60, sleep_component=40.0, load_component=55.0), sugar(81.6, day=4), told(4)
    )[-1] == (
        "Recovery is 60 of 100 (80 % range 52 to 67), 13 lower than the mean of the 7 days before. "
        "What holds it back most is sleep, then training load. "
        "Glucose was between 70 and 180 mg/dL for 82 % of the time and there was 1 alert."
    )
    assert words(scores(70), alerts=told(0, 0)) == [
        "Recovery is 70 of 100 (80 % range 62 to 77). Nothing holds it back; best is sleep. There were 2 alerts."
    ]


def test_days_without_a_score_say_what_they_know_and_little_glucose_says_nothing() -> None:
    assert words(scores(70).head(0), sugar(90.0)) == [
        "Glucose was between 70 and 180 mg/dL for 90 % of the time."
    ]
    assert words(scores(70).head(0), sugar(90.0, active=60.0)) == []


def test_the_last_thirty_days_of_each_person_have_words() -> None:
    both = pd.concat([scores(*range(40, 80)), scores(50, user=2)], ignore_index=True)
    found = narratives(both, NO_SUGAR, NO_ALERTS, NO_FORECASTS)
    assert found.groupby("user_id").size().tolist() == [30, 1]
    alone = narratives(
        both[both["user_id"] == 1].sample(frac=1, random_state=1), NO_SUGAR, NO_ALERTS, NO_FORECASTS
    )
    assert alone.equals(found[found["user_id"] == 1].reset_index(drop=True))


def test_a_forecast_is_its_sentence() -> None:
    forecast = pd.DataFrame(
        {
            "user_id": [1],
            "metric_type": ["steps"],
            "as_of_date": [FIRST],
            "sentence": ["Steps rise by 40 a day."],
        }
    )
    (row,) = narratives(scores(70).head(0), NO_SUGAR, NO_ALERTS, forecast).to_dict("records")
    assert (row["subject"], row["template"]) == ("forecast steps", "Steps rise by 40 a day.")
    assert len(row["prompt_sha256"]) == 64


TEMPLATE = (
    "Recovery is 60 of 100 (80 % range 52 to 67), 13 lower than the mean of the 7 days before. "
    "What holds it back most is sleep, then training load."
)


@pytest.mark.parametrize(
    "said",
    [
        TEMPLATE,
        "Your recovery is 60 today, 13 lower than your mean of the last 7 days. Sleep holds it back most.",
        "At 60 of 100 (likely 52 to 67) recovery is lower than usual, with sleep and training load behind it.",
    ],
)
def test_kind_words_with_the_same_numbers_are_taken(said: str) -> None:
    assert objections(said, TEMPLATE) == []


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("Recovery is 61 of 100.", "not among the facts: 61"),
        ("Recovery is 60.5 of 100.", "not among the facts: 60.5"),
        ("Recovery is down by a fifth, about twice as much as usual.", "numbers in words: twice"),
        ("Recovery is sixty of 100.", "numbers in words: sixty"),
        ("Recovery is 60, 13 higher than the mean of 7 days.", "lower for higher"),
        ("Recovery is 60: you may have an infection.", "a diagnosis"),
        ("This looks like overtraining syndrome.", "a diagnosis"),
        ("Recovery is 60; take melatonin.", "a dose or a drug"),
        ("Recovery is 60; reduce your insulin dose.", "a dose or a drug"),
        ("Recovery is 60; you should rest today.", "an order"),
        ("Recovery is 60 and will be better tomorrow.", "a certainty"),
        ("Recovery is 60 because of poor sleep.", "a certainty"),
        ("Recovery is 60. See https://example.org.", "an address"),
        ("Recovery is 60. Sleep. Load. Rest.", "longer than 3 sentences"),
        ("  ", "it says nothing"),
    ],
)
def test_what_goes_beyond_the_facts_is_not_taken(said: str, reason: str) -> None:
    assert reason in "; ".join(objections(said, TEMPLATE))


@given(st.integers(0, 10_000), st.sampled_from(["{}", "{}.0", "{:,}", "{} %", "({})", "{}."]))
def test_no_strange_number_slips_through(number: int, form: str) -> None:
    said = f"Recovery is {form.format(number)}"
    strange = number not in (60, 100, 80, 52, 67, 13, 7)
    assert any("not among the facts" in each for each in objections(said, TEMPLATE)) == strange
