"""The source of images: rewards in each prompt's units, raw ones in the figures, the same batches after a resume."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from image_helpers import tiny_pipeline
from valence.errors import UserError
from valence.feedback.labelling import label_halves
from valence.feedback.running import RunningStandard
from valence.policies.denoiser import Denoiser
from valence.policies.image_pipelines import SamplerSettings, make_denoiser
from valence.rewards.functions import RewardFunction
from valence.sources.images import ImageModality, image_prompt
from valence.sources.modality import OnlineSettings
from valence.sources.online import OnlineSource
from valence.training.reference import AdaptersOff, FrozenCopy
from valence.types import Batch, Labels, Rewards

pytest.importorskip("diffusers")
PROMPTS = [image_prompt(letter, {"wanted": place}) for place, letter in enumerate("abcde")]
RAW = frozenset({"log_prob", "ref_log_prob"})


def make_policy() -> Denoiser:
    torch.manual_seed(0)
    return make_denoiser(tiny_pipeline(), SamplerSettings(num_steps=3, lora_rank=2, lora_alpha=2))


@pytest.fixture(scope="module")
def policy() -> Denoiser:
    return make_policy()


def brightness(prompts: list[str], completions: list[Any], **columns: Any) -> list[float | None]:
    """Of an image's every pixel, 0 to 255: far from the standardised scale."""
    return [float(sum(image.convert("L").tobytes())) / 64 for image in completions]


def make_source(judge: Any = brightness, prompts: Any = PROMPTS, **options: Any) -> OnlineSource:
    names = ("initial_policy", "reference", "convert", "seed")
    extra = {name: options.pop(name) for name in names if name in options}
    settings = OnlineSettings(**({"batch_size": 3, "num_samples": 2} | options))
    standard = RunningStandard(size=8, least=4)
    return OnlineSource(prompts, judge, settings, ImageModality(), standard=standard, **extra)


def given(batch: Batch) -> torch.Tensor:
    """The rewards, asked for again."""
    assert batch.action.output is not None
    return torch.tensor([brightness([], list(row)) for row in batch.action.output])


def test_the_objective_has_standardised_rewards_and_the_figures_raw_ones(policy: Denoiser) -> None:
    source, beside = make_source(), RunningStandard(size=8, least=4)
    for _ in range(4):
        batch = source.next(policy)
        raw = given(batch)
        assert isinstance(batch.feedback, Rewards) and bool(batch.present.all())
        wanted = beside(list(batch.context.prompts), raw, batch.present)
        torch.testing.assert_close(batch.feedback.value, wanted)
        assert source.figures["reward"] == pytest.approx(float(raw.mean()), rel=1e-5) and raw.mean() > 20
        assert source.figures["reward_std"] == pytest.approx(float(raw.std(correction=0)), rel=1e-3)
        assert source.figures["shaped_reward"] == pytest.approx(float(wanted.mean()), abs=1e-5)
        assert abs(source.figures["shaped_reward"]) < 2 and source.num_units == 6
    # Five prompts, twelve draws: some have their own statistics by now, and some have not.
    lengths = {len(values) for values in beside.known.values()}
    assert min(lengths) < 8 and max(lengths) >= 4
    assert {"ended", "length"}.isdisjoint(source.figures)


def test_a_batch_is_what_its_policy_drew(policy: Denoiser) -> None:
    batch = make_source().next(policy)
    assert batch.old_log_prob is not None and batch.on_policy is not None and bool(batch.on_policy.all())
    measured = policy.likelihood(batch, None, frozenset({"log_prob"})).log_prob
    torch.testing.assert_close(batch.old_log_prob, measured, rtol=1e-5, atol=1e-3)
    assert batch.action.output is not None and len(batch.action.output) == 3 and len(batch.action.output[0]) == 2
    # The last step draws nothing.
    assert batch.action.mask.all(0).all(0).tolist() == [True, True, False]


def test_every_image_is_asked_about_with_its_own_prompts_metadata(policy: Denoiser) -> None:
    asked: list[Any] = []

    def judge(prompts: list[str], completions: list[Any], metadata: list[Any]) -> list[float | None]:
        asked.extend(zip(prompts, metadata, [image.size for image in completions], strict=True))
        return brightness(prompts, completions)

    make_source(judge).next(policy)
    assert len(asked) == 6 and len({prompt for prompt, *_ in asked}) == 3
    assert all(row == {"wanted": "abcde".index(prompt)} and size == (8, 8) for prompt, row, size in asked)


