"""Completions of one prompt read as one sequence: the same numbers as row by row, from fewer tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PretrainedConfig

import helpers
from helpers import PAD, as_batch, assert_near, make_batch
from valence.data.collate import pad_actions, pad_left
from valence.errors import UserError
from valence.policies import language
from valence.policies.checks import can_pack, can_share_prompts
from valence.policies.language import LanguagePolicy
from valence.policies.loading import load_language_policy
from valence.policies.rows import present_rows
from valence.policies.shared_prompt import attends_everywhere, make_trees, plan, siblings
from valence.training.reference import FrozenCopy

ALL = frozenset({"log_prob", "ref_log_prob", "ref_kl", "policy_kl"})


def test_a_tree_by_hand() -> None:
    """Prompt 7 8 with completions 1 2 3 and 4: one sequence 7 8 1 2, for 3 and 4 predict nothing that is needed."""
    context, action = pad_left([[7, 8], [9]], PAD), pad_actions([[[1, 2, 3], [4]], [[5, 6]]], PAD)
    rows = present_rows(context, action)
    assert rows.owner.tolist() == [0, 0, 1]
    lengths = rows.context_mask.sum(-1).tolist(), rows.mask.sum(-1).tolist()
    groups, alone = siblings(rows.owner, *lengths, longest=99)
    assert (groups, alone) == ([[0, 1]], [2])
    trees = make_trees(rows, [[0, 1], [2]])
    assert trees.ids.tolist() == [[7, 8, 1, 2], [9, 5, 0, 0]]
    assert trees.positions.tolist() == [[0, 1, 2, 3], [0, 1, 0, 0]]
    assert trees.visible[0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    # Padding attends to itself, so that its attention is not empty; its outputs are not read.
    assert trees.visible[1].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1]]
    assert trees.rows.tolist() == [0, 1, 2]
    # 1 and 4 are both predicted by 8; 2 by 1, 3 by 2.
    assert trees.sequence.tolist() == [0, 0, 0, 0, 1, 1] and trees.place.tolist() == [1, 2, 3, 1, 0, 1]


def test_a_second_completion_does_not_see_the_first() -> None:
    context, action = pad_left([[7, 8]], PAD), pad_actions([[[1, 2, 3], [4, 5, 6]]], PAD)
    trees = make_trees(present_rows(context, action), [[0, 1]])
    assert trees.ids.tolist() == [[7, 8, 1, 2, 4, 5]] and trees.positions.tolist() == [[0, 1, 2, 3, 2, 3]]
    assert trees.visible[0, 4].int().tolist() == [1, 1, 0, 0, 1, 0]
    assert trees.visible[0, 5].int().tolist() == [1, 1, 0, 0, 1, 1]


def test_who_is_read_together() -> None:
    owner = torch.tensor([0, 0, 1, 1])
    # Nothing is shared without a prompt.
    assert siblings(owner, [0, 0, 3, 3], [2] * 4, longest=99) == ([[2, 3]], [0, 1])
    # Nor where together they are too long: 5 + 2 + 2 is 9.
    assert siblings(owner, [5] * 4, [3] * 4, longest=9) == ([[0, 1], [2, 3]], [])
    assert siblings(owner, [5] * 4, [3] * 4, longest=8) == ([], [0, 1, 2, 3])
    # Six of 4 + 4 steps: 4 + 6 * 3 squared is more than six times 8 squared; four together, then two, are not.
    assert siblings(torch.zeros(6, dtype=torch.long), [4] * 6, [4] * 6, longest=99) == ([[0, 1, 2, 3], [4, 5]], [])
    # Long completions of a short prompt: (2 + 19 + 19)^2 is more than 2 * 22^2.
    assert siblings(owner[:2], [2, 2], [20, 20], longest=99) == ([], [0, 1])


def test_a_piece_stays_within_its_budget_with_its_padding() -> None:
    """Two completions of one token each, of prompts of so many tokens: a sequence is as long as its prompt."""
    sizes = [9, 1, 5, 30, 2, 6]
    rows = present_rows(pad_left([[4] * size for size in sizes], PAD), pad_actions([[[5], [6]]] * 6, PAD))
    pieces, alone = plan(rows, budget=18, longest=99)
    assert not alone and sorted(group[0] for piece in pieces for group in piece) == [0, 2, 4, 6, 8, 10]
    lengths = [[sizes[group[0] // 2] for group in piece] for piece in pieces]
    assert all(len(piece) == 1 or len(piece) * max(piece) <= 18 for piece in lengths)
    assert len(pieces) == 3


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("budget", [10_000, 20])
def test_values_and_gradients_are_those_of_rows_one_by_one(
    kind: str, attention: str, lora: bool, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = helpers.policy(kind, lora=lora)
    policy.core.set_attn_implementation(attention)
    monkeypatch.setitem(language.TOKENS_TOGETHER, False, budget)
    assert can_share_prompts(policy)
    reference = FrozenCopy(policy)
    helpers.shake(policy)
    # Contexts of three actions, some absent; one of a single action, one without a prompt.
    batch = make_batch(contexts=5)
    generator = torch.Generator().manual_seed(0)
    grads = {name: torch.randn(batch.action.mask.shape, generator=generator) for name in ("log_prob", "ref_kl")}
    runs: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    for shares in (False, True):
        policy.shares_prompts = reference.copy.shares_prompts = shares
        policy.zero_grad()
        measured = policy.likelihood(batch, reference, ALL)
        policy.backward(batch, reference, measured, grads)
        runs.append(({name: getattr(measured, name).detach() for name in ALL}, helpers.gradients(policy)))
    (values, parameters), (others, other_parameters) = runs
    for name in ALL:
        torch.testing.assert_close(others[name], values[name], rtol=1e-4, atol=1e-5)
    assert_near(other_parameters, parameters)


def test_fewer_tokens_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = helpers.policy("llama")
    prompt = [4] * 20
    batch = as_batch(pad_left([prompt], PAD), pad_actions([[[5, 6, 7], [8, 9, 5], [6, 6], [7]]], PAD))
    read: list[int] = []
    run = type(policy)._run
    monkeypatch.setattr(
        type(policy), "_run", lambda self, ids, **more: (read.append(ids.numel()), run(self, ids, **more))[1]
    )
    found = []
    for shares in (False, True):
        policy.shares_prompts = shares
        with torch.no_grad():
            found.append(policy.likelihood(batch, None, frozenset({"log_prob"})).log_prob)
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)
    # Without the last step: row by row four times 20 + 2, padding with them; together 20 + 2 + 2 + 1 + 0.
    assert read == [88, 25]


def test_windows_and_recurrences_read_row_by_row() -> None:
    assert not can_share_prompts(helpers.policy("gemma2")) and not can_share_prompts(helpers.policy("t5"))

    assert attends_everywhere(PretrainedConfig())
    assert attends_everywhere(PretrainedConfig(num_hidden_layers=2, layer_types=["full_attention"] * 2))
    assert attends_everywhere(PretrainedConfig(sliding_window=4096, use_sliding_window=False))
    assert not attends_everywhere(PretrainedConfig(sliding_window=4096))
    # Other models use other names; models of text and pictures have them in an inner config.
    for name in ("window_size", "attention_chunk_size", "local_attention", "block_types"):
        assert not attends_everywhere(PretrainedConfig(**{name: 128})), name
    outer = PretrainedConfig()
    outer.text_config = PretrainedConfig(sliding_window=512)
    assert not attends_everywhere(outer)
    kinds = ["full_attention", "linear_attention"]
    assert not attends_everywhere(PretrainedConfig(num_hidden_layers=2, layer_types=kinds))


def test_a_model_that_does_otherwise_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that ignores the positions, and one that fails on such a mask."""
    policy = helpers.policy("llama")
    run = type(policy)._run

    def renumbered(self: LanguagePolicy, ids: Tensor, **more: Tensor) -> Tensor:
        if "position_ids" in more:
            more["position_ids"] = torch.arange(ids.shape[1])[None].expand_as(ids)
        return run(self, ids, **more)

    def failing(self: LanguagePolicy, ids: Tensor, **more: Tensor) -> Tensor:
        if "attention_mask" in more:
            raise ValueError("no such masks here")
        return run(self, ids, **more)

    assert can_share_prompts(policy)
    for way in (renumbered, failing):
        monkeypatch.setattr(type(policy), "_run", way)
        assert not can_share_prompts(policy)


