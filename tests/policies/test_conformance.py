"""One suite for all language policies: the properties that objectives, evaluations and sources rely on."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

import helpers
from helpers import END, KINDS, PAD, as_batch, assert_close, assert_near, context_of, every_completion, make_batch
from valence.data.collate import pad_actions, pad_left
from valence.policies import language, token_head
from valence.policies.base import likelihood_from_distributions
from valence.policies.language import CausalLM, Seq2SeqLM
from valence.policies.rows import present_rows
from valence.training.reference import AdaptersOff, FrozenCopy
from valence.types import Action, Batch, Rewards, TokenContext

ALL = frozenset({"log_prob", "ref_log_prob", "ref_kl", "policy_kl"})
LOG_PROB = frozenset({"log_prob"})
PROMPTS = ([3], [4, 2, 3], [2, 4])
"""Three prompts of several lengths for a vocabulary of five."""


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def rows_of(action: Action) -> list[tuple[int, ...]]:
    """The tokens of each action, without masked ones."""
    pairs = zip(action.steps.flatten(0, 1), action.mask.flatten(0, 1), strict=True)
    return [tuple(steps[mask].tolist()) for steps, mask in pairs]


def test_probabilities_of_all_completions_sum_to_one(kind: str) -> None:
    subject = helpers.policy(kind, 5, max_new_tokens=3)
    completions = list(every_completion(5, 3))
    assert len(completions) == 1 + 4 + 16 + 64
    context = context_of(*PROMPTS)
    batch = as_batch(context, pad_actions([completions] * 3, PAD))
    with torch.no_grad():
        total = subject.likelihood(batch, None, LOG_PROB).total().log_prob
    assert_close(total.double().exp().sum(-1), torch.ones(3), 1e-5)
    # The contexts differ: these are three distributions.
    assert (total[0] - total[1]).abs().max() > 0.1


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_are_as_frequent_as_their_likelihood_says(kind: str, temperature: float) -> None:
    subject = helpers.policy(kind, 5, max_new_tokens=2, temperature=temperature)
    # A model's own generation settings are no part of the policy.
    settings = subject.model.generation_config
    settings.repetition_penalty, settings.top_p, settings.top_k, settings.typical_p = 3.0, 0.5, 2, 0.5
    settings.min_new_tokens, settings.temperature, settings.no_repeat_ngram_size = 2, 0.3, 1
    settings.suppress_tokens, settings.forced_eos_token_id = [4], END
    number = 3000
    # The first prompt is padded on the left, as it would be in a batch.
    action = subject.sample(context_of(*PROMPTS), number, torch.Generator().manual_seed(1))
    completions = [tuple(ids) for ids in every_completion(5, 2)]
    batch = as_batch(context_of(*PROMPTS), pad_actions([completions] * 3, PAD))
    with torch.no_grad():
        expected = number * subject.likelihood(batch, None, LOG_PROB).total().log_prob.double().exp()
    drawn = rows_of(action)
    for n in range(3):
        counts = Counter(drawn[n * number : (n + 1) * number])
        assert set(counts) <= set(completions)
        found = torch.tensor([counts[ids] for ids in completions], dtype=torch.float64)
        large = expected[n] >= 5
        cells = (
            torch.cat([expected[n][large], expected[n][~large].sum()[None]]),
            torch.cat([found[large], found[~large].sum()[None]]),
        )
        statistic = float(((cells[1] - cells[0]).square() / cells[0].clamp(min=1)).sum())
        assert statistic < helpers.chi_square_limit(len(cells[0])), (n, statistic)


def test_sampling_keeps_the_models_own_settings(kind: str) -> None:
    subject = helpers.policy(kind, 5)
    subject.model.generation_config.repetition_penalty = 3.0
    subject.sample(context_of([3]), 1, torch.Generator().manual_seed(0))
    assert subject.model.generation_config.repetition_penalty == 3.0
    assert subject.model.training


def test_a_seed_reproduces_samples_and_the_global_generator_is_left_alone(kind: str) -> None:
    subject = helpers.policy(kind)
    context = context_of([4, 5], [6])
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first, again, other = (
        subject.sample(context, 4, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )  # fmt: skip
    assert torch.equal(torch.get_rng_state(), before)
    assert rows_of(first) == rows_of(again)
    assert first.output == again.output
    assert rows_of(first) != rows_of(other)
    # One generator gives new samples each time, whatever happens to the global one in between.
    generator = torch.Generator().manual_seed(3)
    assert rows_of(subject.sample(context, 4, generator)) == rows_of(first)
    torch.manual_seed(99)
    assert rows_of(subject.sample(context, 4, generator)) != rows_of(first)


def test_samples_end_with_the_end_token_or_are_truncated(kind: str) -> None:
    subject = helpers.policy(kind, 5, max_new_tokens=3)
    action = subject.sample(context_of(*PROMPTS), 40, torch.Generator().manual_seed(0))
    assert action.steps.shape[:2] == (3, 40)
    rows = rows_of(action)
    assert {len(row) for row in rows} == {1, 2, 3}
    assert all(END not in row[:-1] for row in rows)
    assert all(row[-1] == END for row in rows if len(row) < 3)
    assert any(row[-1] != END for row in rows)
    assert action.output is not None
    assert [text for texts in action.output for text in texts] == [subject.decode(torch.tensor(row)) for row in rows]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_prob_equals_the_obvious_computation(kind: str, temperature: float) -> None:
    subject = helpers.policy(kind, temperature=temperature)
    prompts, completions = helpers.prompts_and_completions()
    batch = as_batch(pad_left(prompts, PAD), pad_actions(completions, PAD))
    log_prob = subject.likelihood(batch, None, LOG_PROB).log_prob
    for n, prompt in enumerate(prompts):
        for k in range(log_prob.shape[1]):
            steps = completions[n][k] if k < len(completions[n]) else []
            rows = helpers.slow_log_probs(subject, prompt, steps) if steps else []
            slow = [row[token] for row, token in zip(rows, steps, strict=True)]
            slow += [torch.tensor(0.0)] * (log_prob.shape[2] - len(steps))
            assert_close(log_prob[n, k].double(), torch.stack([part.double() for part in slow]), 2e-5)


def distribution(subject: language.LanguagePolicy, batch: Batch) -> Categorical:
    """Each step's Categorical, batch shape `[N, K, T]`, from all logits at once."""
    mask = batch.action.mask
    logits = torch.zeros(*mask.shape, subject.vocabulary)
    hidden = subject.action_hidden(present_rows(batch.context, batch.action))
    part = subject.head(hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2])
    part = torch.nn.functional.pad(part, (0, 0, 0, mask.shape[2] - hidden.shape[1]))
    return Categorical(logits=logits.masked_scatter(mask.any(-1)[..., None, None].expand_as(logits), part))


