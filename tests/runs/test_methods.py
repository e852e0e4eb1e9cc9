"""The table of methods: every row makes its objective, its options are its parts' fields, and each has help."""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

import pytest

import valence.objectives
from valence.errors import UserError
from valence.objectives.apa import APA
from valence.objectives.dpo import DPO, IPO, RPO, IPOAppendixE
from valence.objectives.dro import DRO
from valence.objectives.grpo import GRPO
from valence.objectives.kto import KTO
from valence.objectives.mpo import MPO
from valence.objectives.pmpo import PMPO, PRESETS
from valence.objectives.policy_gradient import REINFORCE, RLOO, CoPG
from valence.objectives.ppo import PPO
from valence.objectives.ppo_without_critic import PPOWithoutCritic
from valence.objectives.rebel import REBEL
from valence.objectives.scaled import ScaledLogProb
from valence.objectives.supervised import Supervised
from valence.runs.align import AlignConfig
from valence.runs.compare import CompareConfig
from valence.runs.control import ControlConfig
from valence.runs.demo import DemoConfig
from valence.runs.improve import steps_per_batch
from valence.runs.improve_images import ImagesConfig
from valence.runs.improve_language import ImproveConfig
from valence.runs.inspect import InspectConfig
from valence.runs.methods import METHODS, Method, describe, docstring_help
from valence.runs.offline_control import OfflineControlConfig
from valence.runs.options import GivenCompletions, Refreshing, Reuse, Shaping, ValueNetwork
from valence.runs.reward_model import RewardModelConfig
from valence.runs.search import SearchConfig
from valence.runs.settings import configure

CONFIGS: dict[str, Any] = {
    "align": AlignConfig, "improve": ImproveConfig, "improve-images": ImagesConfig, "control": ControlConfig,
    "offline-control": OfflineControlConfig, "search": SearchConfig,
}  # fmt: skip
OTHERS = (CompareConfig, DemoConfig, InspectConfig, RewardModelConfig)
REQUIRED: dict[str, dict[str, Any]] = {
    "align": {"feedback": ("f",)}, "improve": {"prompts": ("p",)}, "improve-images": {},
    "control": {"environment": "e"}, "offline-control": {"episodes": "e"}, "search": {"function": "sphere"},
}  # fmt: skip
WORDS = {
    "align": ["--model=m", "--out=o"], "improve": ["--model=m", "--out=o", "--reward=length"],
    "improve-images": ["--pipeline=p", "--out=o"],
}  # fmt: skip
ROWS = [(place, name) for place, table in METHODS.items() for name in table]


def made(place: str, name: str, *words: str) -> Any:
    """The configuration of a method, from words."""
    given = [*WORDS.get(place, []), f"--method={name}", *words]
    return configure(CONFIGS[place], given, REQUIRED[place])


def objective_of(place: str, name: str, *words: str) -> Any:
    return METHODS[place][name].make(made(place, name, *words).options)


def required(kind: type) -> set[str]:
    return {item.name for item in fields(kind) if item.init}


DEFAULTS: dict[tuple[str, str], Any] = {
    ("align", "pmpo"): PMPO(), ("align", "dro"): DRO(tau=1.0, value="token"), ("align", "rebel"): REBEL(eta=1.0),
    ("align", "kto"): KTO(beta=0.1), ("align", "dpo"): DPO(beta=0.1), ("align", "ipo"): IPO(beta=0.1),
    ("align", "rpo"): RPO(beta=0.1, sft_weight=1.0), ("align", "supervised"): Supervised(),
    ("improve", "rebel"): REBEL(eta=1.0, anchor="old"), ("improve", "pmpo"): PMPO(),
    ("improve", "spo"): REBEL(eta=1.0, anchor="old"), ("improve", "iterative-dpo"): DPO(beta=0.05, anchor="old"),
    ("improve", "rloo"): RLOO(), ("improve", "reinforce"): REINFORCE(baseline="mean"),
    ("improve", "ppo"): PPO(clip=0.2, value_clip=0.2, value_weight=0.1, gae_lambda=0.95),
    ("improve", "apa"): APA(advantage_temperature=0.1, value_weight=0.1, gae_lambda=0.95),
    ("improve", "copg"): CoPG(beta=0.1), ("improve", "grpo"): GRPO(clip=0.2, beta=0.04),
    ("improve-images", "rebel"): REBEL(eta=1.0, anchor="old"), ("improve-images", "pmpo"): PMPO(),
    ("improve-images", "spo"): REBEL(eta=1.0, anchor="old"), ("improve-images", "ppo"): PPOWithoutCritic(clip=0.01),
    ("improve-images", "rloo"): RLOO(), ("improve-images", "reinforce"): REINFORCE(baseline="mean"),
    ("improve-images", "dpo"): DPO(beta=0.05), ("improve-images", "iterative-dpo"): DPO(beta=0.05, anchor="old"),
    ("improve-images", "grpo"): GRPO(clip=0.2, beta=0.0), ("improve-images", "copg"): CoPG(beta=0.1),
    ("control", "pmpo"): PMPO(covariance_beta=math.inf),
    ("control", "mpo"): MPO(epsilon=0.1, epsilon_mean=0.02, epsilon_covariance=1e-5, epsilon_penalty=0.0),
    ("control", "dpo"): DPO(beta=1.0), ("control", "rebel"): REBEL(eta=1.0),
    ("offline-control", "pmpo"): PMPO(regularizer="bc"), ("search", "pmpo"): PMPO(),
}  # fmt: skip


