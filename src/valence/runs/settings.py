"""From words or Python arguments to a run's configuration, by one parser of annotations (tyro's), and back to a file.

A command's configuration is a dataclass of small groups (`valence.runs.options`). The group `options` belongs to the
method: its class comes from the method's row in `valence.runs.methods`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass, replace
from functools import cache
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints

import tyro
import yaml

from valence.errors import UserError

if TYPE_CHECKING:
    from valence.runs.methods import Method

CONFIG_FILE = "config.yaml"
WITH_METHODS = ("align", "improve", "improve-images", "control", "offline-control", "search")
"""The commands that have methods."""
# The help is `valence.cli.help`'s own: tyro need not read the sources for it.
FLAGS = (tyro.conf.OmitArgPrefixes, tyro.conf.HelptextFromCommentsOff)


@dataclass(frozen=True)
class NoOptions:
    """Options of the method: choose one with `method`."""


@dataclass(frozen=True)
class RunConfig:
    """What the configurations of all commands share.

    Attributes:
        command: the command's name, under which the table has its methods.
        required: the fields that must not be empty.
        usage: how the command is called, for messages.
    """

    command: ClassVar[str]
    required: ClassVar[tuple[str, ...]] = ()
    usage: ClassVar[str] = ""

    def check_complete(self) -> None:
        """Raise UserError where a required field is empty."""
        missing = [name for name in self.required if not getattr(self, name)]
        if missing:
            raise UserError(f"{', '.join(missing)} missing: {self.usage}")


Config = TypeVar("Config", bound=RunConfig)


def methods_of(command: str) -> Mapping[str, Method]:
    """The methods of a command. They are imported when they are first asked for, since torch comes with them."""
    if command not in WITH_METHODS:
        return {}
    from valence.runs.methods import METHODS

    return METHODS[command]


def hints_of(kind: Any) -> Iterator[tuple[str, Any]]:
    """(name, annotation) of every option of a configuration class, groups flattened."""
    hints = get_type_hints(kind)
    for item in fields(kind):
        hint = hints[item.name]
        yield from hints_of(hint) if is_dataclass(hint) else [(item.name, hint)]


def hints_of_methods(command: str) -> dict[str, Any]:
    """Option -> annotation, of all methods of a command."""
    rows = methods_of(command).values()
    return {name: hint for row in rows for name, hint in get_type_hints(row.options).items()}


def positionals(kind: type) -> set[str]:
    """The fields whose values stand without a flag."""
    hints = get_type_hints(kind, include_extras=True)
    return {name for name, hint in hints.items() if tyro.conf.Positional in getattr(hint, "__metadata__", ())}


def settings_of(config: Any) -> dict[str, Any]:
    """The values of a configuration by their flat names, as config.yaml holds them: `preset` is written out, and
    running it again begins anew, so it does not say `resume`."""
    out: dict[str, Any] = {}
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            out |= settings_of(value)
        elif item.name not in ("preset", "resume"):
            out[item.name] = list(value) if isinstance(value, tuple) else value
    return out


@cache
def with_options(kind: type, options: type) -> type[Any]:
    """The configuration class with the options of a method."""
    part, about = ("options", options, field(default=options())), {"__doc__": kind.__doc__}
    return make_dataclass(kind.__name__, [part], bases=(kind,), namespace=about, frozen=True)


def configure(
    kind: type[Config], words: Sequence[str], positional: Mapping[str, Any], *,
    choose: Callable[[Config], str] | None = None,
) -> Config:  # fmt: skip
    """The configuration that the words of a command line describe.

    Args:
        positional: values of positional fields that the words do not give.
        choose: gives the method's name where `method` is "auto", from the configuration without method options.
    Raises:
        UserError: an unknown option, a wrong value, or a missing one.
    """
    if kind.command not in WITH_METHODS:
        config = parse(kind(**positional), words)
        config.check_complete()
        return config
    table, (asked, _) = methods_of(kind.command), take(words, "method", "preset")
    default: Any = kind(**positional)
    name = asked["method"] or default.method
    if name == "auto" and choose is not None:
        early = parse(with_options(kind, _any_options(kind.command))(**positional), words)
        early.check_complete()
        name = choose(early)
    if name not in table:
        choices = ", ".join((["auto"] if choose else []) + list(table))
        raise UserError(f"`method` is {name!r}, and must be one of {choices}")
    row, given = table[name], given_names(words)
    default = replace(preset_default(kind, row, asked["preset"], name), **positional)
    config: Any = replace(parse(default, words), method=name)
    try:
        if config.preset in row.presets:
            # Made anew beside the options that are given: a preset may depend on them.
            own = {key: getattr(config.options, key) for key in row.objective_fields & given}
            config = replace(config, options=replace(config.options, **row.preset_values(config.preset, **own)))
        row.make(config.options)
    except ValueError as error:
        # It begins with the name of the objective's field.
        first, _, rest = str(error).partition(" ")
        raise UserError(f"`{first}` {rest}" if first in settings_of(config) else str(error)) from error
    config.check_complete()
    return config


def preset_default(kind: type, row: Method, preset: str | None, name: str) -> Any:
    """The configuration with the method's own defaults and those of its preset.

    Raises:
        UserError: the method has no such preset.
    """
    known = list(dict.fromkeys([*row.presets, *row.preset_options]))
    if preset is not None and preset not in known:
        wanted = f"one of {', '.join(known)}" if known else f"left out: {name} has none"
        raise UserError(f"`preset` is {preset!r}, and must be {wanted}")
    values = row.preset_values(preset or "") | dict(row.preset_options.get(preset or "", {}))
    default = with_options(kind, row.options)()
    changed: dict[str, Any] = {}
    for title, group in vars(default).items():
        if is_dataclass(group) and not isinstance(group, type):
            changed[title] = replace(group, **{key: values[key] for key in vars(group) if key in values})
    return replace(default, **changed)


def _any_options(command: str) -> type:
    """One class with the options of every method, to read a command line whose method is not known yet."""
    made = [
        (name, hint, False) if hint is bool else (name, (hint if get_origin(hint) is tuple else str) | None, None)
        for name, hint in hints_of_methods(command).items()
    ]
    return make_dataclass("AnyOptions", made, frozen=True)


def parse(default: Config, words: Sequence[str]) -> Config:
    """The configuration with what the words say, `default` for the rest.

    Raises:
        UserError: an unknown option, or a value of the wrong kind or out of range.
    """
    caught, prog = io.StringIO(), f"valence {default.command}"
    try:
        with contextlib.redirect_stderr(caught):
            return tyro.cli(type(default), args=list(words), prog=prog, config=FLAGS, default=default)
    except SystemExit as stop:
        if not stop.code:
            raise
    message = _first_paragraph(caught.getvalue())
    owners = _owners(default.command, message)
    message = re.sub(r"^Error parsing (?:[\w.-]+: (?=`)|(?=--))", "", message)
    message = re.sub(r"'?--([a-z][\w-]*)'?", lambda match: f"`{match[1].replace('-', '_')}`", message)
    raise UserError(f"{message}{owners}; see {prog} --help")


def _owners(command: str, message: str) -> str:
    """Which methods have an option that tyro did not recognise, for its message."""
    unknown = re.match(r"Unrecognized options: --(?:no-)?([\w-]+)", message)
    name = unknown[1].replace("-", "_") if unknown else ""
    owners = [key for key, row in methods_of(command).items() if name in get_type_hints(row.options)]
    return f" (`{name}` belongs to the method {' or '.join(owners)})" if owners else ""


def _first_paragraph(box: str) -> str:
    """The text of the first part of tyro's error box, without its frame."""
    lines: list[str] = []
    for line in box.splitlines()[1:]:
        text = line.strip("╭╮╰╯│─ ")
        # Where the output is not UTF-8, dashes are the frame.
        if text.strip("-"):
            lines.append(text)
        elif lines:
            break
    return " ".join(" ".join(lines).split())


