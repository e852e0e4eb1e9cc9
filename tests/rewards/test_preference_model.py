"""The preference model: skew-symmetric to the last bit, learns a cycle that Bradley-Terry cannot, loads as a judge."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from valence.errors import UserError
from valence.rewards import reward_model as reward_models
from valence.rewards.judge import SelfPlay
from valence.rewards.loading import load_reward
from valence.rewards.preference_model import PreferenceModel, preference_score
from valence.rewards.reward_model import RewardModel
from valence.runs.reward_model import reward_model

WORDS = (("rock", "stone", "cliff"), ("paper", "sheet", "page"), ("blade", "shears", "knife"))
"""Each kind beats the one before it, and the first the last."""


def test_a_third_of_a_turn_by_hand() -> None:
    """Points at 0, 120 and 240 degrees, two from the origin: each scores 2 · 2 · sin 120° = 2√3 over the one before."""
    angles = torch.tensor([0.0, 2 * math.pi / 3, 4 * math.pi / 3])
    ring = 2 * torch.stack([angles.cos(), angles.sin()], 1)
    torch.testing.assert_close(preference_score(ring, ring.roll(-1, 0)), torch.full((3,), 2 * math.sqrt(3)))


def test_planes_add_up_by_hand() -> None:
    """1·5 − 2·4 = −3 in the first plane, 3·7 − 0·6 = 21 in the second."""
    first, second = torch.tensor([[1.0, 2, 3, 0]]), torch.tensor([[4.0, 5, 6, 7]])
    assert preference_score(first, second).item() == 18.0
    with pytest.raises(ValueError, match="must have an even size, and has 3"):
        preference_score(torch.ones(1, 3), torch.ones(1, 3))


def test_bradley_terry_is_a_part_of_it() -> None:
    rewards = torch.tensor([0.5, -1.0, 2.0])
    points = torch.stack([torch.ones(3), -rewards], 1)
    found = preference_score(points, points.roll(1, 0))
    torch.testing.assert_close(found, rewards - rewards.roll(1))


@given(st.integers(0, 2**31), st.integers(1, 9))
def test_turned_round_it_is_the_negative_exactly(seed: int, planes: int) -> None:
    first, second = torch.randn(2, 7, 2 * planes, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(preference_score(first, second), -preference_score(second, first))
    assert torch.equal(preference_score(first, first), torch.zeros(7))


def sentence(kind: int, draw: random.Random) -> str:
    return f"{draw.choice('abcdefgh')} {draw.choice(WORDS[kind])} {draw.choice('mnopqrst')}"


def cycle(path: Path, count: int, seed: int) -> str:
    """As many pairs of each of the three match-ups; sides drawn anew for each."""
    draw, rows = random.Random(seed), []
    for n in range(count):
        loser = n % 3
        rows.append({"prompt": f"{n}: ", "chosen": sentence((loser + 1) % 3, draw), "rejected": sentence(loser, draw)})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def train(feedback: str, model: Path, out: Path, **options: Any) -> dict[str, Any]:
    return reward_model(
        feedback, model=model, out=out, quiet=True, **({"batch_size": 32, "max_steps": 300, "lr": 1e-3} | options)
    )


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> str:
    return cycle(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", 900, seed=0)


@pytest.fixture(scope="module")
def trained(pairs: str, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("preference") / "model"
    return out, train(pairs, tiny_llama, out, kind="preference", embedding=2)


def fresh(count: int = 300) -> tuple[list[str], list[str], list[str]]:
    """(prompts, winners, losers) that no training has seen, with as many of each match-up."""
    draw = random.Random(99)
    kinds = [n % 3 for n in range(count)]
    winners, losers = ([sentence((kind + ahead) % 3, draw) for kind in kinds] for ahead in (1, 0))
    return [f"{n}: " for n in range(count)], winners, losers


@pytest.mark.slow
def test_it_learns_a_cycle(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, figures = trained
    assert figures["kind"] == "preference" and figures["held_out"] == 90 and figures["accuracy"] > 0.9
    judge = PreferenceModel(str(folder))
    prompts, winners, losers = fresh()
    found = judge(prompts, winners, losers)
    assert sum(value is not None and value > 0.5 for value in found) / len(found) > 0.9
    turned = judge(prompts, losers, winners)
    assert [one + two for one, two in zip(found, turned, strict=True) if one and two] == pytest.approx([1.0] * 300)
    assert judge(["p"], ["same"], ["same"]) == [0.5] and judge([], [], []) == []


@pytest.mark.slow
def test_bradley_terry_cannot(pairs: str, tiny_llama: Path, tmp_path: Path) -> None:
    """Any order of the three kinds is right in a third or two thirds of the pairs, and no fit beats ln 2 on them."""
    train(pairs, tiny_llama, tmp_path / "bt", kind="pairs")
    prompts, winners, losers = fresh()
    model = RewardModel(str(tmp_path / "bt"))
    gap = torch.tensor(model(prompts, winners)) - torch.tensor(model(prompts, losers))
    assert 0.25 < (gap > 0).float().mean().item() < 0.75
    assert torch.nn.functional.softplus(-gap).mean().item() > math.log(2) - 0.02


@pytest.mark.slow
def test_the_folder_is_a_pairwise_judge_by_its_name(
    trained: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = trained
    reward = load_reward(str(folder))
    assert isinstance(reward, SelfPlay) and isinstance(reward.judge, PreferenceModel)
    prompts, winners, losers = fresh(4)
    together = reward.judge(prompts, winners, losers)
    monkeypatch.setattr(reward_models, "TOGETHER", 1)
    assert together == pytest.approx(reward.judge(prompts, winners, losers), abs=1e-4)
    draw = random.Random(5)
    texts = [sentence(kind, draw) for kind in (0, 1, 2)]
    # Each beats one and loses to one: a cycle leaves all near 0, alone the better of two is above.
    assert reward(["p"] * 3, texts) == pytest.approx([0.0] * 3, abs=0.4)
    worse, better = reward(["p"] * 2, texts[:2])
    assert worse == pytest.approx(-better) and better > 0


@pytest.mark.slow
def test_where_a_score_is_asked_it_is_refused(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder = str(trained[0])
    with pytest.raises(UserError, match="compares two completions and gives none a score of its own"):
        RewardModel(folder)
    with pytest.raises(UserError, match="which an ensemble needs"):
        load_reward(f"mean:length,{folder}")
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    (other / "reward_model.json").write_text('{"kind": "pairs"}')
    with pytest.raises(UserError, match="holds no preference model"):
        PreferenceModel(str(other))
    (other / "reward_model.json").write_text("[1")
    with pytest.raises(UserError, match=r"reward_model.json cannot be read"):
        load_reward(str(other))
