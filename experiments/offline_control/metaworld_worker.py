"""Meta-World's pick-place-v3 behind a pipe, in an interpreter of its own: it pins another mujoco than Valence does.

Run by its path under `.venv-metaworld`. Reads requests from standard input, one JSON object per line, `{"reset": seed}`
or `{"step": action}`, and answers each on standard output with `{"observation", "reward", "success"}`.

Observation `[14]`: hand (3, metres), gripper opening (1), puck (3, metres), its quaternion (4), goal (3, metres).
Action `[4]`: the hand's displacement (3) and the gripper's effort, in [-1, 1]. Reward: Meta-World's over 10, in [0, 1].
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

HORIZON = 100
"""Steps of an episode; the scripted policy needs about 55."""
GOAL = slice(36, 39)
"""The goal in Meta-World's observation of 39 numbers; the first 11 are hand, gripper and puck."""


class PickPlace:
    """One environment; the same seed gives the same puck and goal."""

    def __init__(self) -> None:
        from metaworld.envs.sawyer_pick_place_v3 import SawyerPickPlaceEnvV3  # pyright: ignore[reportMissingImports]

        self.env: Any = SawyerPickPlaceEnvV3()
        # As `set_task` does, but puck and goal are drawn at each reset instead of taken from one of fifty fixed tasks.
        self.env._set_task_called, self.env._freeze_rand_vec, self.env.seeded_rand_vec = True, False, True
        self.env._partially_observable = False
        self.raw = np.zeros(39)

    def reset(self, seed: int) -> np.ndarray:
        self.env.seed(seed)
        self.raw, _ = self.env.reset()
        return self.observation

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        self.raw, reward, *_, info = self.env.step(np.clip(action, -1, 1).astype(np.float32))
        return self.observation, float(reward) / 10, bool(info["success"])

    @property
    def observation(self) -> np.ndarray:
        return np.concatenate([self.raw[:11], self.raw[GOAL]]).astype(np.float32)


def serve() -> None:
    """Answer until standard input closes."""
    task = PickPlace()
    print(json.dumps({"ready": True, "horizon": HORIZON}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "reset" in request:
            observation, reward, success = task.reset(request["reset"]), 0.0, False
        else:
            observation, reward, success = task.step(np.asarray(request["step"]))
        answer = {"observation": observation.tolist(), "reward": reward, "success": success}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
