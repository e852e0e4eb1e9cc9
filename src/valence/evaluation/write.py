"""Everything that a run writes about its policy: samples.jsonl, the model card and report.html."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from valence.evaluation.card import write_model_card
from valence.evaluation.report import write_report
from valence.evaluation.samples import RunEvaluation


def figures_of(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """The figures of each evaluation among the lines of a metrics.jsonl."""
    found = ({key[5:]: value for key, value in row.items() if key.startswith("eval/")} for row in rows)
    return [figures for figures in found if figures]


def write_run(
    out: Path, facts: Mapping[str, str], rows: Sequence[Mapping[str, Any]], evaluation: RunEvaluation, section: str
) -> None:
    """Write all three; see `write_report`."""
    figures, samples = figures_of(rows), evaluation.samples()
    if samples:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in samples]
        (out / "samples.jsonl").write_text("".join(lines), encoding="utf-8")
    write_model_card(out / "model", facts, figures[0], figures[-1], library=evaluation.card)
    write_report(out / "report.html", facts, rows, samples, figures[0], figures[-1], section=section)
