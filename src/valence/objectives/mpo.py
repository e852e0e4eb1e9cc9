"""MPO: weight sampled actions by their values, and move the policy towards them by no more than a bound.

    E-step   w_k = softmax_k(Q(x, y_k) / eta), eta minimising  eta eps + eta E_x[log mean_k e^{Q(x, y_k) / eta}]
    M-step   maximise E_x[sum_k w_k log pi(y_k|x)]  subject to  E_x[KL(pi_ref || pi)] <= eps_kl

The constraint is a Lagrange multiplier, which is learned, as eta is. A Gaussian's mean and covariance have separate
bounds and multipliers: each is learned with the other held at the reference's.

Source: Abdolmaleki et al. 2018, "Maximum a posteriori policy optimisation", Eq. 8 to 13, and 2018b, "Relative entropy
regularized policy iteration" (the decoupled bounds); the action penalty is that of its public implementation in Acme.
Units: rewards in their own, as eta; KLs and bounds in nats, summed over an action's dimensions.

Departs from the papers:
- One multiplier for the whole action, where Acme has one for each dimension: `epsilon_mean` and `epsilon_covariance`
  bound the KL summed over all dimensions.
- With `decoupled=False` (categorical policies) one bound, `epsilon_mean`, is on KL(pi_ref || pi).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from valence.objectives import common
from valence.objectives.common import PerAction, Present
from valence.types import DECOUPLED, PER_CONTEXT, Batch, Likelihood, Loss, Rewards, Target


def mpo_weights(reward: PerAction, present: Present, temperature: Tensor | float) -> PerAction:
    """The E-step: softmax of reward / temperature over each context's present actions; sums to 1, or to 0 if none."""
    scaled = (common.zero_absent(reward, present) / temperature).masked_fill(~present, -torch.inf)
    return torch.where(present.any(-1, keepdim=True), torch.softmax(scaled, -1), 0.0).nan_to_num()


def mpo_temperature_loss(
    reward: PerAction, present: Present, temperature: Tensor, *, epsilon: float
) -> Float[Tensor, "N 1"]:
    """The dual of the E-step's bound KL(q || pi_ref) <= epsilon, per context; convex in the temperature.

    Args:
        temperature: eta, > 0. Differentiable.
        epsilon: the bound, nats.
    Returns:
        eta epsilon + eta log mean_k e^{r_k / eta}, zero where a context has no action.
    """
    number = present.sum(-1, keepdim=True)
    scaled = (common.zero_absent(reward, present) / temperature).masked_fill(~present & (number > 0), -torch.inf)
    mean = torch.logsumexp(scaled, -1, keepdim=True) - number.clamp(min=1).to(scaled.dtype).log()
    return torch.where(number > 0, temperature * (epsilon + mean), 0.0)


class Duals(nn.Module):
    """MPO's temperature and multipliers, which a softplus keeps positive.

    Args:
        initial: name -> first value, > 0.
    """

    FLOOR = 1e-8

    def __init__(self, **initial: float) -> None:
        super().__init__()
        inverse = {name: value + math.log(-math.expm1(-value)) for name, value in initial.items()}
        self.raw = nn.ParameterDict({name: nn.Parameter(torch.tensor(value)) for name, value in inverse.items()})

    def __getitem__(self, name: str) -> Float[Tensor, ""]:
        return softplus(self.raw[name]) + self.FLOOR


@dataclass(frozen=True, kw_only=True)
class MPOTarget(Target):
    """The rewards that the E-step weighs actions by. Its `size` counts contexts that have an action.

    Args:
        reward: Q of each action, anything where absent, `[N, K]`.
        penalty: how far each action lies outside its bounds, `[N, K]`; None: no second E-step.
    """

    reward: PerAction = field(metadata=PER_CONTEXT)
    penalty: PerAction | None = field(default=None, metadata=PER_CONTEXT)

    def count(self) -> int:
        return int(self.present.any(-1).sum())


