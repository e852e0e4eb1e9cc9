"""`valence reward-model PAIRS… --model MODEL --out DIR`."""

from __future__ import annotations

from collections.abc import Sequence

from valence.cli.parse import parse
from valence.runs.reward_model import RewardModelConfig, train_reward_model

DESCRIPTION = (
    "Train a judge for valence improve: a reward model from comparisons (Bradley-Terry) or scores, or a preference "
    "model, which can express cycles."
)


def run(arguments: Sequence[str]) -> None:
    """Parse and train."""
    train_reward_model(parse(RewardModelConfig, arguments, prog="valence reward-model", description=DESCRIPTION))
