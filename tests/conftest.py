"""Shapes and types are checked at run time in the tests, and only there; tiny models are stored on disk, as a user's.

pytest imports each test file by its path, so `helpers` beside this file has to be findable by name.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from jaxtyping import install_import_hook

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if not Path("/dev/nvidia0").exists():
    # Read when Triton is first imported: its kernels then run on CPU tensors.
    os.environ.setdefault("TRITON_INTERPRET", "1")

# The rooms that read rows have no tensors, and their many small calls per row of text would be ten times as slow.
PACKAGE = Path(__file__).parents[1] / "src" / "valence"
UNCHECKED = (PACKAGE / "data" / "formats", PACKAGE / "data" / "products")
CHECKED = [path.relative_to(PACKAGE.parent) for path in PACKAGE.rglob("*.py") if not {*path.parents} & {*UNCHECKED}]
install_import_hook([*(".".join(path.with_suffix("").parts) for path in CHECKED), "experiments"], "beartype.beartype")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """On a machine with a busy core, two OpenMP threads are ten times slower than one."""
    import torch

    torch.set_num_threads(1)


def byte_tokenizer() -> Any:
    """A tokenizer of bytes and three special tokens, without merges: it encodes any text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: place for place, token in enumerate(["<s>", "</s>", "<pad>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", padding_side="left"
    )


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialised Llama of about 20 thousand parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    folder, tokenizer = tmp_path_factory.mktemp("llama"), byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=4, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1, pad_token_id=2,
        max_position_embeddings=256,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialised T5."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    folder, tokenizer = tmp_path_factory.mktemp("t5"), byte_tokenizer()
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4, decoder_start_token_id=2,
        pad_token_id=2, eos_token_id=1,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
