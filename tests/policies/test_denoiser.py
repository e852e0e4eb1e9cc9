"""Denoisers: densities, exact KLs, the step-by-step pull-back, its memory, references, and files for diffusers."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from helpers import assert_near
from image_helpers import tiny_pipeline
from valence.errors import UserError
from valence.objectives import DPO, PMPO, REBEL
from valence.objectives.scaled import ScaledLogProb
from valence.policies.denoiser import Denoiser
from valence.policies.image_pipelines import SamplerSettings, load_pipeline, make_denoiser
from valence.protocols import Policy
from valence.training.learner import Learner
from valence.training.reference import AdaptersOff, FrozenCopy
from valence.types import Action, Batch, Labels, Likelihood, Rewards

pytest.importorskip("diffusers")
from diffusers import DDIMScheduler, DDPMScheduler, DiffusionPipeline, LatentConsistencyModelPipeline


def denoiser(*, steps: int = 4, lora: int = 2, scheduler: Any = None, **more: Any) -> Denoiser:
    torch.manual_seed(0)
    return make_denoiser(
        tiny_pipeline(scheduler, embedded_guidance=more.pop("embedded_guidance", True)),
        SamplerSettings(num_steps=steps, lora_rank=lora, lora_alpha=2, **more),
    )


def moved(policy: Denoiser, seed: int = 1) -> Denoiser:
    """The policy, its weights moved."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in policy.parameters():
            part.add_(0.1 * torch.randn(part.shape, generator=generator))
    return policy


def drawn(policy: Denoiser, feedback: type = Rewards, seed: int = 0) -> Batch:
    """Two samples of each of three prompts, and made-up feedback."""
    context = policy.context(["a b", "c", "d e f"])
    action = policy.sample(context, 2, torch.Generator().manual_seed(seed))
    present = torch.ones(3, 2, dtype=torch.bool)
    value = torch.tensor([[1.0, -1.0], [0.3, 0.1], [-2.0, 0.5]])
    given = Rewards(value, present) if feedback is Rewards else Labels(value.sign().long(), present)
    old = policy.likelihood(Batch(context, action, given), None, frozenset({"log_prob"})).log_prob
    return Batch(context, action, given, old_log_prob=old)


def gradients(policy: Denoiser) -> dict[str, torch.Tensor]:
    found = {name: part.grad.clone() for name, part in policy.named_parameters() if part.grad is not None}
    for part in policy.parameters():
        part.grad = None
    return found


def distribution(policy: Denoiser, batch: Batch) -> Independent:
    """The T Normals, batch shape `[N, K, T]`, with the graphs of all; a step that draws nothing is given scale 1."""
    action = batch.action
    starts = [action.initial_latent, *action.steps.unbind(2)[:-1]]
    pairs = zip(starts, policy.steps, strict=True)
    means = torch.stack([policy.mean(batch.context, x, step) for x, step in pairs], dim=2)
    scales = means.new_tensor([step.scale or 1.0 for step in policy.steps])
    return Independent(Normal(means, scales.view(-1, 1, 1, 1).expand_as(means), validate_args=False), 3)


def full_graph(policy: Denoiser, batch: Batch, reference: Any = None) -> dict[str, torch.Tensor]:
    """All quantities through one graph of all steps, by torch's own distributions."""
    mask = batch.action.mask
    mine = distribution(policy, batch)
    found = {"log_prob": mine.log_prob(batch.action.steps)}
    if reference is not None:
        with torch.no_grad(), reference.active() as base:
            theirs = distribution(base, batch)
        found["ref_log_prob"] = theirs.log_prob(batch.action.steps)
        found["ref_kl"] = kl_divergence(theirs, distribution(policy, batch))
    return {name: part.masked_fill(~mask, 0.0) for name, part in found.items()}


@pytest.mark.parametrize("scheduler", [None, DDIMScheduler(), DDPMScheduler(clip_sample=False)])
@pytest.mark.parametrize("lora", [0, 2])
def test_measured_as_by_torchs_own_distributions(scheduler: Any, lora: int) -> None:
    policy = denoiser(lora=lora, scheduler=scheduler)
    reference = AdaptersOff(policy) if lora else FrozenCopy(policy)
    batch = drawn(moved(policy))
    assert isinstance(policy, Policy)
    found = policy.likelihood(batch, reference, frozenset({"ref_log_prob", "ref_kl", "policy_kl"}))
    assert not found.log_prob.requires_grad
    expected = full_graph(policy, batch, reference)
    for name, part in expected.items():
        torch.testing.assert_close(getattr(found, name), part.detach(), rtol=1e-4, atol=2e-4)
    assert found.ref_kl is not None and found.policy_kl is not None
    torch.testing.assert_close(found.ref_kl, found.policy_kl)
    assert float(found.ref_kl.sum()) > 0.01


