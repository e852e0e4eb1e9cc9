"""The simulator of `valence reproduce offline-control`, behind a pipe: it lives in an environment of its own.

Meta-World 3.1.1 pins mujoco 3.3.0, on which nothing else here runs; see `metaworld_worker`.
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
    """The Python that has Meta-World: $VALENCE_METAWORLD, or .venv-metaworld here or in the checkout; None: nowhere."""
    named = os.environ.get("VALENCE_METAWORLD")
    roots = (Path.cwd(), Path(__file__).parents[3])
    places = [Path(named)] if named else [root / ".venv-metaworld" / "bin" / "python" for root in roots]
    return next((place for place in places if place.is_file()), None)


class PickPlace:
    """One environment in a process of its own; use as a context manager.

    Raises:
        UserError: no interpreter has Meta-World, or it does not start.
    """

    def __init__(self) -> None:
        python = interpreter()
        if python is None:
            raise UserError(f"offline-control evaluates in Meta-World, which is not here: {HOW}")
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
        """Begin an episode; the same seed gives the same puck and goal. Observation `[14]`."""
        return self._ask({"reset": seed})[0]

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        """Observation `[14]`, reward in [0, 1], and whether the puck is at the goal."""
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
            raise UserError(f"Meta-World's process ended with status {status}: make its environment again: {HOW}")
        return json.loads(line)
