"""Options of a run: what each may be, from Python, the command line or config.yaml; messages name the option."""

from __future__ import annotations

import math
import re
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import pytest
import yaml

from valence.cli.main import main, with_config_file
from valence.errors import UserError
from valence.objectives.pmpo import PMPO
from valence.runs.align import AlignConfig
from valence.runs.compare import CompareConfig
from valence.runs.control import ControlConfig
from valence.runs.improve_images import ImagesConfig
from valence.runs.improve_language import ImproveConfig
from valence.runs.methods import METHODS
from valence.runs.offline_control import OfflineControlConfig
from valence.runs.reward_model import RewardModelConfig
from valence.runs.run import write_settings
from valence.runs.search import SearchConfig
from valence.runs.settings import configure, preset_default, read_config, settings_of, to_words

CONFIGS: dict[str, Any] = {
    "align": AlignConfig, "improve": ImproveConfig, "improve-images": ImagesConfig, "control": ControlConfig,
    "offline-control": OfflineControlConfig, "search": SearchConfig,
}  # fmt: skip
GIVEN: dict[str, dict[str, Any]] = {
    "align": {"feedback": "f", "model": "m", "out": "o"},
    "improve": {"prompts": "p", "model": "m", "out": "o", "reward": "length"},
    "improve-images": {"pipeline": "p", "out": "o"}, "control": {"environment": "e"},
    "offline-control": {"episodes": "e", "out": "o"}, "search": {"function": "sphere"},
}  # fmt: skip


def made(place: str, *, chosen: str = "pmpo", **options: Any) -> Any:
    """The configuration as Python makes it; `chosen` stands for what the data say."""
    kind = CONFIGS[place]
    words, positional = to_words(kind, GIVEN[place] | options)
    choose = (lambda config: chosen) if place == "align" else None
    return configure(kind, words, positional, choose=choose)


def align_config(**options: Any) -> Any:
    return made("align", **options)


LEAST_ZERO = (
    "eval_fraction", "lora_rank", "micro_batch_size", "warmup_steps", "micro_batch_tokens", "max_grad_norm",
    "weight_decay", "seed", "eval_every", "eval_rows", "save_every", "threads",
)  # fmt: skip
ABOVE_ZERO = (
    "temperature", "lr", "epochs", "kl_budget", "lora_alpha", "max_new_tokens", "batch_size", "max_steps", "log_every",
    "eval_samples", "max_length",
)  # fmt: skip
OF_METHODS: dict[str, tuple[str, float]] = {
    "desirable_weight": ("kto", 0), "undesirable_weight": ("kto", 0), "sft_weight": ("rpo", 0),
    "label_smoothing": ("dpo", 0), "accepted_fraction": ("pmpo", 0), "rejected_fraction": ("pmpo", 0),
    "tau": ("dro", 1), "eta": ("rebel", 1), "value_lr": ("dro", 1), "score_temperature": ("pmpo", 1),
    "beta": ("dpo", 1), "alpha": ("pmpo", 0),
}  # fmt: skip
"""Option -> (a method that has it, 1 where the option must be above 0)."""

HUGE = 10**400
"""Larger than any float."""


def short(value: Any) -> str:
    return str(value)[:8]


