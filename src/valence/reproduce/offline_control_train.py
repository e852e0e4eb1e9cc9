"""The parts of `valence reproduce offline-control`: a value function, its labels, one training, one evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from valence.feedback.advantages import episode_advantages, label_advantage
from valence.objectives.pmpo import PMPO
from valence.policies.actor import torso
from valence.policies.gaussian import GaussianPolicy
from valence.reproduce.offline_control_env import PickPlace
from valence.sources.episodes import EpisodeSource, EpisodeTable, mixture
from valence.training.learner import Learner

DISCOUNT, TRACE = 0.98, 0.9
EXPECTILE = 0.7
VALUE_ROUNDS, VALUE_BATCH, VALUE_LR = 12, 2048, 1e-3
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
        lr: of Adam, falling linearly to 0.
    """

    name: str
    accept: bool = False
    reject: bool = False
    clone: bool = False
    alpha: float = 1.0
    beta: float = 1.0
    lr: float = 1e-3


def fit_value(table: EpisodeTable, *, seed: int, steps: int) -> Float[Tensor, "E L"]:
    """V of every observation under the mixture of behaviours that made the data, in discounted reward.

    Fitted lambda-returns: targets are computed on whole episodes, `VALUE_ROUNDS` times, with `steps` regression steps
    each. No value can lie beyond that of the least or the largest reward for ever: what a network says beyond is cut.
    """
    torch.manual_seed(seed)
    net = nn.Sequential(torso(table.observation.shape[-1], HIDDEN), nn.Linear(HIDDEN[-1], 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=VALUE_LR)
    # Falls to 0: the last targets are then fitted closely, and a bias of V would be one of every label's.
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=VALUE_ROUNDS * steps)
    # In units of 1 / (1 - discount), so that the network's outputs are of order 1.
    unit = 1 / (1 - DISCOUNT)
    least, most = (float(bound) for bound in table.reward[table.present].aminmax())
    rows = table.observation[:, :-1][table.present]
    generator = torch.Generator().manual_seed(seed)
    for _ in range(VALUE_ROUNDS):
        value = _values(net, table).clamp(least, most) * unit
        target = (value[:, :-1] + advantages(table, value))[table.present] / unit
        for _ in range(steps):
            picks = torch.randint(len(rows), (VALUE_BATCH,), generator=generator)
            error = target[picks] - net(rows[picks])[:, 0]
            side = torch.where(error > 0, EXPECTILE, 1 - EXPECTILE)
            loss = (side * error.square()).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    return _values(net, table).clamp(least, most) * unit


@torch.no_grad()
def _values(net: nn.Module, table: EpisodeTable) -> Float[Tensor, "E L"]:
    return torch.cat([net(chunk)[..., 0] for chunk in table.observation.split(100)])


def advantages(table: EpisodeTable, value: Float[Tensor, "E L"]) -> Float[Tensor, "E S"]:
    """Of every action in the data, at this experiment's discount and trace."""
    return episode_advantages(
        table.reward, value, table.present, table.terminated, discount=DISCOUNT, trace=TRACE
    )  # fmt: skip


def make_labels(table: EpisodeTable, value: Float[Tensor, "E L"], early: int) -> Int[Tensor, "E S"]:
    """The sign of the advantage in the first `early` episodes; the others stay unlabelled (0)."""
    sign = label_advantage(advantages(table, value), table.present)
    sign[early:] = 0
    return sign


def train_policy(
    table: EpisodeTable, sign: Int[Tensor, "E S"], setting: Mixture, *, seed: int, steps: int
) -> tuple[GaussianPolicy, dict[str, float]]:
    """Learn a policy from one mixture: (the policy, the last update's figures)."""
    torch.manual_seed(seed)
    rows = mixture(table, sign, accept=setting.accept, reject=setting.reject, clone=setting.clone)
    accepted, rejected = rows.fractions()
    objective = PMPO(
        alpha=setting.alpha, beta=setting.beta, accepted_fraction=accepted, rejected_fraction=rejected,
        regularizer="bc",
    )  # fmt: skip
    policy = GaussianPolicy(rows.observation.shape[1], rows.action.shape[1], HIDDEN, min_scale=MIN_SCALE)
    learner = Learner(
        policy, objective, None, {"policy": torch.optim.Adam(policy.parameters(), lr=setting.lr)}, total_steps=steps
    )
    source, figures = EpisodeSource(rows, batch_size=BATCH_SIZE, seed=seed), dict[str, float]()
    while learner.step < steps:
        figures = learner.update(source.next(policy))
    return policy, figures


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
