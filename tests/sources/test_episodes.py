"""Episodes as batches: rows, fractions, class means, epochs, resuming."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from valence.data.episodes import Episode
from valence.errors import UserError
from valence.objectives.pmpo import PMPO
from valence.policies.gaussian import GaussianPolicy
from valence.sources.episodes import EpisodeSource, mixture, tabulate, unscale
from valence.types import Likelihood

LENGTHS = (4, 7, 1, 5)


def episodes() -> list[Episode]:
    """Observation t of episode e is (100 e + t, 0), its action (e, t)."""
    made = []
    for place, steps in enumerate(LENGTHS):
        times = np.arange(steps + 1, dtype=np.float32)
        seen = np.stack([100 * place + times, 0 * times], axis=1)
        acts = np.stack([np.full(steps, place), times[:-1]], axis=1).astype(np.float32)
        labels = np.where(times[:-1] % 3 == 0, 1, -1) if place < 2 else None
        made.append(Episode(seen, acts, times[1:] / 10, terminated=place == 0, labels=labels))
    return made


def test_no_row_crosses_an_episode() -> None:
    table = tabulate(episodes())
    rows = mixture(table, table.label, clone=True)
    raw = rows.observation * table.scale + table.shift
    assert len(rows.sign) == sum(LENGTHS) and not rows.sign.any()
    # The observation of each row is the one its action was taken at, and no row is an episode's last observation.
    torch.testing.assert_close(raw[:, 0], 100 * rows.action[:, 0] + rows.action[:, 1], atol=1e-3, rtol=0)


def test_scaling_leaves_a_constant_at_zero() -> None:
    table = tabulate(episodes())
    seen = table.scaled(torch.tensor(np.concatenate([episode.observations for episode in episodes()])))
    torch.testing.assert_close(seen.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.std(0, correction=0), torch.tensor([1.0, 0.0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("kinds", "counts"),
    [
        ({"clone": True}, (0, 0, 17)),
        ({"accept": True}, (5, 0, 0)),
        ({"accept": True, "clone": True}, (5, 0, 17)),
        ({"reject": True, "clone": True}, (0, 6, 17)),
        ({"accept": True, "reject": True, "clone": True}, (5, 6, 17)),
    ],
)
def test_a_mixture_holds_what_it_names_once(kinds: dict[str, bool], counts: tuple[int, int, int]) -> None:
    """Episode 0 labels (+ - - +), episode 1 (+ - - + - - +): 5 accepted, 6 rejected, 17 transitions in all."""
    table = tabulate(episodes())
    rows = mixture(table, table.label, **kinds)
    assert tuple(int((rows.sign == side).sum()) for side in (1, -1, 0)) == counts
    assert rows.fractions() == (counts[0] / sum(counts), counts[1] / sum(counts))


def test_batches_give_the_class_means_of_the_data_set() -> None:
    """Over an epoch of small batches, PMPO's loss is alpha, beta and means over classes of the whole table."""
    table = tabulate(episodes())
    rows = mixture(table, table.label, accept=True, reject=True, clone=True)
    accepted, rejected = rows.fractions()
    objective = PMPO(
        alpha=0.3, beta=1.7, regularizer="bc", accepted_fraction=accepted, rejected_fraction=rejected
    )  # fmt: skip
    source, total = EpisodeSource(rows, batch_size=4, seed=3), 0.0
    for _ in range(source.batches_per_epoch):
        batch = source.next()
        # A stand-in for log pi that differs in every row.
        log_prob = (batch.action.steps[..., 0] * 7 + batch.action.steps[..., 1] ** 2)[:, :, 0].unsqueeze(-1)
        loss = objective(Likelihood(log_prob, mask=batch.action.mask), objective.prepare(batch, None))
        total += float(loss.terms["policy"].sum())
    values = rows.action[:, 0] * 7 + rows.action[:, 1] ** 2
    means = [float(values[rows.sign == side].mean()) for side in (1, -1, 0)]
    assert total / len(rows.sign) == pytest.approx(-0.3 * means[0] + 0.7 * means[1] - 1.7 * means[2], rel=1e-5)


def test_an_epoch_has_every_row_once_and_epochs_differ() -> None:
    table = tabulate(episodes())
    source = EpisodeSource(mixture(table, table.label, clone=True), batch_size=5, seed=1)

    def epoch() -> list[tuple[float, ...]]:
        batches = [source.next() for _ in range(source.batches_per_epoch)]
        return [tuple(row) for batch in batches for row in batch.action.steps.flatten(1).tolist()]

    first, second = epoch(), epoch()
    assert len(set(first)) == sum(LENGTHS) and set(first) == set(second) and first != second


def test_it_goes_on_where_it_stopped() -> None:
    table = tabulate(episodes())
    rows = mixture(table, table.label, clone=True)
    source, other = EpisodeSource(rows, batch_size=5, seed=1), EpisodeSource(rows, batch_size=5, seed=9)
    for _ in range(6):
        source.next()
    other.load_state_dict(source.state_dict())
    for _ in range(6):
        assert torch.equal(source.next().action.steps, other.next().action.steps)
    changed = EpisodeSource(replace(rows, action=rows.action + 1), batch_size=5)
    with pytest.raises(UserError, match="have changed"):
        changed.load_state_dict(source.state_dict())


def test_nonsense_is_refused() -> None:
    table = tabulate(episodes()[2:])
    with pytest.raises(UserError, match="no transition has a label"):
        mixture(table, table.label, accept=True)
    with pytest.raises(UserError, match="no episode"):
        tabulate([])
    odd = Episode(np.zeros((2, 5)), np.zeros((1, 2)), np.zeros(1))
    with pytest.raises(UserError, match="differ"):
        tabulate([*episodes(), odd])
    with pytest.raises(ValueError, match="batch_size"):
        EpisodeSource(mixture(table, table.label, clone=True), batch_size=0)


def test_the_first_layer_takes_the_scaling_in() -> None:
    random = np.random.default_rng(1)
    seen = (random.normal(size=(6, 3)) * [1, 10, 100] + [5, -5, 0]).astype(np.float32)
    table = tabulate([Episode(seen, random.normal(size=(5, 2)).astype(np.float32), np.ones(5, np.float32))])
    policy = GaussianPolicy(3, 2, (8,)).double()
    with torch.no_grad():
        policy.head.weight.mul_(100)
    table = type(table)(
        **{name: part.double() if part.is_floating_point() else part for name, part in vars(table).items()}
    )
    before = policy.mode(table.scaled(torch.tensor(seen).double()))
    unscale(policy, table)
    torch.testing.assert_close(policy.mode(torch.tensor(seen).double()), before, rtol=1e-9, atol=1e-9)
