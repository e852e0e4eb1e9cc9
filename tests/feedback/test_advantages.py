"""Advantages along episodes against a slow plain version that walks each episode by itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from valence.feedback.advantages import episode_advantages, label_advantage


def plain(
    rewards: list[float], values: list[float], terminated: bool, discount: float, gae_lambda: float
) -> list[float]:
    """The double sum as the paper writes it, for one episode of any length."""
    steps = len(rewards)
    after = [*values[1:-1], 0.0 if terminated else values[-1]]
    delta = [rewards[t] + discount * after[t] - values[t] for t in range(steps)]
    return [sum((discount * gae_lambda) ** (k - t) * delta[k] for k in range(t, steps)) for t in range(steps)]


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    discount=st.floats(0, 1),
    gae_lambda=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_every_episode_is_summed_by_itself(lengths: list[int], discount: float, gae_lambda: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    # What lies behind an episode's end is garbage, and must not be read.
    reward = torch.randn(len(lengths), longest, generator=generator)
    value = torch.randn(len(lengths), longest + 1, generator=generator)
    terminated = torch.rand(len(lengths), generator=generator) < 0.5
    present = torch.arange(longest) < torch.tensor(lengths)[:, None]
    got = episode_advantages(reward, value, present, terminated, discount=discount, gae_lambda=gae_lambda)
    for row, steps in enumerate(lengths):
        episode = (reward[row, :steps].tolist(), value[row, : steps + 1].tolist())
        wanted = plain(*episode, bool(terminated[row]), discount, gae_lambda)
        torch.testing.assert_close(got[row, :steps], torch.tensor(wanted), atol=1e-4, rtol=1e-4)
        assert not got[row, steps:].any()


def test_hand_worked() -> None:
    """Reward 1 twice, V = (1, 2, 4), gamma 1/2, lambda 1: delta = (1, 1), A = (1.5, 1); ended: delta_1 = 1 - 2."""
    present = torch.ones(2, 2, dtype=torch.bool)
    got = episode_advantages(
        torch.ones(2, 2), torch.tensor([[1.0, 2.0, 4.0]] * 2), present, torch.tensor([False, True]),
        discount=0.5, gae_lambda=1.0,
    )  # fmt: skip
    assert got.tolist() == [[1.5, 1.0], [0.5, -1.0]]


def test_labels_are_the_sign_and_absent_steps_have_none() -> None:
    advantage = torch.tensor([[0.5, 0.0, -1e-6, 3.0]])
    present = torch.tensor([[True, True, True, False]])
    assert label_advantage(advantage, present).tolist() == [[1, 1, -1, 0]]


@pytest.mark.parametrize("numbers", [{"discount": 1.1, "gae_lambda": 0.9}, {"discount": 0.9, "gae_lambda": -0.1}])
def test_numbers_out_of_range_are_refused(numbers: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be in"):
        episode_advantages(
            torch.zeros(1, 1), torch.zeros(1, 2), torch.ones(1, 1, dtype=torch.bool), torch.tensor([True]), **numbers
        )
