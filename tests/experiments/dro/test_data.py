"""The DRO experiment's data: prompts in three parts, labels by mini-batch, scores, scorer and judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from experiments.dro.data import NEW_TOKENS, Judge, Scorer, minibatch_labels, sft_rows, split_prompts, write_feedback
from valence.data.collate import Encoder
from valence.policies.loading import load_language_policy
from valence.rewards.sentences import read_sentences, split_sentences
from valence.runs.align import AlignConfig
from valence.runs.data import Feedback, convert, encode_feedback, load_rows
from valence.runs.methods import ALIGN
from valence.runs.settings import configure, to_words
from valence.sources.offline import OfflineSource


def read(path: Path, *, method: str, seed: int = 0) -> Feedback:
    """The feedback as `valence.align` reads it."""
    options: dict[str, Any] = {"feedback": path, "model": "small-lm", "out": "o", "eval_fraction": 0.0}
    words, positional = to_words(AlignConfig, options | {"method": method, "seed": seed})
    config = configure(AlignConfig, words, positional, prog="valence align")
    row, silent = ALIGN[method], lambda line: None
    rows = load_rows(config.feedback, config.data, silent)
    return convert(rows, row, config.options, row.make(config.options), config.data, seed, silent)


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


def test_kto_accepts_what_is_above_the_mean_of_its_own_batch(tmp_path: Path) -> None:
    """Through the files and `align`'s own reader: the threshold of every batch of the first epoch is its mean score."""
    scores = [(7 * place) % 23 + place / 100 for place in range(70)]
    rows = [{"prompt": f"p {n}", "completion": f" c {n} .", "score": score} for n, score in enumerate(scores)]
    path = write_feedback(tmp_path / "kto.jsonl", rows, method="kto", batch_size=32, seed=3)
    feedback = read(path, method="kto", seed=3)
    encoder = Encoder(load_language_policy("small-lm").tokenizer, encoder_decoder=True)
    data = encode_feedback(feedback, encoder, tmp_path, strict=True, log=lambda line: None)
    source = OfflineSource(data.train, batch_size=32, pad=2, seed=3)
    known = {tuple(row.completions[0]): score for row, score in zip(data.train, scores, strict=True)}
    accepted = 0
    for size in (32, 32, 6):
        batch = source.next()
        mine = [known[tuple(row[mask].tolist())] for row, mask in
                zip(batch.action.steps[:, 0], batch.action.mask[:, 0], strict=True)]  # fmt: skip
        assert len(mine) == size
        signs = batch.feedback.sign[:, 0].tolist()  # pyright: ignore[reportAttributeAccessIssue]
        assert signs == [1 if score > sum(mine) / size else -1 for score in mine]
        accepted += signs.count(1)
    other = minibatch_labels(scores, batch_size=32, seed=4)
    assert sum(other) != accepted or other != [group.sign == (1,) for group in data.groups]


def test_dro_takes_the_scores_themselves(tmp_path: Path) -> None:
    rows = [{"prompt": f"p {n}", "completion": f" c {n} .", "score": float(n)} for n in range(5)]
    path = write_feedback(tmp_path / "dro.jsonl", rows, method="dro", batch_size=32, seed=0)
    assert [group.reward for group in read(path, method="dro").train] == [
        pytest.approx((value,), abs=1e-6) for value in (-(2**0.5), -(0.5**0.5), 0.0, 0.5**0.5, 2**0.5)
    ]
