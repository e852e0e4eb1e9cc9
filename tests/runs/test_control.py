"""`valence.control` from end to end on a line: it learns, can be stopped anywhere, and its folder is what it says."""

from __future__ import annotations

import contextlib
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import worlds
from valence.errors import UserError
from valence.evaluation import control as evaluation
from valence.evaluation.control import Evaluation
from valence.feedback.rules import ValueLabelling
from valence.objectives.dpo import DPO
from valence.objectives.mpo import MPO
from valence.objectives.pmpo import PMPO
from valence.objectives.rebel import REBEL
from valence.policies.runner import PolicyRunner
from valence.runs.control import ControlConfig, control, make_objective
from valence.runs.settings import configure, to_words
from valence.sources.environments import Crew, make_environment
from valence.training.checkpoint import checkpoints
from valence.training.progress import Progress
from valence.types import Labels, Preferences, Rewards

POINT = "worlds:Point-v0"
SMALL: dict[str, Any] = {
    "steps": 60, "warmup_steps": 20, "steps_per_update": 2.0, "hidden": (8,), "batch_size": 8, "refresh_every": 7,
    "eval_every": 20, "eval_episodes": 2, "save_every": 0, "tracker": "none", "n_step": 3, "quiet": True,
}  # fmt: skip


def run(out: Path, environment: str = POINT, **options: Any) -> Any:
    return control(environment, out=str(out), **(SMALL | options))


def results(out: Path) -> dict[str, Any]:
    return json.loads((out / "results.json").read_text())


def bits(out: Path) -> tuple[dict[str, torch.Tensor], Any]:
    """Everything that a run is, from its last checkpoint."""
    (last,) = checkpoints(out / "checkpoints")
    return load_file(last / "state.safetensors"), json.loads((last / "state.json").read_text())


def same(ours: Path, theirs: Path) -> bool:
    (first, about), (second, other) = bits(ours), bits(theirs)
    return (
        about == other
        and first.keys() == second.keys()
        and all(torch.equal(first[name], second[name]) for name in first)
        and (ours / "policy" / "policy.safetensors").read_bytes()
        == (theirs / "policy" / "policy.safetensors").read_bytes()
    )


@pytest.mark.parametrize("policy", ["gaussian", "categorical"])
@pytest.mark.parametrize("method", ["pmpo", "mpo", "dpo", "rebel"])
def test_a_runs_folder_holds_the_policy_that_was_evaluated(method: str, policy: str, tmp_path: Path) -> None:
    result = run(tmp_path, "worlds:Lopsided-v0", method=method, policy=policy)
    assert result.out == tmp_path
    kept = results(tmp_path)
    assert kept["returns"] == result.details["returns"] and len(kept["returns"]) == 2
    # 20 updates of 2 steps after a warm-up of 20: the first update wants no step of its own.
    assert [step for step, _ in result.details["curve"]] == [38, 58] and kept["updates"] == [10, 20]
    assert kept["curve"] == [list(point) for point in result.details["curve"]]
    assert result.after["return"] == pytest.approx(statistics.fmean(kept["returns"]))
    assert kept["settings"]["method"] == method
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    seen = [(row["eval/env_steps"], row["eval/return"]) for row in rows if "eval/return" in row]
    assert seen == result.details["curve"]
    assert any("critic_loss" in row and "loss" in row for row in rows)
    # What lies in the folder is what was evaluated: it lives the same episodes again, acting from outside.
    runner = PolicyRunner.load(tmp_path)
    assert runner.environment == "worlds:Lopsided-v0"
    again = Evaluation(lambda: make_environment("worlds:Lopsided-v0"), 2).returns(runner.policy)
    assert again == result.details["returns"]
    actions = runner.act(np.linspace(-3, 3, 50)[:, None])
    assert bool((actions >= runner.low).all()) and bool((actions <= runner.high).all())


