"""PMPO's improvement step for a Gaussian, in closed form.

    minimise  -alpha E_accepted[log pi] + (1 - alpha) E_rejected[log pi] + beta KL(pi_ref || pi)

-beta KL(pi_ref || pi) is beta E_ref[log pi] and a constant, so this is maximum likelihood with signed weights of total
W = alpha - (1 - alpha) + beta (PMPO paper, Eq. 10), and a Gaussian's maximum likelihood has a closed form. Mean, size
and shape are each solved for with the other two at the reference's (as MPO decouples mean and covariance), so each can
have a KL weight of its own.

Shapes: n samples of d coordinates, whitened by the reference: z = 0 is its mean, E_ref[z z'] = I. A sample weighs w;
sum(w) plus the weight of a closed-form KL is W, which must be > 0.

Departs from the paper: E_ref[log pi] can be taken over the very draw that was judged (`kl="sampled"`, PMPO's BC form)
instead of in closed form (`kl="exact"`). Both are unbiased. On its own draw the objective at the smallest bounded beta
has weights >= 0, as in the limit of many samples its optimum has density >= 0; in closed form the noise of a rejected
mean of a few samples stays uncancelled, which a search pays for at every step.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float

from valence.objectives import PMPO
from valence.search.gaussian import Gaussian
from valence.search.judgement import Judgement

SMALLEST, LARGEST = 0.25, 4.0
"""How far one step may change the size's square, and (the lower one) an eigenvalue of the shape."""


@dataclass(frozen=True, eq=False)
class Weights:
    """What each sample's log pi weighs, divided by W: sums to 1 together with `closed_kl`.

    Args:
        mean: `[n]`, for the mean; accepted samples weighed by rank.
        spread: `[n]`, for size and shape; plain class means, which on a slope leave size and shape as they are.
        closed_kl: weight of the closed-form KL, >= 0.
        slope: what `spread` makes of z'z - d on a slope, where size should stay: 0 for classes of one half each.
    """

    mean: Float[np.ndarray, " n"]
    spread: Float[np.ndarray, " n"]
    closed_kl: float
    slope: float = 0.0

    @property
    def effective(self) -> float:
        """How many equally weighed samples would leave as much noise in the mean."""
        return 1 / max(float((self.mean**2).sum()), 1e-300)


def pmpo_weights(judgement: Judgement, objective: PMPO, *, exact_kl: bool) -> Weights | None:
    """The objective's weights on a judged draw; None where its classes are empty, so that nothing is to be learned.

    A class that nobody spoke of drops out, and beta="auto" is then the bound of what is left, (1 - alpha) / rho with
    rho the rejected part of the whole draw: what nobody judged counts as not rejected, and where some are rejected more
    than others (pairs, ties) the most rejected decides. Where all were rejected, the
    draw says nothing of what else the reference does: the KL is in closed form, and rho taken for one half.

    Warns:
        W <= 0 with the objective's own beta, as with beta 0.5 where all that is said are rejections: the bound is used.
    """
    count, alpha = len(judgement), objective.alpha
    accepts = alpha * bool(judgement.accepted.any())
    rejects = (1 - alpha) * bool(judgement.rejected.any())
    if accepts == 0 and rejects == 0:
        return None
    rejected = float((judgement.rejected > 0).mean()) if rejects else 0.0
    exact_kl = exact_kl or rejected == 1.0
    away = rejects * _unit(judgement.rejected)
    # Where all are alike, rejects / rho; ties and pairs reject by halves, and the most rejected sample decides.
    bound = 2 * rejects if rejected == 1.0 else float(away.max()) * count
    beta = bound if objective.beta == "auto" else float(objective.beta)
    total = accepts - rejects + beta
    if total <= 1e-12:
        warnings.warn(
            f"beta = {beta:g} does not hold the policy against what is rejected here: {bound:g} is used", stacklevel=4
        )
        beta, total = bound, accepts - rejects + bound
    anchor = 0.0 if exact_kl else beta / count
    mean = (accepts * _unit(judgement.strength) - away + anchor) / total
    spread = (accepts * _unit(judgement.accepted) - away + anchor) / total
    accepted = float((judgement.accepted > 0).mean())
    slope = (accepts * _tail_excess(accepted) - rejects * _tail_excess(rejected)) / total
    return Weights(mean, spread, beta / total if exact_kl else 0.0, slope)


def _tail_excess(fraction: float) -> float:
    """E[z^2] - 1 of the outer `fraction` of a standard normal on one side; 0 where the fraction is not known."""
    if not 0 < fraction < 1:
        return 0.0
    edge = NormalDist().inv_cdf(1 - fraction)
    return edge * NormalDist().pdf(edge) / fraction


def _unit(column: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    total = column.sum()
    return column / total if total > 0 else column


def mean_step(z: Float[np.ndarray, "n d"], weights: Weights) -> Float[np.ndarray, " d"]:
    """Where the mean goes, whitened: (alpha m_a - (1 - alpha) m_r + beta m_0) / W, with m_0 = 0."""
    return weights.mean @ z


def size_step(z: Float[np.ndarray, "n d"], weights: Weights, path: Float[np.ndarray, " d"], *, beta: float) -> float:
    """The factor of the size.

    Args:
        path: one more accepted sample, of weight 1 (see `adapt`).
        beta: the size's own KL weight, in units of W.
    """
    own = weights.spread @ ((z**2).mean(-1) - 1) - weights.slope / len(path)
    # One sample alone says nothing of a spread.
    own *= min(max(weights.effective - 1, 0.0), 1.0)
    return float(np.sqrt(np.clip(1 + (own + path @ path / len(path) - 1) / (2 + beta), SMALLEST, LARGEST)))


def shape_step(
    policy: Gaussian,
    z: Float[np.ndarray, "n d"],
    weights: Weights,
    path: Float[np.ndarray, " d"],
    *,
    sample_rate: float,
    path_rate: float,
    diagonal: bool,
) -> Float[np.ndarray, "d d"]:
    """The new shape: among covariances of determinant 1 the likeliest is the weighted second moment, rescaled.

    Args:
        sample_rate: share of the samples, W / (W + path's weight + the shape's own beta).
        path_rate: share of the path, likewise; both in [0, 1), the reference's share is the rest.
        diagonal: only the diagonal is let go.
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
