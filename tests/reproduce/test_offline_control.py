"""The offline experiment: rejections move a Gaussian as the closed form says, labels, claims, and the whole path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from valence.data.episodes import Episode, read_episodes, write_episodes
from valence.errors import UserError
from valence.objectives.pmpo import PMPO
from valence.policies.gaussian import GaussianPolicy
from valence.reproduce import offline_control, offline_control_train
from valence.reproduce.offline_control_claims import PAPER, average, check_claims, interval, resample
from valence.reproduce.offline_control_env import PickPlace, interpreter
from valence.reproduce.offline_control_train import Mixture, fit_value, make_labels, thin, train_policy
from valence.sources.episodes import EpisodeSource, EpisodeTable, Rows, tabulate
from valence.training.learner import Learner


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
    monkeypatch.setattr(offline_control_train, "VALUE_BATCH", 128)
    value = fit_value(bandit_table(), seed=0, steps=40)
    torch.testing.assert_close(value, torch.full((40, 2), 0.4375), atol=0.02, rtol=0)


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


def made_up(means: dict[str, float]) -> list[dict[str, Any]]:
    generator = np.random.default_rng(0)
    return [
        {"name": name, "seed": seed, "setting": {"alpha": 0.5, "beta": 1.0, "lr": 1e-3}, "beta": 1.0, "reward": mean,
         "rewards": (mean + generator.normal(size=20)).tolist(), "success": 0.5}
        for name, mean in means.items() for seed in range(3)
    ]  # fmt: skip


def test_claims_hold_on_the_papers_figures_and_fail_on_others() -> None:
    assert [claim.holds for claim in check_claims(made_up({name: float(mean) for name, mean in PAPER.items()}))] == [
        True, True, True, True,
    ]  # fmt: skip
    flat = check_claims(made_up({"BC": 5, "Accept+BC": 9, "Accept": 40, "Reject+BC": 5, "Accept+Reject+BC": 39}))
    assert [claim.holds for claim in flat] == [False] * 4
    assert "Accept" in flat[2].claim
    few = made_up({name: float(mean) for name, mean in PAPER.items()})[::3]
    assert not check_claims([row | {"rewards": row["rewards"][:19]} for row in few])
    lines = average(made_up({name: float(mean) for name, mean in PAPER.items()}))
    assert [line["mixture"] for line in lines] == list(PAPER)
    assert all(line["low"] < line["reward"] < line["high"] for line in lines)


def test_the_interval_covers_both_seeds_and_episodes() -> None:
    """Seeds that differ give a wide interval, even where every episode of a seed is the same."""
    generator = np.random.default_rng(0)
    same = np.repeat([[1.0], [2.0], [6.0]], 10, axis=1)
    low, high = interval(resample(same, generator))
    assert low < 2.0 and high > 4.0
    assert interval(resample(np.full((3, 10), 2.0), generator)) == (2.0, 2.0)


def test_smoke_without_the_simulator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("h5py", reason="the control extra is not installed")
    monkeypatch.setenv("VALENCE_METAWORLD", str(tmp_path / "nowhere"))
    path = offline_control.run(tmp_path, "smoke", None)
    result = json.loads(path.read_text())
    assert [row["name"] for row in result["per_seed"]] == list(PAPER)
    assert all(np.isfinite(row["training"]["loss"]) for row in result["per_seed"])
    assert result["claims"] == [] and "reward" not in result["rows"][0]
    assert "make metaworld" in capsys.readouterr().out
    with pytest.raises(UserError, match="make metaworld"):
        PickPlace()


@pytest.mark.skipif(interpreter() is None, reason="make metaworld has not been run")
def test_the_simulator_repeats_itself(tmp_path: Path) -> None:
    with PickPlace() as task:
        begun = [task.reset(seed) for seed in (3, 4, 3)]
        assert np.array_equal(begun[0], begun[2]) and not np.array_equal(begun[0], begun[1])
        stepped = []
        for _ in range(2):
            task.reset(3)
            stepped.append([task.step(np.array([0.5, -0.5, 1.0, 0.3])) for _ in range(5)])
        for (seen, reward, done), (again, reward_again, _) in zip(*stepped, strict=True):
            assert np.array_equal(seen, again) and reward == reward_again and 0 <= reward <= 1 and not done
        assert task.horizon == 100
