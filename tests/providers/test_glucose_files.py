"""Glucose files: real exports read a second way, damage, clock changes, round trips and random bytes."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from health_pipeline.providers import (
    dexcom_clarity,
    glooko,
    glucose_csv,
    libreview,
    nightscout,
    registry,
    xdrip,
)
from health_pipeline.providers._local_time import localise, parse_times
from health_pipeline.providers.base import Parsed, RawDocument, UnreadableFileError

SHARED = Path(os.environ.get("HEALTH_PIPELINE_SHARED", Path(__file__).parents[3] / "shared"))
KINDS = {
    module.PROVIDER.name: module.PROVIDER
    for module in (dexcom_clarity, libreview, nightscout, glucose_csv, xdrip, glooko)
}
CLARITY_HEADER = (
    "Index,Timestamp (YYYY-MM-DDThh:mm:ss),Event Type,Event Subtype,Patient Info,Device Info,"
    "Source Device ID,Glucose Value (mg/dL),Insulin Value (u),Carb Value (grams),Duration (hh:mm:ss),"
    "Glucose Rate of Change (mg/dL/min),Transmitter Time (Long Integer),Transmitter ID"
)
LIBRE_HEADER = (
    "Device,Serial Number,Device Timestamp,Record Type,Historic Glucose mg/dL,Scan Glucose mg/dL,"
    "Non-numeric Rapid-Acting Insulin,Rapid-Acting Insulin (units),Non-numeric Food,Carbohydrates (grams),"
    "Carbohydrates (servings),Non-numeric Long-Acting Insulin,Long-Acting Insulin (units),Notes,"
    "Strip Glucose mg/dL,Ketone mmol/L,Meal Insulin (units),Correction Insulin (units),"
    "User Change Insulin (units)"
)
GERMAN_LIBRE_HEADER = (
    "Gerät,Seriennummer,Gerätezeitstempel,Aufzeichnungstyp,Glukosewert-Verlauf mmol/L,Glukose-Scan mmol/L,"
    "Nicht numerisches schnellwirkendes Insulin,Schnellwirkendes Insulin (Einheiten),"
    "Nicht numerische Nahrungsdaten,Kohlenhydrate (Gramm),Kohlenhydrate (Portionen),"
    "Nicht numerisches Depotinsulin,Depotinsulin (Einheiten),Notizen,Glukose-Teststreifen mmol/L,"
    "Keton mmol/L,Mahlzeiteninsulin (Einheiten),Korrekturinsulin (Einheiten),"
    "Insulin-Änderung durch Anwender (Einheiten)"
)


def shared(path: str) -> bytes:
    file = SHARED / "data" / path
    if not file.exists():
        pytest.skip(f"shared sample {path} is not there")
    return file.read_bytes()


def parse(kind: str, content: bytes | str, zone: str | None = "Europe/Berlin", **context: str) -> Parsed:
    data = content.encode() if isinstance(content, str) else content
    received = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    return KINDS[kind].parse(RawDocument("readings", data, received, zone, context))


def rows(parsed: Parsed) -> list[dict[str, object]]:
    return parsed.tables["readings"].to_pylist()


def column(parsed: Parsed, name: str) -> list[object]:
    return parsed.tables["readings"].column(name).to_pylist()


def refusals(parsed: Parsed) -> list[tuple[str, str]]:
    return list(zip(*(parsed.quarantine.column(c).to_pylist() for c in ("reason", "location")), strict=True))


def utc(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)


def sniffed(head: bytes) -> str | None:
    best = max(KINDS.values(), key=lambda provider: provider.sniff(head) if provider.sniff else 0)
    return best.name if best.sniff and best.sniff(head) > 0 else None


class TestRealFiles:
    def test_clarity_csv_with_a_damaged_header(self) -> None:
        content = shared("cgm_dexcom_clarity/Clarity_Export_synthetic.csv")
        assert sniffed(content[:65536]) == "dexcom_clarity"
        parsed = parse("dexcom_clarity", content, "Europe/Moscow")
        lines = list(csv.reader(io.StringIO(content.decode("utf-8-sig"))))[1:]
        egv = [line for line in lines if line[2] == "EGV"]
        assert (parsed.records_in, parsed.records_loaded) == (len(lines), len(egv)) == (3979, 3922)
        assert parsed.skipped == {"metadata": 10, "insulin": 47}
        assert column(parsed, "local_time") == [dt.datetime.fromisoformat(line[1]) for line in egv]
        assert column(parsed, "value") == [None if v[7] == "Low" else float(v[7]) for v in egv]
        assert column(parsed, "censored").count("low") == 5
        assert rows(parsed)[0]["recorded_at"] == utc("1961-04-11T21:56:47")
        assert "HBRPOI" not in str(rows(parsed)) and "Gagarin" not in str(rows(parsed))

    def test_clarity_workbook_in_mmol(self) -> None:
        openpyxl = pytest.importorskip("openpyxl")
        content = shared("cgm_dexcom_clarity/dexcom_eur_01.xlsx")
        assert sniffed(content[:65536]) == "dexcom_clarity"
        parsed = parse("dexcom_clarity", content)
        sheet = openpyxl.load_workbook(io.BytesIO(content)).worksheets[0]
        egv = [row for row in sheet.iter_rows(values_only=True) if row[2] == "EGV"]
        numbers = [row[7] for row in egv if not isinstance(row[7], str)]
        assert parsed.records_loaded == len(egv) == 3853
        assert set(column(parsed, "unit")) == {"mmol/L"}
        assert sum(v for v in column(parsed, "value") if v is not None) == pytest.approx(sum(numbers))
        assert (column(parsed, "censored").count("high"), column(parsed, "censored").count("low")) == (27, 2)
        assert rows(parsed)[-1]["recorded_at"] == utc("2023-03-21T14:29:27")

    def test_libreview_with_american_dates(self) -> None:
        content = shared("cgm_libreview/libre_amer_01.csv")
        assert sniffed(content[:65536]) == "libreview"
        parsed = parse("libreview", content, "America/New_York")
        lines = list(csv.reader(io.StringIO(content.decode())))[3:]
        times = [dt.datetime.strptime(line[2], "%m-%d-%Y %I:%M %p") for line in lines]
        assert parsed.records_loaded == parsed.records_in == len(lines) == 1339
        assert column(parsed, "local_time") == times
        zone = ZoneInfo("America/New_York")
        assert column(parsed, "recorded_at") == [
            time.replace(tzinfo=zone).astimezone(dt.UTC) for time in times
        ]
        assert sum(column(parsed, "value")) == sum(int(line[4]) for line in lines)

    @pytest.mark.parametrize("name", ["glyco_tiny_sample_mmol.csv", "glyco_tiny_sample_delimiter.csv"])
    def test_libreview_dates_that_can_be_read_two_ways(self, name: str) -> None:
        content = shared(f"cgm_libreview/{name}")
        with pytest.raises(UnreadableFileError, match="--date-order dmy"):
            parse("libreview", content)
        december = parse("libreview", content, date_order="dmy")
        assert rows(december)[0]["local_time"] in (
            dt.datetime(2019, 12, 5, 16, 25),
            dt.datetime(2019, 12, 5, 16, 56),
        )
        assert (
            parse("libreview", content, date_order="mdy").tables["readings"]["local_time"][0].as_py().month
            == 5
        )
        assert set(column(december, "unit")) == {"mmol/L"}
        assert column(december, "value")[-1] == 7.1

    def test_libreview_header_without_rows(self) -> None:
        with pytest.raises(UnreadableFileError, match=r"line 2.*no rows"):
            parse("libreview", shared("cgm_libreview/german_header_only.csv"))

    def test_nightscout_entries(self) -> None:
        content = shared("cgm_nightscout/nightscoutkit_entries.json")
        assert sniffed(content[:65536]) == "nightscout"
        parsed = parse("nightscout", content, None)
        entries = json.loads(content)
        assert parsed.records_loaded == 100
        assert column(parsed, "value") == [float(entry["sgv"]) for entry in entries]
        assert column(parsed, "recorded_at") == [
            dt.datetime.fromtimestamp(entry["date"] / 1000, dt.UTC) for entry in entries
        ]
        assert column(parsed, "trend") == [entry["direction"] for entry in entries]
        assert column(parsed, "record_id") == [entry["_id"] for entry in entries]
        assert column(parsed, "utc_offset_minutes") == [None] * 100

    def test_nightscout_offset_of_oref0(self) -> None:
        parsed = parse("nightscout", shared("cgm_nightscout/oref0_glucose.json"), None)
        assert rows(parsed)[0]["recorded_at"] == utc("2018-06-02T07:25:00")
        assert rows(parsed)[0]["utc_offset_minutes"] == -420
        assert rows(parsed)[0]["utc_offset_source"] == "record"

    def test_nightscout_treatments_are_meals_or_nothing(self) -> None:
        content = shared("cgm_nightscout/nightscoutkit_treatments.json")
        parsed = parse("nightscout", content)
        eaten = [each["carbs"] for each in json.loads(content) if each["carbs"]]
        assert parsed.tables["meals"].column("carbohydrates_g").to_pylist() == eaten
        assert parsed.tables["readings"].num_rows == 0
        assert (parsed.records_in, parsed.records_loaded, parsed.skipped) == (729, 41, {"treatment": 688})
        # Who entered it is nobody's business.
        assert "Michael" not in str(parsed.tables["meals"].to_pylist())

    @pytest.mark.parametrize("folder", ["cgm_hall2018", "cgm_iglu_t2d", "cgm_cgmpy"])
    def test_generic_tables(self, folder: str) -> None:
        files = sorted((SHARED / "data" / folder).glob("*.csv"))
        if not files:
            pytest.skip(f"shared samples {folder} are not there")
        for file in files:
            content = file.read_bytes()
            lines = list(csv.DictReader(io.StringIO(content.decode())))
            parsed = parse("glucose_csv", content, "America/Los_Angeles")
            assert sniffed(content[:65536]) == "glucose_csv"
            assert parsed.records_in == parsed.records_loaded == len(lines)
            assert column(parsed, "value") == [float(line.get("gl") or line["glucose"]) for line in lines]
            assert [str(t) for t in column(parsed, "local_time")] == [line["time"] for line in lines]
            assert set(column(parsed, "unit")) == {"mg/dL"}


class TestClarity:
    @pytest.mark.parametrize(
        ("time", "event", "glucose", "egv", "low"),
        [
            ("Zeitstempel (JJJJ-MM-TTThh:mm:ss)", "Ereignistyp", "Glukosewert (mmol/l)", "EGV", "Niedrig"),
            (
                "Horodatage (AAAA-MM-JJThh:mm:ss)",
                "Type d'événement",
                "Valeur du glucose (mmol/L)",
                "VGE",
                "Bas",
            ),
            (
                "Marca temporal (AAAA-MM-DDThh:mm:ss)",
                "Tipo de evento",
                "Nivel de glucosa (mmol/L)",
                "Niveles estimados de glucosa",
                "Bajo",
            ),
            (
                "Data e ora (AAAA-MM-GGThh:mm:ss)",
                "Tipo di evento",
                "Valore del glucosio (mmol/L)",
                "EGV",
                "Basso",
            ),
        ],
    )
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
    def test_languages(self, time: str, event: str, glucose: str, egv: str, low: str, encoding: str) -> None:
        text = (
            f"Index;{time};{event};a;b;c;d;{glucose};e;f;g;h (mmol/L/min);i;j\r\n"
            "1;;Vorname;;Zoë;;;;;;;;;\r\n"
            f"2;2024-01-05T08:00:00;{egv};;;;iPhone G6;5,4;;;;0,1;100;8ABC12\r\n"
            f"3;2024-01-05 8:05:00;{egv};;;;iPhone G6;{low};;;;;400;8ABC12\r\n"
            "4;2024-01-05T08:06:00;Insulin;;;;iPhone G6;;3,0;;;;;\r\n"
        )
        content = text.encode(encoding)
        assert sniffed(content) == "dexcom_clarity"
        parsed = parse("dexcom_clarity", content)
        assert parsed.skipped == {"metadata": 1, "insulin": 1}
        first, second = rows(parsed)
        assert (first["value"], first["unit"], first["trend_rate"]) == (5.4, "mmol/L", 0.1)
        assert first["recorded_at"] == utc("2024-01-05T07:00:00")
        assert (second["value"], second["censored"], second["value_text"]) == (None, "low", low)
        assert first["device"] == "iPhone G6" and "8ABC12" not in str(first)

    def test_rows_are_refused_one_by_one_without_personal_fields(self) -> None:
        text = (
            f"{CLARITY_HEADER}\n1,,FirstName,,Anna,,,,,,,,,\n"
            "2,2024-01-05T08:00:00,EGV,,Anna,,G6,x12,,,,,100,8ABC12\n"
            "3,2024-02-30T08:00:00,EGV,,Anna,,G6,112,,,,,400,8ABC12\n"
            "4,,EGV,,Anna,,G6,112,,,,,700,8ABC12\n"
            "5,2024-01-05T08:15:00,EGV,,Anna,,G6,,,,,,900,8ABC12\n"
            "6,2024-01-05T08:20:00,Calibration,,,,G6,120,,,,,,\n"
            "7,2024-01-05T08:25:00,EGV,,,,G6,12"
        )
        parsed = parse("dexcom_clarity", text)
        assert refusals(parsed) == [
            ("unparsable_value", "line 3"),
            ("unparsable_time", "line 4"),
            ("missing_time", "line 5"),
            ("missing_value", "line 6"),
            ("truncated_line", "line 8"),
        ]
        assert column(parsed, "reading_type") == ["calibration"]
        originals = parsed.quarantine.column("original").to_pylist()
        assert json.loads(originals[0])["Glucose Value (mg/dL)"] == "x12"
        assert "Anna" not in "".join(originals) and "8ABC12" not in "".join(originals)

    def test_what_was_eaten_is_a_meal(self) -> None:
        text = (
            f"{CLARITY_HEADER}\n"
            "1,2024-01-05T08:00:00,EGV,,,,G6,112,,,,,400,8ABC12\n"
            "2,2024-01-05T08:10:00,Carbs,,,,G6,,,45,,,,\n"
            "3,2024-01-05T12:10:00,Carbs,,,,G6,,,lots,,,,\n"
            "4,2024-01-05T13:10:00,Carbs,,,,G6,,,,,,,\n"
        )
        parsed = parse("dexcom_clarity", text)
        (meal,) = parsed.tables["meals"].to_pylist()
        assert (meal["recorded_at"], meal["carbohydrates_g"]) == (utc("2024-01-05T07:10:00"), 45)
        assert column(parsed, "value") == [112]
        assert refusals(parsed) == [("unparsable_value", "line 4")]
        assert parsed.skipped == {"carbohydrates": 1}

    def test_autumn_hour_by_transmitter_time_though_rows_are_shuffled(self) -> None:
        start = dt.datetime(2024, 10, 26, 23, 0, tzinfo=dt.UTC)
        zone = ZoneInfo("Europe/Berlin")
        instants = [start + dt.timedelta(minutes=5 * i) for i in range(48)]
        order = np.random.default_rng(3).permutation(48)
        lines = [
            f"{i},{instants[i].astimezone(zone):%Y-%m-%dT%H:%M:%S},EGV,,,,G6,{99 + i},,,,,{5000 + 300 * i},8X"
            for i in order
        ]
        parsed = parse("dexcom_clarity", "\n".join([CLARITY_HEADER, *lines]))
        assert column(parsed, "recorded_at") == [instants[i] for i in order]
        assert sum(column(parsed, "ambiguous_time")) == 24


class TestXdrip:
    HEADER = "DAY;TIME;UDT_CGMS;BG_LEVEL;CH_GR;BOLUS;REMARK"

    def test_each_filled_cell_is_a_record_and_days_come_first(self) -> None:
        text = (
            f"{self.HEADER}\n"
            "05.01.2024;08:00;112;;;;\n"
            "05.01.2024;23:55;39;;;;\n"
            "13.01.2024;00:00;401;;;;\n"
            "05.01.2024;08:02;;118;;;\n"
            '05.01.2024;12:10;;;45;3.5;Anna"s soup; with bread||and "cheese\n'
            "05.01.2024;13:00;;;;2;\n"
            "05.01.2024;14:00;;;0.0;0;walk; 5 km\n"
            "05.01.2024;15:00;;;;;\n"
        )
        parsed = parse("xdrip", text)
        assert list(zip(column(parsed, "recorded_at"), column(parsed, "value"), strict=True)) == [
            (utc("2024-01-05T07:00:00"), 112),
            (utc("2024-01-05T22:55:00"), 39),
            (utc("2024-01-12T23:00:00"), 401),
            (utc("2024-01-05T07:02:00"), 118),
        ]
        assert column(parsed, "reading_type") == ["cgm", "cgm", "cgm", "calibration"]
        assert set(column(parsed, "unit")) == {"mg/dL"}
        (meal,) = parsed.tables["meals"].to_pylist()
        assert (meal["recorded_at"], meal["carbohydrates_g"]) == (utc("2024-01-05T11:10:00"), 45)
        assert parsed.skipped == {"insulin": 2, "note": 2, "empty_row": 1}
        assert parsed.quarantine.num_rows == 0
        assert parsed.records_in == parsed.records_loaded + 5

    def test_what_cannot_be_read_is_refused_with_its_line_and_without_remarks(self) -> None:
        text = (
            f"{self.HEADER}\r\n"
            "05.01.2024;08:00;112;;;;\r\n"
            "32.01.2024;08:05;112;;;;\r\n"
            "05.01.2024;;112;;;;Anna\r\n"
            "05.01.2024;08:10;lots;;much;;Anna\r\n"
            "05.01.2024;08:15;11"
        )
        parsed = parse("xdrip", text)
        assert refusals(parsed) == [
            ("unparsable_time", "line 3"),
            ("unparsable_time", "line 4"),
            ("unparsable_value", "line 5"),
            ("unparsable_value", "line 5"),
            ("truncated_line", "line 6"),
        ]
        assert column(parsed, "value") == [112]
        assert parsed.records_in == 1 + 5 + parsed.skipped["note"] == 8
        originals = parsed.quarantine.column("original").to_pylist()
        assert json.loads(originals[0])["DAY"] == "32.01.2024"
        assert "Anna" not in "".join(originals)

    def test_an_archive_is_known_by_its_first_member_and_read(self) -> None:
        text = f"{self.HEADER}\n05.01.2024;08:00;112;;;;\n"
        for members, loaded in (
            (["export20240105-080500.csv"], 1),
            (["export20240105-080500.csv", "other.csv"], None),
            (["export20240105-080500.csv.txt"], None),
        ):
            packed = io.BytesIO()
            with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
                for name in members:
                    archive.writestr(name, text)
            content = packed.getvalue()
            assert sniffed(content[:4096]) == (None if "txt" in members[0] else "xdrip")
            if loaded is None:
                with pytest.raises(UnreadableFileError, match="one table"):
                    parse("xdrip", content)
            else:
                assert parse("xdrip", content).records_loaded == loaded
        assert sniffed(text.encode()) == "xdrip"
        cut = packed.getvalue()[:60]
        with pytest.raises(UnreadableFileError, match="cut off or damaged"):
            parse("xdrip", cut)


class TestGlooko:
    CGM = (
        "Name:Anna Muster,Date Range:2024-01-01 - 2024-01-14\r\n"
        "Timestamp,CGM Glucose Value (mg/dl),Serial Number\r\n"
        "2024-01-05 08:05,114.0,ABC123\r\n"
        "2024-01-05 08:00,112.0,ABC123\r\n"
    )
    METER = (
        "Name:Anna Muster,Date Range:2024-01-01 - 2024-01-14\r\n"
        "Timestamp,Glucose Value (mg/dl),Manual Reading,Serial Number\r\n"
        "2024-01-05 12:00,130.0,M,ABC124\r\n"
        "2024-01-05 13:00,lots,M,ABC124\r\n"
    )
    EMPTY = "".join(CGM.splitlines(keepends=True)[:2])
    INSULIN = "Name:Anna Muster\r\nTimestamp,Total Bolus (U)\r\n2024-01-05 12:00,3\r\n2024-01-05 13:00,2\r\n"

    @staticmethod
    def packed(**members: str) -> bytes:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, text in members.items():
                archive.writestr(f"Some data/{name}.csv", text)
        return packed.getvalue()

    def test_tables_of_sensor_and_meter_come_out_of_the_archive(self) -> None:
        content = self.packed(
            insulin_data_1=self.INSULIN, cgm_data_1=self.CGM, cgm_data_2=self.EMPTY, bg_data_1=self.METER
        )
        assert sniffed(content[:4096]) == "glooko"
        parsed = parse("glooko", content)
        assert [(row["recorded_at"], row["value"], row["reading_type"]) for row in rows(parsed)] == [
            (utc("2024-01-05T07:05:00"), 114, "cgm"),
            (utc("2024-01-05T07:00:00"), 112, "cgm"),
            (utc("2024-01-05T11:00:00"), 130, "strip"),
        ]
        assert set(column(parsed, "unit")) == {"mg/dL"}
        assert parsed.skipped == {"insulin": 2}
        assert refusals(parsed) == [("unparsable_value", "bg_data_1.csv line 4")]
        assert (parsed.records_in, parsed.records_loaded) == (6, 3)
        everything = str(rows(parsed)) + "".join(parsed.quarantine.column("original").to_pylist())
        assert "Anna" not in everything and "ABC12" not in everything

    @pytest.mark.parametrize(("text", "kind"), [(CGM, "cgm"), (METER, "strip")])
    def test_a_table_alone_is_known_by_its_header(self, text: str, kind: str) -> None:
        assert sniffed(text.encode()) == "glooko"
        assert set(column(parse("glooko", text), "reading_type")) == {kind}

    def test_an_archive_without_readings_is_refused(self) -> None:
        with pytest.raises(UnreadableFileError, match="no readings of a sensor or a meter"):
            parse("glooko", self.packed(insulin_data_1=self.INSULIN, cgm_data_1=self.EMPTY))
        content = self.packed(cgm_data_1=self.CGM)
        with pytest.raises(UnreadableFileError, match="cut off or damaged"):
            parse("glooko", content[: len(content) // 2])


class TestLibreView:
    def test_german_mmol_with_decimal_comma_and_double_encoding(self) -> None:
        text = (
            "Glukose-Werte,Erstellt am,24-02-2021 12:12 UTC,Erstellt von,Zoë\n"
            f"{GERMAN_LIBRE_HEADER}\n"
            'FreeStyle LibreLink,ABC-1,03-02-2021 10:00,0,"5,4",,,,,,,,,,,,,,\n'
            'FreeStyle LibreLink,ABC-1,03-02-2021 10:04,1,,"6,1",,,,,,,,,,,,,\n'
            'FreeStyle LibreLink,ABC-1,03-02-2021 10:05,2,,,,,,,,,,,"7,0",,,,\n'
            "FreeStyle LibreLink,ABC-1,03-02-2021 10:06,4,,,,2,,,,,,,,,,,\n"
            "FreeStyle LibreLink,ABC-1,03-02-2021 10:07,6,,,,,,,,,,Sport,,,,,\n"
            "FreeStyle LibreLink,ABC-1,01-01-0001 00:00,0,5,,,,,,,,,,,,,,\n"
        )
        for content in (text.encode(), text.encode().decode("cp1252").encode()):
            parsed = parse("libreview", content)
            assert column(parsed, "value") == [5.4, 6.1, 7.0]
            assert column(parsed, "reading_type") == ["cgm", "scan", "strip"]
            # Only the line above the header shows that the day comes first.
            assert rows(parsed)[0]["recorded_at"] == utc("2021-02-03T09:00:00")
            assert parsed.skipped == {"insulin": 1, "note": 1}
            assert refusals(parsed) == [("implausible_time", "line 8")]
            assert "ABC-1" not in str(rows(parsed))

    def test_what_was_eaten_is_a_meal_of_the_file_s_date_order(self) -> None:
        """Grams of food rows; the one date that shows the order is a reading's."""
        text = (
            f"{GERMAN_LIBRE_HEADER}\n"
            "L,A-1,03-02-2021 10:00,0,99,,,,,,,,,,,,,,\n"
            "L,A-1,13-02-2021 10:00,0,99,,,,,,,,,,,,,,\n"
            'L,A-1,03-02-2021 12:00,5,,,,,,"62,5",,,,,,,,,\n'
            "L,A-1,03-02-2021 13:00,5,,,,,1,,,,,,,,,,\n"
        )
        parsed = parse("libreview", text)
        (meal,) = parsed.tables["meals"].to_pylist()
        assert (meal["recorded_at"], meal["carbohydrates_g"]) == (utc("2021-02-03T11:00:00"), 62.5)
        assert (parsed.records_loaded, parsed.skipped) == (3, {"food": 1})

    def test_a_doubly_encoded_header_names_its_columns_in_any_order(self) -> None:
        header = "Gerätezeitstempel,Gerät,Glukosewert-Verlauf mmol/L,Aufzeichnungstyp,Notizen"
        text = f"{header}\n03-12-2024 10:00,L,5.4,0,\n13-12-2024 10:00,L,5.5,0,\n"
        for content in (text.encode(), text.encode().decode("cp1252").encode(), text.encode("cp1252")):
            assert column(parse("libreview", content), "value") == [5.4, 5.5]

    def test_unknown_language_is_read_by_the_order_of_columns(self) -> None:
        header = (
            "Enhet,Serienummer,Enhetens tid,Typ,Historiskt mmol/L,Skannat mmol/L,a,b,c,d,e,f,g,h,Remsa mmol/L"
        )
        text = f"{header}\nL,X,2024-03-14 10:00,0,6.2,,,,,,,,,,\nL,X,2024-03-14 10:01,2,,,,,,,,,,,6.6\n"
        assert sniffed(text.encode()) == "libreview"
        assert column(parse("libreview", text), "value") == [6.2, 6.6]

    def test_unquoted_decimal_comma_is_never_read_as_two_numbers(self) -> None:
        text = f"{LIBRE_HEADER.replace('mg/dL', 'mmol/L')}\nLibre,X,14-03-2024 10:00,0,6,2,,,,,,,,,,,,,,\n"
        parsed = parse("libreview", text)
        assert parsed.records_loaded == 0 and refusals(parsed) == [("conflicting_values", "line 2")]

    def test_date_order_by_the_steps_between_readings(self) -> None:
        start = dt.datetime(2021, 2, 3, 22, 0)
        times = [start + dt.timedelta(minutes=15 * i) for i in range(20)]
        text = "\n".join([LIBRE_HEADER, *(f"L,X,{t:%d/%m/%Y %H:%M},0,100" + "," * 14 for t in times)])
        assert column(parse("libreview", text), "local_time") == times

    def test_one_damaged_date_does_not_turn_the_others_around(self) -> None:
        times = [dt.datetime(2021, 3, 1) + dt.timedelta(hours=i) for i in range(24 * 20)]
        lines = [f"L,X,{t:%d-%m-%Y %H:%M},0,100" + "," * 14 for t in times]
        lines[5] = "L,X,01-13-2021 05:00,0,100" + "," * 14
        parsed = parse("libreview", "\n".join([LIBRE_HEADER, *lines]))
        assert refusals(parsed) == [("unparsable_time", "line 7")]
        assert column(parsed, "local_time") == times[:5] + times[6:]

    def test_a_note_with_a_line_break_is_one_row(self) -> None:
        text = (
            f"{LIBRE_HEADER}\nL,X,14-03-2024 10:00,0,101{',' * 14}\n"
            f'L,X,14-03-2024 10:01,6{"," * 10}"two\nlines"{"," * 5}\n'
            f"L,X,14-03-2024 10:15,0,102{',' * 14}\n"
        )
        parsed = parse("libreview", text)
        assert (parsed.records_in, parsed.skipped) == (3, {"note": 1})
        assert column(parsed, "line") == [2, 5]

    def test_phone_and_reader_are_told_apart_in_the_repeated_hour(self) -> None:
        def device(serial: str) -> list[str]:
            return [
                f"L,{serial},27-10-2024 0{h}:{m:02d},0,100{',' * 14}"
                for h, m in [(1, 45), (2, 0), (2, 30), (2, 45), (2, 0), (2, 30), (3, 0)]
            ]

        lines = [line for pair in zip(device("phone"), device("reader"), strict=True) for line in pair]
        parsed = parse("libreview", "\n".join([LIBRE_HEADER, *lines]))
        expected = ["23:45", "00:00", "00:30", "00:45", "01:00", "01:30", "02:00"]
        assert [f"{t:%H:%M}" for t in column(parsed, "recorded_at")[::2]] == expected
        assert [f"{t:%H:%M}" for t in column(parsed, "recorded_at")[1::2]] == expected


