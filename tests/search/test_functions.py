"""Each function is 0 at its optimum, more elsewhere, and what its formula says at one point."""

from __future__ import annotations

import numpy as np
import pytest

from valence.search.functions import FUNCTIONS

AT = {"rosenbrock": 1.0, "schwefel": 420.968746}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dim", [2, 5])
def test_zero_at_the_optimum_and_more_elsewhere(name: str, dim: int) -> None:
    known = FUNCTIONS[name]
    best = np.full(dim, AT.get(name, 0.0))
    assert known.function(best) == pytest.approx(0.0, abs=1e-8 * known.high**2)
    assert (known.low < best).all() and (best < known.high).all()
    around = np.random.default_rng(0).uniform(known.low, known.high, (500, dim))
    assert min(known.function(x) for x in around) > 0


@pytest.mark.parametrize(
    "name, x, value",
    [
        ("sphere", [1, 2], 5), ("rosenbrock", [1, 3], 400), ("double-sum", [1, 2], 1 + 9),
        ("schwefel", [0, 0], 837.96577),
        ("ellipsoid", [1, 2], 1 + 4e6), ("cigar", [2, 1], 4 + 1e6), ("different-powers", [2, 2], 4 + 64),
        ("ackley", [1, 0], 20 + np.e - 20 * np.exp(-0.2 / np.sqrt(2)) - np.exp(1.0)),
        ("griewank", [np.pi, 0], 1 + np.pi**2 / 4000 + 1), ("rastrigin", [0.5, 1], 0.25 + 20 + 1),
    ],
)  # fmt: skip
def test_values_by_hand(name: str, x: list[float], value: float) -> None:
    assert FUNCTIONS[name].function(np.array(x, dtype=np.float64)) == pytest.approx(value, rel=1e-7)
