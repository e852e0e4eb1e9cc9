"""The paper's protocol: a diagonal Gaussian, Adam, four samples per step, and a reference that lags by 100 steps.

Source: PMPO paper, section 5.1. It runs on the package's `Learner`, `FrozenCopy` and objectives, and takes any
objective that reads log pi and KL of labels or preferences. `valence.PreferenceSearch` searches far better.

The paper does not give its optimizer, learning rate or first standard deviation. Adam and 0.3 times a box's width are
chosen here, and the learning rate is the same for all objectives.
Shapes: one context (N = 1), K samples, T = 1 step of d coordinates.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from valence.feedback.labelling import label_top_k
from valence.policies.base import likelihood_from_distributions, pull_back
from valence.protocols import Objective, Reference
from valence.search.space import Space
from valence.training.learner import Learner
from valence.training.reference import FrozenCopy
from valence.types import Action, Batch, Feedback, Labels, Likelihood, Preferences, Rewards


class DiagonalGaussian(nn.Module):
    """N(mean, diag(exp(log_std)^2)) without a context, in float64.

    Args:
        mean: `[d]`.
        std: standard deviation of every coordinate, > 0.
    """

    def __init__(self, mean: Float[np.ndarray, " d"], std: float) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.from_numpy(mean.astype(np.float64)).clone())
        self.log_std = nn.Parameter(torch.full_like(self.mean, math.log(std)))

    def distribution(self, num_samples: int) -> Independent:
        """Batch shape `[1, K, 1]`, event shape `[d]`."""
        normal = Normal(self.mean, self.log_std.exp(), validate_args=False)
        return Independent(normal.expand(torch.Size((1, num_samples, 1, len(self.mean)))), 1)

    @torch.no_grad()
    def sample(self, context: Any, num_samples: int, generator: torch.Generator) -> Action:
        """`[1, K, 1, d]`."""
        shape = (1, num_samples, 1, len(self.mean))
        noise = torch.randn(shape, generator=generator, dtype=self.mean.dtype)
        return Action(self.mean + self.log_std.exp() * noise, torch.ones(shape[:3], dtype=torch.bool))

    def likelihood(self, batch: Batch, reference: Reference | None, needs: frozenset[str]) -> Likelihood:
        count = batch.action.steps.shape[1]
        base = None
        if reference is not None:
            with reference.active() as other:
                base = other.distribution(count)
        return likelihood_from_distributions(
            self.distribution(count), base, batch.action.steps, batch.action.mask, needs
        )

    def backward(
        self, batch: Batch, reference: Reference | None, likelihood: Likelihood, grads: Mapping[str, Tensor]
    ) -> None:
        pull_back(likelihood, grads)

    def frozen_copy(self, dtype: torch.dtype | None = None, device: str | None = None) -> DiagonalGaussian:
        return copy.deepcopy(self).to(dtype=dtype, device=device).requires_grad_(False)

    def trainable(self) -> dict[str, nn.Parameter]:
        return dict(self.named_parameters())

    def save(self, folder: Path) -> None:
        raise NotImplementedError("the experiment keeps no policy")


class GradientSearch:
    """Minimises a function: ask for points, tell their values, one Adam step per tell.

    Args:
        space: the points to choose from.
        objective: PMPO, DPO or another that needs log pi and KL only.
        num_samples: points per ask, >= 2.
        refresh_every: steps between two copies of the policy to the reference, which points are drawn from.
        lr: learning rate, for latent units and log standard deviations.
        start: the first mean, as a point; the space's middle by default.
        sigma: the first standard deviation, in units of the space; the space's default by default.
        seed: random seed of the draws.
    Raises:
        ValueError: fewer than 2 samples.
    """

    def __init__(
        self, space: Space, objective: Objective, *, num_samples: int = 4, refresh_every: int = 100, lr: float = 0.01,
        start: Any = None, sigma: float | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        if num_samples < 2:
            raise ValueError(f"`num_samples` is {num_samples}; at least 2 points are needed for a comparison")
        self.space, self.num_samples = space, num_samples
        mean = np.zeros(space.dim)
        if start is not None:
            mean = space.latent(np.array([start], dtype=np.float64), mean)[0]
        std = (space.default_sigma if sigma is None else sigma) * space.sigma_unit
        self.policy = DiagonalGaussian(mean, std)
        self.reference = FrozenCopy(self.policy, refresh_every=refresh_every)
        optimizer = torch.optim.Adam(self.policy.parameters(), lr=lr)
        self.learner = Learner(self.policy, objective, self.reference, {"policy": optimizer}, max_grad_norm=0.0)
        self.generator = torch.Generator().manual_seed(seed)
        self.asked: dict[bytes, Tensor] = {}
        self.best = math.inf

    def ask(self, n: int | None = None) -> Float[np.ndarray, "n d"]:
        """Draw `n` points from the reference."""
        latent = self.reference.copy.sample(None, n or self.num_samples, self.generator).steps[0, :, 0]
        x = self.space.points(latent.numpy())
        self.asked = {point.tobytes(): row for point, row in zip(x, latent, strict=True)}
        return x

    def tell(self, x: Float[np.ndarray, "n d"], values: Any) -> None:
        """One gradient step. The better half is accepted and the worse half rejected; an objective that takes
        preferences compares the best point with the worst.

        Raises:
            FloatingPointError: the objective or its gradient is not finite.
        """
        column = torch.as_tensor(np.asarray(values, dtype=np.float64))
        latent = self.space.latent(x, self.policy.mean.detach().numpy())
        rows = [self.asked.get(point.tobytes(), torch.from_numpy(row)) for point, row in zip(x, latent, strict=True)]
        steps = torch.stack(rows)[None, :, None]
        action = Action(steps, torch.ones(steps.shape[:3], dtype=torch.bool))
        feedback = _feedback(column, labels=Labels in self.learner.objective.accepts)
        self.learner.update(Batch(None, action, feedback))
        self.best = min(self.best, float(column.min()))

    @property
    def mean(self) -> Float[np.ndarray, " d"]:
        """The policy's mean, as a point."""
        return self.space.points(self.policy.mean.detach().numpy()[None])[0]


def _feedback(values: Float[Tensor, " K"], *, labels: bool) -> Feedback:
    """Labels of the better and the worse half, or the preference for the best over the worst."""
    count = len(values)
    present = torch.ones(1, count, dtype=torch.bool)
    if labels:
        return label_top_k(Rewards(-values[None], present), top=count // 2, bottom=count // 2)
    win = torch.zeros(1, count, count, dtype=torch.float64)
    win[0, int(values.argmin()), int(values.argmax())] = float(values.min() < values.max())
    return Preferences(win, win + win.mT > 0, present)
