"""The parts of `valence reproduce offline-control`: a value function, its labels, one training, one evaluation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from valence.feedback.advantages import label_advantage
from valence.objectives.pmpo import pmpo_beta
from valence.policies.gaussian import GaussianPolicy
from valence.reproduce.offline_control_env import PickPlace
from valence.runs import offline_control as offline
from valence.sources.episodes import EpisodeTable, mixture

DISCOUNT, TRACE = 0.98, 0.9
EXPECTILE = 0.7
VALUE_BATCH = offline.VALUE_BATCH
BATCH_SIZE, HIDDEN = 512, (256, 256)
MIN_SCALE = 0.3
"""The policy's least standard deviation, half action ranges: the mean of the data's noise. It and the tanh on the
mean bound log pi from below, so that a rejection cannot pay without end."""


@dataclass(frozen=True)
class Mixture:
    """Which losses, and their weights.

    Args:
        name: as in the paper's Table 1.
        accept, reject, clone: which rows it sees.
        alpha: weight of accepted against rejected.
        beta: weight of cloning.
        over_bound: with rejections, beta in units of its smallest bounded value on the labels at hand, in its place.
        lr: of Adam, falling linearly to 0.
    """

    name: str
    accept: bool = False
    reject: bool = False
    clone: bool = False
    alpha: float = 1.0
    beta: float = 1.0
    over_bound: float | None = None
    lr: float = 1e-3

    def on(self, sign: Int[Tensor, "E S"]) -> Mixture:
        """With the beta that these labels ask for: their own rejected share rho gives the bound (1 - alpha) / rho."""
        if self.over_bound is None:
            return self
        counts = {"accepted": float((sign > 0).sum()), "rejected": float((sign < 0).sum())}
        return replace(self, beta=self.over_bound * pmpo_beta(alpha=self.alpha, **counts))


def fit_value(table: EpisodeTable, *, seed: int, steps: int) -> Float[Tensor, "E L"]:
    """V of every observation, at this experiment's settings."""
    return offline.fit_value(
        table, seed=seed, steps=steps, discount=DISCOUNT, trace=TRACE, expectile=EXPECTILE, hidden=HIDDEN,
        batch_size=VALUE_BATCH,
    )  # fmt: skip


def make_labels(table: EpisodeTable, value: Float[Tensor, "E L"], early: int) -> Int[Tensor, "E S"]:
    """The sign of the advantage in the first `early` episodes; the others stay unlabelled (0)."""
    sign = label_advantage(offline.advantages(table, value, discount=DISCOUNT, trace=TRACE), table.present)
    sign[early:] = 0
    return sign


def thin(sign: Int[Tensor, "E S"], every: int) -> Int[Tensor, "E S"]:
    """The labels of every `every`-th episode alone."""
    kept = torch.zeros_like(sign)
    kept[::every] = sign[::every]
    return kept


def train_policy(
    table: EpisodeTable, sign: Int[Tensor, "E S"], setting: Mixture, *, seed: int, steps: int
) -> tuple[GaussianPolicy, dict[str, float]]:
    """Learn a policy from one mixture: (the policy, the last update's figures)."""
    rows = mixture(table, sign, accept=setting.accept, reject=setting.reject, clone=setting.clone)
    return offline.train_policy(
        rows, alpha=setting.alpha, beta=setting.beta, lr=setting.lr, steps=steps, seed=seed, batch_size=BATCH_SIZE,
        hidden=HIDDEN, min_scale=MIN_SCALE,
    )  # fmt: skip


def evaluate(policy: GaussianPolicy, table: EpisodeTable, task: PickPlace, seeds: range) -> dict[str, Any]:
    """Act by the mean: the sum of rewards of each episode, and the share of episodes that reached the goal."""
    rewards, solved = [], []
    for seed in seeds:
        observation, total, done = task.reset(seed), 0.0, False
        for _ in range(task.horizon):
            context = table.scaled(torch.from_numpy(observation)[None])
            observation, reward, success = task.step(policy.mode(context)[0].numpy())
            total, done = total + reward, done or success
        rewards.append(total)
        solved.append(done)
    return {"rewards": rewards, "reward": sum(rewards) / len(rewards), "success": sum(solved) / len(solved)}