@pytest.mark.parametrize(("place", "name"), ROWS)
def test_every_row_makes_its_objective_with_its_defaults(place: str, name: str) -> None:
    row = METHODS[place][name]
    # A new method's defaults are those of its objective, with what its row says.
    own = dict(row.fixed) | {key: value for key, value in row.defaults.items() if key in row.objective_fields}
    expected = DEFAULTS[place, name] if (place, name) in DEFAULTS else row.objective(**own)
    assert row.make(row.options()) == expected and objective_of(place, name) == expected


def test_how_often_a_batch_is_learned_from_and_what_a_nat_costs() -> None:
    """Defaults of the online methods: (num_epochs, kl_weight, refresh_every)."""

    def options(place: str, name: str) -> tuple[int, float, int]:
        row, given = METHODS[place][name], made(place, name).options
        return (
            row.part(Reuse, given).num_epochs, row.part(Shaping, given).kl_weight,
            row.part(Refreshing, given).refresh_every,
        )  # fmt: skip

    text = {
        "rebel": (4, 0.05, 0), "pmpo": (1, 0.0, 10), "spo": (4, 0.0, 0), "iterative-dpo": (4, 0.05, 0),
        "rloo": (1, 0.05, 0), "reinforce": (1, 0.05, 0), "ppo": (4, 0.05, 0), "apa": (1, 0.0, 0), "copg": (1, 0.0, 0),
        "grpo": (1, 0.0, 0),
    }  # fmt: skip
    assert {name: options("improve", name) for name in text} == text
    twice = {name: (2, 0.0, 0) for name in ("rebel", "spo", "ppo", "dpo", "iterative-dpo")}
    once = {name: (1, 0.0, 0) for name in ("rloo", "reinforce", "grpo", "copg")}
    images = twice | once | {"pmpo": (1, 0.0, 4)}
    assert {name: options("improve-images", name) for name in images} == images


def test_the_steps_that_a_collected_batch_takes() -> None:
    assert steps_per_batch("improve", "rebel", batch_size=10) == 4
    assert steps_per_batch("improve", "rebel", batch_size=10, minibatch_size=4) == 4 * 3
    assert steps_per_batch("improve", "rebel", batch_size=10, num_epochs=2, minibatch_size=5) == 2 * 2
    assert steps_per_batch("improve", "rloo", batch_size=10) == 1
    assert steps_per_batch("improve-images", "rebel", batch_size=8) == 2
    assert steps_per_batch("improve-images", "rebel", batch_size=8, preset="paper") == 1


def test_which_methods_have_a_critic_and_which_compare_samples() -> None:
    critics = {(place, name) for place, name in DEFAULTS if METHODS[place][name].critic is not None}
    assert critics == {("align", "dro"), ("improve", "ppo"), ("improve", "apa")}
    for place in ("improve", "improve-images"):
        alone = {name for where, name in DEFAULTS if where == place and not METHODS[place][name].compares}
        assert alone == {"ppo", "reinforce", "apa"} & set(METHODS[place])
    given = {name for place, name in DEFAULTS if GivenCompletions in METHODS[place][name].parts}
    assert given == {"rebel", "iterative-dpo", "copg"}


@pytest.mark.parametrize(("place", "name"), ROWS)
def test_options_are_the_fields_of_the_objective_the_conversion_and_the_parts(place: str, name: str) -> None:
    row = METHODS[place][name]
    sources = [row.convert, *row.parts]
    sources += [Refreshing] if row.anchor == "refreshed" else []
    sources += [ValueNetwork] if row.critic is not None else []
    expected = (required(row.objective) - set(row.fixed)).union(*(required(source) for source in sources))
    options = required(row.options)
    assert options == expected
    assert not options & set(row.fixed)
    assert set(row.fixed) <= required(row.objective) and set(row.defaults) <= options
    assert all(item.default is not MISSING for item in fields(row.options))


