"""PMPO: values by hand, identities, its bound on beta, the EM step of appendix C, and convergence."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from valence.objectives import (
    PMPO,
    Supervised,
    pmpo_a,
    pmpo_ar,
    pmpo_beta,
    pmpo_loss,
    pmpo_r,
    pmpo_score_weights,
    pmpo_weights,
)
from valence.objectives.pmpo import PRESETS
from valence.types import Labels, Likelihood, Rewards


def labels(*signs: int) -> Labels:
    sign = torch.tensor(signs)[:, None]
    return Labels(sign, torch.ones_like(sign, dtype=torch.bool))


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def evaluate(objective, batch, log_prob, ref_kl=None) -> float:
    target = objective.prepare(batch, None)
    likelihood = Likelihood(log_prob[..., None], ref_kl=None if ref_kl is None else ref_kl[..., None])
    return objective(likelihood, target).total(target.size).item()


def test_value_by_hand(make_batch):
    """Rows +, +, -, unlabelled; log pi = -1, -3, -2, -5; KL = .1, .2, .3, .4; alpha = 1/4, beta = 2.

    -1/4 mean(-1, -3) + 3/4 (-2) + 2 mean(.1, .2, .3, .4) = .5 - 1.5 + .5 = -.5
    """
    batch = make_batch(labels(1, 1, -1, 0))
    value = evaluate(PMPO(alpha=0.25, beta=2.0), batch, column(-1, -3, -2, -5), column(0.1, 0.2, 0.3, 0.4))
    assert value == pytest.approx(-0.5, abs=1e-6)


def test_weights_by_hand():
    """Half of four rows accepted, a quarter rejected: +(1/4)/(1/2) = .5 each, -(3/4)/(1/4) = -3; unlabelled 0."""
    feedback = labels(1, 1, -1, 0)
    fractions = {"accepted_fraction": 0.5, "rejected_fraction": 0.25}
    weight = pmpo_weights(feedback.sign, feedback.present, alpha=0.25, **fractions)
    assert weight.flatten().tolist() == [0.5, 0.5, -3.0, 0.0]


def test_data_set_fractions_make_one_sided_batches_no_special_case(make_batch):
    """Two batches, one of accepts and one of rejects, weighted by the data set's fractions, average to the whole."""
    fractions = {"accepted_fraction": 0.5, "rejected_fraction": 0.5}
    whole = evaluate(PMPO(beta=1.0), make_batch(labels(1, 1, -1, -1)), column(-1, -2, -3, -4), column(0, 0, 0, 0))
    parts = [
        evaluate(PMPO(beta=1.0, **fractions), make_batch(labels(*signs)), column(*values), column(0, 0))
        for signs, values in (((1, 1), (-1, -2)), ((-1, -1), (-3, -4)))
    ]
    assert whole == pytest.approx(0.5 * 1.5 - 0.5 * 3.5)
    assert sum(parts) / 2 == pytest.approx(whole)


def test_a_given_fraction_of_zero_contradicts_a_batch_with_that_class():
    feedback = labels(1, -1)
    with pytest.raises(ValueError, match="rejected rows"):
        pmpo_weights(feedback.sign, feedback.present, alpha=0.5, accepted_fraction=1.0, rejected_fraction=0.0)


