"""Fresh images as a source of batches: draw, ask what they are worth, put that in each prompt's own units.

As `valence.sources.online`, of which this is the form for denoisers: a context is a prompt, an action a path from noise
to image. Rewards are standardised prompt by prompt (`valence.feedback.running`) before a KL's price comes off them;
`figures` hold them as they were given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from valence.feedback.running import RunningStandard
from valence.sources.online import OnlineSource
from valence.sources.prompts import EncodedPrompt
from valence.types import Action, Batch, Likelihood


def image_prompt(prompt: str, metadata: dict[str, Any] | None = None) -> EncodedPrompt:
    """A prompt for images; its row's other fields go to the reward as `metadata`."""
    return EncodedPrompt([], prompt, {"metadata": metadata or {}})


class ImageSource(OnlineSource):
    """See the page's top.

    Args:
        standard: of rewards; its memory is part of the source's state.
        others: as for `OnlineSource`.
    """

    unit = "images"

    def __init__(self, prompts: Sequence[EncodedPrompt], judge: Any, settings: Any, *, standard: RunningStandard,
                 **others: Any) -> None:  # fmt: skip
        super().__init__(prompts, judge, settings, pad=0, **others)
        self.standard = standard

    def _context(self, policy: Any, chosen: Sequence[EncodedPrompt]) -> Any:
        return policy.context([str(row.prompt) for row in chosen])

    def _act(self, policy: Any, context: Any, chosen: Sequence[EncodedPrompt]) -> Action:
        with self._drawer(policy) as drawer:
            action, self._log_prob = drawer.draw(context, self.settings.num_samples, self.generator)
        return action

    def _measure(self, policy: Any, context: Any, action: Action) -> Likelihood:
        """log pi_t is known from drawing; what it is under pi_0 is only worth a pass where the KL weighs."""
        if self.settings.kl_weight:
            return super()._measure(policy, context, action)
        return Likelihood(log_prob=self._log_prob)

    def _ended(self, policy: Any, action: Action) -> Tensor:
        return torch.ones(action.mask.shape[:2], dtype=torch.bool, device=action.mask.device)

    def _advantage(self, chosen: Sequence[EncodedPrompt], score: Tensor, present: Tensor) -> Tensor:
        return self.standard([str(row.prompt) for row in chosen], score, present)

    def _report(self, score: Tensor, drawn: Tensor, ended: Tensor, batch: Batch, found: Likelihood) -> None:
        super()._report(score, drawn, ended, batch, found)
        for name in ("ended", "length"):
            self.figures.pop(name, None)

    @cached_property
    def fingerprint(self) -> str:
        said = "\n".join(f"{row.prompt}\t{sorted(row.columns['metadata'].items())}" for row in self.prompts)
        return hashlib.sha256(said.encode()).hexdigest()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"standard": self.standard.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.standard.load_state_dict(state["standard"])
