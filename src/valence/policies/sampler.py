"""Drawing completions by a transformers model's own `generate`.

Shape legend: R rows · S prompt tokens · T new tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def end_token_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """The tokens that end a completion: the tokenizer's first, then those of the model's generation settings.

    Chat models end a turn with a token that only the generation settings name.
    """
    more = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    more = [more] if isinstance(more, int) else list(more or ())
    return tuple(dict.fromkeys([tokenizer.eos_token_id, *more]))


def generate(model: Any, ids: Int[Tensor, "R S"], mask: Bool[Tensor, "R S"], *, seed: int, **settings: Any) -> Tensor:
    """Plain sampling of new tokens, `[R * num_return_sequences, T]`; the global random state is left as it was.

    Args:
        model: without adapters around it, in any mode; left in the mode that it was in.
        settings: of transformers' `GenerationConfig`: `temperature`, `max_new_tokens`, `eos_token_id`, ….
    """
    from transformers import GenerationConfig

    config = GenerationConfig(do_sample=True, top_k=0, top_p=1.0, renormalize_logits=False, **settings)
    devices = [ids.device] if ids.device.type == "cuda" else []
    was_training, own = model.training, model.generation_config
    # `generate` takes what `config` leaves open (repetition penalty, forced tokens, …) from the model's own settings.
    model.generation_config = GenerationConfig()
    model.eval()
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            out = model.generate(input_ids=ids, attention_mask=mask.long(), generation_config=config)
    finally:
        model.generation_config = own
        model.train(was_training)
    return out[:, 1:] if model.config.is_encoder_decoder else out[:, ids.shape[1] :]


def until_end(tokens: Int[Tensor, "R T"], ends: Sequence[int]) -> Bool[Tensor, "R T"]:
    """Which tokens belong to the completion: those up to and including the first end token."""
    ending = torch.isin(tokens, torch.tensor(list(ends), device=tokens.device))
    ended = ending.int().cumsum(-1)
    return (ended == 0) | (ending & (ended == 1))
