"""Settings, cached rows and runs side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from experiments.bandit import methods as bandit
from experiments.bandit.methods import Problem
from experiments.common.experiment import Experiment, Setting, Size, cached, key, plain


@dataclass(frozen=True, kw_only=True)
class SomeSize(Size):
    steps: int = 1


@dataclass(frozen=True)
class SomeSetting(Setting):
    options: Mapping[str, Any] = field(default_factory=dict)


def doubled(setting: SomeSetting, size: SomeSize, folder: Path) -> dict[str, Any]:
    """Leaves a mark of each call."""
    if "fails" in setting.options:
        raise ValueError("it fails")
    with (folder / "calls.txt").open("a") as file:
        file.write(f"{setting.name}\n")
    return {"value": 2 * size.steps * setting.options.get("factor", 1)}


def make(tmp_path: Path, **more: Any) -> Experiment[SomeSize]:
    return Experiment("bandit", SomeSize(steps=3), tmp_path, "full", **{"workers": 1, **more})


def test_a_key_is_of_all_that_a_row_depends_on() -> None:
    setting, size = SomeSetting("A b=1", 3, {"lr": 0.1}), SomeSize(steps=2)
    assert key(setting, size).startswith("A-b-1-3-")
    same = [(setting, replace(size, seeds=(1, 2), tune=True), Path("b")), (replace(setting), size, Path("a"))]
    assert {key(*one) for one in same} == {key(setting, size, Path("c"))}
    other = [
        (replace(setting, seed=4), size), (replace(setting, options={"lr": 0.2}), size), (setting, SomeSize(steps=3)),
        (setting, size, Path("a"), 1), (setting, size),
    ]  # fmt: skip
    assert len({key(*one) for one in other}) == 5
    with pytest.raises(TypeError, match="must hold JSON values"):
        key(setting, object())


def test_plain_names_have_letters_digits_and_dashes() -> None:
    assert plain("DRO-V, best of 6") == "DRO-V-best-of-6"
    assert plain("PMPO-R beta=0.5") == "PMPO-R-beta-0-5"


def test_a_row_is_made_once_and_holds_its_name_seed_and_commit(tmp_path: Path) -> None:
    arguments = (SomeSetting("a", 5, {"factor": 2}), SomeSize(steps=3), tmp_path)
    first = cached(tmp_path / "rows", doubled, *arguments)
    assert first == {"name": "a", "seed": 5, "commit": first["commit"], "value": 12}
    assert cached(tmp_path / "rows", doubled, *arguments) == first
    assert (tmp_path / "calls.txt").read_text() == "a\n"
    assert [path.suffix for path in (tmp_path / "rows").iterdir()] == [".json"]


def test_rows_come_in_the_order_of_the_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = make(tmp_path)
    settings = [SomeSetting("a", seed, {"factor": factor}) for seed, factor in enumerate((3, 1, 2))]
    rows = experiment.run_all(
        doubled, settings, experiment.size, tmp_path, log=lambda row: f"seed {row['seed']}: {row['value']}"
    )
    assert [row["value"] for row in rows] == [18, 6, 12]
    assert capsys.readouterr().out == "  seed 0: 18\n  seed 1: 6\n  seed 2: 12\n"
    assert experiment.commits == {rows[0]["commit"]}
    experiment.run_all(doubled, settings, experiment.size, tmp_path)
    assert capsys.readouterr().out.splitlines()[-1] == "  3/3 runs"
    assert len((tmp_path / "calls.txt").read_text().splitlines()) == 3


def test_a_failing_run_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = make(tmp_path)
    settings = [SomeSetting("a"), SomeSetting("b", 0, {"fails": True}), SomeSetting("c")]
    with pytest.raises(ValueError, match="it fails"):
        experiment.run_all(doubled, settings, experiment.size, tmp_path)
    rows = experiment.run_all(doubled, settings, experiment.size, tmp_path, keep_going=True)
    assert [row["name"] for row in rows] == ["a", "c"]
    assert capsys.readouterr().out.count("b seed 0 FAILED: it fails") == 2


@pytest.mark.slow
def test_processes_side_by_side_give_the_same_rows(tmp_path: Path) -> None:
    """A function of a test file cannot be imported in another process: these are runs of the bandit experiment."""
    problem = Problem("sphere", 2)
    settings = [bandit.Setting("random search", seed, part="product", problem=problem, limit=9) for seed in range(3)]
    alone = make(tmp_path / "one").run_all(bandit.run_setting, settings)
    assert make(tmp_path / "two", workers=2).run_all(bandit.run_setting, settings) == alone
    unknown = [settings[0], replace(settings[0], name="nope"), settings[1]]
    with pytest.raises(KeyError, match="nope"):
        make(tmp_path / "three", workers=2).run_all(bandit.run_setting, unknown)
    assert len(list((tmp_path / "three" / "runs").glob("*.json"))) == 2


def test_smoke_takes_one_process_and_the_command_names_no_folder_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    size = SomeSize()
    smoke = Experiment("dro", size, tmp_path / "runs" / "dro", "smoke", 4)
    assert smoke.workers == 1
    assert smoke.command == "python -m experiments dro --smoke --out runs/dro --workers 4"
    full = Experiment("dro", size, Path("runs/dro"))
    assert full.workers >= 1 and full.command == "python -m experiments dro --out runs/dro"
    elsewhere = Experiment("dro", size, tmp_path.parent / "other", "quick")
    assert elsewhere.command == "python -m experiments dro --quick --out other"


def test_the_page_is_the_experiments_own(tmp_path: Path) -> None:
    experiment = make(tmp_path)
    page = experiment.page({"samples": 4, "lr": 0.01, "target": 1e-6, "sigma": 0.3}, "A note.")
    assert page.startswith("# Bandit: standard functions\n\nPart A") and page.endswith("\n\nA note.")
    assert "4 samples per step" in page and "{" not in page
    control = Experiment("control", Size(), tmp_path, "full")
    assert "MPO was tuned on the cartpole only, and falls" in control.page({})
    assert "MPO was tuned on the cartpole only, and falls" not in replace(control, size_name="quick").page({})


def test_write_makes_results_and_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = replace(make(tmp_path), name="control", commits={"abc", "def"})
    path = experiment.write([{"method": "A", "return": 1.0}], [], ["control.png"], agent={"lr": 1})
    result = json.loads(path.read_text())
    assert list(result)[:7] == ["name", "rows", "claims", "command", "commit", "seeds", "machine"]
    assert result["commits"] == ["abc", "def"] and result["agent"] == {"lr": 1} and result["seeds"] == [0]
    page = (tmp_path / "README.md").read_text()
    assert "Its runs were made at abc, def." in page and "(control.png)" in page and "| A | 1.00 |" in page
    assert "Claims" not in page + capsys.readouterr().out