def test_score_weights_by_hand():
    """r / eta = 0, log 2: softmax(r) = 1/3, 2/3 and softmax(-r) = 2/3, 1/3. With K = 2 and alpha = 1/4:

    2 (1/4 1/3 - 3/4 2/3) = -5/6 and 2 (1/4 2/3 - 3/4 1/3) = -1/6. A third, absent action holds NaN; an action alone
    in its context is compared with nothing.
    """
    reward = torch.tensor([[0.0, 3 * math.log(2), math.nan], [7.0, math.nan, math.nan]], dtype=torch.float64)
    present = torch.tensor([[True, True, False], [True, False, False]])
    weight = pmpo_score_weights(reward, present, alpha=0.25, temperature=3.0)
    expected = torch.tensor([[-5 / 6, -1 / 6, 0], [0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(weight, expected)


def test_score_weights_of_a_context_without_actions_are_zero():
    weight = pmpo_score_weights(
        torch.full((1, 2), math.nan), torch.zeros(1, 2, dtype=torch.bool), alpha=0.5, temperature=1.0
    )
    assert weight.tolist() == [[0.0, 0.0]]


def test_auto_beta_of_scores_holds_the_action_pushed_away_hardest(make_batch):
    """The weights of `test_score_weights_by_hand` are -5/6 and -1/6: beta = 5/6."""
    rewards = Rewards(torch.tensor([[0.0, math.log(2)]]), torch.ones(1, 2, dtype=torch.bool))
    target = PMPO(alpha=0.25, score_temperature=1.0).prepare(make_batch(rewards), None)
    assert target.beta.item() == pytest.approx(5 / 6)


def test_bc_form_by_hand(make_batch):
    """Rows +, -, 0, 0; log pi = -1, -2, -3, -5; alpha = 1/2, beta = 2.

    1/2 (1) - 1/2 (2) + 2 mean(3, 5) = 7.5, and no reference is asked for.
    """
    objective = PMPO(alpha=0.5, beta=2.0, regularizer="bc")
    assert objective.needs == {"log_prob"}
    assert evaluate(objective, make_batch(labels(1, -1, 0, 0)), column(-1, -2, -3, -5)) == pytest.approx(7.5)


def test_bc_and_kl_have_one_gradient_on_exact_reference_samples(bandit, make_batch):
    """E_ref[-log pi] = KL(pi_ref || pi) + H(pi_ref): unlabelled rows at pi_ref's counts replace the KL exactly."""
    actions, feedback = bandit.rows(accepted=(1, 1, 1, 0))
    every = torch.cat([actions, actions])
    sign = torch.cat([feedback.sign, torch.zeros_like(feedback.sign)])
    both = Labels(sign, torch.ones_like(sign, dtype=torch.bool))
    gradients = []
    for objective in (PMPO(beta=0.9), PMPO(beta=0.9, regularizer="bc")):
        logits = torch.tensor([0.3, -0.2, 0.1, 0.5], dtype=torch.float64, requires_grad=True)
        target = objective.prepare(make_batch(both), None)
        objective(bandit.likelihood(logits, every), target).total(target.size).backward()
        gradients.append(logits.grad)
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("alpha", "accepted", "rejected", "expected"),
    [
        (0.5, 0.5, 0.5, 1.0),  # median split, both: (1 - 1/2) / (1/2)
        (0.0, 0.5, 0.5, 2.0),  # median split, rejections alone
        (0.0, 0.9, 0.1, 10.0),  # one in ten rejected
        (0.0, 0.45, 0.05, 10.0),  # the same with half of the rows unlabelled
        (0.0, 0.0, 0.3, 2.0),  # rejections only: rho cannot be known, 1/2 assumed
        (1.0, 0.5, 0.5, 0.0),
        (0.5, 1.0, 0.0, 0.0),
    ],
)
def test_auto_beta(alpha, accepted, rejected, expected):
    assert pmpo_beta(alpha=alpha, accepted=accepted, rejected=rejected) == pytest.approx(expected)
    objective = PMPO(alpha=alpha, accepted_fraction=accepted, rejected_fraction=rejected)
    assert objective.unbounded_reason(accepted=accepted, rejected=rejected) is None


def test_auto_beta_reaches_the_target(make_batch):
    target = PMPO(alpha=0.0).prepare(make_batch(labels(1, 1, 1, -1)), None)
    assert target.beta.item() == pytest.approx(4.0)


def test_unbounded_reason_names_both_numbers():
    reason = PMPO(alpha=0.0, beta=2.0).unbounded_reason(accepted=0.9, rejected=0.1)
    assert reason is not None and "`beta` is 2," in reason and "= 10" in reason and "\n" not in reason
    assert PMPO(alpha=0.0, beta=10.0).unbounded_reason(accepted=0.9, rejected=0.1) is None
    assumed = PMPO(alpha=0.0, beta=1.0).unbounded_reason(accepted=0.0, rejected=1.0)
    assert assumed is not None and "half" in assumed
    unheld = PMPO(regularizer="bc", beta=5.0).unbounded_reason(accepted=0.5, rejected=0.5)
    assert unheld is not None and "unlabelled" in unheld


def test_presets_are_the_papers():
    assert pmpo_ar() == PMPO(alpha=0.5, beta=0.5)
    assert pmpo_a() == PMPO(alpha=1.0, beta=0.0)
    assert pmpo_r() == PMPO(alpha=0.0, beta=2.0)
    assert pmpo_r(beta=3.0) == PMPO(alpha=0.0, beta=3.0)
    assert pmpo_a(accepted_fraction=0.4, rejected_fraction=0.6).accepted_fraction == 0.4
    assert {name: preset() for name, preset in PRESETS.items()} == {"ar": pmpo_ar(), "a": pmpo_a(), "r": pmpo_r()}
    with pytest.raises(ValueError, match="preset 'r' sets `alpha` to 0"):
        pmpo_r(alpha=0.5)


@pytest.mark.parametrize(
    ("fractions", "alpha"),
    [((None, None), 0.5), ((0.3, 0.5), 0.5), ((1.0, 0.0), 1.0), ((0.0, 0.2), 0.0), ((0.0, 0.0), 0.5)],
)
def test_auto_alpha_is_one_sided_where_the_data_set_is(fractions, alpha, make_batch):
    """Of accepted rows alone PMPO-A, of rejected ones alone PMPO-R, with its beta of 2: half of pi_ref assumed."""
    fields = {"accepted_fraction": fractions[0], "rejected_fraction": fractions[1]}
    objective = PMPO(**fields)
    assert objective.accepted_weight == alpha
    assert objective.needs == PMPO(alpha=alpha, **fields).needs
    if alpha == 0:
        target = objective.prepare(make_batch(labels(-1, 0, 0, 0, 0)), None)
        assert target.beta.item() == 2 and target.weight[0].item() == pytest.approx(-1 / 0.2)


def test_reference_is_asked_for_only_where_it_counts():
    assert "ref_kl" not in pmpo_a().needs
    assert "ref_kl" not in PMPO(alpha=1.0).needs
    assert "ref_kl" in pmpo_ar().needs
    assert "ref_kl" in PMPO().needs


def test_gradcheck():
    generator = torch.Generator().manual_seed(0)
    log_prob, ref_kl, weight = torch.randn(3, 4, 2, dtype=torch.float64, generator=generator)
    inputs = (log_prob.requires_grad_(), ref_kl.requires_grad_())
    assert gradcheck(lambda a, b: pmpo_loss(a, b, weight, beta=0.7), inputs)
    assert gradcheck(lambda a: pmpo_loss(a, None, weight, beta=0.0), inputs[:1])


def test_pmpo_a_is_the_mean_negative_log_likelihood_of_accepted(make_batch):
    batch, log_prob = make_batch(labels(1, -1, 1, 0)), column(-1.5, -9, -2.5, -9)
    assert evaluate(pmpo_a(), batch, log_prob) == pytest.approx(2.0)
    assert evaluate(Supervised(), batch, log_prob) == pytest.approx(2.0)


@pytest.mark.parametrize(("accepted", "rho"), [((1, 2, 0, 0), 5 / 8), ((0, 2, 0, 2), 1 / 2), ((1, 1, 2, 1), 3 / 8)])
def test_pmpo_r_at_its_bound_has_pmpo_a_gradient(bandit, make_batch, accepted, rho):
    """Where actions are pi_ref's, PMPO-R at beta = 1 / rho has (1 - rho) / rho times PMPO-A's gradient.

    grad = E_r[g] - E_ref[g] / rho, with g = grad log pi and E_ref[g] = rho E_r[g] + (1 - rho) E_a[g]: what is left is
    -(1 - rho) / rho E_a[g]. At the median split (rho = 1/2) the two methods are one.
    """
    actions, feedback = bandit.rows(accepted=accepted)
    gradients = []
    for objective in (pmpo_a(), PMPO(alpha=0.0)):
        logits = torch.tensor([0.3, -0.2, 0.1, 0.5], dtype=torch.float64, requires_grad=True)
        target = objective.prepare(make_batch(feedback), None)
        objective(bandit.likelihood(logits, actions), target).total(target.size).backward()
        gradients.append(logits.grad)
    assert gradients[0].abs().max() > 0.01
    torch.testing.assert_close(gradients[1], gradients[0] * (1 - rho) / rho, atol=1e-6, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 4), min_size=2, max_size=5),
    scores=st.lists(st.integers(-20, 20), min_size=5, max_size=5),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
)
def test_exact_em_step_improves_strictly(counts, scores, temperature):
    """Appendix C: pi_1 proportional to pi_0 e^{f / eta} has E[f] > E_0[f] + eta KL(pi_1 || pi_0) unless f is constant.

    The step is the library's: a context that holds action a `counts[a]` times is pi_0 spelled out, the weights at
    alpha = 1 are its E-step, and pi_1(a) = the mean weight on a is where the M-step's gradient vanishes.
    """
    score = torch.tensor(scores[: len(counts)], dtype=torch.float64) / 4
    assume(bool(score.min() < score.max()))
    actions = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    weight = pmpo_score_weights(
        score[actions][None], torch.ones(1, len(actions), dtype=torch.bool), alpha=1.0, temperature=temperature
    )
    before = torch.tensor(counts, dtype=torch.float64) / sum(counts)
    after = torch.zeros_like(before).index_add(0, actions, weight[0] / len(actions))
    logits = after.log().requires_grad_()
    pmpo_loss(logits.log_softmax(-1)[actions][None], None, weight, beta=0.0).mean().backward()
    assert logits.grad is not None and logits.grad.abs().max() < 1e-12
    kl_policy_ref = (after * (after / before).log()).sum()
    assert kl_policy_ref > 0
    assert after @ score >= before @ score + temperature * kl_policy_ref - 1e-12
    assert after @ score > before @ score