def test_no_option_of_a_method_has_the_name_of_a_shared_one() -> None:
    """Each option has one place; a method's options and the run's stand in one flat config.yaml."""
    for place, name in ROWS:
        shared = names_of(CONFIGS[place]) - {"options"}
        assert not shared & required(METHODS[place][name].options), (place, name)


def names_of(kind: Any) -> set[str]:
    """The flat names of a configuration class."""
    found: set[str] = set()
    for name, value in vars(kind()).items():
        found |= names_of(type(value)) if is_dataclass(value) else {name}
    return found


def objectives() -> set[type]:
    """Every objective class of the package."""
    found: set[type] = set()
    for module in pkgutil.iter_modules(valence.objectives.__path__):
        for kind in vars(importlib.import_module(f"valence.objectives.{module.name}")).values():
            if inspect.isclass(kind) and is_dataclass(kind) and hasattr(kind, "needs") and hasattr(kind, "prepare"):
                found.add(kind)
    return found


DECIDED = {"anchor", "decoupled", "epsilon_penalty"}
"""Fields that the place decides: which policy is the anchor, and what an actor's kind makes of MPO."""


def test_every_field_of_every_objective_can_be_reached() -> None:
    rows = [row for table in METHODS.values() for row in table.values()]
    # What wraps another objective, and the variant of a check against the paper's appendix, are no methods.
    found = {kind for kind in objectives() if not kind.__name__.startswith("_")} - {ScaledLogProb, IPOAppendixE}
    assert found == {row.objective for row in rows}
    for kind in found:
        own = [row for row in rows if row.objective is kind]
        reached = set[str]().union(*(row.objective_fields for row in own))
        assert required(kind) - reached <= DECIDED
        assert all(required(kind) == row.objective_fields | set(row.fixed) for row in own)


def helps(kind: Any) -> dict[str, str]:
    """Name -> help of every option of a configuration class, as the command line shows it."""
    found = docstring_help(kind)
    return {item.name: found[item.name] for item in fields(kind) if not is_dataclass(getattr(kind(), item.name))}


@pytest.mark.parametrize("kind", [*CONFIGS.values(), *OTHERS], ids=lambda kind: kind.__name__)
def test_every_shared_option_has_help(kind: Any) -> None:
    groups = [type(value) for value in vars(kind()).values() if is_dataclass(value)]
    for group in (kind, *groups):
        assert all(len(text) > 10 for text in helps(group).values()), helps(group)


@pytest.mark.parametrize(("place", "name"), ROWS)
def test_every_option_of_a_method_has_help(place: str, name: str) -> None:
    row: Method = METHODS[place][name]
    for option, text in helps(row.options).items():
        assert len(text) > 10 and text.endswith((".", ")")), (option, text)


@pytest.mark.parametrize("place", ["align", "improve", "improve-images", "control", "search"])
@pytest.mark.parametrize(("preset", "alpha", "beta"), [("ar", 0.5, 0.5), ("a", 1.0, 0.0), ("r", 0.0, 2.0)])
def test_pmpos_presets_are_the_papers(place: str, preset: str, alpha: float, beta: float) -> None:
    objective = objective_of(place, "pmpo", f"--preset={preset}")
    assert (objective.alpha, objective.beta) == (alpha, beta) == (PRESETS[preset]().alpha, PRESETS[preset]().beta)
    # An option that is given wins; alpha is what the preset is.
    assert objective_of(place, "pmpo", f"--preset={preset}", "--beta", "3").beta == 3
    with pytest.raises(UserError, match="alpha"):
        objective_of(place, "pmpo", f"--preset={preset}", "--alpha", "0.25")


