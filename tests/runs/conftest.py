"""What tests of runs share."""

from __future__ import annotations

import pytest


@pytest.fixture
def curves() -> None:
    """A test that takes it has the curves of its report drawn."""


@pytest.fixture(autouse=True)
def no_curves(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves are drawn, and tested, elsewhere: they take half of a short run's time."""
    if "curves" not in request.fixturenames:
        for name in ("report.curves_figure", "overoptimization.figure"):
            monkeypatch.setattr(f"valence.evaluation.{name}", lambda rows: None)
            monkeypatch.setattr(f"valence.evaluation.{name.split('.')[0]}.png", lambda figure: b"\x89PNG")
