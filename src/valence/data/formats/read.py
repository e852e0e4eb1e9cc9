"""Files into rows. The bytes of a file say what format it has; its name decides only between CSV and JSON."""

from __future__ import annotations

import ast
import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

from valence.data.formats.row import ALIASES, Refused
from valence.errors import UserError

Found = tuple[int, dict[str, object] | Refused]
"""(number of a line or item, from 1; the row there, or why it cannot be read)."""

CONTAINERS = ("train", "data", "rows", "examples", "instances", "heldout", "test", "validation", "valid", "eval", "dev")
INSTALL = "pip install 'valence-learn[language]'"
KNOWN = frozenset(name for aliases in ALIASES for name in aliases)


def read_rows(path: Path) -> Iterator[Found]:
    """Every row of a file, or of a folder that `datasets` saved.

    Raises:
        UserError: there is no such file, or it holds no rows.
    """
    if path.is_dir():
        return _saved_dataset(path)
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise UserError(f"{path}: a damaged or incomplete gzip file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    content = content.removeprefix(b"\xef\xbb\xbf")
    if not content.strip():
        raise UserError(f"{path}: the file is empty")
    if content[:4] == b"PAR1":
        return _parquet(path, content)
    if b"\0" in content[:65536]:
        raise UserError(f"{path}: a binary file, and neither JSON, JSONL, CSV nor Parquet")
    return _csv(path, content) if _is_csv(path, content) else _json(path, content)


def _is_csv(path: Path, content: bytes) -> bool:
    """Whether the first line is a header with a known column, or else the file's name is that of a table. Content that
    begins like JSON is no table."""
    header = content.lstrip().split(b"\n", 1)[0].decode("utf-8", "replace").strip()
    if header[:1] in ("{", "["):
        return False
    columns = {name.strip().strip('"') for name in header.split(_delimiter(header))}
    return bool(columns & KNOWN) or any(suffix in (".csv", ".tsv") for suffix in path.suffixes)


def _delimiter(header: str) -> str:
    return max(",\t;", key=header.count)


def _csv(path: Path, content: bytes) -> Iterator[Found]:
    """Rows of a table with a header. Empty cells are absent; cells that hold JSON messages or lists are parsed."""
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not UTF-8 text") from None
    delimiter = _delimiter(text.lstrip().split("\n", 1)[0])
    limit = csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        lines: list[tuple[int, list[str]]] = []
        start = 1
        for cells in reader:
            if cells:
                lines.append((start, cells))
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}:{start}: not valid CSV ({error})") from None
    finally:
        csv.field_size_limit(limit)
    header = [name.strip() for name in lines[0][1]]
    if len(set(header)) < len(header):
        raise UserError(f"{path}: the header names a column twice")
    return (_csv_row(line, header, cells) for line, cells in lines[1:])


def _csv_row(line: int, header: list[str], cells: list[str]) -> Found:
    if len(cells) != len(header):
        return line, Refused(f"{len(cells)} cells where the header names {len(header)}")
    cells_by_name = zip(header, cells, strict=True)
    return line, {name: _cell(cell) for name, cell in cells_by_name if cell != "" or name == "prompt"}


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


def _json(path: Path, content: bytes) -> Iterator[Found]:
    """JSON Lines, or one JSON array or object. Its first line decides: a whole document rarely fits on one line."""
    lines = [(line, raw) for line, raw in enumerate(content.split(b"\n"), 1) if raw.strip()]
    by_line = ((line, _row(_loads(raw))) for line, raw in lines)
    if len(lines) > 1 and isinstance(_loads(lines[0][1]), dict):
        return by_line
    whole = _loads(content)
    if isinstance(whole, list):
        return enumerate(map(_row, whole), 1)
    if isinstance(whole, dict):
        return _contained(whole)
    if len(lines) == 1 or not any(isinstance(_loads(raw), dict) for _, raw in lines):
        reason = whole if isinstance(whole, Refused) else "neither a list nor an object"
        raise UserError(f"{path}: not JSON, JSONL, CSV or Parquet ({reason})")
    return by_line


def _contained(whole: dict[str, object]) -> Iterator[Found]:
    """The rows of `{"train": [...], "test": [...]}` with their split; any other object is one row."""
    parts = {name: part for name in CONTAINERS if isinstance(part := whole.get(name), list)}
    if not parts or set(whole) & KNOWN:
        return iter([(1, whole)])
    marks = {name: None if name in CONTAINERS[1:5] else name for name in parts}
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


def _parquet(path: Path, content: bytes) -> Iterator[Found]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: reading Parquet needs {INSTALL}") from None
    try:
        rows = pyarrow.parquet.read_table(pyarrow.BufferReader(content)).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: a damaged Parquet file ({str(error).splitlines()[0]})") from None
    return enumerate(rows, 1)


def _saved_dataset(path: Path) -> Iterator[Found]:
    """A folder that `save_to_disk` wrote. The rows of a DatasetDict have its split."""
    if not any((path / name).is_file() for name in ("dataset_dict.json", "dataset_info.json", "state.json")):
        raise UserError(f"{path}: a folder that is no saved dataset: give the files in it")
    try:
        import datasets
    except ImportError:
        raise UserError(f"{path}: reading a saved dataset needs {INSTALL}") from None
    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: a damaged saved dataset ({first})") from None
    if isinstance(loaded, datasets.DatasetDict):
        return enumerate((_row(row, str(name)) for name, part in loaded.items() for row in part.to_list()), 1)
    return enumerate(loaded.to_list(), 1)
