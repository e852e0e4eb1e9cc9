"""Sequences larger than memory: rows lie in a temporary file, and are made anew when they are asked for."""

from __future__ import annotations

import json
import os
import tempfile
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from hashlib import blake2b
from itertools import islice
from typing import Any, Generic, TypeVar, overload

from valence.errors import UserError

T = TypeVar("T")
Tick = Callable[[int], None]
"""Called with the number of rows done so far, for a line of progress."""
BLOCK = 1024
"""Rows that are held at once where rows are worked on together."""


class Spool:
    """Pieces of bytes in a temporary file, which is gone when the spool is, or the process.

    Memory holds eight bytes for each piece. The folder is that of `tempfile` (TMPDIR).
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="valence-")  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._ends = array("q", [0])
        self._written = True

    def __len__(self) -> int:
        return len(self._ends) - 1

    def append(self, piece: bytes) -> None:
        """Add a piece.

        Raises:
            UserError: the disk is full.
        """
        try:
            self._file.write(piece)
        except OSError as error:
            raise _no_room(error) from error
        self._ends.append(self._ends[-1] + len(piece))
        self._written = False

    def __getitem__(self, place: int) -> bytes:
        if not self._written:
            try:
                self._file.flush()
            except OSError as error:
                raise _no_room(error) from error
            self._written = True
        start = self._ends[place]
        return os.pread(self._file.fileno(), self._ends[place + 1] - start, start)


def _no_room(error: OSError) -> UserError:
    reason = error.strerror or error
    return UserError(f"{tempfile.gettempdir()} cannot hold the rows ({reason}): set TMPDIR to a folder with more room")


class Lazy(Sequence[T], Generic[T]):
    """A sequence of `length` items, each made by `get` when it is asked for."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, length: int, get: Callable[[int], T]) -> None:
        self._length, self._get = length, get

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> list[T]: ...
    def __getitem__(self, place: int | slice) -> T | list[T]:
        if isinstance(place, slice):
            return [self._get(each) for each in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(f"{place} of {len(self)} items")
        return self._get(place % len(self))

    def __iter__(self) -> Iterator[T]:
        return map(self._get, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))

    def __repr__(self) -> str:
        return repr(list(self))


class Stored(Lazy[T]):
    """Items of one dataclass in a `Spool`, as JSON; they compare equal to those that were appended. An item that JSON
    would change, such as a row with a date that a user's own function made, stays in memory.

    Args:
        restored: the values of an item's fields, as JSON gives them back -> the item.
        items: the first items.
    """

    def __init__(self, restored: Callable[[list[Any]], T], items: Iterable[T] = ()) -> None:
        self._restored = restored
        self._spool = Spool()
        self._kept: dict[int, T] = {}
        super().__init__(0, self._made)
        for item in items:
            self.append(item)

    def __len__(self) -> int:
        return len(self._spool)

    def append(self, item: T) -> None:
        """Add an item."""
        piece = b""
        try:
            if is_plain(getattr(item, "columns", None)):
                piece = json.dumps(_values(item), default=_values, separators=(",", ":")).encode()
        except (TypeError, ValueError, RecursionError):
            piece = b""
        if not piece:
            self._kept[len(self)] = item
        self._spool.append(piece)

    def _made(self, place: int) -> T:
        return self._kept[place] if place in self._kept else self._restored(json.loads(self._spool[place]))


def _values(item: Any) -> list[object]:
    """The values of a dataclass's fields."""
    return [getattr(item, each.name) for each in fields(item)]


def is_plain(value: object) -> bool:
    """Whether JSON gives a value back as it was."""
    if isinstance(value, dict):
        return all(type(name) is str and is_plain(part) for name, part in value.items())
    if type(value) is list:
        return all(map(is_plain, value))
    return value is None or type(value) in (str, int, float, bool)


def picked(items: Sequence[T], places: Iterable[int]) -> Lazy[T]:
    """The items at `places`, in their order."""
    chosen = array("q", places)
    return Lazy(len(chosen), lambda place: items[chosen[place]])


def blocks(items: Iterable[T], size: int = BLOCK) -> Iterator[list[T]]:
    """The items in lists of `size`; the last may be shorter."""
    rest = iter(items)
    while block := list(islice(rest, size)):
        yield block


def digest(value: object) -> bytes:
    """16 bytes that stand for a text, or a tuple of texts: two of them are equal where the texts are."""
    return blake2b(repr(value).encode(), digest_size=16).digest()
