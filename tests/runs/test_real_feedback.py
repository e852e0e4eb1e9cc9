"""`align` start to end on real feedback, with the carried model and with a random T5."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path

import pytest

from valence.evaluation import language as measures
from valence.policies.loading import load_language_policy
from valence.runs.align import align

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
FILES = [
    ("tulu_human_eval/thumbs.jsonl.gz", "pmpo"), ("tulu_human_eval/pairs.jsonl.gz", "dpo"),
    ("ultrafeedback_subset/rewards.jsonl.gz", "dro"), ("ultrafeedback_subset/pairs.jsonl.gz", "dpo"),
]  # fmt: skip
ROWS = 400
"""Rows of each file that are read; tests/data/test_real_files.py reads them all."""


FAST = {("tulu_human_eval/thumbs.jsonl.gz", "small-lm"), ("ultrafeedback_subset/pairs.jsonl.gz", "t5")}
CASES = [
    pytest.param(name, method, model, marks=() if (name, model) in FAST else pytest.mark.slow)
    for name, method in FILES
    for model in ("small-lm", "t5")
]


@pytest.mark.parametrize(("name", "method", "model"), CASES)
def test_real_feedback_start_to_end(name: str, method: str, model: str, tiny_t5: Path, tmp_path: Path) -> None:
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"{path} is not here: real feedback is tested beside the project's shared folder only")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        (tmp_path / "rows.jsonl").write_text("".join(itertools.islice(lines, ROWS)), encoding="utf-8")
    result = align(
        tmp_path / "rows.jsonl", model=str(tiny_t5) if model == "t5" else model, out=tmp_path / "out", quiet=True,
        max_steps=3, batch_size=4, max_length=112, eval_samples=4, eval_rows=4, eval_every=0, save_every=0,
        max_new_tokens=12, tracker="none", warmup_steps=1, lr=1e-4,
    )  # fmt: skip
    assert result.method == method
    assert result.steps == 3
    assert result.after["kl_policy_ref"] > 0
    # Every row that was truncated to fit is written down with its line.
    problems = [json.loads(line) for line in (tmp_path / "out" / "problems.jsonl").read_text().splitlines()]
    assert len(problems) > 100 and all(1 <= problem["line"] <= ROWS for problem in problems)
    again = load_language_policy(str(result.model))
    nll = measures.text_nll(again, measures.ordinary_text())
    assert nll == pytest.approx(result.after["ordinary_text_nll"], abs=1e-5)
