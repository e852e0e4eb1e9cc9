"""Black-box search from feedback of any sign: values, ranks, labels or pairs."""

from valence.search.search import PreferenceSearch, Result
from valence.search.space import Box, Unbounded

__all__ = ["Box", "PreferenceSearch", "Result", "Unbounded"]
