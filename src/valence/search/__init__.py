"""Black-box optimisation from feedback of any kind: values, ranks, labels or pairs."""

from valence.search.search import PreferenceSearch, Result
from valence.search.space import Box, Unbounded

__all__ = ["Box", "PreferenceSearch", "Result", "Unbounded"]
