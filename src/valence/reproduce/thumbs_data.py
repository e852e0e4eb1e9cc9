"""rt_polarity's sentences, cut into a half for the judge and a half for feedback."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple


class Halves(NamedTuple):
    """Rows `{"prompt", "completion", "accept", "split"}`; no sentence stands in two of the three."""

    judge: list[dict[str, Any]]
    feedback: list[dict[str, Any]]
    heldout: list[dict[str, Any]]


def split_sentences(rows: Sequence[dict[str, Any]]) -> Halves:
    """Cut by the text of the sentence, so that a repeated sentence falls on one side only.

    The held-out split is the data set's own; the rest is halved by the parity of the sentence's SHA-256.
    """
    heldout = [row for row in rows if row["split"] == "heldout"]
    seen = {row["completion"] for row in heldout}
    rest = [row for row in rows if row["split"] != "heldout" and row["completion"] not in seen]
    parity = [hashlib.sha256(row["completion"].encode()).digest()[0] % 2 for row in rest]
    return Halves(
        judge=[row for row, odd in zip(rest, parity, strict=True) if odd],
        feedback=[row for row, odd in zip(rest, parity, strict=True) if not odd],
        heldout=heldout,
    )
