"""The single runs of `python -m experiments bandit`: one function, one method, one seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.bandit.gradient import GradientSearch
from experiments.common import experiment as common
from valence.errors import UserError

TARGET = 1e-6
SIGMA = 0.3
"""First standard deviation of every method, as a part of the domain's width."""
LAG, SAMPLES, LR = 100, 4, 0.01
"""The paper's reference lag and samples per step; the learning rate is ours, the same for all methods."""
PYCMA, RANDOM = "CMA-ES (pycma)", "random search"
Function = Callable[[np.ndarray], float]


@dataclass(frozen=True)
class Problem:
    """A function whose optimum, of value 0, is not at the centre of its domain."""

    name: str
    dim: int

    @property
    def bounds(self) -> tuple[float, float]:
        from valence.search.functions import FUNCTIONS

        return FUNCTIONS[self.name].low, FUNCTIONS[self.name].high

    def function(self) -> Function:
        """Rosenbrock and Schwefel's 2.26 are off the centre by themselves; others are moved by 10 to 30% of the
        width."""
        from valence.search.functions import FUNCTIONS

        known = FUNCTIONS[self.name]
        if self.name in ("rosenbrock", "schwefel"):
            return known.function
        place = np.arange(self.dim)
        by = np.where(place % 2, 1, -1) * (0.1 + 0.2 * ((0.618 * (place + 1)) % 1))
        shift = by * (known.high - known.low)
        return lambda x: known.function(x - shift)

    def start(self, seed: int) -> np.ndarray:
        """The point where every method begins with this seed, uniform in the domain."""
        return np.random.default_rng([seed, 7]).uniform(*self.bounds, self.dim)


@dataclass(frozen=True, kw_only=True)
class Setting(common.Setting):
    """One run of the method `name`.

    Args:
        part: "paper" for the paper's protocol, "product" for the searches.
        limit: optimizer steps in the paper's protocol, evaluations elsewhere.
    """

    part: str
    problem: Problem
    limit: int


def run_setting(setting: Setting) -> dict[str, Any]:
    """The figures of one run."""
    what = {"part": setting.part, "function": setting.problem.name, "dim": setting.problem.dim, "limit": setting.limit}
    return what | (run_protocol if setting.part == "paper" else run_product)(setting)


def run_protocol(setting: Setting) -> dict[str, Any]:
    """The paper's protocol: the value at the policy's mean along the run, and the largest KL at the end of a lag."""
    from torch.distributions import kl_divergence

    from valence.objectives.dpo import DPO
    from valence.objectives.pmpo import PMPO, pmpo_a, pmpo_ar, pmpo_r
    from valence.search.space import Box

    objectives = {
        "PMPO-AR": pmpo_ar(), "PMPO-A": pmpo_a(), "PMPO-R": pmpo_r(), "DPO": DPO(beta=1.0),
        "PMPO-R beta=0": PMPO(alpha=0.0, beta=0.0),
    }  # fmt: skip
    function, (low, high) = setting.problem.function(), setting.problem.bounds
    search = GradientSearch(
        Box(low, high, setting.problem.dim), objectives[setting.name], num_samples=SAMPLES, refresh_every=LAG, lr=LR,
        start=setting.problem.start(setting.seed), sigma=SIGMA, seed=setting.seed,
    )  # fmt: skip
    curve, kl, stopped = [[0, function(search.mean)]], 0.0, None
    for step in range(1, setting.limit + 1):
        x = search.ask()
        if step % LAG == 0:
            ends = kl_divergence(search.reference.copy.distribution(1), search.policy.distribution(1)).item()
            kl = max(kl, ends if math.isfinite(ends) else math.inf)
        try:
            search.tell(x, [function(point) for point in x])
        except FloatingPointError as error:
            stopped, kl = str(error), math.inf
            break
        if step % 50 == 0 or step == setting.limit:
            curve.append([SAMPLES * step, function(search.mean)])
    std = float(search.policy.log_std.exp().mean().detach()) / 2
    return {"curve": curve, "kl": kl, "value": curve[-1][1], "best": search.best, "std": std, "stopped": stopped}


def run_product(setting: Setting) -> dict[str, Any]:
    """Evaluations until a value of `TARGET` or below was seen, infinite where the budget ends first; the best value."""
    function, best = setting.problem.function(), [math.inf]

    def recorded(point: np.ndarray) -> float:
        value = function(point)
        best[0] = min(best[0], value)
        return value

    run = {PYCMA: _pycma, RANDOM: _random}.get(setting.name, _preference_search)
    return {"evaluations": run(setting, recorded), "best": best[0]}


def _preference_search(setting: Setting, function: Function) -> float:
    from valence.objectives.pmpo import PMPO
    from valence.search.search import PreferenceSearch
    from valence.search.space import Box

    low, high = setting.problem.bounds
    alpha = {"PMPO-AR": 0.5, "PMPO-A": 1.0, "PMPO-R": 0.0}[setting.name.split(",")[0]]
    search = PreferenceSearch(
        Box(low, high, setting.problem.dim), PMPO(alpha=alpha), start=setting.problem.start(setting.seed), sigma=SIGMA,
        seed=setting.seed, kl="exact" if "exact KL" in setting.name else "sampled",
    )  # fmt: skip
    lots = np.random.default_rng([setting.seed, 8]) if "random labels" in setting.name else None
    told = 0
    while told < setting.limit and search.stop() is None:
        x = search.ask()
        values = np.array([function(point) for point in x])
        if values.min() <= TARGET:
            return float(told + int(np.argmax(values <= TARGET)) + 1)
        if lots is None:
            search.tell(x, values=values)
        else:
            search.tell(x, labels=np.where(lots.permutation(len(x)) < len(x) // 2, 1, -1))
        told += len(x)
    return math.inf


def _pycma(setting: Setting, function: Function) -> float:
    """CMA-ES with its own settings, within the bounds; restarted with twice the population where it stops."""
    try:
        import cma
    except ModuleNotFoundError as error:
        raise UserError("this comparison needs pycma: pip install 'valence-learn[control]'") from error

    low, high = setting.problem.bounds
    random = np.random.default_rng([setting.seed, 9])
    start, told, factor = setting.problem.start(setting.seed), 0, 1
    while told < setting.limit:
        options: dict[str, Any] = {"bounds": [low, high], "seed": setting.seed + 1, "verbose": -9}
        options["popsize"] = factor * (4 + int(3 * math.log(setting.problem.dim)))
        strategy = cma.CMAEvolutionStrategy(start, SIGMA * (high - low), options)
        while told < setting.limit and not strategy.stop():
            points = strategy.ask()
            values = [function(np.asarray(point)) for point in points]
            if min(values) <= TARGET:
                return float(told + next(place for place, value in enumerate(values, 1) if value <= TARGET))
            strategy.tell(points, values)
            told += len(points)
        start, factor = random.uniform(low, high, setting.problem.dim), 2 * factor
    return math.inf


def _random(setting: Setting, function: Function) -> float:
    random = np.random.default_rng([setting.seed, 10])
    for count in range(1, setting.limit + 1):
        if function(random.uniform(*setting.problem.bounds, setting.problem.dim)) <= TARGET:
            return float(count)
    return math.inf
