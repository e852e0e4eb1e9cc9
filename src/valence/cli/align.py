"""`valence align FEEDBACK… --model MODEL --out DIR`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from valence.cli.parse import parse
from valence.errors import UserError
from valence.runs.config import AlignConfig, align_config, check_complete

DESCRIPTION = (
    "Make a language model better from feedback of any shape; valence inspect tells what a file holds. "
    "--config FILE.yaml takes the fields of an earlier run's config.yaml; what is given beside it wins."
)


def read_config(path: str) -> dict[str, Any]:
    """A config.yaml as flat fields.

    Raises:
        UserError: no such file, or it is not a mapping.
    """
    try:
        fields = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--config {path} cannot be read: {error}") from error
    if not isinstance(fields, dict):
        raise UserError(f"--config {path} must hold fields such as 'model: small-lm', a line each")
    return {str(name).replace("-", "_"): value for name, value in fields.items()}


def take_config(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    """The arguments without --config, and its value."""
    rest, path = list(arguments), None
    for place, word in enumerate(arguments):
        if word == "--config":
            if place + 1 == len(arguments):
                raise UserError("--config needs a file")
            path = arguments[place + 1]
            del rest[place : place + 2]
            break
        if word.startswith("--config="):
            path = word.split("=", 1)[1]
            del rest[place]
            break
    return rest, path


def config_arguments(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """The arguments without --config, and the fields that it, or the folder of a resumed run, holds."""
    rest, path = take_config(arguments)
    if path is None and "--resume" in rest and "--out" in rest[:-1]:
        # `--resume --out DIR` is enough: the folder knows its run.
        own = Path(rest[rest.index("--out") + 1]) / "config.yaml"
        path = str(own) if own.is_file() else None
    return rest, read_config(path) if path else {}


def run(arguments: Sequence[str]) -> None:
    """Parse and align."""
    rest, fields = config_arguments(arguments)
    default = align_config(**fields) if fields else AlignConfig()
    config = parse(AlignConfig, rest, prog="valence align", description=DESCRIPTION, default=default)
    check_complete(config)
    from valence.runs.align import run_alignment

    run_alignment(config)
