"""The table of methods: for each kind of run, name -> what the method minimises and how it is fed.

A method's options are the fields of its objective and of the small parts that its row names. Their help is what the
docstrings say. A new method is a row here, an objective's file and a test; see docs/adding-a-method.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeVar, get_type_hints

import docstring_parser

from valence.critics import dro_critic, token_critic
from valence.data.groups import Group, Takes
from valence.data.groups.adjust import (
    dro_groups,
    pairs_or_scores,
    scores_if_weighted,
    supervised_groups,
    with_two_scores,
)
from valence.data.records import Record
from valence.feedback.rules import BestOverWorst, Labelling, Pairing, SelfPlay, Unchanged, ValueLabelling
from valence.objectives.apa import APA
from valence.objectives.dpo import DPO, IPO, RPO
from valence.objectives.dro import DRO
from valence.objectives.fitting import (
    coupled_pmpo,
    kto_from_data,
    mpo_per_dimension,
    pmpo_from_data,
    supervised_from_data,
)
from valence.objectives.grpo import GRPO
from valence.objectives.kto import KTO
from valence.objectives.mpo import MPO
from valence.objectives.orpo import ORPO
from valence.objectives.pmpo import PMPO, PRESETS
from valence.objectives.policy_gradient import REINFORCE, RLOO, CoPG
from valence.objectives.ppo import PPO
from valence.objectives.ppo_without_critic import PPOWithoutCritic
from valence.objectives.rebel import REBEL
from valence.objectives.simpo import SimPO
from valence.objectives.supervised import Supervised
from valence.runs.options import (
    Coupling,
    EtaSchedule,
    GivenCompletions,
    Refreshing,
    Reuse,
    Shaping,
    Standardizing,
    ValueNetwork,
)

Part = TypeVar("Part")


@dataclass(frozen=True, kw_only=True)
class Method:
    """A row of the table.

    Args:
        objective: the class of the objective.
        takes: the feedback that groups of a file are converted to; a function of (records, objective) where it depends
            on them.
        convert: makes the objective's feedback of collected rewards; its fields are options.
        anchor: the reference: "initial" is the policy as it began, "refreshed" follows the policy, and then the
            samples are its own.
        critic: makes the critic from (objective, `ValueNetwork`, policy); None where the method has none.
        parts: other classes whose fields are options.
        fixed: fields of the objective that the row decides; they are no options.
        defaults: defaults of options that differ from their classes' own.
        prepare: (groups, parts by class, objective) -> (groups, notes): last adjustments of a file's groups.
        fit: (objective, facts) -> (objective, notes): what the objective takes from the data or the environment.
        compares: whether two actions of one context are needed.
        high_lr: whether the default learning rate is that of a small model at any size (DRO).
        presets: name -> function that makes the objective with the paper's constants.
        preset_options: name -> options of the run that go with the preset.
    """

    objective: type[Any]
    takes: Takes | Callable[[Sequence[Record], Any], Takes] = "rewards"
    convert: type[Any] = Unchanged
    anchor: Literal["initial", "refreshed"] = "initial"
    critic: Callable[[Any, ValueNetwork, Any], Any] | None = None
    parts: tuple[type[Any], ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[Sequence[Group], Any, Any], tuple[Sequence[Group], list[str]]] | None = None
    fit: Callable[[Any, Any], tuple[Any, list[str]]] | None = None
    compares: bool = True
    high_lr: bool = False
    presets: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    preset_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @cached_property
    def objective_fields(self) -> set[str]:
        """The objective's fields that are options."""
        return {item.name for item in fields(self.objective) if item.init} - set(self.fixed)

    @cached_property
    def sources(self) -> list[type[Any]]:
        """The classes whose fields are options."""
        refreshing = [Refreshing] if self.anchor == "refreshed" else []
        network = [ValueNetwork] if self.critic is not None else []
        return [self.objective, self.convert, *self.parts, *refreshing, *network]

    @cached_property
    def options(self) -> type:
        """The dataclass of the method's options. The help of each stands in its field's metadata."""
        found: dict[str, tuple[str, Any, Any]] = {}
        for source in self.sources:
            hints, help_of, usual = get_type_hints(source), docstring_help(source), source()
            for item in fields(source):
                if item.init and item.name not in self.fixed:
                    default = self.defaults.get(item.name, getattr(usual, item.name))
                    value = field(default=default, metadata={"help": help_of[item.name]})
                    found[item.name] = (item.name, hints[item.name], value)
        return make_dataclass("MethodOptions", found.values(), frozen=True, kw_only=True)

    def preset_values(self, preset: str, **given: Any) -> dict[str, Any]:
        """The fields of the objective that a preset sets beside those that are given; {} where there is none."""
        if preset not in self.presets:
            return {}
        # What the preset sets by itself may be taken back beside a given field.
        usual, alone, made = self.objective(), self.presets[preset](), self.presets[preset](**given)
        names = self.objective_fields - set(given)
        changed = {name for name in names for one in (alone, made) if getattr(one, name) != getattr(usual, name)}
        return {name: getattr(made, name) for name in changed}

    def make(self, options: Any) -> Any:
        """The objective; checks the parts too.

        Raises:
            ValueError: an option is out of range; the message begins with its name.
        """
        for kind in self.sources[1:]:
            self.part(kind, options)
        return self.objective(**self.fixed, **{name: getattr(options, name) for name in self.objective_fields})

    def part(self, kind: Callable[..., Part], options: object) -> Part:
        """The options of one part; its defaults where the row does not have it."""
        own = get_type_hints(kind)
        return kind(**{name: value for name, value in vars(options).items() if name in own})

    def feedback_kind(self, records: Sequence[Record], objective: Any) -> Takes:
        """What the groups of these records are converted to."""
        return self.takes(records, objective) if callable(self.takes) else self.takes


