"""The text task: complete a movie-review sentence so that it speaks well of the film.

The policy sees the first words of a sentence and writes the rest. Three models see three separate parts of the data. A
reward model is fitted on pairs from the feedback half (a positive sentence against a negative one); the methods learn
from it. The separate judge is another kind of model, fitted on the judge half; nothing learns from it. Evaluation
prompts come from the held-out split, whose own endings are the human references of the win rates.
"""

from __future__ import annotations

import functools
import json
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.common.results import read_lines, write_lines
from valence.rewards.sentences import SentenceJudge, read_sentences, split_sentences

WORDS = 4
"""Words of a sentence that are the prompt."""
MAX_NEW_TOKENS = 20
KL_WEIGHT, UNFINISHED = 0.05, -1.0
"""gamma and Gamma of the REBEL paper, appendix H.1.4: the KL weight, and the reward of an unfinished completion."""


@dataclass(frozen=True)
class TaskSize:
    """Optimizer steps of the reward model, of 32 pairs each, and the number of held-out prompts."""

    reward_steps: int
    heldout: int


@dataclass(frozen=True)
class Task:
    """The prepared files: `prompts`, `heldout` (with the column `rest`), `pairs`, and the reward model's folder."""

    folder: Path
    size: TaskSize

    @property
    def prompts(self) -> Path:
        return self.folder / "prompts.jsonl"

    @property
    def heldout(self) -> Path:
        return self.folder / "heldout.jsonl"

    @property
    def pairs(self) -> Path:
        return self.folder / "pairs.jsonl"

    @property
    def reward(self) -> Path:
        return self.folder / "reward-model"

    def references(self) -> dict[str, str]:
        """Held-out prompt -> the rest of the human's sentence."""
        return {row["prompt"]: row["rest"] for row in read_lines(self.heldout)}

    def facts(self) -> dict[str, Any]:
        """How accurate the reward model and the separate judge are on held-out sentences."""
        return json.loads((self.folder / "task.json").read_text(encoding="utf-8"))


class SeparateJudge:
    """The log-odds that the whole sentence is positive, by a model that nothing learns from."""

    __name__ = "separate judge"

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
        texts = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
        return [float(value) for value in fitted_judge().model.decision_function(texts)]


@functools.cache
def fitted_judge() -> SentenceJudge:
    """The separate judge's model, fitted once per process."""
    return SentenceJudge(split_sentences(read_sentences()).judge)


def prepare(folder: Path, size: TaskSize) -> Task:
    """Write the files and fit the reward model, unless `folder` holds those of this size."""
    task = Task(folder, size)
    if (folder / "task.json").is_file() and task.facts()["size"] == asdict(size):
        return task
    folder.mkdir(parents=True, exist_ok=True)
    halves = split_sentences(read_sentences())
    prompts = split_prompts(halves.feedback)
    write_lines(task.prompts, [{"prompt": prompt} for prompt in prompts])
    heldout = list(split_prompts(halves.heldout).items())[: size.heldout]
    write_lines(task.heldout, [{"prompt": prompt, "rest": rest} for prompt, rest in heldout])
    write_lines(task.pairs, make_pairs(halves.feedback))
    facts = {
        "size": asdict(size), "reward_model": _fit_reward_model(task, halves.heldout),
        "judge_accuracy": fitted_judge().accuracy(halves.heldout), "prompts": len(prompts),
    }  # fmt: skip
    (folder / "task.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return task


def split_prompts(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """First words -> the rest, of sentences that are long enough; the first of equal beginnings."""
    prompts: dict[str, str] = {}
    for row in rows:
        words = row["completion"].split()
        if len(words) >= 2 * WORDS:
            prompts.setdefault(" ".join(words[:WORDS]), " " + " ".join(words[WORDS:]))
    return prompts


def make_pairs(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each positive sentence against a negative one, without a prompt, in two random orders."""
    positive = [row["completion"] for row in rows if row["accept"]]
    negative = [row["completion"] for row in rows if not row["accept"]]
    shuffling, pairs = random.Random(0), []
    for _ in range(2):
        shuffling.shuffle(positive)
        shuffling.shuffle(negative)
        pairs += [
            {"prompt": "", "chosen": one, "rejected": two} for one, two in zip(positive, negative, strict=False)
        ]  # fmt: skip
    return pairs


def _fit_reward_model(task: Task, heldout: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Fit a Bradley-Terry model to the pairs; its figures on pairs of the held-out split."""
    from valence.runs.reward_model import reward_model

    shutil.rmtree(task.reward, ignore_errors=True)
    rated = task.folder / "rated.jsonl"
    tested = [row | {"split": "heldout"} for row in make_pairs(heldout)][: 5 * task.size.heldout]
    write_lines(rated, [row | {"split": "train"} for row in read_lines(task.pairs)] + tested)
    return reward_model(
        rated, model="small-lm", out=task.reward, quiet=True, max_steps=task.size.reward_steps, lr=1e-3, max_length=64,
        threads=1, device="cpu", separator="",
    )  # fmt: skip
