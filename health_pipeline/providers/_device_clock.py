"""The UTC offset of a record that says its instant and what a clock showed, without saying the offset."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

_MINUTE_US = 60_000_000
#: The only offsets in use that are not whole half hours: Nepal, Eucla, the Chatham Islands.
_QUARTER_OFFSETS = (345, 525, 765, 825)
EARLIEST_OFFSET, LATEST_OFFSET = -12 * 60, 14 * 60


def derived_offsets(system: pa.ChunkedArray, display: pa.ChunkedArray) -> pa.ChunkedArray:
    """Minutes east of UTC by which a wearer's clock was ahead of the instant, as a zone would have it.

    A clock set by hand is minutes off, hence the nearest half hour; only what fits one of the odd zones within
    two minutes is taken for it. Null where no zone is that far from UTC, or one of the two is missing.
    """
    known = pc.and_(pc.is_valid(system), pc.is_valid(display))
    apart = pc.fill_null(pc.subtract(display.cast(pa.int64()), system.cast(pa.int64())), 0)
    minutes: npt.NDArray[np.float64] = apart.to_numpy() / _MINUTE_US
    offsets = np.rint(minutes / 30) * 30
    for odd in _QUARTER_OFFSETS:
        offsets[np.abs(minutes - odd) <= 2] = odd
    real = (offsets >= EARLIEST_OFFSET) & (offsets <= LATEST_OFFSET)
    good = pc.and_(pa.chunked_array([pa.array(real)]), known)
    whole = pa.array(np.where(real, offsets, 0).astype(np.int16))
    return pc.if_else(good, pa.chunked_array([whole]), pa.scalar(None, pa.int16()))
