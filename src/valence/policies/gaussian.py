"""A Gaussian over continuous actions with independent dimensions: a mean and a standard deviation from a network.

The Gaussian is not squashed, so its densities and KLs are exact. A tanh keeps its mean in [-1, 1]. Actions are stored
as drawn; the environment gets them clipped to [-1, 1] (`decode`).

Shape legend: see `valence.policies.actor`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Independent, Normal
from torch.nn.functional import softplus

from valence.policies.actor import Actor
from valence.policies.base import likelihood_from_distributions
from valence.protocols import Reference
from valence.types import DECOUPLED, Batch, Likelihood


class GaussianPolicy(Actor):
    """Mean and standard deviation from one network.

    Args:
        observation_size, action_size: O and D.
        hidden: units of each hidden layer.
        init_scale: initial standard deviation, in units of half the action range.
        min_scale: lower bound of the standard deviation; 0 lets it vanish, and with it exploration.
    Raises:
        ValueError: a size below 1, or a scale out of range.
    """

    kind = "gaussian"

    def __init__(
        self, observation_size: int, action_size: int, hidden: Sequence[int] = (256, 256), *,
        init_scale: float = 0.5, min_scale: float = 1e-3,
    ) -> None:  # fmt: skip
        if not 0 <= min_scale < init_scale:
            raise ValueError(f"need 0 <= `min_scale` < `init_scale`, got {min_scale} and {init_scale}")
        super().__init__(observation_size, action_size, hidden, 2 * action_size)
        self.init_scale, self.min_scale = init_scale, min_scale

    def moments(self, context: Float[Tensor, "N O"]) -> tuple[Float[Tensor, "N 1 1 D"], Float[Tensor, "N 1 1 D"]]:
        """Mean and standard deviation of each action dimension."""
        mean, raw = self.head(self.torso(context))[:, None, None].chunk(2, dim=-1)
        scale = softplus(raw) * ((self.init_scale - self.min_scale) / math.log(2)) + self.min_scale
        return torch.tanh(mean), scale

    def distribution(self, context: Float[Tensor, "N O"]) -> Independent:
        return _normal(*self.moments(context))

    def draw(self, context: Float[Tensor, "N O"], num_samples: int, generator: torch.Generator) -> Tensor:
        mean, scale = self.moments(context)
        noise = torch.randn(len(context), num_samples, 1, self.action_size, generator=generator, dtype=mean.dtype)
        return mean + scale * noise

    def decode(self, steps: Tensor) -> Float[Tensor, "... D"]:
        return steps.clamp(-1.0, 1.0)

    @torch.no_grad()
    def mode(self, context: Float[Tensor, "N O"]) -> Float[Tensor, "N D"]:
        return self.decode(self.moments(context)[0][:, 0, 0])

    def likelihood(self, batch: Batch, reference: Reference | None, needs: frozenset[str]) -> Likelihood:
        """As in `Actor`, and the quantities of a decoupled update of mean and covariance, if `needs` has them."""
        if not needs & DECOUPLED:
            return super().likelihood(batch, reference, needs)
        theirs = self._reference(batch, reference, needs)
        if theirs is None:
            raise ValueError(f"{sorted(needs & DECOUPLED)} need a reference policy, and `reference` is None")
        assert isinstance(theirs, Independent)
        mean, scale = self.moments(batch.context)
        halves = {"mean": _normal(mean, theirs.base_dist.scale), "covariance": _normal(theirs.base_dist.loc, scale)}
        action, parts = batch.action, {}
        measure = partial(likelihood_from_distributions, reference=theirs, steps=action.steps, mask=action.mask)
        for name, half in halves.items():
            measured = measure(half, needs=frozenset({"log_prob", "ref_kl"}))
            parts |= {f"log_prob_{name}": measured.log_prob, f"ref_kl_{name}": measured.ref_kl}
        return replace(measure(_normal(mean, scale), needs=needs - DECOUPLED), **parts)


def _normal(mean: Tensor, scale: Tensor) -> Independent:
    return Independent(Normal(mean, scale, validate_args=False), 1, validate_args=False)
