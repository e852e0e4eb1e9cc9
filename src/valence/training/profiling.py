"""Where an update's time goes: a few steps under torch's profiler, as a trace and a table."""

from __future__ import annotations

from pathlib import Path

import torch


def open_profiler(out: Path) -> torch.profiler.profile:
    """A started profiler of a run's steps 3 to 7, which needs `step()` after each step and `stop()` at the end.

    It writes `profile.json` (a Chrome trace) and `profile.txt` (a table) into `out`.
    """

    def write(profile: torch.profiler.profile) -> None:
        profile.export_chrome_trace(str(out / "profile.json"))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        table = profile.key_averages().table(sort_by=f"self_{device}_time_total", row_limit=25)
        (out / "profile.txt").write_text(table + "\n", encoding="utf-8")

    schedule = torch.profiler.schedule(wait=1, warmup=1, active=5, repeat=1)
    profile = torch.profiler.profile(schedule=schedule, on_trace_ready=write)
    profile.start()
    return profile
