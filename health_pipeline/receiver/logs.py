"""The receiver's log: JSON, one line an entry, that quotes nothing a caller sent."""

from __future__ import annotations

import logging
import sys
import traceback
from types import TracebackType
from typing import TextIO

from pythonjsonlogger.orjson import OrjsonFormatter

_FIELDS = "{levelname}{name}{message}"
_NAMES = {"levelname": "level", "name": "logger"}


class _Formatter(OrjsonFormatter):
    """An exception is told by its type and where it was raised: its message may quote a row or a body."""

    def formatException(  # noqa: N802 - the name is logging's
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None],
    ) -> str:
        kind, _, trace = ei
        if kind is None:
            return ""
        frames = (f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(trace))
        return "\n".join([*frames, kind.__name__])


def log_as_json(stream: TextIO | None = None) -> None:
    """Send what this process logs to `stream` (standard error) as JSON lines."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Formatter(_FIELDS, style="{", rename_fields=_NAMES, timestamp="time"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    # Each malformed request would be a line of its own; and a URL is not for the log.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    logging.getLogger("httpx").setLevel(logging.WARNING)
