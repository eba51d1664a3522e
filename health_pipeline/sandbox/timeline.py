"""Where a person is, and what a "day" is for them.

A day starts at 04:00 on the wall clock where the person then is. Travel and clock changes make days longer or
shorter than 24 hours; a flight over the date line skips a date or stretches one.
"""

from __future__ import annotations

import bisect
import datetime as dt
import threading
from functools import lru_cache
from zoneinfo import ZoneInfo

from health_pipeline.sandbox import noise
from health_pipeline.sandbox.people import EPOCH, Person, Travel

#: Local hour at which a day starts.
DAY_START_HOUR = 4


@lru_cache(maxsize=64)
def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)


def _instant(day: dt.date, hour: int, minute: int, zone: ZoneInfo) -> int:
    return int(dt.datetime(day.year, day.month, day.day, hour, minute, tzinfo=zone).timestamp())


class Timeline:
    """Zones and day starts of one person. Instants are epoch seconds."""

    def __init__(self, person: Person) -> None:
        self._person = person
        self._home = _zone(person.zone)
        self._lock = threading.Lock()
        self._changes: list[int] = []
        self._zones: list[ZoneInfo] = [self._home]
        self._starts: dict[dt.date, int | None] = {}

    def _plan_until(self, instant: int) -> None:
        travel = self._person.travel
        if travel is None or self._planned(instant):
            return
        with self._lock:
            while not self._planned(instant):
                self._plan_journey(travel)

    def _planned(self, instant: int) -> bool:
        travel = self._person.travel
        assert travel is not None
        return bool(self._changes) and self._changes[-1] >= instant + travel.every_days * 86_400

    def _plan_journey(self, travel: Travel) -> None:
        away = _zone(travel.zone)
        number = len(self._changes) // 2
        stream = noise.key(self._person.seed, self._person.handle, "travel")
        wait = 14 + int(noise.uniform(stream, number, 1)[0] * 14)
        leave = EPOCH + dt.timedelta(days=number * travel.every_days + wait)
        back = leave + dt.timedelta(days=travel.days)
        if travel.date_line:
            # Inside the only hours in which neither zone passes 04:00 a second time on the same date.
            out_at = _instant(leave, 5, 30, away)
            back_at = _instant(back, 22, 0, away)
        else:
            out_at = _instant(leave, 15, 0, away)
            back_at = _instant(back, DAY_START_HOUR, 0, self._home)
        # Readers look up a change first and its zone second.
        self._zones += [away, self._home]
        self._changes += [out_at, back_at]

    def zone_at(self, instant: float) -> ZoneInfo:
        """The zone whose wall clock the person reads at this instant."""
        self._plan_until(int(instant))
        return self._zones[bisect.bisect_right(self._changes, instant)]

    def local(self, instant: float) -> dt.datetime:
        """The wall-clock time, with its offset."""
        return dt.datetime.fromtimestamp(instant, self.zone_at(instant))

    def offset_seconds(self, instant: float) -> int:
        """Seconds east of UTC on the person's clock."""
        offset = self.local(instant).utcoffset()
        return 0 if offset is None else int(offset.total_seconds())

    def start(self, day: dt.date) -> int | None:
        """When the person's day of this date starts; None for a date they never lived (date line)."""
        if day not in self._starts:
            self._starts[day] = self._find_start(day)
        return self._starts[day]

    def _find_start(self, day: dt.date) -> int | None:
        zones = [self._home]
        if self._person.travel is not None:
            zones.append(_zone(self._person.travel.zone))
        for zone in zones:
            instant = _instant(day, DAY_START_HOUR, 0, zone)
            if self.zone_at(instant) is zone:
                return instant
        return None

    def end(self, day: dt.date) -> int:
        """When the next day that is lived starts."""
        for ahead in (1, 2, 3):
            start = self.start(day + dt.timedelta(days=ahead))
            if start is not None:
                return start
        raise AssertionError("no flight skips three dates")