def test_an_epoch_is_every_prompt_once_in_an_order_of_its_own(policy: Denoiser) -> None:
    source = make_source(batch_size=3, num_samples=1)
    drawn = [prompt for _ in range(10) for prompt in source.next(policy).context.prompts]
    epochs = [drawn[place : place + 5] for place in range(0, 30, 5)]
    assert all(sorted(epoch) == list("abcde") for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    again, other = make_source(batch_size=5, num_samples=1), make_source(batch_size=5, num_samples=1, seed=1)
    assert list(again.next(policy).context.prompts) == epochs[0]
    firsts = [tuple(other.next(policy).context.prompts) for _ in range(3)]
    assert firsts != [tuple(epoch) for epoch in epochs[:3]]


def test_a_source_goes_on_where_it_was(policy: Denoiser) -> None:
    source = make_source()
    for _ in range(2):
        source.next(policy)
    state = source.state_dict()
    expected = [source.next(policy) for _ in range(2)]
    other, forgetful = make_source(seed=9), make_source(seed=9)
    other.load_state_dict(state)
    forgetful.load_state_dict(state | {"standard": {"known": {}}})
    differs = False
    for batch in expected:
        again, anew = other.next(policy), forgetful.next(policy)
        assert isinstance(again.feedback, Rewards) and isinstance(batch.feedback, Rewards)
        assert torch.equal(again.action.steps, batch.action.steps) and again.context.prompts == batch.context.prompts
        assert torch.equal(again.feedback.value, batch.feedback.value)
        assert isinstance(anew.feedback, Rewards) and torch.equal(anew.action.steps, batch.action.steps)
        differs |= not torch.equal(anew.feedback.value, batch.feedback.value)
    # What prompts earned before is part of it.
    assert differs


def test_other_prompts_or_other_metadata_are_not_gone_on_with() -> None:
    state = make_source().state_dict()
    changed = [*PROMPTS[:4], image_prompt("e", {"wanted": 5})]
    for others in (PROMPTS[:4], [*PROMPTS[:4], image_prompt("f", {"wanted": 4})], changed):
        with pytest.raises(UserError, match="`resume` needs the prompts that the run began with"):
            make_source(prompts=others).load_state_dict(state)
    make_source(prompts=list(PROMPTS)).load_state_dict(state)


def test_what_a_reward_fails_on_is_left_out(policy: Denoiser) -> None:
    """One image has no number, and one prompt's make it raise: both are absent, and count in no statistics."""

    def moody(prompts: list[str], completions: list[Any], metadata: list[Any]) -> list[float | None]:
        if len(prompts) == 1 and metadata[0]["wanted"] == 2:
            raise RuntimeError("no\nidea")
        if "c" in prompts:
            raise RuntimeError("a batch with c")
        return brightness(prompts, completions)

    def sparse(prompts: list[str], completions: list[Any], **_: Any) -> list[float | None]:
        return [None, *brightness(prompts, completions)[1:]]

    source = make_source(RewardFunction(moody, name="moody"), batch_size=5)
    batch = source.next(policy)
    place = list(batch.context.prompts).index("c")
    there = torch.ones(5, 2, dtype=torch.bool)
    there[place] = False
    assert isinstance(batch.feedback, Rewards) and torch.equal(batch.present, there)
    assert bool((batch.feedback.value[~there] == 0).all()) and not batch.action.mask[~there].any()
    assert source.figures["unjudged"] == 2 and source.figures["reward"] == pytest.approx(
        float(given(batch)[there].mean()), rel=1e-5
    )
    assert not source.standard.known["c"] and len(source.standard.known) == 5
    assert source.judge.failures == {"RuntimeError: no idea": 2}  # type: ignore[attr-defined]
    source = make_source(RewardFunction(sparse, name="sparse"))
    assert source.next(policy).present.flatten().tolist() == [False] + [True] * 5


def test_the_kls_price_comes_off_standardised_rewards() -> None:
    """a - gamma (log pi_t - log pi_0), a the standardised reward."""
    policy = make_policy()
    start = AdaptersOff(policy)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for part in policy.parameters():
            part.add_(0.1 * torch.randn(part.shape, generator=generator))
    source = make_source(initial_policy=start, kl_weight=0.5)
    batch = source.next(policy)
    found = policy.likelihood(batch, start, RAW)
    assert found.ref_log_prob is not None and isinstance(batch.feedback, Rewards)
    gap = (found.log_prob - found.ref_log_prob).sum(-1)
    wanted = RunningStandard(size=8, least=4)(list(batch.context.prompts), given(batch), batch.present) - 0.5 * gap
    torch.testing.assert_close(batch.feedback.value, wanted, atol=1e-2, rtol=1e-4)
    assert float(gap.abs().min()) > 0.05
    assert source.figures["reward"] == pytest.approx(float(given(batch).mean()), rel=1e-5)


def test_labels_are_of_standardised_rewards_drawn_from_the_reference() -> None:
    policy = make_policy()
    reference = FrozenCopy(policy)
    with torch.no_grad():
        for part in policy.parameters():
            part.add_(0.3)
    source = make_source(reference=reference, from_reference=True, convert=label_halves, num_samples=4)
    batch = source.next(policy)
    assert isinstance(batch.feedback, Labels)
    raw = given(batch)
    middle = raw.median(dim=1, keepdim=True).values
    assert batch.feedback.sign.tolist() == torch.where(raw > middle, 1, -1).tolist()
    with reference.active() as copied:
        plain = make_source(num_samples=4).next(copied)
        own = copied.likelihood(replace(batch, feedback=plain.feedback), None, frozenset({"log_prob"})).log_prob
    assert torch.equal(plain.action.steps, batch.action.steps) and batch.old_log_prob is not None
    torch.testing.assert_close(batch.old_log_prob, own, rtol=1e-5, atol=1e-3)
    assert not torch.equal(make_source(num_samples=4).next(policy).action.steps, batch.action.steps)


def test_a_judge_that_is_gone_costs_nothing(policy: Denoiser) -> None:
    """The run that goes on draws and standardises as one that was never cut."""

    class Mortal:
        def __init__(self, dies_at: int) -> None:
            self.left = dies_at

        def __call__(self, prompts: list[str], completions: list[Any], **columns: Any) -> list[float | None]:
            self.left -= 1
            if self.left == 0:
                raise UserError("the judge gave no answer")
            return brightness(prompts, completions)

    whole, broken = make_source(), make_source(Mortal(2))
    whole.next(policy)
    broken.next(policy)
    with pytest.raises(UserError, match="no answer"):
        broken.next(policy)
    expected, again = whole.next(policy), broken.next(policy)
    assert isinstance(expected.feedback, Rewards) and isinstance(again.feedback, Rewards)
    assert torch.equal(again.action.steps, expected.action.steps)
    assert torch.equal(again.feedback.value, expected.feedback.value)
