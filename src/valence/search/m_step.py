"""PMPO's improvement step for a Gaussian, in closed form.

    minimise  -alpha E_accepted[log pi] + (1 - alpha) E_rejected[log pi] + beta KL(pi_ref || pi)

-beta KL(pi_ref || pi) is beta E_ref[log pi] plus a constant, so this is maximum likelihood with signed weights of sum
W = alpha - (1 - alpha) + beta (PMPO paper, Eq. 10). For a Gaussian it has a closed form. Mean, size and shape are each
solved for while the other two are the reference's (as MPO decouples mean and covariance), so each can have its own KL
weight.

Shapes: n samples of d coordinates, whitened by the reference: z = 0 is its mean, E_ref[z z'] = I. Each sample has a
weight; the sum of the weights and of the weight of a closed-form KL is W, which must be > 0.

Departs from the paper: E_ref[log pi] can be estimated on the judged draw itself (`kl="sampled"`, PMPO's BC form), not
only in closed form (`kl="exact"`). Both are unbiased. On the draw itself the weights at the smallest bounded beta are
>= 0, as the density of the optimum is with many samples. In closed form the noise of a rejected mean of a few samples
is not cancelled, which slows a search down at every step.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float

from valence.objectives.pmpo import PMPO
from valence.search.gaussian import Gaussian
from valence.search.judgement import Judgement

SMALLEST, LARGEST = 0.25, 4.0
"""Bounds of the factor by which one step changes size^2. The lower one also bounds the eigenvalues of the shape's."""


@dataclass(frozen=True, eq=False)
class Weights:
    """The weight of each sample's log pi, divided by W. Each column sums to 1 together with `closed_kl`.

    Args:
        mean: `[n]`, for the mean; accepted samples are weighted by rank.
        spread: `[n]`, for size and shape; plain class means, which leave size and shape unchanged on a linear slope.
        closed_kl: weight of the closed-form KL, >= 0.
        slope: the expectation of spread @ (z'z - d) on a linear slope, where the size should not change; 0 where both
            classes hold half of the samples.
    """

    mean: Float[np.ndarray, " n"]
    spread: Float[np.ndarray, " n"]
    closed_kl: float
    slope: float = 0.0

    @property
    def effective(self) -> float:
        """Number of equally weighted samples that would give the mean as much noise."""
        return 1 / max(float((self.mean**2).sum()), 1e-300)


def pmpo_weights(judgement: Judgement, objective: PMPO, *, exact_kl: bool) -> Weights | None:
    """The objective's weights on a judged draw; None where its classes are empty and there is nothing to learn.

    An empty class is dropped. beta="auto" is the bound of what is left, (1 - alpha) / rho, where rho is the rejected
    fraction of the whole draw; unlabelled samples count as not rejected. Where some samples are rejected more than
    others (pairs, ties), the most rejected one sets the bound. Where all samples were rejected, the draw shows nothing
    else of the reference: the KL is then in closed form, and rho is taken as 1/2.

    Warns:
        The objective's beta gives W <= 0, as beta 0.5 does where there are only rejections: the bound is used.
    """
    count, alpha = len(judgement), objective.accepted_weight
    accepts = alpha * bool(judgement.accepted.any())
    rejects = (1 - alpha) * bool(judgement.rejected.any())
    if accepts == rejects == 0:
        return None
    rejected = float((judgement.rejected > 0).mean()) if rejects else 0.0
    exact_kl = exact_kl or rejected == 1.0
    away = rejects * _unit(judgement.rejected)
    # rejects / rho where all rejected samples weigh the same; else the most rejected sample sets the bound.
    bound = 2 * rejects if rejected == 1.0 else float(away.max()) * count
    beta = bound if objective.beta == "auto" else float(objective.beta)
    total = accepts - rejects + beta
    if total <= 1e-12:
        warnings.warn(f"beta = {beta:g} is too small for the rejections in this draw: {bound:g} is used", stacklevel=4)
        beta, total = bound, accepts - rejects + bound
    anchor = 0.0 if exact_kl else beta / count
    mean = (accepts * _unit(judgement.strength) - away + anchor) / total
    spread = (accepts * _unit(judgement.accepted) - away + anchor) / total
    accepted = float((judgement.accepted > 0).mean())
    slope = (accepts * _tail_excess(accepted) - rejects * _tail_excess(rejected)) / total
    return Weights(mean, spread, beta / total if exact_kl else 0.0, slope)


def _tail_excess(fraction: float) -> float:
    """E[z^2] - 1 of the upper `fraction` of a standard normal; 0 where the fraction is 0 or 1."""
    if not 0 < fraction < 1:
        return 0.0
    edge = NormalDist().inv_cdf(1 - fraction)
    return edge * NormalDist().pdf(edge) / fraction


def _unit(column: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    total = column.sum()
    return column / total if total > 0 else column


def mean_step(z: Float[np.ndarray, "n d"], weights: Weights) -> Float[np.ndarray, " d"]:
    """The whitened shift of the mean: (alpha m_a - (1 - alpha) m_r + beta m_0) / W, with m_0 = 0."""
    return weights.mean @ z


def size_step(z: Float[np.ndarray, "n d"], weights: Weights, path: Float[np.ndarray, " d"], *, beta: float) -> float:
    """The factor by which the size changes.

    Args:
        path: one more accepted sample, with weight 1 (see `adapt`).
        beta: KL weight of the size, in units of W.
    """
    own = weights.spread @ ((z**2).mean(-1) - 1) - weights.slope / len(path)
    # A spread cannot be estimated from one sample.
    own *= min(max(weights.effective - 1, 0.0), 1.0)
    return float(np.sqrt(np.clip(1 + (own + path @ path / len(path) - 1) / (2 + beta), SMALLEST, LARGEST)))


def shape_step(
    policy: Gaussian, z: Float[np.ndarray, "n d"], weights: Weights, path: Float[np.ndarray, " d"], *,
    sample_rate: float, path_rate: float, diagonal: bool,
) -> Float[np.ndarray, "d d"]:  # fmt: skip
    """The new shape: the weighted second moment, rescaled, is the likeliest covariance with determinant 1.

    Args:
        sample_rate: share of the samples, W / (W + weight of the path + KL weight of the shape), in [0, 1).
        path_rate: share of the path, likewise; the rest is the reference's share.
        diagonal: only the diagonal changes.
    """
    identity = np.eye(z.shape[1])
    moment = (weights.spread[:, None] * z).T @ z - weights.spread.sum() * identity
    target = identity + sample_rate * moment + path_rate * (np.outer(path, path) - identity)
    if diagonal:
        target = np.diag(np.maximum(np.diag(target), SMALLEST))
    else:
        values, vectors = np.linalg.eigh(target)
        target = (vectors * np.maximum(values, SMALLEST)) @ vectors.T
    shape = policy.root @ target @ policy.root
    shape = (shape + shape.T) / 2
    return shape / np.exp(np.linalg.slogdet(shape)[1] / len(shape))
