"""FIT files of a workout, as a watch writes them. Source: Garmin's FIT protocol."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from health_pipeline.sandbox import body
from health_pipeline.sandbox.life import Workout
from health_pipeline.sandbox.recorded import Recorded

#: FIT's clock starts on 31 December 1989.
_EPOCH = 631_065_600
_CRC = (
    *(0x0000, 0xCC01, 0xD801, 0x1400, 0xF001, 0x3C00, 0x2800, 0xE401),
    *(0xA001, 0x6C00, 0x7800, 0xB401, 0x5000, 0x9C01, 0x8801, 0x4400),
)
_ENUM, _UINT8, _UINT16, _UINT32 = (0x00, "B"), (0x02, "B"), (0x84, "H"), (0x86, "I")
_INVALID = {"B": 0xFF, "H": 0xFFFF, "I": 0xFFFFFFFF}
_SPORTS = {"running": 1, "cycling": 2, "strength_training": 10, "walking": 11, "hiking": 17, "yoga": 10}
#: Messages: their number, and their fields as (number, base type).
_FILE_ID = (0, ((0, _ENUM), (1, _UINT16), (4, _UINT32)))
_RECORD = (20, ((253, _UINT32), (3, _UINT8), (5, _UINT32)))
_SESSION = (
    18,
    (
        *((253, _UINT32), (2, _UINT32), (7, _UINT32), (8, _UINT32), (9, _UINT32)),
        *((5, _ENUM), (6, _ENUM), (11, _UINT16), (16, _UINT8), (17, _UINT8)),
    ),
)
_ACTIVITY = (34, ((253, _UINT32), (5, _UINT32), (1, _UINT16)))


def workout_fit(seen: Recorded, done: Workout) -> bytes:
    """A workout with a pulse at each of its samples."""
    inside = (seen.pulse_at >= done.start) & (seen.pulse_at < done.end)
    pulse = seen.pulse_of(done)
    distance = body.workout_distance(done)
    seconds = done.end - done.start
    records = [
        (at - _EPOCH, bpm, None)
        for at, bpm in zip(seen.pulse_at[inside].tolist(), seen.pulse[inside].tolist(), strict=True)
    ]
    ended = done.end - _EPOCH
    messages = [
        _messages(0, _FILE_ID, [(4, 1, done.start - _EPOCH)]),
        _messages(1, _RECORD, records),
        _messages(
            2,
            _SESSION,
            [
                (
                    *(ended, done.start - _EPOCH, 1000 * seconds, 1000 * seconds),
                    None if distance is None else round(100 * distance),
                    *(_SPORTS.get(done.activity, 0), 0, round(seen.kcal(done)), *(pulse or (None, None))),
                )
            ],
        ),
        _messages(3, _ACTIVITY, [(ended, ended + 60 * seen.offset_minutes(done.end), 1)]),
    ]
    data = b"".join(messages)
    header = struct.pack("<BBHI4s", 14, 0x20, 2195, len(data), b".FIT")
    header += struct.pack("<H", _crc(header))
    return header + data + struct.pack("<H", _crc(header + data))


def _messages(
    local: int, kind: tuple[int, Sequence[tuple[int, tuple[int, str]]]], rows: Sequence[Any]
) -> bytes:
    """A definition and its data messages; None is FIT's invalid value of the type."""
    number, fields = kind
    definition = struct.pack("<BBBHB", 0x40 | local, 0, 0, number, len(fields))
    for name, (base, code) in fields:
        definition += struct.pack("<BBB", name, struct.calcsize(code), base)
    codes = [code for _, (_, code) in fields]
    data = [
        struct.pack("<B", local)
        + b"".join(
            struct.pack(f"<{code}", _INVALID[code] if value is None else value)
            for code, value in zip(codes, row, strict=True)
        )
        for row in rows
    ]
    return definition + b"".join(data)


def _crc(content: bytes) -> int:
    crc = 0
    for byte in content:
        for nibble in (byte & 0xF, byte >> 4):
            crc = (crc >> 4) & 0x0FFF ^ _CRC[crc & 0xF] ^ _CRC[nibble]
    return crc
