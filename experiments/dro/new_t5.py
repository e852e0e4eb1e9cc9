"""A small T5 with random weights, for an experiment with an encoder-decoder where no trained one is available."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from valence.policies.language import LanguagePolicy


def write_new_t5(folder: Path, words_of: LanguagePolicy, *, layers: int, width: int = 512, seed: int = 0) -> Path:
    """Write a T5 with the tokenizer and the word vectors of `words_of`; all other weights are random.

    Args:
        folder: where it is written to.
        layers: layers of the encoder, and of the decoder.
        width: inner width of the layers; the outer width is that of the word vectors.
        seed: random seed of the weights; torch's global random state does not change.
    Returns:
        `folder`.
    """
    from transformers import T5Config, T5ForConditionalGeneration

    words, tokenizer = words_of.core.get_input_embeddings().weight.detach(), words_of.tokenizer
    options: dict[str, Any] = {
        "vocab_size": len(words), "d_model": words.shape[1], "d_kv": 32, "num_heads": words.shape[1] // 32,
        "d_ff": width, "num_layers": layers, "num_decoder_layers": layers, "pad_token_id": words_of.pad_token_id,
        "decoder_start_token_id": words_of.pad_token_id, "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = T5ForConditionalGeneration(T5Config(**options))
    with torch.no_grad():
        # A new T5's word vectors have a mean square of 1.
        network.shared.weight.copy_(words / words.square().mean().sqrt())
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
