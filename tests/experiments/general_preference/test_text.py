"""The text of the general-preference experiment: kinds, the oracle, what is counted, and gaps of samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.general_preference.games import has_winner
from experiments.general_preference.text import (
    COMMON,
    WIN,
    Diary,
    Oracle,
    gap_by_prompt,
    gap_floor,
    kind_of,
    measure,
    read_prompts,
)  # fmt: skip
from valence.rewards.judge import SelfPlay


def test_kinds_and_the_oracle_go_in_a_circle() -> None:
    assert [kind_of(text) for text in (" a , b .", "a . b ,", " why ? ,", "a b", "")] == [0, 1, 1, 2, 2]
    torch.testing.assert_close(WIN + WIN.mT, torch.ones_like(WIN))
    assert not has_winner(WIN)
    votes = Oracle(0)([""] * 2000, [","] * 2000, ["."] * 2000)
    assert set(votes) == {0.0, 1.0}
    assert sum(vote or 0 for vote in votes) / 2000 == pytest.approx(0.9, abs=0.03)


def test_prompts_are_four_words_each_once() -> None:
    prompts = read_prompts(64)
    assert len(set(prompts)) == 64
    assert {len(prompt.split()) for prompt in prompts} == {4}


def test_the_diary_counts_training_and_ignores_evaluations() -> None:
    diary = Diary(["p", "q"])
    diary.note(["p", "p", "q", "q"], [",", ".", "x", ","])
    diary.note(["p", "q", "p", "q"], [",", ",", ",", ","])
    assert len(diary.counts) == 1
    assert diary.counts[0].tolist() == [[1, 1, 0], [1, 0, 1]]
    assert diary.shares()[0].tolist() == [0.5, 0.25, 0.25]


def test_gaps_by_prompt_and_what_sampling_adds_to_them() -> None:
    # Against commas alone nothing gains more than none: 0.8, so 1.6. The even prompt adds 0, the unseen one nothing.
    counts = torch.tensor([[5, 0, 0], [4, 4, 4], [0, 0, 0]])
    assert gap_by_prompt(counts) == pytest.approx(0.8)
    few, many = (gap_floor(torch.full((8, 3), number)) for number in (4, 400))
    assert 0 < many < 0.1 < few


def test_a_run_is_measured_at_its_start_its_average_and_its_end() -> None:
    """Two iterates, all commas then all stops: against their average a comma gains 0.4, so its gap is 0.8."""
    diary = Diary(["p"])
    diary.note(["p", "p"], [",", ","])
    diary.note(["p", "p"], [".", "."])
    found = measure(torch.tensor([[4, 0, 0]]), diary, torch.tensor([[0, 0, 4]]))
    assert (
        found["shares"] == [[1, 0, 0], [0, 1, 0]] and found["average"] == [0.5, 0.5, 0] and found["last"] == [0, 0, 1]
    )
    assert found["gap_start"] == found["gap_last"] == found["gap_curve"][0] == pytest.approx(1.6)
    assert found["gap_average"] == found["gap_average_by_prompt"] == pytest.approx(0.8)


@pytest.mark.slow
def test_spo_takes_a_judges_comparisons_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four completions each has won or lost three: an odd number of quarters. A ranking of them has ties."""
    from valence import improve
    from valence.training.learner import Learner

    class Enough(Exception):
        pass

    seen: list[Any] = []

    def spy(self: Learner, batch: Any, **more: Any) -> None:
        seen.append(batch.feedback)
        raise Enough

    monkeypatch.setattr(Learner, "update", spy)
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in read_prompts(8)))
    options = COMMON | {"eval_samples": 2, "batch_size": 8, "num_samples": 4}
    with pytest.raises(Enough):
        improve(file, model="small-lm", out=tmp_path / "run", reward=SelfPlay(Oracle(0)), method="spo", **options)
    assert {abs(value) for value in seen[0].value.flatten().tolist()} <= {0.25, 0.75}
    torch.testing.assert_close(seen[0].value.sum(-1), torch.zeros(8))
