"""Files into rows, one at a time. The bytes of a file say what format it has; its name decides between CSV and JSON."""

from __future__ import annotations

import ast
import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

from valence.data.formats.columns import FOLDED, folded
from valence.data.formats.row import Refused
from valence.data.formats.saved import INSTALL, hub_dataset, looks_like_hub_id, saved_dataset
from valence.errors import UserError

Found = tuple[int, dict[str, object] | Refused]
"""(number of a line or item, from 1; the row there, or why it cannot be read)."""

Repair = Callable[[list[str], list[str]], "dict[str, object] | None"]
"""(header, cells of another number) -> the cells by their names, or None."""
CONTAINERS = (
    *("train", "data", "rows", "examples", "instances", "items", "records", "heldout", "test", "validation", "valid"),
    *("eval", "dev"),
)
UNMARKED = frozenset(("data", "rows", "examples", "instances", "items", "records"))
"""Containers that name no split."""
BOM = b"\xef\xbb\xbf"
WHOLE_FILE = 2**40


def read_rows(
    path: str | Path, *, split: str | None = None, subset: str | None = None, repair: Repair | None = None
) -> Iterator[Found]:
    """Every row of a file, of a folder that `datasets` saved, or of a data set of the hub. Lines are read one by one.

    Args:
        path: of the file or folder, or the data set's id.
        split, subset: of a data set of the hub.
        repair: for rows of a table that have another number of cells than its header.
    Raises:
        UserError: there is no such file, or it holds no rows.
    """
    place = Path(path)
    if not place.exists() and looks_like_hub_id(str(path)):
        yield from hub_dataset(str(path), split, subset)
    elif split or subset:
        name = "split" if split else "subset"
        raise UserError(f"`{name}` chooses a part of a data set of the hub, and {path} is none")
    elif place.is_dir():
        yield from saved_dataset(place)
    else:
        try:
            with place.open("rb") as raw, _unzipped(raw) as stream:
                yield from _of_stream(place, stream, repair)
        except FileNotFoundError:
            raise UserError(f"{path}: no such file") from None
        except (gzip.BadGzipFile, EOFError, zlib.error):
            raise UserError(f"{path}: a damaged or incomplete gzip file") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def _unzipped(raw: io.BufferedReader) -> io.BufferedReader:
    """The bytes of a file, decompressed if it is gzip, whatever its name."""
    if raw.peek(2)[:2] == b"\x1f\x8b":
        return io.BufferedReader(gzip.GzipFile(fileobj=raw))  # type: ignore[arg-type]
    return raw


def _of_stream(path: Path, stream: io.BufferedReader, repair: Repair | None) -> Iterator[Found]:
    """The rows of a file's bytes."""
    if stream.peek(3)[:3] == BOM:
        stream.read(3)
    head = stream.peek(65536)
    if head[:4] == b"PAR1":
        yield from _parquet(path, stream)
        return
    if b"\0" in head[:65536]:
        raise UserError(f"{path}: a binary file, and neither JSON, JSONL, CSV nor Parquet")
    lines = ((number, line) for number, line in enumerate(stream, 1))
    first = next(((number, line) for number, line in lines if line.strip()), None)
    if first is None:
        raise UserError(f"{path}: the file is empty")
    everything = chain([first], lines)
    if _is_csv(path, first[1]):
        yield from _csv(path, first[1], everything, repair)
    else:
        yield from _json(path, first[1], everything)


def _is_csv(path: Path, first: bytes) -> bool:
    """Whether the first line is a header with a known column, or else the file's name is that of a table. Content that
    begins like JSON is no table."""
    header = first.decode("utf-8", "replace").strip()
    if header[:1] in ("{", "["):
        return False
    columns = {folded(name.strip().strip('"')) for name in header.split(_delimiter(header))}
    return bool(columns & FOLDED.keys()) or any(suffix in (".csv", ".tsv") for suffix in path.suffixes)


def _delimiter(header: str) -> str:
    return max(",\t;", key=header.count)


def _csv(
    path: Path, first: bytes, lines: Iterator[tuple[int, bytes]], repair: Repair | None
) -> Iterator[Found]:  # fmt: skip
    """Rows of a table with a header. Empty cells are absent; cells that hold JSON messages or lists are parsed."""
    line = 0

    def texts() -> Iterator[str]:
        nonlocal line
        for number, raw in lines:
            line = number
            yield raw.decode()

    limit = csv.field_size_limit(WHOLE_FILE)
    reader = csv.reader(texts(), delimiter=_delimiter(first.decode("utf-8", "replace")))
    header: list[str] | None = None
    start = 1
    try:
        for cells in reader:
            if not cells:
                pass
            elif header is None:
                header = [name.strip() for name in cells]
                if len(set(header)) < len(header):
                    raise UserError(f"{path}: the header names a column twice")
            else:
                yield start, _csv_row(header, cells, repair)
            start = line + 1
    except csv.Error as error:
        raise UserError(f"{path}:{start}: not valid CSV ({error})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}:{line}: not UTF-8 text") from None
    finally:
        csv.field_size_limit(limit)


