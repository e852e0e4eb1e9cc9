"""The model card that a run writes beside its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

UNIT = {"transformers": "sequence", "diffusers": "image"}
LANGUAGE_NOTES = [
    "`ordinary_text_nll` is the negative log-likelihood of plain prose in nats per token: a rise is capability lost.",
    "`implicit_reward_accuracy` is how often log π/π_ref ranks the better of two held-out completions higher.",
    "",
]
IMAGE_NOTES = [
    "`pixel_spread` is how much images of one prompt differ, from 0 to 1. `gold` is a judge that the policy did not",
    "learn from. A run with adapters saves only them, for the pipeline's `load_lora_weights`.",
    "",
]
LOAD = """\
To draw images as in the run (diffusers' own defaults of steps and guidance draw others):

```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{folder}", safety_checker=None)
{adapters}images = pipeline(["{prompt}"], {sampling}).images
```
"""


def write_model_card(
    folder: Path, facts: Mapping[str, str], before: Mapping[str, float], after: Mapping[str, float], *,
    library: str = "transformers",
) -> None:  # fmt: skip
    """Write `folder/README.md`: model, method, feedback, and the figures before and after.

    Args:
        facts: settings of the run by name. For diffusers also "folder" (of the initial pipeline), "learned"
            ("adapters" or another text), "a prompt" and "sampled with" (arguments of the pipeline's call).
        before, after: the first and the last evaluation's figures.
        library: what loads the model: "transformers" or "diffusers".
    """
    lines = ["---", f"library_name: {library}", "tags: [valence, alignment]", "---", "", "# Aligned with Valence", ""]
    lines += [f"- **{name}**: {value}" for name, value in facts.items()]
    lines += ["", "| measure | before | after |", "|---|---|---|"]
    lines += [f"| {name} | {before.get(name, float('nan')):.4f} | {after[name]:.4f} |" for name in after]
    lines += [
        "",
        f"`kl_policy_ref` is KL(π‖π_ref) and `kl_ref_policy` is KL(π_ref‖π), both in nats per {UNIT[library]} and on",
        "fresh samples of the policy that is named first.",
        "",
    ]
    if library == "diffusers":
        adapters = facts["learned"] == "adapters"
        text = LOAD.format(
            folder=facts["folder"] if adapters else ".", prompt=facts["a prompt"], sampling=facts["sampled with"],
            adapters='pipeline.load_lora_weights(".")\n' if adapters else "",
        )  # fmt: skip
        lines += [text, *IMAGE_NOTES]
    else:
        lines += LANGUAGE_NOTES
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")
