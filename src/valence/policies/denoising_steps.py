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
    if kind not in MAKERS:
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        scheduler, kind = DDIMScheduler.from_config(scheduler.config), "DDIMScheduler"
    try:
        times = _times(scheduler, num_steps)
    except ValueError as error:
        raise UserError(f"`num_steps` is {num_steps}, which does not fit {kind}: {error}") from error
    make = MAKERS[kind]
    steps = tuple(make(scheduler, times, place, stochasticity) for place in range(len(times)))
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


def _times(scheduler: Any, num_steps: int) -> list[int]:
    """The times that the sampler visits, without touching the scheduler."""
    own = copy.deepcopy(scheduler)
    own.set_timesteps(num_steps)
    return own.timesteps.tolist()


def _product(scheduler: Any, time: int) -> float:
    return float(scheduler.alphas_cumprod[time]) if time >= 0 else float(getattr(scheduler, "final_alpha_cumprod", 1.0))


def _limit(scheduler: Any) -> float | None:
    return float(scheduler.config.get("clip_sample_range", 1.0)) if scheduler.config.get("clip_sample") else None


def _parts(scheduler: Any, time: int) -> dict[str, Any]:
    """The parts of a step that depend only on its time."""
    product = _product(scheduler, time)
    return {
        "time": time, "alpha": math.sqrt(product), "sigma": math.sqrt(1 - product), "limit": _limit(scheduler),
        "prediction": scheduler.config.get("prediction_type", "epsilon"),
    }  # fmt: skip


def _consistency(scheduler: Any, times: list[int], place: int, _: float) -> DenoisingStep:
    skip, out = scheduler.get_scalings_for_boundary_condition_discrete(times[place])
    last = place == len(times) - 1
    after = 1.0 if last else _product(scheduler, times[place + 1])
    # The last step returns its estimate of x0 without noise.
    root = math.sqrt(after)
    parts = _parts(scheduler, times[place])
    return DenoisingStep(
        **parts, keep=root * float(skip), clean=root * float(out), noise=0.0, scale=math.sqrt(1 - after)
    )


def _implicit(scheduler: Any, times: list[int], place: int, stochasticity: float) -> DenoisingStep:
    gap = scheduler.config.num_train_timesteps // len(times)
    now, after = _product(scheduler, times[place]), _product(scheduler, times[place] - gap)
    scale = stochasticity * math.sqrt(max(0.0, (1 - after) / (1 - now) * (1 - now / after)))
    noise = math.sqrt(max(0.0, 1 - after - scale**2))
    return DenoisingStep(**_parts(scheduler, times[place]), keep=0.0, clean=math.sqrt(after), noise=noise, scale=scale)


def _ancestral(scheduler: Any, times: list[int], place: int, _: float) -> DenoisingStep:
    now = _product(scheduler, times[place])
    last = place == len(times) - 1
    after = 1.0 if last else _product(scheduler, times[place + 1])
    beta = 1 - now / after
    keep, clean = math.sqrt(now / after) * (1 - after) / (1 - now), math.sqrt(after) * beta / (1 - now)
    scale = 0.0 if times[place] == 0 else math.sqrt(max(0.0, (1 - after) / (1 - now) * beta))
    return DenoisingStep(**_parts(scheduler, times[place]), keep=keep, clean=clean, noise=0.0, scale=scale)


MAKERS = {"LCMScheduler": _consistency, "DDIMScheduler": _implicit, "DDPMScheduler": _ancestral}
