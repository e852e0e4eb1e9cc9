"""The DRO experiment's data: prompts in three parts, labels by mini-batch, scores, scorer and judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from experiments.common.experiment import SILENT
from experiments.dro.data import NEW_TOKENS, Judge, Scorer, minibatch_labels, sft_rows, split_prompts, write_feedback
from valence import align
from valence.policies.loading import load_language_policy
from valence.rewards.sentences import read_sentences, split_sentences
from valence.sources.offline import OfflineSource
from valence.types import Batch


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The batches of one epoch of `valence.align`, from a file of feedback and a method."""

    def learn(path: Path, method: str, seed: int = 0) -> list[Batch]:
        found: list[Batch] = []
        original = OfflineSource.next

        def record(self: OfflineSource, policy: Any = None) -> Batch:
            found.append(original(self, policy))
            return found[-1]

        monkeypatch.setattr(OfflineSource, "next", record)
        options = SILENT | {"method": method, "seed": seed, "eval_fraction": 0.0, "eval_samples": 1, "batch_size": 32}
        align(path, model="small-lm", out=tmp_path / "run", max_new_tokens=2, **options)
        return found

    return learn


@pytest.mark.slow
def test_the_three_parts_share_no_prompt_and_sft_sees_none_of_two() -> None:
    prompts = split_prompts(256, 1000)
    train, select, evaluate = map(set, prompts)
    assert (len(select), len(evaluate)) == (256, 1000)
    assert not train & select and not train & evaluate and not select & evaluate
    assert all(len(prompt.split()) == 4 for part in prompts for prompt in part)
    tokenizer = load_language_policy("small-lm").tokenizer
    rows = sft_rows(tokenizer, prompts, 30)
    assert len(rows) == 30
    sentences = [row["completion"] for part in split_sentences(read_sentences()) for row in part]
    for row in rows:
        # Some sentences end alike: one whose beginning is open must be among them.
        ends = [text for text in sentences if text.endswith(row["prompt"] + row["completion"])]
        assert any(" ".join(text.split()[:4]) not in select | evaluate for text in ends)
        assert len(tokenizer(row["completion"], add_special_tokens=False)["input_ids"]) < NEW_TOKENS


@pytest.mark.slow
def test_the_scorer_knows_sentiment_from_the_half_that_the_judge_does_not_see() -> None:
    halves = split_sentences(read_sentences())
    scorer, judge = Scorer(halves.feedback), Judge()
    for score in (scorer, judge):
        good, bad = score(["a warm , funny", "a dull , lifeless"], [" and moving film .", " and pointless mess ."])
        assert good > 0 > bad
        found = score([""] * 1057, [row["completion"] for row in halves.heldout])
        right = [(value > 0) == row["accept"] for value, row in zip(found, halves.heldout, strict=True)]
        assert sum(right) / len(right) > 0.7


def texts(batch: Batch, tokenizer: Any) -> list[str]:
    """The completions of a batch."""
    rows = zip(batch.action.steps[:, 0], batch.action.mask[:, 0], strict=True)
    return [tokenizer.decode(row[mask], skip_special_tokens=True).strip() for row, mask in rows]


@pytest.mark.slow
def test_kto_accepts_what_is_above_the_mean_of_its_own_batch(tmp_path: Path, batches: Any) -> None:
    """Through the file and `align` itself: the threshold of every batch of the first epoch is its mean score."""
    tokenizer = load_language_policy("small-lm").tokenizer
    scores = [(7 * place) % 23 + place / 100 for place in range(70)]
    rows = [{"prompt": f"p {n}", "completion": f" c {n} .", "score": score} for n, score in enumerate(scores)]
    path = write_feedback(tmp_path / "kto.jsonl", rows, method="kto", batch_size=32, seed=3)
    known = {row["completion"].strip(): row["score"] for row in rows}
    found = batches(path, "kto", seed=3)
    assert [len(batch.action.steps) for batch in found] == [32, 32, 6]
    for batch in found:
        mine = [known[text] for text in texts(batch, tokenizer)]
        signs = batch.feedback.sign[:, 0].tolist()  # pyright: ignore[reportAttributeAccessIssue]
        assert signs == [1 if score > sum(mine) / len(mine) else -1 for score in mine]


def test_labels_depend_on_the_batches_of_the_seed() -> None:
    scores = [(7 * place) % 23 + place / 100 for place in range(70)]
    labels = [minibatch_labels(scores, batch_size=32, seed=seed) for seed in (3, 3, 4)]
    assert labels[0] == labels[1] != labels[2] and 20 < sum(labels[0]) < 50


@pytest.mark.slow
def test_dro_takes_the_scores_themselves(tmp_path: Path, batches: Any) -> None:
    rows = [{"prompt": f"p {n}", "completion": f" c {n} .", "score": float(n)} for n in range(5)]
    (batch,) = batches(write_feedback(tmp_path / "dro.jsonl", rows, method="dro", batch_size=32, seed=0), "dro")
    rewards = sorted(batch.feedback.value.flatten().tolist())
    assert rewards == pytest.approx([-(2**0.5), -(0.5**0.5), 0.0, 0.5**0.5, 2**0.5], abs=1e-6)
