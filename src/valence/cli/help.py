"""A command's help, on at most two screens: its options and those of the chosen method, grouped, defaults shown."""

from __future__ import annotations

import shutil
import textwrap
from dataclasses import fields, is_dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from valence.runs.methods import docstring_help
from valence.runs.settings import RunConfig, positionals

NAME_WIDTH = 30
INDENT = " " * (NAME_WIDTH + 2)
NAMES: dict[object, str] = {str: "TEXT", int: "INT", float: "FLOAT", NoneType: "", bool: ""}
TITLES = {"network": "Model", "train": "Training", "judging": "Reward", "prompting": "Prompts", "trial": "Run"}
"""Titles of the groups that are not called by their field's name."""


def render(default: RunConfig, method: str, methods: list[str]) -> str:
    """The help of a command whose configuration is `default`."""
    width = max(80, min(shutil.get_terminal_size((110, 24)).columns, 140))
    lines = [f"usage: {default.usage or f'valence {method}'} [options]", ""]
    lines += [*textwrap.wrap(" ".join((default.__doc__ or "").replace("`", "").split()), width), ""]
    if methods:
        lines += textwrap.wrap(f"Methods: {', '.join(methods)}.", width, subsequent_indent="    ")
    lines += _group(default, width)
    for name, group in sorted(vars(default).items(), key=lambda item: item[0] != "options"):
        if is_dataclass(group) and fields(group):
            title = f"Options of {method}" if name == "options" else TITLES.get(name, name.capitalize())
            lines += ["", f"{title}:", *_group(group, width)]
    lines += ["", "--config FILE.yaml takes the options of an earlier run; options given beside it win."]
    return "\n".join(lines)


def _group(group: Any, width: int) -> list[str]:
    """The options that stand in the group itself."""
    kind, lines = type(group), list[str]()
    help_of, hints, without_flag = docstring_help(kind), get_type_hints(kind), positionals(kind)
    for name, value in vars(group).items():
        if is_dataclass(value):
            continue
        text, flag = help_of.get(name, ""), name.replace("_", "-")
        if name in without_flag:
            head = name.upper()
        elif isinstance(value, bool):
            head, text = (f"--{flag}, --no-{flag}", f"{text} (on)") if value else (f"--{flag}", text)
        else:
            head = f"--{flag} {_values(hints[name])}".rstrip()
            if value not in (None, "", ()):
                shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
                text = f"{text} ({shown:g})" if isinstance(shown, float) else f"{text} ({shown})"
        begin = f"  {head:{NAME_WIDTH}}"
        if len(head) >= NAME_WIDTH:
            begin, lines = INDENT, [*lines, f"  {head}"]
        lines += textwrap.wrap(text, width, initial_indent=begin, subsequent_indent=INDENT)
    return lines


def _values(hint: object) -> str:
    """What may stand behind an option's name."""
    if get_origin(hint) is Literal:
        return "|".join(str(choice) for choice in get_args(hint) if choice)
    if get_origin(hint) is tuple:
        return f"{_values(get_args(hint)[0])} …"
    if get_args(hint):
        return "|".join(part for part in map(_values, get_args(hint)) if part)
    return NAMES.get(hint, "TEXT")