def test_loading_tries_it(tiny_llama: Path, tiny_t5: Path) -> None:
    assert load_language_policy(str(tiny_llama)).shares_prompts
    assert load_language_policy(str(tiny_llama), dtype="bfloat16", lora_rank=2).shares_prompts
    assert load_language_policy(str(tiny_llama), dtype="bfloat16").shares_prompts
    assert not load_language_policy(str(tiny_t5)).shares_prompts


def test_rows_one_after_another_by_hand() -> None:
    """Prompts 7 8 and 9, completions 1 2 3 and 5 6: each step is predicted by the token before it."""
    context, action = pad_left([[7, 8], [9]], PAD), pad_actions([[[1, 2, 3]], [[5, 6]]], PAD)
    rows = present_rows(context, action)
    ids, positions, before = rows.packed()
    assert ids.tolist() == [[7, 8, 1, 2, 3, 9, 5, 6]] and positions.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2]]
    assert before.tolist() == [1, 2, 3, 5, 6]
    together, mask = rows.joined()
    assert together[mask].tolist() == ids[0].tolist() and mask.sum(-1).tolist() == [5, 3]
    assert not mask[1, 3:].any()


@pytest.mark.parametrize(
    ("kind", "attention"), [("llama", "sdpa"), ("llama", "eager"), ("gpt2", "sdpa"), ("gemma2", "eager")]
)
@pytest.mark.parametrize("budget", [10_000, 20])
def test_packed_rows_give_what_rows_one_by_one_give(
    kind: str, attention: str, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here transformers makes block masks from the positions; flash attention reads the positions themselves."""
    policy = helpers.policy(kind)
    policy.core.set_attn_implementation(attention)
    monkeypatch.setitem(language.TOKENS_TOGETHER, False, budget)
    assert can_pack(policy)
    reference = FrozenCopy(policy)
    helpers.shake(policy)
    batch = make_batch(contexts=5)
    generator = torch.Generator().manual_seed(0)
    grads = {name: torch.randn(batch.action.mask.shape, generator=generator) for name in ("log_prob", "ref_kl")}
    with torch.no_grad():
        plain = policy.likelihood(batch, reference, ALL)
    found: list[dict[str, Tensor]] = []
    for packs in (False, True):
        policy.packs = reference.copy.packs = packs
        policy.zero_grad()
        measured = policy.likelihood(batch, reference, ALL)
        policy.backward(batch, reference, measured, grads)
        for name in ALL:
            torch.testing.assert_close(getattr(measured, name), getattr(plain, name), rtol=1e-4, atol=1e-5)
        found.append(helpers.gradients(policy))
    assert_near(found[1], found[0])


def test_who_cannot_pack_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder-decoder, and a model that ignores its positions."""
    assert not can_pack(helpers.policy("t5"))
    policy = helpers.policy("llama")
    run = type(policy)._run
    monkeypatch.setattr(type(policy), "_run", lambda self, ids, **_: run(self, ids))
    assert not can_pack(policy)


def test_batching_by_rows_does_neither(tiny_llama: Path) -> None:
    policy = load_language_policy(str(tiny_llama), batching="rows", attention="eager")
    assert not policy.shares_prompts and not policy.packs
    assert policy.core.config._attn_implementation == "eager"
    with pytest.raises(UserError, match="flash"):
        load_language_policy(str(tiny_llama), attention="flash_of_genius")
