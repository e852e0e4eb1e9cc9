"""A preference model that can express cycles: each text has an embedding v, and two embeddings give the log-odds s.

    s(y, y') = sum_l v_2l-1(y) v_2l(y') - v_2l(y) v_2l-1(y'),   P(y beats y') = sigmoid(s(y, y'))

For any weights, s(y', y) is -s(y, y') and s(y, y) is 0. In one plane (2 numbers), three points a third of a turn apart
beat one another in a cycle, which no reward can express; points (1, r) are Bradley-Terry with rewards -r. Each further
plane can hold another such order. The loss is Bradley-Terry's with s in place of the difference of rewards.

Source: Zhang et al. 2024, arXiv:2410.02197 (preference representation embedding). Units: nats of log-odds.
Departs from it:
- Embeddings are not scaled to unit length, and the temperature is 1. On the unit circle all points begin close
  together, where a balanced cycle has no gradient.
- All planes have the same weight for every prompt. The embedding depends on the prompt, as each text begins with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from valence.errors import UserError
from valence.rewards.functions import Chat
from valence.rewards.reward_model import PREFERENCE, TextModel, training_figures


def preference_score(first: Float[Tensor, "P E"], second: Float[Tensor, "P E"]) -> Float[Tensor, " P"]:
    """s(first, second): the log-odds that the first is better; skew-symmetric to the last bit.

    Args:
        first, second: embeddings of even size E. Differentiable.
    Raises:
        ValueError: E is odd.
    """
    if first.shape[1] % 2:
        raise ValueError(f"an embedding must have an even size, and has {first.shape[1]}")
    one, two = (part.unflatten(-1, (-1, 2)) for part in (first, second))
    return (one[..., 0] * two[..., 1] - one[..., 1] * two[..., 0]).sum(-1)


class PreferenceModel(TextModel):
    """A folder that reward-model wrote with `kind="preference"`, as a pairwise judge.

    Raises:
        UserError: it holds no preference model.
    """

    def __init__(self, path: str, *, device: str = "cpu") -> None:
        if training_figures(path).get("kind") != PREFERENCE:
            raise UserError(f'{path} holds no preference model: train one with `kind="preference"`')
        super().__init__(path, device=device)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Chat], first: Sequence[Chat], second: Sequence[Chat]) -> list[float | None]:
        """P(first is better) of each pair. Each distinct text is embedded once."""
        ones, twos = (self.texts(prompts, part) for part in (first, second))
        places = {text: place for place, text in enumerate(dict.fromkeys([*ones, *twos]))}
        if not places:
            return []
        embedding = torch.cat([*self.outputs(list(places))])
        score = preference_score(*(embedding[[places[text] for text in texts]] for texts in (ones, twos)))
        return torch.sigmoid(score).tolist()