def pmpo_optimum(reference, acceptance, alpha, beta):
    """pi_ref [beta + alpha s / Z - (1 - alpha) (1 - s) / (1 - Z)], normalised: the cross-entropy's weights."""
    mass = reference @ acceptance
    tilt = beta + alpha * acceptance / mass - (1 - alpha) * (1 - acceptance) / (1 - mass)
    return reference * tilt / (reference * tilt).sum()


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 1.2), (0.5, "auto"), (0.0, "auto"), (0.0, 3.0), (0.8, 0.6)])
def test_converges_to_its_optimum(bandit, alpha, beta):
    """s = 1, 1/2, 1/3, 0 under pi_ref = 1/8, 2/8, 3/8, 2/8: Z = 3/8, rho = 5/8."""
    actions, feedback = bandit.rows(accepted=(1, 1, 1, 0))
    acceptance = torch.tensor([1, 1 / 2, 1 / 3, 0], dtype=torch.float64)
    weight = (1 - alpha) / (5 / 8) if beta == "auto" else beta
    expected = pmpo_optimum(bandit.reference, acceptance, alpha, weight)
    assert expected.min() > -1e-12
    policy = bandit.fit(PMPO(alpha=alpha, beta=beta), feedback, actions)
    torch.testing.assert_close(policy, expected, atol=1e-3, rtol=0)


