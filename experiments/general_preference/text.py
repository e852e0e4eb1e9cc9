"""A cyclic preference over text for `general-preference`: its oracle, and one run of `valence.improve` with it.

The kind of a completion is its first mark: a comma, a full stop (or ! or ?), or none. A comma beats a stop, a stop
beats none, none beats a comma, each with probability 0.9; two of one kind are even. For each prompt this is
rock-paper-scissors over the policy's three shares, so a duality gap can be estimated from sampled kinds.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from experiments.common import experiment as common
from experiments.common.experiment import SILENT
from experiments.common.results import write_lines
from experiments.general_preference.games import SPO, Curve, duality_gap
from valence.rewards.functions import text_of
from valence.rewards.judge import SelfPlay
from valence.rewards.sentences import read_sentences, split_sentences

KINDS = ("comma", "stop", "neither")
WIN = torch.tensor([[0.5, 0.9, 0.1], [0.1, 0.5, 0.9], [0.9, 0.1, 0.5]], dtype=torch.float64)
WORDS, TOKENS = 4, 6
"""Words of a prompt, and tokens of a completion at most."""
SAMPLES = 4
"""Completions of a prompt in a batch; the oracle votes once on each pair of them."""
COMMON: dict[str, Any] = SILENT | {
    "eta": 1.0, "num_epochs": 2, "max_new_tokens": TOKENS, "eval_fraction": 0.0, "reward_timeout": 600.0,
    "device": "cpu", "warmup_steps": 8,
}  # fmt: skip
"""Options of every run. The KL weight is each method's default: 0 for spo, 0.05 for rebel."""


@dataclass(frozen=True)
class TextSize:
    """How long a run is.

    Args:
        iterations: collected batches; each is drawn from one iterate.
        pool: prompts in all.
        prompts: prompts in a batch.
        rated: completions of each prompt, in groups of `SAMPLES`, whose pairs the Bradley-Terry model is fitted to.
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
    """The index in `KINDS` of a completion."""
    marks = (0 if mark == "," else 1 for mark in text if mark in ",.!?")
    return next(marks, 2)


def read_prompts(count: int) -> list[str]:
    """The first words of review sentences, without repetition."""
    sentences = [row["completion"] for row in split_sentences(read_sentences()).feedback]
    random.Random(0).shuffle(sentences)
    starts = [" ".join(text.split()[:WORDS]) for text in sentences if len(text.split()) >= 2 * WORDS]
    return list(dict.fromkeys(starts))[:count]


class Oracle:
    """A pairwise judge with random votes: 1 where the first completion is preferred, else 0."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, prompts: Sequence[Any], first: Sequence[Any], second: Sequence[Any]) -> list[float | None]:
        kinds = [[kind_of(text_of(text)) for text in side] for side in (first, second)]
        return torch.bernoulli(WIN[kinds[0], kinds[1]], generator=self.generator).tolist()


class Diary:
    """Counts of the kinds that each iterate wrote, by batch and by prompt."""

    def __init__(self, prompts: Sequence[str]) -> None:
        self.place = {prompt: number for number, prompt in enumerate(prompts)}
        self.counts: list[Int[Tensor, "P 3"]] = []

    def note(self, prompts: Sequence[str], completions: Sequence[Any]) -> None:
        """Count a batch of training. An evaluation, which has no two completions of a prompt in a row, is ignored."""
        if len(prompts) > 1 and prompts[0] == prompts[1]:
            self.counts.append(count_kinds(self.place, prompts, completions))

    def shares(self) -> Float[Tensor, "T 3"]:
        """The shares of the kinds over all prompts, by batch."""
        counts = torch.stack(self.counts).sum(1).double()
        return counts / counts.sum(-1, keepdim=True)


def count_kinds(place: Mapping[str, int], prompts: Sequence[str], texts: Sequence[Any]) -> Int[Tensor, "P 3"]:
    counts = torch.zeros(len(place), 3, dtype=torch.long)
    for prompt, text in zip(prompts, texts, strict=True):
        counts[place[prompt], kind_of(text_of(text))] += 1
    return counts


def gap_by_prompt(counts: Int[Tensor, "P 3"]) -> float:
    """The paper's gap, against the best answer to each prompt. Estimated shares make it too large; see `gap_floor`."""
    seen = counts[counts.sum(-1) > 0].double()
    return float(duality_gap(WIN, seen / seen.sum(-1, keepdim=True)).mean())


