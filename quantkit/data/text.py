"""Tables of text in files: TSV, CSV, JSON lines, Parquet, and plain text with one sentence a line.

Each format is opened as a `Table`, which knows its columns at once and reads the rows of chosen columns later, one by
one, so that a file of MNLI's size is never held as 400,000 dictionaries. What cannot be read is a `DataError` that
names the file and the line; nothing is guessed, repaired or left out in silence.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.errors import DataError, MissingDependencyError, UnknownNameError
from quantkit.files import read_bytes

SUFFIXES = {".tsv": "TSV", ".csv": "CSV", ".jsonl": "JSON lines", ".ndjson": "JSON lines", ".json": "JSON lines"}
"""File endings of the formats that are text with named columns; `.parquet` and `.txt` stand apart."""

Row = tuple[int, list[Any]]
"""Number of the line (of the row in a Parquet file), counted from 1, and the cells that were asked for."""


@dataclass(frozen=True)
class Table:
    """A file with named columns.

    Attributes:
        path: the file.
        columns: the names, in file order.
        select: names -> an iterator over the rows' cells in these columns.
        unit: what a position counts, "line" or "row".
    """

    path: Path
    columns: tuple[str, ...]
    select: Callable[[Sequence[str]], Iterator[Row]]
    unit: str = "line"

    def where(self, position: int) -> str:
        """The file and a position in it, as an editor can jump to it."""
        return f"{self.path}:{position}" if self.unit == "line" else f"{self.path}, row {position}"


def open_table(path: Path, *, headerless: Sequence[str] = (), broken: list[int] | None = None) -> Table:
    """Opens a file with named columns; its ending tells the format.

    Args:
        path: a .tsv, .csv, .jsonl (.ndjson, .json) or .parquet file.
        headerless: column names of a TSV that may come without a header (CoLA's); they are used when the first line
            has as many cells and none of them is one of these names.
        broken: takes the line numbers of TSV rows with the wrong number of cells; without it such a row is an error.

    Raises:
        DataError: no such file, another ending, no rows, invalid UTF-8, or a header that cannot be read. Reading the
            rows raises it too, naming file and line.
        MissingDependencyError: a Parquet file, and pyarrow is not installed.
    """
    if not path.is_file():
        raise DataError(f"There is no file or folder {path}.", "Check the path.")
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _open_parquet(path)
    if suffix not in SUFFIXES:
        known = ", ".join([*SUFFIXES, ".parquet", ".txt"])
        kind = (
            f"the file type {suffix!r} is not known" if suffix else "the file's name has no ending to know its type by"
        )
        raise DataError(f"{path}: {kind}.", f"Give one of {known}.")
    if suffix == ".tsv":
        return _open_tsv(path, headerless, broken)
    return _open_csv(path) if suffix == ".csv" else _open_json_lines(path)


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file without their ends (LF or CRLF), a byte order mark and empty lines at the end left out.

    Raises:
        DataError: no such file, no lines, or bytes that are not UTF-8 (with the line's number).
    """
    # Not splitlines(): it also cuts at U+2028, U+0085 and others, which occur inside sentences.
    lines = [line.removesuffix("\r") for line in _read_text(path).split("\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise DataError(f"{path} is empty.", "Give a file with at least one sentence.")
    return lines


def read_sentences(path: Path) -> list[str]:
    """The sentences of a plain text file, one a line; empty lines separate and are not sentences.

    Raises:
        DataError: as `read_lines`.
    """
    return [line.strip() for line in read_lines(path) if line.strip()]


def text_cell(table: Table, position: int, column: str, value: Any) -> str:
    """A cell as text.

    Raises:
        DataError: the cell is missing or holds something other than text.
    """
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{table.where(position)}: column {column!r} holds half a surrogate pair.") from error
        return value
    found = "is missing" if value is None else f"holds {type(value).__name__} {value!r}"
    raise DataError(f"{table.where(position)}: column {column!r} {found} where text was expected.")


def _read_text(path: Path) -> str:
    """The decoded file; a byte order mark is left out."""
    if not path.is_file():
        raise DataError(f"There is no file {path}.", "Check the path.")
    data: bytes = read_bytes(path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: byte 0x{data[error.start]:02x} is not valid UTF-8 ({error.reason}).",
            "Save the file as UTF-8.",
        ) from error


def _positions(path: Path, columns: Sequence[str], names: Sequence[str]) -> list[int]:
    """Where each name stands among the columns; a name that stands there twice could mean either."""
    for name in names:
        if columns.count(name) > 1:
            raise DataError(f"{path}:1: column {name!r} appears {columns.count(name)} times.", "Rename one of them.")
    return [columns.index(name) for name in names]


def _open_tsv(path: Path, headerless: Sequence[str], broken: list[int] | None) -> Table:
    """TSV as GLUE has it: no quoting at all, so an unbalanced quotation mark is text and a TAB always separates."""
    lines = read_lines(path)
    first = lines[0].split("\t")
    bare = bool(headerless) and len(first) == len(headerless) and not set(first) & set(headerless)
    columns = tuple(headerless) if bare else tuple(first)
    start = 0 if bare else 1

    def select(names: Sequence[str]) -> Iterator[Row]:
        wanted = _positions(path, columns, names)
        for number, line in enumerate(lines[start:], start + 1):
            cells = line.split("\t")
            if len(cells) == len(columns):
                yield number, [cells[i] for i in wanted]
            elif broken is not None:
                broken.append(number)
            else:
                raise DataError(
                    f"{path}:{number}: the row has {len(cells)} columns where {len(columns)} were expected.",
                    "TSV knows no quoting: take TABs and line ends out of the texts, or use CSV or JSON lines.",
                )

    return Table(path, columns, select)


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Rows of a CSV file with the line each begins at; strict, so that an open quotation mark cannot eat the rest."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        begin = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{path}:{begin}: the row cannot be read as CSV: {error}.",
                'Put a field with a comma or a quotation mark in "...", and double the marks inside.',
            ) from error
        if cells:
            yield begin, cells


def _open_csv(path: Path) -> Table:
    """CSV with the usual quoting: a field in quotation marks may hold commas and line ends."""
    text = _read_text(path)
    header = next(_csv_rows(path, text), None)
    if header is None:
        raise DataError(f"{path} is empty.", "Give a file with a header and at least one row.")
    columns = tuple(header[1])

    def select(names: Sequence[str]) -> Iterator[Row]:
        wanted = _positions(path, columns, names)
        rows = _csv_rows(path, text)
        next(rows)
        for number, cells in rows:
            if len(cells) != len(columns):
                raise DataError(
                    f"{path}:{number}: the row has {len(cells)} columns where {len(columns)} were expected."
                )
            yield number, [cells[i] for i in wanted]

    return Table(path, columns, select)


def _open_json_lines(path: Path) -> Table:
    """One JSON object a line; the columns are the names in the first one, and a name missing later is an error."""
    lines = read_lines(path)

    def parse(number: int) -> dict[str, Any]:
        try:
            value = json.loads(lines[number - 1])
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path}:{number}: the line is not JSON: {error}.", "Write one JSON object a line (JSON lines)."
            ) from error
        if not isinstance(value, dict):
            raise DataError(
                f"{path}:{number}: the line holds a JSON {type(value).__name__} where an object was expected.",
                "Write one JSON object a line (JSON lines).",
            )
        return value

    numbers = [i for i, line in enumerate(lines, 1) if line.strip()]

    def select(names: Sequence[str]) -> Iterator[Row]:
        for number in numbers:
            record = parse(number)
            for name in names:
                if name not in record:
                    raise DataError(f"{path}:{number}: the object has no {name!r}; it has {', '.join(record)}.")
            yield number, [record[name] for name in names]

    return Table(path, tuple(parse(numbers[0])), select)