def test_converges_on_scores(bandit):
    """alpha q - (1 - alpha) t + beta pi_ref with q, t proportional to pi_ref e^{r}, pi_ref e^{-r}, normalised."""
    actions, _ = bandit.rows(accepted=(0, 0, 0, 0))
    score = torch.tensor([1.0, 0.0, -0.5, 0.5], dtype=torch.float64)
    rewards = Rewards(score[actions].T, torch.ones(1, 8, dtype=torch.bool))
    policy = bandit.fit(PMPO(alpha=0.6, beta=1.5, score_temperature=1.0), rewards, actions.T)
    better, worse = ((bandit.log_reference + side * score).softmax(-1) for side in (1, -1))
    expected = 0.6 * better - 0.4 * worse + 1.5 * bandit.reference
    torch.testing.assert_close(policy, expected / expected.sum(), atol=1e-3, rtol=0)


def test_runs_away_below_the_bound(bandit, make_batch):
    """alpha = 0, rho = 5/8: the bound is 1.6. At beta = 1 the tilt of what is always rejected is 1 - 1.6 < 0, so
    pushing it to zero lowers the loss for ever."""
    actions, feedback = bandit.rows(accepted=(1, 1, 1, 0))
    objective = PMPO(alpha=0.0, beta=1.0)
    target = objective.prepare(make_batch(feedback), None)
    logits = bandit.log_reference.clone().requires_grad_()
    losses, divergences = [], []
    for step in range(600):
        likelihood = bandit.likelihood(logits, actions)
        loss = objective(likelihood, target).total(target.size)
        (gradient,) = torch.autograd.grad(loss, logits)
        logits = (logits - 4.0 * gradient).detach().requires_grad_()
        if step % 100 == 99:
            losses.append(loss.item())
            divergences.append(likelihood.ref_kl[0, 0, 0].item())
    assert all(later < earlier - 1 for earlier, later in itertools.pairwise(losses))
    assert all(later > earlier + 1 for earlier, later in itertools.pairwise(divergences))
    assert divergences[-1] > 50