def refused(place: str = "align", **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        made(place, **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 300 and "--" not in re.sub("(; see|missing:) valence.*", "", message)
    return message


def numbers(kind: Any) -> dict[str, type]:
    """Name -> int or float, of the options of a configuration class or group that are numbers."""
    found: dict[str, type] = {}
    for name, hint in get_type_hints(kind).items():
        value = getattr(kind(), name, None)
        parts = set(get_args(hint) or [hint]) - {NoneType}
        if is_dataclass(value):
            found |= numbers(type(value))
        elif parts & {int, float}:
            found[name] = (parts & {int, float}).pop()
    return found


NUMBERS = numbers(AlignConfig)


def test_every_number_is_in_one_of_these_tables() -> None:
    assert set(NUMBERS) == {*LEAST_ZERO, *ABOVE_ZERO}
    # A new method's own numbers are checked with its objective.
    assert set(OF_METHODS) <= {name for row in METHODS["align"].values() for name in numbers(row.options)}


@pytest.mark.parametrize("name", [*LEAST_ZERO, *ABOVE_ZERO])
def test_no_number_is_negative(name: str) -> None:
    assert refused(**{name: -1}).startswith(f"`{name}` is -1")


@pytest.mark.parametrize("name", ABOVE_ZERO)
def test_numbers_that_must_be_above_zero(name: str) -> None:
    assert refused(**{name: 0}).startswith(f"`{name}` is 0")


@pytest.mark.parametrize("name", LEAST_ZERO)
def test_numbers_that_may_be_zero(name: str) -> None:
    assert settings_of(align_config(**{name: 0}))[name] == 0


@pytest.mark.parametrize("name", OF_METHODS)
def test_numbers_of_the_methods(name: str) -> None:
    method, above = OF_METHODS[name]
    for wrong in (-1, "inf", "nan", HUGE, *([0] if above else [])):
        assert refused(method=method, **{name: wrong}).startswith(f"`{name}`")
    pair = {"accepted_fraction": 0.5, "rejected_fraction": 0.5} if name.endswith("fraction") else {}
    if not above:
        assert settings_of(align_config(method=method, **(pair | {name: 0})))[name] == 0


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["inf", "-inf", "nan", float("inf"), float("nan"), "1e999", HUGE], ids=short)
def test_every_number_is_finite(name: str, value: Any) -> None:
    assert refused(**{name: value}).startswith(f"`{name}`")


@pytest.mark.parametrize("name", [name for name, kind in NUMBERS.items() if kind is int])
def test_a_whole_number_is_not_larger_than_torch_takes_and_has_no_fraction(name: str) -> None:
    assert "at most" in refused(**{name: 2**40})
    assert refused(**{name: 2.5}).startswith(f"`{name}`")
    assert settings_of(align_config(**{name: 4.0}))[name] == 4, "YAML and Python write whole numbers either way"


def test_a_message_says_what_is_wrong() -> None:
    see = "; see valence align --help"
    assert refused(lr="inf") == f"`lr` is inf, and must be finite{see}"
    assert refused(lr=0) == f"`lr` is 0.0, and must be above 0{see}"
    assert refused(max_grad_norm=-1) == f"`max_grad_norm` is -1.0, and must be at least 0{see}"
    assert refused(threads=5000) == f"`threads` is 5000, and must be at most 1024{see}"
    assert refused(epochs=1e300) == f"`epochs` is 1e+300, and must be at most 1000000{see}"
    assert refused(eval_fraction=1) == f"`eval_fraction` is 1.0, and must be below 1{see}"
    assert "'much'" in refused(method="dpo", beta="much")


@pytest.mark.parametrize("value", ["inf", "nan", "-1", -0.5, float("inf"), "1e999", HUGE, "much"], ids=short)
def test_pmpos_beta_is_a_finite_number_or_auto(value: Any) -> None:
    assert refused(beta=value).startswith("`beta`")
    assert align_config(beta="auto").options.beta == "auto" and align_config(beta=0).options.beta == 0.0


def test_a_preset_leaves_beta_to_the_bound_where_weights_come_from_scores() -> None:
    assert align_config(method="pmpo", preset="ar").options.beta == 0.5
    assert align_config(method="pmpo", preset="ar", score_temperature=1.0).options.beta == "auto"
    assert align_config(method="pmpo", preset="ar", score_temperature=1.0, beta=2.0).options.beta == 2.0


@pytest.mark.parametrize(("preset", "alpha"), [("ar", 0.5), ("a", 1.0), ("r", 0.0)])
def test_a_preset_and_an_alpha_clash(preset: str, alpha: float) -> None:
    assert align_config(preset=preset).options.alpha == alpha
    message = refused(preset=preset, alpha=0.25)
    assert f"'{preset}'" in message and f"{alpha:g}" in message and "`alpha`" in message
    assert align_config(alpha=0.25).options.alpha == 0.25
    assert align_config(preset=None, alpha=0.25).options.alpha == 0.25


@pytest.mark.parametrize("name", ["feedback", "eval_feedback"])
def test_feedback_is_a_path_or_a_list_of_paths(name: str) -> None:
    for wrong in (5, True, 1.5, {"a": "b"}, [1], ["a", None], b"a"):
        assert f"`{name}`" in refused(**{name: wrong})
    for right, expected in (("a", ["a"]), (["a", Path("b")], ["a", "b"]), (Path("a"), ["a"])):
        assert settings_of(align_config(**{name: right}))[name] == expected
    for none in (None, []):
        if name == "feedback":
            assert refused(feedback=none).startswith("feedback missing: valence align FEEDBACK")
        else:
            assert settings_of(align_config(eval_feedback=none))[name] == []


@pytest.mark.parametrize("name", ["model", "out", "separator", "method", "device"])
def test_texts_are_texts(name: str) -> None:
    for wrong in (True, ["a"], {"a": "b"}):
        assert f"`{name}`" in refused(**{name: wrong})
    assert align_config(model="m", out=2024).out == "2024"
    assert align_config(model=Path("a") / "b").model == "a/b"
    assert "`model`" in refused(model=None) and align_config(separator=None).data.separator is None
    for odd in ("", "\n", "--lr", "-- x", "=", " ", "--method=dpo"):
        assert align_config(separator=odd).data.separator == odd


def test_true_and_false_are_said_as_such() -> None:
    """A text such as "no" or "false" would count as true."""
    for wrong in ("no", "false", 0, 1, None):
        assert refused(strict=wrong).startswith(f"`strict` is {wrong!r}, and must be True or False")
        assert refused(method="dro", standardize=wrong).startswith(f"`standardize` is {wrong!r}, and must be True or F")
    for right in (True, False):
        assert align_config(strict=right).data.strict is right
        assert align_config(method="dro", standardize=right).options.standardize is right


def test_one_value_is_no_list_and_no_mapping() -> None:
    """A second value would be read as the next positional argument."""
    for wrong in ([1, 2], (1,), {"a": 1}):
        assert refused(lr=wrong).startswith("`lr`")
        assert refused(method="dro", tau=wrong).startswith("`tau`")
    assert made("improve", eta_schedule=(1e6, 1e4, 0.5)).options.eta_schedule == (1e6, 1e4, 0.5)
    assert made("improve", eta_schedule=[2]).options.eta_schedule == (2.0,)
    assert made("improve").options.eta_schedule == ()
    assert refused("improve", eta_schedule=(1.0, -1.0)).startswith("`eta_schedule` is (1.0, -1.0), and must be finite")


def test_values_of_yaml_and_of_python_are_read_alike() -> None:
    config = align_config(feedback="f", model="m", out="o", lr="1e-4", beta=2, lora_rank=4, eval_feedback="e")
    assert (config.train.lr, config.options.beta, config.network.lora_rank) == (1e-4, 2.0, 4)
    assert config.data.eval_feedback == ("e",) and config.feedback == ("f",)
    assert align_config(kl_budget=None, lr=None).run.kl_budget is None
    # None is "left out" where that is the default, and a value where it is not.
    assert made("improve-images", method="ppo", preset="paper", lr=None).train.lr == 1e-4
    assert made("improve-images").train.warmup_steps == 0
    assert made("improve-images", warmup_steps=None).train.warmup_steps is None
    assert made("control").options.covariance_beta == math.inf
    assert made("control", covariance_beta=None).options.covariance_beta is None


WORDS = [
    "--method dpo --beta inf", "--method dro --tau inf", "--method dro --tau nan", "--method rebel --eta inf",
    "--lr inf", "--lr nan", "--epochs inf", "--method kto --undesirable-weight -1", "--method rpo --sft-weight -1",
    "--weight-decay -1", "--method dro --value-lr -1", "--threads -1", "--max-grad-norm -1", "--warmup-steps -5",
    "--lora-alpha -3", "--eval-every -1", "--save-every -1", "--eval-rows -1", "--method pmpo --preset a --alpha 0.5",
    "--method dpo --label-smoothing 0.7", "--reference-dtype bfloat16 --lora-rank 2", "--max-steps 0.5",
]  # fmt: skip


@pytest.mark.parametrize("words", WORDS)
def test_the_command_line_says_one_line_and_exits_with_2(
    words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["align", "nowhere.jsonl", "--model", "small-lm", "--out", "nowhere", *words.split()])
    output = capsys.readouterr()
    assert stop.value.code == 2 and not output.out
    names = [word for word in words.split() if word.startswith("--") and word != "--method"]
    assert output.err.count("\n") == 1 and any(name in output.err for name in names), output.err
    assert "`" not in output.err and not Path("nowhere").exists()


@pytest.mark.parametrize("line", ["feedback: 5", "eval_feedback: true", "max_grad_norm: -.inf", "lr: .nan", "lr: [1]"])
def test_a_config_file_is_checked_too(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text(line)
    with pytest.raises(SystemExit) as stop:
        main(["align", "--config", str(tmp_path / "config.yaml"), "--model", "small-lm", "--out", "nowhere"])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert f"--{line.split(':')[0].replace('_', '-')}" in error


@pytest.mark.parametrize(
    ("content", "said"),
    [("", "must hold fields"), ("- a\n- b\n", "must hold fields"), ("a: [", "cannot be read"), ("\x00", "cannot be")],
)
def test_a_config_file_that_is_no_mapping_is_refused(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(UserError, match=said):
        read_config(str(tmp_path / "config.yaml"))


def test_an_option_in_a_config_file_that_there_is_not_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text("learning-rate: 1\n")
    with pytest.raises(SystemExit):
        main(["align", "f", "--config", str(tmp_path / "config.yaml"), "--model", "m", "--out", "o"])
    assert "learning-rate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "option", "owners"),
    [
        ("kto", {"score_temperature": 1.0}, "pmpo"), ("dpo", {"tau": 2.0}, "dro"), ("dro", {"beta": 0.1}, "pmpo"),
        ("supervised", {"alpha": 1.0}, "pmpo"), ("rebel", {"undesirable_weight": 2.0}, "kto"),
        ("pmpo", {"eta": 0.5}, "rebel"), ("kto", {"standardize": False}, "dro"),
    ],
)  # fmt: skip
def test_an_option_of_another_method_is_refused_and_its_owner_named(
    method: str, option: dict[str, Any], owners: str
) -> None:
    name = next(iter(option))
    message = refused(method=method, **option)
    assert f"`{name}`" in message and "belongs to" in message and owners in message
    # What "auto" comes to is known when the data are read, and the option is checked then.
    assert "belongs to" in refused(chosen=method, **option)
    assert "belongs to" in refused(method="auto", chosen=method, **option)


def test_an_option_that_no_method_has_is_refused() -> None:
    assert "`no_such`" in refused(no_such=1) and "belongs" not in refused(no_such=1)
    assert refused(method="nope").startswith("`method` is 'nope', and must be one of auto, pmpo, dro")
    assert refused("improve", method="kto").startswith("`method` is 'kto', and must be one of rebel, pmpo")
    assert refused("improve", reference_cache="kept").startswith("Unrecognized options: `reference_cache`")
    assert "micro_batch_tokens" in refused("improve-images", micro_batch_tokens=5)


def test_auto_reads_the_options_of_any_method_first() -> None:
    """The choice is made from the data options; the method's own options follow."""
    seen: list[Any] = []

    def choose(config: Any) -> str:
        seen.append(config)
        return "dro"

    words, positional = to_words(AlignConfig, GIVEN["align"] | {"tau": 2, "standardize": False, "max_length": 9})
    config = configure(AlignConfig, words, positional, choose=choose)
    assert (config.method, config.options.tau, config.options.standardize) == ("dro", 2.0, False)
    assert len(seen) == 1 and seen[0].data.max_length == 9 and seen[0].feedback == ("f",)
    # What is missing or wrong is reported before anything is read.
    with pytest.raises(UserError, match="out missing"):
        configure(AlignConfig, ["--model=m"], {"feedback": ("f",)}, choose=choose)
    with pytest.raises(UserError, match="`max_length` is 1"):
        configure(AlignConfig, [*words, "--max-length=1"], positional, choose=choose)
    assert len(seen) == 1


def different(name: str, value: Any, hint: Any) -> Any:
    """Another value than `value` that an option may have; `value` where there is no other that goes with the rest."""
    literals = [part for part in get_args(hint) if isinstance(part, str)]
    if isinstance(value, bool):
        return not value
    if literals and name not in ("labels", "pairs", "use", "policy", "kind"):
        return next(part for part in reversed(literals) if part != value)
    if isinstance(value, int | float) and math.isfinite(value):
        return value * 2 + 1 if isinstance(value, int) else value / 2 + 0.01
    return value


UNTOUCHED = {"resume", "bins", "threshold", "alpha", "log_prob_scale", "embedding", "covariance_beta"}
"""Options whose other values need another option beside them."""


@pytest.mark.parametrize(("place", "method"), [(place, name) for place in METHODS for name in METHODS[place]])
def test_config_yaml_is_the_configuration(place: str, method: str, tmp_path: Path) -> None:
    """Every option, away from its default: written to config.yaml and read again, it is the same configuration."""
    kind, row = CONFIGS[place], METHODS[place][method]
    default = preset_default(kind, row, None, method)
    hints = get_type_hints(row.options)
    for item in fields(default):
        group = getattr(default, item.name)
        if is_dataclass(group):
            hints |= get_type_hints(type(group))
    moved = {
        name: different(name, value, hints.get(name))
        for name, value in settings_of(default).items()
        if name not in UNTOUCHED | {"method"} and value not in (None, "", [])
    }
    moved |= {"reference_dtype": ""} if "reference_dtype" in settings_of(default) else {}
    moved |= {"statistics_least": 20} if "statistics_least" in moved else {}
    moved |= {"accepted_fraction": 0.5, "rejected_fraction": 0.25} if {"accepted_fraction"} <= moved.keys() else {}
    first = made(place, **({"method": method} | moved))
    assert all(settings_of(first)[name] == value for name, value in moved.items())
    changed = [name for name, value in moved.items() if settings_of(default)[name] != value]
    assert len(changed) >= (5 if place in ("offline-control", "search") else 10)
    write_settings(tmp_path, settings_of(first))
    kept = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert kept == settings_of(first) and not {"preset", "resume"} & kept.keys()
    assert CONFIGS[place] is not AlignConfig or kept["method"] == method
    words, positional = to_words(kind, read_config(str(tmp_path / "config.yaml")))
    second = configure(kind, words, positional)
    assert settings_of(second) == settings_of(first) and second == first
    # The command line reads the same file.
    words, positional = with_config_file(kind, ["--config", str(tmp_path / "config.yaml")])
    assert settings_of(configure(kind, words, positional)) == settings_of(first)


@pytest.mark.parametrize(("place", "method", "preset"), [
    ("align", "pmpo", "ar"), ("improve", "pmpo", "r"), ("improve-images", "rebel", "paper"),
    ("improve-images", "ppo", "paper"), ("control", "pmpo", "a"),
])  # fmt: skip
def test_a_preset_is_written_out(place: str, method: str, preset: str) -> None:
    first = made(place, method=method, preset=preset)
    kept = settings_of(first)
    assert "preset" not in kept
    again = made(place, **kept)
    assert settings_of(again) == settings_of(first) and again == replace(first, preset=None)


def test_a_runs_own_file_goes_with_resume_and_what_is_given_wins(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("feedback: [f]\nmodel: m\nmethod: dro\ntau: 2.0\nlr: 0.5\nout: elsewhere\n")
    for words in (["--out", str(tmp_path), "--resume", "--lr", "0.25"], [f"--out={tmp_path}", "--resume", "--lr=0.25"]):
        config = configure(AlignConfig, *with_config_file(AlignConfig, words))
        assert (config.method, config.options.tau, config.train.lr) == ("dro", 2.0, 0.25)
        assert config.out == str(tmp_path) and config.run.resume and config.feedback == ("f",)
    # Without --resume the folder's file is not looked at.
    assert with_config_file(AlignConfig, ["--out", str(tmp_path)]) == (["--out", str(tmp_path)], {})
    named = ["other.jsonl", f"--config={tmp_path}/config.yaml"]
    config = configure(AlignConfig, *with_config_file(AlignConfig, named))
    assert config.feedback == ("other.jsonl",) and config.train.lr == 0.5


def test_another_method_beside_a_file_drops_the_options_of_the_files_method(tmp_path: Path) -> None:
    kept = settings_of(made("align", method="dro", tau=2.0, lr=0.5, batch_size=7))
    write_settings(tmp_path, kept)
    words = ["--config", str(tmp_path / "config.yaml"), "--method", "pmpo"]
    config = configure(AlignConfig, *with_config_file(AlignConfig, words))
    assert config.method == "pmpo" and (config.train.lr, config.train.batch_size) == (0.5, 7)
    assert METHODS["align"]["pmpo"].make(config.options) == PMPO()
    # The same method keeps them.
    words = ["--config", str(tmp_path / "config.yaml"), "--method", "dro"]
    config = configure(AlignConfig, *with_config_file(AlignConfig, words))
    assert config.options.tau == 2.0


def test_commands_without_methods_have_a_file_too(tmp_path: Path) -> None:
    for kind, given in (
        (RewardModelConfig, {"feedback": ["a", "b"], "model": "m", "out": "o", "kind": "preference", "embedding": 4}),
        (CompareConfig, {"models": ["a", "b"], "prompts": "p", "judge": "length", "out": "o", "temperature": 0.5}),
    ):
        words, positional = to_words(kind, given)
        first = configure(kind, words, positional)
        write_settings(tmp_path, settings_of(first))
        words, positional = to_words(kind, read_config(str(tmp_path / "config.yaml")))
        assert configure(kind, words, positional) == first
    with pytest.raises(UserError, match="`embedding` is 4, and must be left out"):
        words, positional = to_words(RewardModelConfig, {"feedback": "f", "model": "m", "out": "o", "embedding": 4})
        configure(RewardModelConfig, words, positional)
