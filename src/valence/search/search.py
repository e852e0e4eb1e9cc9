"""`PreferenceSearch`: ask for points, tell the feedback on them, get better points. Minimises.

    search = PreferenceSearch(Box(-5, 5, dim=2))
    while not search.stop():
        x = search.ask()
        search.tell(x, values=[f(point) for point in x])     # or ranks=, labels=, pairs=
    search.result

Source: PMPO paper, section 5.1, with the improvement step in closed form (`m_step`). It departs from the paper as
`m_step` and `judgement` say. Restarts double the population, as in IPOP (Auger & Hansen, 2005).
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from valence.errors import UserError, one_line
from valence.objectives.common import require_choice, require_positive
from valence.objectives.pmpo import PMPO
from valence.search.draw import JUDGES, Draw, as_points, one_kind
from valence.search.gaussian import Gaussian
from valence.search.m_step import default_population, improve, pmpo_weights
from valence.search.space import SPACES, Points, Space, Vector
from valence.search.stopping import StoppingRule

MAX_EXCESS = 3.0
"""A point that was not asked for counts as lying at most this far, whitened, beyond where samples lie."""
VERSION = 2
"""The version of a saved search."""
STATE = ("num_judged", "steps", "runs", "population", "reason", "extra")
"""Attributes that a saved search holds as they are."""


@dataclass(frozen=True, eq=False)
class Result:
    """What a search has found.

    Args:
        x: the best point by value; the policy's mean where no values were given.
        value: the value of x; None where x is a mean.
        source: "best value" or "mean": which of the two x is.
        num_judged: number of points with feedback.
        steps: number of improvement steps.
    """

    x: Vector
    value: float | None
    source: str
    num_judged: int
    steps: int
    restarts: int


class PreferenceSearch:
    """Black-box optimisation from values, ranks, labels or pairs.

    Args:
        space: the space to search.
        objective: PMPO; only its alpha and beta are read. An alpha of 0.5 (the default) learns from accepted and
            rejected points, 1 from accepted ones, 0 from rejected ones.
        covariance: "full", or "diagonal" where coordinates are many or independent.
        population: points per improvement step; None takes it from the dimension.
        start: the initial mean, as a point; None takes the box's centre or the space's mean.
        sigma: the initial standard deviation: for a box a fraction of its width (None: 0.3), else in units of the
            space's `scale` (None: 1).
        restarts: how often to start again, with twice the population, after a run has converged. Needs values.
        kl: the KL's expectation over the draw itself ("sampled") or in closed form ("exact"); see `m_step`.
        seed: random seed; the same seed gives the same bits.
    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self, space: Space, objective: PMPO | None = None, *, covariance: Literal["full", "diagonal"] = "full",
        population: int | None = None, start: Any = None, sigma: float | None = None, restarts: int = 9,
        kl: Literal["sampled", "exact"] = "sampled", seed: int = 0,
    ) -> None:  # fmt: skip
        self.space, self.objective = space, objective or PMPO(alpha=0.5)
        self.covariance, self.kl, self.restarts, self.seed = covariance, kl, restarts, seed
        self.first_population = default_population(space.dim) if population is None else population
        self.sigma = space.default_sigma if sigma is None else float(sigma)
        _check_objective(self.objective)
        require_choice(("full", "diagonal"), covariance=covariance)
        require_choice(("sampled", "exact"), kl=kl)
        require_positive(sigma=self.sigma)
        for name, value, least in (("population", self.first_population, 2), ("restarts", restarts, 0)):
            if value < least:
                raise ValueError(f"`{name}` is {value}, and must be at least {least}")
        self.random = np.random.default_rng(seed)
        self.num_judged = self.steps = self.runs = 0
        self.best: tuple[float, np.ndarray] | None = None
        self.reason: str | None = None
        self.extra: dict[str, Any] = {}
        centre = np.zeros(space.dim)
        if start is not None:
            centre = space.latent(as_points([start], space.dim), centre)[0]
        self._start_run(centre)

    def _start_run(self, mean: Vector) -> None:
        """Start a run from `mean`, a latent vector."""
        self.policy = Gaussian.round(mean, min(self.sigma * self.space.sigma_unit, self.space.max_std))
        self.path = np.zeros(self.space.dim)
        self.population = self.first_population * 2**self.runs
        self.draw = Draw()
        self.stopping = StoppingRule(10 + math.ceil(30 * self.space.dim / self.population), self.policy.size)
        self.runs += 1

    @property
    def remaining(self) -> int:
        """How many points still need feedback before the next step, >= 1."""
        return max(self.population - self.draw.num_judged, 1)

    def ask(self, n: int | None = None) -> Points:
        """Draw `n` points from the present policy, `[n, d]`; None: `remaining` points.

        Raises:
            ValueError: n < 1.
        """
        count = self.remaining if n is None else n
        if count < 1:
            raise ValueError(f"`n` is {n}, and must be at least 1")
        z = self.random.standard_normal((count, self.space.dim))
        x = self.space.points(self.policy.unwhiten(z))
        self.draw.pending |= {point.tobytes(): sample for point, sample in zip(x, z, strict=True)}
        return x

    def tell(self, x: Any, *, values: Any = None, ranks: Any = None, labels: Any = None, pairs: Any = None) -> None:
        """Give feedback on points. The policy is improved whenever `population` of them have feedback.

        Points that were asked for and have no feedback by then count as unlabelled: they still show what the policy
        does. Points that were not asked for are allowed, and count as near the policy.

        Args:
            x: the points, `[n, d]`.
            values: lower is better; +inf is the worst.
            ranks: 1 is best, within this call.
            labels: +1 or True is good, -1 or False is bad, 0 or None is no opinion.
            pairs: (better, worse) indices into x.
        Raises:
            ValueError: not exactly one kind of feedback is given, or it does not fit the points.
        """
        kind, feedback = one_kind(values=values, ranks=ranks, labels=labels, pairs=pairs)
        x = as_points(x, self.space.dim)
        JUDGES[kind](feedback, len(x))  # Refuses what does not fit, before anything changes.
        self.draw.z.append(self._whitened(x))
        self.draw.feedback.append((kind, feedback))
        self.num_judged += len(x)
        if kind == "values":
            values = np.asarray(feedback, dtype=np.float64)
            place = int(values.argmin())
            if self.best is None or values[place] < self.best[0]:
                self.best = (float(values[place]), x[place].copy())
        if self.draw.num_judged >= self.population:
            self._improve()

    def _whitened(self, x: Points) -> Points:
        """The whitened samples of points; they are no longer pending."""
        foreign = self.policy.whiten(self.space.latent(x, self.policy.mean))
        limit = np.sqrt(self.space.dim) + MAX_EXCESS
        foreign *= np.minimum(1, limit / np.maximum(np.linalg.norm(foreign, axis=1, keepdims=True), limit))
        pending = self.draw.pending
        return np.stack([pending.pop(point.tobytes(), z) for point, z in zip(x, foreign, strict=True)])

    def _improve(self) -> None:
        weights = pmpo_weights(self.draw.judgement(), self.objective, exact_kl=self.kl == "exact")
        if weights is not None and self.reason is None:
            self.policy, self.path = improve(
                self.policy, self.path, self.draw.samples(), weights,
                diagonal=self.covariance == "diagonal", max_std=self.space.max_std,
            )  # fmt: skip
        self.steps += 1
        converged = self.stopping.reason(self.policy, self.draw.values())
        self.draw = Draw()
        if converged is None:
            return
        # Without values it is unknown which run has found the better point.
        if self.runs > self.restarts or self.best is None:
            self.reason = self.reason or converged
        else:
            self._start_run(self.space.random_start(self.random))

    def stop(self) -> str | None:
        """Why the search has converged, after all restarts; None while it has not."""
        return self.reason

    @property
    def mean(self) -> Vector:
        """The policy's mean, as a point."""
        return self.space.points(self.policy.mean[None])[0]

    @property
    def result(self) -> Result:
        """The best point so far."""
        x, value, source = self.mean, None, "mean"
        if self.best is not None:
            (value, x), source = self.best, "best value"
        return Result(x.copy(), value, source, self.num_judged, self.steps, self.runs - 1)

    def state_dict(self) -> dict[str, Any]:
        """Everything that is needed to continue bit for bit, as JSON values."""
        policy, best = self.policy, self.best
        return {
            "version": VERSION,
            "space": self.space.state_dict(),
            "objective": asdict(self.objective),
            "options": {
                "covariance": self.covariance, "population": self.first_population, "sigma": self.sigma,
                "restarts": self.restarts, "kl": self.kl, "seed": self.seed,
            },
            "state": {name: getattr(self, name) for name in STATE},
            "random": self.random.bit_generator.state,
            "best": None if best is None else [best[0], best[1].tolist()],
            "policy": {"mean": policy.mean.tolist(), "size": policy.size, "shape": policy.shape.tolist()},
            "path": self.path.tolist(),
            "stopping": asdict(self.stopping),
            "draw": self.draw.state_dict(),
        }  # fmt: skip

    @classmethod
    def from_state_dict(cls, tree: dict[str, Any]) -> PreferenceSearch:
        """The search that `state_dict` was called on."""
        space = dict(tree["space"])
        search = cls(SPACES[space.pop("kind")](**space), PMPO(**tree["objective"]), **tree["options"])
        best, policy = tree["best"], tree["policy"]
        for name in STATE:
            setattr(search, name, tree["state"][name])
        search.random.bit_generator.state = tree["random"]
        search.best = None if best is None else (best[0], np.array(best[1]))
        search.policy = Gaussian(np.array(policy["mean"]), policy["size"], np.array(policy["shape"]))
        search.path, search.stopping = np.array(tree["path"]), StoppingRule(**tree["stopping"])
        search.draw = Draw.from_state_dict(tree["draw"])
        return search

    def save(self, path: str | Path, *, extra: dict[str, Any] | None = None) -> None:
        """Write `state_dict` to a JSON file, through a draft beside it, so that the file is never half written.

        Args:
            extra: JSON values to save as well; the loaded search has them as `extra`.
        """
        path, self.extra = Path(path), self.extra if extra is None else extra
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.draft-{os.getpid()}")
        draft.write_text(json.dumps(self.state_dict()))
        draft.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> PreferenceSearch:
        """The search that was saved in `path`.

        Raises:
            UserError: the file cannot be read, or is of another version.
        """
        try:
            tree = json.loads(Path(path).read_text())
            if tree["version"] != VERSION:
                raise UserError(f"{path} was saved by another version of Valence: start a new search")
            return cls.from_state_dict(tree)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            reason = one_line(error) or type(error).__name__
            raise UserError(f"the saved search {path} cannot be read ({reason}): start a new search") from error


def _check_objective(objective: PMPO) -> None:
    if objective != PMPO(alpha=objective.alpha, beta=objective.beta):
        raise ValueError("a search reads only alpha and beta of its objective: leave its other fields out")
    smallest = 1 - 2 * objective.accepted_weight
    if objective.beta != "auto" and objective.beta <= smallest:
        raise ValueError(f"`beta` is {objective.beta:g}, and must be above {smallest:g}: else the search is unbounded")