class TestNightscout:
    def test_types_offsets_codes_and_envelopes(self) -> None:
        entries = [
            {
                "_id": "a",
                "type": "sgv",
                "sgv": 120,
                "date": 1714546800000,
                "utcOffset": 120,
                "direction": "Flat",
            },
            {"_id": "b", "type": "mbg", "mbg": 111, "date": 1714546860000, "utcOffset": 0},
            {"_id": "c", "type": "cal", "slope": 800, "date": 1714546860000},
            {"_id": "d", "type": "sgv", "sgv": 5, "date": 1714547100000},
            {"identifier": "e", "type": "sgv", "sgv": 6.1, "units": "mmol", "date": 1714547400000},
            {"_id": "f", "type": "sgv", "sgv": None, "date": 1714547700000},
            {"_id": "g", "type": "sgv", "sgv": 99, "dateString": "gestern", "device": "loop://Anna's iPhone"},
            {"_id": "h", "type": "sgv", "sgv": 99, "date": 1714547800000, "isValid": False},
            {"_id": "i", "sgv": "140", "dateString": "2024-05-01T09:30:00+0200", "device": "loop://Anna"},
            7,
        ]
        forms = [
            json.dumps(entries),
            json.dumps({"status": 200, "result": entries}, indent=1),
            "\n".join(json.dumps(entry) for entry in entries),
        ]
        for form, location in zip(forms, ("$[5]", "$.result[5]", "line 6"), strict=True):
            parsed = parse("nightscout", form, None)
            assert parsed.records_in == 10
            assert parsed.skipped == {"calibration_parameters": 1, "sensor_error_code": 1, "deleted": 1}
            assert column(parsed, "value") == [120, 111, 6.1, 140]
            assert column(parsed, "unit") == ["mg/dL", "mg/dL", "mmol/L", "mg/dL"]
            assert column(parsed, "reading_type") == ["cgm", "strip", "cgm", "cgm"]
            assert column(parsed, "record_id") == ["a", "b", "e", "i"]
            assert column(parsed, "utc_offset_minutes") == [120, 0, None, 120]
            assert rows(parsed)[3]["recorded_at"] == utc("2024-05-01T07:30:00")
            assert rows(parsed)[3]["device"] == "loop"
            assert refusals(parsed)[0] == ("missing_value", location)
            assert [reason for reason, _ in refusals(parsed)] == [
                "missing_value",
                "unparsable_time",
                "not_an_object",
            ]
            assert "Anna" not in str(parsed.quarantine.to_pylist())

    def test_entries_csv_has_no_header(self) -> None:
        text = (
            '"2018-02-18T23:06:17.000Z",1518995177000,145,"Flat","share2"\n'
            '"2018-02-18T23:01:17.000Z",1518994877000,148,"Flat","share2"\n'
        )
        assert sniffed(text.encode()) == "nightscout"
        parsed = parse("nightscout", text, None)
        assert column(parsed, "value") == [145, 148]
        assert rows(parsed)[0]["recorded_at"] == utc("2018-02-18T23:06:17")

    def test_json_that_breaks_off(self) -> None:
        with pytest.raises(UnreadableFileError, match="download it again"):
            parse("nightscout", '[{"sgv": 100, "date": 1714546800000}, {"sgv": 1')


