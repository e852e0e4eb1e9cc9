"""Trackers: a run's metrics go to `metrics.jsonl`, and to TensorBoard, W&B or Trackio."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from valence.errors import UserError

TRACKERS = ("tensorboard", "wandb", "trackio", "none")


@runtime_checkable
class Tracker(Protocol):
    """Receives the metrics of a run."""

    def log(self, step: int, values: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """Writes `metrics.jsonl`, one line per call of `log`.

    Args:
        keep_until: step of the checkpoint that the run resumes from; later lines are dropped. 0 empties the file.
    """

    def __init__(self, path: Path, *, keep_until: int = 0) -> None:
        rows = read_metrics(path) if keep_until and path.is_file() else []
        path.write_text("".join(json.dumps(row) + "\n" for row in rows if row["step"] <= keep_until))
        self._file = path.open("a")

    def log(self, step: int, values: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step} | values) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; an incomplete last line, of a killed run, is dropped."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class TensorBoard:
    """Writes TensorBoard's event files; arguments as for `JsonLines`."""

    def __init__(self, folder: Path, *, keep_until: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=keep_until + 1 if keep_until else 0)

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class Hosted:
    """Sends metrics to W&B or Trackio, whose calls are the same."""

    def __init__(self, module: Any, name: str, config: dict[str, Any]) -> None:
        self._module = module
        module.init(project="valence", name=name, config=config)

    def log(self, step: int, values: dict[str, float]) -> None:
        self._module.log(values, step=step)

    def close(self) -> None:
        self._module.finish()


def open_trackers(kind: str, out: Path, config: dict[str, Any], *, keep_until: int = 0) -> list[Tracker]:
    """Open `metrics.jsonl` and the tracker `kind`, one of `TRACKERS`.

    Args:
        config: the run's settings, for W&B and Trackio.
        keep_until: see `JsonLines`.
    Raises:
        UserError: the tracker is unknown, or not installed.
    """
    if kind not in TRACKERS:
        raise UserError(f"`tracker` is {kind!r}, and must be one of {', '.join(TRACKERS)}")
    others: list[Tracker] = []
    if kind == "tensorboard":
        others.append(TensorBoard(out / "tensorboard", keep_until=keep_until))
    elif kind != "none":
        try:
            others.append(Hosted(__import__(kind), out.name, config))
        except ImportError as error:
            raise UserError(f"`tracker` {kind} needs a package: pip install {kind}") from error
    return [JsonLines(out / "metrics.jsonl", keep_until=keep_until), *others]
