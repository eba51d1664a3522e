"""Glucose of real people, published with studies; the files are not part of the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

SHARED = Path(os.environ.get("HEALTH_PIPELINE_SHARED", Path(__file__).parents[2] / "shared"))
#: MAGE of the public traces' last 90 days, mg/dL, by the `ma` algorithm of iglu-python 0.4.3.
MAGE_ELSEWHERE = {
    "hall_1636-69-001": 66.54,
    "hall_1636-69-032": 32.08,
    "hall_1636-69-091": 35.77,
    "hall_1636-70-1005": 63.76,
    "hall_2133-004": 80.37,
    "hall_2133-017": 54.34,
    "hall_2133-019": 47.04,
    "hall_2133-024": 49.10,
    "hall_2133-035": 47.94,
    "hall_2133-039": 62.53,
    "example_data_Subject_1": 72.42,
    "example_data_Subject_3": 115.78,
    "example_data_Subject_5": 142.29,
}


def traces() -> list[Path]:
    """Files of one person each; none where they are not at hand."""
    data = SHARED / "data"
    return sorted([*data.glob("cgm_hall2018/*.csv"), *data.glob("cgm_iglu_t2d/*.csv")])


def last_days(path: Path) -> pd.DataFrame:
    """id, time (local) and gl (mg/dL) of the last 90 days, each time once."""
    table = pd.read_csv(path, parse_dates=["time"])[["id", "time", "gl"]].drop_duplicates("time")
    return table[table["time"] >= table["time"].max().normalize() - pd.Timedelta(days=89)]