@pytest.mark.parametrize("order", [1, -1])
def test_the_rebel_papers_presets_for_images(order: int) -> None:
    words = ["--preset", "paper"]
    rebel, ppo = made("improve-images", "rebel", *words), made("improve-images", "ppo", *words)
    assert (rebel.train.lr, rebel.options.num_epochs, rebel.options.eta) == (3e-4, 1, 1.0)
    assert (ppo.train.lr, ppo.options.num_epochs, ppo.options.clip) == (1e-4, 2, 1e-4)
    assert METHODS["improve-images"]["ppo"].make(ppo.options) == PPOWithoutCritic(clip=1e-4)
    for config in (rebel, ppo):
        assert config.train.max_grad_norm == 5.0 and config.judging.log_prob_scale == "1/D"
        assert config.judging.scale(64) == 1 / 64
    # What is given beside a preset wins, wherever it stands.
    given = [["--lr", "1e-3"], ["--max-grad-norm", "1"], ["--log-prob-scale", "0.5"], ["--clip", "0.3"], words]
    own = made("improve-images", "ppo", *(word for part in given[::order] for word in part))
    assert (own.train.lr, own.train.max_grad_norm, own.judging.scale(64), own.options.clip) == (1e-3, 1.0, 0.5, 0.3)
    plain = made("improve-images", "rebel")
    assert plain.train.lr is None and plain.judging.scale(64) == 1


def test_images_have_defaults_of_their_own() -> None:
    config = made("improve-images", "rebel")
    assert (config.train.batch_size, config.train.epochs, config.train.warmup(1000)) == (8, 20.0, 0)
    assert (config.run.eval_every, config.run.save_every) == (10, 10)
    text = made("improve", "rebel")
    assert (text.train.batch_size, text.train.epochs, text.train.warmup(1000), text.train.warmup(9000)) == (
        32, 1.0, 100, 150,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("place", "preset", "method", "said"),
    [
        ("align", "ar", "kto", "`preset` is 'ar', and must be left out: kto has none"),
        ("align", "x", "pmpo", "`preset` is 'x', and must be one of ar, a, r"),
        ("improve-images", "paper", "pmpo", "must be one of ar, a, r"),
        ("improve-images", "ar", "rebel", "must be one of paper"),
        ("improve-images", "paper", "grpo", "left out: grpo has none"),
        ("offline-control", "ar", "pmpo", "left out: pmpo has none"),
    ],
)
def test_a_preset_that_a_method_does_not_have_is_refused(place: str, preset: str, method: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        made(place, method, f"--preset={preset}")
    assert said in str(caught.value)


RANGES: list[tuple[str, str, str, str]] = [
    ("align", "dpo", "beta", "0"), ("align", "dpo", "label_smoothing", "0.5"), ("align", "kto", "beta", "0"),
    ("align", "ipo", "beta", "-1"), ("align", "rpo", "sft_weight", "-1"), ("align", "rebel", "eta", "0"),
    ("align", "kto", "desirable_weight", "-1"), ("align", "dro", "tau", "0"), ("align", "pmpo", "alpha", "1.5"),
    ("align", "pmpo", "beta", "-1"), ("align", "pmpo", "score_temperature", "0"),
    ("align", "supervised", "accepted_fraction", "2"), ("improve", "ppo", "clip", "0"),
    ("improve", "ppo", "gae_lambda", "1.5"), ("improve", "ppo", "value_weight", "-1"),
    ("improve", "apa", "advantage_temperature", "0"), ("improve", "grpo", "clip", "-1"),
    ("improve", "copg", "beta", "0"), ("improve", "iterative-dpo", "beta", "0"),
    ("improve", "rebel", "kl_weight", "-1"),
    ("improve", "rebel", "num_epochs", "0"), ("improve", "rebel", "minibatch_size", "-1"),
    ("improve", "rebel", "num_given", "-1"), ("improve", "pmpo", "refresh_every", "-1"),
    ("improve", "rebel", "eta_schedule", "0"), ("improve-images", "ppo", "clip", "0"),
    ("control", "mpo", "epsilon", "0"), ("control", "pmpo", "covariance_beta", "-1"), ("search", "pmpo", "alpha", "2"),
]  # fmt: skip


@pytest.mark.parametrize(("place", "method", "option", "value"), RANGES)
def test_an_options_range_is_checked_when_the_run_is_configured(
    place: str, method: str, option: str, value: str
) -> None:
    with pytest.raises(UserError) as caught:
        made(place, method, f"--{option.replace('_', '-')}", value)
    assert str(caught.value).startswith(f"`{option}` "), str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_objective_is_described_by_its_name_and_its_fields() -> None:
    assert describe(REBEL(eta=1 / 3, anchor="old")) == "REBEL(eta=0.3333, anchor=old)"
    assert describe(PMPO(alpha=0.5, beta="auto")) == "PMPO(alpha=0.5, beta=auto, regularizer=kl)"
    assert describe(ScaledLogProb(objective=REBEL(eta=2.0), log_prob_scale=0.5)).startswith("ScaledLogProb(objective=")
