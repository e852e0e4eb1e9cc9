"""From final hidden states to per-token log pi, log pi_ref and exact KL, holding few logits at a time.

A tile of tokens at a time, its logits computed again in the backward pass if there are several tiles. It takes any
head; `valence.policies.fused` is tested against it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

LOGITS_HELD = 2**25
"""Logits of one model held at a time: 128 MiB in float32."""

HeadFn = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class HeadSettings:
    """What a transformers model does around its output layer: logits = post * capped(layer(pre * hidden) + bias).

    Args:
        pre: tied T5's scaling.
        bias: BART's, `[1, V]`, or None.
        cap: Gemma's soft-capping, cap * tanh(z / cap), or None.
        post: Cohere's and Granite's scaling, and 1 / temperature.
    """

    pre: float
    bias: Tensor | None
    cap: float | None
    post: float


def head_settings(model: Any, *, temperature: float = 1.0) -> HeadSettings:
    """Read from a model; `valence.policies.checks.check_head` compares the resulting logits with the model's own."""
    config, post = model.config, 1 / temperature
    if isinstance(scale := getattr(config, "logit_scale", None), float):
        post *= scale
    if scaling := getattr(config, "logits_scaling", None):
        post /= scaling
    return HeadSettings(
        pre=config.d_model**-0.5 if getattr(config, "scale_decoder_outputs", False) else 1.0,
        bias=getattr(model, "final_logits_bias", None), cap=getattr(config, "final_logit_softcapping", None) or None,
        post=post,
    )  # fmt: skip


class LogitHead:
    """A transformers model's map from its backbone's last hidden state to logits, in float32."""

    def __init__(self, model: Any, *, temperature: float = 1.0) -> None:
        self.model = model
        self.temperature = temperature

    def __call__(self, hidden: Float[Tensor, "M H"]) -> Float[Tensor, "M V"]:
        settings = head_settings(self.model, temperature=self.temperature)
        layer = self.model.get_output_embeddings()
        logits = layer(hidden * settings.pre if settings.pre != 1.0 else hidden)
        if settings.bias is not None:
            logits = logits + settings.bias
        if settings.cap is not None:
            logits = torch.tanh(logits / settings.cap) * settings.cap
        return logits.float() * settings.post


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
