"""A trained control policy in a folder, and out of it again: `PolicyRunner.load(folder).act(observation)`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from valence.errors import UserError
from valence.policies.actor import Actor, flatten
from valence.policies.categorical import CategoricalPolicy
from valence.policies.gaussian import GaussianPolicy

KINDS: dict[str, type[Actor]] = {"gaussian": GaussianPolicy, "categorical": CategoricalPolicy}
SETTINGS, WEIGHTS = "policy.json", "policy.safetensors"


def save_actor(
    folder: Path, policy: Actor, *, low: np.ndarray, high: np.ndarray, environment: str | None = None,
    action_repeat: int = 1,
) -> Path:  # fmt: skip
    """Write `folder/policy.json` and `folder/policy.safetensors`.

    Args:
        low, high: the environment's own action bounds, `[D]`.
        environment: its name, for whoever loads it.
        action_repeat: environment steps that each action lasts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: part.detach().contiguous() for name, part in policy.named_parameters()}, folder / WEIGHTS)
    about = {"policy": policy.settings(), "low": low.tolist(), "high": high.tolist(), "environment": environment}
    about["action_repeat"] = action_repeat
    (folder / SETTINGS).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return folder


class PolicyRunner:
    """Acts as the policy does in evaluation: its most likely action, or a sample of it.

    Args:
        policy: the actor.
        low, high: what the environment takes, `[D]`.
        environment: the name of the environment it learned in, where known.
        action_repeat: environment steps that each action lasts: whoever acts repeats it so often.
    """

    def __init__(
        self, policy: Actor, low: np.ndarray, high: np.ndarray, environment: str | None = None, action_repeat: int = 1
    ) -> None:
        self.policy, self.low, self.high = policy, low, high
        self.environment, self.action_repeat = environment, action_repeat

    @classmethod
    def load(cls, folder: str | Path) -> PolicyRunner:
        """From `valence control`'s --out, or from the `policy` folder within.

        Raises:
            UserError: there is no policy there, or it cannot be read.
        """
        home = Path(folder)
        home = home / "policy" if (home / "policy" / SETTINGS).is_file() else home
        try:
            about = json.loads((home / SETTINGS).read_text(encoding="utf-8"))
            weights = load_file(home / WEIGHTS)
            policy = KINDS[about["policy"].pop("kind")](**about["policy"])
            policy.load_state_dict(weights)
            low, high = np.array(about["low"]), np.array(about["high"])
            environment, repeat = about["environment"], about.get("action_repeat", 1)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise UserError(f"there is no policy to load in {folder} ({' '.join(str(error).split())})") from error
        return cls(policy.requires_grad_(False), low, high, environment, repeat)

    def act(self, observation: Any, *, generator: torch.Generator | None = None) -> np.ndarray:
        """The action for one observation `[O]` (in any shape, or a dictionary or tuple of parts), or for N, `[N, O]`.

        Args:
            generator: draw from the policy with it; None takes the most likely action.
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
            raise ValueError(f"the policy sees {size} numbers, and was given an observation of shape {[*seen.shape]}")
        if not bool(seen.isfinite().all()):
            raise ValueError("the observation is not all finite numbers")
        rows = seen.reshape(-1, seen.shape[-1])
        if generator is None:
            chosen = self.policy.mode(rows)
        else:
            chosen = self.policy.decode(self.policy.draw(rows, 1, generator))[:, 0, 0]
        action = (self.high + self.low) / 2 + (self.high - self.low) / 2 * chosen.double().numpy()
        # Rounding may step over a bound, which some environments refuse.
        return action.clip(self.low, self.high).reshape(*seen.shape[:-1], -1)
