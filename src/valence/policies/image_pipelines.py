"""diffusers pipelines as policies: loading by folder or hub id, adapters, and saving as diffusers loads it."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from valence.errors import UserError, one_line
from valence.policies.denoiser import Denoiser, Guidance
from valence.policies.denoising_steps import make_steps
from valence.policies.loading import check_device
from valence.policies.pipeline_parts import PipelineParts, quiet
from valence.policies.sampler_settings import DEFAULTS, PRECISIONS, SMALL, SamplerSettings

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in PRECISIONS}


def small_pipeline_folder() -> Path:
    """The folder of the pipeline that Valence carries."""
    return Path(str(files("valence") / "assets" / SMALL))


def load_pipeline(name: str, *, device: str = "cpu", dtype: str = "float32") -> Any:
    """A diffusers pipeline by folder, hub id, or "small-digits" for the one that Valence carries.

    Raises:
        UserError: it cannot be loaded.
    """
    check_device(device)
    place = str(small_pipeline_folder()) if name == SMALL else name
    try:
        with quiet():
            from diffusers.pipelines.pipeline_utils import DiffusionPipeline

            pipeline = DiffusionPipeline.from_pretrained(place, safety_checker=None, dtype=DTYPES[dtype])
    except (OSError, ValueError, KeyError, AttributeError, ImportError, TypeError) as error:
        raise UserError(
            f"`pipeline` {name} cannot be loaded: {one_line(error, 300)}; give a folder that diffusers can load, a hub "
            f"id, or {SMALL} for the pipeline that Valence carries"
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def load_denoiser(name: str, settings: SamplerSettings = DEFAULTS, *, device: str = "cpu") -> Denoiser:
    """A pipeline as a policy.

    Raises:
        UserError: it cannot be loaded, or the steps of its sampler are no Normals that Valence knows.
    """
    return make_denoiser(load_pipeline(name, device=device, dtype=settings.dtype), settings)


def make_denoiser(pipeline: Any, settings: SamplerSettings = DEFAULTS) -> Denoiser:
    """A pipeline object as a policy. Adapters are added to its network in place; nothing else of it changes.

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
    parts = PipelineParts(pipeline, adapters=bool(settings.lora_rank))
    guidance = _guidance(parts, settings.guidance)
    if settings.lora_rank:
        _add_adapters(network, settings)
    else:
        for part in network.parameters():
            part.data = part.data.float()
            part.requires_grad_(True)
    if settings.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    mixed = None if settings.dtype == "float32" else DTYPES[settings.dtype]
    shape = _latent_shape(network.config)
    return Denoiser(network, steps, shape, parts, guidance=guidance, mixed_precision=mixed, adapters=parts.adapters)


def _add_adapters(network: Any, settings: SamplerSettings) -> None:
    """LoRA on the attention's projections, in float32. Its second matrix is zero, so the policy starts as its base."""
    from peft import LoraConfig

    if not hasattr(network, "add_adapter") or not any(name.endswith("to_q") for name, _ in network.named_modules()):
        raise UserError(
            f"`lora_rank` is {settings.lora_rank}, but {type(network).__name__} takes no adapters on its attention: "
            "`lora_rank=0` trains the whole network"
        )
    rank, alpha = settings.lora_rank, settings.lora_alpha
    network.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=ATTENTION, init_lora_weights="gaussian"))
    for part in network.parameters():
        if part.requires_grad:
            part.data = part.data.float()


def _guidance(parts: PipelineParts, scale: float) -> Guidance:
    network = parts.pipeline.unet
    width = network.config.get("time_cond_proj_dim")
    if width:
        embedding = parts.pipeline.get_guidance_scale_embedding(torch.tensor([scale - 1.0]), embedding_dim=width)
        return Guidance(scale, embedding=embedding.to(network.device, network.dtype))
    if scale == 1:
        return Guidance()
    empty = parts.read([""])
    if empty is None:
        raise UserError(f"`guidance` is {scale:g}, but this pipeline reads no prompts: leave it out")
    return Guidance(scale, unprompted=empty)


def _latent_shape(config: Any) -> tuple[int, int, int]:
    size = config["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    return (config["in_channels"], height, width)
