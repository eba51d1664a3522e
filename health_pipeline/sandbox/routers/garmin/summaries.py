"""Garmin's summaries of one person, as a watch and a scale upload them, in the shapes the vendor sends.

A watch is synced in the morning and in the evening, on some days not at all. Each sync uploads what is new and,
again under its old id, what has grown since: the day under way, the 15 minutes under way, a night.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from statistics import fmean
from typing import Any

import numpy as np

from health_pipeline.sandbox import body, noise
from health_pipeline.sandbox.activity import Flags, Ints
from health_pipeline.sandbox.life import Day, Life, Workout
from health_pipeline.sandbox.night import (
    AWAKE,
    DEEP,
    EPOCH_SECONDS,
    LIGHT,
    REM,
    SAMPLE_SECONDS,
    Night,
    nights,
)
from health_pipeline.sandbox.routers.garmin.watch import (
    EPOCH_LENGTH,
    SEDENTARY,
    STRESS_STEP,
    TYPE_OF,
    TYPES,
    Stretch,
    Watch,
)

Payload = dict[str, Any]

_SPO2_STEP = 900
#: Who walks so much has, on the way, climbed a floor.
STEPS_A_FLOOR = 620

_INTENSITIES = ((6.0, "HIGHLY_ACTIVE"), (1.5, "ACTIVE"), (0.0, "SEDENTARY"))
_LEVELS = {DEEP: "deep", LIGHT: "light", REM: "rem", AWAKE: "awake"}


class Summaries(Watch):
    """Everything that a person's devices upload; `edits` holds, by day, how often and when a night was edited."""

    def __init__(self, life: Life) -> None:
        super().__init__(life)
        self.edits: dict[dt.date, tuple[int, int]] = {}

    # Parts of summaries

    def _id(self, kind: str, start: int, part: object = "") -> str:
        return f"x{self.person.uuid('garmin', kind, part)[:8]}-{start:x}"

    def _placed(self, kind: str, start: int, seconds: int, part: object = "") -> Payload:
        return {
            "summaryId": self._id(kind, start, part),
            "startTimeInSeconds": start,
            "startTimeOffsetInSeconds": self.offset(start),
            "durationInSeconds": seconds,
        }

    def _nights(self, start: int, end: int) -> Iterator[tuple[Day, Night]]:
        """Nights, and sleeps in an aircraft, that the watch saw and that ended after `start`, by `end`."""
        for day in self.days(start, end):
            for night in nights(self.life, day):
                if start < night.wake <= end and self.seen(day, night):
                    yield day, night

    @staticmethod
    def seen(day: Day, night: Night) -> bool:
        """Whether the watch saw a night, or a sleep in an aircraft; of naps it makes no night."""
        if night.kind == "main":
            return day.night_worn
        return night.kind == "flight" and not any(a < night.wake and b > night.bed for a, b in day.off)

    # Days

    def epochs(self, before: int, sync: int) -> list[Payload]:
        """Rows of each 15 minutes and kind of activity; those under way at the sync are shorter."""
        until = sync // 60 * 60
        found: list[Payload] = []
        for stretch in self.stretches(before, until):
            end = min(stretch.end, until)
            rows, energy, seen = self._epoch_sums(stretch, end)
            for slot, kind in zip(*np.nonzero(seen), strict=True):
                start = stretch.start + int(slot) * EPOCH_LENGTH
                if start + EPOCH_LENGTH <= before:
                    continue
                seconds, steps, met = (float(rows[name][slot, kind]) for name in ("seconds", "steps", "met"))
                met /= seconds / 60
                found.append(
                    self._placed("epoch", start, min(EPOCH_LENGTH, end - start), kind)
                    | {
                        "activityType": TYPES[kind],
                        "activeTimeInSeconds": 0 if kind == SEDENTARY else int(seconds),
                        "steps": int(steps),
                        "distanceInMeters": round(steps * body.step_length(self.person), 2),
                        "activeKilocalories": int(energy[slot, kind]),
                        "met": round(met, 7),
                        "intensity": next(name for least, name in _INTENSITIES if met >= least),
                        "meanMotionIntensity": round(min(met, 7.0), 2),
                        "maxMotionIntensity": round(min(met + 2, 7.0), 2),
                    }
                )
        return found

    def _epoch_sums(self, stretch: Stretch, end: int) -> tuple[dict[str, noise.Floats], Ints, Flags]:
        """Sums by 15 minutes and kind; energy in whole kcal that add up to the day's."""
        seen = self.minutes(stretch.start, end)
        part = seen.part(stretch.start, end)
        worn, kinds = seen.worn[part], len(TYPES)
        slots = -(-(end - stretch.start) // EPOCH_LENGTH)
        place = np.arange(worn.size) // 15 * kinds + seen.kind[part]

        def total(values: np.ndarray) -> noise.Floats:
            sums = np.bincount(place[worn], weights=values[worn], minlength=slots * kinds)
            return np.asarray(sums, dtype=np.float64).reshape(slots, kinds)

        rows = {
            "seconds": total(np.full(worn.size, 60.0)),
            "steps": total(seen.steps[part].astype(np.float64)),
            "met": total(seen.met[part]),
        }
        exact = total(seen.kcal[part]).ravel()
        # Nothing is lost to rounding: each row has what the whole has grown by.
        grown = np.diff(np.rint(np.cumsum(exact)), prepend=0.0).astype(np.int64)
        has_rows = rows["seconds"] > 0
        first = has_rows.argmax(axis=1)
        energy: Ints = np.zeros((slots, kinds), dtype=np.int64)
        np.add.at(energy, (np.arange(slots), first), grown.reshape(slots, kinds).sum(axis=1))
        return rows, energy, has_rows

    def dailies(self, before: int, sync: int) -> list[Payload]:
        until = sync // 60 * 60
        stretches = self.stretches(before, until)
        found = (self.daily(stretch, min(stretch.end, until)) for stretch in stretches)
        return [daily for daily in found if daily is not None]

    def daily(self, stretch: Stretch, end: int) -> Payload | None:
        """The day from its midnight to `end`; None where the watch saw nothing of it."""
        seen = self.minutes(stretch.start, end)
        part = seen.part(stretch.start, end)
        worn = seen.worn[part]
        if not worn.any():
            return None
        steps = int(seen.steps[part][worn].sum())
        met = np.where(worn, seen.met[part], 0.0)
        pulse = self.pulse(stretch.start, end)
        basal = body.basal_kcal(self.person, stretch.date) * worn.size / 1440
        stress = self.stress(stretch.start, end)
        measured = stress[stress >= 0]
        payload = self._placed("daily", stretch.start, end - stretch.start) | {
            "calendarDate": stretch.date.isoformat(),
            "activityType": "WALKING",
            "activeKilocalories": round(float(seen.kcal[part][worn].sum())),
            "bmrKilocalories": round(basal),
            "steps": steps,
            "distanceInMeters": round(steps * body.step_length(self.person), 1),
            "activeTimeInSeconds": int((worn & (seen.kind[part] != SEDENTARY)).sum()) * 60,
            "floorsClimbed": steps // STEPS_A_FLOOR,
            "moderateIntensityDurationInSeconds": int(((met >= 3.0) & (met < 6.0)).sum()) * 60,
            "vigorousIntensityDurationInSeconds": int((met >= 6.0).sum()) * 60,
            "averageStressLevel": round(float(measured.mean())) if measured.size > 60 else -1,
            "maxStressLevel": int(measured.max()) if measured.size else -1,
            "stepsGoal": self.person.daily_steps,
            "intensityDurationGoalInSeconds": 1800,
            "floorsClimbedGoal": 10,
        }
        payload |= {
            f"{name}StressDurationInSeconds": int(((measured >= least) & (measured <= most)).sum())
            * STRESS_STEP
            for name, least, most in (("rest", 0, 25), ("low", 26, 50), ("medium", 51, 75), ("high", 76, 100))
        }
        payload["stressDurationInSeconds"] = int((measured > 25).sum()) * STRESS_STEP
        payload["activityStressDurationInSeconds"] = int((stress == -2).sum()) * STRESS_STEP
        if pulse:
            week = [bpm for time, bpm in self.pulse(stretch.start - 6 * 86_400, end)]
            payload |= {
                "minHeartRateInBeatsPerMinute": min(bpm for _, bpm in pulse),
                "maxHeartRateInBeatsPerMinute": max(bpm for _, bpm in pulse),
                "averageHeartRateInBeatsPerMinute": round(fmean(week)),
                "timeOffsetHeartRateSamples": {str(time - stretch.start): bpm for time, bpm in pulse},
            }
        day = self.life.day(stretch.date)
        if day is not None and day.night_worn and stretch.start <= day.wake < end:
            main = next(night for night in nights(self.life, day) if night.kind == "main")
            payload["restingHeartRateInBeatsPerMinute"] = main.lowest_heart_rate
        return payload

    def stress_details(self, before: int, sync: int) -> list[Payload]:
        until = sync // STRESS_STEP * STRESS_STEP
        found = []
        for stretch in self.stretches(before, until):
            end = min(stretch.end, until)
            stress = self.stress(stretch.start, end).tolist()
            found.append(
                self._placed("stress", stretch.start, end - stretch.start)
                | {
                    "calendarDate": stretch.date.isoformat(),
                    "timeOffsetStressLevelValues": {
                        str(STRESS_STEP * number): level for number, level in enumerate(stress)
                    },
                    "timeOffsetBodyBatteryValues": {
                        str(STRESS_STEP * number): self.battery(stretch.start + STRESS_STEP * number)
                        for number in range(0, len(stress), 5)
                    },
                }
            )
        return found

    def respirations(self, before: int, sync: int) -> list[Payload]:
        """A summary each 15 minutes, a value each 3 minutes; -1 where none could be had."""
        start, end = before // EPOCH_LENGTH * EPOCH_LENGTH, sync // EPOCH_LENGTH * EPOCH_LENGTH
        if start >= end:
            return []
        seen = self.minutes(start, end)
        part = seen.part(start, end)
        key = noise.key(self.person.seed, self.person.handle, "garmin breath")
        wander = noise.smooth(key, start // STRESS_STEP, (end - start) // STRESS_STEP, 10)
        usual = self.person.resting_heart_rate / 4
        met, worn = seen.met[part][::3], seen.worn[part][::3]
        values = np.round(usual + 0.8 * wander + np.where(seen.asleep[part][::3], 0.0, 1.5 * met), 2)
        values[~worn | (met >= 6.0)] = -1.0
        return [
            self._placed("respiration", start + EPOCH_LENGTH * number, EPOCH_LENGTH)
            | {"timeOffsetEpochToBreaths": {str(180 * n): value for n, value in enumerate(row)}}
            for number, row in enumerate(values.reshape(-1, 5).tolist())
        ]

    # Nights

    def sleeps(self, before: int, sync: int) -> list[Payload]:
        """Nights: tentative at the first sync, final at the next one, and again when a nap or an edit is added."""
        last = self.syncs(before, before + 1)
        earlier = last[0][1] if last else before - 86_400
        found: dict[str, Payload] = {}
        for day, night in self._nights(earlier, sync):
            tentative = night.wake > before
            found[night.kind + str(night.wake)] = self._sleep(day, night, sync, tentative)
        for day in self.days(before, sync):
            if day.nap and before < day.nap[1] <= sync:
                for of_day, night in self._nights(day.wake - 1, day.wake):
                    payload = self._sleep(of_day, night, sync, night.wake > before)
                    found[night.kind + str(night.wake)] = payload
        return list(found.values())

    def _sleep(self, day: Day, night: Night, until: int, tentative: bool) -> Payload:
        edits, edited_at = self.edits.get(day.date, (0, 0)) if night.kind == "main" else (0, 0)
        edited = edits > 0 and edited_at <= until
        if edited:
            night = night.edited(25 * edits)
        seconds = {name: night.seconds_of(stage) for stage, name in _LEVELS.items() if stage != AWAKE}
        levels = _levels(night)
        if tentative:
            # The first guess knows no REM sleep.
            seconds = {"deep": seconds["deep"], "light": seconds["light"] + seconds["rem"], "rem": 0}
            levels = {name: spans for name, spans in levels.items() if name != "rem"}
        summary = self._placed("sleep", day.bed if night.kind == "main" else night.bed, night.time_in_bed)
        summary |= {
            "startTimeInSeconds": night.bed,
            "startTimeOffsetInSeconds": self.offset(night.bed),
            "calendarDate": self.date(night.wake).isoformat(),
            "unmeasurableSleepDurationInSeconds": 0,
            "deepSleepDurationInSeconds": seconds["deep"],
            "lightSleepDurationInSeconds": seconds["light"],
            "remSleepInSeconds": seconds["rem"],
            "awakeDurationInSeconds": night.awake_time,
            "sleepLevelsMap": levels,
            "validation": "AUTO_TENTATIVE" if tentative else "AUTO_MANUAL" if edited else "AUTO_FINAL",
            "timeOffsetSleepRespiration": {
                str(at): round(night.breath + (0.25 if at // SAMPLE_SECONDS % 2 else -0.25), 2)
                for at in range(0, night.time_in_bed // 600 * 600, SAMPLE_SECONDS)
            },
            "timeOffsetSleepSpo2": self._spo2(day, night),
        }
        if not tentative:
            score = max(1, min(100, round(night.total_sleep / 290)))
            word = (
                "EXCELLENT" if score >= 90 else "GOOD" if score >= 80 else "FAIR" if score >= 60 else "POOR"
            )
            summary["overallSleepScore"] = {"value": score, "qualifierKey": word}
        if night.kind == "main" and day.nap and day.nap[1] <= until:
            summary["naps"] = [
                {
                    "napDurationInSeconds": day.nap[1] - day.nap[0],
                    "napStartTimeInSeconds": day.nap[0],
                    "napOffsetInSeconds": self.offset(day.nap[0]),
                    "napValidation": "DEVICE",
                }
            ]
        return summary

    def edited_sleeps(self, start: int, end: int) -> list[Payload]:
        """Nights that their owner edited between two instants, as they then stood."""
        found = []
        for date, (_, when) in self.edits.items():
            day = self.life.day(date)
            if day is not None and start <= when < end:
                main = next(night for night in nights(self.life, day) if night.kind == "main")
                found.append(self._sleep(day, main, when, False))
        return found

    def _spo2(self, day: Day, night: Night) -> dict[str, int]:
        count = night.time_in_bed // _SPO2_STEP
        key = noise.key(self.person.seed, self.person.handle, "garmin spo2", day.date, night.kind)
        values = body.spo2(self.life, day) + 0.8 * noise.normal(key, 0, count)
        rounded = np.clip(np.rint(values), 80, 100).astype(int).tolist()
        return {str(_SPO2_STEP * number): value for number, value in enumerate(rounded)}

    def pulse_ox(self, before: int, sync: int) -> list[Payload]:
        return [
            self._placed("pulse ox", night.bed, night.time_in_bed)
            | {
                "calendarDate": self.date(night.wake).isoformat(),
                "timeOffsetSpo2Values": self._spo2(day, night),
                "onDemand": False,
            }
            for day, night in self._nights(before, sync)
        ]

    def hrv(self, before: int, sync: int) -> list[Payload]:
        found = []
        for _, night in self._nights(before, sync):
            values = {
                str(SAMPLE_SECONDS * number): int(value)
                for number, value in enumerate(night.hrv.tolist())
                if value == value
            }
            found.append(
                self._placed("hrv", night.bed, night.time_in_bed)
                | {
                    "calendarDate": self.date(night.wake).isoformat(),
                    "lastNightAvg": night.average_hrv,
                    "lastNight5MinHigh": max(values.values()),
                    "hrvValues": values,
                }
            )
        return found

    def skin_temperatures(self, before: int, sync: int) -> list[Payload]:
        return [
            self._placed("skin", night.bed, night.time_in_bed)
            | {
                "calendarDate": self.date(night.wake).isoformat(),
                "avgDeviationCelsius": round(day.temperature, 2),
            }
            for day, night in self._nights(before, sync)
            if night.kind == "main"
        ]

    # Mornings

    def _woken(self, before: int, sync: int) -> Iterator[Day]:
        return (day for day in self.days(before, sync) if before < day.wake <= sync)

    def user_metrics(self, before: int, sync: int) -> list[Payload]:
        """VO2max and fitness age, each third morning."""
        return [
            {
                "summaryId": self._id("user metrics", day.start),
                "calendarDate": day.date.isoformat(),
                "vo2Max": round(body.fitness(self.life, day.date), 1),
                "fitnessAge": self.fitness_age(day.date),
                "enhanced": False,
            }
            for day in self._woken(before, sync)
            if day.index % 3 == 0
        ]

    def fitness_age(self, date: dt.date) -> int:
        return max(18, round(self.person.age(date) + 0.8 * (40 - body.fitness(self.life, date)) / 2))

    def weigh_ins(self, start: int, end: int) -> list[body.WeighIn]:
        """Those after `start`, by `end`."""
        found = (body.weigh_in(self.life, day) for day in self.days(start, end))
        return [one for one in found if one is not None and start < one.instant <= end]

    def _measured(self, kind: str, instant: int) -> Payload:
        return {
            "summaryId": self._id(kind, instant),
            "measurementTimeInSeconds": instant,
            "measurementTimeOffsetInSeconds": self.offset(instant),
        }

    def body_comps(self, before: int, sync: int) -> list[Payload]:
        return [
            self._measured("scale", one.instant)
            | {
                "weightInGrams": round(1000 * one.weight),
                "muscleMassInGrams": round(1000 * one.muscle),
                "boneMassInGrams": round(1000 * one.bone),
                "bodyWaterInPercent": round(100 * one.water / one.weight, 1),
                "bodyFatInPercent": one.fat_percent,
                "bodyMassIndex": round(one.weight / self.person.height_m**2, 1),
            }
            for one in self.weigh_ins(before, sync)
        ]

    def blood_pressures(self, before: int, sync: int) -> list[Payload]:
        return [
            self._measured("cuff", one.instant)
            | {
                "systolic": one.systolic,
                "diastolic": one.diastolic,
                "pulse": one.pulse,
                "sourceType": "DEVICE",
            }
            for one in self.weigh_ins(before, sync)
        ]

    def health_snapshots(self, before: int, sync: int) -> list[Payload]:
        """Two minutes of sitting still, each fifth morning."""
        found = []
        for day in self._woken(before - 1800, sync - 1800):
            if day.index % 5 != 2:
                continue
            start = day.wake + 1200
            rate = round(day.resting_heart_rate) + 8
            series = {str(at): rate + at // 10 % 3 for at in range(0, 120, 10)}
            summaries = [
                {
                    "summaryType": "heart_rate",
                    "minValue": float(min(series.values())),
                    "maxValue": float(max(series.values())),
                    "avgValue": round(fmean(series.values()), 1),
                    "epochSummaries": series,
                },
                {"summaryType": "rmssd_hrv", "avgValue": round(day.hrv * 0.8, 1)},
                {"summaryType": "sdrr_hrv", "avgValue": round(day.hrv * 1.1, 1)},
                {
                    "summaryType": "stress",
                    "minValue": 18.0,
                    "maxValue": 24.0,
                    "avgValue": 21.0,
                    "epochSummaries": {"0": 18, "60": 24, "120": -1},
                },
            ]
            found.append(
                self._placed("snapshot", start, 120)
                | {"calendarDate": day.date.isoformat(), "summaries": summaries}
            )
        return found

    # Activities

    def workouts(self, start: int, end: int) -> list[Workout]:
        """Those that ended after `start`, by `end`."""
        return [done for day in self.days(start, end) for done in day.workouts if start < done.end <= end]

    def _activity(self, done: Workout) -> Payload:
        number = int(self.person.uuid("garmin", "activity", done.start)[:8], 16) + 10**10
        pulse = [bpm for _, bpm in self.pulse(done.start, done.end)]
        seen = self.minutes(done.start, done.end)
        part = seen.part(done.start, done.end)
        speed = {"running": 0.29, "walking": 0.36, "cycling": 0.62, "hiking": 0.22}.get(done.activity)
        payload = {
            "summaryId": str(number),
            "activityId": number,
            "activityName": done.activity.replace("_", " ").title(),
            "startTimeInSeconds": done.start,
            "startTimeOffsetInSeconds": self.offset(done.start),
            "durationInSeconds": done.end - done.start,
            "activityType": TYPES[TYPE_OF[done.activity]],
            "activeKilocalories": round(float(seen.kcal[part].sum())),
            "steps": int(seen.steps[part].sum()),
            "deviceName": "Forerunner 965",
            "manual": False,
            "isWebUpload": False,
        }
        if speed is not None:
            payload |= {
                "distanceInMeters": round(speed * done.met * done.minutes * 60, 2),
                "averageSpeedInMetersPerSecond": round(speed * done.met, 3),
                "totalElevationGainInMeters": float(done.minutes),
            }
        if pulse:
            payload |= {
                "averageHeartRateInBeatsPerMinute": round(fmean(pulse)),
                "maxHeartRateInBeatsPerMinute": max(pulse),
            }
        return payload

    def activities(self, before: int, sync: int) -> list[Payload]:
        return [self._activity(done) for done in self.workouts(before, sync)]

    def activity_details(self, before: int, sync: int) -> list[Payload]:
        found = []
        for done in self.workouts(before, sync):
            summary = self._activity(done)
            samples = [
                {
                    "startTimeInSeconds": time,
                    "heartRate": bpm,
                    "clockDurationInSeconds": time - done.start,
                    "timerDurationInSeconds": time - done.start,
                }
                for time, bpm in self.pulse(done.start, done.end)
            ]
            identity, number = summary.pop("summaryId"), summary.pop("activityId")
            found.append(
                {
                    "summaryId": f"{identity}-detail",
                    "activityId": number,
                    "summary": summary,
                    "samples": samples,
                    "laps": [{"startTimeInSeconds": done.start}],
                }
            )
        return found

    def kinds(self) -> dict[str, Callable[[int, int], list[Payload]]]:
        """What a sync uploads that follows another, by the key of its bodies."""
        return {
            "dailies": self.dailies,
            "epochs": self.epochs,
            "sleeps": self.sleeps,
            "stressDetails": self.stress_details,
            "allDayRespiration": self.respirations,
            "hrv": self.hrv,
            "pulseox": self.pulse_ox,
            "skinTemp": self.skin_temperatures,
            "userMetrics": self.user_metrics,
            "bodyComps": self.body_comps,
            "bloodPressures": self.blood_pressures,
            "healthSnapshot": self.health_snapshots,
            "activities": self.activities,
            "activityDetails": self.activity_details,
        }

    def uploaded(self, kind: str, start: int, end: int) -> list[Payload]:
        """The summaries of a kind uploaded from `start` on and before `end`, each as it then stood last."""
        found: dict[str, Payload] = {}
        for sync, before in self.syncs(start, end):
            for payload in self.kinds()[kind](before, sync):
                found.pop(payload["summaryId"], None)
                found[payload["summaryId"]] = payload
        if kind == "sleeps":
            found |= {payload["summaryId"]: payload for payload in self.edited_sleeps(start, end)}
        return list(found.values())


def _levels(night: Night) -> dict[str, list[dict[str, int]]]:
    """The night's stages as spans of time by level; the last one ends with the night."""
    edges = np.flatnonzero(np.diff(night.stages)) + 1
    starts = [0, *edges.tolist()]
    ends = [*edges.tolist(), night.stages.size]
    levels: dict[str, list[dict[str, int]]] = {}
    for start, end in zip(starts, ends, strict=True):
        levels.setdefault(_LEVELS[int(night.stages[start])], []).append(
            {
                "startTimeInSeconds": night.bed + EPOCH_SECONDS * start,
                "endTimeInSeconds": min(night.bed + EPOCH_SECONDS * end, night.wake),
            }
        )
    return levels
