"""The single runs of `valence reproduce bandit`: one function, one method, one seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from valence.errors import UserError

TARGET = 1e-6
SIGMA = 0.3
"""First standard deviation, as a part of the domain's width; for pycma too."""
LAG, SAMPLES, LR = 100, 4, 0.01
"""The paper's reference lag and samples a step; the learning rate is ours, the same for all methods."""


@dataclass(frozen=True)
class Problem:
    """A function with its optimum, of value 0, off its domain's centre."""

    name: str
    dim: int

    @property
    def bounds(self) -> tuple[float, float]:
        from valence.search.functions import FUNCTIONS

        return FUNCTIONS[self.name].low, FUNCTIONS[self.name].high

    def function(self) -> Callable[[np.ndarray], float]:
        """Rosenbrock and Schwefel's 2.26 lie off the centre by themselves; others move by 10 to 30% of the width."""
        from valence.search.functions import FUNCTIONS, shifted

        known = FUNCTIONS[self.name]
        if self.name in ("rosenbrock", "schwefel"):
            return known.function
        place = np.arange(self.dim)
        by = np.where(place % 2, 1, -1) * (0.1 + 0.2 * ((0.618 * (place + 1)) % 1))
        return shifted(known.function, by * (known.high - known.low))

    def start(self, seed: int) -> np.ndarray:
        """Where every method begins with this seed: anywhere in the domain."""
        return np.random.default_rng([seed, 7]).uniform(*self.bounds, self.dim)


@dataclass(frozen=True)
class Task:
    """One run; `limit` is optimizer steps in the paper's protocol, evaluations elsewhere."""

    part: str
    problem: Problem
    method: str
    seed: int
    limit: int


def run_task(task: Task) -> dict[str, Any]:
    """One run's figures, in a process of its own or not."""
    import torch

    torch.set_num_threads(1)
    return {"paper": run_protocol, "product": run_product}[task.part](task)


def run_protocol(task: Task) -> dict[str, Any]:
    """The paper's protocol: the value at the policy's mean as it goes, and the KL that each lag ends with, nats."""
    from torch.distributions import kl_divergence

    from valence.objectives import DPO, PMPO, pmpo_a, pmpo_ar, pmpo_r
    from valence.search.gradient import GradientSearch
    from valence.search.space import Box

    objectives = {
        "PMPO-AR": pmpo_ar(), "PMPO-A": pmpo_a(), "PMPO-R": pmpo_r(), "DPO": DPO(beta=1.0),
        "PMPO-R beta=0": PMPO(alpha=0.0, beta=0.0),
    }  # fmt: skip
    function, (low, high) = task.problem.function(), task.problem.bounds
    search = GradientSearch(
        Box(low, high, task.problem.dim), objectives[task.method], num_samples=SAMPLES, refresh_every=LAG, lr=LR,
        start=task.problem.start(task.seed), sigma=SIGMA, seed=task.seed,
    )  # fmt: skip
    curve, kl, stopped = [[0, function(search.mean)]], 0.0, None
    for step in range(1, task.limit + 1):
        x = search.ask()
        before = search.reference.copy.distribution(1) if step % LAG == 0 else None
        if before is not None:
            ends = kl_divergence(before, search.policy.distribution(1)).item()
            kl = max(kl, ends if math.isfinite(ends) else math.inf)
        try:
            search.tell(x, values=[function(point) for point in x])
        except FloatingPointError as error:
            stopped, kl = str(error), math.inf
            break
        if step % 50 == 0 or step == task.limit:
            curve.append([SAMPLES * step, function(search.mean)])
    std = float(search.policy.log_std.exp().mean().detach()) / 2
    best = math.inf if search.best is None else search.best[0]
    return {"curve": curve, "kl": kl, "value": curve[-1][1], "best": best, "std": std, "stopped": stopped}


def run_product(task: Task) -> dict[str, Any]:
    """Evaluations until a point of value 1e-6 or below was seen, infinity where the budget ends first; the best."""
    function, best = task.problem.function(), [math.inf]

    def watched(point: np.ndarray) -> float:
        value = function(point)
        best[0] = min(best[0], value)
        return value

    runs = {"CMA-ES (pycma)": _pycma, "random search": _random}
    evaluations = runs.get(task.method, _preference_search)(task, watched)
    return {"evaluations": evaluations, "best": best[0]}


def _preference_search(task: Task, function: Callable[[np.ndarray], float]) -> float:
    from valence.objectives import PMPO
    from valence.search import Box, PreferenceSearch

    low, high = task.problem.bounds
    alpha = {"PMPO-AR": 0.5, "PMPO-A": 1.0, "PMPO-R": 0.0}[task.method.split(",")[0]]
    search = PreferenceSearch(
        Box(low, high, task.problem.dim), PMPO(alpha=alpha), start=task.problem.start(task.seed), sigma=SIGMA,
        seed=task.seed, kl="exact" if "exact KL" in task.method else "sampled",
    )  # fmt: skip
    lots = np.random.default_rng([task.seed, 8]) if "random labels" in task.method else None
    while search.told < task.limit and search.stop() is None:
        x = search.ask()
        values = np.array([function(point) for point in x])
        if values.min() <= TARGET:
            return float(search.told + int(np.argmax(values <= TARGET)) + 1)
        if lots is None:
            search.tell(x, values=values)
        else:
            search.tell(x, labels=np.where(lots.permutation(len(x)) < len(x) // 2, 1, -1))
    return math.inf


def _pycma(task: Task, function: Callable[[np.ndarray], float]) -> float:
    """CMA-ES with its own settings, within the bounds; begun anew with twice the population where it stops."""
    try:
        import cma
    except ModuleNotFoundError as error:
        raise UserError("this comparison needs pycma: pip install 'valence-learn[control]'") from error

    low, high = task.problem.bounds
    random = np.random.default_rng([task.seed, 9])
    start, told, factor = task.problem.start(task.seed), 0, 1
    while told < task.limit:
        options: dict[str, Any] = {"bounds": [low, high], "seed": task.seed + 1, "verbose": -9}
        options["popsize"] = factor * (4 + int(3 * math.log(task.problem.dim)))
        strategy = cma.CMAEvolutionStrategy(start, SIGMA * (high - low), options)
        while told < task.limit and not strategy.stop():
            points = strategy.ask()
            values = [function(np.asarray(point)) for point in points]
            if min(values) <= TARGET:
                return float(told + next(place for place, value in enumerate(values, 1) if value <= TARGET))
            strategy.tell(points, values)
            told += len(points)
        start, factor = random.uniform(low, high, task.problem.dim), 2 * factor
    return math.inf


def _random(task: Task, function: Callable[[np.ndarray], float]) -> float:
    random = np.random.default_rng([task.seed, 10])
    for count in range(1, task.limit + 1):
        if function(random.uniform(*task.problem.bounds, task.problem.dim)) <= TARGET:
            return float(count)
    return math.inf
