"""The steps' Normals against diffusers' own schedulers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from valence.errors import UserError
from valence.policies.denoising_steps import make_steps

pytest.importorskip("diffusers")
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler, LCMScheduler, PNDMScheduler

KINDS = {"lcm": LCMScheduler, "ddim": DDIMScheduler, "ddpm": DDPMScheduler}


class Noise:
    """Gives the scheduler noise that is known in advance."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, value: torch.Tensor) -> None:
        for kind in KINDS:
            module = f"diffusers.schedulers.scheduling_{kind}.randn_tensor"
            monkeypatch.setattr(module, lambda *_, **__: value)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_the_schedulers_own(kind: str, prediction: str, clip: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).float()
    Noise(monkeypatch, noise)
    # A far limit would never be reached, and clipping would go untested.
    scheduler = KINDS[kind](prediction_type=prediction, clip_sample=clip, clip_sample_range=0.5)
    steps = make_steps(scheduler, 5)
    scheduler.set_timesteps(5)
    assert [step.time for step in steps] == scheduler.timesteps.tolist()
    more: dict[str, Any] = {"eta": 1.0} if kind == "ddim" else {}
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, 4, generator=generator)
    for time, step in zip(scheduler.timesteps, steps, strict=True):
        output = torch.randn(2, 3, 4, 4, generator=generator)
        theirs = scheduler.step(output, time, x, **more).prev_sample
        torch.testing.assert_close(step.mean(x, output) + step.scale * noise, theirs, rtol=2e-4, atol=2e-4)
        x = theirs
    assert all(step.scale > 0 for step in steps[:-1])


def test_the_last_consistency_step_draws_nothing() -> None:
    scales = [step.scale for step in make_steps(LCMScheduler(), 8)]
    assert len(scales) == 8 and scales[-1] == 0 and min(scales[:-1]) > 0


def test_stochasticity_scales_ddims_noise_and_none_is_refused() -> None:
    full, half = (make_steps(DDIMScheduler(), 4, stochasticity=z) for z in (1.0, 0.5))
    assert [step.scale for step in half] == pytest.approx([step.scale / 2 for step in full])
    with pytest.raises(UserError, match="no density"):
        make_steps(DDIMScheduler(), 4, stochasticity=0.0)


def test_another_scheduler_of_products_is_sampled_as_ddim_and_left_alone() -> None:
    scheduler = PNDMScheduler(steps_offset=1)
    steps = make_steps(scheduler, 6)
    assert scheduler.num_inference_steps is None
    assert steps == make_steps(DDIMScheduler(steps_offset=1), 6)


@pytest.mark.parametrize(
    ("scheduler", "num_steps", "message"),
    [
        (LCMScheduler(), 1, "no density"),
        (LCMScheduler(), 60, "does not fit"),
        (LCMScheduler(thresholding=True), 4, "thresholds"),
        (DDPMScheduler(variance_type="learned"), 4, "variance"),
        (FlowMatchEulerDiscreteScheduler(), 4, "alphas_cumprod"),
    ],
)
def test_what_has_no_normal_is_refused_with_the_reason(scheduler: Any, num_steps: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_steps(scheduler, num_steps)
