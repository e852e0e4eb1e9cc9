"""The text task of the language reproductions: finish a movie-review sentence so that it speaks well of the film.

The policy sees a sentence's first words and writes the rest. Three parties, three parts of the data: a reward model is
fitted on pairs of the feedback half (a fresh sentence against a rotten one) and is what methods learn from; the judge
is another kind of model, fitted on the judge half, and only looks; prompts to look at are of the held-out split, whose
own rests are the human references of win rates.
"""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from valence.reproduce.thumbs_data import Judge, read_sentences, split_sentences

WORDS = 4
"""Of a sentence are the prompt."""
MAX_NEW_TOKENS = 20
KL_WEIGHT, UNFINISHED = 0.05, -1.0
"""gamma and Gamma of the REBEL paper, appendix H.1.4."""


@dataclass(frozen=True)
class TaskSize:
    """How much is prepared.

    Args:
        reward_steps: of the reward model, 32 pairs each.
        looked_at: held-out prompts.
    """

    reward_steps: int
    looked_at: int


@dataclass(frozen=True)
class Task:
    """Where the prepared files are: `prompts`, `heldout` (with the column `rest`), `pairs` and the reward model."""

    folder: Path

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
        """Held-out prompt -> the human's rest."""
        rows = [json.loads(line) for line in self.heldout.read_text(encoding="utf-8").splitlines()]
        return {row["prompt"]: row["rest"] for row in rows}

    def facts(self) -> dict[str, Any]:
        """How good the two judges are, on held-out sentences."""
        return json.loads((self.folder / "task.json").read_text(encoding="utf-8"))


class Gold:
    """The separate judge's log-odds that the whole sentence is positive."""

    __name__ = "separate judge"

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
        texts = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
        return [float(value) for value in separate_judge().model.decision_function(texts)]


@functools.cache
def separate_judge() -> Judge:
    """Fitted once a process."""
    return Judge(split_sentences(read_sentences()).judge)


def prepare(folder: Path, size: TaskSize) -> Task:
    """Write the files and fit the reward model, or take what is there."""
    task = Task(folder)
    wanted = asdict(size)
    if (folder / "task.json").is_file() and task.facts()["size"] == wanted:
        return task
    folder.mkdir(parents=True, exist_ok=True)
    halves = split_sentences(read_sentences())
    _write(task.prompts, [{"prompt": prompt} for prompt in _cut(halves.feedback)])
    held = dict(list(_cut(halves.heldout).items())[: size.looked_at])
    _write(task.heldout, [{"prompt": prompt, "rest": rest} for prompt, rest in held.items()])
    _write(task.pairs, _pairs(halves.feedback))
    figures = _fit_reward_model(task, size)
    accuracy = separate_judge().accuracy(halves.heldout)
    facts = {"size": wanted, "reward_model": figures, "judge_accuracy": accuracy, "prompts": len(_cut(halves.feedback))}
    (folder / "task.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return task


def _cut(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """First words -> the rest, of sentences that have some; of equal beginnings the first."""
    found: dict[str, str] = {}
    for row in rows:
        words = row["completion"].split()
        if len(words) >= 2 * WORDS:
            found.setdefault(" ".join(words[:WORDS]), " " + " ".join(words[WORDS:]))
    return found


def _pairs(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each fresh sentence against a rotten one, twice over, with no prompt."""
    fresh = [row["completion"] for row in rows if row["accept"]]
    rotten = [row["completion"] for row in rows if not row["accept"]]
    shuffling, found = random.Random(0), []
    for _ in range(2):
        shuffling.shuffle(fresh)
        shuffling.shuffle(rotten)
        found += [{"prompt": "", "chosen": one, "rejected": two} for one, two in zip(fresh, rotten, strict=False)]
    return found


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _fit_reward_model(task: Task, size: TaskSize) -> dict[str, Any]:
    """Bradley-Terry on the pairs; its accuracy on pairs of the held-out split."""
    import shutil

    from valence.runs.reward_model import RewardModelConfig, train_reward_model

    shutil.rmtree(task.reward, ignore_errors=True)
    heldout = [row | {"split": "heldout"} for row in _pairs(split_sentences(read_sentences()).heldout)]
    heldout = heldout[: 5 * size.looked_at]
    both = [json.loads(line) | {"split": "train"} for line in task.pairs.read_text(encoding="utf-8").splitlines()]
    rated = task.folder / "rated.jsonl"
    _write(rated, both + heldout)
    return train_reward_model(
        RewardModelConfig(
            feedback=(str(rated),), model="small-lm", out=str(task.reward), max_steps=size.reward_steps, lr=1e-3,
            max_length=64, threads=1, device="cpu",
        ),
        say=lambda line: None,
    )  # fmt: skip
