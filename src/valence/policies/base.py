"""What every policy shares: likelihoods from distributions, and the pull-back through a kept graph.

Shape legend: see `valence.types`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from valence.types import Likelihood

REFERENCED = frozenset({"ref_log_prob", "ref_kl", "policy_kl"})
"""What cannot be measured without a reference."""


def referenced(needs: frozenset[str], reference: object | None) -> frozenset[str]:
    """The members of `needs` that need a reference; ValueError if there are some and `reference` is None."""
    asked = needs & REFERENCED
    if asked and reference is None:
        raise ValueError(f"{sorted(asked)} need a reference policy, and `reference` is None")
    return asked


def likelihood_from_distributions(
    policy: Distribution, reference: Distribution | None, steps: Tensor, mask: Bool[Tensor, "N K T"],
    needs: frozenset[str],
) -> Likelihood:  # fmt: skip
    """Measure a policy whose distributions are small enough to hold.

    Args:
        policy: batch shape `[N, K, T]`; differentiable.
        reference: the same under pi_ref; its parameters must not require a gradient.
        steps: the actions, `[N, K, T, ...]`.
    Raises:
        ValueError: a reference quantity is in `needs` and `reference` is None.
    """
    asked = referenced(needs, reference)
    parts: dict[str, Tensor] = {"log_prob": policy.log_prob(steps)}
    if reference is not None:
        if "ref_log_prob" in asked:
            parts["ref_log_prob"] = reference.log_prob(steps).detach()
        if "ref_kl" in asked:
            parts["ref_kl"] = kl_divergence(reference, policy)
        if "policy_kl" in asked:
            parts["policy_kl"] = kl_divergence(policy, reference)
    return Likelihood(mask=mask, **{name: part.masked_fill(~mask, 0.0) for name, part in parts.items()})


def pull_back(likelihood: Likelihood, grads: Mapping[str, Tensor]) -> None:
    """Walk the graph that `likelihood` kept, accumulating into the parameters' `.grad`.

    Args:
        grads: name of a per-step quantity -> gradient of the loss with respect to it, of the same shape.
    """
    backward_live((getattr(likelihood, name), grad) for name, grad in grads.items())


def backward_live(pairs: Iterable[tuple[Tensor | None, Tensor | None]]) -> None:
    """Pull back all (tensor, its gradient) at once, without those that are None or require no gradient."""
    pairs = [(part, grad) for part, grad in pairs if part is not None and part.requires_grad and grad is not None]
    if pairs:
        torch.autograd.backward([part for part, _ in pairs], [grad.to(part.dtype) for part, grad in pairs])
