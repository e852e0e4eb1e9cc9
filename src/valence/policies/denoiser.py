"""Denoisers as policies: an action is the path from noise to image, T Normals of which the last may draw nothing.

`Denoiser` holds a diffusers pipeline; `valence.policies.denoising_steps` computes its sampler's steps.
The context is an `ImageContext`. An action's `initial_latent` is the noise `[N, K, C, H, W]` and `steps[:, :, t]` is
what step t drew, `[N, K, T, C, H, W]`; `mask` is False where a step drew nothing and has no density. log pi is a sum
over the latent's D = C H W dimensions and over steps, in nats.

Both Normals of a step have one variance, so

    KL(pi_ref || pi) = KL(pi || pi_ref) = |mean - mean_ref|^2 / (2 scale^2).

Measuring keeps no graph. The pull-back walks the path again and frees each step's graph before it builds the next:
autograd holds one step, whatever T is.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from valence.policies.base import backward_live, referenced
from valence.policies.denoising_steps import DenoisingStep
from valence.protocols import Reference
from valence.types import Action, Batch, Likelihood, Rows


@runtime_checkable
class Pipeline(Protocol):
    """What a denoiser asks of its pipeline; `valence.policies.image_pipelines.PipelineParts` is one."""

    def read(self, prompts: Sequence[str]) -> Tensor | None: ...

    def too_long(self, prompt: str) -> bool: ...

    def decode(self, latents: Tensor) -> Any: ...

    def write(self, folder: Path) -> None: ...


TOGETHER = 256
"""Images drawn, measured or decoded at a time."""


@dataclass(frozen=True)
class ImageContext(Rows):
    """N prompts, as text and as the network reads them.

    Args:
        prompts: N texts.
        embedding: `[N, L, E]`; None for a network that reads no prompt.
    """

    prompts: Sequence[str]
    embedding: Float[Tensor, "N L E"] | None = None


@dataclass(frozen=True)
class Guidance:
    """How strongly the prompt is followed.

    Args:
        scale: w; 1 follows the conditional prediction alone.
        embedding: w as a network distilled under guidance reads it, `[1, E]`; such a network runs once a step.
        unprompted: the empty prompt's embedding, `[1, L, E]`, for other networks: their prediction is
            o(empty) + w (o(prompt) - o(empty)). None where w is 1.
    """

    scale: float = 1.0
    embedding: Float[Tensor, "1 E"] | None = None
    unprompted: Float[Tensor, "1 L E"] | None = None


class Denoiser:
    """A diffusers pipeline as a policy.

    Args:
        network: its denoising network, which learns.
        steps: the steps of its sampler.
        shape: (C, H, W) of the latent.
        pipeline: its other parts.
        guidance: how strongly the prompt is followed.
        mixed_precision: if set, the network runs in it (autocast); means and densities are in float32.
        adapters: the network holds LoRA adapters, and only they learn.
    """

    def __init__(
        self, network: Any, steps: Sequence[DenoisingStep], shape: tuple[int, int, int], pipeline: Pipeline, *,
        guidance: Guidance = Guidance(), mixed_precision: torch.dtype | None = None, adapters: bool = False,
    ) -> None:  # fmt: skip
        self.network, self.steps, self.shape, self.pipeline = network, tuple(steps), shape, pipeline
        self.guidance, self.mixed_precision, self.adapters = guidance, mixed_precision, adapters

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def dimensions(self) -> int:
        """D, the numbers in a latent."""
        return math.prod(self.shape)

    def parameters(self) -> Iterator[nn.Parameter]:
        return (part for _, part in self.named_parameters())

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Under LoRA only the adapters: the others are the reference's too."""
        return (item for item in self.network.named_parameters() if item[1].requires_grad or not self.adapters)

    def trainable(self) -> dict[str, nn.Parameter]:
        return {name: part for name, part in self.named_parameters() if part.requires_grad}

    def frozen_copy(self, *, dtype: torch.dtype | None = None, device: str | None = None) -> Denoiser:
        """A copy that does not learn. Under LoRA it has only adapters of its own and shares the network."""
        if self.adapters:
            return _AdapterCopy(self)
        other = copy.copy(self)
        other.network = copy.deepcopy(self.network).requires_grad_(False).to(device=device, dtype=dtype)
        return other

    @contextlib.contextmanager
    def adapters_off(self) -> Iterator[Denoiser]:
        """Inside, this policy is its base model: LoRA's reference, without a second copy."""
        self.network.disable_adapters()
        try:
            yield self
        finally:
            self.network.enable_adapters()

    def save(self, folder: Path) -> None:
        """Write what diffusers loads: a pipeline, or under LoRA its `pytorch_lora_weights.safetensors`."""
        self.pipeline.write(folder)

    def context(self, prompts: Sequence[str]) -> ImageContext:
        return ImageContext(tuple(prompts), self.pipeline.read(prompts))

    def sample(self, context: ImageContext, num_samples: int, generator: torch.Generator) -> Action:
        """Draw and decode `num_samples` images for each prompt. The generator is the CPU's, whatever the device."""
        return self.draw(context, num_samples, generator)[0]

    @torch.no_grad()
    def draw(
        self, context: ImageContext, num_samples: int, generator: torch.Generator
    ) -> tuple[Action, Float[Tensor, "N K T"]]:
        """As `sample`, with log pi of every step, which costs nothing here: sampling computes the means anyway."""
        shape = (len(context.prompts), num_samples, *self.shape)
        # All noise is drawn first: samples must not depend on how many images run through the network together.
        noise = torch.randn(shape[0], num_samples, 1 + len(self.steps), *self.shape, generator=generator)
        noise = noise.to(self.device)
        x, drawn, densities = noise[:, :, 0], [], []
        for place, step in enumerate(self.steps):
            mean = self.mean(context, x, step)
            x = mean + step.scale * noise[:, :, place + 1]
            drawn.append(x)
            densities.append(log_density(x, mean, step.scale) if step.scale else torch.zeros_like(x[:, :, 0, 0, 0]))
        images = [image for part in x.flatten(0, 1).split(TOGETHER) for image in self.pipeline.decode(part)]
        output = [images[row : row + num_samples] for row in range(0, len(images), num_samples)]
        steps = torch.stack(drawn, dim=2)
        mask = torch.tensor([step.scale > 0 for step in self.steps], device=x.device).expand(steps.shape[:3]).clone()
        return Action(steps, mask, initial_latent=noise[:, :, 0], output=output), torch.stack(densities, dim=-1)

    def mean(
        self, context: ImageContext, x: Float[Tensor, "N K C H W"], step: DenoisingStep
    ) -> Float[Tensor, "N K C H W"]:
        """The mean of a step's Normal, from each x. Differentiable, unless gradients are off."""
        rows, embedding = x.flatten(0, 1), context.embedding
        if embedding is not None:
            embedding = embedding.repeat_interleave(x.shape[1], dim=0)
        parts = rows.split(len(rows) if torch.is_grad_enabled() else TOGETHER)
        prompts = [None] * len(parts) if embedding is None else embedding.split(len(parts[0]))
        pairs = zip(parts, prompts, strict=True)
        return torch.cat([step.mean(part, self._predict(part, step.time, prompt)) for part, prompt in pairs]).view_as(x)

    def _predict(self, x: Float[Tensor, "R C H W"], time: int, embedding: Tensor | None) -> Tensor:
        """The network's output, guided."""
        guidance, inputs, both = self.guidance, {}, False
        if embedding is not None:
            if both := guidance.unprompted is not None:
                embedding = torch.cat([guidance.unprompted.expand(len(x), -1, -1), embedding])
                x = torch.cat([x, x])
            elif guidance.embedding is not None:
                inputs["timestep_cond"] = guidance.embedding.expand(len(x), -1)
            inputs["encoder_hidden_states"] = embedding
        with torch.autocast(self.device.type, self.mixed_precision, enabled=self.mixed_precision is not None):
            output = self.network(x, time, **inputs).sample
        if not both:
            return output
        unprompted, prompted = output.chunk(2)
        return unprompted + guidance.scale * (prompted - unprompted)

    def likelihood(self, batch: Batch, reference: Reference | None, needs: frozenset[str]) -> Likelihood:
        """Per step, without a graph: `backward` builds that of each step.

        Raises:
            ValueError: a reference quantity is in `needs` and `reference` is None.
        """
        return self._walk(batch, reference, needs, {})

    def backward(
        self, batch: Batch, reference: Reference | None, likelihood: Likelihood, grads: Mapping[str, Tensor]
    ) -> None:
        """Pull back, step by step. Exact: the same gradient as through a graph of all steps."""
        self._walk(batch, reference, frozenset(grads), grads, skip_flat=True)

    def likelihood_and_backward(
        self, batch: Batch, reference: Reference | None, needs: frozenset[str], grads: Mapping[str, Tensor]
    ) -> Likelihood:
        return self._walk(batch, reference, needs | frozenset(grads), grads)

    def _walk(
        self, batch: Batch, reference: Reference | None, needs: frozenset[str], all_grads: Mapping[str, Tensor], *,
        skip_flat: bool = False,
    ) -> Likelihood:  # fmt: skip
        """Measure every step that drew something, and pull back its gradient; `skip_flat` skips gradients of zero."""
        asked = referenced(needs, reference)
        action, context = batch.action, batch.context
        measured = {name: action.steps.new_zeros(action.mask.shape) for name in (*asked, "log_prob")}
        assert action.initial_latent is not None
        # Each step starts where the one before it led.
        starts = [action.initial_latent, *action.steps.unbind(2)[:-1]]
        for place, (x, step) in enumerate(zip(starts, self.steps, strict=True)):
            mask, grads = action.mask[..., place], {name: grad[..., place] for name, grad in all_grads.items()}
            if not bool(mask.any()) or (skip_flat and not any(bool(grad.any()) for grad in grads.values())):
                continue
            reference_mean = None
            if asked and reference is not None:
                # The reference first: under LoRA it runs the network whose graph is built next.
                with torch.no_grad(), reference.active() as other:
                    reference_mean = other.mean(context, x, step)
            with torch.set_grad_enabled(bool(grads)):
                mean = self.mean(context, x, step)
                parts = _measure(action.steps[:, :, place], mean, reference_mean, step.scale)
                parts = {name: parts[name].masked_fill(~mask, 0.0) for name in measured}
            backward_live((parts[name], grad) for name, grad in grads.items())
            for name, part in parts.items():
                measured[name][..., place] = part.detach()
        return Likelihood(mask=action.mask, **measured)


