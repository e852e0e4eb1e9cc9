"""What every policy shares: likelihoods from distributions, and the pull-back through a kept graph.

Shape legend: see `valence.types`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from valence.types import PER_STEP, Likelihood

REFERENCED = frozenset({"ref_log_prob", "ref_kl", "policy_kl"})
"""What cannot be measured without a reference."""


def referenced(needs: frozenset[str], reference: object | None) -> frozenset[str]:
    """The members of `needs` that a reference is needed for.

    Raises:
        ValueError: there are some, and `reference` is None.
    """
    asked = needs & REFERENCED
    if asked and reference is None:
        raise ValueError(f"{sorted(asked)} need a reference policy, and `reference` is None")
    return asked


def likelihood_from_distributions(
    policy: Distribution,
    reference: Distribution | None,
    steps: Tensor,
    mask: Bool[Tensor, "N K T"],
    needs: frozenset[str],
) -> Likelihood:
    """Measure a policy whose distributions are small enough to hold.

    Args:
        policy: batch shape `[N, K, T]`; differentiable.
        reference: the same under pi_ref; its parameters must not require a gradient.
        steps: the actions, `[N, K, T, ...]`.
        mask: which steps exist.
        needs: which of `valence.protocols.NEEDS` to compute.
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
        likelihood: as measured, with its graph.
        grads: name of a per-step quantity -> gradient of the loss with respect to it, of the same shape.
    """
    tensors = {name: getattr(likelihood, name) for name in grads if name in PER_STEP}
    live = {name: tensor for name, tensor in tensors.items() if tensor is not None and tensor.requires_grad}
    if live:
        torch.autograd.backward(list(live.values()), [grads[name] for name in live])
