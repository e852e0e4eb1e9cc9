"""A command's help, on at most two screens: its options and those of the chosen method, grouped, defaults shown."""

from __future__ import annotations

import shutil
import textwrap
from dataclasses import fields, is_dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import tyro

from valence.runs.methods import docstring_help

NAME_WIDTH = 30
NAMES = {str: "TEXT", int: "INT", float: "FLOAT", NoneType: "", bool: ""}
TITLES = {
    "data": "Data", "network": "Model", "sampling": "Sampling", "reference": "Reference", "train": "Training",
    "run": "Run", "judging": "Reward", "agent": "Agent", "critic": "Critic", "trial": "Run", "learning": "Learning",
    "search": "Search", "training": "Training", "comparison": "Comparison",
}  # fmt: skip


def render(kind: Any, default: Any, method: str, methods: list[str]) -> str:
    """The help of a command whose configuration is `default`, an instance of `kind`."""
    width = max(80, min(shutil.get_terminal_size((110, 24)).columns, 140))
    lines = [f"usage: {kind.usage or f'valence {method}'} [options]", ""]
    lines += [*textwrap.wrap(" ".join((kind.__doc__ or "").replace("`", "").split()), width), ""]
    if methods:
        lines += textwrap.wrap(f"Methods: {', '.join(methods)}.", width, subsequent_indent="    ")
    lines += _group(kind, default, width)
    for item in sorted(fields(default), key=lambda item: item.name != "options"):
        group = getattr(default, item.name)
        if not is_dataclass(group) or not fields(group):
            continue
        title = f"Options of {method}" if item.name == "options" else TITLES[item.name]
        lines += ["", f"{title}:", *_group(type(group), group, width)]
    lines += ["", "--config FILE.yaml takes the options of an earlier run; options given beside it win."]
    return "\n".join(lines)


def _group(kind: Any, default: Any, width: int) -> list[str]:
    help_of = docstring_help(kind)
    hints, lines = get_type_hints(kind, include_extras=True), list[str]()
    for item in fields(default):
        value = getattr(default, item.name)
        if is_dataclass(value) or item.name not in hints:
            continue
        hint = hints[item.name]
        positional = tyro.conf.Positional in getattr(hint, "__metadata__", ())
        text: Any = next((part for part in getattr(hint, "__metadata__", ()) if isinstance(part, type(ARG))), None)
        lines += _option(item.name, hint, text.help if text else help_of.get(item.name, ""), value, positional, width)
    return lines


ARG = tyro.conf.arg(help="")


def _option(name: str, hint: Any, text: str, default: Any, positional: bool, width: int) -> list[str]:
    hint = get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
    head = name.upper() if positional else f"--{name.replace('_', '-')} {_values(hint)}".rstrip()
    if isinstance(default, bool):
        head = f"--{'no-' if default else ''}{name.replace('_', '-')}"
    elif default not in (None, "", ()) and not positional:
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        text = f"{text} ({shown:g})" if isinstance(shown, float) else f"{text} ({shown})"
    body = textwrap.wrap(text, width - NAME_WIDTH - 2) or [""]
    lines = (
        [f"  {head:{NAME_WIDTH - 1}} {body[0]}"]
        if len(head) < NAME_WIDTH
        else [f"  {head}", " " * (NAME_WIDTH + 2) + body[0]]
    )
    return lines + [" " * (NAME_WIDTH + 2) + line for line in body[1:]]


def _values(hint: Any) -> str:
    """What may stand behind an option's name."""
    if get_origin(hint) is Literal:
        return "|".join(str(choice) for choice in get_args(hint) if choice)
    if get_origin(hint) is tuple:
        return f"{_values(get_args(hint)[0])} …"
    if get_args(hint):
        return "|".join(part for part in map(_values, get_args(hint)) if part)
    return NAMES.get(hint, "TEXT")
