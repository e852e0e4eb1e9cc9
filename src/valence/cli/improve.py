"""`valence improve PROMPTS… --model MODEL --reward R --out DIR`."""

from __future__ import annotations

from collections.abc import Sequence

from valence.cli.align import config_arguments
from valence.cli.parse import parse
from valence.runs.improve_config import ImproveConfig, check_complete, improve_config

DESCRIPTION = (
    "Improve a language model on prompts: sample from it, ask a reward, learn, repeat. "
    "--config FILE.yaml takes the fields of an earlier run's config.yaml; what is given beside it wins."
)


def run(arguments: Sequence[str]) -> None:
    """Parse and improve."""
    rest, fields = config_arguments(arguments)
    default = improve_config(**fields) if fields else ImproveConfig()
    config = parse(ImproveConfig, rest, prog="valence improve", description=DESCRIPTION, default=default)
    check_complete(config)
    from valence.runs.improve import run_improvement

    run_improvement(config)
