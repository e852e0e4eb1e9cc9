"""Where an update's time goes: a few steps under torch's profiler, as a trace and a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


class Profiler:
    """Records steps 3 to 7 of a run and writes `profile.json` (a Chrome trace) and `profile.txt` (a table) into `out`.

    Args:
        on: False does nothing.
    """

    def __init__(self, out: Path, *, on: bool) -> None:
        self._out = out
        schedule = torch.profiler.schedule(wait=1, warmup=1, active=5, repeat=1)
        self._profile = torch.profiler.profile(schedule=schedule, on_trace_ready=self._write) if on else None
        if self._profile is not None:
            self._profile.start()

    def step(self) -> None:
        """Called after each step of the run."""
        if self._profile is not None:
            self._profile.step()

    def close(self) -> None:
        if self._profile is not None:
            self._profile.stop()

    def _write(self, profile: Any) -> None:
        profile.export_chrome_trace(str(self._out / "profile.json"))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        table = profile.key_averages().table(sort_by=f"self_{device}_time_total", row_limit=25)
        (self._out / "profile.txt").write_text(table + "\n", encoding="utf-8")
