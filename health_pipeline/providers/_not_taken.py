"""Kinds of files that are known and not read: what they are, why, and the way out."""

from __future__ import annotations

import re

_KINDS = (
    (
        re.compile(r"com\.samsung\.s?health\.[a-z_.]+"),
        "an export of Samsung Health, whose format cannot be confirmed: whether its times are UTC or local, open "
        "readers of it disagree. Let Samsung Health write to Health Connect and upload the export of that",
    ),
    (
        re.compile(r'"dataSourceId"\s*:\s*"(?:raw|derived):com\.google\.'),
        "an answer of Google Fit's API, which closes and has no route here; let Google Fit write to Health Connect "
        "and upload Health Connect's export",
    ),
    (
        re.compile(r'"(?:AR|BP|BG|SR|BO|SPORT|Weight)DataList"\s*:\s*\['),
        "an answer of iHealth's API, which has no route here; let the iHealth app write to Apple Health or Health "
        "Connect and upload the export of that",
    ),
)


def why_not(head: bytes) -> str | None:
    """What a file that starts so is, and what to do instead; None for what is not known either."""
    text = head.decode("utf-8", "replace")
    return next((words for mark, words in _KINDS if mark.search(text)), None)
