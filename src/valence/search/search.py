"""`PreferenceSearch`: ask for points, tell what was thought of them, get better ones. Minimises.

    search = PreferenceSearch(Box(-5, 5, dim=2))
    while not search.stop():
        x = search.ask()
        search.tell(x, values=[f(point) for point in x])     # or ranks=, labels=, pairs=
    search.result

Source: PMPO paper, section 5.1, with the improvement step in closed form (`m_step`); what departs is said there and in
`adapt` and `judgement`. Restarts double the population, as in IPOP (Auger & Hansen, 2005).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from valence.objectives import PMPO
from valence.search.adapt import default_population, improve
from valence.search.draw import Draw, as_points, judge, one_kind
from valence.search.gaussian import Gaussian
from valence.search.m_step import pmpo_weights
from valence.search.over import Watch
from valence.search.space import Space

Points = Float[np.ndarray, "n d"]

FOREIGN = 3.0
"""A point that was not asked for counts as lying at most this far beyond where samples lie."""


@dataclass(frozen=True, eq=False)
class Result:
    """What a search has found.

    Args:
        x: the best point seen, by value; where no values were told, the policy's mean.
        value: its value; None where x is a mean.
        source: "best value" or "mean": which it is.
        told: how many points were told of.
        steps: improvement steps.
        restarts: how often it began anew.
    """

    x: Float[np.ndarray, " d"]
    value: float | None
    source: str
    told: int
    steps: int
    restarts: int


class PreferenceSearch:
    """Black-box optimisation from values, ranks, labels or pairs.

    Args:
        space: where to look.
        objective: PMPO with any alpha: 0.5 learns from accepted and rejected, 1 from accepted, 0 from rejected.
        covariance: "full", or "diagonal" where coordinates are many or independent.
        population: points to an improvement step; None takes it from the dimension.
        start: the first mean, as a point; None takes the box's centre or the space's mean.
        sigma: the first standard deviation: of a box as a part of its width (None: 0.3), else in units of `scale` (1).
        restarts: how often to begin anew where a run is over, each time with twice the population; needs values.
        kl: the KL's expectation over the draw itself ("sampled"), or in closed form ("exact"); see `m_step`.
        seed: same seed, same bits.
    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        space: Space,
        objective: PMPO | None = None,
        *,
        covariance: Literal["full", "diagonal"] = "full",
        population: int | None = None,
        start: Any = None,
        sigma: float | None = None,
        restarts: int = 9,
        kl: Literal["sampled", "exact"] = "sampled",
        seed: int = 0,
    ) -> None:
        self.space, self.objective = space, objective or PMPO(alpha=0.5)
        self.covariance, self.kl, self.restarts, self.seed = covariance, kl, restarts, seed
        _check(self.objective, covariance, kl, population, restarts, sigma)
        self.first_population = population or default_population(space.dim)
        self.sigma = space.default_sigma if sigma is None else float(sigma)
        self.random = np.random.default_rng(seed)
        self.told = self.steps = self.begun = 0
        self.best: tuple[float, np.ndarray] | None = None
        self.reason: str | None = None
        self.extra: dict[str, Any] = {}
        centre = np.zeros(space.dim)
        if start is not None:
            centre = space.latent(as_points([start], space.dim), centre)[0]
        self._begin(centre)

    def _begin(self, mean: Float[np.ndarray, " d"]) -> None:
        """A run from `mean` (latent), with its population."""
        size = self.sigma * self.space.sigma_unit
        self.policy = Gaussian.round(mean, min(size, self.space.widest))
        self.path = np.zeros(self.space.dim)
        self.population = self.first_population * 2**self.begun
        self.draw = Draw()
        self.watch = Watch(10 + math.ceil(30 * self.space.dim / self.population), self.policy.size)
        self.begun += 1

    @property
    def missing(self) -> int:
        """How many points still have to be told of for the next step, >= 1."""
        return max(self.population - self.draw.told, 1)

    def ask(self, n: int | None = None) -> Points:
        """Draw `n` points from the present policy, `[n, d]`; None: as many as still have to be told of for a step.

        Raises:
            ValueError: n < 1.
        """
        count = self.missing if n is None else n
        if count < 1:
            raise ValueError(f"n must be >= 1, got {n}")
        z = self.random.standard_normal((count, self.space.dim))
        x = self.space.points(self.policy.unwhiten(z))
        self.draw.asked |= {point.tobytes(): sample for point, sample in zip(x, z, strict=True)}
        return x

    def tell(self, x: Any, *, values: Any = None, ranks: Any = None, labels: Any = None, pairs: Any = None) -> None:
        """Say what was thought of points; after every `population` of them the policy is improved.

        What was asked and is not told of by then counts as seen and not judged, like label 0 or None: it still says
        what the policy does. Points that were not asked for are welcome, and count as near the policy.

        Args:
            x: the points, `[n, d]`.
            values: lower is better; +inf is the worst.
            ranks: 1 is best; within this call.
            labels: +1 or True good, -1 or False bad, 0 or None no opinion.
            pairs: (better, worse) positions in x.
        Raises:
            ValueError: not exactly one kind of feedback, or one that does not fit.
        """
        kind, what = one_kind(values=values, ranks=ranks, labels=labels, pairs=pairs)
        x = as_points(x, self.space.dim)
        judge(kind, what, len(x))
        self.draw.add(self._whitened(x), kind, what)
        self.told += len(x)
        if kind == "values":
            self._remember(x, np.asarray(what, dtype=np.float64))
        if self.draw.told >= self.population:
            self._improve()

    def _whitened(self, x: Points) -> Points:
        foreign = self.policy.whiten(self.space.latent(x, self.policy.mean))
        limit = np.sqrt(self.space.dim) + FOREIGN
        foreign *= np.minimum(1, limit / np.maximum(np.linalg.norm(foreign, axis=1, keepdims=True), limit))
        asked = self.draw.asked
        return np.stack([asked.pop(point.tobytes(), z) for point, z in zip(x, foreign, strict=True)])

    def _remember(self, x: Points, values: Float[np.ndarray, " n"]) -> None:
        place = int(values.argmin())
        if self.best is None or values[place] < self.best[0]:
            self.best = (float(values[place]), x[place].copy())

    def _improve(self) -> None:
        judgement, z = self.draw.judgement(), self.draw.samples()
        weights = pmpo_weights(judgement, self.objective, exact_kl=self.kl == "exact")
        if weights is not None and self.reason is None:
            self.policy, self.path = improve(
                self.policy, self.path, z, weights, diagonal=self.covariance == "diagonal", widest=self.space.widest
            )
        self.steps += 1
        why = self.watch.over(self.policy, self.draw.values())
        self.draw = Draw()
        if why is None:
            return
        # Without values nobody could say which run has found the better point.
        if self.begun > self.restarts or self.best is None:
            self.reason = self.reason or why
        else:
            self._begin(self.space.anywhere(self.random))

    def stop(self) -> str | None:
        """Why there is no use in going on, after all restarts; None while there is."""
        return self.reason

    @property
    def mean(self) -> Float[np.ndarray, " d"]:
        """The policy's mean, as a point."""
        return self.space.points(self.policy.mean[None])[0]

    @property
    def result(self) -> Result:
        """What it has found so far."""
        x, value, source = self.mean, None, "mean"
        if self.best is not None:
            (value, x), source = self.best, "best value"
        return Result(x.copy(), value, source, self.told, self.steps, self.begun - 1)

    def log_density(self, x: Any) -> Float[np.ndarray, " n"]:
        """log density of the present policy at points `[n, d]`, nats."""
        return self.space.log_density(self.policy, as_points(x, self.space.dim))

    def save(self, path: str | Path, *, extra: dict[str, Any] | None = None) -> None:
        """Write everything that is needed to go on bit for bit, as JSON, whole or not at all.

        Args:
            extra: JSON values to keep beside it; a loaded search has them as `extra`.
        """
        from valence.search.store import save_search

        self.extra = self.extra if extra is None else extra
        save_search(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> PreferenceSearch:
        """A search as it was saved.

        Raises:
            UserError: it cannot be read.
        """
        from valence.search.store import load_search

        return load_search(Path(path))


def _check(
    objective: PMPO, covariance: str, kl: str, population: int | None, restarts: int, sigma: float | None
) -> None:
    if objective.regularizer != "kl" or objective.temperature is not None:
        raise ValueError("a search takes PMPO with alpha and beta alone: it makes its own KL and weights")
    if objective.beta != "auto" and 2 * objective.alpha - 1 + objective.beta <= 0:
        raise ValueError(objective.unbounded_reason(accepted=0.5, rejected=0.5) or "beta is too small")
    if covariance not in ("full", "diagonal"):
        raise ValueError(f"covariance must be 'full' or 'diagonal', got {covariance!r}")
    if kl not in ("sampled", "exact"):
        raise ValueError(f"kl must be 'sampled' or 'exact', got {kl!r}")
    if population is not None and population < 2:
        raise ValueError(f"population must be >= 2, got {population}")
    if restarts < 0:
        raise ValueError(f"restarts must be >= 0, got {restarts}")
    if sigma is not None and not 0 < sigma < np.inf:
        raise ValueError(f"sigma must be > 0, got {sigma}")
