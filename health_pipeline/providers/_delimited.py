"""Tables out of delimited text and Excel workbooks that people, vendors and spreadsheets have handled.

The header is searched for, lines may be longer or shorter than it, quotes may be damaged and the end may be
cut off: every line becomes a row with its line number, and the caller decides what a row is worth. Lines of
the same shape are tokenised together by Arrow; only odd ones go through Python's csv module.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from health_pipeline.providers._local_time import strings
from health_pipeline.providers.base import UnreadableFileError

#: Which columns a header line has, by our names for them; None if the line is not the header.
HeaderMatch = Callable[[Sequence[str]], Mapping[str, int] | None]

_HEADER_LINES = 20
_DELIMITERS = ",;\t|"
_NEWLINE, _QUOTE = ord("\n"), ord('"')
_SMALL_GROUP = 64
_LONGEST_BLANK = 8
_LINES_IN_ONE_CELL = 50
_MAX_WORKBOOK_BYTES = 1 << 29
_SIGNATURES = {
    b"PK\x03\x04": "a ZIP archive or Office document",
    b"\xd0\xcf\x11\xe0": "an old Excel or Word document",
    b"%PDF": "a PDF document",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x1f\x8b": "a gzip archive",
    b"SQLite format 3": "an SQLite database",
}


@dataclass(frozen=True, slots=True)
class TextTable:
    """The rows after a header. Arrays have one item a row; `columns` are the matched ones, as trimmed texts.

    `line` is the row's first line in the file, from 1; `raw` its text. `split` and `locate` replace what is
    made of these where the rows are not lines of text. `extra`: cells beyond the header hold something.
    `cut`: the file ends inside this row, so that its last cell and those that miss are not to be trusted.
    """

    header: tuple[str, ...]
    position: Mapping[str, int]
    preamble: tuple[str, ...]
    delimiter: str
    columns: Mapping[str, pa.Array]
    line: npt.NDArray[np.int32]
    width: npt.NDArray[np.int32]
    empty: npt.NDArray[np.bool_]
    extra: npt.NDArray[np.bool_]
    cut: npt.NDArray[np.bool_]
    raw: Callable[[int], str]
    split: Callable[[int], list[str]] | None = None
    locate: Callable[[int], str] | None = None

    def __len__(self) -> int:
        return len(self.line)

    def column(self, name: str) -> pa.Array:
        """A matched column's texts; empty texts where the file lacks the column."""
        if name in self.columns:
            return self.columns[name]
        return pa.repeat(pa.scalar(""), len(self))

    def cells(self, row: int) -> list[str]:
        """All cells of one row, for the rows that need a closer look."""
        return _split(self.raw(row), self.delimiter) if self.split is None else self.split(row)

    def location(self, row: int) -> str:
        """Where a row is in its file."""
        return f"line {self.line[row]}" if self.locate is None else self.locate(row)


def plain(text: str) -> str:
    """A header cell to compare: mojibake undone, no accents, BOMs or quotes, lower case, single blanks."""
    for _ in range(3):
        if text.isascii():
            break
        for encoding in ("cp1252", "latin-1"):
            try:
                text = text.encode(encoding).decode("utf-8")
                break
            except UnicodeError:
                continue
        else:
            break
    text = text.replace("\ufeff", "").replace("\u2019", "'").replace('"', "")
    text = unicodedata.normalize("NFKD", text)
    text = "".join(mark for mark in text if not unicodedata.combining(mark))
    return " ".join(text.casefold().split())


def binary_kind(content: bytes) -> str | None:
    """What kind of binary file the first bytes are of, None for text."""
    for signature, kind in _SIGNATURES.items():
        if content.startswith(signature):
            return kind
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return None
    head = np.frombuffer(content[:65536], dtype=np.uint8)
    control = ((head < 32) & (head != 9) & (head != 10) & (head != 13)).sum()
    return "binary data" if control > 0.05 * len(head) else None


def to_utf8(content: bytes) -> bytes:
    r"""Text in UTF-8 with `\n` line ends and no byte order mark, from UTF-8, UTF-16 with a mark, or cp1252.

    UnreadableFileError if the file is empty or binary.
    """
    if not content.strip(b" \t\r\n\xef\xbb\xbf"):
        raise UnreadableFileError("the file is empty; export it again")
    if kind := binary_kind(content):
        raise UnreadableFileError(f"the file is {kind}, not text; upload the export as the vendor wrote it")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        content = content.decode("utf-16", errors="replace").encode("utf-8", errors="replace")
    content = content.removeprefix(b"\xef\xbb\xbf")
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        content = _decode_damaged(content).encode("utf-8")
    content = content.replace(b"\r\n", b"\n")
    if b"\r" in content:
        content = content.replace(b"\r", b" " if b"\n" in content else b"\n")
    return content.replace(b"\0", b" ")


