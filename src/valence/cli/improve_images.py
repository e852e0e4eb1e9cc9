"""`valence improve-images --pipeline P --prompts F --reward R --out DIR`."""

from __future__ import annotations

from collections.abc import Sequence

from valence.cli.align import config_arguments
from valence.cli.parse import parse
from valence.runs.images_config import ImprovementConfig, check_complete, images_config

DESCRIPTION = (
    "Improve an image pipeline (consistency or diffusion) on prompts: draw from it, ask a reward, learn, repeat. "
    "--config FILE.yaml takes the fields of an earlier run's config.yaml; what is given beside it wins."
)


def run(arguments: Sequence[str]) -> None:
    """Parse and improve."""
    rest, fields = config_arguments(arguments)
    default = images_config(**fields) if fields else ImprovementConfig()
    config = parse(ImprovementConfig, rest, prog="valence improve-images", description=DESCRIPTION, default=default)
    check_complete(config)
    from valence.runs.improve_images import run_image_improvement

    run_image_improvement(config)
