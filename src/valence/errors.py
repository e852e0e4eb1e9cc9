"""The one exception that is for users: its message is one clear line saying what, where and what to do."""

from __future__ import annotations


class UserError(Exception):
    """Bad input. The command line prints the message and exits with status 2, without a traceback."""
