"""The text task of `summarize`, `best-worst` and `pmpo-language`: its data and judge, its runs and its tables."""