class TestGenericTables:
    @pytest.mark.parametrize(
        ("text", "value", "unit"),
        [
            ("time,glucose\n2024-01-05 08:00,5.4\n", 5.4, "mmol/L"),
            ("time,glucose\n2024-01-05 08:00,54\n", 54, "mg/dL"),
            ("Zeit;Glukose (mmol/L)\n05.01.2024 08:00;5,4\n", 5.4, "mmol/L"),
            ("timestamp\tmg_dl\n2024-01-05T08:00:00+01:00\t54\n", 54, "mg/dL"),
            ("date,time,bg,unit\n2024-01-05,8:00,5.4,mmol/l\n", 5.4, "mmol/L"),
            ("Date,Time,Glucose (mg/dL),Type,Device,Trend,ID\n1/5/2024,8:00:00 AM,54,sgv,x,4,abc\n"
             "1/13/2024,8:00:00 AM,55,sgv,x,4,abd\n", 54, "mg/dL"),
            ("time,sgv\n1704438000,100\n", 100, "mg/dL"),
            ("time,sgv\n1704438000000,100\n", 100, "mg/dL"),
            ("timestamp_utc,mmol\n2024-01-05 07:00:00,5.4\n", 5.4, "mmol/L"),
            ('[{"timestamp": "2024-01-05T07:00:00Z", "glucose": 5.4, "unit": "mmol/L"}]', 5.4, "mmol/L"),
            ('{"readings": [{"dateTime": 1704438000, "bg": 100}]}', 100, "mg/dL"),
        ],
    )  # fmt: skip
    def test_shapes(self, text: str, value: float, unit: str) -> None:
        assert sniffed(text.encode()) == "glucose_csv"
        parsed = parse("glucose_csv", text)
        row = rows(parsed)[0]
        assert (row["value"], row["unit"], row["recorded_at"]) == (value, unit, utc("2024-01-05T07:00:00"))
        assert row["utc_offset_minutes"] == 60

    def test_unit_that_the_values_do_not_tell(self) -> None:
        text = "time,glucose\n2024-01-05 08:00,5.4\n2024-01-05 08:05,101\n"
        with pytest.raises(UnreadableFileError, match="unit=mg/dL"):
            parse("glucose_csv", text)
        assert column(parse("glucose_csv", text, unit="mg/dL"), "unit") == ["mg/dL"] * 2

    def test_unknown_unit_in_one_row(self) -> None:
        text = "time,glucose,unit\n2024-01-05 08:00,5.4,mmol/L\n2024-01-05 08:05,101,furlong\n"
        parsed = parse("glucose_csv", text)
        assert refusals(parsed) == [("unknown_unit", "line 3")]

    def test_local_times_need_a_zone_that_exists(self) -> None:
        text = "time,glucose\n2024-01-05 08:00,101\n"
        with pytest.raises(UnreadableFileError, match="--timezone AREA/CITY"):
            parse("glucose_csv", text, None)
        with pytest.raises(UnreadableFileError, match="'Mars/Olympus' is not a time zone"):
            parse("glucose_csv", text, "Mars/Olympus")
        instants = parse("glucose_csv", text.replace("08:00", "08:00Z"), None)
        assert rows(instants)[0]["recorded_at"] == utc("2024-01-05T08:00:00")
        assert rows(instants)[0]["local_time"] is None and rows(instants)[0]["utc_offset_minutes"] is None

    def test_readings_of_several_people_are_not_mixed(self) -> None:
        lines = [f"{person},2024-01-05 08:{m:02d},101" for person in ("P1", "P2") for m in range(10)]
        with pytest.raises(UnreadableFileError, match="2 people"):
            parse("glucose_csv", "\n".join(["id,time,gl", *lines]))

    def test_rows_that_are_not_glucose_and_sections(self) -> None:
        text = (
            "# CGM ENTRIES\nDate,Time,Glucose (mg/dL),Type\n"
            "2024-01-05,08:00,101,sgv\n2024-01-05,08:05,4,Insulin\n"
            "\n,,,\n# TREATMENTS\nDate,Time,Event\n2024-01-05,08:05,Meal\n"
        )
        parsed = parse("glucose_csv", text)
        assert parsed.records_loaded == 1
        assert parsed.skipped == {"other_event": 1, "empty_row": 1, "comment": 1, "other_section": 2}

    @pytest.mark.parametrize(
        "cut", ["2024-01-05 08:05", "2024-01-0", '"2024-01-05 08:05', "2024-01-05 08:05,1"]
    )
    def test_a_cut_last_line(self, cut: str) -> None:
        body = "".join(f"2024-01-05 07:{m:02d},{m + 100},x\n" for m in range(5))
        parsed = parse("glucose_csv", f"time,glucose,note\n{body}{cut}")
        assert parsed.records_loaded == 5
        assert refusals(parsed) == [("truncated_line", "line 7")]

    def test_a_stray_quote_spoils_its_own_line_only(self) -> None:
        body = [f'"S",2024-01-05 {m // 60:02d}:{m % 60:02d},{100 + m % 50}' for m in range(600)]
        body[300] = body[300].replace('"S"', '"S')
        parsed = parse("glucose_csv", "\n".join(["id,time,gl", *body]))
        assert parsed.records_loaded == 600
        assert column(parsed, "line") == list(range(2, 602))

    def test_quotes_inside_a_cell_that_hide_a_delimiter_from_one_reader_only(self) -> None:
        text = 'id,time,gl\nx"1,2024-01-05 08:00",100\nS,2024-01-05 08:05,101\n"S,2024-01-05 08:10,102"\n'
        parsed = parse("glucose_csv", text)
        assert column(parsed, "value") == [101, 102]
        assert refusals(parsed) == [("unparsable_time", "line 2")]

    @pytest.mark.parametrize("content", [b"", b"  \n\n", b"\xef\xbb\xbf"])
    @pytest.mark.parametrize("kind", KINDS)
    def test_empty(self, kind: str, content: bytes) -> None:
        with pytest.raises(UnreadableFileError, match="empty"):
            parse(kind, content)

    @pytest.mark.parametrize(
        "content", [b"\x89PNG\r\n\x1a\n" + bytes(200), bytes(range(256)) * 4, b"%PDF-1.7 x"]
    )
    @pytest.mark.parametrize("kind", KINDS)
    def test_binary(self, kind: str, content: bytes) -> None:
        assert KINDS[kind].sniff is not None and KINDS[kind].sniff(content) == 0
        with pytest.raises(UnreadableFileError, match=r"PNG|binary|PDF"):
            parse(kind, content)

    def test_no_header(self) -> None:
        with pytest.raises(UnreadableFileError, match="no glucose table header in the first 2 lines"):
            parse("glucose_csv", "a,b\n1,2\n")