def test_metrics_are_class_means(make_batch):
    objective = PMPO(beta=2.0)
    target = objective.prepare(make_batch(labels(1, 1, -1, 0)), None)
    log_prob, ref_kl = column(-1, -3, -2, -5)[..., None], column(0.1, 0.2, 0.3, 0.4)[..., None]
    metrics = objective(Likelihood(log_prob, ref_kl=ref_kl), target).metrics
    values = {name: round(metric.item(), 6) for name, metric in metrics.items()}
    assert values == {"accepted_log_prob": -2.0, "rejected_log_prob": -2.0, "kl_ref_policy": 0.25, "beta": 2.0}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"alpha": 1.5}, "`alpha` must be in"),
        ({"beta": -0.1}, "`beta` must be finite and >= 0"),
        ({"beta": math.nan}, "beta"),
        ({"score_temperature": 0.0}, "`score_temperature` must be finite and > 0"),
        ({"accepted_fraction": 0.5}, "both or neither"),
        ({"accepted_fraction": 0.7, "rejected_fraction": 0.7}, "at most 1"),
    ],
)
def test_fields_are_validated(fields, message):
    with pytest.raises(ValueError, match=message):
        PMPO(**fields)


def test_bc_form_refuses_scores(make_batch):
    rewards = Rewards(torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="unlabelled"):
        PMPO(regularizer="bc", score_temperature=1.0).prepare(make_batch(rewards), None)


def gaussian_likelihood(mean, scale, actions, *, old=(0.1, 0.4)) -> Likelihood:
    """One context and dimension: a Gaussian's log-probabilities and KLs, whole and in halves, from the reference."""
    from torch.distributions import Normal, kl_divergence

    reference, parts = Normal(*torch.tensor(old, dtype=torch.float64)), {}
    halves = {"_mean": (mean, reference.scale), "_covariance": (reference.loc, scale), "": (mean, scale)}
    for half, moments in halves.items():
        own = Normal(*moments)
        parts[f"log_prob{half}"] = own.log_prob(actions)[..., None]
        parts[f"ref_kl{half}"] = kl_divergence(reference, own).expand(actions.shape)[..., None]
    return Likelihood(**parts)