def docstring_help(kind: type) -> dict[str, str]:
    """Field -> its documentation: its metadata, an entry under `Args:`, or the string below it; bases included."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        try:
            parsed = docstring_parser.parse_from_object(base)
        except (OSError, TypeError):  # a class made at run time has no source
            parsed = docstring_parser.parse(base.__doc__ or "")
        found |= {item.arg_name: " ".join((item.description or "").split()) for item in parsed.params}
    return found | {item.name: item.metadata["help"] for item in fields(kind) if "help" in item.metadata}


def describe(objective: Any) -> str:
    """The objective's name and fields; fields that are None are omitted, numbers are shortened."""
    values = {item.name: getattr(objective, item.name) for item in fields(objective) if item.repr}
    shown = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in values.items()}
    return f"{type(objective).__name__}({', '.join(f'{k}={v}' for k, v in shown.items() if v is not None)})"


_pmpo = Method(objective=PMPO, takes="labels", presets=PRESETS)
_rebel = Method(objective=REBEL)
_dpo = Method(objective=DPO, takes="preferences")
_at_reference, _at_collector = {"anchor": "reference"}, {"anchor": "old"}
_gaussian_only = {"covariance_beta": None}

ALIGN: dict[str, Method] = {
    "pmpo": replace(_pmpo, takes=scores_if_weighted, prepare=with_two_scores, fit=pmpo_from_data, fixed=_gaussian_only),
    "dro": Method(objective=DRO, critic=dro_critic, parts=(Standardizing,), prepare=dro_groups, high_lr=True),
    "rebel": replace(_rebel, takes=pairs_or_scores, prepare=with_two_scores, fixed=_at_reference),
    "kto": Method(objective=KTO, takes="labels", fit=kto_from_data),
    "dpo": replace(_dpo, fixed=_at_reference),
    "ipo": Method(objective=IPO, takes="preferences", fixed=_at_reference),
    "rpo": Method(objective=RPO, takes="preferences", fixed=_at_reference),
    "simpo": Method(objective=SimPO, takes="preferences"),
    "orpo": Method(objective=ORPO, takes="preferences"),
    "supervised": Method(objective=Supervised, takes="labels", prepare=supervised_groups, fit=supervised_from_data),
}
"""Methods that learn from a file of feedback."""

_reused = {"num_epochs": 4}
_shaped = _reused | {"kl_weight": 0.05}
"""Methods without a hold on pi_0 of their own take the REBEL paper's price of a nat, and four epochs a batch."""
_weighted_pmpo = {
    "accepted_fraction": None, "rejected_fraction": None, "score_temperature": None, "regularizer": "kl",
    "covariance_beta": None,
}  # fmt: skip

