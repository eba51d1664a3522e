"""Write the raw payloads under `data/samples`: `python -m health_pipeline.sandbox.samples [folder]`.

They are what the sandbox serves for fixed people and days, so every run gives the same bytes.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import sys
from pathlib import Path

import httpx

from health_pipeline.sandbox.app import create_app
from health_pipeline.sandbox.files import (
    Unit,
    write_clarity,
    write_glucose_csv,
    write_libreview,
    write_nightscout,
)
from health_pipeline.sandbox.people import person

#: Whose Oura documents, from which day to which (both included): a night without the ring, an evening rest
#: taken for sleep, and the flight home from New York to Berlin in the night to the 30th.
OURA_PERSON, OURA_START, OURA_END = "ben", dt.date(2026, 8, 27), dt.date(2026, 8, 31)

#: A time at which all of it has come to be.
NOW = dt.datetime(2026, 9, 5, 12, tzinfo=dt.UTC)

_OURA_DOCUMENTS = (
    "daily_activity",
    "daily_cardiovascular_age",
    "daily_readiness",
    "daily_resilience",
    "daily_sleep",
    "daily_spo2",
    "daily_stress",
    "sleep",
    "vO2_max",
    "workout",
)


async def _oura(folder: Path) -> None:
    app = create_app(now=lambda: NOW)
    oauth = app.state.apis["oura"].oauth
    client = {
        "client_id": "sandbox",
        "client_secret": "sandbox-secret",
        "redirect_uri": "http://localhost/back",
    }
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://sandbox/oura") as http:
        asked = {
            "client_id": "sandbox",
            "redirect_uri": client["redirect_uri"],
            "response_type": "code",
            "scope": " ".join(oauth.rules.scopes),
            "login_hint": OURA_PERSON,
        }
        answer = await http.get("/oauth/authorize", params=asked)
        code = httpx.URL(answer.headers["location"]).params["code"]
        answer = await http.post(
            "/oauth/token", data={**client, "grant_type": "authorization_code", "code": code}
        )
        headers = {"Authorization": f"Bearer {answer.json()['access_token']}"}
        before = OURA_START - dt.timedelta(days=1)
        days = {"end_date": f"{OURA_END}T23:59:59"}
        pages = {
            name: {"start_date": str(before if name == "sleep" else OURA_START)} | days
            for name in _OURA_DOCUMENTS
        }
        pages["vO2_max"]["start_date"] = pages["workout"]["start_date"] = str(OURA_START.replace(day=1))
        pages["personal_info"] = {}
        pages["heartrate"] = {
            "start_datetime": f"{OURA_START}T00:00:00Z",
            "end_datetime": f"{OURA_START + dt.timedelta(days=3)}T00:00:00Z",
        }
        for name, query in pages.items():
            answer = await http.get(f"/v2/usercollection/{name}", params=query, headers=headers)
            answer.raise_for_status()
            (folder / f"{name}.json").write_bytes(answer.content)


def _glucose(root: Path) -> None:
    ada, dana = person("ada"), person("dana")
    start, end = dt.date(2026, 8, 20), dt.date(2026, 8, 22)
    units: tuple[tuple[str, Unit], ...] = (("mg_dl", "mg/dL"), ("mmol_l", "mmol/L"))
    for name, unit in units:
        # Days on which the sensor says Low and High.
        extreme = dt.date(2025, 10, 28), dt.date(2025, 10, 31)
        write_clarity(dana, *extreme, root / "dexcom_clarity" / f"clarity_{name}.csv", unit=unit)
        write_libreview(ada, start, end, root / "libreview" / f"libreview_{name}.csv", unit=unit)
        write_glucose_csv(ada, start, end, root / "glucose_csv" / f"glucose_{name}.csv", unit=unit)
    # The night in which Chicago's clocks go back.
    autumn = root / "dexcom_clarity" / "clarity_clock_change.csv"
    write_clarity(dana, dt.date(2026, 10, 31), dt.date(2026, 11, 2), autumn, spaced_time=True)
    write_libreview(ada, start, end, root / "libreview" / "libreview_month_first.csv", date_order="MDY")
    write_libreview(
        ada, start, end, root / "libreview" / "libreview_german.csv", unit="mmol/L", language="de"
    )
    write_nightscout(dana, start, start, root / "nightscout" / "entries.json")


def write_samples(root: Path) -> list[Path]:
    """Write all samples below `root`; the files written, sorted."""
    for provider in ("oura", "dexcom_clarity", "libreview", "nightscout", "glucose_csv"):
        (root / provider).mkdir(parents=True, exist_ok=True)
    asyncio.run(_oura(root / "oura"))
    _glucose(root)
    return sorted(path for path in root.rglob("*") if path.is_file())


if __name__ == "__main__":
    write_samples(Path(sys.argv[1] if len(sys.argv) > 1 else "data/samples"))
