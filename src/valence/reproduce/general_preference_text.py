"""A cyclic preference over text for `general-preference`: its oracle, and one run of `improve` under it.

What kind a completion is depends on the mark that stands first in it: a comma, a full stop (or ! or ?), or none. A
comma beats a stop, a stop beats none, none beats a comma, each with probability 0.9; two of one kind are even. For each
prompt that is rock-paper-scissors over the policy's three shares, so a duality gap can be read off sampled kinds.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from valence.reproduce.general_preference_games import SPO, Curve, duality_gap
from valence.reproduce.thumbs_data import read_sentences, split_sentences
from valence.rewards.functions import text_of
from valence.rewards.judge import SelfPlay

KINDS = ("comma", "stop", "neither")
WIN = torch.tensor([[0.5, 0.9, 0.1], [0.1, 0.5, 0.9], [0.9, 0.1, 0.5]], dtype=torch.float64)
WORDS, TOKENS = 4, 6
"""How many words a prompt has, and how many tokens a completion at most."""
SAMPLES = 4
"""Completions of a prompt in a batch; the oracle votes once on each pair of them."""


@dataclass(frozen=True)
class TextSize:
    """How long a run is.

    Args:
        iterations: batches that are collected, each the draw of one iterate.
        pool: prompts in all.
        prompts: prompts in a batch.
        rated: completions of each prompt, in groups of `SAMPLES`, whose pairs the Bradley-Terry model learns from.
        reward_epochs: passes over those pairs.
        final: completions of each prompt that measure the last iterate.
    """

    iterations: int
    pool: int = 64
    prompts: int = 32
    rated: int = 32
    reward_epochs: float = 2.0
    final: int = 64


def kind_of(text: str) -> int:
    """The place in `KINDS` of a completion."""
    marks = (0 if mark == "," else 1 for mark in text if mark in ",.!?")
    return next(marks, 2)


def read_prompts(count: int) -> list[str]:
    """First words of sentences of reviews, each once."""
    sentences = [row["completion"] for row in split_sentences(read_sentences()).feedback]
    random.Random(0).shuffle(sentences)
    starts = [" ".join(text.split()[:WORDS]) for text in sentences if len(text.split()) >= 2 * WORDS]
    return list(dict.fromkeys(starts))[:count]


class Oracle:
    """A pairwise judge that votes: 1 where the first is preferred, else 0, drawn with the probability of that."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, prompts: Sequence[Any], first: Sequence[Any], second: Sequence[Any]) -> list[float | None]:
        kinds = [[kind_of(text_of(text)) for text in side] for side in (first, second)]
        return torch.bernoulli(WIN[kinds[0], kinds[1]], generator=self.generator).tolist()


class Diary:
    """The kinds that each iterate wrote, by batch and by prompt."""

    def __init__(self, prompts: Sequence[str]) -> None:
        self.place = {prompt: number for number, prompt in enumerate(prompts)}
        self.counts: list[Int[Tensor, "P 3"]] = []

    def note(self, prompts: Sequence[str], completions: Sequence[Any]) -> None:
        """A batch of training; an evaluation has no two completions of a prompt side by side, and is passed over."""
        if len(prompts) > 1 and prompts[0] == prompts[1]:
            self.counts.append(count_kinds(self.place, prompts, completions))

    def shares(self) -> Float[Tensor, "T 3"]:
        """Of all prompts together, by batch."""
        counts = torch.stack(self.counts).sum(1).double()
        return counts / counts.sum(-1, keepdim=True)


def count_kinds(place: Mapping[str, int], prompts: Sequence[str], texts: Sequence[Any]) -> Int[Tensor, "P 3"]:
    counts = torch.zeros(len(place), 3, dtype=torch.long)
    for prompt, text in zip(prompts, texts, strict=True):
        counts[place[prompt], kind_of(text_of(text))] += 1
    return counts


def gap_by_prompt(counts: Int[Tensor, "P 3"]) -> float:
    """The paper's gap: against the best answer to each prompt. Estimated shares make it too large: see `gap_floor`."""
    seen = counts[counts.sum(-1) > 0].double()
    return float(duality_gap(WIN, seen / seen.sum(-1, keepdim=True)).mean())


