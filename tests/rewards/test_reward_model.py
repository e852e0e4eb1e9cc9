"""Reward models: what they learn from pairs and scores, and how they judge."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from jinja2 import TemplateError

from valence.data.load import load_feedback
from valence.data.prompting import Prompting
from valence.errors import UserError
from valence.objectives.bradley_terry import bradley_terry_loss, score_loss
from valence.rewards.loading import load_reward
from valence.rewards.reward_model import RewardModel, row_text
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


class Chatty:
    """Renders roles and contents; refuses an empty conversation of a user."""

    chat_template, name_or_path = "there is one", "chatty"

    def apply_chat_template(self, rows: list[dict[str, str]], **_: Any) -> str:
        if rows[-1]["content"] == "no":
            raise TemplateError("never")
        return "".join(f"<{row['role']}>{row['content']}" for row in rows)


def test_how_prompt_and_completion_become_one_text() -> None:
    messages = [{"role": "user", "content": "p"}], [{"role": "assistant", "content": "c"}]
    text = "<user>p<assistant>c"
    assert row_text(Chatty(), "p", "c", Prompting()) == row_text(Chatty(), *messages, Prompting()) == text
    assert row_text(Chatty(), "p", "c", Prompting(system="s")) == f"<system>s{text}"
    assert row_text(Chatty(), "p", "c", Prompting(chat_template=False)) == "pc"
    assert row_text(Chatty(), *messages, Prompting(chat_template=False)) == text
    assert row_text(Chatty(), "", "c", Prompting()) == row_text(Plain(), "", "c", Prompting()) == "c"
    assert row_text(Plain(), "p", "c", Prompting()) == "p\nc" and row_text(Plain(), "p", " c", Prompting()) == "p c"
    assert row_text(Plain(), "p", "c", Prompting("")) == "pc" and row_text(Plain(), *messages, Prompting()) == "p\n\nc"
    with pytest.raises(UserError, match=r"^the reward model's chat template rejects 'user: p assistant: no' \(never"):
        row_text(Chatty(), "p", "no", Prompting())


def test_a_judge_reads_prompts_as_in_training(pairs: str, tiny_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "rm"
    fit(pairs, tiny_llama, folder, max_steps=1, separator="\\n--\\n")
    assert RewardModel(str(folder)).texts(["p"], ["c"]) == ["p\n--\nc"]
    kept = json.loads((folder / "reward_model.json").read_text())
    assert kept.pop("prompting") == {"separator": "\n--\n", "chat_template": True, "system": None}
    # Models of earlier versions were trained without anything between the two; a model of somebody else's is not ours.
    for figures, text in ((kept, "pc"), (None, "p\nc")):
        (folder / "reward_model.json").unlink()
        if figures:
            (folder / "reward_model.json").write_text(json.dumps(figures))
        assert RewardModel(str(folder)).texts(["p"], ["c"]) == [text]
    (folder / "reward_model.json").write_text(json.dumps({"prompting": {"odd": 1}}))
    with pytest.raises(UserError, match=r"has an entry 'prompting' that cannot be read: .*odd"):
        RewardModel(str(folder))


def test_it_tells_what_is_cut_and_what_stands_between(
    pairs: str, tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reward_model(pairs, model=tiny_llama, out=tmp_path / "rm", max_steps=1, max_length=10)
    printed = capsys.readouterr().out
    assert re.search(r"^`max_length=10` cuts the beginning of 8\d% of the rows \(512: 0%, 1,024: 0%", printed, re.M)
    assert "a newline was put between prompt and completion of 72 of 72 plain-text rows" in printed
    with pytest.raises(UserError, match=r"^`system` needs a chat template, and .*llama.* has none"):
        fit(pairs, tiny_llama, tmp_path / "no", system="be kind")


def test_scores_are_regressed_on(tiny_llama: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"p{n}", "completion": "aaa" if n % 2 else "zzz", "reward": float(n % 2)} for n in range(60)]
    feedback = write(tmp_path / "scores.jsonl", rows)
    figures = fit(feedback, tiny_llama, tmp_path / "rm", kind="scores", eval_fraction=0.2)
    assert figures["kind"] == "scores" and figures["rmse"] < 0.3 and figures["correlation"] > 0.8


def test_a_model_without_a_judges_head_is_refused(tiny_llama: Path) -> None:
    with pytest.raises(UserError, match=r"holds LlamaForCausalLM, not a judge: valence reward-model makes one"):
        load_reward(str(tiny_llama))
