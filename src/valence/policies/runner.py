"""Trained control policies in folders: saved with their environment's bounds, loaded to act.

`PolicyRunner.load(folder).act(observation)`
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from valence.errors import UserError, one_line
from valence.policies.actor import SETTINGS, WEIGHTS, Actor, flatten
from valence.policies.categorical import CategoricalPolicy
from valence.policies.gaussian import GaussianPolicy

KINDS: dict[str, type[Actor]] = {kind.kind: kind for kind in (GaussianPolicy, CategoricalPolicy)}


@dataclass(eq=False)
class PolicyRunner:
    """Acts as the policy does in evaluation: by its most likely action, or by a sample.

    Args:
        policy: the actor.
        low, high: the environment's own action bounds, `[D]`.
        environment: the name of the environment that it learned in, where known.
        action_repeat: environment steps that each action lasts: the caller repeats it so often.
    """

    policy: Actor
    low: np.ndarray
    high: np.ndarray
    environment: str | None = None
    action_repeat: int = 1

    @classmethod
    def load(cls, folder: str | Path) -> PolicyRunner:
        """Load the output folder of a control run, or the `policy` folder within it.

        Raises:
            UserError: there is no policy there, or it cannot be read.
        """
        home = Path(folder)
        home = home / "policy" if (home / "policy" / SETTINGS).is_file() else home
        try:
            about = json.loads((home / SETTINGS).read_text(encoding="utf-8"))
            weights = load_file(home / WEIGHTS)
            policy = KINDS[about["policy"].pop("kind")](**about["policy"]).requires_grad_(False)
            policy.load_state_dict(weights)
            low, high = np.array(about["low"]), np.array(about["high"])
            return cls(policy, low, high, about["environment"], about.get("action_repeat", 1))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise UserError(f"there is no policy to load in {folder} ({one_line(error)})") from error

    def act(self, observation: object, *, generator: torch.Generator | None = None) -> np.ndarray:
        """The action for one observation `[O]` (in any shape, or a dictionary or tuple of parts), or for N, `[N, O]`.

        Args:
            generator: draws a sample; None takes the most likely action.
        Returns:
            `[D]` or `[N, D]`, in the environment's own units.
        Raises:
            ValueError: the observation has another size, or is not all finite numbers.
        """
        if isinstance(observation, Mapping | tuple):
            observation = flatten(observation)
        seen, size = torch.as_tensor(np.asarray(observation, dtype=np.float32)), self.policy.observation_size
        # One observation that is no vector is flattened, as it was in training.
        seen = seen.flatten() if seen.shape[-1:] != (size,) and seen.numel() == size else seen
        if seen.shape[-1:] != (size,):
            raise ValueError(f"the policy reads {size} numbers, but the observation has shape {[*seen.shape]}")
        if not bool(seen.isfinite().all()):
            raise ValueError("the observation is not all finite numbers")
        rows = seen.reshape(-1, seen.shape[-1])
        policy = self.policy
        chosen = policy.decode(policy.draw(rows, 1, generator))[:, 0, 0] if generator else policy.mode(rows)
        action = (self.high + self.low) / 2 + (self.high - self.low) / 2 * chosen.double().numpy()
        # Rounding may step over a bound, which some environments refuse.
        return action.clip(self.low, self.high).reshape(*seen.shape[:-1], -1)
