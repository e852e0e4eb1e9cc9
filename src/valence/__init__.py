"""Valence: make a policy better from feedback of any sign and shape.

from valence import align
result = align("thumbs.jsonl", model="small-lm", out="runs/first")
print(result.after)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from valence.data.load import load_feedback
    from valence.errors import UserError
    from valence.policies.runner import PolicyRunner
    from valence.runs.align import align
    from valence.runs.control import control
    from valence.runs.improve_images import improve_images
    from valence.runs.improve_language import improve
    from valence.search.search import PreferenceSearch

__all__ = [
    "PolicyRunner",
    "PreferenceSearch",
    "UserError",
    "align",
    "control",
    "improve",
    "improve_images",
    "load_feedback",
]
__version__ = "0.1.0"

_HOMES = {
    "align": "valence.runs.align",
    "control": "valence.runs.control",
    "improve": "valence.runs.improve_language",
    "improve_images": "valence.runs.improve_images",
    "load_feedback": "valence.data.load",
    "PolicyRunner": "valence.policies.runner",
    "PreferenceSearch": "valence.search.search",
    "UserError": "valence.errors",
}


def __getattr__(name: str) -> Any:
    """Names are fetched when first used, so that `import valence` stays fast."""
    if name not in _HOMES:
        raise AttributeError(f"module 'valence' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
