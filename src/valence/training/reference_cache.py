"""What a reference that never moves says of rows it has seen, kept on disk by content and shared between runs.

A row that was measured once costs no pass through the reference again, in a later epoch, method or run. Of objectives
that read no more than log pi_ref (DPO, KTO, IPO, REBEL, DRO) the cache keeps that; for an exact KL it keeps the
reference's last hidden states, some KiB a token (4 bytes a width in float32, 2 in bfloat16), which is for small sets.
What is looked up is the content itself: the reference's weights, its temperature and precision, and the row's token
ids (so also the tokenizer's and the template's work).
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from valence.errors import UserError

FILE = "reference.sqlite"
UNTOLD = frozenset({"_name_or_path", "transformers_version", "use_cache", "architectures"})
"""Settings that change nothing of what a model computes."""


def fingerprint(policy: Any) -> bytes:
    """Of what a language policy's log-probabilities depend on, given token ids: weights (adapters apart, which a
    reference has switched off), settings such as rotary frequencies, temperature, precision."""
    digest = hashlib.blake2b(digest_size=16)
    about = [type(policy).__name__, policy.temperature, str(policy.mixed_precision), policy.device.type]
    settings = {name: value for name, value in policy.core.config.to_dict().items() if name not in UNTOLD}
    digest.update(json.dumps([about, settings], sort_keys=True, default=str).encode())
    weights = {name.replace(".base_layer", ""): part for name, part in policy.core.state_dict().items()}
    for name, part in sorted((name, part) for name, part in weights.items() if "lora_" not in name):
        digest.update(f"{name} {part.dtype} {tuple(part.shape)}".encode())
        # Bytes, whatever the precision: numpy knows no bfloat16.
        digest.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.digest()


def _open(path: Path) -> sqlite3.Connection:
    store = sqlite3.connect(path, timeout=60, isolation_level=None)
    for left in range(100, -1, -1):
        try:
            store.execute("PRAGMA journal_mode=WAL")
            break
        except sqlite3.OperationalError as error:
            # Changing the mode does not wait for another run that does so at the same moment.
            if "locked" not in str(error) or not left:
                raise
            time.sleep(0.05)
    store.execute("PRAGMA synchronous=NORMAL")
    store.execute("CREATE TABLE IF NOT EXISTS measured (row BLOB PRIMARY KEY, value BLOB)")
    return store


PRECISIONS = (torch.float32, torch.bfloat16)


def _pack(value: Tensor) -> bytes:
    """Precision and width, then the numbers; bytes, for numpy knows no bfloat16."""
    value = value.detach().cpu().contiguous()
    if value.dtype not in PRECISIONS:
        value = value.float()
    width = 0 if value.ndim == 1 else value.shape[1]
    head = bytes([PRECISIONS.index(value.dtype)]) + width.to_bytes(4, "little")
    return head + value.flatten().view(torch.uint8).numpy().tobytes()


def _unpack(kept: bytes) -> Tensor:
    width = int.from_bytes(kept[1:5], "little")
    flat = torch.frombuffer(bytearray(kept[5:]), dtype=PRECISIONS[kept[0]])
    return flat.view(-1, width) if width else flat


class CachedReference:
    """A reference that remembers what it said.

    Args:
        reference: the true one; must not move.
        folder: where `reference.sqlite` lies or is made. Several runs may use it at a time.
        keeps: "log_prob", or "hidden" for exact KLs; what else is asked for is measured each time.
    Raises:
        UserError: the folder cannot be written to, or what lies there is no cache.
    """

    def __init__(
        self, reference: Any, folder: str | Path, *, keeps: Literal["log_prob", "hidden"] = "log_prob"
    ) -> None:
        self.reference, self.keeps = reference, keeps
        with reference.active() as policy:
            self._about = fingerprint(policy) + keeps.encode()
        self.hits = self.misses = 0
        path = Path(folder) / FILE
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._store = _open(path)
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"the reference cache {path} cannot be used ({error}): give another folder") from error

    def active(self) -> AbstractContextManager[Any]:
        return self.reference.active()

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        return {}

    def after_step(self, policy: Any, step: int) -> None:
        """Nothing to do: the reference does not move."""

    def recall(self, rows: Any, measure: Callable[[Any], Tensor]) -> Tensor:
        """Of the rows' M real steps, row by row: log pi_ref, `[M]`, or the hidden states they are read off, `[M, H]`.

        Args:
            rows: `valence.policies.rows.Rows`.
            measure: the same for rows that are not known yet.
        """
        parts = (rows.context, rows.context_mask, rows.steps, rows.mask)
        names = [self._name(*row) for row in zip(*(part.cpu() for part in parts), strict=True)]
        known = self._look_up(names)
        lengths = rows.mask.sum(-1).tolist()
        found = [known.get(name) for name in names]
        # A row of another length cannot be it, whatever its name says.
        missing = [place for place, (value, length) in enumerate(zip(found, lengths, strict=True))
                   if value is None or len(value) != length]  # fmt: skip
        self.hits, self.misses = self.hits + len(names) - len(missing), self.misses + len(missing)
        if missing:
            which = torch.tensor(missing, device=rows.mask.device)
            measured = measure(rows.pick(which)).detach().cpu().split([lengths[place] for place in missing])
            for place, value in zip(missing, measured, strict=True):
                found[place] = value
            self._keep({names[place]: value for place, value in zip(missing, measured, strict=True)})
        return torch.cat([part for part in found if part is not None]).to(rows.mask.device)

    def _name(self, context: Tensor, context_mask: Tensor, steps: Tensor, mask: Tensor) -> bytes:
        digest = hashlib.blake2b(self._about, digest_size=16)
        for part in (context[context_mask], steps[mask]):
            digest.update(len(part).to_bytes(8, "little") + part.numpy().astype("<i8").tobytes())
        return digest.digest()

    def _look_up(self, names: list[bytes]) -> dict[bytes, Tensor]:
        found = {}
        for start in range(0, len(names), 500):
            some = names[start : start + 500]
            marks = ",".join("?" * len(some))
            for name, value in self._store.execute(f"SELECT row, value FROM measured WHERE row IN ({marks})", some):
                found[name] = _unpack(value)
        return found

    def _keep(self, new: dict[bytes, Tensor]) -> None:
        try:
            self._store.execute("BEGIN IMMEDIATE")
            self._store.executemany(
                "INSERT OR IGNORE INTO measured VALUES (?, ?)",
                [(name, _pack(value)) for name, value in new.items()],
            )
            self._store.execute("COMMIT")
        except sqlite3.OperationalError:
            # A full disk or another run's long turn: the figures are there, they are only not kept.
            if self._store.in_transaction:
                self._store.execute("ROLLBACK")