@pytest.mark.parametrize("lora", [0, 2])
@pytest.mark.parametrize("names", [("log_prob",), ("log_prob", "ref_kl")])
def test_the_step_by_step_pull_back_is_the_full_graphs(lora: int, names: tuple[str, ...]) -> None:
    """In double precision, to 1e-6 of the gradient's size."""
    policy, drawer = (denoiser(lora=lora, steps=5, embedded_guidance=False) for _ in range(2))
    policy.network.double()
    reference = AdaptersOff(policy) if lora else FrozenCopy(policy)
    batch = doubled(drawn(moved(drawer)))
    moved(policy)
    generator = torch.Generator().manual_seed(3)
    grads = {name: torch.randn(batch.action.mask.shape, generator=generator).double() for name in names}
    expected = full_graph(policy, batch, reference)
    torch.autograd.backward([expected[name] for name in names], [grads[name] for name in names])
    full = gradients(policy)
    measured = policy.likelihood(batch, reference, frozenset(names))
    policy.backward(batch, reference, measured, grads)
    ours = gradients(policy)
    assert set(ours) == set(full)
    size = math.sqrt(sum(float(part.square().sum()) for part in full.values()))
    away = math.sqrt(sum(float((ours[name] - part).square().sum()) for name, part in full.items()))
    assert size > 0 and away / size < 1e-6
    both = policy.likelihood_and_backward(batch, reference, frozenset(names), grads)
    again = gradients(policy)
    assert_near(again, ours, 1e-9)
    torch.testing.assert_close(both.log_prob, measured.log_prob)


def doubled(batch: Batch) -> Batch:
    """The same in double precision."""
    action, context = batch.action, batch.context
    assert action.initial_latent is not None
    twice = replace(action, steps=action.steps.double(), initial_latent=action.initial_latent.double())
    return replace(batch, action=twice, context=replace(context, embedding=context.embedding.double()))


def saved_bytes(work: Any) -> int:
    """The most bytes that autograd held for backward at one time, counted by its hooks."""
    held = most = 0

    def pack(tensor: torch.Tensor) -> Any:
        nonlocal held, most
        size = tensor.numel() * tensor.element_size()
        held += size
        most = max(most, held)
        return _Held(tensor, size)

    class _Held:
        def __init__(self, tensor: torch.Tensor, size: int) -> None:
            self.tensor, self.size = tensor, size

        def __del__(self) -> None:
            nonlocal held
            held -= self.size

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        work()
    return most


def test_what_autograd_holds_does_not_grow_with_the_number_of_steps() -> None:

    def of(steps: int) -> tuple[int, int]:
        policy = moved(denoiser(steps=steps))
        batch = drawn(policy)
        grads = {"log_prob": torch.ones(batch.action.mask.shape)}
        measured = policy.likelihood(batch, None, frozenset({"log_prob"}))
        step_by_step = saved_bytes(lambda: policy.backward(batch, None, measured, grads))
        return step_by_step, saved_bytes(lambda: full_graph(policy, batch)["log_prob"].sum().backward())

    ours, full = zip(*(of(steps) for steps in (3, 6, 12)), strict=True)
    assert ours[0] > 0 and max(ours) == min(ours)
    # The count can see growth: a graph of all steps holds that many times more.
    assert full[2] > 3.5 * full[0]


@pytest.mark.parametrize("objective", [REBEL(anchor="old"), DPO(beta=0.5, anchor="old"), PMPO(alpha=0.5, beta=1.0)])
@pytest.mark.parametrize("scale", [1.0, 1 / 64])
def test_an_update_through_the_learner_is_one_through_the_full_graph(objective: Any, scale: float) -> None:
    policy = moved(denoiser())
    reference = AdaptersOff(policy)
    batch = drawn(policy, Labels if isinstance(objective, PMPO) else Rewards)
    moved(policy, seed=2)
    scaled = ScaledLogProb(objective=objective, log_prob_scale=scale)
    target = scaled.prepare(batch, None)
    expected = full_graph(policy, batch, reference)
    loss = scaled(Likelihood(mask=batch.action.mask, **expected), target).total(target.size)
    loss.backward()
    full = gradients(policy)
    learner = Learner(policy, scaled, reference, {"policy": torch.optim.SGD(list(policy.parameters()), lr=0.0)})
    kept: dict[str, torch.Tensor] = {}
    learner._zero_grad = lambda: kept.update(gradients(policy))  # type: ignore[method-assign]
    learner.max_grad_norm = 0.0
    figures = learner.update(batch, monitor=True)
    assert figures["loss"] == pytest.approx(loss.item(), rel=1e-4)
    size = math.sqrt(sum(float(part.square().sum()) for part in full.values()))
    away = math.sqrt(sum(float((kept[name] - part).square().sum()) for name, part in full.items()))
    assert size > 0 and away / size < 1e-4
    # Reported KLs are in nats, whatever the scale.
    total = expected["ref_kl"].sum(-1).mean().item()
    assert figures["kl_ref_policy_on_rows"] == pytest.approx(total, rel=1e-3)


