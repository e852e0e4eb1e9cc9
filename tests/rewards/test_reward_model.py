"""Reward models: what they learn from pairs and scores, and how they judge."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from valence.data.load import load_feedback
from valence.errors import UserError
from valence.objectives.bradley_terry import bradley_terry_loss, score_loss
from valence.rewards.loading import load_reward
from valence.rewards.training import Comparison, comparisons, scored
from valence.runs.reward_model import reward_model


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_bradley_terry_by_hand() -> None:
    """sigmoid(ln 3) = 3/4; a tie's loss is smallest at no gap."""
    gap = torch.tensor([math.log(3.0)])
    torch.testing.assert_close(bradley_terry_loss(gap), torch.tensor([-math.log(0.75)]))
    torch.testing.assert_close(bradley_terry_loss(gap, torch.tensor([0.0])), torch.tensor([-math.log(0.25)]))
    tie = torch.zeros(1, requires_grad=True)
    bradley_terry_loss(tie, 0.5).sum().backward()
    assert tie.grad is not None and tie.grad.item() == 0.0
    assert score_loss(torch.tensor([1.0]), torch.tensor([3.0])).item() == 4.0


class Plain:
    chat_template = None


def test_comparisons_of_every_shape(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "completions": ["x", "y", "z"], "scores": [1, 3, 1]},
        {"prompt": "r", "completion": "m", "reward": 0.2}, {"prompt": "r", "completion": "n", "reward": 0.5},
        {"prompt": "t", "chosen": "a", "rejected": "b", "chosen_score": 3, "rejected_score": 3},
    ]  # fmt: skip
    records = load_feedback([write(tmp_path / "f.jsonl", rows)]).records
    found = comparisons(records, Plain())
    assert found == [
        Comparison("p\na", "p\nb"), Comparison("q\ny", "q\nx"), Comparison("q\ny", "q\nz"),
        Comparison("r\nn", "r\nm"),
    ]  # fmt: skip
    assert [(row.text, row.score) for row in scored(records, Plain())] == [("r\nm", 0.2), ("r\nn", 0.5)]


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    rows = [{"prompt": f"p{n}", "chosen": f"aaa{n}", "rejected": f"zzz{n}"} for n in range(80)]
    return write(tmp_path / "pairs.jsonl", rows)


def fit(feedback: str, model: Path, out: Path, **options: Any) -> dict[str, Any]:
    return reward_model(
        feedback, model=model, out=out, quiet=True, **({"batch_size": 16, "max_steps": 30, "lr": 1e-2} | options)
    )


def test_it_tells_better_from_worse_and_judges_as_it_was_trained(pairs: str, tiny_llama: Path, tmp_path: Path) -> None:
    figures = fit(pairs, tiny_llama, tmp_path / "rm", eval_fraction=0.25)
    assert figures["kind"] == "pairs" and figures["held_out"] == 20 and figures["accuracy"] > 0.9
    judge = load_reward(str(tmp_path / "rm"))
    good, bad = judge(["p99", "p99"], ["aaa99", "zzz99"])
    assert good is not None and bad is not None and good > bad
    # Alone or beside longer texts: padding changes nothing.
    alone = judge(["p99"], ["aaa99"])[0]
    beside = judge(["p99", "p99"], ["aaa99", "zzz99" * 9])[0]
    assert alone == pytest.approx(good, abs=1e-5) and beside == pytest.approx(good, abs=1e-4)


def test_scores_are_regressed_on(tiny_llama: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"p{n}", "completion": "aaa" if n % 2 else "zzz", "reward": float(n % 2)} for n in range(60)]
    feedback = write(tmp_path / "scores.jsonl", rows)
    figures = fit(feedback, tiny_llama, tmp_path / "rm", kind="scores", eval_fraction=0.2)
    assert figures["kind"] == "scores" and figures["rmse"] < 0.3 and figures["correlation"] > 0.8


def test_a_model_without_a_judges_head_is_refused(tiny_llama: Path) -> None:
    with pytest.raises(UserError, match=r"holds LlamaForCausalLM, not a judge: valence reward-model makes one"):
        load_reward(str(tiny_llama))