def test_kls_equal_those_of_the_full_distributions(kind: str) -> None:
    subject = helpers.policy(kind, temperature=0.8)
    reference = FrozenCopy(subject)
    helpers.shake(subject)
    batch = make_batch()
    measured = subject.likelihood(batch, reference, ALL)
    ours = distribution(subject, batch)
    with reference.active() as other:
        theirs = distribution(other, batch)
    mask = batch.action.mask
    for name, full in (("ref_kl", kl_divergence(theirs, ours)), ("policy_kl", kl_divergence(ours, theirs))):
        part = getattr(measured, name)
        assert_close(part, full * mask, 2e-5)
        assert (part >= -1e-6).all()
        assert part[mask].max() > 1e-3
    assert_close(measured.log_prob, ours.log_prob(batch.action.steps) * mask, 2e-5)
    assert_close(measured.ref_log_prob, theirs.log_prob(batch.action.steps) * mask, 2e-5)
    # The two directions differ, so an implementation that swaps them fails.
    assert (measured.ref_kl - measured.policy_kl).abs().max() > 1e-4
    # `likelihood_from_distributions` agrees.
    default = likelihood_from_distributions(ours, theirs, batch.action.steps, mask, ALL)
    for name in ALL:
        assert_close(getattr(measured, name), getattr(default, name), 2e-5)


