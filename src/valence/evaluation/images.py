"""The evaluation of an image policy: the same prompts and seed before, during and after a run, and grids of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from valence.evaluation.language import Drawn, sample_kls, sampled_kl
from valence.evaluation.pictures import grids_section, image_grid, pixel_spread
from valence.evaluation.samples import JudgeSamples, Samples
from valence.policies.denoiser import Denoiser
from valence.protocols import Reference
from valence.sources.prompts import EncodedPrompt

MAX_IMAGES, MAX_GRIDS = 40, 6
"""Images in a grid, and grids in a report."""


class ImageEvaluation:
    """Evaluates an image policy; its figures and images can be compared along a run.

    Args:
        prompts: used in turn.
        num_samples: images per evaluation.
        out: the run's folder; grids are written to `out/grids`.
        judge: samples -> figures.
    """

    card = "diffusers"

    def __init__(
        self, policy: Denoiser, reference: Reference, prompts: Sequence[EncodedPrompt], *, num_samples: int, seed: int,
        out: Path, judge: JudgeSamples,
    ) -> None:  # fmt: skip
        self.policy, self.reference, self.judge, self.out = policy, reference, judge, out
        self.prompt_index = [place % len(prompts) for place in range(num_samples)]
        self.prompts = [str(prompts[place].prompt) for place in self.prompt_index]
        self.columns = min(len(prompts), num_samples, 10)
        self.context = policy.context(self.prompts)
        self.seed = seed + 7919
        with reference.active() as initial:
            self.initial_images, self.initial = self._draw(initial, self.seed)

    def _draw(self, policy: Denoiser, seed: int) -> tuple[list[Any], list[Drawn]]:
        action = policy.sample(self.context, 1, torch.Generator().manual_seed(seed))
        assert action.output is not None
        return [row[0] for row in action.output], [(self.context, action)]

    def __call__(self, step: int) -> dict[str, float]:
        images, drawn = self._draw(self.policy, self.seed)
        kl = sample_kls(self.policy, self.reference, drawn, "policy_kl")
        folder = self.out / "grids"
        folder.mkdir(exist_ok=True)
        image_grid(images[:MAX_IMAGES], self.columns).save(folder / f"step-{step:06d}.png")
        figures = {
            "kl_policy_ref": float(kl.mean()),
            "kl_ref_policy": sampled_kl(self.policy, self.reference, self.initial, "ref_kl"),
            "pixel_spread": pixel_spread(images, self.prompt_index),
        }
        judged = self.judge(Samples(step, self.prompt_index, images, self.initial_images, kl.tolist()))
        return judged | {name: value for name, value in figures.items() if value == value}

    def kl(self, step: int) -> float:
        """KL(pi || pi_ref) on fresh samples, nats per sample."""
        _, drawn = self._draw(self.policy, self.seed + step)
        return sampled_kl(self.policy, self.reference, drawn, "policy_kl")

    def samples(self) -> list[dict[str, str]]:
        """Samples as text: none, since `section` shows the images."""
        return []

    def section(self, last_step: int) -> str:
        """The first grid, the last one up to `last_step`, and a few between, as HTML."""
        paths = sorted((self.out / "grids").glob("step-*.png"))
        grids = [(step, path) for path in paths if (step := int(path.stem.removeprefix("step-"))) <= last_step]
        if len(grids) > MAX_GRIDS:
            grids = [grids[round(place * (len(grids) - 1) / (MAX_GRIDS - 1))] for place in range(MAX_GRIDS)]
        titles = [(f"step {step}" if step else "before (step 0)", path) for step, path in grids]
        # Prompts are used in turn: up to ten have a column each, more continue in the next row.
        if max(self.prompt_index) < self.columns:
            caption = f"one column for each of: {'; '.join(self.prompts[: self.columns])}"
        else:
            caption = f"row by row, in turn: {'; '.join(dict.fromkeys(self.prompts[:MAX_IMAGES]))}"
        return grids_section(titles, f"The same noise at every evaluation; {caption}.")
