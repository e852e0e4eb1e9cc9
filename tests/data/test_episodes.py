"""Minari folders: what is written is read back, what Minari itself writes is read, and nonsense is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from valence.data.episodes import Episode, read_episodes, write_episodes
from valence.errors import UserError

h5py = pytest.importorskip("h5py", reason="the control extra is not installed")


def make(steps: int, seed: int, *, terminated: bool = False, labels: bool = False) -> Episode:
    draw = np.random.default_rng(seed)
    return Episode(
        draw.normal(size=(steps + 1, 3)).astype(np.float32), draw.uniform(-1, 1, (steps, 2)).astype(np.float32),
        draw.normal(size=steps).astype(np.float32), terminated,
        draw.integers(-1, 2, steps) if labels else None,
    )  # fmt: skip


def test_round_trip(tmp_path: Path) -> None:
    """Twelve episodes: episode_10 must come after episode_9, not after episode_1."""
    written = [make(place % 5 + 1, place, terminated=place % 3 == 0, labels=place % 2 == 0) for place in range(12)]
    folder = write_episodes(tmp_path, written, dataset_id="valence/test-v0")
    for read in (read_episodes(tmp_path), read_episodes(folder)):
        assert len(read) == len(written)
        for mine, theirs in zip(read, written, strict=True):
            for name in ("observations", "actions", "rewards"):
                np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))
            assert mine.terminated == theirs.terminated
            assert (mine.labels is None) == (theirs.labels is None)
            if mine.labels is not None:
                np.testing.assert_array_equal(mine.labels, theirs.labels)
    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata["total_episodes"] == 12 and metadata["total_steps"] == sum(len(episode) for episode in written)
    assert json.loads(metadata["action_space"])["shape"] == [2]


def test_the_end_is_marked_once(tmp_path: Path) -> None:
    folder = write_episodes(tmp_path, [make(3, 0, terminated=True), make(3, 1)], dataset_id="valence/test-v0")
    with h5py.File(folder / "main_data.hdf5") as file:
        ends = [file[f"episode_{place}/{name}"][()].tolist() for place in (0, 1) for name in
                ("terminations", "truncations")]  # fmt: skip
    never, last = [False, False, False], [False, False, True]
    assert ends == [last, never, never, last]


def test_dict_observations_and_infos_of_the_reset_are_read(tmp_path: Path) -> None:
    """Minari's collector keeps the reset's info first, and a Dict space as a group of columns."""
    with h5py.File(tmp_path / "main_data.hdf5", "w") as file:
        group = file.create_group("episode_0")
        group["observations/b"] = np.full((3, 2, 1), 2.0)
        group["observations/a"] = np.ones((3, 1))
        group["actions"] = np.zeros((2, 4))
        group["rewards"], group["terminations"], group["truncations"] = np.ones(2), [False, False], [False, True]
        group["infos/label"] = np.array([0, 1, -1])
    [episode] = read_episodes(tmp_path)
    assert episode.observations.tolist() == [[1.0, 2.0, 2.0]] * 3 and not episode.terminated
    assert episode.labels is not None and episode.labels.tolist() == [1, -1]


def test_what_is_not_a_data_set_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no Minari data set"):
        read_episodes(tmp_path)
    (tmp_path / "main_data.hdf5").write_text("nonsense")
    with pytest.raises(UserError, match="is no Minari data set that Valence can read"):
        read_episodes(tmp_path)


@pytest.mark.parametrize("labels", [[1, 2], [1], [0.5, 1.0]])
def test_labels_are_one_of_three_for_each_action(labels: list[float]) -> None:
    with pytest.raises(ValueError, match="labels must be"):
        Episode(np.zeros((3, 1)), np.zeros((2, 1)), np.zeros(2), labels=np.array(labels))


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match=r"T \+ 1 observations"):
        Episode(np.zeros((2, 1)), np.zeros((2, 1)), np.zeros(2))