def take(words: Sequence[str], *names: str) -> tuple[dict[str, str | None], list[str]]:
    """(the values that the words give to some options, None where they do not; the other words)."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in names:
        parser.add_argument(f"--{name}")
    try:
        known, rest = parser.parse_known_args(list(words))
    except argparse.ArgumentError as error:
        raise UserError(f"{error.argument_name} needs a value") from error
    return vars(known), rest


def fields_for_method(kind: type[RunConfig], values: Mapping[str, Any], method: str | None) -> dict[str, Any]:
    """The fields of a config.yaml; where another method is asked for, without the options of the file's own."""
    table, before = methods_of(kind.command), str(values.get("method"))
    own = get_type_hints(table[before].options) if before in table and method not in (None, before) else {}
    return {name: value for name, value in values.items() if name not in own}


def given_names(words: Sequence[str]) -> set[str]:
    """The options that the words name."""
    flags = (word[2:].split("=")[0].replace("-", "_") for word in words if word.startswith("--"))
    return {name for flag in flags for name in (flag, flag.removeprefix("no_"))}


def to_words(kind: type[RunConfig], values: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Python arguments, or the fields of a config.yaml, as (words, positional values) for `configure`.

    Raises:
        UserError: a value that no option can have.
    """
    hints = hints_of_methods(kind.command) | dict(hints_of(kind))
    defaults = settings_of(kind()) | {"preset": None}
    words: list[str] = []
    positional: dict[str, Any] = {}
    for name, value in values.items():
        if value is None and defaults.get(name, "") is None:
            # Left out: a preset may say otherwise.
            continue
        # Options that hold several texts hold paths; one alone may be given as it is.
        value = _paths(name, value) if hints.get(name) == tuple[str, ...] else value
        if name in positionals(kind):
            positional[name] = tuple(value) if isinstance(value, list) else _scalar(name, value)
        else:
            words += _as_words(name, hints.get(name), value)
    return words, positional


def _as_words(name: str, hint: object, value: object) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    text = hint in (str, str | None)
    if hint is bool or (text and isinstance(value, bool | None)):
        if text or not isinstance(value, bool):
            raise UserError(f"`{name}` is {value!r}, and must be {'text' if text else 'True or False'}")
        return [flag if value else f"--no{flag[1:]}"]
    if isinstance(value, list | tuple) and get_origin(hint) is tuple:
        return [flag, *(_scalar(name, part) for part in value)]
    if value is None and hint is not None and type(None) not in get_args(hint):
        raise UserError(f"`{name}` is None: leave it out")
    return [f"{flag}={_scalar(name, value)}"]


def _scalar(name: str, value: object) -> str:
    if not isinstance(value, str | int | float | PathLike | None):
        raise UserError(f"`{name}` is {str(value)[:60]!r}, and must be a single text or number")
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        # YAML and Python write whole numbers either way.
        return str(int(value))
    return fspath(value) if isinstance(value, PathLike) else str(value)


def _paths(name: str, value: Any) -> list[str]:
    """One path or several, as texts."""
    given = [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
    if not all(isinstance(path, str | PathLike) for path in given):
        raise UserError(f"`{name}` is {str(value)[:60]!r}, and must be a path or a list of paths")
    return [fspath(path) for path in given]


def read_config(path: str) -> dict[str, Any]:
    """The fields of a config.yaml.

    Raises:
        UserError: there is no such file, or it is not a mapping.
    """
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"`config` {path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"`config` {path} must hold fields such as 'model: small-lm', a line each")
    return {str(name).replace("-", "_"): value for name, value in found.items()}
