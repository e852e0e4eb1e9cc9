"""The M steps of a batch on the way through a head: hidden states in, likelihoods and gradients out.

`token_likelihoods` takes any head, and holds the logits of a tile of tokens at a time; they are computed again in the
backward pass if there are several tiles. `valence.policies.fused` is tested against it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from valence.policies.base import backward_live
from valence.policies.fused import LinearHead, accumulation, head_settings, likelihoods_and_gradients
from valence.protocols import Reference
from valence.types import Likelihood

LOGITS_HELD = 2**25
"""Logits of one model held at a time: 128 MiB in float32."""

HeadFn = Callable[[Tensor], Tensor]


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
        return Likelihood(mask=self.mask, **{name: scatter(part, self.mask) for name, part in parts.items()})


def scatter(part: Float[Tensor, " M"], mask: Bool[Tensor, "N K T"]) -> Float[Tensor, "N K T"]:
    """Numbers of the M steps where `mask` is true, float32; zero elsewhere."""
    return torch.zeros(mask.shape, device=part.device).masked_scatter(mask, part.float())


def by_reference(
    reference: Reference, read: Callable[[Any, Any], Tensor], device: torch.device
) -> Callable[[Any], Tensor]:
    """`read(policy, rows or states)` under the reference's weights, each time it is called; constant, on `device`."""

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
    backward_live([(steps.hidden, on_hidden), (weight, on_weight if into is None else None), (bias, on_bias)])
    return steps.scatter(parts)


def model_logits(model: Any, hidden: Float[Tensor, "M H"], *, temperature: float = 1.0) -> Float[Tensor, "M V"]:
    """A transformers model's logits, float32, from its backbone's last hidden states."""
    bias, pre, cap, post = head_settings(model, temperature=temperature)
    logits = model.get_output_embeddings()(hidden * pre if pre != 1.0 else hidden)
    if bias is not None:
        logits = logits + bias
    if cap is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits.float() * post


def _tile(
    hidden: Tensor, ref_hidden: Tensor | None, targets: Tensor, head: HeadFn, ref_head: HeadFn | None,
    needs: frozenset[str],
) -> dict[str, Tensor]:  # fmt: skip
    log_p = torch.log_softmax(head(hidden), -1)
    parts = {"log_prob": log_p.gather(-1, targets[:, None])[:, 0]}
    if ref_hidden is None or ref_head is None:
        return parts
    with torch.no_grad():
        log_ref = torch.log_softmax(ref_head(ref_hidden), -1)
    if "ref_log_prob" in needs:
        parts["ref_log_prob"] = log_ref.gather(-1, targets[:, None])[:, 0]
    if "ref_kl" in needs:
        parts["ref_kl"] = (log_ref.exp() * (log_ref - log_p)).sum(-1)
    if "policy_kl" in needs:
        parts["policy_kl"] = (log_p.exp() * (log_p - log_ref)).sum(-1)
    return parts


def token_likelihoods(
    hidden: Float[Tensor, "M H"], ref_hidden: Float[Tensor, "M H"] | None, targets: Int[Tensor, " M"],
    head: HeadFn, ref_head: HeadFn | None, *, vocabulary: int, needs: frozenset[str],
) -> dict[str, Float[Tensor, " M"]]:  # fmt: skip
    """As `valence.policies.fused.fused_likelihoods`, in float32.

    Args:
        head, ref_head: hidden -> logits, float32.
        vocabulary: V, to size the tiles.
    """
    tile = max(1, LOGITS_HELD // vocabulary)
    if len(targets) <= tile:
        return _tile(hidden, ref_hidden, targets, head, ref_head, needs)
    run = partial(checkpoint, _tile, use_reentrant=False) if torch.is_grad_enabled() else _tile
    refs = repeat(None) if ref_hidden is None else ref_hidden.split(tile)
    rows = zip(hidden.split(tile), refs, targets.split(tile), strict=False)
    pieces = [run(*row, head, ref_head, needs) for row in rows]
    return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
