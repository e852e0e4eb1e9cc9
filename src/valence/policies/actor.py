"""What control policies share: a small network on observations, sampling, measuring and files.

A control policy's action has one step, `[N, K, 1, D]`. Its context is a float tensor of observations, `[N, O]`, each
flattened by `flatten`. `decode` turns steps into what an environment takes, D numbers in [-1, 1].

Shape legend: see `valence.types`; D action dimensions, O observation dimensions.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributions import Distribution

from valence.policies.base import likelihood_from_distributions, pull_back
from valence.protocols import Reference
from valence.types import Action, Batch, Likelihood

SETTINGS, WEIGHTS = "policy.json", "policy.safetensors"


def flatten(observation: object) -> np.ndarray:
    """An observation as one new float32 vector: arrays, numbers, and tuples and dictionaries (by name) of them."""
    if isinstance(observation, Mapping):
        # By name, as gymnasium sorts them: episodes on disk and an environment must agree on the order.
        observation = tuple(observation[name] for name in sorted(observation))
    if isinstance(observation, tuple):
        return np.concatenate([flatten(part) for part in observation])
    return np.array(observation, dtype=np.float32).ravel()


def torso(size_in: int, hidden: Sequence[int]) -> nn.Sequential:
    """Linear layers with ELU; the first has LayerNorm and tanh, so that observations need no scaling."""
    layers: list[nn.Module] = []
    for place, size in enumerate(hidden):
        layers.append(nn.Linear(size_in, size))
        layers += [nn.LayerNorm(size), nn.Tanh()] if place == 0 else [nn.ELU()]
        size_in = size
    return nn.Sequential(*layers)


class Actor(nn.Module):
    """The base of `GaussianPolicy` and `CategoricalPolicy`: a torso and a linear head of `outputs` units."""

    kind: ClassVar[str]
    """The policy's name in `policy.json`."""

    def __init__(self, observation_size: int, action_size: int, hidden: Sequence[int], outputs: int) -> None:
        super().__init__()
        for name, size in {"observation_size": observation_size, "action_size": action_size}.items():
            if size < 1:
                raise ValueError(f"`{name}` is {size}, and must be at least 1")
        if not hidden or min(hidden) < 1:
            raise ValueError(f"`hidden` is {tuple(hidden)}, and must name at least one layer of at least one unit")
        self.observation_size, self.action_size, self.hidden = observation_size, action_size, tuple(hidden)
        self.torso, self.head = torso(observation_size, hidden), nn.Linear(hidden[-1], outputs)
        with torch.no_grad():
            self.head.weight.mul_(0.01)
            self.head.bias.zero_()

    def distribution(self, context: Float[Tensor, "N O"]) -> Distribution:
        """Over the steps of one action: batch shape `[N, 1, 1]`, event shape `[D]`."""
        raise NotImplementedError

    def draw(self, context: Float[Tensor, "N O"], num_samples: int, generator: torch.Generator) -> Tensor:
        """Steps `[N, num_samples, 1, D]` from the distribution."""
        raise NotImplementedError

    def decode(self, steps: Tensor) -> Float[Tensor, "... D"]:
        """What the environment takes: `steps [..., D]` to numbers in [-1, 1]."""
        raise NotImplementedError

    def mode(self, context: Float[Tensor, "N O"]) -> Float[Tensor, "N D"]:
        """The most likely action, decoded."""
        raise NotImplementedError

    @torch.no_grad()
    def sample(self, context: Float[Tensor, "N O"], num_samples: int, generator: torch.Generator) -> Action:
        steps = self.draw(context, num_samples, generator)
        return Action(steps, torch.ones(steps.shape[:3], dtype=torch.bool))

    def likelihood(self, batch: Batch, reference: Reference | None, needs: frozenset[str]) -> Likelihood:
        ours, theirs, action = self.distribution(batch.context), self._reference(batch, reference, needs), batch.action
        return likelihood_from_distributions(ours, theirs, action.steps, action.mask, needs)

    def _reference(self, batch: Batch, reference: Reference | None, needs: frozenset[str]) -> Distribution | None:
        """The reference's distribution, constant; None where `needs` reads nothing of it."""
        if reference is None or not needs - {"log_prob", "value"}:
            return None
        with torch.no_grad(), reference.active() as other:
            return other.distribution(batch.context)

    def backward(
        self, batch: Batch, reference: Reference | None, likelihood: Likelihood, grads: Mapping[str, Tensor]
    ) -> None:
        pull_back(likelihood, grads)

    def trainable(self) -> dict[str, nn.Parameter]:
        return dict(self.named_parameters())

    def frozen_copy(self, *, dtype: torch.dtype | None = None, device: str | None = None) -> Actor:
        return copy.deepcopy(self).to(device=device, dtype=dtype).requires_grad_(False)

    def settings(self) -> Mapping[str, object]:
        """What `valence.policies.runner` builds the policy from: its "kind" and its constructor's arguments."""
        return {"kind": self.kind} | {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def save(
        self, folder: Path, *, low: np.ndarray | None = None, high: np.ndarray | None = None,
        environment: str | None = None, action_repeat: int = 1,
    ) -> None:  # fmt: skip
        """Write the files that `PolicyRunner` loads, with what it needs to act; the bounds are -1 and 1 by default."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: part.detach().contiguous() for name, part in self.named_parameters()}, folder / WEIGHTS)
        about = {
            "policy": self.settings(), "low": [-1.0] * self.action_size if low is None else low.tolist(),
            "high": [1.0] * self.action_size if high is None else high.tolist(), "environment": environment,
            "action_repeat": action_repeat,
        }  # fmt: skip
        (folder / SETTINGS).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
