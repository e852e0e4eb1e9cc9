"""How an image pipeline is sampled; apart from the pipelines, so that a command's help need not load torch."""

from __future__ import annotations

from dataclasses import dataclass

SMALL = "small-digits"
"""The pipeline that Valence carries."""
PRECISIONS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class SamplerSettings:
    """How a pipeline is sampled and what of it learns."""

    num_steps: int = 8
    """Steps from noise to image: the horizon."""
    guidance: float = 1.0
    """How strongly the prompt is followed; 1 does not strengthen it."""
    stochasticity: float = 1.0
    """DDIM: noise in each step, above 0; 1 as much as DDPM."""
    lora_rank: int = 8
    """Rank of adapters on the attention's projections; 0 trains the whole network."""
    lora_alpha: int = 8
    """LoRA's scale, over the rank."""
    dtype: str = "float32"
    """Of frozen weights and matrix products: float32, bfloat16 or float16. What learns is float32."""
    gradient_checkpointing: bool = False
    """Store less in the pull-back, compute more."""


DEFAULTS = SamplerSettings()
