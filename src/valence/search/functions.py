"""Test functions of x `[d]` with value 0 at the optimum: the origin, except for Rosenbrock and Schwefel's 2.26."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from valence.search.space import Vector

Function = Callable[[np.ndarray], float]


def sphere(x: Vector) -> float:
    """Sum of squares."""
    return float(x @ x)


def rosenbrock(x: Vector) -> float:
    """A bent valley that ends at (1, …, 1)."""
    return float((100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum())


def double_sum(x: Vector) -> float:
    """Schwefel's problem 1.2: squares of the partial sums."""
    return float((np.cumsum(x) ** 2).sum())


def schwefel(x: Vector) -> float:
    """Schwefel's problem 2.26: many local optima; the global one, at 420.9687…, is far from the next best."""
    return float(418.9828872724337 * len(x) - (x * np.sin(np.sqrt(np.abs(x)))).sum())


def ellipsoid(x: Vector) -> float:
    """Squares weighted from 1 to a million."""
    return float(10 ** np.linspace(0, 6, len(x)) @ x**2)


def cigar(x: Vector) -> float:
    """One long axis; the others are a thousand times shorter."""
    return float(x[0] ** 2 + 1e6 * (x[1:] @ x[1:]))


def different_powers(x: Vector) -> float:
    """Sum of |x_i| to powers from 2 to 6."""
    return float((np.abs(x) ** np.linspace(2, 6, len(x))).sum())


def ackley(x: Vector) -> float:
    """A funnel in an egg box."""
    funnel = 20 * np.exp(-0.2 * np.sqrt((x @ x) / len(x)))
    return float(20 + np.e - funnel - np.exp(np.cos(2 * np.pi * x).mean()))


def griewank(x: Vector) -> float:
    """A wide bowl with ripples."""
    return float(1 + (x @ x) / 4000 - np.cos(x / np.sqrt(np.arange(1, len(x) + 1))).prod())


def rastrigin(x: Vector) -> float:
    """A bowl with a local optimum near every integer point."""
    return float((x**2 + 10 - 10 * np.cos(2 * np.pi * x)).sum())


@dataclass(frozen=True)
class Known:
    """A test function and its usual box; `least_dim` is the fewest coordinates it works with."""

    function: Function
    low: float
    high: float
    least_dim: int = 1


FUNCTIONS = {
    "sphere": Known(sphere, -5.0, 5.0),
    "rosenbrock": Known(rosenbrock, -5.0, 5.0, 2),
    "double-sum": Known(double_sum, -5.0, 5.0),
    "schwefel": Known(schwefel, -500.0, 500.0),
    "ellipsoid": Known(ellipsoid, -5.0, 5.0, 2),
    "cigar": Known(cigar, -5.0, 5.0, 2),
    "different-powers": Known(different_powers, -5.0, 5.0, 2),
    "ackley": Known(ackley, -32.0, 32.0),
    "griewank": Known(griewank, -600.0, 600.0),
    "rastrigin": Known(rastrigin, -5.0, 5.0),
}