def test_micro_batches_give_the_same_gradient() -> None:
    kept = []
    for size in (0, 1, 2):
        policy = moved(denoiser())
        batch = drawn(policy)
        moved(policy, seed=2)
        objective = REBEL(anchor="old")
        learner = Learner(
            policy, objective, None, {"policy": torch.optim.SGD(list(policy.parameters()), lr=0.0)},
            micro_batch_size=size, max_grad_norm=0.0,
        )  # fmt: skip
        found: dict[str, torch.Tensor] = {}
        learner._zero_grad = lambda p=policy, f=found: f.update(gradients(p))  # type: ignore[method-assign]
        learner.update(batch)
        kept.append(found)
    assert_near(kept[1], kept[0])
    assert_near(kept[2], kept[0])


def test_samples_are_the_stock_pipelines_where_it_draws_the_same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    for guidance in (1.0, 3.0):
        pipeline = tiny_pipeline()
        pipeline.set_progress_bar_config(disable=True)
        policy = make_denoiser(pipeline, SamplerSettings(num_steps=4, lora_rank=2, guidance=guidance))
        action = policy.sample(policy.context(["a b"]), 1, torch.Generator().manual_seed(0))
        queue = list(torch.randn(1, 1, 5, *policy.shape, generator=torch.Generator().manual_seed(0))[0, 0, 1:])
        monkeypatch.setattr(
            "diffusers.schedulers.scheduling_lcm.randn_tensor", lambda *_, _queue=queue, **__: _queue.pop(0)[None]
        )
        assert action.initial_latent is not None and action.output is not None
        theirs = pipeline(
            "a b", num_inference_steps=4, guidance_scale=guidance, latents=action.initial_latent[0].clone(),
            output_type="pil", original_inference_steps=50,
        ).images[0]  # fmt: skip
        away = torch.tensor(list(theirs.tobytes())) - torch.tensor(list(action.output[0][0].tobytes()))
        assert int(away.abs().max()) <= 1


