"""diffusers pipelines as policies: loading by folder or hub id, adapters, and saving as diffusers loads it."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from valence.errors import UserError, one_line
from valence.policies.denoiser import Denoiser, Guidance
from valence.policies.denoising_steps import make_steps
from valence.policies.loading import carried, check_device
from valence.policies.sampler_settings import DEFAULTS, PRECISIONS, SMALL, SamplerSettings

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in PRECISIONS}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, diffusers and transformers print no progress bars and no warnings."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    levels = [(each, each.get_verbosity()) for each in (of_diffusers, of_transformers)]
    for each, _ in levels:
        each.set_verbosity(logging.CRITICAL)
    of_diffusers.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for each, level in levels:
            each.set_verbosity(level)
        of_diffusers.enable_progress_bar()


class PipelineParts:
    """What a denoiser uses of a diffusers pipeline besides its network.

    Args:
        adapters: whether `write` saves the network's adapters alone, or the whole pipeline.
    """

    def __init__(self, pipeline: Any, *, adapters: bool) -> None:
        self.pipeline, self.adapters = pipeline, adapters
        self._embeddings: dict[str, Tensor] = {}

    @torch.no_grad()
    def read(self, prompts: Sequence[str]) -> Tensor | None:
        """Prompts to embeddings; each different prompt is encoded once."""
        if getattr(self.pipeline, "text_encoder", None) is None:
            return None
        tokenizer = self.pipeline.tokenizer
        if new := [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._embeddings]:
            ids = tokenizer(
                new, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
            ).input_ids
            embeddings = self.pipeline.text_encoder(ids.to(self.pipeline.device))[0]
            self._embeddings |= dict(zip(new, embeddings, strict=True))
        return torch.stack([self._embeddings[prompt] for prompt in prompts])

    def too_long(self, prompt: str) -> bool:
        """Whether the text encoder truncates the prompt."""
        if getattr(self.pipeline, "text_encoder", None) is None:
            return False
        return len(self.pipeline.tokenizer(prompt, verbose=False).input_ids) > self.pipeline.tokenizer.model_max_length

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Any]:
        """Latents to PIL images."""
        from PIL import Image

        if (vae := getattr(self.pipeline, "vae", None)) is not None:
            shift = vae.config.get("shift_factor") or 0.0
            latents = vae.decode((latents / vae.config.scaling_factor + shift).to(vae.dtype)).sample
        levels = ((latents.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        pixels = levels.permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(each[..., 0] if each.shape[-1] == 1 else each).convert("RGB") for each in pixels]

    def write(self, folder: Path) -> None:
        """Write the pipeline, or under LoRA the adapters alone."""
        with quiet():
            if not self.adapters:
                self.pipeline.save_pretrained(folder)
                return
            from diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin
            from peft.utils import get_peft_model_state_dict

            # By its own pipeline class where that can, so that its `load_lora_weights` reads them.
            kind, network = type(self.pipeline), self.pipeline.unet
            kind = kind if hasattr(kind, "save_lora_weights") else StableDiffusionLoraLoaderMixin
            kind.save_lora_weights(
                folder, unet_lora_layers=dict(get_peft_model_state_dict(network)),
                unet_lora_adapter_metadata=network.peft_config["default"].to_dict(),
            )  # fmt: skip


def load_pipeline(name: str, *, device: str = "cpu", dtype: str = "float32") -> Any:
    """A diffusers pipeline by folder, hub id, or "small-digits" for the one that Valence carries.

    Raises:
        UserError: it cannot be loaded.
    """
    check_device(device)
    try:
        with quiet():
            from diffusers.pipelines.pipeline_utils import DiffusionPipeline

            pipeline = DiffusionPipeline.from_pretrained(carried(name), safety_checker=None, dtype=DTYPES[dtype])
    except (OSError, ValueError, KeyError, AttributeError, ImportError, TypeError) as error:
        raise UserError(
            f"`pipeline` {name} cannot be loaded: {one_line(error, 300)}; give a folder that diffusers can load, a hub "
            f"id, or {SMALL} for the pipeline that Valence carries"
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def load_denoiser(name: str, settings: SamplerSettings = DEFAULTS, *, device: str = "cpu") -> Denoiser:
    """`make_denoiser` of `load_pipeline`."""
    return make_denoiser(load_pipeline(name, device=device, dtype=settings.dtype), settings)


def make_denoiser(pipeline: Any, settings: SamplerSettings = DEFAULTS) -> Denoiser:
    """A pipeline object as a policy. Adapters are added to its network in place; nothing else of it changes.

    Raises:
        UserError: it has no U-Net or several text encoders, or its sampler's steps are no Normals that Valence knows.
    """
    network, kind = getattr(pipeline, "unet", None), type(pipeline).__name__
    if network is None:
        raise UserError(
            f"{kind} has no U-Net: give a consistency, DDIM or DDPM pipeline (Stable Diffusion 1 and 2 too)"
        )
    if getattr(pipeline, "text_encoder_2", None) is not None:
        raise UserError(f"{kind} has two text encoders, which are not supported: give a pipeline with one")
    for part in (network, getattr(pipeline, "vae", None), getattr(pipeline, "text_encoder", None)):
        if part is not None:
            part.requires_grad_(False).eval()
    steps = make_steps(pipeline.scheduler, settings.num_steps, stochasticity=settings.stochasticity)
    parts = PipelineParts(pipeline, adapters=bool(settings.lora_rank))
    guidance = _guidance(parts, settings.guidance)
    if settings.lora_rank:
        _add_adapters(network, settings)
    else:
        network.requires_grad_(True)
    for part in network.parameters():
        if part.requires_grad:
            part.data = part.data.float()
    if settings.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    mixed = None if settings.dtype == "float32" else DTYPES[settings.dtype]
    size = network.config["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    shape = (network.config["in_channels"], height, width)
    return Denoiser(network, steps, shape, parts, guidance=guidance, mixed_precision=mixed, adapters=parts.adapters)


def _add_adapters(network: Any, settings: SamplerSettings) -> None:
    """LoRA on the attention's projections. Its second matrix is zero, so the policy starts as its base."""
    from peft import LoraConfig

    if not hasattr(network, "add_adapter") or not any(name.endswith("to_q") for name, _ in network.named_modules()):
        raise UserError(
            f"`lora_rank` is {settings.lora_rank}, but {type(network).__name__} takes no adapters on its attention: "
            "`lora_rank=0` trains the whole network"
        )
    rank, alpha = settings.lora_rank, settings.lora_alpha
    network.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=ATTENTION, init_lora_weights="gaussian"))


def _guidance(parts: PipelineParts, scale: float) -> Guidance:
    network = parts.pipeline.unet
    if width := network.config.get("time_cond_proj_dim"):
        embedding = parts.pipeline.get_guidance_scale_embedding(torch.tensor([scale - 1.0]), embedding_dim=width)
        return Guidance(scale, embedding=embedding.to(network.device, network.dtype))
    if scale == 1:
        return Guidance()
    empty = parts.read([""])
    if empty is None:
        raise UserError(f"`guidance` is {scale:g}, but this pipeline reads no prompts: leave it out")
    return Guidance(scale, unprompted=empty)
