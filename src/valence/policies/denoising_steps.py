"""The steps of a diffusion sampler as Normals, computed from the scheduler's `alphas_cumprod` alone.

With a the cumulative product at a step's time, a' at the next step's, o the network's output for x, and

    x0 = (x - sqrt(1-a) o) / sqrt(a)    if o predicts the noise; sqrt(a) x - sqrt(1-a) o for v; o itself for x0
    e  = (x - sqrt(a) x0) / sqrt(1-a)

one step draws x' ~ N(mean, scale^2 I):

    consistency (LCM)   mean = sqrt(a') (c_out x0 + c_skip x),            scale^2 = 1 - a'
    DDIM                mean = sqrt(a') x0 + sqrt(1 - a' - scale^2) e,    scale^2 = z^2 (1-a')/(1-a) (1 - a/a')
    DDPM                mean = sqrt(a') (1 - a/a')/(1-a) x0 + sqrt(a/a') (1-a')/(1-a) x,    scale as DDIM's with z = 1

A step of scale 0 draws nothing: it has no density, and is masked in an action. LCM's last step is one.

Sources: Luo et al. 2023 (latent consistency models), Eq. 9 and algorithm 1; Song et al. 2021 (DDIM), Eq. 12 and 16;
Ho et al. 2020 (DDPM), Eq. 7.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from valence.errors import UserError

PREDICTIONS = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class DenoisingStep:
    """One step's Normal: mean = keep x + clean x0 + noise e, standard deviation `scale`.

    Args:
        time: the time that the network reads.
        alpha, sigma: sqrt(a) and sqrt(1 - a) at that time.
        prediction: what the network predicts: "epsilon", "v_prediction" or "sample".
        limit: the mean's `clean` part clips x0 to [-limit, limit]; None does not clip.
    """

    time: int
    alpha: float
    sigma: float
    keep: float
    clean: float
    noise: float
    scale: float
    prediction: str = "epsilon"
    limit: float | None = None

    def mean(self, x: Tensor, output: Tensor) -> Tensor:
        """The mean of x' for each x, from the network's output: in float32 at least, differentiable in both."""
        x, output = (part.to(torch.promote_types(part.dtype, torch.float32)) for part in (x, output))
        if self.prediction == "epsilon":
            x0 = (x - self.sigma * output) / self.alpha
        elif self.prediction == "v_prediction":
            x0 = self.alpha * x - self.sigma * output
        else:
            x0 = output
        mean = self.clean * (x0 if self.limit is None else x0.clamp(-self.limit, self.limit))
        if self.keep:
            mean = mean + self.keep * x
        if self.noise:
            mean = mean + self.noise * (x - self.alpha * x0) / self.sigma
        return mean


def make_steps(scheduler: Any, num_steps: int, *, stochasticity: float = 1.0) -> tuple[DenoisingStep, ...]:
    """The steps of a diffusers scheduler, first to last.

    Args:
        scheduler: an LCM, DDIM or DDPM scheduler; any other with `alphas_cumprod` and a prediction type is sampled
            as DDIM. It is not changed.
        num_steps: T; one is too few for most samplers, whose last step adds no noise.
        stochasticity: z of DDIM, in (0, 1]; 1 adds as much noise as DDPM.
    Raises:
        UserError: `num_steps` does not fit the scheduler, no step draws anything, or the scheduler is not supported.
    """
    _check(scheduler)
    kind = type(scheduler).__name__
    if kind not in ("LCMScheduler", "DDIMScheduler", "DDPMScheduler"):
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        scheduler, kind = DDIMScheduler.from_config(scheduler.config), "DDIMScheduler"
    try:
        sampler = copy.deepcopy(scheduler)
        sampler.set_timesteps(num_steps)
    except ValueError as error:
        raise UserError(f"`num_steps` is {num_steps}, which does not fit {kind}: {error}") from error
    times = sampler.timesteps.tolist()
    steps = tuple(_step(scheduler, times, place, stochasticity) for place in range(len(times)))
    if not any(step.scale > 0 for step in steps):
        raise UserError(f"none of the {len(steps)} steps of {kind} adds noise: there is no density to learn from")
    return steps


def _check(scheduler: Any) -> None:
    config, kind = scheduler.config, type(scheduler).__name__
    wrong = next((why for why, bad in (
        ("has no alphas_cumprod (flow matching and sigma schedules are not supported)",
         not hasattr(scheduler, "alphas_cumprod")),
        (f"predicts {config.get('prediction_type')!r}", config.get("prediction_type", "epsilon") not in PREDICTIONS),
        ("thresholds its prediction dynamically", bool(config.get("thresholding"))),
        (f"has a variance of kind {config.get('variance_type')!r}",
         kind == "DDPMScheduler" and config.get("variance_type") not in ("fixed_small", "fixed_small_log")),
    ) if bad), None)  # fmt: skip
    if wrong:
        raise UserError(f"the pipeline's {kind} {wrong}: give a pipeline with an LCM, DDIM or DDPM scheduler")


def _product(scheduler: Any, time: int) -> float:
    return float(scheduler.alphas_cumprod[time]) if time >= 0 else float(getattr(scheduler, "final_alpha_cumprod", 1.0))


def _step(scheduler: Any, times: list[int], place: int, stochasticity: float) -> DenoisingStep:
    """The step at `times[place]`, by the equations of this module's docstring: `now` is a, `after` is a'."""
    kind, config, time = type(scheduler).__name__, scheduler.config, times[place]
    now = _product(scheduler, time)
    if kind == "DDIMScheduler":
        after = _product(scheduler, time - config.num_train_timesteps // len(times))
    else:
        after = 1.0 if place == len(times) - 1 else _product(scheduler, times[place + 1])
    keep = noise = 0.0
    if kind == "LCMScheduler":
        # The last step returns its estimate of x0 without noise.
        skip, out = scheduler.get_scalings_for_boundary_condition_discrete(time)
        keep, clean, scale = math.sqrt(after) * float(skip), math.sqrt(after) * float(out), math.sqrt(1 - after)
    elif kind == "DDIMScheduler":
        scale = stochasticity * math.sqrt(max(0.0, (1 - after) / (1 - now) * (1 - now / after)))
        clean, noise = math.sqrt(after), math.sqrt(max(0.0, 1 - after - scale**2))
    else:
        beta = 1 - now / after
        keep, clean = math.sqrt(now / after) * (1 - after) / (1 - now), math.sqrt(after) * beta / (1 - now)
        scale = 0.0 if time == 0 else math.sqrt(max(0.0, (1 - after) / (1 - now) * beta))
    limit = float(config.get("clip_sample_range", 1.0)) if config.get("clip_sample") else None
    prediction = config.get("prediction_type", "epsilon")
    return DenoisingStep(time, math.sqrt(now), math.sqrt(1 - now), keep, clean, noise, scale, prediction, limit)