SIGNS = torch.tensor([[1, -1, 1, -1, -1]])
DRAWN = torch.tensor([[0.5, -0.6, 0.2, -0.1, 0.9]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("alpha", "beta", "covariance_beta"), [(0.5, 2.0, 3.0), (1.0, 0.5, 2.0), (0.0, 4.0, 6.0), (0.7, 1.0, 1.5)]
)
def test_mean_and_covariance_learnt_apart_reach_their_closed_forms(make_batch, minimise, alpha, beta, covariance_beta):
    """m = (alpha m_a - (1 - alpha) m_r + beta m_0) / W, W = 2 alpha - 1 + beta; the variance likewise, about m_0."""
    objective = PMPO(alpha=alpha, beta=beta, covariance_beta=covariance_beta)
    target = objective.prepare(make_batch(Labels(SIGNS, SIGNS != 0)), None)
    raw = torch.tensor([0.0, -0.5], dtype=torch.float64, requires_grad=True)

    def loss():
        return objective(gaussian_likelihood(raw[0], raw[1].exp(), DRAWN), target).total(target.size)

    minimise(loss, raw)
    good, bad = DRAWN[SIGNS > 0], DRAWN[SIGNS < 0]
    mean = (alpha * good.mean() - (1 - alpha) * bad.mean() + beta * 0.1) / (2 * alpha - 1 + beta)
    spread = [((side - 0.1) ** 2).mean() for side in (good, bad)]
    variance = (alpha * spread[0] - (1 - alpha) * spread[1] + covariance_beta * 0.16) / (
        2 * alpha - 1 + covariance_beta
    )
    assert raw.detach()[0].item() == pytest.approx(mean.item(), abs=1e-6)
    assert (2 * raw.detach()[1]).exp().item() == pytest.approx(variance.item(), abs=1e-6)


def test_halves_by_hand(make_batch):
    """Each half: -(mean accepted - mean rejected) / 2 of its log-probabilities, plus its own beta times its KL."""
    objective = PMPO(beta=2.0, covariance_beta=5.0)
    target = objective.prepare(make_batch(Labels(SIGNS, SIGNS != 0)), None)
    found = gaussian_likelihood(torch.tensor(0.3).double(), torch.tensor(0.5).double(), DRAWN)
    expected = 0.0
    for half, beta in (("mean", 2.0), ("covariance", 5.0)):
        log_prob, kl = (getattr(found, f"{name}_{half}")[..., 0] for name in ("log_prob", "ref_kl"))
        expected += -0.5 * (log_prob[SIGNS > 0].mean() - log_prob[SIGNS < 0].mean()) + beta * kl[0, 0]
    loss = objective(found, target)
    assert loss.total(target.size).item() == pytest.approx(expected.item())
    for half in ("mean", "covariance"):
        assert loss.metrics[f"kl_ref_policy_{half}"].item() == pytest.approx(
            getattr(found, f"ref_kl_{half}")[0, 0].item()
        )
    assert loss.metrics["accepted_log_prob"].item() == pytest.approx(found.log_prob[0][SIGNS[0] > 0].mean().item())


def test_at_the_reference_the_halves_together_have_the_gradient_of_the_whole(make_batch):
    apart, whole = PMPO(alpha=0.7, beta=1.5, covariance_beta=1.5), PMPO(alpha=0.7, beta=1.5)
    slopes = []
    for objective in (apart, whole):
        raw = torch.tensor([0.1, 0.4], dtype=torch.float64, requires_grad=True)
        target = objective.prepare(make_batch(Labels(SIGNS, SIGNS != 0)), None)
        loss = objective(gaussian_likelihood(raw[0], raw[1], DRAWN), target).total(target.size)
        slopes.append(torch.autograd.grad(loss, raw)[0])
    torch.testing.assert_close(slopes[0], slopes[1])
    assert slopes[0].abs().min() > 0.1


def test_an_infinite_weight_leaves_the_covariance_where_it_is(make_batch):
    found = {}
    for weight in (math.inf, 2.0):
        objective = PMPO(beta=2.0, covariance_beta=weight)
        target = objective.prepare(make_batch(Labels(SIGNS, SIGNS != 0)), None)
        raw = torch.tensor([0.3, 0.5], dtype=torch.float64, requires_grad=True)
        loss = objective(gaussian_likelihood(raw[0], raw[1], DRAWN), target).total(target.size)
        found[weight] = torch.autograd.grad(loss, raw)[0].tolist()
        assert math.isfinite(loss.item())
    assert found[math.inf][1] == 0 != found[2.0][1] and found[math.inf][0] == found[2.0][0] != 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"covariance_beta": -1.0}, "`covariance_beta` must be >= 0"),
        ({"covariance_beta": math.nan}, "`covariance_beta` must be >= 0"),
        ({"covariance_beta": 1.0, "regularizer": "bc"}, "no KL to split"),
    ],
)
def test_a_covariance_beta_is_validated(fields, message):
    with pytest.raises(ValueError, match=message):
        PMPO(**fields)
