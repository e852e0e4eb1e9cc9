"""The paper's protocol: a diagonal Gaussian, Adam, four samples a step, a reference that lags by a hundred steps.

Source: PMPO paper, section 5.1. It runs on the ordinary `Learner`, `FrozenCopy` and objectives, and takes any of them
that read log pi and KL of labels, rewards or preferences. For searching, `PreferenceSearch` is better by far.

The paper does not give its optimizer, learning rate or first standard deviation: Adam and 0.3 times a box's width are
chosen here, and the learning rate is the same for all (see `valence reproduce bandit`).
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

from valence.feedback import label_top_k, labels_to_preferences, preferences_to_labels
from valence.policies.base import likelihood_from_distributions, pull_back
from valence.protocols import Objective, Reference
from valence.search.draw import as_points, one_kind
from valence.search.judgement import judge_labels, judge_pairs, judge_values
from valence.search.search import Result
from valence.search.space import Space
from valence.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from valence.training.learner import Learner
from valence.training.reference import FrozenCopy
from valence.types import Action, Batch, Feedback, Labels, Likelihood, Preferences, Rewards


class DiagonalGaussian(nn.Module):
    """N(mean, diag(exp(log_std)^2)) without context, in float64.

    Args:
        mean: `[d]`.
        std: > 0, the same for all coordinates.
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


class GradientSearch:
    """Ask and tell, one Adam step a tell. Minimises.

    Args:
        space: where to look.
        objective: PMPO, DPO or another that needs log pi and KL alone.
        num_samples: to ask for at a time.
        refresh_every: the reference, which the samples are drawn from, is renewed every so many steps.
        lr: Adam's, for latent units and log standard deviations.
        start, sigma, seed: as `PreferenceSearch`'s.
    Raises:
        ValueError: fewer than 2 samples.
    """

    def __init__(
        self,
        space: Space,
        objective: Objective,
        *,
        num_samples: int = 4,
        refresh_every: int = 100,
        lr: float = 0.01,
        start: Any = None,
        sigma: float | None = None,
        seed: int = 0,
    ) -> None:
        if num_samples < 2:
            raise ValueError(f"num_samples must be >= 2, got {num_samples}")
        self.space, self.num_samples, self.told = space, num_samples, 0
        mean = np.zeros(space.dim)
        if start is not None:
            mean = space.latent(as_points([start], space.dim), mean)[0]
        std = (space.default_sigma if sigma is None else sigma) * space.sigma_unit
        self.policy = DiagonalGaussian(mean, std)
        self.reference = FrozenCopy(self.policy, refresh_every=refresh_every)
        optimizer = torch.optim.Adam(self.policy.parameters(), lr=lr)
        self.learner = Learner(self.policy, objective, self.reference, {"policy": optimizer}, max_grad_norm=0.0)
        self.generator = torch.Generator().manual_seed(seed)
        self.asked: dict[bytes, Tensor] = {}
        self.best: tuple[float, np.ndarray] | None = None
        self.metrics: dict[str, float] = {}

    def ask(self, n: int | None = None) -> Float[np.ndarray, "n d"]:
        """Draw `n` points from the reference, `[n, d]`."""
        latent = self.reference.copy.sample(None, n or self.num_samples, self.generator).steps[0, :, 0]
        x = self.space.points(latent.numpy())
        self.asked |= {point.tobytes(): row for point, row in zip(x, latent, strict=True)}
        return x

    def tell(self, x: Any, *, values: Any = None, ranks: Any = None, labels: Any = None, pairs: Any = None) -> None:
        """One gradient step; arguments as `PreferenceSearch.tell`'s, for PMPO the better half is accepted.

        Raises:
            ValueError: not exactly one kind of feedback, one that does not fit, or nothing to compare in it.
            FloatingPointError: the objective or its gradient is not finite any more.
        """
        kind, what = one_kind(values=values, ranks=ranks, labels=labels, pairs=pairs)
        points = as_points(x, self.space.dim)
        feedback = _feedback(kind, what, len(points), preferences=Labels not in self.learner.objective.accepts)
        known = self.space.latent(points, self.policy.mean.detach().numpy())
        rows = [self.asked.get(x.tobytes(), torch.from_numpy(row)) for x, row in zip(points, known, strict=True)]
        steps = torch.stack(rows)[None, :, None]
        action = Action(steps, torch.ones(steps.shape[:3], dtype=torch.bool))
        self.metrics = self.learner.update(Batch(None, action, feedback))
        self.asked.clear()
        self.told += len(points)
        if kind == "values":
            column = np.asarray(what, dtype=np.float64)
            place = int(column.argmin())
            if self.best is None or column[place] < self.best[0]:
                self.best = (float(column[place]), points[place].copy())

    @property
    def mean(self) -> Float[np.ndarray, " d"]:
        """The policy's mean, as a point."""
        return self.space.points(self.policy.mean.detach().numpy()[None])[0]

    @property
    def result(self) -> Result:
        """What it has found so far."""
        if self.best is None:
            return Result(self.mean, None, "mean", self.told, self.learner.step, 0)
        return Result(self.best[1].copy(), self.best[0], "best value", self.told, self.learner.step, 0)

    def state_dict(self) -> dict[str, Any]:
        """What the learner does not hold; `save` keeps both."""
        asked = [[torch.from_numpy(np.frombuffer(x).copy()), row] for x, row in self.asked.items()]
        best = None if self.best is None else [self.best[0], self.best[1].tolist()]
        return {"generator": self.generator.get_state(), "told": self.told, "best": best, "asked": asked}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])
        self.told = state["told"]
        self.best = None if state["best"] is None else (state["best"][0], np.array(state["best"][1]))
        self.asked = {x.numpy().tobytes(): row for x, row in state["asked"]}

    def save(self, folder: Path) -> Path:
        """Write a checkpoint into `folder`."""
        return save_checkpoint(folder, self.learner, self)

    def resume(self, folder: Path) -> None:
        """Go on bit for bit from the last checkpoint in `folder`, of a search that was made with the same arguments.

        Raises:
            UserError: it is of another method, or cannot be read.
            FileNotFoundError: there is none.
        """
        found = checkpoints(folder)
        if not found:
            raise FileNotFoundError(f"no checkpoint in {folder}")
        load_checkpoint(found[-1], self.learner, self)


def _feedback(kind: str, what: Any, count: int, *, preferences: bool) -> Feedback:
    """Feedback as the objective takes it: labels, or preferences.

    Values and ranks: labels accept the better and reject the worse half, preferences compare the best with the worst.
    """
    present = torch.ones(1, count, dtype=torch.bool)
    if kind == "labels":
        judged = judge_labels(what, count)
        sign = torch.from_numpy(judged.accepted - judged.rejected).long()[None]
        return labels_to_preferences(Labels(sign, present)) if preferences else Labels(sign, present)
    win = torch.zeros(1, count, count, dtype=torch.float64)
    if kind == "pairs":
        judge_pairs(what, count)
        for better, worse in what:
            win[0, better, worse] += 1
    else:
        judge_values(what, count)
        column = torch.as_tensor(np.asarray(what, dtype=np.float64))
        if not preferences:
            return label_top_k(Rewards(-column[None], present), top=count // 2, bottom=count // 2)
        win[0, int(column.argmin()), int(column.argmax())] = float(column.min() < column.max())
    met = win + win.mT
    compared = Preferences(torch.where(met > 0, win / met.clamp(min=1), 0.0), met > 0, present)
    return compared if preferences else preferences_to_labels(compared)
