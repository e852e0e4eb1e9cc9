"""The one exception that is for users: its message is one clear line saying what, where and what to do."""

from __future__ import annotations


class UserError(Exception):
    """Bad input. The command line prints the message and exits with status 2, without a traceback."""


def one_line(error: object, most: int = 200) -> str:
    """The text of an exception, or of anything else, on one line of at most `most` characters.

    Its backquotes become plain quotes: in our messages they stand around arguments.
    """
    return " ".join(str(error).split())[:most].replace("`", "'")
