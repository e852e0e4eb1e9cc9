"""diffusers pipelines as policies: loaded by folder or hub id, given adapters, written as diffusers reads them."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from valence.errors import UserError
from valence.policies.denoiser import Denoiser, Guidance
from valence.policies.denoising_steps import make_steps
from valence.policies.loading import check_device
from valence.policies.sampler_settings import DEFAULTS, PRECISIONS, SMALL, SamplerSettings

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in PRECISIONS}


def small_pipeline_folder() -> Path:
    """The pipeline that Valence carries."""
    return Path(str(files("valence") / "assets" / SMALL))


def load_pipeline(name: str, *, device: str = "cpu", dtype: str = "float32") -> Any:
    """A diffusers pipeline by folder, hub id, or "small-digits" for the one that Valence carries.

    Raises:
        UserError: it cannot be loaded.
    """
    check_device(device)
    place = str(small_pipeline_folder()) if name == SMALL else name
    try:
        with _quiet():
            from diffusers.pipelines.pipeline_utils import DiffusionPipeline

            pipeline = DiffusionPipeline.from_pretrained(place, safety_checker=None, dtype=DTYPES[dtype])
    except (OSError, ValueError, KeyError, AttributeError, ImportError, TypeError) as error:
        raise UserError(
            f"--pipeline {name} cannot be loaded: {' '.join(str(error).split())[:300]}; give a folder that diffusers "
            f"can load, a hub id, or {SMALL} for the pipeline that Valence carries"
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's own progress bars and notes, on a terminal that has ours."""
    from diffusers.utils import logging as theirs
    from transformers.utils import logging as models

    levels = [each.get_verbosity() for each in (theirs, models)]
    for each in (theirs, models):
        each.set_verbosity(logging.CRITICAL)
    theirs.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for each, level in zip((theirs, models), levels, strict=True):
            each.set_verbosity(level)
        theirs.enable_progress_bar()


def load_denoiser(name: str, settings: SamplerSettings = DEFAULTS, *, device: str = "cpu") -> Denoiser:
    """A pipeline as a policy.

    Raises:
        UserError: it cannot be loaded, or is of a kind that has no Normal steps here.
    """
    return make_denoiser(load_pipeline(name, device=device, dtype=settings.dtype), settings)


def make_denoiser(pipeline: Any, settings: SamplerSettings = DEFAULTS) -> Denoiser:
    """A pipeline object as a policy. Its network is given adapters in place; nothing else of it changes.

    Raises:
        UserError: it has no U-Net, or more than one text encoder.
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
    reader = _Reader(pipeline)
    guidance = _guidance(pipeline, reader, settings.guidance)
    if settings.lora_rank:
        _add_adapters(network, settings)
    else:
        for part in network.parameters():
            part.data = part.data.float()
            part.requires_grad_(True)
    if settings.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    mixed = None if settings.dtype == "float32" else DTYPES[settings.dtype]
    return Denoiser(
        network, steps, _latent_shape(pipeline), read=reader, decode=_Decoder(pipeline),
        write=_Writer(pipeline, bool(settings.lora_rank)), guidance=guidance, mixed_precision=mixed,
        adapters=bool(settings.lora_rank),
    )  # fmt: skip


def _add_adapters(network: Any, settings: SamplerSettings) -> None:
    """LoRA on the attention's projections, in float32, its second matrix zero: the policy begins as its base."""
    from peft import LoraConfig

    if not hasattr(network, "add_adapter") or not any(name.endswith("to_q") for name, _ in network.named_modules()):
        raise UserError(
            f"--lora-rank {settings.lora_rank}: {type(network).__name__} takes no adapters on its attention: give "
            "--lora-rank 0 to train all of it"
        )
    network.add_adapter(
        LoraConfig(
            r=settings.lora_rank,
            lora_alpha=settings.lora_alpha,
            target_modules=list(ATTENTION),
            init_lora_weights="gaussian",
        )
    )
    for part in network.parameters():
        if part.requires_grad:
            part.data = part.data.float()


def _guidance(pipeline: Any, reader: _Reader, scale: float) -> Guidance:
    network = pipeline.unet
    width = network.config.get("time_cond_proj_dim")
    if width:
        embedding = pipeline.get_guidance_scale_embedding(torch.tensor([scale - 1.0]), embedding_dim=width)
        return Guidance(scale, embedding=embedding.to(network.device, network.dtype))
    if scale == 1:
        return Guidance()
    empty = reader([""])
    if empty is None:
        raise UserError(
            f"--guidance {scale:g} needs a pipeline that reads prompts, and this one does not: leave it out"
        )
    return Guidance(scale, unprompted=empty)


def _latent_shape(pipeline: Any) -> tuple[int, int, int]:
    config = pipeline.unet.config
    size = config["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    return (config["in_channels"], height, width)


class _Reader:
    """Prompts to embeddings; each different prompt is encoded once."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline, self.known = pipeline, dict[str, Tensor]()

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Tensor | None:
        if getattr(self.pipeline, "text_encoder", None) is None:
            return None
        tokenizer = self.pipeline.tokenizer
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.known]
        if new:
            ids = tokenizer(
                new, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
            ).input_ids
            self.known |= dict(zip(new, self.pipeline.text_encoder(ids.to(self.pipeline.device))[0], strict=True))
        return torch.stack([self.known[prompt] for prompt in prompts])

    def too_long(self, prompt: str) -> bool:
        """Whether the encoder would cut it."""
        if getattr(self.pipeline, "text_encoder", None) is None:
            return False
        return len(self.pipeline.tokenizer(prompt, verbose=False).input_ids) > self.pipeline.tokenizer.model_max_length


class _Decoder:
    """Latents to PIL images."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline

    @torch.no_grad()
    def __call__(self, latents: Tensor) -> list[Any]:
        from PIL import Image

        vae = getattr(self.pipeline, "vae", None)
        if vae is not None:
            shift = vae.config.get("shift_factor") or 0.0
            latents = vae.decode((latents / vae.config.scaling_factor + shift).to(vae.dtype)).sample
        pixels = (
            ((latents.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        )
        return [Image.fromarray(each[..., 0] if each.shape[-1] == 1 else each).convert("RGB") for each in pixels]


class _Writer:
    """A policy to a folder."""

    def __init__(self, pipeline: Any, adapters: bool) -> None:
        self.pipeline, self.adapters = pipeline, adapters

    def __call__(self, folder: Path) -> None:
        with _quiet():
            if not self.adapters:
                self.pipeline.save_pretrained(folder)
                return
            from diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin
            from peft.utils import get_peft_model_state_dict

            # Its own pipeline class where that can, so that `load_lora_weights` reads it.
            kind = type(self.pipeline)
            kind = kind if hasattr(kind, "save_lora_weights") else StableDiffusionLoraLoaderMixin
            network = self.pipeline.unet
            kind.save_lora_weights(
                folder, unet_lora_layers=dict(get_peft_model_state_dict(network)),
                unet_lora_adapter_metadata=network.peft_config["default"].to_dict(),
            )  # fmt: skip