def _csv_row(header: list[str], cells: list[str], repair: Repair | None) -> dict[str, object] | Refused:
    if len(cells) != len(header):
        repaired = repair(header, cells) if repair else None
        if repaired is None:
            return Refused(f"{len(cells)} cells where the header names {len(header)}")
        header, cells = list(repaired), [str(cell) for cell in repaired.values()]
    return {name: _cell(cell) for name, cell in zip(header, cells, strict=True) if cell != "" or name == "prompt"}


def _cell(cell: str) -> object:
    """The list or object that a cell holds as JSON or as pandas writes it; else the text itself."""
    if not (cell.startswith(("[", "{")) and cell.endswith(("]", "}"))):
        return cell
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(cell)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return cell


def _json(path: Path, first: bytes, lines: Iterator[tuple[int, bytes]]) -> Iterator[Found]:
    """JSON Lines, or one JSON array or object. Its first line decides: a whole document rarely fits on one line."""
    opening = _loads(first)
    if isinstance(opening, dict):
        head = next(lines)
        second = next(((number, line) for number, line in lines if line.strip()), None)
        if second is None:
            yield from _contained(opening)
            return
        for number, line in chain([head, second], lines):
            if line.strip():
                yield number, _row(_loads(line))
        return
    rest = list(lines)
    filled = [(number, line) for number, line in rest if line.strip()]
    whole = _loads(b"".join(line for _, line in rest))
    if isinstance(whole, list):
        yield from enumerate(map(_row, whole), 1)
    elif isinstance(whole, dict):
        yield from _contained(whole)
    elif len(filled) == 1 or not any(isinstance(_loads(line), dict) for _, line in filled):
        reason = whole if isinstance(whole, Refused) else "neither a list nor an object"
        raise UserError(f"{path}: not JSON, JSONL, CSV or Parquet ({reason})")
    else:
        yield from ((number, _row(_loads(line))) for number, line in filled)


def _contained(whole: dict[str, object]) -> Iterator[Found]:
    """The rows of `{"train": [...], "test": [...]}` with their split; any other object is one row."""
    parts = {name: part for name in CONTAINERS if isinstance(part := whole.get(name), list)}
    if not parts or {folded(name) for name in whole} & FOLDED.keys():
        return iter([(1, whole)])
    marks = {name: None if name in UNMARKED else name for name in parts}
    return enumerate((_row(value, marks[name]) for name, part in parts.items() for value in part), 1)


def _row(value: object, split: str | None = None) -> dict[str, object] | Refused:
    """An object as a row, with `split` as its split unless it has one of its own."""
    if not isinstance(value, dict):
        return value if isinstance(value, Refused) else Refused("not a JSON object")
    return value if split is None or value.get("split") is not None else {**value, "split": split}


def _loads(raw: bytes) -> object:
    """The JSON value, or a Refused with the reason why there is none."""
    try:
        return json.loads(raw.decode())
    except UnicodeDecodeError:
        return Refused("not UTF-8 text")
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        return Refused(f"not JSON: {error.msg} at {line}column {error.colno}")
    except (ValueError, RecursionError) as error:
        return Refused(f"not readable JSON: {type(error).__name__}")


def _parquet(path: Path, stream: io.BufferedReader) -> Iterator[Found]:
    """Rows of a Parquet file, in batches; a row whose text is not UTF-8 is refused."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: reading Parquet needs {INSTALL}") from None
    try:
        line = 0
        source = stream if isinstance(stream.raw, io.FileIO) else io.BytesIO(stream.read())
        for batch in pyarrow.parquet.ParquetFile(source).iter_batches(batch_size=1024):
            try:
                rows: list[dict[str, object] | Refused] = batch.to_pylist()
            except UnicodeDecodeError:
                rows = [_arrow_row(batch.slice(place, 1)) for place in range(batch.num_rows)]
            yield from enumerate(rows, line + 1)
            line += len(rows)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: a damaged Parquet file ({str(error).splitlines()[0]})") from None


def _arrow_row(batch: object) -> dict[str, object] | Refused:
    """One row of a batch."""
    try:
        return batch.to_pylist()[0]  # type: ignore[attr-defined]
    except UnicodeDecodeError:
        return Refused("not UTF-8 text")
