"""The figures and grids of a run on images, before, during and after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from valence.evaluation.pictures import grids_section, image_grid, pixel_spread
from valence.policies.denoiser import Denoiser
from valence.protocols import Reference
from valence.runs.evaluation import JudgeSamples, Sampled
from valence.sources.prompts import EncodedPrompt
from valence.types import Action, Batch, Labels, Likelihood

SHOWN = 40
"""Images in a grid."""


class ImageEvaluation:
    """Always on the same prompts and seed, so that figures and pictures can be compared along a run.

    Args:
        prompts: drawn in turn.
        samples: images a look.
        out: grids are written to `out/grids`.
        judge: samples -> figures.
    """

    card = "diffusers"

    def __init__(
        self, policy: Denoiser, reference: Reference, prompts: Sequence[EncodedPrompt], *, samples: int, seed: int,
        out: Path, judge: JudgeSamples,
    ) -> None:  # fmt: skip
        self.policy, self.reference, self.judge, self.out = policy, reference, judge, out
        self.picked = [place % len(prompts) for place in range(samples)]
        self.prompts = [str(prompts[place].prompt) for place in self.picked]
        self.columns = min(len(prompts), samples, 10)
        self.context = policy.context(self.prompts)
        self.seed = seed + 7919
        with reference.active() as base:
            self.before, self.before_images = self._draw(base, self.seed)

    def _draw(self, policy: Any, seed: int) -> tuple[Batch, list[Any]]:
        action: Action = policy.sample(self.context, 1, torch.Generator().manual_seed(seed))
        assert action.output is not None
        present = torch.ones(len(self.prompts), 1, dtype=torch.bool, device=action.mask.device)
        return Batch(self.context, action, Labels(present.long(), present)), [row[0] for row in action.output]

    def _measure(self, batch: Batch, needs: frozenset[str]) -> Likelihood:
        return self.policy.likelihood(batch, self.reference, needs).total()

    def __call__(self, step: int) -> dict[str, float]:
        batch, images = self._draw(self.policy, self.seed)
        there, back = self._measure(batch, frozenset({"policy_kl"})), self._measure(self.before, frozenset({"ref_kl"}))
        assert there.policy_kl is not None and back.ref_kl is not None
        far = there.policy_kl[:, 0]
        folder = self.out / "grids"
        folder.mkdir(exist_ok=True)
        image_grid(images[:SHOWN], self.columns).save(folder / f"step-{step:06d}.png")
        figures = {
            "kl_policy_ref": float(far.mean()),
            "kl_ref_policy": float(back.ref_kl.mean()),
            "pixel_spread": pixel_spread(images, self.picked),
        }
        judged = self.judge(Sampled(step, self.picked, images, self.before_images, far.tolist()))
        return judged | {name: value for name, value in figures.items() if value == value}

    def kl(self, step: int) -> float:
        """KL(pi || pi_ref) on fresh samples, for the budget."""
        batch, _ = self._draw(self.policy, self.seed + step)
        found = self._measure(batch, frozenset({"policy_kl"})).policy_kl
        assert found is not None
        return float(found.mean())

    def samples(self) -> list[dict[str, str]]:
        """None as text: the images are in `section`."""
        return []

    def section(self, last: int) -> str:
        """The grids along training, as HTML, of steps up to `last`."""
        found = [
            (int(path.stem.removeprefix("step-")), path) for path in sorted((self.out / "grids").glob("step-*.png"))
        ]
        # A first, a last, and a few between: a report is for reading.
        kept = [(step, path) for step, path in found if step <= last]
        shown = kept if len(kept) <= 6 else [kept[round(place * (len(kept) - 1) / 5)] for place in range(6)]
        titles = [(f"step {step}" if step else "before (step 0)", path) for step, path in shown]
        # Prompts are drawn in turn: up to ten have a column each, more go on in the next row.
        aligned = max(self.picked) < self.columns
        told = self.prompts[: self.columns] if aligned else list(dict.fromkeys(self.prompts[:SHOWN]))
        way = "a column each for" if aligned else "row by row, in turn"
        return grids_section(titles, f"The same noise at every look; {way}: {'; '.join(told)}.")
