"""Training on offline episodes: a value with the advantages that follow from it, and a policy on labelled rows.

Shape legend: see `valence.sources.episodes`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from valence.errors import UserError
from valence.feedback.advantages import episode_advantages, label_advantage
from valence.objectives.pmpo import PMPO
from valence.policies.actor import torso
from valence.policies.gaussian import GaussianPolicy
from valence.sources.episodes import EpisodeSource, EpisodeTable, Rows
from valence.training.learner import Learner
from valence.training.loop import Schedule, train

VALUE_ROUNDS, VALUE_BATCH, VALUE_LR = 12, 2048, 1e-3


def fit_value(
    table: EpisodeTable, *, seed: int, steps: int, discount: float, gae_lambda: float, expectile: float,
    hidden: tuple[int, ...] = (256, 256), batch_size: int = VALUE_BATCH,
) -> Float[Tensor, "E L"]:  # fmt: skip
    """V of every observation, in discounted reward: an expectile of the returns of the behaviours that made the data.

    Fitted lambda-returns: targets are computed on whole episodes, `VALUE_ROUNDS` times, with `steps` regression steps
    each. Values are clipped to those of the least and the largest reward for ever (and of 0 where episodes truly end).
    """
    torch.manual_seed(seed)
    net = nn.Sequential(torso(table.observation.shape[-1], hidden), nn.Linear(hidden[-1], 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=VALUE_LR)
    # Falls to 0: the last targets are then fitted closely, and a bias of V would be one of every label's.
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=VALUE_ROUNDS * steps)
    # In units of 1 / (1 - discount), so that the network's outputs are of order 1.
    unit = 1 / (1 - discount)
    least, most = (float(bound) for bound in table.reward[table.present].aminmax())
    if bool(table.terminated.any()):
        # After a true end there is nothing: that is worth 0.
        least, most = min(least, 0.0), max(most, 0.0)
    rows = table.observation[:, :-1][table.present]
    generator = torch.Generator().manual_seed(seed)
    for _ in range(VALUE_ROUNDS):
        value = _values(net, table).clamp(least, most) * unit
        ahead = advantages(table, value, discount=discount, gae_lambda=gae_lambda)
        target = (value[:, :-1] + ahead)[table.present] / unit
        for _ in range(steps):
            picks = torch.randint(len(rows), (batch_size,), generator=generator)
            error = target[picks] - net(rows[picks])[:, 0]
            loss = (torch.where(error > 0, expectile, 1 - expectile) * error.square()).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    return _values(net, table).clamp(least, most) * unit


@torch.no_grad()
def _values(net: nn.Module, table: EpisodeTable) -> Float[Tensor, "E L"]:
    return torch.cat([net(chunk)[..., 0] for chunk in table.observation.split(100)])


def advantages(
    table: EpisodeTable, value: Float[Tensor, "E L"], *, discount: float, gae_lambda: float
) -> Float[Tensor, "E S"]:
    """The advantage of every action in the data."""
    parts = (table.reward, value, table.present, table.terminated)
    return episode_advantages(*parts, discount=discount, gae_lambda=gae_lambda)


def make_labels(table: EpisodeTable, source: str, **value: Any) -> Int[Tensor, "E S"]:
    """The labels given with the data ("given"), the sign of every action's advantage ("advantage"), or "auto": given if
    there are any.

    Args:
        value: arguments of `fit_value`.
    Raises:
        UserError: given labels are asked for, and there are none.
    """
    given = bool((table.label != 0).any())
    if source == "given" and not given:
        raise UserError("the episodes carry no labels (infos/label, +1 or -1): use `labels=advantage`")
    if source != "advantage" and given:
        return table.label
    ahead = advantages(table, fit_value(table, **value), discount=value["discount"], gae_lambda=value["gae_lambda"])
    return label_advantage(ahead, table.present)


def train_policy(
    rows: Rows, *, alpha: float, beta: float, lr: float, steps: int, seed: int, batch_size: int = 512,
    hidden: tuple[int, ...] = (256, 256), min_scale: float = 0.3,
    on_step: Callable[[int, dict[str, float]], None] = lambda step, figures: None,
) -> tuple[GaussianPolicy, dict[str, float]]:  # fmt: skip
    """Train a policy on rows: (the policy, which reads scaled observations; figures of the last update)."""
    torch.manual_seed(seed)
    shares = dict(zip(("accepted_fraction", "rejected_fraction"), rows.fractions(), strict=True))
    objective: Any = PMPO(alpha=alpha, beta=beta, regularizer="bc", **shares)
    sizes, init_scale = (rows.observation.shape[1], rows.action.shape[1]), max(0.5, 1.5 * min_scale)
    policy = GaussianPolicy(*sizes, hidden, min_scale=min_scale, init_scale=init_scale)
    optimizer = torch.optim.Adam(policy.parameters(), lr=lr)
    learner = Learner(policy, objective, None, {"policy": optimizer}, total_steps=steps)
    last: dict[str, float] = {}

    def take(step: int, figures: dict[str, float]) -> None:
        last.update(figures)
        on_step(step, figures)

    source = EpisodeSource(rows, batch_size=batch_size, seed=seed)
    train(learner, source, Schedule(steps, log_every=0), on_step=take)
    return policy, last
