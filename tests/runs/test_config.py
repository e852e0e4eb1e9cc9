"""The fields of a run: what each may be, said with its flag's name, wherever it was given."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from valence.cli.main import main
from valence.errors import UserError
from valence.runs.config import GROUPS, AlignConfig, align_config, flat

NUMBERS = {
    item.name: (item.type.removesuffix(" | None"), item.default)
    for kind in GROUPS.values()
    for item in fields(kind)
    if item.type.removesuffix(" | None") in ("int", "float")
}

LEAST_ZERO = (
    "sft_weight", "undesirable_weight", "eval_fraction", "lora_rank", "micro_batch_size", "warmup_steps",
    "micro_batch_tokens", "max_grad_norm", "weight_decay", "seed", "eval_every", "eval_rows", "save_every", "threads",
)  # fmt: skip
ABOVE_ZERO = (
    "score_temperature", "tau", "eta", "temperature", "lr", "value_lr", "epochs", "kl_budget", "lora_alpha",
    "max_new_tokens", "batch_size", "max_steps", "log_every", "eval_samples", "max_length",
)  # fmt: skip


HUGE = 10**400
"""Larger than any float."""


def short(value: Any) -> str:
    return str(value)[:8]


def refused(**options: Any) -> str:
    with pytest.raises(UserError) as caught:
        align_config(**options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 300
    return message


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def test_every_number_is_in_one_of_these_tables() -> None:
    assert set(NUMBERS) == {*LEAST_ZERO, *ABOVE_ZERO, "alpha"}


@pytest.mark.parametrize("name", [*LEAST_ZERO, *ABOVE_ZERO, "alpha"])
def test_no_number_is_negative(name: str) -> None:
    assert refused(**{name: -1}).startswith(f"{flag(name)} is -1")


@pytest.mark.parametrize("name", ABOVE_ZERO)
def test_numbers_that_zero_is_no_value_of(name: str) -> None:
    assert refused(**{name: 0}).startswith(f"{flag(name)} is 0")


@pytest.mark.parametrize("name", LEAST_ZERO)
def test_numbers_that_may_be_zero(name: str) -> None:
    assert flat(align_config(**{name: 0}))[name] == 0


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["inf", "-inf", "nan", float("inf"), float("nan"), "1e999", HUGE], ids=short)
def test_every_number_is_finite(name: str, value: Any) -> None:
    assert refused(**{name: value}).startswith(f"{flag(name)} is ")


@pytest.mark.parametrize("name", [name for name, (kind, _) in NUMBERS.items() if kind == "int"])
def test_a_whole_number_is_not_larger_than_torch_takes(name: str) -> None:
    assert "at most" in refused(**{name: 2**40})


def test_what_is_wrong_is_what_is_said() -> None:
    assert refused(lr="inf") == "--lr is inf, and must be finite"
    assert refused(lr=0) == "--lr is 0.0, and must be above 0"
    assert refused(tau="-inf") == "--tau is -inf, and must be finite and above 0"
    assert refused(max_grad_norm=-1) == "--max-grad-norm is -1.0, and must be at least 0"
    assert refused(threads=5000) == "--threads is 5000, and must be at most 1024"
    assert refused(epochs=1e300) == "--epochs is 1e+300, and must be at most 1000000"
    assert refused(eval_fraction=1) == "--eval-fraction is 1.0, and must be below 1"


@pytest.mark.parametrize("value", ["inf", "nan", "-1", -0.5, float("inf"), "1e999", HUGE, "much"], ids=short)
def test_beta_is_a_finite_number_or_auto(value: Any) -> None:
    assert "--beta" in refused(beta=value)
    assert align_config(beta="auto").method.beta == "auto" and align_config(beta=0).method.beta == "0"


@pytest.mark.parametrize(("preset", "alpha"), [("ar", 0.5), ("a", 1.0), ("r", 0.0)])
def test_a_preset_and_another_alpha_clash(preset: str, alpha: float) -> None:
    assert align_config(preset=preset, alpha=alpha).method.alpha == alpha
    message = refused(preset=preset, alpha=0.25)
    assert f"--preset {preset}" in message and f"{alpha:g}" in message and "--alpha is 0.25" in message
    assert align_config(alpha=0.25).method.preset is None


@pytest.mark.parametrize("name", ["feedback", "eval_feedback"])
def test_feedback_is_a_path_or_a_list_of_paths(name: str) -> None:
    for wrong in (5, True, 1.5, {"a": "b"}, [1], ["a", None], b"a"):
        assert flag(name) in refused(**{name: wrong})
    for right, expected in (("a", ["a"]), (["a", Path("b")], ["a", "b"]), (Path("a"), ["a"]), (None, []), ([], [])):
        assert flat(align_config(**{name: right}))[name] == expected


@pytest.mark.parametrize("name", ["model", "out", "separator", "method", "device"])
def test_texts_are_texts(name: str) -> None:
    for wrong in (True, ["a"], {"a": "b"}):
        assert flag(name) in refused(**{name: wrong})
    assert align_config(model="m", out=2024).out == "2024"
    assert align_config(model=Path("a") / "b").model == "a/b"
    assert "--separator" in refused(separator=None)


def test_the_defaults_are_allowed_and_survive_a_file() -> None:
    config = align_config()
    assert config == AlignConfig() and align_config(**flat(config)) == config


@pytest.mark.parametrize(
    "words",
    [
        "--beta inf", "--tau inf", "--tau nan", "--eta inf", "--lr inf", "--lr nan", "--epochs inf",
        "--undesirable-weight -1", "--sft-weight -1", "--weight-decay -1", "--value-lr -1", "--threads -1",
        "--max-grad-norm -1", "--warmup-steps -5", "--lora-alpha -3", "--eval-every -1", "--save-every -1",
        "--eval-rows -1", "--preset a --alpha 0.5",
    ],
)  # fmt: skip
def test_the_command_line_says_one_line_and_exits_with_2(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["align", "nowhere.jsonl", "--model", "small-lm", "--out", "nowhere", *words.split()])
    said = capsys.readouterr()
    assert stop.value.code == 2
    assert said.err.count("\n") == 1 and words.split()[0] in said.err and not said.out
    assert not Path("nowhere").exists()


@pytest.mark.parametrize("line", ["feedback: 5", "eval_feedback: true", "max_grad_norm: -.inf", "lr: .nan"])
def test_a_config_file_is_checked_too(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text(line)
    with pytest.raises(SystemExit) as stop:
        main(["align", "--config", str(tmp_path / "config.yaml"), "--model", "small-lm", "--out", "nowhere"])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1
    assert flag(line.split(":")[0]) in said


@pytest.mark.parametrize(
    ("method", "option"),
    [("kto", {"preset": "a"}), ("dpo", {"tau": 2.0}), ("dro", {"beta": 0.1}), ("supervised", {"alpha": 1.0}),
     ("rebel", {"undesirable_weight": 2.0}), ("pmpo", {"eta": 0.5})],
)  # fmt: skip
def test_a_setting_that_the_method_does_not_read_is_refused(method: str, option: dict[str, Any]) -> None:
    name = next(iter(option)).replace("_", "-")
    assert refused(method=method, **option).endswith(f"must be left out: --method {method} does not read it")
    assert refused(method=method, **option).startswith(f"--{name} is ")
    # What auto comes to is not known yet.
    with pytest.raises(UserError, match=f"--method {method} does not read it"):
        align_config(feedback="f", model="m", out="o", **option).method.check_read_by(method)