IMPROVE: dict[str, Method] = {
    "rebel": replace(
        _rebel, convert=Pairing, fixed=_at_collector, defaults=_shaped,
        parts=(Reuse, Shaping, GivenCompletions, EtaSchedule),
    ),
    "pmpo": replace(
        _pmpo, convert=Labelling, anchor="refreshed", fixed=_weighted_pmpo, defaults={"refresh_every": 10},
        parts=(Reuse, Shaping),
    ),
    "spo": replace(
        _rebel, convert=SelfPlay, fixed=_at_collector, defaults=_reused, parts=(Reuse, Shaping, EtaSchedule),
    ),
    "iterative-dpo": replace(
        _dpo, convert=Pairing, fixed=_at_collector, defaults=_shaped | {"beta": 0.05},
        parts=(Reuse, Shaping, GivenCompletions),
    ),
    "rloo": Method(objective=RLOO, parts=(Shaping,), defaults={"kl_weight": 0.05}),
    "reinforce": Method(objective=REINFORCE, parts=(Shaping,), defaults={"kl_weight": 0.05}, compares=False),
    "ppo": Method(objective=PPO, critic=token_critic, parts=(Reuse, Shaping), defaults=_shaped, compares=False),
    "apa": Method(objective=APA, critic=token_critic, parts=(Reuse, Shaping), compares=False),
    "copg": Method(objective=CoPG, parts=(Reuse, Shaping, GivenCompletions)),
    "grpo": Method(objective=GRPO, parts=(Reuse, Shaping)),
}  # fmt: skip
"""Methods that learn from a reward of the model's own completions."""

_twice = {"num_epochs": 2, "kl_weight": 0.0}
"""In a batch's first update log pi is still log pi_t, and REBEL's gradient a multiple of RLOO's: its regression begins
with the second."""
_paper = {"log_prob_scale": "1/D", "max_grad_norm": 5.0}
_images = (Reuse, Shaping)

IMPROVE_IMAGES: dict[str, Method] = {
    "rebel": replace(
        IMPROVE["rebel"], parts=_images, defaults=_twice,
        preset_options={"paper": _paper | {"lr": 3e-4, "num_epochs": 1}},
    ),
    "pmpo": replace(IMPROVE["pmpo"], defaults={"refresh_every": 4}),
    "spo": replace(IMPROVE["spo"], parts=_images, defaults=_twice),
    "ppo": Method(
        objective=PPOWithoutCritic, parts=_images, defaults=_twice | {"clip": 0.01}, compares=False,
        preset_options={"paper": _paper | {"lr": 1e-4, "clip": 1e-4}},
    ),
    "rloo": replace(IMPROVE["rloo"], defaults={}),
    "reinforce": replace(IMPROVE["reinforce"], defaults={}),
    "dpo": replace(
        _dpo, convert=Pairing, fixed=_at_reference, parts=_images, defaults=_twice | {"beta": 0.05},
    ),
    "iterative-dpo": replace(IMPROVE["iterative-dpo"], parts=_images, defaults=_twice | {"beta": 0.05}),
    "grpo": replace(IMPROVE["grpo"], defaults={"beta": 0.0}),
    "copg": replace(IMPROVE["copg"], parts=_images),
}  # fmt: skip
"""Methods that learn from a reward of a pipeline's own images."""

_class_fractions = {"accepted_fraction": None, "rejected_fraction": None}

CONTROL: dict[str, Method] = {
    "pmpo": replace(
        _pmpo, convert=ValueLabelling, parts=(Coupling,), fit=coupled_pmpo, defaults={"covariance_beta": float("inf")},
        fixed=_class_fractions | {"score_temperature": None, "regularizer": "kl"},
    ),
    "mpo": Method(
        objective=MPO, fit=mpo_per_dimension, fixed={"decoupled": True, "epsilon_penalty": 0.0},
        defaults={"epsilon_mean": 0.02, "epsilon_covariance": 1e-5},
    ),
    "dpo": replace(_dpo, convert=BestOverWorst, fixed=_at_reference, defaults={"beta": 1.0}),
    "rebel": replace(_rebel, fixed=_at_reference),
}  # fmt: skip
"""Methods that improve a control policy on actions that a critic has judged."""

OFFLINE_CONTROL: dict[str, Method] = {
    "pmpo": replace(
        _pmpo, presets={},
        fixed=_class_fractions | {"score_temperature": None, "regularizer": "bc", "covariance_beta": None},
    ),
}  # fmt: skip
"""Methods that learn a control policy from episodes on disk."""

SEARCH: dict[str, Method] = {"pmpo": replace(_pmpo, fixed=_weighted_pmpo)}
"""Methods that search for a function's smallest value."""

METHODS: dict[str, dict[str, Method]] = {
    "align": ALIGN, "improve": IMPROVE, "improve-images": IMPROVE_IMAGES, "control": CONTROL,
    "offline-control": OFFLINE_CONTROL, "search": SEARCH,
}  # fmt: skip