def test_the_same_seed_is_the_same_run_to_the_bit(tmp_path: Path) -> None:
    options = {"num_environments": 2, "save_every": 1000}
    found = [run(tmp_path / name, seed=seed, **options) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    assert same(tmp_path / "a", tmp_path / "b") and not same(tmp_path / "a", tmp_path / "c")
    assert found[0].details["curve"] == found[1].details["curve"] != found[2].details["curve"]


class Killed(BaseException):
    """Stops a run as a signal would."""


def killed_at(step: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Inside, a run dies after its update number `step`, before it is evaluated or saved."""
    context, original = monkeypatch.context(), Progress.__call__

    def die(self: Any, now: int, figures: dict[str, float], **more: Any) -> None:
        original(self, now, figures, **more)
        if now == step:
            raise Killed

    patch = context.__enter__()
    patch.setattr(Progress, "__call__", die)
    return context


@pytest.mark.parametrize(
    "options",
    [
        {"method": "mpo"},
        {"method": "pmpo", "policy": "categorical", "steps_per_update": 0.75, "num_environments": 3, "steps": 50},
    ],
    ids=["mpo", "pmpo-categorical-3"],
)
@pytest.mark.parametrize("death", [7, 11, 19])
def test_a_run_that_was_killed_goes_on_to_the_bit(
    options: dict[str, Any], death: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = options | {"save_every": 12, "eval_every": 10}
    whole = run(tmp_path / "whole", **options)
    context = killed_at(death, monkeypatch)
    with pytest.raises(Killed):
        run(tmp_path / "broken", **options)
    context.__exit__(None, None, None)
    saved = bool(checkpoints(tmp_path / "broken" / "checkpoints"))
    assert saved or death < 12 / options.get("steps_per_update", 2.0)
    broken = run(tmp_path / "broken", **options, resume=True)
    assert same(tmp_path / "whole", tmp_path / "broken")
    assert broken.details["curve"] == whole.details["curve"]
    assert broken.details["returns"] == whole.details["returns"]
    ours, theirs = results(tmp_path / "broken"), results(tmp_path / "whole")
    assert ours["updates"] == theirs["updates"] == sorted(set(ours["updates"])) and ours["curve"] == theirs["curve"]


def test_a_run_in_the_control_suite_goes_on_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "disable")
    pytest.importorskip("dm_control")
    options = {"save_every": 24, "eval_every": 0, "eval_episodes": 1, "action_repeat": 4, "steps": 120}
    for name in ("whole", "broken"):
        context = killed_at(31 if name == "broken" else -1, monkeypatch)
        with contextlib.suppress(Killed):
            run(tmp_path / name, "dm_control/cartpole-swingup-v0", **options)
        context.__exit__(None, None, None)
    assert not (tmp_path / "broken" / "policy").exists()
    broken = run(tmp_path / "broken", "dm_control/cartpole-swingup-v0", **options, resume=True)
    assert same(tmp_path / "whole", tmp_path / "broken")
    assert [list(point) for point in broken.details["curve"]] == results(tmp_path / "whole")["curve"]
    # One update for two steps, and actions that last four.
    assert broken.details["curve"][0][0] == 120


def test_a_finished_run_is_left_as_it_is_and_can_be_made_longer(tmp_path: Path) -> None:
    options = {"save_every": 20}
    short = run(tmp_path / "a", **options)
    before = bits(tmp_path / "a")
    again = run(tmp_path / "a", **options, resume=True)
    assert again.details["curve"] == short.details["curve"]
    assert again.details["returns"] == short.details["returns"]
    after = bits(tmp_path / "a")
    assert before[1] == after[1] and all(torch.equal(part, after[0][name]) for name, part in before[0].items())
    longer, whole = (run(tmp_path / name, **options, steps=100, resume=name == "a") for name in "ab")
    assert same(tmp_path / "a", tmp_path / "b") and longer.details["curve"] == whole.details["curve"]
    assert [step for step, _ in longer.details["curve"]] == [38, 58, 78, 98]
    with pytest.raises(UserError, match="is of update 40, behind the end of this run"):
        run(tmp_path / "a", **options, resume=True)


def test_what_cannot_go_on_is_refused_in_one_line(tmp_path: Path) -> None:
    # A job that is queued again asks for it each time: there is nothing yet, and the run begins.
    assert run(tmp_path / "none", resume=True).steps == 20
    run(tmp_path / "a", save_every=20)
    before = results(tmp_path / "a")
    with pytest.raises(UserError, match="already holds a run: continue it with `resume`"):
        run(tmp_path / "a", save_every=20)
    with pytest.raises(UserError, match="lr, seed changed"):
        run(tmp_path / "a", save_every=20, seed=3, lr=0.1, resume=True)
    assert results(tmp_path / "a") == before


def test_without_evaluations_on_the_way_there_is_one_at_the_end(tmp_path: Path) -> None:
    result = run(tmp_path, eval_every=0, num_environments=3)
    # Three environments step together: 20 + 19 * 2 = 58 steps are due, and 60 are lived.
    assert [step for step, _ in result.details["curve"]] == [60]


@pytest.mark.parametrize("name", ["Parts", "Grid", "Cliff"])
def test_observations_and_ends_of_other_kinds(name: str, tmp_path: Path) -> None:
    result = run(tmp_path, f"worlds:{name}-v0", action_repeat=2)
    import gymnasium

    runner, lived = PolicyRunner.load(tmp_path), gymnasium.make(f"worlds:{name}-v0")
    assert runner.action_repeat == 2
    seen, _ = lived.reset(seed=1)
    action = runner.act(seen)
    assert action.shape == (1,) and lived.action_space.contains(action.astype(np.float32))
    returns = result.details["returns"]
    assert len(returns) == 2 and all(value < 0 for value in returns)


def test_a_film_is_made_on_request_and_what_cannot_be_rendered_is_said_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    run(tmp_path / "a", video=True)
    with Image.open(tmp_path / "a" / "video.gif") as film:
        total = 0
        for frame in range(film.n_frames):
            film.seek(frame)
            total += film.info["duration"]
        # The start and, of 20 steps, each eighth; 60 ms each.
        assert film.size == (24, 8) and total == 180

    def dark(self: Any) -> Any:
        raise RuntimeError("no\ndisplay")

    monkeypatch.setattr(worlds.Point, "render", dark)
    with pytest.raises(UserError, match=r"`video`: worlds:Point-v0 cannot be rendered here \(no display\)"):
        run(tmp_path / "b", video=True)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Raises", "RuntimeError: the motor is off"),
        ("NanReward", "a reward of nan"),
        ("NanObservation", "not all finite"),
        ("Endless", "has not ended after 50 actions"),
    ],
)
def test_environments_that_go_wrong_are_said_in_one_line(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "LONGEST", 50)
    with pytest.raises(UserError, match=said) as error:
        run(tmp_path, f"worlds:{name}-v0")
    assert "\n" not in str(error.value)


def test_a_critic_that_runs_away_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the critic's loss is (nan|inf) at update .*critic_lr"):
        run(tmp_path, critic_lr=1e30)


def test_environments_are_named_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gymnasium cannot make 'Nowhere-v0'"):
        run(tmp_path / "a", "Nowhere-v0")
    assert not (tmp_path / "a").exists()
    with pytest.raises(UserError, match="Unrecognized options: `colour`=red"):
        control(POINT, colour="red")


def config_of(**options: Any) -> ControlConfig:
    words, positional = to_words(ControlConfig, {"environment": POINT} | options)
    return configure(ControlConfig, words, positional)


def objective(policy: str = "gaussian", size: int = 1, **options: Any) -> Any:
    """(objective, conversion) for a policy of `size` action dimensions."""
    return make_objective(config_of(policy=policy, **options), size)[:2]


def test_settings_become_objectives() -> None:
    keep = float("inf")
    assert objective()[0] == PMPO(alpha=0.5, beta=1.0, covariance_beta=keep)
    assert objective(preset="r", coupled=True)[0] == PMPO(alpha=0.0, beta=2.0)
    # One in four is rejected: (1 - alpha) / rho = 0.5 / 0.25; with acceptances alone nothing need be bounded.
    assert objective(labels="best-worst", coupled=True)[0] == PMPO(alpha=0.5, beta=2.0)
    assert objective(preset="a")[0] == PMPO(alpha=1.0, beta=0.0, covariance_beta=keep)
    assert objective("categorical", preset="a", beta="0.25")[0] == PMPO(alpha=1.0, beta=0.25)
    assert objective(alpha=0.3, covariance_beta=2.0)[0] == PMPO(alpha=0.3, beta=1.4, covariance_beta=2.0)
    assert objective(method="dpo")[0] == DPO(beta=1.0) and objective(method="dpo", beta="20")[0] == DPO(beta=20.0)
    assert objective(method="rebel", eta=0.2) == (REBEL(eta=0.2), None)
    ours, label = objective(method="mpo", epsilon=0.3, epsilon_mean=0.02, epsilon_covariance=1e-4)
    assert ours == MPO(epsilon=0.3, epsilon_mean=0.02, epsilon_covariance=1e-4, epsilon_penalty=0.0) and label is None
    # The bounds are for each dimension of the action.
    wide, _ = objective(size=6, method="mpo", epsilon_mean=0.02)
    assert isinstance(wide, MPO) and wide.epsilon_mean == pytest.approx(0.12) and wide.epsilon == 0.1
    bins, _ = objective("categorical", method="mpo", epsilon_mean=2.5e-3, epsilon_covariance=1e-6)
    assert bins == MPO(decoupled=False, epsilon_penalty=0.0, epsilon_mean=2.5e-3, epsilon_covariance=1e-6)
    with pytest.raises(UserError, match="`covariance_beta` is for Gaussian"):
        objective("categorical", covariance_beta=1.0)


@pytest.mark.parametrize(
    ("options", "bound"),
    [
        ({"beta": "0.5", "policy": "categorical"}, "1"),
        ({"beta": "1", "coupled": True, "preset": "r"}, "2"),
        ({"beta": "1", "policy": "categorical", "labels": "best-worst"}, "2"),
        ({"beta": "1.4", "policy": "categorical", "num_actions": 3}, "1.5"),
        ({"beta": "1", "policy": "categorical"}, None),
        ({"preset": "r", "policy": "categorical"}, None),
        ({"preset": "a", "beta": "0", "policy": "categorical"}, None),
        ({"beta": "0.5"}, None),
        ({"method": "mpo"}, None),
    ],
)
def test_a_beta_below_its_bound_is_warned_of(
    options: dict[str, Any], bound: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, **(SMALL | options | {"quiet": False, "steps": 30}))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert len(lines) == (bound is not None)
    assert bound is None or f"below (1 - alpha) / (rejected fraction) = {bound}:" in lines[0]


def test_values_become_labels_and_preferences() -> None:
    values = Rewards(torch.tensor([[3.0, 1.0, 2.0, -4.0]]), torch.ones(1, 4, dtype=torch.bool))
    expected = {"halves": [1, -1, 1, -1], "best-worst": [1, 0, 0, -1], "mean": [1, 1, 1, -1]}
    for labels, sign in expected.items():
        found = objective(labels=labels)[1](values)
        assert isinstance(found, Labels) and found.sign.tolist() == [sign]
    pair = objective(method="dpo")[1](values)
    assert isinstance(pair, Preferences) and pair.observed[0].nonzero().tolist() == [[0, 3], [3, 0]]
    assert pair.win[0, 0, 3] == 1 and pair.win[0, 3, 0] == 0


def test_flat_options_find_their_groups() -> None:
    config = config_of(method="mpo", hidden=(4,), seed=3, batch_size=5)
    assert (config.method, config.agent.hidden, config.trial.seed, config.critic.batch_size) == ("mpo", (4,), 3, 5)


LEARNING: dict[str, Any] = {
    "steps": 800, "warmup_steps": 200, "steps_per_update": 1.0, "hidden": (32,), "batch_size": 64,
    "refresh_every": 20, "eval_every": 0, "eval_episodes": 10, "discount": 0.9, "lr": 2e-3, "critic_lr": 5e-3,
}  # fmt: skip
SOONER: dict[str, Any] = {"steps": 500, "refresh_every": 10, "lr": 4e-3, "critic_lr": 1e-2}
"""With both sides' labels, and with rejections alone, half of the updates are enough."""


def optimum(episodes: int) -> float:
    """The best mean return of the evaluation's episodes."""
    crew = Crew(lambda: make_environment(POINT), episodes, evaluation.SEED)
    return statistics.fmean(worlds.best_return(float(seen[0])) for seen in crew.observations)


@pytest.mark.parametrize(
    "options",
    [
        {"preset": "ar"} | SOONER,
        pytest.param({"preset": "r", "beta": "2"} | SOONER, marks=pytest.mark.slow),
        pytest.param({"method": "mpo", "epsilon_mean": 0.02, "epsilon_covariance": 1e-3}, marks=pytest.mark.slow),
        pytest.param({"preset": "ar", "policy": "categorical", "lr": 5e-3}, marks=pytest.mark.slow),
    ],
    ids=["ar", "r", "mpo", "ar-categorical"],
)
def test_it_learns_to_stand_still_at_nought(options: dict[str, Any], tmp_path: Path) -> None:
    """Standing where one begins is worth -5.4; walking off, -100 and more."""
    result = run(tmp_path, **(LEARNING | options))
    assert optimum(10) - 2 < statistics.fmean(result.details["returns"]) <= optimum(10) + 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["inverted", "shuffled"])
def test_wrong_labels_teach_nothing_good(wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right, draw = ValueLabelling.converter, torch.Generator().manual_seed(0)

    def mistaken(self: ValueLabelling, num_actions: int) -> Any:
        def label(values: Rewards) -> Any:
            found = right(self, num_actions)(values)
            if wrong == "inverted":
                return Labels(-found.sign, found.present)
            order = torch.rand(found.sign.shape, generator=draw).argsort(-1)
            return Labels(found.sign.gather(-1, order), found.present)

        return label

    monkeypatch.setattr(ValueLabelling, "converter", mistaken)
    result = run(tmp_path, **LEARNING | (SOONER if wrong == "inverted" else {}), preset="ar")
    assert statistics.fmean(result.details["returns"]) < (-50 if wrong == "inverted" else -4)


@pytest.mark.parametrize("value", ["many", True, [3]])
def test_what_is_no_number_is_refused_in_one_line(value: Any) -> None:
    with pytest.raises(UserError, match="steps"):
        control(POINT, steps=value)


def test_every_environment_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, closed = [], []
    begin = worlds.Point.__init__
    monkeypatch.setattr(worlds.Point, "__init__", lambda self, **given: (made.append(self), begin(self, **given))[1])
    monkeypatch.setattr(worlds.Point, "close", lambda self: closed.append(self))
    run(tmp_path, video=True)
    # One to act in, two to be evaluated in, one to try the camera, one to be filmed in.
    assert len(made) == 5 and {id(one) for one in made} == {id(one) for one in closed}
