"""A preference model that can express cycles: texts as points on a sphere, compared by how one is turned to another.

    s(y, y') = sum_l v_2l-1(y) v_2l(y') - v_2l(y) v_2l-1(y'),   P(y beats y') = sigmoid(s / tau),   |v| = 1

s(y', y) is -s(y, y') and s(y, y) is 0, whatever the weights are. On one circle (2 numbers) three points a third of a
turn apart beat one another in a ring, which no reward can say; more circles hold more such orders at a time. The loss
is Bradley-Terry's with s / tau in place of a difference of rewards.

Source: Zhang et al. 2024, arXiv:2410.02197 (preference representation embedding). Departs from it: the circles weigh
the same whatever the prompt (no eigenvalues by prompt), and the prompt is seen in that each text begins with it.
Units: s in [-1, 1], s / tau in nats of log-odds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from valence.errors import UserError
from valence.rewards.reward_model import PREFERENCE, encode, load_judge, row_text, training_figures

TAU = 0.1
"""The paper's: log-odds lie within 10 nats."""


def preference_score(first: Float[Tensor, "P E"], second: Float[Tensor, "P E"]) -> Float[Tensor, " P"]:
    """s(first, second), skew-symmetric to the last bit; in [-1, 1].

    Args:
        first, second: raw embeddings of even size E, brought to length 1 here. Differentiable.
    Raises:
        ValueError: E is odd.
    """
    if first.shape[1] % 2:
        raise ValueError(f"an embedding has an even number of parts, got {first.shape[1]}")
    one, two = (normalize(part, dim=-1).unflatten(-1, (-1, 2)) for part in (first, second))
    return (one[..., 0] * two[..., 1] - one[..., 1] * two[..., 0]).sum(-1)


def preference_log_odds(first: Float[Tensor, "P E"], second: Float[Tensor, "P E"]) -> Float[Tensor, " P"]:
    """s / tau, nats: what takes the place of a difference of rewards in training."""
    return preference_score(first, second) / TAU


class PreferenceModel:
    """A folder of `valence reward-model --kind preference` as a pairwise judge.

    Args:
        path: the folder.
        device: where it runs.
        batch_size: texts at a time.
    Raises:
        UserError: it holds no preference model.
    """

    def __init__(self, path: str, *, device: str = "cpu", batch_size: int = 64) -> None:
        figures = training_figures(path)
        if figures.get("kind") != PREFERENCE:
            raise UserError(f"{path} holds no preference model: valence reward-model PAIRS --kind preference makes one")
        self.model, self.tokenizer, self.max_length = load_judge(path, device=device)
        self.tau, self.batch_size = float(figures["tau"]), batch_size
        self.__name__ = path

    def __call__(self, prompts: Sequence[Any], first: Sequence[Any], second: Sequence[Any]) -> list[float | None]:
        """P(first is better) of each pair; each different text is read once."""
        pairs = list(zip(prompts, first, second, strict=True))
        ones, twos = ([row_text(self.tokenizer, row[0], row[part]) for row in pairs] for part in (1, 2))
        places = {text: place for place, text in enumerate(dict.fromkeys([*ones, *twos]))}
        if not places:
            return []
        found = self._embedded(list(places))
        score = preference_score(found[[places[text] for text in ones]], found[[places[text] for text in twos]])
        return torch.sigmoid(score / self.tau).tolist()

    @torch.no_grad()
    def _embedded(self, texts: Sequence[str]) -> Float[Tensor, "P E"]:
        parts = (texts[start : start + self.batch_size] for start in range(0, len(texts), self.batch_size))
        rows = (encode(self.tokenizer, part, max_length=self.max_length).to(self.model.device) for part in parts)
        return torch.cat([self.model(**row).logits.float() for row in rows])
