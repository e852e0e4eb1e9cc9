"""Stores what a frozen reference gives for each row on disk, so that a later epoch, method or run needs no second pass.

For objectives that read only log pi_ref (DPO, KTO, IPO, REBEL, DRO), `CachedLogProbs` stores that. For an exact KL,
`CachedHidden` stores the reference's last hidden states: 4 bytes a hidden unit and token in float32, 2 in bfloat16,
which is for small sets. The key of a row is a hash of the reference (see `fingerprint`) and of the row's token ids,
which also reflect the tokenizer and the chat template.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor

from valence.errors import UserError
from valence.policies.language import LanguagePolicy
from valence.policies.rows import Rows
from valence.protocols import Reference
from valence.training.reference import FixedReference

FILE = "reference.sqlite"
NEUTRAL = frozenset({"_name_or_path", "transformers_version", "use_cache", "architectures"})
"""Settings of a config that do not change what a model computes."""
PRECISIONS = (torch.float32, torch.bfloat16)


def fingerprint(policy: LanguagePolicy) -> bytes:
    """A hash of all that a language policy's log-probabilities depend on, apart from token ids.

    These are its weights, settings such as rotary frequencies, its temperature and precision. Adapters do not count:
    a reference has them switched off.
    """
    digest = hashlib.blake2b(digest_size=16)
    about = [type(policy).__name__, policy.temperature, str(policy.mixed_precision), policy.device.type]
    settings = {name: value for name, value in policy.core.config.to_dict().items() if name not in NEUTRAL}
    digest.update(json.dumps([about, settings], sort_keys=True, default=str).encode())
    weights = {name.replace(".base_layer", ""): part for name, part in policy.core.state_dict().items()}
    for name, part in sorted((name, part) for name, part in weights.items() if "lora_" not in name):
        digest.update(f"{name} {part.dtype} {tuple(part.shape)}".encode())
        # Bytes, whatever the precision: numpy has no bfloat16.
        digest.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.digest()


def cache_reference(reference: Reference, folder: str | Path, needs: frozenset[str]) -> CachedLogProbs | CachedHidden:
    """The reference with a cache that serves these needs: its hidden states for an exact KL, else its log-probs.

    Args:
        needs: of an objective, `needs` and `frozen_needs` together.
    Raises:
        UserError: nothing in `needs` comes from the reference, or the folder cannot be used.
    """
    if not needs & {"ref_log_prob", "ref_kl", "mismatched"}:
        raise UserError("`reference_cache` is set, but this objective reads nothing of the reference: leave it out")
    return (CachedHidden if "ref_kl" in needs else CachedLogProbs)(reference, folder)


def _pack(value: Tensor) -> bytes:
    """Precision and width, then the numbers, as bytes: numpy has no bfloat16."""
    value = value.detach().cpu().contiguous()
    if value.dtype not in PRECISIONS:
        value = value.float()
    width = 0 if value.ndim == 1 else value.shape[1]
    head = bytes([PRECISIONS.index(value.dtype)]) + width.to_bytes(4, "little")
    return head + value.flatten().view(torch.uint8).numpy().tobytes()


def _unpack(stored: bytes) -> Tensor:
    width = int.from_bytes(stored[1:5], "little")
    flat = torch.frombuffer(bytearray(stored[5:]), dtype=PRECISIONS[stored[0]])
    return flat.view(-1, width) if width else flat


class _CachedReference(FixedReference):
    """What both caches share.

    Args:
        reference: the true one; must not move.
        folder: where `reference.sqlite` lies or is made. Several runs may use it at a time.
    Raises:
        UserError: the folder cannot be used.
    """

    kind: bytes

    def __init__(self, reference: Reference, folder: str | Path) -> None:
        self.reference = reference
        with reference.active() as policy:
            self._about = fingerprint(policy) + self.kind
        self.hits = self.misses = 0
        path = Path(folder) / FILE
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._store = sqlite3.connect(path, timeout=60, isolation_level="IMMEDIATE")
            # Fails where another run changes the mode at this moment, which then is this connection's mode too.
            with contextlib.suppress(sqlite3.OperationalError):
                self._store.execute("PRAGMA journal_mode=WAL")
            self._store.execute("PRAGMA synchronous=NORMAL")
            self._store.execute("CREATE TABLE IF NOT EXISTS measured (row BLOB PRIMARY KEY, value BLOB)")
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"the reference cache {path} cannot be used ({error}): give another folder") from error

    def active(self) -> AbstractContextManager[LanguagePolicy]:
        return self.reference.active()

    def _recall(self, rows: Rows, measure: Callable[[Rows], Tensor]) -> Tensor:
        """One value for each of the rows' M real steps, row by row; `measure` gives those of rows not yet stored."""
        parts = (rows.context, rows.context_mask, rows.steps, rows.mask)
        names = [self._name(*row) for row in zip(*(part.cpu() for part in parts), strict=True)]
        lengths = rows.mask.sum(-1).tolist()
        values = [self._look_up(name, length) for name, length in zip(names, lengths, strict=True)]
        missing = [place for place, value in enumerate(values) if value is None]
        self.hits += len(names) - len(missing)
        self.misses += len(missing)
        if missing:
            which = torch.tensor(missing, device=rows.mask.device)
            measured = measure(rows.pick(which)).detach().cpu().split([lengths[place] for place in missing])
            for place, value in zip(missing, measured, strict=True):
                values[place] = value
            self._add([(names[place], _pack(value)) for place, value in zip(missing, measured, strict=True)])
        return torch.cat([part for part in values if part is not None]).to(rows.mask.device)

    def _name(self, context: Tensor, context_mask: Tensor, steps: Tensor, mask: Tensor) -> bytes:
        """The key of a row."""
        digest = hashlib.blake2b(self._about, digest_size=16)
        for part in (context[context_mask], steps[mask]):
            digest.update(len(part).to_bytes(8, "little") + part.numpy().astype("<i8").tobytes())
        return digest.digest()

    def _look_up(self, name: bytes, length: int) -> Tensor | None:
        row = self._store.execute("SELECT value FROM measured WHERE row = ?", (name,)).fetchone()
        value = None if row is None else _unpack(row[0])
        # A stored row of another length cannot be this one, whatever its name.
        return value if value is not None and len(value) == length else None

    def _add(self, new: list[tuple[bytes, bytes]]) -> None:
        # A full disk, or another run that writes for long: the values are measured, only not stored.
        with contextlib.suppress(sqlite3.OperationalError), self._store:
            self._store.executemany("INSERT OR IGNORE INTO measured VALUES (?, ?)", new)


class CachedLogProbs(_CachedReference):
    """Stores log pi_ref of each step; see `valence.protocols.LogProbCache`."""

    kind = b"log_prob"

    recall_log_probs = _CachedReference._recall


class CachedHidden(_CachedReference):
    """Stores the last hidden state that predicts each step; see `valence.protocols.HiddenCache`."""

    kind = b"hidden"

    recall_hidden = _CachedReference._recall
