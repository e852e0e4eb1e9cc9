"""Feedback in any shape: every layout and file format into one list of records."""

from valence.data.formats.load import Loaded, load_feedback, parse_columns

__all__ = ["Loaded", "load_feedback", "parse_columns"]