def test_kls_and_log_ratio_are_zero_at_the_start_in_training_mode(kind: str) -> None:
    subject = helpers.policy(kind)
    assert subject.training
    measured = subject.likelihood(make_batch(), FrozenCopy(subject), ALL)
    # With and without gradient torch may use different kernels, which round differently.
    assert_close(measured.log_prob, measured.ref_log_prob, 1e-5)
    assert_close(measured.ref_kl, torch.zeros_like(measured.ref_kl), 1e-5)
    assert_close(measured.policy_kl, torch.zeros_like(measured.policy_kl), 1e-5)


def test_where_the_gradient_flows(kind: str) -> None:
    subject = helpers.policy(kind)
    reference = FrozenCopy(subject)
    helpers.shake(subject)
    batch = make_batch()
    measured = subject.likelihood(batch, reference, ALL)
    assert measured.log_prob.requires_grad and measured.ref_kl.requires_grad
    assert not measured.ref_log_prob.requires_grad
    # The same gradient in two ways: pulling back `grads`, and differentiating the likelihoods times `grads`.
    generator = torch.Generator().manual_seed(0)
    grads = {name: torch.randn(measured.log_prob.shape, generator=generator) for name in ("log_prob", "ref_kl")}
    subject.backward(batch, reference, measured, grads)
    pulled = helpers.gradients(subject)
    subject.zero_grad()
    ours = distribution(subject, batch)
    with torch.no_grad(), reference.active() as other:
        theirs = distribution(other, batch)
    mask = batch.action.mask
    total = (ours.log_prob(batch.action.steps) * mask * grads["log_prob"]).sum()
    total = total + (kl_divergence(theirs, ours) * mask * grads["ref_kl"]).sum()
    total.backward()
    direct = helpers.gradients(subject)
    used = {name: part for name, part in direct.items() if part.abs().max() > 0}
    assert len(used) > 5
    assert_near({name: pulled[name] for name in used}, used)
    assert all(part.grad is None for part in reference.copy.parameters())


def shuffled(batch: Batch, order: list[int], absent: int) -> Batch:
    """The same actions in another order within each context, after `absent` absent ones, with more padding."""
    width = batch.action.mask.shape[2]
    steps = torch.nn.functional.pad(batch.action.steps[:, order], (0, 3, absent, 0), value=7)
    mask = torch.nn.functional.pad(batch.action.mask[:, order], (0, 3, absent, 0), value=False)
    ids = torch.nn.functional.pad(batch.context.ids, (4, 0), value=9)
    context = TokenContext(ids, torch.nn.functional.pad(batch.context.mask, (4, 0), value=False))
    assert steps.shape[2] == width + 3
    return as_batch(context, Action(steps, mask))


def test_likelihood_does_not_depend_on_padding_order_or_absent_actions(kind: str) -> None:
    subject = helpers.policy(kind)
    reference = FrozenCopy(subject)
    helpers.shake(subject)
    batch = make_batch(actions=3)
    plain = subject.likelihood(batch, reference, ALL)
    order = [2, 0, 1]
    moved = subject.likelihood(shuffled(batch, order, 2), reference, ALL)
    width = batch.action.mask.shape[2]
    for name in ALL:
        was, now = getattr(plain, name), getattr(moved, name)
        assert_close(now[:, 2:, :width], was[:, order], 1e-5)
        assert not now[:, :2].any() and not now[..., width:].any()
    # Each context alone, too.
    for n in range(batch.num_contexts):
        alone = subject.likelihood(batch.select(slice(n, n + 1)), reference, ALL)
        for name in ALL:
            assert_close(getattr(alone, name)[0], getattr(plain, name)[n], 1e-5)


def test_a_context_without_any_action_is_zero(kind: str) -> None:
    subject = helpers.policy(kind)
    batch = make_batch()
    mask = batch.action.mask.clone()
    mask[1] = False
    gone = as_batch(batch.context, Action(batch.action.steps, mask))
    plain = subject.likelihood(batch, FrozenCopy(subject), ALL).log_prob
    measured = subject.likelihood(gone, FrozenCopy(subject), ALL)
    assert not measured.log_prob[1].any()
    assert_close(measured.log_prob[[0, 2, 3]], plain[[0, 2, 3]], 1e-5)
    nothing = subject.likelihood(
        as_batch(batch.context, Action(batch.action.steps, torch.zeros_like(mask))), FrozenCopy(subject), ALL
    )
    assert all(not getattr(nothing, name).any() for name in ALL)
    assert nothing.log_prob.shape == mask.shape


