"""rt_polarity's sentences, cut into a half for the judge and a half for feedback, and that judge.

Movie-review sentences with the critic's fresh / rotten mark (Pang and Lee 2005, CC-BY 4.0): real human thumbs.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple


class Halves(NamedTuple):
    """Rows `{"prompt", "completion", "accept", "split"}`; no sentence stands in two of the three."""

    judge: list[dict[str, Any]]
    feedback: list[dict[str, Any]]
    heldout: list[dict[str, Any]]


def read_sentences() -> list[dict[str, Any]]:
    """The rows that Valence carries."""
    path = Path(str(files("valence") / "assets" / "rt_polarity" / "thumbs.jsonl.gz"))
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


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


class Judge:
    """TF-IDF and logistic regression on sentences that the training never sees."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        self.model = make_pipeline(
            TfidfVectorizer(sublinear_tf=True, token_pattern=r"\S+"),
            LogisticRegression(C=3.0, max_iter=1000),
        )
        self.model.fit([row["completion"] for row in rows], [bool(row["accept"]) for row in rows])

    def accuracy(self, rows: Sequence[dict[str, Any]]) -> float:
        """Share of held-out sentences whose mark it gets right."""
        return float(self.model.score([row["completion"] for row in rows], [bool(row["accept"]) for row in rows]))

    def positive(self, texts: Sequence[str]) -> float:
        """Share of `texts` that it calls positive."""
        return float(self.model.predict(list(texts)).mean())
