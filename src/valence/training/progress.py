"""A line of progress on standard error: a bar on a terminal, about ten plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

Column = tuple[str, str, str]
"""Title, figure, format."""
TRAINING: tuple[Column, ...] = (
    ("loss", "loss", "{:.3f}"), ("reward", "reward", "{:.3f}"), ("KL(π‖π_0)", "kl_policy_initial", "{:.2f}"),
    ("KL(ref‖π)", "kl_ref_policy_on_rows", "{:.2f}"), ("accepted", "accepted_drift", "{:+.2f}"),
    ("rejected", "rejected_drift", "{:+.2f}"), ("tok/s", "tokens_per_second", "{:,.0f}"),
)  # fmt: skip


EVERY = 3.0
"""Seconds between the lines about a part that has no steps."""


class Busy:
    """Shows that a part of a run goes on: a line on standard error every few seconds, from a thread of its own.

    `count`, if it is set, is how much of it is done.

    Args:
        what: the part, such as "reading thumbs.jsonl".
        show: False shows nothing.
        unit: what `count` counts.
    """

    def __init__(self, what: str, *, show: bool = True, unit: str = "rows") -> None:
        self.what, self.show, self.unit, self.count = what, show, unit, 0
        self._done = threading.Event()

    def __call__(self, count: int) -> None:
        """So much is done."""
        self.count = count

    def __enter__(self) -> Busy:
        if self.show:
            self._done.clear()
            threading.Thread(target=self._tell, daemon=True, name="progress").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()

    def _tell(self) -> None:
        began = time.monotonic()
        while not self._done.wait(EVERY):
            amount = f"{self.count:,} {self.unit}, " if self.count else ""
            print(f"  {self.what}: {amount}{time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


class Progress:
    """Shows the progress of a run of `total` steps, which starts from the step `start`.

    Args:
        show: False shows nothing.
        unit: what a step is.
    """

    def __init__(
        self, total: int, *, start: int = 0, show: bool = True, unit: str = "step",
        columns: Sequence[Column] = TRAINING,
    ) -> None:  # fmt: skip
        self.total, self.show, self.unit, self.columns = total, show, unit, columns
        self._latest: dict[str, float] = {}
        self._bar: Any = None
        self._every = max(1, total // 10)
        self._next = start - start % self._every + self._every
        if show and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn(unit), MofNCompleteColumn(), BarColumn(20), TimeRemainingColumn(),
                TextColumn("{task.description}"), console=Console(stderr=True),
            )  # fmt: skip
            self._task = self._bar.add_task("", total=total, completed=start)
            self._bar.start()

    def note(self, figures: dict[str, float]) -> None:
        """Add figures to the next line."""
        self._latest |= figures

    def __call__(self, step: int, figures: dict[str, float], *, last: bool = False) -> None:
        """Show a step. A bar keeps a figure until there is a new one; a plain line shows only what is new."""
        self.note(figures)
        shown = [column for column in self.columns if column[1] in self._latest]
        text = "  ".join(f"{title} {form.format(self._latest[key])}" for title, key, form in shown)
        if self._bar is not None:
            self._bar.update(self._task, completed=min(step, self.total), description=text)
        elif self.show and (last or step >= self._next or step >= self.total):
            self._next = step - step % self._every + self._every
            print(f"  {self.unit} {step}/{self.total}  {text}", file=sys.stderr, flush=True)
            self._latest.clear()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
