"""The parts of the offline-control experiment: rejections move a Gaussian as in closed form; values and labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.offline_control import train
from experiments.offline_control.train import Mixture, fit_value, make_labels, thin, train_policy
from valence.data.episodes import Episode, read_episodes, write_episodes
from valence.objectives.pmpo import PMPO
from valence.policies.gaussian import GaussianPolicy
from valence.sources.episodes import EpisodeSource, EpisodeTable, Rows, tabulate
from valence.training.learner import Learner


@pytest.mark.slow
def test_a_rejection_moves_a_gaussian_to_the_closed_form() -> None:
    """Cloned: -0.4 and 0.4 (mean 0); rejected: -0.4; alpha 0, beta 3, so W = beta - 1 = 2.

    Mean (3 * 0 - (-0.4)) / 2 = 0.2. About it, cloned squares (0.36 + 0.04) / 2 = 0.2 and rejected ones 0.36:
    variance (3 * 0.2 - 0.36) / 2 = 0.12.
    """
    torch.manual_seed(0)
    cloned, rejected = torch.tensor([-0.4, 0.4]).repeat(8), torch.full((8,), -0.4)
    sign = torch.cat([torch.zeros(16, dtype=torch.long), -torch.ones(8, dtype=torch.long)])
    rows = Rows(torch.zeros(24, 1), torch.cat([cloned, rejected])[:, None], sign)
    objective = PMPO(alpha=0.0, beta=3.0, accepted_fraction=0.0, rejected_fraction=1 / 3, regularizer="bc")
    policy = GaussianPolicy(1, 1, (8,), init_scale=0.5, min_scale=0.05)
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.02)
    learner = Learner(policy, objective, None, {"policy": optimizer}, total_steps=500)
    source = EpisodeSource(rows, batch_size=24)
    while learner.step < 500:
        learner.update(source.next(policy))
    mean, scale = policy.moments(torch.zeros(1, 1))
    assert mean.item() == pytest.approx(0.2, abs=2e-3)
    assert scale.item() ** 2 == pytest.approx(0.12, abs=2e-3)


def bandit_table() -> EpisodeTable:
    """Forty one-step episodes: a bad action -0.5 in three of four, a good one 0.5, with a little noise."""
    generator = torch.Generator().manual_seed(0)
    good = torch.arange(40) % 4 == 0
    action = torch.where(good, 0.5, -0.5) + 0.1 * torch.randn(40, generator=generator)
    return EpisodeTable(
        observation=torch.zeros(40, 2, 1), action=action[:, None, None], reward=good.float()[:, None],
        label=torch.zeros(40, 1, dtype=torch.long), present=torch.ones(40, 1, dtype=torch.bool),
        terminated=torch.ones(40, dtype=torch.bool), shift=torch.zeros(1), scale=torch.ones(1),
    )  # fmt: skip


def test_only_early_episodes_are_labelled_and_by_their_advantage() -> None:
    table = bandit_table()
    sign = make_labels(table, torch.full((40, 2), 0.25), early=12)
    assert sign[:12, 0].tolist() == [1, -1, -1, -1] * 3
    assert not sign[12:].any()


def test_the_value_is_the_expectile_of_what_was_earned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reward 1 with chance 1/4, else 0, and the end: 0.7 * 1/4 (1 - v) = 0.3 * 3/4 v, so v = 0.4375."""
    monkeypatch.setattr(train, "VALUE_BATCH", 128)
    value = fit_value(bandit_table(), seed=0, steps=40)
    torch.testing.assert_close(value, torch.full((40, 2), 0.4375), atol=0.02, rtol=0)


@pytest.mark.slow
def test_mixtures_learn_what_their_losses_say() -> None:
    """Cloning goes to the data's mean, -0.25; acceptances to the good action, and rejections beyond cloning."""
    table = bandit_table()
    sign = make_labels(table, torch.full((40, 2), 0.25), early=12)
    settings = {
        "BC": Mixture("BC", clone=True),
        "Accept": Mixture("Accept", accept=True),
        "Reject+BC": Mixture("Reject+BC", reject=True, clone=True, alpha=0.0, beta=2.0),
    }
    means = {}
    for name, setting in settings.items():
        policy, _ = train_policy(table, sign, setting, seed=0, steps=200)
        means[name] = policy.mode(torch.zeros(1, 1)).item()
    action = table.action[:, 0, 0]
    assert means["BC"] == pytest.approx(action.mean().item(), abs=0.02)
    assert means["Accept"] == pytest.approx(action[:12][::4].mean().item(), abs=0.02)
    rejected = action[:12][sign[:12, 0] < 0].mean()
    assert means["Reject+BC"] == pytest.approx(((2 * action.mean() - rejected) / (2 - 1)).item(), abs=0.02)


def test_the_bound_is_of_the_labels_at_hand() -> None:
    """rho 3/4 gives (1 - alpha) / rho = 2/3 at alpha 1/2; times 1.5. Thinned to accepted alone, rho is 0."""
    sign = torch.tensor([[1], [-1], [-1], [-1]] * 3)
    both = Mixture("all", accept=True, reject=True, clone=True, alpha=0.5, over_bound=1.5)
    assert both.on(sign).beta == pytest.approx(1.0)
    assert both.on(sign[:2]).beta == pytest.approx(1.5)
    assert Mixture("BC", clone=True, beta=0.3).on(sign).beta == 0.3
    assert thin(sign, 6)[:, 0].tolist() == [1, 0, 0, 0, 0, 0, -1, 0, 0, 0, 0, 0]


@pytest.mark.slow
def test_a_folder_with_given_labels_is_learned_from(tmp_path: Path) -> None:
    """Minari on disk, accepted 0.5 and rejected -0.5 in `infos/label`, everything cloned at beta 2 (bound 1 at 1/2).

    The mean is (alpha 0.5 - (1 - alpha) (-0.5) + 2 * 0) / (alpha - (1 - alpha) + 2) = 0.25 at alpha = 1/2.
    """
    pytest.importorskip("h5py", reason="the control extra is not installed")
    side = np.array([1, -1] * 10)
    episodes = [Episode(np.zeros((21, 3)), 0.5 * side[:, None], np.zeros(20), labels=side) for _ in range(2)]
    table = tabulate(read_episodes(write_episodes(tmp_path, episodes, dataset_id="my/own-v0")))
    setting = Mixture("all", accept=True, reject=True, clone=True, alpha=0.5, beta=2.0)
    policy, _ = train_policy(table, table.label, setting, seed=0, steps=200)
    assert policy.mode(table.scaled(torch.zeros(1, 3))).item() == pytest.approx(0.25, abs=0.01)
