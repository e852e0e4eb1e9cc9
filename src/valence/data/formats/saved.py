"""Rows of data sets: folders that `datasets` saved, and data sets of the hub."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from valence.errors import UserError

INSTALL = "pip install 'valence-learn[language]'"
FILES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".gz", ".txt", ".zip", ".py", ".yaml", ".db")
CONNECT_SECONDS = 3.0


def looks_like_hub_id(text: str) -> bool:
    """Whether a text may name a data set of the hub: owner/name, without a file's ending."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", text)) and not text.lower().endswith(FILES)


def hub_dataset(name: str, split: str | None, subset: str | None) -> Iterator[tuple[int, dict[str, object]]]:
    """The rows of a data set of the hub, or of its copy in the cache where the hub cannot be reached.

    Raises:
        UserError: neither is there, or there is no such split or subset.
    """
    datasets, offline = _datasets(name), not _hub_answers()
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    if offline:
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        loaded = datasets.load_dataset(name, subset, split=split)
    except Exception as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        if offline:
            raise UserError(
                f"{name}: no such file, and the hub cannot be reached: give a file, or try again with a connection"
            ) from None
        raise UserError(f"{name}: no such file, and no such data set of the hub can be loaded ({first})") from None
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
    yield from _rows(loaded, datasets)


def _hub_answers() -> bool:
    """Whether the hub's host accepts a connection, within seconds: its own client tries for half a minute."""
    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        return False
    place = urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    proxied = any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"))
    if proxied:
        return True
    try:
        port = place.port or (80 if place.scheme == "http" else 443)
        socket.create_connection((place.hostname or "", port), CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def saved_dataset(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """A folder that `save_to_disk` wrote. The rows of a DatasetDict have its split."""
    if not any((path / name).is_file() for name in ("dataset_dict.json", "dataset_info.json", "state.json")):
        raise UserError(f"{path}: a folder that is no saved dataset: give the files in it")
    datasets = _datasets(str(path))
    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: a damaged saved dataset ({first})") from None
    yield from _rows(loaded, datasets)


def _datasets(what: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError(f"{what}: reading a data set needs {INSTALL}") from None
    return datasets


def _rows(loaded: Any, datasets: Any) -> Iterator[tuple[int, dict[str, object]]]:
    """The rows of a data set, read from its memory-mapped table; those of several splits have their split's name."""
    if not isinstance(loaded, datasets.DatasetDict):
        yield from enumerate(loaded, 1)
        return
    marked = (
        row if row.get("split") is not None else {**row, "split": str(name)}
        for name, part in loaded.items() for row in part
    )  # fmt: skip
    yield from enumerate(marked, 1)
