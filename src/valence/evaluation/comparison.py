"""The page of a comparison of two models: the win rate, and both completions of each prompt, escaped."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from valence.evaluation.win_rate import WinRate

STYLE = (
    "body{font:15px/1.5 system-ui;margin:2rem} td,th{border-bottom:1px solid #ddd;padding:.4rem;text-align:left;"
    "vertical-align:top;white-space:pre-wrap}"
)
MAX_ROWS = 100


def sentence(first: str, second: str, found: WinRate) -> str:
    """The win rate of the first model, in words."""
    control = "" if found.length_controlled is None else f", {found.length_controlled:.1%} at equal length"
    interval = f"[{found.low:.1%}, {found.high:.1%}]"
    return f"{first} beats {second}: {found.rate:.1%} {interval} of {found.judged:,}, ties {found.ties:.1%}{control}"


def page(first: str, second: str, judge: str, found: WinRate, samples: Sequence[Mapping[str, Any]]) -> str:
    """The comparison as HTML; `samples` hold "prompt", "first", "second" and "verdict"."""
    names = ("prompt", "first", "second", "verdict")
    cells = "".join(
        f"<tr>{''.join(f'<td>{html.escape(str(row[name]))}</td>' for name in names)}</tr>\n"
        for row in samples[:MAX_ROWS]
    )
    one, two, said = (html.escape(text) for text in (first, second, sentence(first, second, found)))
    return (
        f"<!doctype html><meta charset=utf-8><title>{one} against {two}</title><style>{STYLE}</style>"
        f"<h1>{one} against {two}</h1><p>{said}, judged by {html.escape(judge)}.</p>"
        f"<table><tr><th>prompt</th><th>{one}</th><th>{two}</th><th>P(first is better)</th></tr>\n{cells}</table>"
    )
