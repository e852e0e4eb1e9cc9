"""The parts of a diffusers pipeline around its denoising network: prompts in, images and files out."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


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
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._embeddings]
        if new:
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

        vae = getattr(self.pipeline, "vae", None)
        if vae is not None:
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
            kind = type(self.pipeline)
            kind = kind if hasattr(kind, "save_lora_weights") else StableDiffusionLoraLoaderMixin
            network = self.pipeline.unet
            kind.save_lora_weights(
                folder, unet_lora_layers=dict(get_peft_model_state_dict(network)),
                unet_lora_adapter_metadata=network.peft_config["default"].to_dict(),
            )  # fmt: skip