def read_table(content: bytes, match: HeaderMatch, kind: str, *, has_header: bool = True) -> TextTable:
    """Find the header that `match` knows in the first lines and read the rows below it.

    `kind` names the format in errors. Without a header, `match` is asked about the first line, which is a
    row itself. UnreadableFileError: empty, binary, no header, no rows.
    """
    if content.startswith(b"PK\x03\x04"):
        content = _workbook_to_csv(content, kind)
    data = to_utf8(content)
    header_line, header, delimiter, position, preamble = _find_header(data, match, kind, has_header)
    starts, ends = _lines(data)
    body = np.arange(header_line + 1 if has_header else 0, len(starts))
    body = body[ends[body] > starts[body]]
    short = np.flatnonzero(ends[body] - starts[body] < _LONGEST_BLANK)
    is_blank = [not data[s:e].strip() for s, e in _pairs(starts[body[short]], ends[body[short]])]
    body = np.delete(body, short[is_blank])
    if not body.size:
        raise UnreadableFileError(
            f"the {kind} header is in line {header_line + 1}, but no rows follow it; export a longer period"
        )
    return _Reader(data, starts, ends, body, delimiter, header, position, preamble).read()


def has_header(head: bytes, match: HeaderMatch) -> bool:
    """Whether the first bytes of a file hold a header that `match` knows."""
    try:
        _find_header(to_utf8(head), match, "", True)
    except UnreadableFileError:
        return False
    return True


