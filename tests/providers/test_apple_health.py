"""Apple's export: what phones really write, and what becomes of it, down to local days."""

from __future__ import annotations

import datetime as dt
import io
import re
import zipfile
from collections import Counter
from typing import Any, BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_glucose_files import shared

from health_pipeline.providers import _zip_stream, apple_health, registry
from health_pipeline.providers._apple_health_time import device_of
from health_pipeline.providers.base import Parsed, RawDocument, RawFile, UnreadableFileError
from health_pipeline.sandbox.apple_health import write_apple_health
from health_pipeline.sandbox.people import person

RECEIVED = dt.datetime(2026, 11, 20, tzinfo=dt.UTC)
WATCH = (
    'sourceName="Ada\u2019s Apple\u00a0Watch" device="&lt;&lt;HKDevice: 0x{0}&gt;, name:Apple Watch, '
    'manufacturer:Apple Inc., model:Watch, hardware:Watch6,2, software:10.1&gt;"'
)
QUANTITY = "HKQuantityTypeIdentifier"
AT = 'startDate="2026-07-01 08:00:00 +0200" endDate="2026-07-01 08:05:00 +0200"'


def record(kind: str, value: str, unit: str | None = None, more: str = "", at: str = AT) -> str:
    said = f'unit="{unit}" ' if unit is not None else ""
    return f' <Record type="HKQuantityTypeIdentifier{kind}" {WATCH.format("1")} {said}{at} value="{value}"{more}/>'


def export(*lines: str, head: str = "", tail: str = "</HealthData>\n") -> bytes:
    return "\n".join(
        [
            '<?xml version="1.0" encoding="UTF-8"?>',
            head or "<!DOCTYPE HealthData []>",
            "<HealthData>",
            *lines,
            tail,
        ]
    ).encode()


def parse(content: bytes, zone: str | None = "Europe/Berlin") -> Parsed:
    return apple_health.parse(RawDocument("records", content, RECEIVED, zone))


def rows(parsed: Parsed, table: str = "records") -> list[dict[str, Any]]:
    return list(parsed.tables[table].to_pylist()) if table in parsed.tables else []


def refused(parsed: Parsed) -> list[tuple[str, str]]:
    return [(row["reason"], row["location"]) for row in parsed.quarantine.to_pylist()]


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


class Pipe(io.RawIOBase):
    """A stream that can only be read forward, as zip writers and readers of the raw store have it."""

    def __init__(self, content: bytes) -> None:
        self._content = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._content.readinto(memoryview(buffer)[:1000])


