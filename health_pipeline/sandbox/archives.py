"""Zip archives with the same bytes each time."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping

_WRITTEN = (2026, 9, 5, 12, 0, 0)


def pack(members: Mapping[str, bytes]) -> bytes:
    """An archive of these members, in their order, packed by no version of anything."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name, _WRITTEN), content)
    return packed.getvalue()
