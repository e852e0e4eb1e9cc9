"""Names of columns as a user writes them."""

from __future__ import annotations

from valence.errors import UserError


def parse_columns(text: str | None) -> dict[str, str]:
    """`prompt=question,completion=answer` as a dictionary.

    Raises:
        UserError: it is not of that form.
    """
    pairs = [part.split("=") for part in (text or "").split(",") if part.strip()]
    if any(len(pair) != 2 or not all(side.strip() for side in pair) for pair in pairs):
        raise UserError(f"`columns` is {text!r}, and must look like prompt=question,completion=answer")
    return {ours.strip(): theirs.strip() for ours, theirs in pairs}
