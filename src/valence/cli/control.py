"""`valence control ENVIRONMENT --method pmpo …`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from valence.cli.parse import parse
from valence.runs.control_config import ControlConfig


def run(arguments: Sequence[str]) -> None:
    """Parse, run, print."""
    config = parse(ControlConfig, arguments, prog="valence control")
    from valence.runs.control import run_control

    result = run_control(config)
    spread = f", {min(result.returns):.1f} to {max(result.returns):.1f}"
    print(f"return {statistics.fmean(result.returns):.1f} (mean of {len(result.returns)} episodes{spread})")
    print(f"written: {result.folder} (valence.PolicyRunner.load({str(result.folder)!r}).act(observation) acts)")
