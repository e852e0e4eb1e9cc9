"""Black-box search from feedback of any sign: values, ranks, labels or pairs.

The PMPO paper's own protocol, slow and kept to compare with, is `valence.search.gradient.GradientSearch`.
"""

from valence.search.search import PreferenceSearch, Result
from valence.search.space import Box, Unbounded

__all__ = ["Box", "PreferenceSearch", "Result", "Unbounded"]
