"""The M steps of a batch on the way through a head: hidden states in, likelihoods and gradients out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from valence.policies.fused import LinearHead, accumulation, likelihoods_and_gradients
from valence.protocols import Reference
from valence.types import Likelihood


@dataclass(frozen=True)
class Steps:
    """The M real steps of a batch, row by row.

    Args:
        hidden, ref_hidden: the last hidden state that predicts each step, the policy's and the reference's.
        targets: the tokens.
        mask: their places in the batch, `[N, K, T]`.
    """

    hidden: Float[Tensor, "M H"]
    ref_hidden: Float[Tensor, "M G"] | None
    targets: Int[Tensor, " M"]
    mask: Bool[Tensor, "N K T"]

    def scatter(self, parts: Mapping[str, Tensor]) -> Likelihood:
        """Quantities of the M steps, in their places."""
        return Likelihood(mask=self.mask, **{name: scatter(part, self.mask) for name, part in parts.items()})


def scatter(part: Float[Tensor, " M"], mask: Bool[Tensor, "N K T"]) -> Float[Tensor, "N K T"]:
    """Numbers of the M steps where `mask` is true, float32; zero elsewhere."""
    return torch.zeros(mask.shape, device=part.device).masked_scatter(mask, part.float())


def by_reference(
    reference: Reference, read: Callable[[Any, Any], Tensor], device: torch.device
) -> Callable[[Any], Tensor]:
    """A function of rows or hidden states: what `read(policy, them)` gives under the reference's weights.

    The reference is active each time it is called (a tile of logits may be made again later); its result is constant
    and on `device`.
    """

    def measure(given: Any) -> Tensor:
        with torch.no_grad(), reference.active() as other:
            return read(other, given.to(other.device)).to(device)

    return measure


def measure_and_pull_back(
    steps: Steps, head: LinearHead, ref_head: LinearHead | None, grads: Mapping[str, Tensor], *,
    needs: frozenset[str], dtype: torch.dtype | None,
) -> Likelihood:  # fmt: skip
    """The likelihood, without a graph; `grads` are carried into the head's `.grad` and the graph of `steps.hidden`.

    Args:
        grads: "log_prob" and "ref_kl" -> the loss's gradient with respect to each, `[N, K, T]`.
        dtype: of the products with the head; that of the hidden states by default.
    """
    weight, bias = head.weight, head.bias
    own = weight.requires_grad and weight.is_leaf
    # Added to `.grad` in place: a second gradient of a head may be the largest tensor of all.
    into = weight.grad if own else None
    if into is not None and into.dtype != accumulation(dtype or steps.hidden.dtype):
        into = None
    parts, on_hidden, on_weight, on_bias = likelihoods_and_gradients(
        steps.hidden.detach(), steps.ref_hidden, steps.targets, head, ref_head,
        {name: grad[steps.mask] for name, grad in grads.items()}, needs=needs, dtype=dtype,
        learn_weight=weight.requires_grad, learn_bias=bias is not None and bias.requires_grad, into=into,
    )  # fmt: skip
    if own and weight.grad is None and on_weight is not None:
        weight.grad = into = on_weight.to(weight.dtype)
    pulled = [(steps.hidden, on_hidden), (weight, None if into is not None else on_weight), (bias, on_bias)]
    live = [(part, grad.to(part.dtype)) for part, grad in pulled if part is not None and grad is not None]
    live = [(part, grad) for part, grad in live if part.requires_grad]
    if live:
        torch.autograd.backward([part for part, _ in live], [grad for _, grad in live])
    return steps.scatter(parts)
