"""The parts of one run of `python -m experiments offline-control`: value, labels, training and evaluation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from experiments.common import experiment as common
from experiments.offline_control.simulator import PickPlace
from valence.feedback.advantages import label_advantage
from valence.objectives.pmpo import pmpo_beta
from valence.policies.gaussian import GaussianPolicy
from valence.sources.episodes import EpisodeTable, mixture
from valence.training import episodes

DISCOUNT, GAE_LAMBDA = 0.98, 0.9
EXPECTILE = 0.7
VALUE_BATCH, BATCH_SIZE, HIDDEN = 2048, 512, (256, 256)
MIN_SCALE = 0.3
"""The policy's least standard deviation, in half action ranges: the mean of the data's noise. With the tanh on the mean
it bounds log pi from below, so that a rejection cannot pay without end."""


@dataclass(frozen=True)
class Mixture(common.Setting):
    """One run: which losses it has, and their weights. Its name is the one in the paper's Table 1.

    Args:
        accept, reject, clone: which rows it learns from.
        alpha: weight of accepted against rejected rows.
        beta: weight of cloning.
        over_bound: beta divided by its smallest bounded value on the labels at hand; takes the place of `beta`.
        lr: learning rate of Adam, falling linearly to 0.
        every: only the labels of every so many-th early episode are used.
    """

    accept: bool = False
    reject: bool = False
    clone: bool = False
    alpha: float = 1.0
    beta: float = 1.0
    over_bound: float | None = None
    lr: float = 1e-3
    every: int = 1

    def on(self, sign: Int[Tensor, "E S"]) -> Mixture:
        """With the beta for these labels: with their rejected share rho, the bound is (1 - alpha) / rho."""
        if self.over_bound is None:
            return self
        counts = {"accepted": float((sign > 0).sum()), "rejected": float((sign < 0).sum())}
        return replace(self, beta=self.over_bound * pmpo_beta(alpha=self.alpha, **counts))


def fit_value(table: EpisodeTable, *, seed: int, steps: int) -> Float[Tensor, "E L"]:
    """V of every observation, with this experiment's settings."""
    return episodes.fit_value(
        table, seed=seed, steps=steps, discount=DISCOUNT, gae_lambda=GAE_LAMBDA, expectile=EXPECTILE, hidden=HIDDEN,
        batch_size=VALUE_BATCH,
    )  # fmt: skip


def make_labels(table: EpisodeTable, value: Float[Tensor, "E L"], early: int) -> Int[Tensor, "E S"]:
    """The sign of the advantage in the first `early` episodes; the others stay unlabelled (0)."""
    advantage = episodes.advantages(table, value, discount=DISCOUNT, gae_lambda=GAE_LAMBDA)
    sign = label_advantage(advantage, table.present)
    sign[early:] = 0
    return sign


def thin(sign: Int[Tensor, "E S"], every: int) -> Int[Tensor, "E S"]:
    """The labels of every `every`-th episode only."""
    kept = torch.zeros_like(sign)
    kept[::every] = sign[::every]
    return kept


def train_policy(
    table: EpisodeTable, sign: Int[Tensor, "E S"], setting: Mixture, *, seed: int, steps: int
) -> tuple[GaussianPolicy, dict[str, float]]:
    """Learn a policy from one mixture: (the policy, the last update's figures)."""
    rows = mixture(table, sign, accept=setting.accept, reject=setting.reject, clone=setting.clone)
    return episodes.train_policy(
        rows, alpha=setting.alpha, beta=setting.beta, lr=setting.lr, steps=steps, seed=seed, batch_size=BATCH_SIZE,
        hidden=HIDDEN, min_scale=MIN_SCALE,
    )  # fmt: skip


def evaluate(policy: GaussianPolicy, table: EpisodeTable, task: PickPlace, seeds: range) -> dict[str, Any]:
    """Act by the mean action: the sum of rewards of each episode, and the share of episodes that reached the goal."""
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
