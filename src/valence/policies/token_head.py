"""From final hidden states to per-token log pi, log pi_ref and exact KL, holding few logits at a time.

The obvious way: a tile of tokens at a time, its logits made again in the backward pass when the tiles are several.
(A fused head that tiles the vocabulary too is issue 4's; it replaces this file's inside, not its face.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

LOGITS_HELD = 2**25
"""At most so many logits of one model at a time: 128 MiB in float32."""

HeadFn = Callable[[Tensor], Tensor]


class LogitHead:
    """A transformers model's map from its backbone's last hidden state to logits, in float32.

    Knows the extras that models put there: tied T5's scaling, BART's bias, Gemma's soft-capping, Cohere's and
    Granite's scaling. `check` compares it to the model's own logits.
    """

    def __init__(self, model: Any, *, temperature: float = 1.0) -> None:
        self.model = model
        self.temperature = temperature

    def __call__(self, hidden: Float[Tensor, "M H"]) -> Float[Tensor, "M V"]:
        config = self.model.config
        if getattr(config, "scale_decoder_outputs", False):
            hidden = hidden * config.d_model**-0.5
        logits = self.model.get_output_embeddings()(hidden)
        if (bias := getattr(self.model, "final_logits_bias", None)) is not None:
            logits = logits + bias
        if cap := getattr(config, "final_logit_softcapping", None):
            logits = torch.tanh(logits / cap) * cap
        if isinstance(scale := getattr(config, "logit_scale", None), float):
            logits = logits * scale
        if scaling := getattr(config, "logits_scaling", None):
            logits = logits / scaling
        return logits.float() / self.temperature


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
    hidden: Float[Tensor, "M H"],
    ref_hidden: Float[Tensor, "M H"] | None,
    targets: Int[Tensor, " M"],
    head: HeadFn,
    ref_head: HeadFn | None,
    *,
    vocabulary: int,
    needs: frozenset[str],
) -> dict[str, Float[Tensor, " M"]]:
    """Per-token quantities at M action positions, each `[M]`, float32, nats.

    Source: PMPO paper, Eq. 17: the KL of a sequence is the sum of its tokens' full-vocabulary KLs.

    Args:
        hidden: the policy's last hidden state at the position that predicts each target. Differentiable.
        ref_hidden: the reference's. Constant.
        targets: the action's tokens.
        head, ref_head: hidden -> logits, float32.
        vocabulary: V, to size the tiles.
        needs: which of "log_prob", "ref_log_prob", "ref_kl", "policy_kl".
    """
    tile = max(1, LOGITS_HELD // vocabulary)
    count = len(targets)
    if count <= tile:
        return _tile(hidden, ref_hidden, targets, head, ref_head, needs)
    pieces = []
    for start in range(0, count, tile):
        rows = slice(start, start + tile)
        ref_rows = None if ref_hidden is None else ref_hidden[rows]
        arguments = (hidden[rows], ref_rows, targets[rows], head, ref_head, needs)
        pieces.append(
            checkpoint(_tile, *arguments, use_reentrant=False) if torch.is_grad_enabled() else _tile(*arguments)
        )
    return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
