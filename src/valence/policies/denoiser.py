"""Denoisers as policies: an action is the path from noise to image, T Normals of which the last may draw nothing.

`Denoiser` holds a diffusers pipeline as it is; `valence.policies.denoising_steps` says what its sampler's steps are.
The context is an `ImageContext`. An action's `initial_latent` is the noise `[N, K, C, H, W]` and `steps[:, :, t]` is
what step t drew, `[N, K, T, C, H, W]`; `mask` is False where a step drew nothing and has no density. log pi is a sum
over the latent's D = C H W dimensions and over steps, in nats.

Both Normals of a step have one variance, so

    KL(pi_ref || pi) = KL(pi || pi_ref) = |mean - mean_ref|^2 / (2 scale^2).

Measuring keeps no graph. The pull-back walks the path once more, step by step, each step's graph gone before the next
one's is made: autograd holds one step whatever T is.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from valence.policies.denoising_steps import DenoisingStep
from valence.protocols import Reference
from valence.types import Action, Batch, Likelihood

TOGETHER = 256
"""Images drawn, measured or decoded at a time."""
REFERENCED = frozenset({"ref_log_prob", "ref_kl", "policy_kl"})


@dataclass(frozen=True)
class ImageContext:
    """N prompts, as text and as the network reads them.

    Args:
        prompts: N texts.
        embedding: `[N, L, E]`; None for a network that reads none.
    """

    prompts: Sequence[str]
    embedding: Float[Tensor, "N L E"] | None = None

    def select(self, rows: slice) -> ImageContext:
        return ImageContext(self.prompts[rows], None if self.embedding is None else self.embedding[rows])


@dataclass(frozen=True)
class Guidance:
    """How strongly the prompt is followed.

    Args:
        scale: w; 1 follows the conditional prediction alone.
        embedding: what a network that was distilled under guidance is told of it, `[1, E]`; it is then not guided from
            without.
        unprompted: the empty prompt's embedding, `[1, L, E]`, where the prediction is guided from without: o(empty) +
            w (o(prompt) - o(empty)).
    """

    scale: float = 1.0
    embedding: Float[Tensor, "1 E"] | None = None
    unprompted: Float[Tensor, "1 L E"] | None = None


class Denoiser:
    """A diffusers pipeline as a policy.

    Args:
        network: its denoising network, which is what learns.
        steps: of its sampler.
        shape: (C, H, W) of the latent.
        read: N prompts to `[N, L, E]`, or to None.
        decode: latents `[R, C, H, W]` to R PIL images.
        write: writes the policy to a folder, as diffusers loads it.
        guidance: see there.
        mixed_precision: where given, the network runs in it (autocast); means and densities are in float32.
        adapters: the network holds LoRA adapters, and only they learn.
    """

    def __init__(
        self, network: Any, steps: Sequence[DenoisingStep], shape: tuple[int, int, int], *,
        read: Callable[[Sequence[str]], Tensor | None], decode: Callable[[Tensor], list[Any]],
        write: Callable[[Path], None], guidance: Guidance = Guidance(), mixed_precision: torch.dtype | None = None,
        adapters: bool = False,
    ) -> None:  # fmt: skip
        self.network, self.steps, self.shape = network, tuple(steps), shape
        self.read, self.decode, self.write = read, decode, write
        self.guidance, self.mixed_precision, self.adapters = guidance, mixed_precision, adapters

    # What learns.

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def dimensions(self) -> int:
        """D, numbers in a latent."""
        return math.prod(self.shape)

    def parameters(self) -> Iterator[nn.Parameter]:
        return (part for _, part in self.named_parameters())

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Those that learn: a reference never needs the others."""
        return ((name, part) for name, part in self.network.named_parameters() if part.requires_grad)

    def trainable(self) -> dict[str, nn.Parameter]:
        return dict(self.named_parameters())

    def frozen_copy(self, *, dtype: torch.dtype | None = None, device: str | None = None) -> Denoiser:
        """A copy that does not learn. Under LoRA it holds the adapters' numbers alone and shares the network."""
        return _AdapterCopy(self) if self.adapters else _NetworkCopy(self, dtype, device)

    @contextlib.contextmanager
    def adapters_off(self) -> Iterator[Denoiser]:
        """Inside, this policy is its base: LoRA's reference, no second copy."""
        self.network.disable_adapters()
        try:
            yield self
        finally:
            self.network.enable_adapters()

    def save(self, folder: Path) -> None:
        """Write what diffusers loads: a pipeline, or under LoRA its `pytorch_lora_weights.safetensors`."""
        self.write(folder)

    # What it does.

    def context(self, prompts: Sequence[str]) -> ImageContext:
        """Prompts as the network reads them."""
        return ImageContext(tuple(prompts), self.read(prompts))

    def sample(self, context: ImageContext, num_samples: int, generator: torch.Generator) -> Action:
        """Draw and decode `num_samples` images for each prompt. The generator is the CPU's, whatever the device."""
        return self.draw(context, num_samples, generator)[0]

    @torch.no_grad()
    def draw(
        self, context: ImageContext, num_samples: int, generator: torch.Generator
    ) -> tuple[Action, Float[Tensor, "N K T"]]:
        """As `sample`, with log pi of every step, which costs nothing on the way: sampler and policy are one here."""
        shape = (len(context.prompts), num_samples, *self.shape)
        # All noise is drawn first: what is drawn does not depend on how many images go through the network together.
        noise = torch.randn(shape[0], num_samples, 1 + len(self.steps), *self.shape, generator=generator)
        noise = noise.to(self.device)
        x, drawn, densities = noise[:, :, 0], [], []
        for place, step in enumerate(self.steps):
            mean = self.mean(context, x, step)
            x = mean + step.scale * noise[:, :, place + 1]
            drawn.append(x)
            densities.append(log_density(x, mean, step.scale) if step.scale else torch.zeros_like(x[:, :, 0, 0, 0]))
        images = [image for part in x.flatten(0, 1).split(TOGETHER) for image in self.decode(part)]
        output = [images[row : row + num_samples] for row in range(0, len(images), num_samples)]
        steps = torch.stack(drawn, dim=2)
        action = Action(steps, self._mask(steps), initial_latent=noise[:, :, 0], output=output)
        return action, torch.stack(densities, dim=-1)

    def _mask(self, steps: Tensor) -> Tensor:
        live = torch.tensor([step.scale > 0 for step in self.steps], device=steps.device)
        return live.expand(*steps.shape[:3]).clone()

    def mean(
        self, context: ImageContext, x: Float[Tensor, "N K C H W"], step: DenoisingStep
    ) -> Float[Tensor, "N K C H W"]:
        """Where a step leads on average, from each x. Differentiable, unless gradients are off."""
        rows, embedding = x.flatten(0, 1), context.embedding
        if embedding is not None:
            embedding = embedding.repeat_interleave(x.shape[1], dim=0)
        whole = range(0, len(rows), len(rows) if torch.is_grad_enabled() else TOGETHER)
        parts = [
            step.mean(
                part, self._predict(part, step.time, None if embedding is None else embedding[at : at + len(part)])
            )
            for at in whole
            for part in [rows[at : at + whole.step]]
        ]
        return torch.cat(parts).view_as(x)

    def _predict(self, x: Float[Tensor, "R C H W"], time: int, embedding: Tensor | None) -> Tensor:
        """The network's output, guided."""
        if embedding is None:
            with self._precision():
                return self.network(x, time).sample
        guidance, more = self.guidance, {}
        if guidance.embedding is not None:
            more["timestep_cond"] = guidance.embedding.expand(len(x), -1)
        if guidance.unprompted is None:
            with self._precision():
                return self.network(x, time, encoder_hidden_states=embedding, **more).sample
        both = torch.cat([guidance.unprompted.expand(len(x), -1, -1), embedding])
        with self._precision():
            free, told = self.network(torch.cat([x, x]), time, encoder_hidden_states=both).sample.chunk(2)
        return free + guidance.scale * (told - free)

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.mixed_precision, enabled=self.mixed_precision is not None)

    def distribution(self, context: ImageContext, action: Action) -> Independent:
        """The T Normals, batch shape `[N, K, T]`; a step that draws nothing is given scale 1. Holds all graphs."""
        pairs = zip(self._before(action), self.steps, strict=True)
        means = torch.stack([self.mean(context, x, step) for x, step in pairs], dim=2)
        scales = means.new_tensor([step.scale or 1.0 for step in self.steps])
        return Independent(Normal(means, scales.view(-1, 1, 1, 1).expand_as(means), validate_args=False), 3)

    def _before(self, action: Action) -> list[Tensor]:
        """Where each step began."""
        assert action.initial_latent is not None
        return [action.initial_latent, *action.steps.unbind(2)[:-1]]

    # Measure and pull back.

    def likelihood(self, batch: Batch, reference: Reference | None, needs: frozenset[str]) -> Likelihood:
        """Per step; without a graph: `backward` makes each step's anew.

        Raises:
            ValueError: a reference quantity is asked for and `reference` is None.
        """
        return self._walk(batch, reference, needs, lambda place: {})

    def backward(
        self, batch: Batch, reference: Reference | None, likelihood: Likelihood, grads: Mapping[str, Tensor]
    ) -> None:
        """Pull back, step by step. Exact: the same gradient as through a graph of all steps."""
        live = {name: grad for name, grad in grads.items() if name in ("log_prob", "ref_kl", "policy_kl")}
        self._walk(batch, reference, frozenset(live) | {"log_prob"}, _at_step(live), skip_flat=True)

    def likelihood_and_backward(
        self, batch: Batch, reference: Reference | None, needs: frozenset[str], grads: Mapping[str, Tensor]
    ) -> Likelihood:
        """Both beats in one walk, where the gradients are known ahead."""
        return self._walk(batch, reference, needs | frozenset(grads), _at_step(grads))

    def _walk(
        self, batch: Batch, reference: Reference | None, needs: frozenset[str],
        grads_at: Callable[[int], Mapping[str, Tensor]], *, skip_flat: bool = False,
    ) -> Likelihood:  # fmt: skip
        """Measure every step that drew something, and pull each step's gradient back where there is one.

        Args:
            grads_at: step -> name -> `[N, K]`, the loss's gradient with respect to that step's quantities.
            skip_flat: leave out steps whose gradients are zero.
        """
        if needs & REFERENCED and reference is None:
            raise ValueError(f"{sorted(needs & REFERENCED)} need a reference policy, and none was given")
        action, context = batch.action, batch.context
        names = sorted((needs & REFERENCED) | {"log_prob"})
        found = {
            name: torch.zeros(action.mask.shape, dtype=action.steps.dtype, device=action.steps.device) for name in names
        }
        for place, (x, step) in enumerate(zip(self._before(action), self.steps, strict=True)):
            mask, grads = action.mask[..., place], grads_at(place)
            if not bool(mask.any()) or (skip_flat and not any(bool(grad.any()) for grad in grads.values())):
                continue
            # The reference first: under LoRA it works on the very network whose graph is then made.
            away = self._reference_mean(context, x, step, reference) if needs & REFERENCED else None
            with torch.set_grad_enabled(bool(grads)):
                mean = self.mean(context, x, step)
                parts = _measure(action.steps[:, :, place], mean, away, step.scale, names)
                kept = {name: part.masked_fill(~mask, 0.0) for name, part in parts.items()}
            live = [name for name in grads if kept[name].requires_grad]
            if live:
                torch.autograd.backward([kept[name] for name in live], [grads[name] for name in live])
            for name, part in kept.items():
                found[name][..., place] = part.detach()
        return Likelihood(mask=action.mask, **found)

    @torch.no_grad()
    def _reference_mean(
        self, context: ImageContext, x: Tensor, step: DenoisingStep, reference: Reference | None
    ) -> Tensor:
        assert reference is not None
        with reference.active() as other:
            return other.mean(context, x, step)


