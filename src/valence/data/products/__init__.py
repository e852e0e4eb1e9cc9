"""Exports of the products where people give feedback: one file each, which turns an exported row into our own layouts.

A product's module has `NAME`, `matches(row)` and `rows(row)`. To add one, write the module and name it in `PRODUCTS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from valence.data.formats.row import Skipped
from valence.data.products import (
    arena,
    argilla,
    chainlit,
    gradio,
    label_studio,
    langfuse,
    langsmith,
    mlflow,
    openai_logs,
    openwebui,
    phoenix,
    prodigy,
    weave,
)

Fields = Mapping[str, object]
Unit = dict[str, object] | Skipped
"""One piece of feedback as a row of our own layouts, or why it says nothing."""


@dataclass(frozen=True)
class Product:
    """A product's export.

    Args:
        name: the product.
        matches: whether a row is of this export.
        rows: the feedback in an exported row; it raises Refused for a row that cannot be used.
        whole: (line, row) of a whole file -> (line, outcome), where a row may take back an earlier one.
        compare: pieces of feedback with one `comparison` -> one piece, where an answer has a row of its own.
        joins: whether a row of the joined file has to be gathered first.
        gather: rows of the joined file -> rows that can be joined.
    """

    name: str
    matches: Callable[[Fields], bool]
    rows: Callable[[Fields], Iterator[Unit]]
    whole: Callable[[Iterable[tuple[int, Fields]]], Iterator[tuple[int, dict[str, object] | Exception]]] | None = None
    compare: Callable[[Sequence[Fields]], Unit] | None = None
    joins: Callable[[Fields], bool] | None = None
    gather: Callable[[Iterable[Fields]], Iterator[dict[str, object]]] | None = None


PRODUCTS = (
    Product(openwebui.NAME, openwebui.matches, openwebui.rows),
    Product(langfuse.NAME, langfuse.matches, langfuse.rows, joins=langfuse.joins, gather=langfuse.gather),
    Product(langsmith.NAME, langsmith.matches, langsmith.rows, compare=langsmith.compare),
    Product(argilla.NAME, argilla.matches, argilla.rows),
    Product(label_studio.NAME, label_studio.matches, label_studio.rows),
    Product(arena.NAME, arena.matches, arena.rows),
    Product(chainlit.NAME, chainlit.matches, chainlit.rows, joins=chainlit.joins, gather=chainlit.gather),
    Product(gradio.NAME, gradio.matches, gradio.rows, whole=gradio.group),
    Product(prodigy.NAME, prodigy.matches, prodigy.rows),
    Product(weave.NAME, weave.matches, weave.rows),
    Product(mlflow.NAME, mlflow.matches, mlflow.rows),
    Product(phoenix.NAME, phoenix.matches, phoenix.rows),
    Product(openai_logs.NAME, openai_logs.matches, openai_logs.rows),
)
repair = gradio.repair
"""(header, cells of another number) -> the cells by their names, or None."""


def product_of(row: Fields) -> Product | None:
    """The product whose export a row is of, or None."""
    return next((product for product in PRODUCTS if product.matches(row)), None)


def joinable(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """The rows of a joined file, gathered where a product's rows have to be."""
    gather = next((each.gather for each in PRODUCTS if each.joins and rows and each.joins(rows[0])), None)
    return rows if gather is None else list(gather(rows))
