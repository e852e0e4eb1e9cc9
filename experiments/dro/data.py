"""What `python -m experiments dro` learns from: a small encoder-decoder, its samples, a scorer's rewards, and a judge.

A prompt is four words of a movie-review sentence (rt_polarity), a completion what follows them. The policy first learns
real continuations (SFT). Its own samples are then scored once, and are the offline rows (x, y, r). The scorer
(character n-grams) is fitted on one half of the sentences and the judge (words) on the other.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.common.experiment import SILENT, fast_dtype
from experiments.common.results import read_lines, write_lines
from experiments.dro.new_t5 import write_new_t5
from experiments.language.task import fitted_judge
from valence.errors import UserError
from valence.rewards.sentences import read_sentences, split_sentences

WORDS = 4
"""Words of a prompt."""
NEW_TOKENS = 24
"""Longest completion in tokens, its end token counted."""
SFT_BATCH = 64


class Prompts(NamedTuple):
    """Prompts to train on, to choose by, and to evaluate on; no prompt is in two of the parts."""

    train: list[str]
    select: list[str]
    evaluate: list[str]


def split_prompts(select: int, evaluate: int) -> Prompts:
    """The distinct prompts: those of held-out sentences to evaluate on, the others to choose by and to train on."""
    halves = split_sentences(read_sentences())
    heldout = _distinct(halves.heldout)
    known = set(heldout)
    others = [prompt for prompt in _distinct([*halves.feedback, *halves.judge]) if prompt not in known]
    random.Random(0).shuffle(others)
    return Prompts(others[select:], others[:select], heldout[:evaluate])


def _distinct(rows: Sequence[dict[str, Any]]) -> list[str]:
    sentences = [row["completion"].split() for row in rows]
    return list(dict.fromkeys(" ".join(words[:WORDS]) for words in sentences if len(words) > WORDS))


def sft_rows(tokenizer: Any, prompts: Prompts, most: int) -> list[dict[str, str]]:
    """Four words of a sentence and the rest of it: the first four, or later ones where the rest would be too long.

    Sentences that begin like a prompt to choose by or to evaluate on are dropped; `most` rows at most.
    """
    halves = split_sentences(read_sentences())
    closed, rows = {*prompts.select, *prompts.evaluate}, []
    for row in [*halves.feedback, *halves.judge]:
        words = row["completion"].split()
        if len(rows) == most:
            break
        if len(words) <= WORDS or " ".join(words[:WORDS]) in closed:
            continue
        for first in range(WORDS, len(words)):
            rest = " " + " ".join(words[first:])
            if len(tokenizer(rest, add_special_tokens=False)["input_ids"]) < NEW_TOKENS:
                rows.append({"prompt": " ".join(words[first - WORDS : first]), "completion": rest})
                break
    return rows


class Scorer:
    """Logistic regression on character n-grams; the reward of a sentence is its log-odds of being positive."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        self.model = make_pipeline(
            TfidfVectorizer(sublinear_tf=True, analyzer="char_wb", ngram_range=(2, 4), min_df=5),
            LogisticRegression(C=3.0, max_iter=1000),
        )
        self.model.fit([row["completion"] for row in rows], [bool(row["accept"]) for row in rows])

    def __call__(self, prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
        """The log-odds of each sentence, prompt and completion."""
        # A completion begins with its own space.
        sentences = [prompt + text for prompt, text in zip(prompts, texts, strict=True)]
        return [float(value) for value in self.model.decision_function(sentences)]


class Judge(Scorer):
    """The judge of a run: logistic regression on words of the sentences that the scorer has not seen."""

    def __init__(self) -> None:
        self.model = fitted_judge().model

    @staticmethod
    def verdicts(first: Sequence[float], second: Sequence[float]) -> list[float]:
        """1 where the first is better, 1/2 for a tie."""
        return [(1 + (one > two) - (one < two)) / 2 for one, two in zip(first, second, strict=True)]


def make_base(folder: Path, *, prompts: Prompts, steps: int, layers: int) -> Path:
    """The SFT model's folder: a T5 with the small model's tokenizer and word vectors, fitted to real continuations.

    It is made once: a second call finds it.
    """
    from valence import align
    from valence.policies.loading import load_language_policy

    model = folder / "run" / "model"
    if (model / "config.json").is_file():
        return model
    small = load_language_policy("small-lm")
    write_new_t5(folder / "start", small, layers=layers)
    write_lines(folder / "sft.jsonl", sft_rows(small.tokenizer, prompts, SFT_BATCH * steps))
    options = SILENT | {
        "method": "supervised", "lr": 0.01, "optimizer": "adafactor", "lr_schedule": "linear", "batch_size": SFT_BATCH,
        "max_steps": steps, "eval_samples": 8, "eval_fraction": 0.0, "max_new_tokens": NEW_TOKENS,
        "dtype": fast_dtype(), "separator": "",
    }  # fmt: skip
    align(folder / "sft.jsonl", model=folder / "start", out=folder / "run", **options)
    return model


def make_rows(path: Path, model: Path, scorer: Scorer, prompts: Sequence[str], count: int) -> list[dict[str, Any]]:
    """`count` rows {"prompt", "completion", "score"}: one sample of the SFT model for each prompt, scored.

    Samples that are empty or did not end are dropped, and the next prompt is taken. The rows are stored in `path`.
    """
    if path.is_file():
        return read_lines(path)[:count]
    import torch

    from valence.data.collate import Encoder
    from valence.evaluation.language import sample_texts
    from valence.policies.loading import load_language_policy

    policy = load_language_policy(str(model), max_new_tokens=NEW_TOKENS)
    encoder = Encoder(policy.tokenizer, encoder_decoder=True)
    rows: list[dict[str, Any]] = []
    for start in range(0, len(prompts), 256):
        part = prompts[start : start + 256]
        ids = [encoder.prompt(prompt) for prompt in part]
        texts, chunks = sample_texts(policy, ids, seed=start)
        ends = torch.tensor(policy.end_token_ids)
        ended = torch.cat([torch.isin(action.steps, ends).any(-1)[:, 0] for _, action in chunks]).tolist()
        found = zip(part, texts, scorer(part, texts), ended, strict=True)
        rows += [{"prompt": x, "completion": y, "score": r} for x, y, r, done in found if done and y.strip()]
        if len(rows) >= count:
            break
    if len(rows) < count:
        raise UserError(f"{model} gave {len(rows)} complete samples for {len(prompts)} prompts, and {count} are needed")
    write_lines(path, rows[:count])
    return rows[:count]


def minibatch_labels(scores: Sequence[float], *, batch_size: int, seed: int) -> list[bool]:
    """KTO's labels as in the DRO paper: accepted iff the score is above the mean of the row's mini-batch in the first
    epoch of a source of that seed."""
    from valence.data.collate import EncodedGroup
    from valence.data.groups import Group
    from valence.sources.offline import OfflineSource

    # The source itself says which rows are in a mini-batch: each row's prompt is its number.
    rows = [EncodedGroup([place], [[0]], Group("", ("",), (1,))) for place in range(len(scores))]
    source = OfflineSource(rows, batch_size=batch_size, pad=0, seed=seed)
    labels = [False] * len(scores)
    for _ in range(source.batches_per_epoch):
        places = source.next().context.ids[:, -1].tolist()
        mean = sum(scores[place] for place in places) / len(places)
        for place in places:
            labels[place] = scores[place] > mean
    return labels


def write_feedback(path: Path, rows: Sequence[dict[str, Any]], *, method: str, batch_size: int, seed: int) -> Path:
    """The rows as `method` takes them: scores for DRO, mini-batch labels for KTO."""
    if method == "kto":
        labels = minibatch_labels([row["score"] for row in rows], batch_size=batch_size, seed=seed)
        rows = [
            {"prompt": row["prompt"], "completion": row["completion"], "accept": label}
            for row, label in zip(rows, labels, strict=True)
        ]
    return write_lines(path, rows)
