"""The simulator of `python -m experiments offline-control`, behind a pipe.

Meta-World 3.1.1 pins mujoco 3.3.0, on which nothing else here runs, so it has a Python environment of its own; see
`metaworld_worker`.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from valence.errors import UserError

WORKER = Path(__file__).with_name("metaworld_worker.py")
HOW = "make metaworld (a second environment, .venv-metaworld, 390 MB), or set VALENCE_METAWORLD to such a Python"


def interpreter() -> Path | None:
    """The Python that has Meta-World: $VALENCE_METAWORLD, else .venv-metaworld here or in the checkout, else None."""
    named = os.environ.get("VALENCE_METAWORLD")
    roots = (Path.cwd(), Path(__file__).parents[2])
    places = [Path(named)] if named else [root / ".venv-metaworld" / "bin" / "python" for root in roots]
    return next((place for place in places if place.is_file()), None)


class PickPlace:
    """One environment in a process of its own, as a context manager.

    Raises:
        UserError: no Python has Meta-World, or its process does not start.
    """

    def __init__(self) -> None:
        python = interpreter()
        if python is None:
            raise UserError(f"offline-control evaluates policies in Meta-World, which is not installed: {HOW}")
        self.process = subprocess.Popen(
            [str(python), "-W", "ignore", str(WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        self.horizon: int = self._answer()["horizon"]

    def __enter__(self) -> PickPlace:
        return self

    def __exit__(self, *error: object) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(timeout=10)

    def reset(self, seed: int) -> np.ndarray:
        """Begin an episode; returns the observation `[14]`. The same seed gives the same puck and goal."""
        return self._ask({"reset": seed})[0]

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        """(observation `[14]`, reward in [0, 1], whether the puck is at the goal)."""
        return self._ask({"step": action.tolist()})

    def _ask(self, request: dict[str, Any]) -> tuple[np.ndarray, float, bool]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        return np.asarray(answer["observation"], np.float32), answer["reward"], answer["success"]

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            raise UserError(f"Meta-World's process ended with status {status}; install its environment again: {HOW}")
        return json.loads(line)
