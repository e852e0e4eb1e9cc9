"""The closed form against the objective itself, minimised by numbers; then what its weights must be."""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from valence.objectives.pmpo import PMPO
from valence.search.gaussian import Gaussian
from valence.search.judgement import Judgement, judge_labels, judge_values
from valence.search.m_step import Weights, mean_step, pmpo_weights, shape_step, size_step
from valence.types import Action, Batch, Labels, Likelihood

DIM, COUNT = 3, 12
ALPHAS = [(0.5, 1.0), (0.5, 0.6), (1.0, 0.0), (1.0, 0.7), (0.0, 2.0), (0.2, 3.0)]


@pytest.fixture
def reference() -> Gaussian:
    random = np.random.default_rng(0)
    root = np.eye(DIM) + 0.4 * random.standard_normal((DIM, DIM))
    shape = root @ root.T
    return Gaussian(random.standard_normal(DIM), 0.7, shape / np.linalg.det(shape) ** (1 / DIM))


@pytest.fixture
def z() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((COUNT, DIM))


LABELS = [1, -1] * (COUNT // 2)


def minimum(loss: Callable[[torch.Tensor], torch.Tensor], start: torch.Tensor) -> np.ndarray:
    """Where L-BFGS finds the smallest loss."""
    place = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [place], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss(place)
        value.backward()
        return value

    optimizer.step(closure)
    return place.detach().numpy()


def normal(mean: np.ndarray | torch.Tensor, covariance: np.ndarray | torch.Tensor) -> MultivariateNormal:
    return MultivariateNormal(torch.as_tensor(mean), torch.as_tensor(covariance))


def weigh(alpha: float, beta: float, *, exact: bool) -> Weights:
    weights = pmpo_weights(judge_labels(LABELS, COUNT), PMPO(alpha=alpha, beta=beta), exact_kl=exact)
    assert weights is not None
    return weights


@pytest.mark.parametrize("alpha, beta", ALPHAS)
def test_mean_minimises_the_papers_objective(reference: Gaussian, z: np.ndarray, alpha: float, beta: float) -> None:
    x, old = torch.as_tensor(reference.unwhiten(z)), normal(reference.mean, reference.covariance)
    accepted = torch.tensor(LABELS) > 0

    def loss(mean: torch.Tensor) -> torch.Tensor:
        new = normal(mean, reference.covariance)
        logs = new.log_prob(x)
        kl = kl_divergence(old, new)
        return -alpha * logs[accepted].mean() + (1 - alpha) * logs[~accepted].mean() + beta * kl

    shift = mean_step(z, weigh(alpha, beta, exact=True))
    expected = minimum(loss, torch.as_tensor(reference.mean))
    np.testing.assert_allclose(reference.unwhiten(shift[None])[0], expected, atol=1e-7)


@pytest.mark.parametrize("alpha, beta", ALPHAS)
def test_mean_minimises_valences_own_pmpo(z: np.ndarray, alpha: float, beta: float) -> None:
    objective, start, std = PMPO(alpha=alpha, beta=beta), np.array([0.3, -1.0, 2.0]), 0.5
    x, covariance = torch.as_tensor(start + std * z), std**2 * np.eye(DIM)
    present = torch.ones(1, COUNT, dtype=torch.bool)
    mask = present[..., None]
    target = objective.prepare(
        Batch(None, Action(x[None, :, None], mask), Labels(torch.tensor([LABELS]), present)), None
    )

    def loss(mean: torch.Tensor) -> torch.Tensor:
        new = normal(mean, covariance)
        ref_kl = kl_divergence(normal(start, covariance), new).expand(mask.shape)
        likelihood = Likelihood(new.log_prob(x)[None, :, None], ref_kl=ref_kl, mask=mask)
        return objective(likelihood, target).total(target.size)

    shift = mean_step(z, weigh(alpha, beta, exact=True))
    np.testing.assert_allclose(start + std * shift, minimum(loss, torch.as_tensor(start)), atol=2e-6)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("alpha, beta", ALPHAS)
def test_size_is_the_likeliest(reference: Gaussian, z: np.ndarray, alpha: float, beta: float, exact: bool) -> None:
    weights, path, own_beta = weigh(alpha, beta, exact=exact), np.array([0.5, -1.2, 0.9]), 4 / 3
    x = torch.as_tensor(reference.unwhiten(np.vstack([z, path])))
    old = normal(reference.mean, reference.covariance)
    each = torch.as_tensor(np.append(weights.spread, 1.0))

    def loss(log_factor: torch.Tensor) -> torch.Tensor:
        new = normal(reference.mean, torch.as_tensor(reference.covariance) * (2 * log_factor).exp())
        return -(each * new.log_prob(x)).sum() + (weights.closed_kl + own_beta) * kl_divergence(old, new)

    expected = np.exp(minimum(loss, torch.zeros((), dtype=torch.float64)))
    assert size_step(z, weights, path, beta=own_beta) == pytest.approx(float(expected), rel=1e-7)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("alpha, beta", ALPHAS)
def test_shape_is_the_likeliest_of_determinant_one(
    reference: Gaussian, z: np.ndarray, alpha: float, beta: float, exact: bool
) -> None:
    weights, path = weigh(alpha, beta, exact=exact), np.array([0.5, -1.2, 0.9])
    sample_rate, path_rate = 0.2, 0.1
    x = torch.as_tensor(reference.unwhiten(np.vstack([z, path])))
    old = normal(reference.mean, reference.covariance)
    each = torch.as_tensor(np.append(sample_rate * weights.spread, path_rate))
    kl_weight = 1 - float(each.sum())

    def covariance(flat: torch.Tensor) -> torch.Tensor:
        root = flat.reshape(DIM, DIM).tril()
        square = root @ root.mT
        return reference.size**2 * square / torch.linalg.det(square) ** (1 / DIM)

    def loss(flat: torch.Tensor) -> torch.Tensor:
        new = normal(reference.mean, covariance(flat))
        return -(each * new.log_prob(x)).sum() + kl_weight * kl_divergence(old, new)

    flat = minimum(loss, torch.linalg.cholesky(torch.as_tensor(reference.shape)).flatten())
    shape = shape_step(reference, z, weights, path, sample_rate=sample_rate, path_rate=path_rate, diagonal=False)
    np.testing.assert_allclose(reference.size**2 * shape, covariance(torch.as_tensor(flat)).numpy(), atol=1e-6)
    assert np.linalg.det(shape) == pytest.approx(1.0)


def test_a_diagonal_shape_stays_diagonal(z: np.ndarray) -> None:
    policy = Gaussian(np.zeros(DIM), 1.0, np.diag([4.0, 1.0, 0.25]))
    weights = weigh(0.5, 1.0, exact=False)
    shape = shape_step(policy, z, weights, np.ones(DIM), sample_rate=0.3, path_rate=0.2, diagonal=True)
    full = shape_step(policy, z, weights, np.ones(DIM), sample_rate=0.3, path_rate=0.2, diagonal=False)
    assert np.count_nonzero(shape - np.diag(np.diag(shape))) == 0
    assert np.count_nonzero(full - np.diag(np.diag(full))) == DIM * (DIM - 1)
    assert np.linalg.det(shape) == pytest.approx(1.0)


def test_a_shape_stays_positive_definite_however_much_is_rejected(reference: Gaussian) -> None:
    far = np.tile([6.0, 0.0, 0.0], (COUNT, 1))
    weights = pmpo_weights(judge_labels([-1] * COUNT, COUNT), PMPO(alpha=0.0, beta=2.0), exact_kl=True)
    assert weights is not None
    for diagonal in (False, True):
        shape = shape_step(reference, far, weights, np.zeros(3), sample_rate=0.9, path_rate=0.0, diagonal=diagonal)
        assert np.linalg.eigvalsh(shape)[0] > 0
    assert size_step(far, weights, np.zeros(3), beta=0.0) == pytest.approx(0.5)


def test_rejections_alone_at_the_bound_leave_the_mean_of_the_rest(z: np.ndarray) -> None:
    weights = pmpo_weights(judge_labels([-1] * 3 + [0] * 9, COUNT), PMPO(alpha=0.0), exact_kl=False)
    assert weights is not None
    np.testing.assert_allclose(weights.mean, [0] * 3 + [1 / 9] * 9, atol=1e-15)
    np.testing.assert_allclose(mean_step(z, weights), z[3:].mean(0))


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("alpha, beta", ALPHAS)
def test_weights_and_closed_kl_sum_to_one(alpha: float, beta: float, exact: bool) -> None:
    weights = weigh(alpha, beta, exact=exact)
    assert weights.mean.sum() + weights.closed_kl == pytest.approx(1.0)
    assert weights.spread.sum() + weights.closed_kl == pytest.approx(1.0)
    assert (weights.closed_kl > 0) == (exact and beta > 0)


@pytest.mark.parametrize(
    "labels, alpha, mean",
    [
        ([1, 0, 0, 0], 0.5, [1, 0, 0, 0]),
        ([1, 1, 0, 0], 1.0, [0.5, 0.5, 0, 0]),
        ([0, 0, -1, -1], 0.5, [0.5, 0.5, 0, 0]),
        ([1, -1, 1, -1], 0.5, [0.5, 0, 0.5, 0]),
        ([-1, -1, -1, -1], 0.5, [-0.25] * 4),
    ],
)
def test_one_sided_labels_at_the_bound_by_hand(labels: list[int], alpha: float, mean: list[float]) -> None:
    """All rejected: W = -1/2 + (1/2) / (1/2) = 1/2 with the KL in closed form, so each weighs -(1/2) (1/4) / (1/2)."""
    weights = pmpo_weights(judge_labels(labels, 4), PMPO(alpha=alpha), exact_kl=False)
    assert weights is not None
    np.testing.assert_allclose(weights.mean, mean, atol=1e-15)


def test_without_labels_or_spread_there_are_no_weights() -> None:
    assert pmpo_weights(judge_labels([0] * 4, 4), PMPO(alpha=0.5), exact_kl=False) is None
    assert pmpo_weights(judge_labels([1] * 4, 4), PMPO(alpha=0.0), exact_kl=False) is None
    assert pmpo_weights(judge_labels([-1] * 4, 4), PMPO(alpha=1.0), exact_kl=False) is None
    assert pmpo_weights(judge_values([2.0] * 4, 4), PMPO(alpha=0.5), exact_kl=False) is None


@pytest.mark.parametrize("exact", [True, False])
def test_a_beta_too_small_for_one_sided_labels_is_replaced_with_a_warning(exact: bool) -> None:
    """The paper's AR with rejections alone: W = -0.5 + 0.5 = 0."""
    judgement = judge_labels([0, -1], 2)
    with pytest.warns(UserWarning, match=r"beta = 0.5 .* 1 is used"):
        weights = pmpo_weights(judgement, PMPO(alpha=0.5, beta=0.5), exact_kl=exact)
    auto = pmpo_weights(judgement, PMPO(alpha=0.5), exact_kl=exact)
    assert weights is not None and auto is not None
    np.testing.assert_array_equal(weights.mean, auto.mean)


@pytest.mark.parametrize("accepted", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("alpha", [0.5, 1.0, 0.0])
def test_a_slope_leaves_the_size_as_it_is(accepted: float, alpha: float) -> None:
    """Draws laid out evenly in probability; on a slope the path aside, the size's evidence is its expectation."""
    count = 20_000
    first = np.array([NormalDist().inv_cdf((place + 0.5) / count) for place in range(count)])
    labels = np.where(first >= NormalDist().inv_cdf(1 - accepted), 1, -1)
    weights = pmpo_weights(judge_labels(labels.tolist(), count), PMPO(alpha=alpha), exact_kl=False)
    assert weights is not None
    factor = size_step(first[:, None], weights, np.ones(1), beta=0.0)
    assert factor == pytest.approx(1.0, abs=2e-3)
    if accepted != 0.5:
        skewed = Weights(weights.mean, weights.spread, weights.closed_kl)
        assert abs(size_step(first[:, None], skewed, np.ones(1), beta=0.0) - 1) > 0.02


def test_whitening_takes_the_covariance_away(reference: Gaussian, z: np.ndarray) -> None:
    spread = reference.unwhiten(np.eye(DIM)) - reference.mean
    np.testing.assert_allclose(spread.T @ spread, reference.covariance)
    np.testing.assert_allclose(reference.whiten(reference.unwhiten(z)), z, atol=1e-12)


def test_a_judgement_without_members_has_no_weights() -> None:
    empty = np.zeros(3)
    assert pmpo_weights(Judgement(empty, empty, empty), PMPO(), exact_kl=False) is None


def test_at_the_bound_no_sample_weighs_less_than_nothing() -> None:
    """Where one is rejected twice as much as another (pairs, ties), the most rejected weighs nothing."""
    nothing = np.zeros(6)
    judgement = Judgement(accepted=nothing, rejected=np.array([1.0, 0.5, 0.5, 0, 0, 0]), strength=nothing)
    weights = pmpo_weights(judgement, PMPO(alpha=0.0), exact_kl=False)
    assert weights is not None
    # beta = 6 * (1 / 2) = 3, W = 2: (3/6 - 1/2, 3/6 - 1/4, ..., 3/6) / 2.
    assert weights.mean == pytest.approx([0, 0.125, 0.125, 0.25, 0.25, 0.25])