def _decode_damaged(content: bytes) -> str:
    """UTF-8 with a few broken bytes keeps its good letters; anything else is a Windows code page."""
    text = content.decode("utf-8", errors="replace")
    broken = text.count("\ufffd")
    if sum(not mark.isascii() for mark in text[:200_000]) - text[:200_000].count("\ufffd") > broken:
        return text
    try:
        return content.decode("cp1252")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _pairs(starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> zip[tuple[int, int]]:
    return zip(starts.tolist(), ends.tolist(), strict=True)


def _lines(data: bytes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    newlines = np.flatnonzero(np.frombuffer(data, dtype=np.uint8) == _NEWLINE)
    starts = np.r_[0, newlines + 1].astype(np.int64)
    return starts, np.r_[newlines, len(data)].astype(np.int64)


def _split(line: str, delimiter: str) -> list[str]:
    if line.count('"') % 2:
        cells = [cell.strip().strip('"') for cell in line.split(delimiter)]
    else:
        try:
            cells = next(csv.reader([line], delimiter=delimiter), [])
        except csv.Error:
            cells = line.split(delimiter)
    if len(cells) == 1 and cells[0].count(delimiter) > 1 and line.startswith('"'):
        # A spreadsheet took the whole line for one cell.
        return _split(cells[0], delimiter)
    return [cell.strip() for cell in cells]


def _find_header(
    data: bytes, match: HeaderMatch, kind: str, has_header: bool
) -> tuple[int, tuple[str, ...], str, Mapping[str, int], tuple[str, ...]]:
    preamble: list[str] = []
    for number, raw in enumerate(data.split(b"\n", 200)[:200]):
        line = raw.decode("utf-8", errors="replace")
        if not line.strip():
            continue
        for delimiter in sorted(_DELIMITERS, key=line.count, reverse=True):
            if delimiter not in line:
                break
            cells = _split(line, delimiter)
            position = match([plain(cell) for cell in cells])
            if position is not None:
                return number, tuple(cells), delimiter, position, tuple(preamble)
        preamble.append(line)
        if len(preamble) == _HEADER_LINES or not has_header:
            break
    raise UnreadableFileError(
        f"no {kind} header in the first {len(preamble)} lines; upload the file as it was exported, with its "
        "column names"
    )


class _Reader:
    """One pass over the lines of a body: shapes, groups of equal shape, odd lines."""

    def __init__(
        self,
        data: bytes,
        starts: npt.NDArray[np.int64],
        ends: npt.NDArray[np.int64],
        body: npt.NDArray[np.int64],
        delimiter: str,
        header: tuple[str, ...],
        position: Mapping[str, int],
        preamble: tuple[str, ...],
    ) -> None:
        self.data = data
        self.numbers = body
        self.starts, self.ends = starts[body], ends[body]
        self.delimiter = delimiter
        self.header, self.position, self.preamble = header, position, preamble
        self.wanted = sorted(set(position.values()))

    def read(self) -> TextTable:
        if (columns := self._alike()) is not None:
            width = np.full(len(self.starts), len(self.header), dtype=np.int32)
            return self._table(columns, width, np.zeros(len(width), dtype=np.bool_))
        width, odd = self._shapes()
        if odd.any():
            odd = self._join_broken_lines(width, odd)
            width = self._shapes()[0]
        size = len(self.starts)
        order: list[npt.NDArray[np.int64]] = []
        parts: dict[int, list[pa.Array]] = {column: [] for column in self.wanted}
        extra = np.zeros(size, dtype=np.bool_)
        shapes = width.copy()  # reading odd lines corrects `width`
        for shape in np.unique(shapes).tolist():
            rows = np.flatnonzero((shapes == shape) & ~odd)
            if rows.size:
                self._read_group(rows, shape, order, parts, extra, width)
        rows = np.flatnonzero(odd)
        if rows.size:
            self._read_slowly(rows, order, parts, extra, width)
        back = np.empty(size, dtype=np.int64)
        back[np.concatenate(order)] = np.arange(size)
        columns = {
            name: pa.concat_arrays(parts[column]).take(pa.array(back))
            for name, column in self.position.items()
        }
        return self._table(columns, width, extra)

    def _alike(self) -> Mapping[str, pa.Array] | None:
        """The columns where every line has as many cells as the header and none is quoted, as in most files."""
        if self.data.find(b'"', int(self.starts[0])) >= 0:
            return None
        table = self._tokenise(np.arange(len(self.starts)), len(self.header))
        if table is None:
            return None
        return {name: strings(table[f"c{column}"]) for name, column in self.position.items()}

    def _table(
        self, columns: Mapping[str, pa.Array], width: npt.NDArray[np.int32], extra: npt.NDArray[np.bool_]
    ) -> TextTable:
        cut = np.zeros(len(width), dtype=np.bool_)
        usual, counts = np.unique(width, return_counts=True)
        cut[-1] = self.ends[-1] == len(self.data) and width[-1] < usual[counts.argmax()]
        empty = (self.ends - self.starts) == width - 1
        return TextTable(
            self.header,
            self.position,
            self.preamble,
            self.delimiter,
            columns,
            (self.numbers + 1).astype(np.int32),
            width,
            empty,
            extra,
            cut,
            self._text,
        )

    def _text(self, row: int) -> str:
        return self.data[self.starts[row] : self.ends[row]].decode("utf-8", errors="replace")

    def _shapes(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """Cells of each line, and whether its quotes do not pair up."""
        octets = np.frombuffer(self.data, dtype=np.uint8)
        delimiters = np.flatnonzero(octets == ord(self.delimiter))
        quotes = np.flatnonzero(octets == _QUOTE)
        size = len(self.starts)
        if not quotes.size:
            counts = np.searchsorted(delimiters, self.ends) - np.searchsorted(delimiters, self.starts)
            return (counts + 1).astype(np.int32), np.zeros(size, dtype=np.bool_)
        first_quote = np.searchsorted(quotes, self.starts)
        odd = (np.searchsorted(quotes, self.ends) - first_quote) % 2 == 1
        line = np.searchsorted(self.starts, delimiters, side="right") - 1
        inside_body = (line >= 0) & (delimiters < self.ends[np.maximum(line, 0)])
        delimiters, line = delimiters[inside_body], line[inside_body]
        quoted = (np.searchsorted(quotes, delimiters) - first_quote[line]) % 2 == 1
        counts = np.bincount(line[~quoted | odd[line]], minlength=size)
        return (counts + 1).astype(np.int32), odd

    def _join_broken_lines(
        self, width: npt.NDArray[np.int32], odd: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.bool_]:
        """Lines that a quoted newline broke are one row again, if that gives the header's shape."""
        keep = np.ones(len(self.starts), dtype=np.bool_)
        still_odd = odd.copy()
        open_lines = np.flatnonzero(odd).tolist()
        index = 0
        while index + 1 < len(open_lines):
            first, last = open_lines[index], open_lines[index + 1]
            joined = self.data[self.starts[first] : self.ends[last]].decode("utf-8", errors="replace")
            if last - first <= _LINES_IN_ONE_CELL and width[first] < len(self.header):
                try:
                    cells = next(csv.reader([joined], delimiter=self.delimiter), [])
                except csv.Error:
                    cells = []
                if len(cells) == len(self.header):
                    self.ends[first] = self.ends[last]
                    keep[first + 1 : last + 1] = False
                    still_odd[first] = False
                    index += 2
                    continue
            index += 1
        self.numbers, self.starts, self.ends = self.numbers[keep], self.starts[keep], self.ends[keep]
        return still_odd[keep]

    def _read_group(
        self,
        rows: npt.NDArray[np.int64],
        shape: int,
        order: list[npt.NDArray[np.int64]],
        parts: dict[int, list[pa.Array]],
        extra: npt.NDArray[np.bool_],
        width: npt.NDArray[np.int32],
    ) -> None:
        """Lines of one shape, through Arrow."""
        table = self._tokenise(rows, shape) if len(rows) > _SMALL_GROUP and shape > 1 else None
        if table is None:
            self._read_slowly(rows, order, parts, extra, width)
            return
        order.append(rows)
        for column in self.wanted:
            if column < shape:
                parts[column].append(strings(table[f"c{column}"]))
            else:
                parts[column].append(pa.repeat(pa.scalar(""), len(rows)))
        for column in range(len(self.header), shape):
            filled = pc.not_equal(strings(table[f"c{column}"]), "")
            extra[rows] |= np.asarray(filled.to_numpy(zero_copy_only=False), dtype=np.bool_)

    def _tokenise(self, rows: npt.NDArray[np.int64], shape: int) -> pa.Table | None:
        lengths = self.ends[rows] - self.starts[rows]
        first, last = int(self.starts[rows[0]]), int(self.ends[rows[-1]])
        if int(lengths.sum()) + len(rows) - 1 == last - first:
            content = self.data[first:last]
        else:
            content = b"\n".join(self.data[s:e] for s, e in _pairs(self.starts[rows], self.ends[rows]))
        names = [f"c{i}" for i in range(shape)]
        wanted = [f"c{i}" for i in self.wanted if i < shape]
        wanted += [f"c{i}" for i in range(len(self.header), shape) if i not in self.wanted]
        try:
            table = pacsv.read_csv(
                pa.BufferReader(content),
                read_options=pacsv.ReadOptions(column_names=names, block_size=1 << 24),
                parse_options=pacsv.ParseOptions(
                    delimiter=self.delimiter,
                    quote_char='"' if b'"' in content else False,
                    ignore_empty_lines=False,
                ),
                convert_options=pacsv.ConvertOptions(
                    include_columns=wanted, column_types=dict.fromkeys(names, pa.string()), check_utf8=False
                ),
            )
        except pa.ArrowException:
            return None
        return table if table.num_rows == len(rows) else None

    def _read_slowly(
        self,
        rows: npt.NDArray[np.int64],
        order: list[npt.NDArray[np.int64]],
        parts: dict[int, list[pa.Array]],
        extra: npt.NDArray[np.bool_],
        width: npt.NDArray[np.int32],
    ) -> None:
        """Lines that Arrow cannot take: few of their shape, or with quotes that do not pair up."""
        order.append(rows)
        found: dict[int, list[str]] = {column: [] for column in self.wanted}
        for row in rows.tolist():
            cells = _split(self._text(row), self.delimiter)
            width[row] = len(cells)
            extra[row] = any(cells[len(self.header) :])
            for column in self.wanted:
                found[column].append(cells[column] if column < len(cells) else "")
        for column, texts in found.items():
            parts[column].append(strings(pa.array(texts, type=pa.string())))


def _workbook_to_csv(content: bytes, kind: str) -> bytes:
    """The first sheet of an Excel workbook as CSV; a sheet's row is a line."""
    import zipfile

    try:
        import openpyxl  # type: ignore[import-untyped]
    except ImportError as error:
        raise UnreadableFileError(
            f"reading a {kind} Excel workbook needs openpyxl, which is not installed; save it as CSV"
        ) from error
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if "xl/workbook.xml" not in archive.namelist():
                raise UnreadableFileError(
                    "the file is a ZIP archive, not a table; upload the files inside it"
                )
            if sum(member.file_size for member in archive.infolist()) > _MAX_WORKBOOK_BYTES:
                raise UnreadableFileError("the Excel workbook unpacks to over 512 MiB; save it as CSV")
        workbook = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=True)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        for row in workbook.worksheets[0].iter_rows(values_only=True):
            writer.writerow([_cell_text(cell) for cell in row])
    except UnreadableFileError:
        raise
    except Exception as error:  # openpyxl lets errors of zipfile, zlib, expat and its own checks through
        raise UnreadableFileError(
            "the Excel workbook is damaged and cannot be opened; export it again, or save it as CSV"
        ) from error
    return text.getvalue().encode("utf-8", errors="replace")


def _cell_text(cell: object) -> str:
    return re.sub(r"\s+", " ", "" if cell is None else str(cell))