class TestValues:
    @pytest.mark.parametrize(
        ("kind", "value", "unit", "expected"),
        [
            ("BodyMass", "180.5", "lb", ("weight", 180.5, "[lb_av]")),
            ("BodyMass", "12", "st", ("weight", 12, "[stone_av]")),
            ("BloodGlucose", "5.5", "mmol&lt;180.1558800000541&gt;/L", ("blood_glucose", 5.5, "mmol/L")),
            ("BloodGlucose", "99", "mg/dL", ("blood_glucose", 99, "mg/dL")),
            ("BodyTemperature", "98.6", "degF", ("body_temperature", 98.6, "[degF]")),
            ("DistanceWalkingRunning", "0.5", "mi", ("distance", 0.5, "[mi_i]")),
            ("OxygenSaturation", "0.97", "%", ("spo2", 0.97, "1")),
            ("OxygenSaturation", "97", "%", ("spo2", 97, "%")),
            ("BodyFatPercentage", "0.214", "%", ("body_fat", 0.214, "1")),
            ("ActiveEnergyBurned", "12", "Cal", ("calories_burned", 12, "kcal")),
            ("ActiveEnergyBurned", "50", "kJ", ("calories_burned", 50, "kJ")),
            ("VO2Max", "41.2", "mL/min·kg", ("vo2_max", 41.2, "mL/(kg.min)")),
            ("DietaryCarbohydrates", "45", "g", ("carbohydrates", 45, "g")),
            ("StepCount", "12", "count", ("steps", 12, "{steps}")),
            ("BodyMassIndex", "22.5", "count", ("bmi", 22.5, "kg/m2")),
            ("HeartRate", "61", "count/min", ("heart_rate", 61, "/min")),
            ("HeartRate", "61", "beats", ("heart_rate", 61, "beats")),
        ],
    )
    def test_units_are_read_record_by_record(
        self, kind: str, value: str, unit: str, expected: tuple[str, float, str]
    ) -> None:
        (row,) = rows(parse(export(record(kind, value, unit))))
        assert (row["metric_type"], row["value"], row["unit"]) == expected

    def test_a_device_is_its_name_and_hardware_and_not_its_address(self) -> None:
        lines = [
            f' <Record type="{QUANTITY}HeartRate" {WATCH.format(pointer)} unit="count/min" {AT} value="60"/>'
            for pointer in ("2828a5450", "281fd3e80")
        ]
        found = rows(parse(export(*lines)))
        assert [row["device"] for row in found] == ["Ada\u2019s Apple Watch (Watch6,2)"] * 2
        assert device_of("Health Mate", None) == "Health Mate"
        assert (
            device_of("Phone", "<<HKDevice: 0x1>, name:iPhone, hardware:iPhone14,5>") == "Phone (iPhone14,5)"
        )

    def test_the_printed_offset_tells_the_instant_and_the_upload_the_zone(self) -> None:
        line = record("HeartRate", "60", "count/min", at='startDate="2026-01-10 23:30:00 -0700"')
        instant = dt.datetime(2026, 1, 11, 6, 30, tzinfo=dt.UTC)
        for zone, offset, source in (("Europe/Berlin", 60, "upload_zone"), (None, -420, "export")):
            (row,) = rows(parse(export(line), zone))
            assert (row["recorded_at"], row["ended_at"]) == (instant, None)
            assert (row["utc_offset_minutes"], row["utc_offset_source"]) == (offset, source)
        named = line.replace("/>", '>\n  <MetadataEntry key="HKTimeZone" value="Asia/Tokyo"/>\n </Record>')
        parsed = parse(export(named))
        (row,) = rows(parsed)
        assert (row["utc_offset_minutes"], row["utc_offset_source"]) == (540, "record")
        assert [(z["time_zone"], z["is_home"]) for z in rows(parsed, "time_zones")] == [("Asia/Tokyo", False)]

    def test_a_sensors_glucose_is_told_from_a_meters(self) -> None:
        line = record("BloodGlucose", "101", "mg/dL").replace("Ada\u2019s Apple\u00a0Watch", "Dexcom G7")
        typed = line.replace("/>", '><MetadataEntry key="HKWasUserEntered" value="1"/></Record>')
        found = rows(parse(export(line, typed, record("BloodGlucose", "99", "mg/dL"))))
        assert [row["is_sensor"] for row in found] == [True, False, False]
        assert [row["is_user_entered"] for row in found] == [False, True, False]

    def test_bad_records_are_refused_one_by_one_with_their_lines(self) -> None:
        parsed = parse(
            export(
                record("HeartRate", "fast", "count/min"),
                record("HeartRate", "", "count/min"),
                record("HeartRate", "60", "count/min", at='startDate="2026-02-30 08:00:00 +0100"'),
                record("HeartRate", "60", "count/min", at='endDate="2026-02-20 08:00:00 +0100"'),
                record("HeartRate", "60", "count/min", at='startDate="0001-01-01 00:00:00 +0000"'),
                record("HeartRate", "60", "count/min", at=AT.replace("08:05:00", "07:05:00")),
                record("HeartRate", "61", "count/min"),
            )
        )
        assert refused(parsed) == [
            ("unparsable_value", "line 4"),
            ("missing_value", "line 5"),
            ("unparsable_time", "line 6"),
            ("missing_time", "line 7"),
            ("implausible_time", "line 8"),
            ("ends_before_start", "line 9"),
        ]
        assert [row["value"] for row in rows(parsed)] == [61]

    def test_types_without_a_metric_are_counted_by_name(self) -> None:
        parsed = parse(export(record("WalkingSpeed", "5", "km/hr"), record("HeartRate", "60", "count/min")))
        assert (parsed.records_in, parsed.records_loaded, parsed.skipped) == (2, 1, {"walking_speed": 1})

    def test_a_workout_has_its_totals_as_attributes_or_as_statistics(self) -> None:
        old = (
            ' <Workout workoutActivityType="HKWorkoutActivityTypeRunning" duration="5.5" durationUnit="min" '
            f'totalDistance="0.5" totalDistanceUnit="mi" totalEnergyBurned="100" totalEnergyBurnedUnit="kJ" {AT}/>'
        )
        new = (
            ' <Workout workoutActivityType="HKWorkoutActivityTypeTraditionalStrengthTraining" '
            f'duration="1" durationUnit="hr" {AT}>\n'
            '  <MetadataEntry key="HKElevationAscended" value="1234 cm"/>\n'
            f'  <WorkoutStatistics type="{QUANTITY}ActiveEnergyBurned" {AT} {AT} sum="41.84" unit="kJ"/>\n'
            f'  <WorkoutStatistics type="{QUANTITY}HeartRate" {AT} average="120" maximum="150" unit="count/min"/>\n'
            " </Workout>"
        )
        first, second = rows(parse(export(old, new)), "workouts")
        assert (first["activity"], first["duration_seconds"], first["distance_m"]) == (
            "running",
            330,
            804.672,
        )
        assert first["active_energy_kcal"] == pytest.approx(100 / 4.184)
        assert (second["activity"], second["duration_seconds"]) == ("traditional_strength_training", 3600)
        assert second["active_energy_kcal"] == pytest.approx(10)
        assert (second["average_heart_rate_bpm"], second["max_heart_rate_bpm"]) == (120, 150)
        assert second["elevation_gain_m"] == pytest.approx(12.34)


