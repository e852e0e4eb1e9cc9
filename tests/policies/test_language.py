"""Heads of every kind, references, dropout, padding and sampling."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import helpers
from helpers import assert_close, make_batch
from valence.errors import UserError
from valence.policies.checks import check_head
from valence.policies.dropout import disable_dropout
from valence.policies.language import LanguagePolicy, end_token_ids
from valence.policies.loading import load_language_policy
from valence.policies.rows import Rows
from valence.policies.token_head import token_likelihoods
from valence.training.reference import FrozenCopy
from valence.types import Action, Batch, TokenContext

LOG_PROB = frozenset({"log_prob"})
ALL = frozenset({"log_prob", "ref_log_prob", "ref_kl", "policy_kl"})


@pytest.mark.parametrize("kind", helpers.KINDS)
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_check_head_accepts_the_heads_it_knows(kind: str, temperature: float) -> None:
    check_head(helpers.policy(kind, temperature=temperature))
    check_head(helpers.policy(kind, 5, temperature=temperature, lora=True))


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_check_head_catches_a_head_that_does_something_else(kind: str) -> None:
    subject = helpers.policy(kind)
    forward = subject.model.forward

    def squared(*args: Any, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        out.logits = out.logits * 1.1
        return out

    subject.model.forward = squared
    with pytest.raises(UserError, match=type(subject.model).__name__) as caught:
        check_head(subject)
    assert "\n" not in str(caught.value)


def test_each_extra_of_the_head_changes_the_likelihood() -> None:
    """Without each extra the numbers differ, so the conformance suite does test it."""
    batch = make_batch()
    for kind, remove in (
        ("gemma2", lambda model: setattr(model.config, "final_logit_softcapping", None)),
        ("bart", lambda model: model.final_logits_bias.zero_()),
        ("t5", lambda model: setattr(model.config, "scale_decoder_outputs", False)),
    ):
        subject = helpers.policy(kind)
        before = subject.likelihood(batch, None, LOG_PROB).log_prob
        remove(subject.model)
        assert (subject.likelihood(batch, None, LOG_PROB).log_prob - before).abs().max() > 0.05, kind


def test_scaled_logits_of_granite_and_cohere() -> None:
    import transformers as hf

    small: dict[str, Any] = {
        "vocab_size": 16, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "pad_token_id": 0,
        "num_attention_heads": 2, "num_key_value_heads": 2, "bos_token_id": 2, "eos_token_id": 1,
    }  # fmt: skip
    models = [
        hf.GraniteForCausalLM(hf.GraniteConfig(**small, logits_scaling=3.0)),
        hf.CohereForCausalLM(hf.CohereConfig(**small, logit_scale=0.25)),
    ]
    for model in models:
        with torch.no_grad():
            for part in model.parameters():
                part.add_(0.3 * torch.randn(part.shape, generator=torch.Generator().manual_seed(0)))
        subject = helpers.CausalLM(model, helpers.word_tokenizer())
        check_head(subject)
        steps = [5, 6, 7]
        batch = Batch(*one_row([4, 8], steps))
        slow = helpers.slow_log_probs(subject, [4, 8], steps)
        expected = torch.stack([row[token] for row, token in zip(slow, steps, strict=True)])
        assert_close(subject.likelihood(batch, None, LOG_PROB).log_prob[0, 0], expected, 2e-5)


def one_row(prompt: list[int], completion: list[int]) -> tuple[Any, Any, Any]:
    batch = helpers.as_batch(*padded([prompt], [completion]))
    return batch.context, batch.action, batch.feedback


def test_token_likelihoods_of_two_tokens_by_hand() -> None:
    """Logits are the hidden state itself: pi = (1/4, 3/4), pi_ref = (1/2, 1/2)."""

    def head(hidden: Tensor) -> Tensor:
        return hidden

    hidden = torch.tensor([[0.25, 0.75]]).log()
    other = torch.tensor([[0.5, 0.5]]).log()
    parts = token_likelihoods(hidden, other, torch.tensor([1]), head, head, vocabulary=2, needs=ALL)
    log = torch.log
    quarter, three, half = torch.tensor(0.25), torch.tensor(0.75), torch.tensor(0.5)
    assert_close(parts["log_prob"][0], log(three))
    assert_close(parts["ref_log_prob"][0], log(half))
    assert_close(parts["ref_kl"][0], half * log(half / quarter) + half * log(half / three))
    assert_close(parts["policy_kl"][0], quarter * log(quarter / half) + three * log(three / half))


def test_bfloat16_likelihoods_are_float32_and_near() -> None:
    subject = helpers.policy("llama")
    batch = make_batch()
    exact = subject.likelihood(batch, None, LOG_PROB).log_prob
    rough = subject.to(torch.bfloat16).likelihood(batch, FrozenCopy(subject), ALL)
    assert rough.log_prob.dtype == rough.ref_kl.dtype == torch.float32
    assert_close(rough.log_prob, exact, 0.2)
    assert (rough.ref_kl.abs() < 1e-5).all()


def dropping_networks() -> dict[str, Any]:
    import transformers as hf

    ids: dict[str, Any] = {"vocab_size": 16, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    bart: dict[str, Any] = {
        "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "decoder_start_token_id": 1,
        "forced_eos_token_id": None,
    }  # fmt: skip
    return {
        "bart-layerdrop": lambda: hf.BartForConditionalGeneration(
            hf.BartConfig(**ids, **bart, dropout=0.0, encoder_layerdrop=0.5, decoder_layerdrop=0.5)
        ),
        "bart": lambda: hf.BartForConditionalGeneration(
            hf.BartConfig(**ids, **bart, dropout=0.3, attention_dropout=0.3, activation_dropout=0.3)
        ),
        "bloom": lambda: hf.BloomForCausalLM(
            hf.BloomConfig(**ids, hidden_size=16, n_layer=1, n_head=2, hidden_dropout=0.3, attention_dropout=0.3)
        ),
        "falcon": lambda: hf.FalconForCausalLM(
            hf.FalconConfig(
                **ids, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, hidden_dropout=0.3,
                attention_dropout=0.3,
            )
        ),
        "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**ids, n_embd=16, n_layer=1, n_head=2)),
        "t5": lambda: hf.T5ForConditionalGeneration(
            hf.T5Config(
                **ids, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, decoder_start_token_id=0,
                dropout_rate=0.3,
            )
        ),
        "llama": lambda: helpers.network("llama"),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(dropping_networks()))
def test_dropout_is_really_off_in_training_mode(name: str) -> None:
    torch.manual_seed(0)
    model = dropping_networks()[name]().train()
    ids = torch.tensor([[4, 5, 6, 7], [8, 9, 10, 11]])
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids

    def spread() -> float:
        with torch.no_grad():
            runs = [model(**inputs).logits for _ in range(6)]
        return max(float((run - runs[0]).abs().max()) for run in runs)

    assert spread() > 1e-4, "this network is to drop something before"
    disable_dropout(model)
    assert spread() == 0.0


def weights(subject: LanguagePolicy) -> list[Tensor]:
    return [part.detach().clone() for part in subject.parameters()]


def test_a_frozen_copy_stays_where_it_was() -> None:
    subject = helpers.policy("llama")
    was = weights(subject)
    reference = FrozenCopy(subject)
    for step in range(1, 4):
        helpers.shake(subject, seed=step)
        reference.after_step(subject, step)
    assert all(torch.equal(mine, old) for mine, old in zip(weights(reference.copy), was, strict=True))
    assert not any(part.requires_grad for part in reference.copy.parameters())


def test_a_refreshed_copy_follows_every_n_steps() -> None:
    subject = helpers.policy("llama")
    was = weights(subject)
    reference = FrozenCopy(subject, refresh_every=2)
    helpers.shake(subject, seed=1)
    reference.after_step(subject, 1)
    assert all(torch.equal(mine, old) for mine, old in zip(weights(reference.copy), was, strict=True))
    helpers.shake(subject, seed=2)
    reference.after_step(subject, 2)
    assert all(torch.equal(mine, new) for mine, new in zip(weights(reference.copy), weights(subject), strict=True))
    measured = subject.likelihood(make_batch(), reference, ALL)
    assert_close(measured.ref_kl, torch.zeros_like(measured.ref_kl), 1e-6)


def test_a_reference_in_another_precision() -> None:
    subject = helpers.policy("llama")
    reference = FrozenCopy(subject, dtype=torch.bfloat16)
    measured = subject.likelihood(make_batch(), reference, ALL)
    assert reference.copy.model.dtype == torch.bfloat16 and subject.model.dtype == torch.float32
    assert_close(measured.ref_log_prob, measured.log_prob.detach(), 0.2)
    assert measured.ref_log_prob.dtype == torch.float32


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_padding_on_the_wrong_side_is_refused(kind: str) -> None:
    """Trimming takes padding to be on the left: on the right it dropped prompt tokens, and log pi was off by 0.4."""
    subject, batch = helpers.policy(kind), helpers.as_batch(*padded([[4, 5, 6, 7], [8, 9]], [[10, 11], [12]]))
    good = subject.likelihood(batch, None, LOG_PROB).log_prob
    turned = TokenContext(batch.context.ids.clone(), batch.context.mask.clone())
    turned.ids[1], turned.mask[1] = batch.context.ids[1].flip(0), batch.context.mask[1].flip(0)
    turned.ids[1, :2] = torch.tensor([8, 9])
    with pytest.raises(ValueError, match="padded on the left"):
        subject.likelihood(replace(batch, context=turned), None, LOG_PROB)
    with pytest.raises(ValueError, match="padded on the left"):
        subject.sample(turned, 1, torch.Generator().manual_seed(0))
    late = Action(batch.action.steps.flip(-1), batch.action.mask.flip(-1))
    for work in (lambda bad: subject.likelihood(bad, None, LOG_PROB), subject.hidden_states):
        with pytest.raises(ValueError, match="steps on the right"):
            work(replace(batch, action=late))
    alone = helpers.as_batch(*padded([[8, 9]], [[12]]))
    assert_close(good[1, 0, 0], subject.likelihood(alone, None, LOG_PROB).log_prob[0, 0, 0], 1e-5)


def padded(prompts: list[list[int]], completions: list[list[int]]) -> tuple[TokenContext, Action]:
    from valence.data.collate import pad_actions, pad_left

    return pad_left(prompts, 0), pad_actions([[steps] for steps in completions], 0)


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_hidden_states_of_a_batch_and_of_nothing(kind: str) -> None:
    subject, batch = helpers.policy(kind), make_batch()
    hidden, place = subject.hidden_states(batch)
    assert torch.equal(place, batch.action.mask) and hidden.shape == (int(place.sum()), 16) and hidden.requires_grad
    nothing = replace(batch, action=Action(batch.action.steps, torch.zeros_like(place)))
    hidden, place = subject.hidden_states(nothing)
    assert hidden.shape == (0, 16) and not place.any()


def test_rows_are_trimmed_to_what_they_need() -> None:
    ids = torch.tensor([[0, 0, 4, 5], [0, 6, 7, 8]])
    steps = torch.tensor([[9, 10, 0, 0], [11, 0, 0, 0]])
    rows = Rows(ids, ids > 0, steps, steps > 0, torch.tensor([3, 8]))
    second = rows.pick(torch.tensor([1]))
    assert second.context.tolist() == [[6, 7, 8]] and second.steps.tolist() == [[11]]
    both = rows.pick(torch.tensor([1, 0]))
    assert both.owner.tolist() == [8, 3]
    assert both.context.tolist() == [[6, 7, 8], [0, 4, 5]] and both.steps.tolist() == [[11, 0], [9, 10]]
    assert both.context_mask.tolist() == [[True, True, True], [False, True, True]]


@pytest.mark.parametrize("kind", helpers.KINDS)
def test_mixed_precision_is_near_in_float32_weights_and_zero_at_the_start(kind: str) -> None:
    """With bfloat16 products, values and gradients are near the exact ones, weights and gradients stay in float32, and
    policy and reference round alike, so that their KL starts at zero."""
    subject, batch = helpers.policy(kind, spread=0.1), make_batch()
    exact = subject.likelihood(batch, None, LOG_PROB).log_prob
    grad = {"log_prob": torch.ones_like(exact)}
    found = []
    for precision in (None, torch.bfloat16):
        subject.mixed_precision = precision
        subject.zero_grad()
        measured = subject.likelihood(batch, FrozenCopy(subject), ALL)
        subject.backward(batch, None, measured, grad)
        found.append(torch.cat([part.flatten() for part in helpers.gradients(subject).values()]))
    assert measured.log_prob.dtype == found[1].dtype == torch.float32
    assert all(part.dtype == torch.float32 for part in subject.parameters())
    assert 0 < (measured.log_prob - exact).abs().max() < 0.2
    assert torch.cosine_similarity(found[0], found[1], dim=0) > 0.99
    # T5's attention uses another kernel where its position bias needs a gradient, and rounds differently.
    with torch.no_grad():
        still = subject.likelihood(batch, FrozenCopy(subject), ALL)
    assert torch.equal(still.log_prob, still.ref_log_prob) and still.ref_kl.abs().max() < 1e-6
    assert measured.ref_kl.abs().max() < 0.01
    check_head(subject)


def test_samples_are_drawn_in_the_precision_they_are_measured_in() -> None:
    subject = helpers.policy("llama")
    subject.mixed_precision = torch.bfloat16
    seen: list[bool] = []
    forward = subject.model.forward

    def spy(*args: Any, **kwargs: Any) -> Any:
        seen.append(torch.is_autocast_enabled("cpu"))
        return forward(*args, **kwargs)

    subject.model.forward = spy
    subject.sample(helpers.context_of([4, 5]), 1, torch.Generator().manual_seed(0))
    assert seen and all(seen)


def test_samples_end_at_any_of_the_models_end_tokens(tiny_llama: Path) -> None:
    """A chat model's turn token, which its generation settings name, ends a completion like the tokenizer's own."""
    policy = load_language_policy(str(tiny_llama), max_new_tokens=40)
    assert policy.end_token_ids == (1,)
    many = tuple(range(40, 140))  # so many that nearly every sample meets one
    policy.core.generation_config.eos_token_id = [1, *many]
    policy.end_token_ids = end_token_ids(policy.model, policy.tokenizer)
    assert policy.end_token_ids == (1, *many)
    context = TokenContext(torch.zeros(64, 1, dtype=torch.long), torch.ones(64, 1, dtype=torch.bool))
    action = policy.sample(context, 1, torch.Generator().manual_seed(0))
    ends = torch.isin(action.steps, torch.tensor(policy.end_token_ids)) & action.mask
    assert int(ends.sum(-1).max()) == 1
    last = action.mask.sum(-1) - 1
    ended = ends.any(-1)
    assert ended.float().mean() > 0.9
    assert torch.equal(ends.int().argmax(-1)[ended], last[ended])