class TestRegistry:
    def test_every_kind_is_found_and_recognised(self) -> None:
        for name, provider in KINDS.items():
            assert registry.get(name) is provider
        reading = [(dt.datetime(2024, 1, 5, 8), 100)]
        for kind, write in WRITERS.values():
            assert registry.recognise(write(reading).encode()).name == kind

    def test_what_is_recognised_by_no_one(self) -> None:
        with pytest.raises(
            UnreadableFileError, match=r"no known kind; known are .*libreview \(LibreView export\)"
        ):
            registry.recognise(b"dear diary, today I ate an apple\n")
        with pytest.raises(UnreadableFileError, match="PNG image"):
            registry.recognise(b"\x89PNG\r\n\x1a\n" + bytes(100))
        with pytest.raises(UnreadableFileError, match="empty"):
            registry.recognise(b"\n")
        with pytest.raises(KeyError, match=r"no provider 'lidl'.*dexcom_clarity"):
            registry.get("lidl")

    def test_import_is_light(self) -> None:
        code = (
            "import sys; from health_pipeline.providers import registry; registry.all_providers(); "
            "print([m for m in ('pandas', 'dagster', 'sqlalchemy', 'openpyxl') if m in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"


class TestClockChanges:
    @pytest.mark.parametrize(
        "zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Havana"]
    )
    @pytest.mark.parametrize("newest_first", [False, True])
    @pytest.mark.parametrize("minutes", [5, 15])
    def test_a_year_of_readings_comes_back_as_it_was(
        self, zone: str, newest_first: bool, minutes: int
    ) -> None:
        start = np.datetime64("2023-06-01T00:03:00", "us").astype(np.int64)
        instants = start + np.arange(365 * 24 * 60 // minutes) * minutes * 60_000_000
        offsets = [
            dt.datetime.fromtimestamp(int(us) / 1e6, ZoneInfo(zone)).utcoffset().total_seconds()
            for us in instants
        ]
        civil = instants + np.array(offsets, dtype=np.int64) * 1_000_000
        if newest_first:
            instants, civil, offsets = instants[::-1], civil[::-1], offsets[::-1]
        found = localise(civil, ZoneInfo(zone))
        assert (found.us == instants).all()
        assert (found.offset * 60 == np.array(offsets)).all()
        repeated = 0.5 if zone == "Australia/Lord_Howe" else 1
        assert found.ambiguous.sum() == 2 * repeated * 60 // minutes

    def test_spring_gap_is_shifted_by_the_offset_before_it(self) -> None:
        text = "time,glucose\n2024-03-31 01:55,100\n2024-03-31 02:30,101\n2024-03-31 03:05,102\n"
        parsed = parse("glucose_csv", text)
        assert column(parsed, "recorded_at") == [
            utc("2024-03-31T00:55:00"), utc("2024-03-31T01:30:00"), utc("2024-03-31T01:05:00"),
        ]  # fmt: skip
        assert column(parsed, "ambiguous_time") == [False, True, False]
        assert column(parsed, "utc_offset_minutes") == [60, 120, 120]

    def test_an_hour_recorded_once_joins_the_readings_it_runs_on_from(self) -> None:
        def offsets(times: list[str]) -> list[object]:
            lines = [f"2024-10-27 {time},100" for time in times]
            return column(parse("glucose_csv", "\n".join(["time,glucose", *lines])), "utc_offset_minutes")

        assert offsets(["01:50", "01:55", "02:00", "02:05"]) == [120] * 4
        assert offsets(["02:50", "02:55", "03:00"]) == [60] * 3
        # A scan two minutes out of order is not the clock going back.
        assert offsets(["01:55", "02:05", "02:03", "02:10"]) == [120] * 4


READINGS = st.lists(
    st.tuples(
        st.datetimes(dt.datetime(2000, 1, 1), dt.datetime(2030, 1, 1)).map(
            lambda t: t.replace(microsecond=0)
        ),
        st.integers(40, 400),
    ),
    min_size=1,
    max_size=30,
)


def as_clarity(readings: list[tuple[dt.datetime, int]]) -> str:
    lines = [f"{i},{t:%Y-%m-%dT%H:%M:%S},EGV,,,,G6,{v},,,,,,8X" for i, (t, v) in enumerate(readings)]
    return "\n".join([CLARITY_HEADER, *lines]) + "\n"


def as_libreview(readings: list[tuple[dt.datetime, int]]) -> str:
    lines = [f"L,X,{t:%Y-%m-%d %H:%M:%S},0,{v}{',' * 14}" for t, v in readings]
    return "\n".join([LIBRE_HEADER, *lines]) + "\n"


def as_nightscout(readings: list[tuple[dt.datetime, int]]) -> str:
    return json.dumps(
        [
            {"type": "sgv", "sgv": v, "date": int(t.replace(tzinfo=dt.UTC).timestamp() * 1000)}
            for t, v in readings
        ]
    )


def as_csv(readings: list[tuple[dt.datetime, int]]) -> str:
    return "\n".join(["timestamp;glucose", *(f"{t:%Y-%m-%dT%H:%M:%S};{v}" for t, v in readings)])


def as_json(readings: list[tuple[dt.datetime, int]]) -> str:
    return json.dumps([{"time": f"{t:%Y-%m-%dT%H:%M:%S}Z", "glucose": v} for t, v in readings])


def as_xdrip(readings: list[tuple[dt.datetime, int]]) -> str:
    return "\n".join(
        [TestXdrip.HEADER, *(f"{time:%d.%m.%Y;%H:%M};{value};;;;" for time, value in readings), ""]
    )


WRITERS = {
    "clarity": ("dexcom_clarity", as_clarity),
    "libreview": ("libreview", as_libreview),
    "nightscout": ("nightscout", as_nightscout),
    "csv": ("glucose_csv", as_csv),
    "json": ("glucose_csv", as_json),
    "xdrip": ("xdrip", as_xdrip),
}


@settings(max_examples=100, deadline=None)
@given(
    zone=st.sampled_from(["", "Z"]),
    columns=st.lists(
        st.tuples(
            st.sampled_from([1899, 1900, 2024, 2199, 2200]),
            st.integers(1, 13),
            st.integers(1, 31),
            st.sampled_from(["T", " "]),
            st.integers(0, 24),
            st.integers(0, 60),
            st.sampled_from(["", ":00", ":59", ":60", ":07.5", ":07.123456", ":07.1234567"]),
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_a_column_of_one_form_is_read_as_any_other(zone: str, columns: list[tuple[object, ...]]) -> None:
    texts = [
        f"{year}-{month:02}-{day:02}{mark}{hour:02}:{minute:02}{rest}{zone}"
        for year, month, day, mark, hour, minute, rest in columns
    ]
    # One odd text, and all are read one by one.
    quick, slow = parse_times(pa.array(texts)), parse_times(pa.array([*texts, "?"]))
    assert quick.kind.tolist() == slow.kind.tolist()[:-1]
    assert quick.us.tolist() == slow.us.tolist()[:-1]
    assert quick.offset.tolist() == slow.offset.tolist()[:-1]


@pytest.mark.parametrize("form", WRITERS)
@given(readings=READINGS)
@settings(max_examples=30, deadline=None)
def test_what_was_written_is_read(form: str, readings: list[tuple[dt.datetime, int]]) -> None:
    kind, write = WRITERS[form]
    if form == "xdrip":  # It has minutes.
        readings = [(time.replace(second=0), value) for time, value in readings]
    parsed = parse(kind, write(readings), "UTC")
    assert column(parsed, "recorded_at") == [time.replace(tzinfo=dt.UTC) for time, _ in readings]
    assert column(parsed, "value") == [float(value) for _, value in readings]
    assert parsed.quarantine.num_rows == 0


@pytest.mark.parametrize("form", WRITERS)
@given(
    readings=READINGS,
    edits=st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=12),
    end=st.integers(0),
)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_damage_is_refused_but_never_a_crash(
    form: str, readings: list[tuple[dt.datetime, int]], edits: list[tuple[int, int]], end: int
) -> None:
    kind, write = WRITERS[form]
    content = bytearray(write(readings).encode())
    for place, octet in edits:
        content[place % len(content)] = octet
    head = bytes(content[: end % (len(content) + 1) or None])
    for provider in KINDS.values():
        assert provider.sniff is not None and 0 <= provider.sniff(head) <= 1
    try:
        parsed = parse(kind, head, "Europe/Berlin")
    except UnreadableFileError as error:
        assert re.search(r"upload|export|download|give|save|say|name|unit|expected|must", str(error))
        return
    # Parsed itself refuses counts that do not add up.
    assert parsed.records_loaded == parsed.tables["readings"].num_rows
    assert column(parsed, "line") == sorted(column(parsed, "line"))
