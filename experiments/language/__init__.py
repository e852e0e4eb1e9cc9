"""The text task that `summarize`, `best-worst` and `pmpo-language` share: its data, its runs and its tables."""