def _open_parquet(path: Path) -> Table:
    """A Parquet file, of which only the chosen columns are read."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise MissingDependencyError(
            f"{path} is a Parquet file, and the package pyarrow is not installed.", "Run: pip install pyarrow"
        ) from error
    try:
        with parquet.ParquetFile(path) as file:
            columns = tuple(file.schema_arrow.names)
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {_first_line(error)}") from error

    def select(names: Sequence[str]) -> Iterator[Row]:
        _positions(path, columns, names)
        position = 0
        try:
            with parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(columns=list(names)):
                    cells = [_python_values(path, position, batch.column(name)) for name in names]
                    for values in zip(*cells, strict=True):
                        position += 1
                        yield position, list(values)
        except (ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}, after row {position}: {_first_line(error)}") from error

    return Table(path, columns, select, unit="row")


def _python_values(path: Path, done: int, column: Any) -> list[Any]:
    """An Arrow column as Python values; `done` rows came before it. Arrow does not check text until here."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        for row, value in enumerate(column, done + 1):
            try:
                value.as_py()
            except UnicodeDecodeError as error:
                raise DataError(f"{path}, row {row}: the text is not valid UTF-8 ({error.reason}).") from error
        raise


def _first_line(error: Exception) -> str:
    """What an error says, without the lines after the first."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def find_columns(table: Table, named: Sequence[str], usual: Sequence[Sequence[str]], what: str) -> tuple[str, ...]:
    """The names of columns that stand in a table.

    Args:
        table: where they are looked for.
        named: the user's own names; when there are any, they and no others are taken.
        usual: groups of names to try else, the best first; small and capital letters are the same here.
        what: what the columns hold, in words, for messages.

    Returns:
        The names as the table spells them; empty when nothing was named and none of the usual ones is there.

    Raises:
        DataError: a name of the user's is not a column; the message lists those there are.
    """
    for name in named:
        if name not in table.columns:
            close = UnknownNameError("column", name, table.columns).hint
            raise DataError(f"{table.path} has no column {name!r} for {what}; it has {_listed(table)}.", close)
    if named:
        return tuple(named)
    spelled = {column.casefold(): column for column in reversed(table.columns)}
    for group in usual:
        if all(name.casefold() in spelled for name in group):
            return tuple(spelled[name.casefold()] for name in group)
    return ()


def missing_columns(table: Table, what: str, usual: Sequence[Sequence[str]], option: str) -> DataError:
    """The error for a table in which none of the usual columns was found."""
    tried = "; ".join(dict.fromkeys(" and ".join(group) for group in usual))
    return DataError(
        f"{table.path} has no column for {what}: it has {_listed(table)}; tried: {tried}.",
        f"Name it with {option}.",
    )


def _listed(table: Table) -> str:
    """The table's columns for a message, shortened where they are sentences (a file without a header)."""
    return ", ".join(repr(name if len(name) <= 40 else name[:37] + "...") for name in table.columns)