def test_samples_do_not_depend_on_how_many_go_through_together(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = denoiser()
    context = policy.context(["a", "b", "c"])
    whole = policy.sample(context, 2, torch.Generator().manual_seed(0))
    monkeypatch.setattr("valence.policies.denoiser.TOGETHER", 1)
    parts = policy.sample(context, 2, torch.Generator().manual_seed(0))
    torch.testing.assert_close(parts.steps, whole.steps)


def test_guidance_from_without_is_the_two_predictions_weighed() -> None:
    plain = denoiser(embedded_guidance=False, scheduler=DDIMScheduler())
    guided = denoiser(embedded_guidance=False, scheduler=DDIMScheduler(), guidance=3.0)
    context, empty = guided.context(["a"]), guided.context([""])
    x = torch.randn(1, 1, *plain.shape, generator=torch.Generator().manual_seed(0))
    rows = x.flatten(0, 1)
    prompted, unprompted = (plain._predict(rows, 500, each.embedding) for each in (context, empty))
    torch.testing.assert_close(guided._predict(rows, 500, context.embedding), unprompted + 3 * (prompted - unprompted))


@pytest.mark.parametrize("lora", [0, 2])
def test_a_frozen_copy_stays_and_can_be_refreshed(lora: int) -> None:
    policy = moved(denoiser(lora=lora))
    reference = FrozenCopy(policy, refresh_every=2)
    batch, asked = drawn(policy), frozenset({"log_prob", "ref_kl", "ref_log_prob"})
    before = policy.likelihood(batch, reference, asked)
    assert before.ref_kl is not None and float(before.ref_kl.abs().max()) == 0
    live = {name: part.detach().clone() for name, part in policy.named_parameters()}
    moved(policy, seed=5)
    after = policy.likelihood(batch, reference, asked)
    assert after.ref_kl is not None and float(after.ref_kl.sum()) > 0
    torch.testing.assert_close(after.ref_log_prob, before.log_prob)
    with reference.active() as copied:
        drawn_by_copy = copied.sample(batch.context, 2, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn_by_copy.steps, batch.action.steps)
    assert any(not torch.equal(part, live[name]) for name, part in policy.named_parameters())
    reference.after_step(policy, 1)
    assert float(policy.likelihood(batch, reference, asked).ref_kl.sum()) > 0
    reference.after_step(policy, 2)
    assert float(policy.likelihood(batch, reference, asked).ref_kl.abs().max()) == 0
    assert set(reference.trainable()) == set(policy.trainable())


def test_adapters_begin_as_the_base_and_only_they_learn() -> None:
    policy = denoiser()
    names = list(policy.trainable())
    assert names and all("lora_" in name for name in names)
    batch = drawn(policy)
    found = policy.likelihood(batch, AdaptersOff(policy), frozenset({"ref_kl"}))
    assert float(found.ref_kl.abs().max()) == 0
    assert all(f"{part}.lora_A" in " ".join(names) for part in ("to_q", "to_k", "to_v", "to_out.0"))


def same(first: Action, second: Action) -> None:
    torch.testing.assert_close(second.steps, first.steps, rtol=1e-4, atol=1e-4)


def test_adapters_are_written_as_diffusers_reads_them(tmp_path: Path) -> None:
    policy = moved(denoiser(lora=3))
    action = drawn(policy).action
    policy.save(tmp_path / "model")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["pytorch_lora_weights.safetensors"]
    fresh = tiny_pipeline()
    fresh.load_lora_weights(tmp_path / "model")
    # Its alpha of 2 at rank 3 is in the file: without it the images differ.
    other = make_denoiser(fresh, SamplerSettings(num_steps=4, lora_rank=0))
    same(action, drawn(other).action)
    bare = drawn(make_denoiser(tiny_pipeline(), SamplerSettings(num_steps=4, lora_rank=0))).action
    assert not torch.allclose(bare.steps, action.steps, atol=1e-3)


def test_a_whole_network_is_written_as_a_pipeline(tmp_path: Path) -> None:
    policy = moved(denoiser(lora=0))
    action = drawn(policy).action
    policy.save(tmp_path / "model")
    loaded = load_pipeline(str(tmp_path / "model"))
    assert isinstance(loaded, LatentConsistencyModelPipeline)
    same(action, drawn(make_denoiser(loaded, SamplerSettings(num_steps=4, lora_rank=0))).action)


def test_a_pipeline_without_prompts_or_autoencoder(tmp_path: Path) -> None:
    from diffusers import DDIMPipeline, UNet2DModel

    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
    )  # fmt: skip
    with pytest.raises(UserError, match="`lora_rank=0`"):
        make_denoiser(DDIMPipeline(network, DDIMScheduler()), SamplerSettings(num_steps=3, lora_rank=2))
    policy = make_denoiser(DDIMPipeline(network, DDIMScheduler()), SamplerSettings(num_steps=3, lora_rank=0))
    action = policy.sample(policy.context(["", ""]), 2, torch.Generator().manual_seed(0))
    assert action.steps.shape == (2, 2, 3, 1, 8, 8) and action.output is not None
    assert action.output[1][1].mode == "RGB" and action.output[1][1].size == (8, 8)
    policy.save(tmp_path / "model")
    assert isinstance(load_pipeline(str(tmp_path / "model")), DDIMPipeline)


def test_mixed_precision_and_checkpointing_stay_close() -> None:
    plain, half, thrifty = (
        moved(denoiser(**more)) for more in ({}, {"dtype": "bfloat16"}, {"gradient_checkpointing": True})
    )
    batch = drawn(plain)
    asked = frozenset({"log_prob"})
    expected = plain.likelihood(batch, None, asked).log_prob
    assert all(part.dtype == torch.float32 for part in half.parameters())
    near = half.likelihood(drawn(half), None, asked).log_prob
    assert near.dtype == torch.float32 and torch.isfinite(near).all()
    grads = {"log_prob": torch.ones_like(expected)}
    found = []
    for policy in (plain, thrifty):
        policy.backward(batch, None, policy.likelihood(batch, None, asked), grads)
        found.append(gradients(policy))
    assert_near(found[1], found[0])


def test_what_cannot_be_a_policy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be loaded"):
        load_pipeline(str(tmp_path / "nothing"))
    pipeline = tiny_pipeline()
    two = copy.copy(pipeline)
    object.__setattr__(two, "text_encoder_2", pipeline.text_encoder)
    with pytest.raises(UserError, match="two text encoders"):
        make_denoiser(two)
    with pytest.raises(UserError, match="no U-Net"):
        make_denoiser(DiffusionPipeline())
    with pytest.raises(ValueError, match="reference"):
        policy = denoiser()
        policy.likelihood(drawn(policy), None, frozenset({"ref_kl"}))


def test_the_density_known_from_drawing_is_the_measured_one() -> None:
    policy = moved(denoiser())
    context = policy.context(["a", "b"])
    action, expected = policy.draw(context, 3, torch.Generator().manual_seed(0))
    present = torch.ones(2, 3, dtype=torch.bool)
    found = policy.likelihood(Batch(context, action, Labels(present.long(), present)), None, frozenset({"log_prob"}))
    torch.testing.assert_close(expected, found.log_prob, rtol=1e-5, atol=1e-4)
    assert float(expected[..., -1].abs().max()) == 0
