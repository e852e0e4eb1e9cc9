"""Why a row gives no record."""

from __future__ import annotations


class Refused(ValueError):
    """A row that cannot be used; the message is the reason."""


class Skipped(Exception):
    """A row that says nothing on purpose (a skip, a tie, an ignored value); it is counted under its reason."""
