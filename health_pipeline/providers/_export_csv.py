"""Tables of an export's CSV files: columns of text by name, with the line of each row."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pc_csv

from health_pipeline.providers._export_records import Ints, are_plausible
from health_pipeline.providers._local_time import CIVIL, INSTANT, NO_OFFSET, parse_times

_NUMBER = r"^[+-]?\d{1,15}(\.\d*)?([eE][+-]?\d{1,2})?$"
_BLOCK_BYTES = 8 * 1024**2
_MINUTE = 60_000_000

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Columns:
    """Rows of a file. `line` counts from 1; lines that are `broken` have another number of cells than the header."""

    columns: Mapping[str, pa.Array]
    line: Ints
    broken: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.line)

    def texts(self, name: str) -> pa.Array:
        """Trimmed texts, empty where the file has none or no such column."""
        if name not in self.columns:
            return pa.repeat(pa.scalar(""), len(self))
        return self.columns[name]

    def numbers(self, name: str) -> npt.NDArray[np.float64]:
        """Numbers, NaN where there is none."""
        texts = self.texts(name)
        given = pc.if_else(pc.match_substring_regex(texts, _NUMBER), texts, pa.scalar(None, pa.string()))
        found: npt.NDArray[np.float64] = given.cast(pa.float64()).to_numpy(zero_copy_only=False)
        return found

    def times(self, name: str) -> tuple[Ints, Flags, Flags]:
        """Microseconds (UTC where a time says its offset), which are good, and which are a clock without an offset."""
        times = parse_times(self.texts(name), date_order="mdy")
        us = times.us.copy()
        told = times.offset != NO_OFFSET
        us[told] -= times.offset[told].astype(np.int64) * _MINUTE
        good = np.isin(times.kind, (CIVIL, INSTANT)) & are_plausible(us)
        return us, good, (times.kind == CIVIL) & ~told


def header_of(content: bytes, lines_before: int = 0) -> list[str]:
    """The names in the header, in lower case."""
    line = content.split(b"\n", lines_before + 1)[lines_before : lines_before + 1]
    text = line[0].removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace") if line else ""
    return [cell.strip().strip('"').lower() for cell in text.rstrip("\r\n").split(",")]


def read_csv(content: bytes, names: Sequence[str], lines_before: int = 0) -> Columns:
    """All rows below the header, by the `names` of the columns; cells that the names do not reach are dropped.

    ValueError: no rows can be made of it.
    """
    broken: list[int] = []

    def skip(row: Any) -> str:
        broken.append(int(row.number))
        return "skip"

    try:
        content.decode()
    except UnicodeDecodeError:
        content = content.decode("utf-8", "replace").encode()
    try:
        table = pc_csv.read_csv(
            io.BytesIO(content),
            read_options=pc_csv.ReadOptions(
                column_names=list(names),
                skip_rows=lines_before + 1,
                block_size=_BLOCK_BYTES,
                # Only so do rows know their numbers.
                use_threads=False,
            ),
            parse_options=pc_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=skip),
            convert_options=pc_csv.ConvertOptions(
                column_types={name: pa.string() for name in names},
                strings_can_be_null=False,
                check_utf8=False,
            ),
        )
    except pa.ArrowInvalid as error:
        if "Empty CSV" in str(error):
            return Columns({}, np.zeros(0, dtype=np.int64), ())
        raise ValueError("not a table") from None
    columns = {
        name: pc.utf8_trim_whitespace(table.column(place).combine_chunks())
        for place, name in enumerate(names)
    }
    lines = np.arange(len(table) + len(broken), dtype=np.int64) + lines_before + 2
    return Columns(columns, np.setdiff1d(lines, broken)[: len(table)], tuple(broken))
