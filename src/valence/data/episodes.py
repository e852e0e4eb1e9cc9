"""Episodes on disk in Minari's format: a local folder with `metadata.json` and `main_data.hdf5`.

Layout (Minari 0.5): group `episode_i` with `observations [T + 1, ...]`, `actions [T, ...]`, `rewards [T]`,
`terminations [T]`, `truncations [T]` and optionally `infos/NAME [T]` or `[T + 1]` (the first is the reset's). A label
+1, -1 or 0 (accepted, rejected, unlabelled) of each action may stand in `infos/label`. Dict observations are flattened
in the order of their names, as in gymnasium.

This file needs only h5py and numpy, so that it also runs in the environment of a simulator.

Shape legend: T steps of an episode · O observation · D action dimensions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from valence.errors import UserError

FILE, LABEL = "main_data.hdf5", "label"
FORMAT_VERSION = "0.5.4"


@dataclass(frozen=True)
class Episode:
    """The steps between two resets.

    Args:
        observations: `[T + 1, O]`, the last one after the last action.
        actions: `[T, D]`.
        rewards: `[T]`.
        terminated: whether the episode ended with its last step; False if it was truncated.
        labels: `[T]`, +1 accepted, -1 rejected, 0 unlabelled; None without labels.
    Raises:
        ValueError: the lengths do not agree, there is no step, or a label has another value.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: bool = False
    labels: np.ndarray | None = None

    def __post_init__(self) -> None:
        steps = len(self.actions)
        if steps < 1 or len(self.observations) != steps + 1 or len(self.rewards) != steps:
            raise ValueError(
                f"an episode of T >= 1 actions needs T + 1 observations and T rewards, and this one has {steps} "
                f"actions, {len(self.observations)} observations and {len(self.rewards)} rewards"
            )
        if self.labels is not None and (len(self.labels) != steps or not np.isin(self.labels, (-1, 0, 1)).all()):
            raise ValueError(f"labels must be {steps} numbers of +1, -1 or 0")

    def __len__(self) -> int:
        return len(self.actions)


def write_episodes(folder: Path, episodes: Sequence[Episode], *, dataset_id: str, description: str = "") -> Path:
    """Write a Minari data set; floats keep their precision.

    Returns:
        The folder that holds `main_data.hdf5`: `folder/data`.
    Raises:
        ValueError: no episodes.
        FileExistsError: the folder already holds one.
    """
    import h5py

    if not episodes:
        raise ValueError("a data set needs at least one episode")
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    # libver "latest" stores small data sets in a third of the space.
    with h5py.File(data / FILE, "x", libver="latest") as file:
        for place, episode in enumerate(episodes):
            _write_episode(file.create_group(f"episode_{place}"), place, episode)
    first = episodes[0]
    metadata = {
        "dataset_id": dataset_id, "description": description, "minari_version": FORMAT_VERSION, "data_format": "hdf5",
        "total_episodes": len(episodes), "total_steps": sum(len(episode) for episode in episodes),
        "dataset_size": (data / FILE).stat().st_size / 1e6,
        "observation_space": _box(first.observations, -np.inf, np.inf), "action_space": _box(first.actions, -1.0, 1.0),
    }  # fmt: skip
    (data / "metadata.json").write_text(json.dumps(metadata, indent=1) + "\n", encoding="utf-8")
    return data


def _write_episode(group: Any, place: int, episode: Episode) -> None:
    steps = len(episode)
    ends = np.arange(steps) == steps - 1
    group.attrs.update({"id": place, "total_steps": steps})
    columns: dict[str, np.ndarray] = {
        "observations": episode.observations, "actions": episode.actions, "rewards": episode.rewards,
        "terminations": ends & episode.terminated, "truncations": ends & (not episode.terminated),
    }  # fmt: skip
    if episode.labels is not None:
        columns[f"infos/{LABEL}"] = episode.labels.astype(np.int8)
    for name, column in columns.items():
        # One chunk per column, with its bytes shuffled: neighbouring floats then compress well.
        group.create_dataset(name, data=column, chunks=column.shape, compression="gzip", shuffle=True)


def _box(values: np.ndarray, low: float, high: float) -> str:
    """A Box space as Minari writes it."""
    shape = values.shape[1:]
    bounds = [np.full(shape, bound).tolist() for bound in (low, high)]
    return json.dumps(
        {"type": "Box", "dtype": str(values.dtype), "shape": list(shape), "low": bounds[0], "high": bounds[1]}
    )


def read_episodes(folder: Path | str) -> list[Episode]:
    """Every episode of a Minari data set, floats as float32.

    Args:
        folder: a data set's own folder, or the `data` folder in it.
    Raises:
        UserError: there is no data set, or it has another format.
    """
    import h5py

    path = next((path for path in (Path(folder) / "data" / FILE, Path(folder) / FILE) if path.is_file()), None)
    if path is None:
        raise UserError(f"{folder} holds no Minari data set: it has neither data/{FILE} nor {FILE}")
    try:
        with h5py.File(path, "r") as file:
            # By number: episode_10 comes after episode_9.
            names = sorted(map(str, file), key=lambda name: int(name.removeprefix("episode_")))
            return [_read_episode(file[name]) for name in names]
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} is no Minari data set that Valence can read: {error}") from error


def _read_episode(group: Any) -> Episode:
    actions = _flat(group["actions"])
    labels = group[f"infos/{LABEL}"][()] if f"infos/{LABEL}" in group else None
    if labels is not None and len(labels) == len(actions) + 1:
        labels = labels[1:]
    return Episode(
        observations=_flat(group["observations"]),
        actions=actions,
        rewards=group["rewards"][()].astype(np.float32),
        terminated=bool(group["terminations"][-1]),
        labels=None if labels is None else labels.astype(np.int8),
    )


def _flat(node: Any) -> np.ndarray:
    """A dataset `[L, ...]`, or a group of them, as float32 `[L, size]`."""
    if hasattr(node, "keys"):
        return np.concatenate([_flat(node[name]) for name in sorted(node)], axis=1)
    values = node[()].astype(np.float32)
    return values.reshape(len(values), -1)
