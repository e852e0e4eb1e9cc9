"""Movie-review sentences with the critic's fresh or rotten mark, and a classifier that judges sentences like them.

The data set is rt_polarity (Pang and Lee 2005, CC-BY 4.0), which the package carries.
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
    """Rows `{"prompt", "completion", "accept", "split"}` in three parts; no sentence stands in two of them.

    Args:
        judge: what `SentenceJudge` is fitted on.
        feedback: what a policy learns from.
        heldout: the data set's own held-out split.
    """

    judge: list[dict[str, Any]]
    feedback: list[dict[str, Any]]
    heldout: list[dict[str, Any]]


def read_sentences() -> list[dict[str, Any]]:
    """All rows of the data set."""
    path = Path(str(files("valence") / "assets" / "rt_polarity" / "thumbs.jsonl.gz"))
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def split_sentences(rows: Sequence[dict[str, Any]]) -> Halves:
    """Split the rows by the text of the sentence, so that a repeated sentence is in one part only.

    The held-out split is the data set's own. The parity of the sentence's SHA-256 halves the rest.
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


class SentenceJudge:
    """Logistic regression on TF-IDF features: tells positive from negative sentences.

    Args:
        rows: the sentences that it is fitted on, with their marks.
    """

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
        """Share of `rows` whose mark it predicts correctly."""
        return float(self.model.score([row["completion"] for row in rows], [bool(row["accept"]) for row in rows]))

    def positive(self, texts: Sequence[str]) -> float:
        """Share of `texts` that it predicts to be positive."""
        return float(self.model.predict(list(texts)).mean())