def log_density(x: Float[Tensor, "N K C H W"], mean: Float[Tensor, "N K C H W"], scale: float) -> Float[Tensor, "N K"]:
    """log N(x; mean, scale^2 I), summed over the latent's dimensions, nats."""
    distance = (x - mean).flatten(2).square().sum(-1) / (2 * scale**2)
    return -distance - mean[0, 0].numel() * (math.log(scale) + math.log(2 * math.pi) / 2)


def _measure(
    drawn: Tensor, mean: Tensor, reference_mean: Tensor | None, scale: float
) -> dict[str, Float[Tensor, "N K"]]:
    """The quantities of one step, nats."""
    parts = {"log_prob": log_density(drawn, mean, scale)}
    if reference_mean is not None:
        kl = (mean - reference_mean).flatten(2).square().sum(-1) / (2 * scale**2)
        parts |= {"ref_log_prob": log_density(drawn, reference_mean, scale), "ref_kl": kl, "policy_kl": kl}
    return parts


class _AdapterCopy(Denoiser):
    """A policy that does not learn: it has adapters of its own, put into the original's network while it predicts."""

    def __init__(self, original: Denoiser) -> None:
        self.__dict__.update(original.__dict__)
        self._live = original.trainable()
        self._own = {name: nn.Parameter(part.detach().clone(), False) for name, part in self._live.items()}

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return iter(self._own.items())

    def frozen_copy(self, *, dtype: torch.dtype | None = None, device: str | None = None) -> Denoiser:
        return self

    def mean(self, context: ImageContext, x: Tensor, step: DenoisingStep) -> Tensor:
        live = {name: part.data for name, part in self._live.items()}
        try:
            for name, part in self._live.items():
                part.data = self._own[name].data
            with torch.no_grad():
                return super().mean(context, x, step)
        finally:
            for name, part in self._live.items():
                part.data = live[name]