@pytest.mark.parametrize(("together", "held"), [(1, 2**25), (9, 2**25), (10_000, 1), (12, 48), (10_000, 80)])
def test_values_and_gradients_do_not_depend_on_how_rows_are_run(
    kind: str, together: int, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`together` tokens at a time through the model, `held` logits at a time (16 a token) through the head."""
    subject = helpers.policy(kind)
    reference = FrozenCopy(subject)
    helpers.shake(subject)
    batch = make_batch()
    generator = torch.Generator().manual_seed(0)
    grads = {name: torch.randn(batch.action.mask.shape, generator=generator) for name in ("log_prob", "ref_kl")}

    def run() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        subject.zero_grad()
        measured = subject.likelihood(batch, reference, ALL)
        subject.backward(batch, reference, measured, grads)
        return {name: getattr(measured, name).detach() for name in ALL}, helpers.gradients(subject)

    values, parameter_grads = run()
    monkeypatch.setitem(language.TOKENS_TOGETHER, False, together)
    monkeypatch.setattr(token_head, "LOGITS_HELD", held)
    other_values, other_grads = run()
    for name in ALL:
        assert_close(other_values[name], values[name], 1e-5)
    assert_near(other_grads, parameter_grads)
    with torch.no_grad():
        assert_close(subject.likelihood(batch, reference, ALL).ref_kl, values["ref_kl"], 1e-5)


@pytest.mark.parametrize("packs", [False, True])
def test_a_piece_stays_within_its_budget_with_its_padding(kind: str, *, packs: bool) -> None:
    policy = helpers.policy(kind)
    policy.packs, joined = packs, not policy.encoder_decoder
    # All rows have 11 tokens, but where prompts are long completions are short: padded apart, they are mostly padding.
    prompts = [[4] * (10 - n) for n in range(10)]
    completions = [[[5] * (1 + n)] for n in range(10)]
    rows = present_rows(pad_left(prompts, PAD), pad_actions(completions, PAD))
    pieces = rows.by_length(range(10), 44, policy.padded_size)
    assert sorted(torch.cat(pieces).tolist()) == list(range(10))
    for which in pieces:
        part = rows.pick(which)
        longest = (part.context_mask.sum(-1) + part.mask.sum(-1)).max()
        size = len(which) * int(longest if joined else part.context.shape[1] + part.steps.shape[1])
        assert len(which) == 1 or size <= 44
    # All rows are of 11 tokens: four fit where nothing is padded.
    assert len(pieces) == 3 if joined else len(pieces) < 10


def test_a_reference_quantity_without_a_reference_is_refused(kind: str) -> None:
    subject = helpers.policy(kind)
    for name in ("ref_log_prob", "ref_kl", "policy_kl"):
        with pytest.raises(ValueError, match=name):
            subject.likelihood(make_batch(), None, frozenset({"log_prob", name}))


def test_only_what_is_asked_for_is_given(kind: str) -> None:
    subject = helpers.policy(kind)
    measured = subject.likelihood(make_batch(), FrozenCopy(subject), frozenset({"log_prob", "ref_kl"}))
    assert measured.ref_log_prob is None and measured.policy_kl is None and measured.value is None


@pytest.mark.filterwarnings("ignore:Moving the following attributes")
def test_save_and_load_are_exact(kind: str, tmp_path: Path) -> None:
    from valence.policies.loading import load_language_policy

    subject = helpers.policy(kind)
    subject.save(tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".bin", ".pt", ".pkl", ".pth")]
    again = load_language_policy(str(tmp_path), max_new_tokens=6)
    assert isinstance(again, Seq2SeqLM if kind in ("t5", "t5-untied", "bart") else CausalLM)
    batch = make_batch(Rewards)
    subject.shares_prompts = again.shares_prompts
    with torch.no_grad():
        ours = subject.likelihood(batch, None, LOG_PROB).log_prob
        theirs = again.likelihood(batch, None, LOG_PROB).log_prob
    assert torch.equal(ours, theirs)
    context = context_of([4, 5], [6])
    draws = [one.sample(context, 3, torch.Generator().manual_seed(0)) for one in (subject, again)]
    assert rows_of(draws[0]) == rows_of(draws[1])
    assert again.tokenizer.get_vocab() == subject.tokenizer.get_vocab()


@pytest.mark.parametrize("held", [2**25, 32])
def test_lora_switched_off_is_the_base_model_before_and_after_training(
    kind: str, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_head, "LOGITS_HELD", held)
    base, subject = helpers.policy(kind), helpers.policy(kind, lora=True)
    reference = AdaptersOff(subject)
    batch = make_batch()
    with torch.no_grad():
        expected = base.likelihood(batch, None, LOG_PROB).log_prob
    assert all("lora" in name for name in subject.trainable())
    weights = {name: part.clone() for name, part in subject.model.named_parameters() if not part.requires_grad}
    optimizer = torch.optim.SGD(subject.trainable().values(), lr=0.5)
    for _ in range(2):
        measured = subject.likelihood(batch, reference, ALL)
        assert_close(measured.ref_log_prob, expected, 0.0)
        grads = {"log_prob": torch.ones_like(measured.log_prob), "ref_kl": torch.ones_like(measured.log_prob)}
        subject.backward(batch, reference, measured, grads)
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.equal(part, weights[name]) for name, part in subject.model.named_parameters() if name in weights)
    measured = subject.likelihood(batch, reference, ALL)
    assert_close(measured.ref_log_prob, expected, 0.0)
    assert (measured.log_prob - expected).abs().max() > 1e-3
    assert measured.ref_kl.max() > 1e-5
    assert all(part.requires_grad for part in subject.trainable().values())


def test_lora_gradient_equals_that_with_a_second_copy_as_reference(kind: str) -> None:
    """Adapters switched off for the reference, between measuring and pulling back, do not change the gradient."""
    subject = helpers.policy(kind, lora=True)
    copied = FrozenCopy(subject)
    helpers.shake(subject)
    batch = make_batch()
    found = []
    for reference in (copied, AdaptersOff(subject)):
        subject.zero_grad()
        measured = subject.likelihood(batch, reference, ALL)
        grads = {"log_prob": torch.ones_like(measured.log_prob), "ref_kl": torch.ones_like(measured.log_prob)}
        subject.backward(batch, reference, measured, grads)
        found.append(helpers.gradients(subject))
    assert found[0].keys() == found[1].keys() == subject_names(subject)
    assert_near(found[1], found[0], 1e-5)


def subject_names(subject: language.LanguagePolicy) -> set[str]:
    return {f"model.{name}" for name in subject.trainable()}


def test_lora_samples_from_the_adapted_policy(kind: str) -> None:
    subject = helpers.policy(kind, 5, max_new_tokens=1, lora=True)
    helpers.shake(subject, size=1.0)
    number = 2000
    action = subject.sample(context_of([3, 4]), number, torch.Generator().manual_seed(0))
    completions = [[token] for token in range(5)]
    batch = as_batch(context_of([3, 4]), pad_actions([completions], PAD))
    with torch.no_grad():
        measured = subject.likelihood(batch, AdaptersOff(subject), ALL)
    expected = measured.log_prob[0, :, 0].exp()
    assert (expected - measured.ref_log_prob[0, :, 0].exp()).abs().max() > 0.05
    share = torch.bincount(action.steps[0, :, 0], minlength=5) / number
    error = 4.5 * (expected * (1 - expected) / number).sqrt() + 1 / number
    assert ((share - expected).abs() < error).all()


def test_temperature_must_be_positive(kind: str) -> None:
    for temperature in (0.0, -1.0):
        with pytest.raises(ValueError, match="temperature"):
            helpers.policy(kind, temperature=temperature)


def test_the_end_token_counts(kind: str) -> None:
    """log pi of a finished completion is that of the truncated one plus the end token's."""
    subject = helpers.policy(kind)
    batch = as_batch(context_of([4, 5]), pad_actions([[[6, 7, END], [6, 7]]], PAD))
    total = subject.likelihood(batch, None, LOG_PROB).total().log_prob[0].detach()
    end = helpers.slow_log_probs(subject, [4, 5], [6, 7, END])[2][END]
    assert math.isclose(float(total[0] - total[1]), float(end), abs_tol=1e-4)
