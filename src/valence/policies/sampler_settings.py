"""How an image pipeline is sampled. In a file of its own, so that a command's help need not load torch."""

from __future__ import annotations

from dataclasses import dataclass

SMALL = "small-digits"
"""The pipeline that Valence carries."""
PRECISIONS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class SamplerSettings:
    """How a pipeline is sampled, and which of its weights learn."""

    num_steps: int = 8
    """Denoising steps from noise to image, T; at least 2."""
    guidance: float = 1.0
    """Guidance scale: how strongly the prompt is followed; 1 uses no guidance."""
    stochasticity: float = 1.0
    """Noise in each DDIM step, in (0, 1]; 1 adds as much as DDPM. Other samplers ignore it."""
    lora_rank: int = 8
    """Rank of the LoRA adapters on the attention's projections; 0 trains the whole network."""
    lora_alpha: int = 8
    """LoRA's alpha: adapters are scaled by alpha / rank."""
    dtype: str = "float32"
    """Precision of frozen weights and matrix products: float32, bfloat16 or float16. Weights that learn are float32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""

    def __post_init__(self) -> None:
        if self.num_steps < 2:
            raise ValueError(
                f"`num_steps` is {self.num_steps}, and must be at least 2: the last step of a sampler adds no noise, "
                "so a single step has no density to learn from"
            )
        if not 0 < self.stochasticity <= 1:
            raise ValueError(f"`stochasticity` is {self.stochasticity}, and must be above 0 and at most 1")
        for name, least in (("lora_rank", 0), ("lora_alpha", 1), ("guidance", 0)):
            if not least <= getattr(self, name) < float("inf"):
                raise ValueError(f"`{name}` is {getattr(self, name)}, and must be finite and at least {least}")
        if self.dtype not in PRECISIONS:
            raise ValueError(f"`dtype` is {self.dtype!r}, and must be one of {', '.join(PRECISIONS)}")


DEFAULTS = SamplerSettings()