def log_density(x: Float[Tensor, "N K C H W"], mean: Float[Tensor, "N K C H W"], scale: float) -> Float[Tensor, "N K"]:
    """log N(x; mean, scale^2 I), summed over the latent's dimensions, nats."""
    away = (x - mean).flatten(2).square().sum(-1) / (2 * scale**2)
    return -away - mean[0, 0].numel() * (math.log(scale) + math.log(2 * math.pi) / 2)


def _at_step(grads: Mapping[str, Tensor]) -> Callable[[int], Mapping[str, Tensor]]:
    return lambda place: {name: grad[..., place] for name, grad in grads.items()}


def _measure(
    drawn: Tensor, mean: Tensor, reference_mean: Tensor | None, scale: float, names: Sequence[str]
) -> dict[str, Float[Tensor, "N K"]]:
    """The quantities of one step, nats."""
    found: dict[str, Tensor] = {}
    for name in names:
        if name in ("log_prob", "ref_log_prob"):
            middle = mean if name == "log_prob" else reference_mean
            assert middle is not None
            found[name] = log_density(drawn, middle, scale)
        else:
            assert reference_mean is not None
            found[name] = (mean - reference_mean).flatten(2).square().sum(-1) / (2 * scale**2)
    return found


class _Copy(Denoiser):
    """What copies share: they do not learn, and everything but their weights is the original's."""

    def __init__(self, original: Denoiser) -> None:
        self.__dict__.update(original.__dict__)

    def frozen_copy(self, *, dtype: torch.dtype | None = None, device: str | None = None) -> Denoiser:
        return self


class _NetworkCopy(_Copy):
    """A network of its own."""

    def __init__(self, original: Denoiser, dtype: torch.dtype | None, device: str | None) -> None:
        super().__init__(original)
        self._names = [name for name, _ in original.named_parameters()]
        self.network = copy.deepcopy(original.network).requires_grad_(False).to(device=device, dtype=dtype)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        weights = dict(self.network.named_parameters())
        return ((name, weights[name]) for name in self._names)


class _AdapterCopy(_Copy):
    """The adapters' numbers, put into the shared network while it predicts."""

    def __init__(self, original: Denoiser) -> None:
        super().__init__(original)
        self._live = original.trainable()
        self._own = {
            name: nn.Parameter(part.detach().clone(), requires_grad=False) for name, part in self._live.items()
        }

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return iter(self._own.items())

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
