"""Each action dimension cut into bins: independent categoricals, whose KLs are exact.

Steps are bin numbers, `[N, K, 1, D]`, integers; `decode` gives the bins' centres, evenly spaced over [-1, 1]. No bin's
probability falls below a floor, just as a Gaussian's standard deviation has one: log-probabilities and KLs stay finite,
and a bin that was abandoned can come back.

Shape legend: see `valence.policies.actor`; B bins.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Categorical, Independent
from torch.distributions.kl import register_kl

from valence.policies.actor import Actor


class Bins(Categorical):
    """A categorical whose KL is taken on log-probabilities: torch's own is infinite where a probability underflows."""


@register_kl(Bins, Bins)
def _kl_bins(first: Bins, second: Bins) -> Tensor:
    return (first.probs * (first.logits - second.logits)).sum(-1)


class CategoricalPolicy(Actor):
    """Logits over the bins of each dimension from one network.

    Args:
        observation_size, action_size: O and D.
        hidden: units of each hidden layer.
        bins: B, at least 2: the first is -1 and the last +1.
        min_prob: lower bound of each bin's probability; 0 lets it vanish.
    Raises:
        ValueError: a size below 1, fewer than 2 bins, or a floor that leaves nothing to learn.
    """

    kind = "categorical"

    def __init__(
        self, observation_size: int, action_size: int, hidden: Sequence[int] = (256, 256), *, bins: int = 11,
        min_prob: float = 1e-3,
    ) -> None:  # fmt: skip
        if bins < 2:
            raise ValueError(f"`bins` is {bins}, and must be at least 2")
        if not 0 <= min_prob < 1 / bins:
            raise ValueError(f"`min_prob` is {min_prob}, and must be in [0, 1 / bins)")
        super().__init__(observation_size, action_size, hidden, action_size * bins)
        self.bins, self.min_prob = bins, min_prob

    def logits(self, context: Float[Tensor, "N O"]) -> Float[Tensor, "N 1 1 D B"]:
        """Log-probabilities of the bins."""
        free = self.head(self.torso(context)).view(-1, 1, 1, self.action_size, self.bins)
        if not self.min_prob:
            return free.log_softmax(-1)
        return torch.log(free.softmax(-1) * (1 - self.bins * self.min_prob) + self.min_prob)

    def distribution(self, context: Float[Tensor, "N O"]) -> Independent:
        return Independent(Bins(logits=self.logits(context), validate_args=False), 1, validate_args=False)

    def draw(self, context: Float[Tensor, "N O"], num_samples: int, generator: torch.Generator) -> Tensor:
        probabilities = self.logits(context).exp().view(-1, self.bins)
        picks = torch.multinomial(probabilities, num_samples, replacement=True, generator=generator)
        return picks.view(len(context), self.action_size, num_samples).transpose(1, 2)[:, :, None]

    def decode(self, steps: Tensor) -> Float[Tensor, "... D"]:
        return steps.to(self.head.weight.dtype) * (2.0 / (self.bins - 1)) - 1.0

    @torch.no_grad()
    def mode(self, context: Float[Tensor, "N O"]) -> Float[Tensor, "N D"]:
        return self.decode(self.logits(context)[:, 0, 0].argmax(-1))