def gap_floor(counts: Int[Tensor, "P 3"], draws: int = 50) -> float:
    """The mean of `gap_by_prompt` for the same numbers of samples where every share is 1/3."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(draws):
        drawn = torch.zeros_like(counts)
        for row, number in enumerate(counts.sum(-1).tolist()):
            picks = torch.randint(3, (number,), generator=generator)
            drawn[row] = torch.bincount(picks, minlength=3)
        found.append(gap_by_prompt(drawn))
    return sum(found) / len(found)


class RecordedSelfPlay(SelfPlay):
    """Self-play under the oracle; completions are counted in a diary."""

    def __init__(self, oracle: Oracle, diary: Diary) -> None:
        super().__init__(oracle, name="cyclic oracle")
        self.diary = diary

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        self.diary.note(prompts, completions)
        return super().__call__(prompts, completions, **columns)


class RecordedReward:
    """A reward model; completions are counted in a diary."""

    def __init__(self, reward: Any, diary: Diary) -> None:
        self.reward, self.diary = reward, diary

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float | None]:
        self.diary.note(prompts, completions)
        return self.reward(prompts, completions)


def draw(model: str, prompts: Sequence[str], each: int, *, seed: int) -> tuple[list[str], list[str]]:
    """(prompts, completions): `each` completions of every prompt from a model."""
    from valence.evaluation.language import sample_texts
    from valence.policies.loading import load_language_policy

    policy = load_language_policy(model, max_new_tokens=TOKENS)
    many = [prompt for prompt in prompts for _ in range(each)]
    ids = [policy.tokenizer(prompt)["input_ids"] for prompt in many]
    texts, _ = sample_texts(policy, ids, seed=seed)
    return many, texts


def train_rater(folder: Path, prompts: Sequence[str], size: TextSize, *, seed: int) -> dict[str, Any]:
    """Fit a reward model to votes on completions of the initial policy, and write it to `folder`.

    Returns:
        Its figures, its mean score of each kind, and the number of votes.
    """
    from valence.rewards.reward_model import RewardModel
    from valence.runs.reward_model import reward_model

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
    pairs_file = write_lines(folder.with_suffix(".jsonl"), rows)
    figures = reward_model(
        pairs_file, model="small-lm", out=folder, quiet=True, epochs=size.reward_epochs, seed=seed, device="cpu",
        threads=1, separator="",
    )  # fmt: skip
    scores = [float(value or 0.0) for value in RewardModel(str(folder))(many, texts)]
    kinds = [kind_of(text) for text in texts]
    means = {}
    for number, name in enumerate(KINDS):
        own = [score for score, kind in zip(scores, kinds, strict=True) if kind == number]
        means[name] = sum(own) / max(1, len(own))
    return {"figures": figures, "scores": means, "votes": len(rows)}


@dataclass(frozen=True)
class Setting(common.Setting):
    """One run of the method `name`.

    Args:
        options: options of `valence.improve`, beside `COMMON`.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    size: TextSize = TextSize(1)


def run_text(setting: Setting) -> dict[str, Any]:
    """The row of one run of `valence.improve`."""
    from valence import improve
    from valence.rewards.reward_model import RewardModel
    from valence.training.tracking import read_metrics

    size, seed = setting.size, setting.seed
    prompts = read_prompts(size.pool)
    diary, rater = Diary(prompts), None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = write_lines(folder / "prompts.jsonl", [{"prompt": prompt} for prompt in prompts])
        if setting.name == SPO:
            reward: Any = RecordedSelfPlay(Oracle(seed), diary)
        else:
            rater = train_rater(folder / "rater", prompts, size, seed=seed)
            reward = RecordedReward(RewardModel(str(folder / "rater")), diary)
        options = COMMON | {
            "method": "spo" if setting.name == SPO else "rebel", "batch_size": size.prompts,
            "minibatch_size": (size.prompts + 1) // 2, "num_samples": SAMPLES, "seed": seed,
            "max_steps": 2 * COMMON["num_epochs"] * size.iterations, "eval_samples": 4 * size.final,
            "separator": "",
        }  # fmt: skip
        result = improve(
            file, model="small-lm", out=folder / "run", reward=reward, **(options | dict(setting.options))
        )  # fmt: skip
        drift = [row["kl_policy_initial"] for row in read_metrics(result.out / "metrics.jsonl")
                 if "kl_policy_initial" in row]  # fmt: skip
        final, first = (
            count_kinds(diary.place, *draw(model, prompts, size.final, seed=30_000 + seed))
            for model in (str(result.model), "small-lm")
        )
    return {
        "game": "text", "method": setting.name, "options": dict(setting.options), **measure(first, diary, final),
        "kl_last": result.after["kl_policy_ref"], "kl_iterates": sum(drift) / max(1, len(drift)), "rater": rater,
    }  # fmt: skip


def measure(first: Int[Tensor, "P 3"], diary: Diary, final: Int[Tensor, "P 3"]) -> dict[str, Any]:
    """Gaps and shares of the initial policy, of the average iterate and of the last one, from counts of kinds."""
    shares, summed = diary.shares(), torch.stack(diary.counts).sum(0)
    start, last = (counts.sum(0).double() / counts.sum() for counts in (first, final))
    curve = Curve.of(WIN, shares)
    return {
        "gap_start": duality_gap(WIN, start).item(), "gap_average": curve.average[-1],
        "gap_last": duality_gap(WIN, last).item(), "gap_start_by_prompt": gap_by_prompt(first),
        "gap_average_by_prompt": gap_by_prompt(summed), "gap_last_by_prompt": gap_by_prompt(final),
        "average_floor": gap_floor(summed), "last_floor": gap_floor(final),
        "average": shares.mean(0).tolist(), "last": last.tolist(), "shares": shares.tolist(),
        "gap_curve": curve.average,
    }  # fmt: skip
