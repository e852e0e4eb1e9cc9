"""The M steps of a batch on the way through a head: hidden states in, likelihoods and gradients out.

`token_likelihoods` takes any head, and holds the logits of a tile of tokens at a time; they are computed again in the
backward pass if there are several tiles. `valence.policies.fused` is tested against it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import repeat
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from valence.policies.base import backward_live
from valence.policies.fused import LinearHead, accumulation, head_settings, likelihoods_and_gradients
from valence.types import Likelihood

LOGITS_HELD = 2**25
"""Logits of one model held at a time: 128 MiB in float32."""

HeadFn = Callable[[Tensor], Tensor]
States = tuple[Float[Tensor, "M H"], Float[Tensor, "M G"] | None, Int[Tensor, " M"]]
"""The M real steps of a batch, row by row: (the last hidden states that predict them, the reference's, the tokens)."""


def scatter(parts: Mapping[str, Float[Tensor, " M"]], mask: Bool[Tensor, "N K T"]) -> Likelihood:
    """The numbers of the M steps where `mask` is true, float32; zero elsewhere."""
    empty = torch.zeros(mask.shape, device=mask.device)
    return Likelihood(mask=mask, **{name: empty.masked_scatter(mask, part.float()) for name, part in parts.items()})


def measure_and_pull_back(
    states: States, heads: tuple[LinearHead, LinearHead | None], mask: Bool[Tensor, "N K T"],
    grads: Mapping[str, Tensor], *, needs: frozenset[str], dtype: torch.dtype | None,
) -> Likelihood:  # fmt: skip
    """The likelihood, without a graph; `grads` are carried into the head's `.grad` and the graph of the hidden states.

    Args:
        heads: the policy's and the reference's.
        mask: the places of the M steps in the batch.
        grads: "log_prob" and "ref_kl" -> the loss's gradient with respect to each, `[N, K, T]`.
        dtype: of the products with the head; that of the hidden states by default.
    """
    hidden, weight, bias, into = states[0], heads[0].weight, heads[0].bias, None
    if weight.requires_grad and weight.is_leaf and weight.dtype == accumulation(dtype or hidden.dtype):
        # Added to `.grad` in place: a second gradient of a head may be the largest tensor of all.
        into = weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
    coefficients = {name: grad[mask] for name, grad in grads.items()}
    parts, on_hidden, on_weight, on_bias = likelihoods_and_gradients(
        hidden.detach(), *states[1:], *heads, coefficients, needs=needs, dtype=dtype, into=into
    )
    backward_live([(hidden, on_hidden), (weight, on_weight if into is None else None), (bias, on_bias)])
    return scatter(parts, mask)


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
