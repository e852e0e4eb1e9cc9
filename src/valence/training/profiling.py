"""Where an update's time goes: a few steps under torch's profiler, as a trace and a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

SKIPPED, PROFILED = 2, 5
"""Steps that warm up, and steps that are looked at."""


class Profiler:
    """Looks at steps 3 to 7 of a run and writes `profile.json` (a Chrome trace) and `profile.txt` (a table).

    Args:
        out: folder to write into.
        on: False does nothing.
    """

    def __init__(self, out: Path, *, on: bool) -> None:
        self._out, self._seen = out, 0
        self._profile: Any = None
        if on:
            kinds = [torch.profiler.ProfilerActivity.CPU]
            if torch.cuda.is_available():
                kinds.append(torch.profiler.ProfilerActivity.CUDA)
            schedule = torch.profiler.schedule(wait=1, warmup=SKIPPED - 1, active=PROFILED, repeat=1)
            self._profile = torch.profiler.profile(activities=kinds, schedule=schedule, on_trace_ready=self._write)
            self._profile.start()

    def step(self) -> None:
        """Called after each step of the run."""
        self._seen += 1
        if self._profile is not None:
            self._profile.step()
            if self._seen == SKIPPED + PROFILED:
                self.close()

    def close(self) -> None:
        """End, also where the run was shorter."""
        if self._profile is not None:
            self._profile.stop()
            self._profile = None

    def _write(self, profile: Any) -> None:
        profile.export_chrome_trace(str(self._out / "profile.json"))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        table = profile.key_averages().table(sort_by=f"self_{device}_time_total", row_limit=25)
        (self._out / "profile.txt").write_text(table + "\n", encoding="utf-8")