def gap_floor(counts: Int[Tensor, "P 3"], draws: int = 50) -> float:
    """What `gap_by_prompt` gives on average where every share is 1/3, at the same numbers of samples."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(draws):
        drawn = torch.zeros_like(counts)
        for row, number in enumerate(counts.sum(-1).tolist()):
            picks = torch.randint(3, (number,), generator=generator)
            drawn[row] = torch.bincount(picks, minlength=3)
        found.append(gap_by_prompt(drawn))
    return sum(found) / len(found)


class WatchedSelfPlay(SelfPlay):
    """Self-play under the oracle that keeps a diary."""

    def __init__(self, oracle: Oracle, diary: Diary) -> None:
        super().__init__(oracle, name="cyclic oracle")
        self.diary = diary

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        self.diary.note(prompts, completions)
        return super().__call__(prompts, completions, **columns)


class WatchedReward:
    """A reward model that keeps a diary."""

    def __init__(self, reward: Any, diary: Diary) -> None:
        self.reward, self.diary = reward, diary

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float | None]:
        self.diary.note(prompts, completions)
        return self.reward(prompts, completions)


def draw(model: str, prompts: Sequence[str], each: int, *, seed: int) -> tuple[list[str], list[str]]:
    """(prompts, completions): `each` completions of every prompt from the model in folder `model`."""
    from valence.evaluation.language import sample_texts
    from valence.policies.loading import load_language_policy

    policy = load_language_policy(model, max_new_tokens=TOKENS)
    many = [prompt for prompt in prompts for _ in range(each)]
    ids = [policy.tokenizer(prompt)["input_ids"] for prompt in many]
    texts, _ = sample_texts(policy, ids, seed=seed, pad=policy.pad_token_id)
    return many, texts


def train_rater(folder: Path, prompts: Sequence[str], size: TextSize, *, seed: int) -> dict[str, Any]:
    """`valence reward-model` on votes over completions of the start policy; its figures, and its mean score of each
    kind. The model is written to `folder`."""
    from valence.rewards.reward_model import RewardModel
    from valence.runs.reward_model import RewardModelConfig, train_reward_model

    many, texts = draw("small-lm", prompts, size.rated, seed=10_000 + seed)
    oracle, rows = Oracle(20_000 + seed), []
    for at in range(0, len(many), SAMPLES):
        group = range(at, at + SAMPLES)
        pairs = [(i, j) for i in group for j in group if i < j]
        votes = oracle([""] * len(pairs), [texts[i] for i, _ in pairs], [texts[j] for _, j in pairs])
        for (i, j), first in zip(pairs, votes, strict=True):
            better, worse = (texts[i], texts[j]) if first else (texts[j], texts[i])
            rows.append({"prompt": many[at], "chosen": better, "rejected": worse})
    random.Random(seed).shuffle(rows)
    pairs_file = folder.with_suffix(".jsonl")
    pairs_file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = RewardModelConfig(
        feedback=(str(pairs_file),), model="small-lm", out=str(folder), epochs=size.reward_epochs, seed=seed,
        device="cpu", threads=1,
    )  # fmt: skip
    figures = train_reward_model(config, say=lambda line: None)
    scores = [float(value or 0.0) for value in RewardModel(str(folder))(many, texts)]
    kinds = [kind_of(text) for text in texts]
    means = {}
    for number, name in enumerate(KINDS):
        own = [score for score, kind in zip(scores, kinds, strict=True) if kind == number]
        means[name] = sum(own) / max(1, len(own))
    return {"figures": figures, "scores": means, "votes": len(rows)}


def run_text(task: Mapping[str, Any]) -> dict[str, Any]:
    """One run of `improve` as a row. Runs in a process of its own, on one thread.

    Args:
        task: method, seed, options (of `improve`) and size.
    """
    torch.set_num_threads(1)
    from valence.rewards.reward_model import RewardModel
    from valence.runs.improve import improve
    from valence.training.tracking import read_metrics

    size, seed = task["size"], task["seed"]
    prompts = read_prompts(size.pool)
    diary, rater = Diary(prompts), None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "prompts.jsonl"
        file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts), encoding="utf-8")
        if task["method"] == SPO:
            reward: Any = WatchedSelfPlay(Oracle(seed), diary)
        else:
            rater = train_rater(folder / "rater", prompts, size, seed=seed)
            reward = WatchedReward(RewardModel(str(folder / "rater")), diary)
        options = COMMON | {"method": "spo" if task["method"] == SPO else "rebel"} | dict(task["options"])
        batch = {"batch_size": size.prompts, "minibatch_size": (size.prompts + 1) // 2, "num_samples": SAMPLES}
        steps = 2 * options["inner_epochs"] * size.iterations
        result = improve(
            file, model="small-lm", out=folder / "run", reward=reward, quiet=True, max_steps=steps, seed=seed,
            eval_samples=4 * size.final, **batch, **options,
        )  # fmt: skip
        drift = [row["kl_policy_start"] for row in read_metrics(result.out / "metrics.jsonl")
                 if "kl_policy_start" in row]  # fmt: skip
        final, first = (
            count_kinds(diary.place, *draw(model, prompts, size.final, seed=30_000 + seed))
            for model in (str(result.model), "small-lm")
        )
    shares, summed = diary.shares(), torch.stack(diary.counts).sum(0)
    start, last = (counts.sum(0).double() / counts.sum() for counts in (first, final))
    curve = Curve.of(WIN, shares)
    return {
        "game": "text", "method": task["method"], "seed": seed, "options": dict(task["options"]),
        "gap_start": duality_gap(WIN, start).item(), "gap_average": curve.average[-1],
        "gap_last": duality_gap(WIN, last).item(), "gap_start_by_prompt": gap_by_prompt(first),
        "gap_average_by_prompt": gap_by_prompt(summed), "gap_last_by_prompt": gap_by_prompt(final),
        "average_floor": gap_floor(summed), "last_floor": gap_floor(final),
        "average": shares.mean(0).tolist(), "last": last.tolist(), "kl_last": result.after["kl_policy_ref"],
        "kl_iterates": sum(drift) / max(1, len(drift)), "shares": shares.tolist(), "gap_curve": curve.average,
        "rater": rater,
    }  # fmt: skip


COMMON: dict[str, Any] = {
    "eta": 1.0, "inner_epochs": 2, "max_new_tokens": TOKENS, "eval_every": 0, "eval_fraction": 0.0, "save_every": 0,
    "tracker": "none", "threads": 1, "log_every": 10**6, "reward_timeout": 600.0, "device": "cpu", "warmup_steps": 8,
}  # fmt: skip
"""Of every run; KL weights are each method's default: 0 for spo, 0.05 for rebel."""