@dataclass(frozen=True, kw_only=True)
class MPO(common.Defaults):
    """MPO as a frozen dataclass. Accepts `Rewards`: Q-values of actions that the reference drew.

    `state()` holds the temperature and the multipliers. They belong to the instance: make one for each run, and give
    the learner an optimizer called "dual" for them.

    Args:
        epsilon: Bound on the KL of the weighted actions to the reference (E-step), nats, above 0.
        epsilon_mean: Bound on the KL of the mean to the reference's, or on the whole KL if not decoupled, nats, above
            0.
        epsilon_covariance: Bound on the KL of the covariance to the reference's, nats, above 0.
        epsilon_penalty: Bound of a second E-step that penalises actions outside [-1, 1], nats, at least 0. With 0 there
            is no penalty.
        decoupled: Whether a Gaussian's mean and covariance have separate bounds.
        init_temperature: First value of the E-step's temperature, in the reward's unit, above 0.
        init_multiplier: First value of the multiplier of the mean's bound, above 0.
        init_multiplier_covariance: First value of the multiplier of the covariance's bound, above 0.
    """

    epsilon: float = 0.1
    epsilon_mean: float = 2.5e-3
    epsilon_covariance: float = 1e-6
    epsilon_penalty: float = 1e-3
    decoupled: bool = True
    init_temperature: float = 10.0
    init_multiplier: float = 10.0
    init_multiplier_covariance: float = 10.0
    _duals: Duals = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        common.require_positive(
            epsilon=self.epsilon, epsilon_mean=self.epsilon_mean, epsilon_covariance=self.epsilon_covariance,
            init_temperature=self.init_temperature, init_multiplier=self.init_multiplier,
            init_multiplier_covariance=self.init_multiplier_covariance,
        )  # fmt: skip
        common.require_non_negative(epsilon_penalty=self.epsilon_penalty)
        initial = {"temperature": self.init_temperature, "mean": self.init_multiplier}
        if self.decoupled:
            initial["covariance"] = self.init_multiplier_covariance
        if self.epsilon_penalty:
            initial["penalty"] = 1.0
        object.__setattr__(self, "_duals", Duals(**initial))

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"log_prob"}) | (DECOUPLED if self.decoupled else {"ref_kl"})

    def state(self) -> Duals:
        return self._duals

    def prepare(self, batch: Batch, frozen: Likelihood | None) -> MPOTarget:
        common.require_feedback(self, batch.feedback)
        assert isinstance(batch.feedback, Rewards)
        penalty, steps = None, batch.action.steps
        # Only numbers can lie outside bounds: bins and tokens are indices.
        if self.epsilon_penalty and steps.is_floating_point():
            penalty = (steps - steps.clamp(-1.0, 1.0)).flatten(2).norm(dim=-1)
        return MPOTarget(present=batch.present, reward=batch.feedback.value, penalty=penalty)

    def __call__(self, likelihood: Likelihood, target: MPOTarget) -> Loss:
        duals, total, present = self._duals, likelihood.total(), target.present
        temperature = duals["temperature"]
        weight = mpo_weights(target.reward, present, temperature.detach())
        dual = mpo_temperature_loss(target.reward, present, temperature, epsilon=self.epsilon)
        metrics = {"temperature": temperature.detach()}
        if target.penalty is not None:
            cost = duals["penalty"]
            weight = weight + mpo_weights(-target.penalty, present, cost.detach())
            dual = dual + mpo_temperature_loss(-target.penalty, present, cost, epsilon=self.epsilon_penalty)
            metrics["penalty_temperature"] = cost.detach()
        # All actions of a context have the same KL: its mean over them is the context's.
        share = present / present.sum(-1, keepdim=True).clamp(min=1)
        contexts = present.any(-1).sum().clamp(min=1)
        policy = torch.zeros_like(share)
        bounds = {"mean": self.epsilon_mean} | ({"covariance": self.epsilon_covariance} if self.decoupled else {})
        for half, epsilon in bounds.items():
            which, multiplier = f"_{half}" if self.decoupled else "", duals[half]
            log_prob = common.part(total, f"log_prob{which}", "MPO")
            kl = common.zero_absent(common.part(total, f"ref_kl{which}", "MPO"), present)
            policy = policy - weight * common.zero_absent(log_prob, present) + multiplier.detach() * share * kl
            dual = dual + multiplier * (share * (epsilon - kl.detach())).sum(-1, keepdim=True)
            metrics[f"kl_ref_policy_{half}"] = (share * kl.detach()).sum() / contexts
            metrics[f"multiplier_{half}"] = multiplier.detach()
        return Loss({"policy": policy, "dual": dual}, metrics)
