"""The online source: rewards where they belong, KL by hand, and the same batches after a resume."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import helpers
from helpers import PAD
from valence.errors import UserError
from valence.feedback.labelling import label_halves
from valence.sources.modality import OnlineSettings
from valence.sources.online import OnlineSource
from valence.sources.prompts import EncodedPrompt
from valence.sources.text import TextModality
from valence.training.reference import FrozenCopy
from valence.types import Labels, Rewards

PROMPTS = [EncodedPrompt([4, 5, 6][: 1 + n % 3], f"prompt {n}", {"wanted": n}) for n in range(5)]


def lengths(prompts: list[Any], completions: list[str], **columns: list[Any]) -> list[float | None]:
    return [float(len(text.split())) for text in completions]


def make_source(policy: Any, judge: Any = lengths, prompts: Any = PROMPTS, **options: Any) -> OnlineSource:
    names = ("initial_policy", "reference", "convert", "standard", "seed")
    extra = {name: options.pop(name) for name in names if name in options}
    settings = OnlineSettings(**({"batch_size": 3, "num_samples": 2} | options))
    return OnlineSource(prompts, judge, settings, TextModality(PAD), **extra)


def test_a_batch_holds_what_was_drawn_and_what_was_said() -> None:
    policy, asked = helpers.policy("llama"), []

    def judge(prompts: list[str], completions: list[str], wanted: list[int]) -> list[float | None]:
        asked.extend(zip(prompts, wanted, strict=True))
        return [float(len(text.split())) for text in completions]

    source = make_source(policy, judge)
    batch = source.next(policy)
    assert isinstance(batch.feedback, Rewards) and batch.feedback.value.shape == (3, 2)
    assert batch.action.output is not None
    words = [[float(len(text.split())) for text in row] for row in batch.action.output]
    assert batch.feedback.value.tolist() == words and source.num_units == 6
    # Every completion is asked about with its own prompt's columns.
    assert all(prompt == f"prompt {wanted}" for prompt, wanted in asked) and len(asked) == 6
    assert batch.on_policy is not None and bool(batch.on_policy.all())
    measured = policy.likelihood(batch, None, frozenset({"log_prob"})).log_prob.detach()
    assert batch.old_log_prob is not None
    torch.testing.assert_close(batch.old_log_prob, measured)


def test_rewards_are_shaped_by_hand() -> None:
    """r - gamma sum_t (log pi_t - log pi_0), the verdict on the last step, the KL's parts on their own."""
    policy = helpers.policy("llama")
    start = FrozenCopy(policy)
    helpers.shake(policy)
    source = make_source(policy, initial_policy=start, kl_weight=0.5)
    batch = source.next(policy)
    found = policy.likelihood(batch, start, frozenset({"log_prob", "ref_log_prob"})).detach()
    assert found.ref_log_prob is not None and batch.step_reward is not None and batch.action.output is not None
    gap, mask = found.log_prob - found.ref_log_prob, batch.action.mask
    words = torch.tensor([[float(len(text.split())) for text in row] for row in batch.action.output])
    assert isinstance(batch.feedback, Rewards)
    torch.testing.assert_close(batch.feedback.value, words - 0.5 * gap.sum(-1))
    torch.testing.assert_close(batch.step_reward.sum(-1), batch.feedback.value)
    last = mask.sum(-1) - 1
    torch.testing.assert_close((batch.step_reward + 0.5 * gap * mask).gather(-1, last[..., None])[..., 0], words)
    assert float(gap.abs().max()) > 0.01
    assert source.figures["kl_policy_initial"] == pytest.approx(float(gap.sum(-1).mean()), rel=1e-5)


def test_a_completion_that_does_not_end_has_a_reward_of_its_own() -> None:
    policy = helpers.policy("llama", max_new_tokens=2)
    batch = make_source(policy, unfinished_reward=-7.0, batch_size=5, num_samples=4).next(policy)
    ends = torch.tensor(policy.end_token_ids)
    ended = (torch.isin(batch.action.steps, ends) & batch.action.mask).any(-1)
    assert isinstance(batch.feedback, Rewards) and bool((~ended).any())
    assert bool((batch.feedback.value[~ended] == -7.0).all()) and bool((batch.feedback.value[ended] >= 0).all())


def test_what_was_not_judged_is_absent() -> None:
    policy = helpers.policy("llama")

    def judge(prompts: list[str], completions: list[str], **_: Any) -> list[float | None]:
        return [None if place % 3 == 0 else 1.0 for place in range(len(completions))]

    source = make_source(policy, judge)
    batch = source.next(policy)
    assert batch.present.flatten().tolist() == [False, True, True, False, True, True]
    assert source.figures["unjudged"] == 2 and source.figures["reward"] == 1.0


