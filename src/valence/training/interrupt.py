"""Signals that end a run: a step is finished first, so that what was learned can be saved."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
WAIT = b"interrupted: this step is finished first; a second signal ends at once\n"

NOTHING_SAVED = "a run of this kind saves nothing on the way: give the command again"


class Interrupted(KeyboardInterrupt):
    """A signal ended the run.

    Args:
        number: of the signal.
        message: what was saved and how to go on.
    """

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message)
        self.number = number


class Signals:
    """Turns the first signal into `Interrupted`: at once, or after the `unbroken` part. A second one acts as usual."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._busy = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Signals:
        # Python lets the main thread alone set handlers.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.__exit__()
        self.received = number
        if not self._busy:
            raise Interrupted(number)
        # Not by print: a signal may come while the stream is in use.
        os.write(2, WAIT)

    @contextmanager
    def unbroken(self) -> Iterator[None]:
        """A part that a signal does not break; `Interrupted` is raised behind it."""
        self._busy = True
        try:
            yield
        finally:
            self._busy = False
        if self.received is not None:
            raise Interrupted(self.received)
