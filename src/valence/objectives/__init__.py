"""One file a paper: the equation, the pure unreduced functions, and the frozen dataclass that the learner calls.

Every public class and function of these files can be imported from here: `from valence.objectives import PMPO`.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import Any


def __getattr__(name: str) -> Any:
    """The class or function `name`, from the file that defines it."""
    files = [] if name.startswith("_") else [module.name for module in iter_modules(__path__)]
    # A name of a file: Python asks here first, and then imports the file itself.
    for file in files if name not in files else []:
        found = vars(import_module(f"{__name__}.{file}")).get(name)
        # What a file only imports has another file's `__module__`.
        if getattr(found, "__module__", None) == f"{__name__}.{file}":
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