def test_labels_are_made_of_a_whole_batch_and_drawn_from_the_reference() -> None:
    policy = helpers.policy("llama")
    reference = FrozenCopy(policy)
    helpers.shake(policy)
    source = make_source(
        policy, reference=reference, from_reference=True, convert=label_halves, batch_size=5, num_samples=4
    )
    batch = source.next(policy)
    assert isinstance(batch.feedback, Labels) and bool((batch.feedback.sign != 0)[batch.present].all())
    # The reference's own draws: the same seed gives the same tokens from a policy that is the reference; and pi_t is
    # whoever drew, whatever the policy has become.
    again = make_source(reference.copy, batch_size=5, num_samples=4).next(reference.copy)
    assert torch.equal(batch.action.steps, again.action.steps)
    assert batch.on_policy is not None and bool(batch.on_policy.all())
    assert batch.old_log_prob is not None and again.old_log_prob is not None
    torch.testing.assert_close(batch.old_log_prob[batch.action.mask], again.old_log_prob[batch.action.mask])
    own = policy.likelihood(batch, None, frozenset({"log_prob"})).log_prob
    assert not torch.allclose(batch.old_log_prob[batch.action.mask], own[batch.action.mask], atol=1e-3)


def test_a_kl_price_on_the_references_draws_is_the_references_own() -> None:
    """Drawn from pi_0 itself nothing is taken off, though the policy has moved far."""
    policy = helpers.policy("llama")
    start = FrozenCopy(policy)
    helpers.shake(policy)
    batch = make_source(policy, initial_policy=start, reference=start, from_reference=True, kl_weight=5.0).next(policy)
    assert isinstance(batch.feedback, Rewards) and batch.step_reward is not None
    plain = make_source(policy, reference=start, from_reference=True).next(policy)
    assert isinstance(plain.feedback, Rewards)
    torch.testing.assert_close(batch.feedback.value, plain.feedback.value, atol=1e-4, rtol=0)


def test_a_large_batch_is_drawn_and_measured_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every prompt has its own completions, and log pi_t is that of the policy, part by part."""
    import valence.sources.modality as modality

    policy = helpers.policy("llama")
    monkeypatch.setattr(modality, "TOGETHER", 6)
    source = make_source(policy, batch_size=7, num_samples=2)
    assert [part.stop - part.start for part in source.settings.parts(7)] == [3, 3, 1]
    batch = source.next(policy)
    assert batch.present.shape == (7, 2) and batch.action.output is not None and len(batch.action.output) == 7
    measured = policy.likelihood(batch, None, frozenset({"log_prob"})).log_prob.detach()
    assert batch.old_log_prob is not None
    torch.testing.assert_close(batch.old_log_prob, measured)
    said = [[policy.decode(row[mask]) for row, mask in zip(*part, strict=True)]
            for part in zip(batch.action.steps, batch.action.mask, strict=True)]  # fmt: skip
    assert said == [list(row) for row in batch.action.output]


def test_a_rows_own_completion_is_judged_beside_the_drawn_ones() -> None:
    policy = helpers.policy("llama")
    prompts = [EncodedPrompt([4, 5], "p", {}, ([6, 7, helpers.END],)), EncodedPrompt([5], "q", {}, ([8, helpers.END],))]
    batch = make_source(policy, prompts=prompts, batch_size=2, num_samples=1, num_given=1).next(policy)
    assert batch.action.steps.shape[1] == 2 and batch.on_policy is not None
    assert batch.on_policy.tolist() == [[True, False]] * 2
    kept = [row[1][mask[1]].tolist() for row, mask in zip(batch.action.steps, batch.action.mask, strict=True)]
    assert sorted(kept) == sorted([[6, 7, helpers.END], [8, helpers.END]])
    measured = policy.likelihood(batch, None, frozenset({"log_prob"})).log_prob.detach()
    assert batch.old_log_prob is not None
    torch.testing.assert_close(batch.old_log_prob, measured)


def test_a_source_goes_on_where_it_was() -> None:
    policy = helpers.policy("llama")
    source = make_source(policy)
    source.next(policy)
    state = source.state_dict()
    expected = [source.next(policy) for _ in range(3)]
    other = make_source(policy, seed=9)
    other.load_state_dict(state)
    for batch in expected:
        again = other.next(policy)
        assert torch.equal(again.action.steps, batch.action.steps) and torch.equal(again.context.ids, batch.context.ids)
    for others in (PROMPTS[:2], [*PROMPTS[:4], EncodedPrompt([6], "another")]):
        with pytest.raises(UserError, match="`resume` needs the prompts that the run began with"):
            make_source(policy, prompts=others).load_state_dict(state)


def test_bad_settings_are_named() -> None:
    policy = helpers.policy("llama")
    with pytest.raises(ValueError, match="num_samples is 0"):
        make_source(policy, num_samples=0)
    with pytest.raises(ValueError, match="give `initial_policy`"):
        make_source(policy, kl_weight=0.1)
    with pytest.raises(ValueError, match="at least one prompt"):
        make_source(policy, prompts=[])
