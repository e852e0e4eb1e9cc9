"""`align` start to end on real feedback, with the carried model and with a random T5."""

from __future__ import annotations

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


@pytest.mark.parametrize("model", ["small-lm", "t5"])
@pytest.mark.parametrize("name, method", FILES)
def test_real_feedback_start_to_end(name: str, method: str, model: str, tiny_t5: Path, tmp_path: Path) -> None:
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"{path} is not here: real feedback is tested beside the project's shared folder only")
    result = align(
        path, model=str(tiny_t5) if model == "t5" else model, out=tmp_path / "out", quiet=True, max_steps=3,
        batch_size=4, max_length=160, eval_samples=4, eval_rows=8, eval_every=0, save_every=0, max_new_tokens=12,
        tracker="none", warmup_steps=1, lr=1e-4,
    )  # fmt: skip
    assert result.method == method
    assert result.steps == 3
    assert result.after["kl_policy_ref"] > 0
    # What was cut to fit is written down, each with its line.
    problems = (tmp_path / "out" / "problems.jsonl").read_text().splitlines()
    assert len(problems) > 100
    again = load_language_policy(str(result.model))
    nll = measures.text_nll(again, measures.ordinary_text())
    assert nll == pytest.approx(result.after["ordinary_text_nll"], abs=1e-5)
