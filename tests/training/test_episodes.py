"""Training on episodes: what the fitted value is."""

from __future__ import annotations

import numpy as np
import pytest

from valence.data.episodes import Episode
from valence.sources.episodes import tabulate
from valence.training.episodes import fit_value


def test_values_of_episodes_that_truly_end_reach_nought() -> None:
    # -1 a step until the goal, one to six steps away: V is minus the steps left (nearly), not that of -1 for ever.
    episodes = []
    for length in [1, 2, 3, 4, 5, 6] * 10:
        left = np.arange(length, -1, -1, dtype=np.float32)[:, None]
        episodes.append(Episode(left, np.zeros((length, 1), np.float32), -np.ones(length, np.float32), True))
    table = tabulate(episodes)
    value = fit_value(
        table, seed=0, steps=200, discount=0.98, gae_lambda=0.9, expectile=0.5, hidden=(32,), batch_size=128
    )
    for steps, expected in ((1, -1.0), (6, -(1 - 0.98**6) / 0.02)):
        assert float(value[steps - 1, 0]) == pytest.approx(expected, abs=0.7)