class TestFiles:
    def test_a_broken_document_type_is_left_out_with_every_entity(self) -> None:
        head = '<!DOCTYPE HealthData [\n<!ELEMENT WorkoutStatistics (M*\n<!ENTITY lol "lol">\n]>'
        parsed = parse(export(record("HeartRate", "60", "count/min"), head=head))
        assert [(row["value"], row["line"]) for row in rows(parsed)] == [(60, 7)]
        bomb = parse(
            export(
                record("HeartRate", "&lol;", "count/min"), record("HeartRate", "6", "count/min"), head=head
            )
        )
        assert refused(bomb) == [("malformed_xml", "line 7")]
        assert [row["value"] for row in rows(bomb)] == [6]

    def test_what_is_no_xml_costs_the_record_it_is_in(self) -> None:
        good = record("HeartRate", "60", "count/min")
        content = export(
            good,
            good.replace("Ada", "A\x0bd&#11;a"),
            good.replace('value="60"', 'value="60" value="61"'),
            good,
            " <Record type=HKQuantityTypeIdentifierHeartRate/>",
            ' <Correlation type="HKCorrelationTypeIdentifierFood">',
            good.replace("value", "<value"),
            " </Correlation>",
            good,
        ).replace(b"Ada", b"Ad\xe9", 1)
        parsed = parse(content)
        assert refused(parsed) == [("malformed_xml", f"line {line}") for line in (6, 8, 10)]
        assert [row["line"] for row in rows(parsed)] == [4, 5, 7, 12]
        assert rows(parsed)[1]["device"].startswith("Ada")

    def test_a_tag_that_is_never_closed_costs_itself_alone(self) -> None:
        good = record("HeartRate", "60", "count/min").replace('device="', 'sourceVersion="1" device="')
        parsed = parse(export(good, " <Workout", good, good))
        assert [row["line"] for row in rows(parsed)] == [4, 6, 7]
        assert refused(parsed) == [("malformed_xml", "line 6")]

    def test_a_file_that_is_cut_off_gives_what_it_holds(self) -> None:
        content = export(*[record("HeartRate", str(60 + n), "count/min") for n in range(10)])
        for cut in (
            zipped({"apple_health_export/export.xml": content}, zipfile.ZIP_STORED)[:2000],
            content[:2000],
        ):
            parsed = parse(cut)
            assert 3 <= len(rows(parsed)) < 10
            assert [reason for reason, _ in refused(parsed)][-1] == "truncated_file"
            assert "cut off" in parsed.notes[0]

    def test_a_packed_file_that_is_cut_off_or_damaged(self) -> None:
        buffer = io.StringIO()
        exported = dt.datetime(2026, 9, 1, tzinfo=dt.timezone(dt.timedelta(hours=2)))
        days = dt.date(2026, 8, 20), dt.date(2026, 8, 22)
        count = write_apple_health(person("ben"), *days, buffer, exported=exported)
        whole = zipped({"apple_health_export/export.xml": buffer.getvalue().encode()})
        assert parse(whole).records_loaded == count
        for bad in (whole[: len(whole) // 2], whole[:9000] + bytes(50) + whole[9050:]):
            parsed = parse(bad)
            assert 0 < parsed.records_loaded < count
            assert ("truncated_file") in {reason for reason, _ in refused(parsed)}

    @pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
    def test_the_export_is_found_by_its_root_whatever_its_name(self, method: int) -> None:
        content = export(record("HeartRate", "60", "count/min"))
        members = {
            "apple_health_export/export_cda.xml": b"<?xml version='1.0'?><ClinicalDocument/>" + bytes(9000),
            "apple_health_export/workout-routes/route.gpx": b"<gpx/>",
            "apple_health_export/eksport.xml": content,
        }
        archive = zipped(members, method)
        assert registry.recognise(archive[:65536]).name == "apple_health"
        assert parse(archive).records_loaded == 1
        piped = RawFile("records", Pipe(archive), RECEIVED, None)  # type: ignore[arg-type]
        assert sum(part.records_loaded for part in apple_health.parse_stream(piped)) == 1

    def test_a_zip_written_to_a_pipe_has_its_sizes_behind(self) -> None:
        class Unseekable(io.BytesIO):
            def seekable(self) -> bool:
                return False

            def seek(self, *_: int) -> int:
                raise OSError

            def tell(self) -> int:
                raise OSError

        buffer = Unseekable()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:  # type: ignore[arg-type]
            archive.writestr("apple_health_export/cda.xml", b"<ClinicalDocument/>")
            archive.writestr("apple_health_export/export.xml", export(record("HeartRate", "60", "count/min")))
        assert parse(buffer.getvalue()).records_loaded == 1

    def test_archives_that_are_not_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(UnreadableFileError, match="no Apple Health export"):
            parse(zipped({"apple_health_export/notes.txt": b"nothing"}))
        encrypted = bytearray(zipped({"apple_health_export/export.xml": b"x" * 100}))
        encrypted[6] |= 1
        with pytest.raises(UnreadableFileError, match="encrypted"):
            parse(bytes(encrypted))
        monkeypatch.setattr(_zip_stream, "_RATIO_COUNTS_FROM", 2**24)
        bomb = zipped({"apple_health_export/export.xml": b"<HealthData>\n" + b" " * 2**27})
        with pytest.raises(UnreadableFileError, match="unpacks to more"):
            parse(bomb)

    @given(st.binary(max_size=400), st.integers(0, 3000), st.integers(0, 3000))
    @settings(max_examples=150, deadline=None)
    def test_no_damage_makes_it_crash_or_lose_count(self, junk: bytes, first: int, last: int) -> None:
        content = export(*[record("HeartRate", str(60 + n), "count/min") for n in range(12)])
        for whole in (content, zipped({"apple_health_export/export.xml": content})):
            damaged = whole[:first] + junk + whole[max(last, first) :]
            try:
                parsed = parse(damaged)
            except UnreadableFileError:
                continue
            assert parsed.records_in == parsed.records_loaded + parsed.quarantine.num_rows + sum(
                parsed.skipped.values()
            )

    def test_parts_are_small_however_large_the_file(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(apple_health, "_BATCH_RECORDS", 500)
        line = record("HeartRate", "60", "count/min").encode() + b"\n"

        class Endless(io.RawIOBase):
            rest = b"<HealthData>\n"

            def readable(self) -> bool:
                return True

            def readinto(self, buffer: Any) -> int:
                self.rest = self.rest or line
                count = min(len(buffer), len(self.rest))
                buffer[:count], self.rest = self.rest[:count], self.rest[count:]
                return count

        stream: BinaryIO = io.BufferedReader(Endless())
        parts = apple_health.parse_stream(RawFile("records", stream, RECEIVED, None))
        for _ in range(20):
            part = next(parts)
            assert 500 <= part.records_loaded < 20_000


NAMES = st.sampled_from(["Ada\u2019s\u00a0Watch", "R&amp;D &quot;x&quot;", "a &#8211; b", "Health Mate"])
DEVICES = st.sampled_from(
    [
        None,
        "no comma",
        "&lt;&lt;HKDevice: 0x1&gt;, name:Watch, hardware:Watch6,2, software:10.1&gt;",
        "x, hardware:R&amp;D, model:a&gt;",
    ]
)
KINDS = st.sampled_from(
    ["HeartRate", "BloodGlucose", "OxygenSaturation", "StepCount", "WalkingSpeed", "NoSuch"]
)
UNITS = st.sampled_from([None, "count/min", "mmol&lt;180.155&gt;/L", "%", "mg/dL"])
STARTS = st.sampled_from(
    ["2026-07-01 08:00:00 +0200", "2026-03-29 02:30:00 +0100", "2026-02-30 08:00:00 +0100", "yesterday"]
)
ENDS = st.sampled_from(
    ["2026-07-01 08:05:00 +0200", "2026-03-29 02:31:00 +0100", "1500-01-01 00:00:00 +0000"]
)
WRITTEN = st.sampled_from([None, "60", " 5.5 ", "0.97", "six", "1e400"])
METADATA = st.sampled_from(
    [
        ("HKTimeZone", "America/New_York"),
        ("HKTimeZone", "Nowhere/At_All"),
        ("HKWasUserEntered", "1"),
        ("HKBloodGlucoseMealTime", "2"),
        ("com.example.note", "a &lt; b"),
    ]
)


@st.composite
def plain_records(draw: st.DrawFn) -> str:
    """A record as phones write it, on one line or with its metadata on lines of their own."""
    attributes = {
        "sourceVersion": draw(st.sampled_from([None, "10.1"])),
        "device": draw(DEVICES),
        "unit": draw(UNITS),
        "creationDate": draw(st.sampled_from([None, "2026-07-01 08:05:00 +0200"])),
        "startDate": draw(STARTS),
        "endDate": draw(ENDS),
        "value": draw(WRITTEN),
    }
    said = "".join(f' {name}="{text}"' for name, text in attributes.items() if text is not None)
    metadata = draw(st.lists(METADATA, max_size=2, unique_by=lambda entry: entry[0]))
    entries = [f'\n  <MetadataEntry key="{key}" value="{value}"/>' for key, value in metadata]
    end = f">{''.join(entries)}\n </Record>" if metadata else "/>"
    return f' <Record type="{QUANTITY}{draw(KINDS)}" sourceName="{draw(NAMES)}"{said}{end}'


OTHER_LINES = st.sampled_from(
    [
        "",
        ' <Correlation type="HKCorrelationTypeIdentifierBloodPressure">',
        " </Correlation>",
        ' <ActivitySummary dateComponents="2026-07-01"/>',
        f' <Record type="{QUANTITY}HeartRate" value="1 < 2"/>',
        f' <Workout workoutActivityType="HKWorkoutActivityTypeRunning" {AT}>\n  <WorkoutStatistics '
        f'type="{QUANTITY}HeartRate" {AT} average="140" unit="count/min"/>\n </Workout>',
        f' <Record type="{QUANTITY}HeartRate" {AT} value="61" unit="count/min">\n  <HeartRateVariability'
        'MetadataList>\n   <InstantaneousBeatsPerMinute bpm="60"/>\n  </HeartRateVariabilityMetadataList>\n </Record>',
    ]
)


@given(
    st.lists(st.one_of(plain_records(), OTHER_LINES), max_size=12), st.sampled_from([None, "Europe/Berlin"])
)
@settings(max_examples=200, deadline=None)
def test_the_way_records_are_written_makes_no_difference(elements: list[str], zone: str | None) -> None:
    """Those on lines of their own are read by an expression, what is written otherwise by a parser of XML."""
    content = export(*elements)

    fast, by_parser = parse(content, zone), parse(re.sub(rb" (startDate|endDate)=", rb"  \1=", content), zone)

    assert fast.tables == by_parser.tables
    assert fast.quarantine == by_parser.quarantine
    assert (fast.records_in, fast.records_loaded) == (by_parser.records_in, by_parser.records_loaded)
    assert (fast.skipped, fast.notes) == (by_parser.skipped, by_parser.notes)


class TestRealFiles:
    """What others have published, counted by another reader."""

    @pytest.mark.parametrize("name", ["export_dogsheep.xml", "export_dogsheep_zipcontents.xml"])
    def test_the_same_records_as_a_plain_reader_finds(self, name: str) -> None:
        content = shared(f"apple_health/{name}")
        said = Counter(re.findall(rb"<(Record|Workout|ActivitySummary) ", content))
        values = sorted(float(value) for value in re.findall(rb'<Record [^>]*\bvalue="([^"]*)"', content))
        parsed = parse(content, "America/Los_Angeles")
        assert registry.recognise(content[:65536]).name == "apple_health"
        assert len(rows(parsed)) == said[b"Record"]
        assert len(rows(parsed, "workouts")) == said[b"Workout"]
        assert parsed.skipped == {"activity_summary": said[b"ActivitySummary"]}
        assert sorted(row["value"] for row in rows(parsed)) == values
        assert parsed.quarantine.num_rows == 0
        (workout,) = rows(parsed, "workouts")
        assert workout["distance_m"] == pytest.approx(0.4971749504535062 * 1609.344)
        assert (workout["utc_offset_minutes"], workout["utc_offset_source"]) == (-480, "record")
