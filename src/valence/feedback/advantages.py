"""From rewards along episodes to advantages, and from advantages to labels.

    delta_t = r_t + gamma V(s_{t+1}) - V(s_t),    A_t = sum_k (gamma lambda)^k delta_{t+k}

Source: Schulman et al. 2016, "High-dimensional continuous control using generalized advantage estimation", Eq. 16.

Shape legend: E episodes · S steps of the longest one, L = S + 1 observations. An episode's steps come first in its
row; `present` masks the rest. Units: the reward's.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def episode_advantages(
    reward: Float[Tensor, "E S"],
    value: Float[Tensor, "E L"],
    present: Bool[Tensor, "E S"],
    terminated: Bool[Tensor, " E"],
    *,
    discount: float,
    gae_lambda: float,
) -> Float[Tensor, "E S"]:
    """A_t of every step, 0 where no step is. No sum crosses an episode's end.

    Args:
        reward: r_t. Anything where absent.
        value: V of every observation, the one after the last action included. Anything where absent.
        terminated: whether the episode ended by itself: its last value counts as 0. An episode that was cut off keeps
            its last value.
        discount: gamma, in [0, 1]; else ValueError.
        gae_lambda: lambda, in [0, 1]: 0 trusts V of the next observation, 1 the rewards alone; else ValueError.
    """
    for name, number in {"discount": discount, "gae_lambda": gae_lambda}.items():
        if not 0 <= number <= 1:
            raise ValueError(f"`{name}` is {number}, and must be in [0, 1]")
    going_on = torch.cat([present[:, 1:], torch.zeros_like(present[:, :1])], dim=1)
    ended = terminated[:, None] & ~going_on
    ahead = torch.where(ended, 0.0, value[:, 1:])
    delta = torch.where(present, reward + discount * ahead - value[:, :-1], 0.0)
    advantage, later = torch.zeros_like(delta), torch.zeros_like(delta[:, 0])
    for step in reversed(range(delta.shape[1])):
        later = torch.where(present[:, step], delta[:, step] + discount * gae_lambda * later, 0.0)
        advantage[:, step] = later
    return advantage


def on_last_step(reward: Float[Tensor, "N K"], mask: Bool[Tensor, "N K T"]) -> Float[Tensor, "N K T"]:
    """An action's reward on its last step, 0 on the others."""
    last = mask & (mask.flip(-1).cumsum(-1).flip(-1) == 1)
    return torch.where(last, reward[..., None], 0.0)


def label_advantage(advantage: Float[Tensor, "E S"], present: Bool[Tensor, "E S"]) -> Int[Tensor, "E S"]:
    """+1 where the advantage is at least 0, -1 where it is below, 0 where absent. Lossy: the size is forgotten."""
    sign = torch.where(advantage >= 0, 1, -1)
    return torch.where(present, sign, 0)
