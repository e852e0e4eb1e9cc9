"""The model card that a run writes beside its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

UNIT = {"transformers": "a sequence", "diffusers": "an image"}
LANGUAGE = [
    "`ordinary_text_nll` is nats a token on plain prose: a rise is capability lost. `implicit_reward_accuracy` is how",
    "often log π/π_ref ranks better held-out feedback above worse.",
    "",
]
LOAD = """\
```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{start}", safety_checker=None)
{adapters}images = pipeline(["{prompt}"], {sampled}).images
```"""
"""How the images of a run are drawn again; diffusers' own defaults of steps and guidance draw others."""
IMAGES = [
    "`pixel_spread` is how much images of one prompt differ, from 0 to 1; `gold` the judge that was only watched.",
    "A run with adapters holds them alone, for the pipeline's `load_lora_weights`.",
    "",
]


def write_model_card(
    folder: Path, facts: Mapping[str, str], before: Mapping[str, float], after: Mapping[str, float], *,
    library: str = "transformers",
) -> None:  # fmt: skip
    """Write `README.md`: what was done to which model with what feedback, and the figures before and after.

    Args:
        library: what loads it: transformers or diffusers.
    """
    lines = ["---", f"library_name: {library}", "tags: [valence, alignment]", "---", "", "# Aligned with Valence", ""]
    lines += [f"- **{name}**: {value}" for name, value in facts.items()]
    lines += ["", "| measure | before | after |", "|---|---|---|"]
    lines += [f"| {name} | {before.get(name, float('nan')):.4f} | {after[name]:.4f} |" for name in after]
    lines += [
        "",
        f"`kl_policy_ref` is KL(π‖π_ref) and `kl_ref_policy` KL(π_ref‖π), nats {UNIT[library]}, on fresh samples of",
        "the first-named policy.",
        "",
    ]
    if library == "diffusers":
        adapters = facts["learned"] == "adapters"
        start, more = facts["folder"] if adapters else ".", 'pipeline.load_lora_weights(".")\n' if adapters else ""
        told = LOAD.format(start=start, adapters=more, prompt=facts["a prompt"], sampled=facts["sampled with"])
        lines += ["In this folder:", "", told, ""]
    lines += LANGUAGE if library == "transformers" else IMAGES
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")
