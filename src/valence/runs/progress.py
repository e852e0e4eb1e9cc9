"""The progress bar: loss, exact KL, drift and speed as it goes; plain lines where no person watches."""

from __future__ import annotations

import sys
from typing import Any


class Progress:
    """Shows a training run on standard error.

    Args:
        total: steps in all.
        start: the step it goes on from.
        show: False shows nothing.
    """

    UNIT = "step"
    COLUMNS = (
        ("loss", "loss", "{:.3f}"), ("reward", "reward", "{:.3f}"), ("KL(π‖π_0)", "kl_policy_start", "{:.2f}"),
        ("KL(ref‖π)", "kl_ref_policy_on_rows", "{:.2f}"), ("accepted", "accepted_drift", "{:+.2f}"),
        ("rejected", "rejected_drift", "{:+.2f}"), ("tok/s", "tokens_per_second", "{:,.0f}"),
    )  # fmt: skip

    def __init__(self, total: int, *, start: int = 0, show: bool = True) -> None:
        self.total, self.show = total, show
        self._latest: dict[str, float] = {}
        self._bar: Any = None
        self._every = max(1, total // 10)
        self._next = start - start % self._every + self._every
        if show and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn(self.UNIT),
                MofNCompleteColumn(),
                BarColumn(20),
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
            )
            self._bar = Bar(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task("", total=total, completed=start)
            self._bar.start()

    def __call__(self, step: int, figures: dict[str, float]) -> None:
        """Figures that are measured now and then stay on the bar until the next time; a line has what is new."""
        self._latest |= figures
        parts = [
            f"{title} {form.format(self._latest[key])}" for title, key, form in self.COLUMNS if key in self._latest
        ]
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description="  ".join(parts))
        elif self.show and (step >= self._next or step == self.total):
            self._next = step - step % self._every + self._every
            print(f"  {self.UNIT} {step}/{self.total}  {'  '.join(parts)}", file=sys.stderr, flush=True)
            self._latest.clear()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
