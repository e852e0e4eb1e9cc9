"""A T5 with random weights loads as a policy, has the given word vectors, and depends on its seed only."""

from __future__ import annotations

from pathlib import Path

import torch

from experiments.dro.new_t5 import write_new_t5
from valence.policies.loading import load_language_policy


def test_it_loads_with_the_given_words_and_its_seed_alone_decides(tmp_path: Path) -> None:
    small = load_language_policy("small-lm")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    folders = [write_new_t5(tmp_path / str(n), small, layers=1, width=32, seed=n // 2) for n in range(3)]
    assert torch.equal(torch.get_rng_state(), before)
    one, same, other = (load_language_policy(str(folder)) for folder in folders)
    assert one.encoder_decoder and one.end_token_ids == small.end_token_ids
    words, mine = small.core.get_input_embeddings().weight, one.core.get_input_embeddings().weight
    assert torch.allclose(mine / mine[0, 0], words / words[0, 0], rtol=1e-4, atol=1e-4)
    assert abs(mine.square().mean().item() - 1) < 1e-5
    parts = [torch.cat([part.flatten() for part in policy.parameters()]) for policy in (one, same, other)]
    assert torch.equal(parts[0], parts[1]) and not torch.equal(parts[0], parts[2])
